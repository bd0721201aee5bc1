"""What `nanochat corpus` does: build the large corpus, show where it is, and print its funnel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanochat_lib.cli.shared import Profile, Setting, console, parse_settings
from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.data.build.build import build_corpus
from nanochat_lib.report.pages.corpus import write_corpus_page

_LINE_EVERY_S = 5.0  # of progress where there is no terminal


def corpus(
    out: Annotated[Path, typer.Option(help="folder of the corpus; the same one goes on")],
    profile: Profile = "laptop",
    settings: Setting = None,
) -> None:
    """Build a large corpus of verified Rust: sources, licences, dedup, rustc, dataset card.

    Killed or stopped, the same command goes on where it was. Sources and licences are settings:
    --set 'corpus.sources=["toolchain","debian"]'.
    """
    try:
        build(load_profile(profile, parse_settings(settings or [])), out, console)
    except KeyboardInterrupt:
        hint = "interrupted; the same command goes on from here"
        Console(stderr=True).print(f"\nnanochat: {hint}", highlight=False)
        raise typer.Exit(130) from None


def build(config: RunConfig, folder: Path, console: Console) -> None:
    """Build a corpus, or go on with it, and print what came of it.

    Raises:
        WorkbenchError: what `build_corpus` raises.
        KeyboardInterrupt: it was stopped; the same command goes on.
    """
    with _Status(console) as status:
        summary = build_corpus(config, folder, progress=status.show)
    for text in summary["problems"]:
        console.print(f"[yellow]•[/yellow] {text}", highlight=False)
    console.print(_funnel(summary["funnel"]))
    console.print(_rates(summary["compile_rate"]))
    console.print(_tasks(summary["tasks"]))
    for title, counts in (
        ("files dropped for their licence", summary["dropped_licences"]),
        ("files passed over", summary["skipped_files"]),
    ):
        if counts:
            named = ", ".join(f"{name} {n:,}" for name, n in counts.items())
            console.print(f"{title}: {named}", highlight=False)
    console.print(f"report  {write_corpus_page(folder)}", soft_wrap=True)
    console.print(f"card    {folder / 'DATASET_CARD.md'}", soft_wrap=True)
    console.print(f"rows    {folder / 'verified.parquet'}", soft_wrap=True)


def _funnel(steps: list[dict[str, Any]]) -> Table:
    table = Table("step", "rows", title="Funnel")
    for row in steps:
        table.add_row(row["step"], f"{row['n']:,}")
    return table


def _rates(rates: dict[str, Any]) -> Table:
    table = Table("source", "kind", "judged", "compiled", "passed", title="By source and kind")
    for row in rates["by_source"]:
        share = f"{row['n_compiled'] / max(row['n_judged'], 1):.1%}"
        numbers = (f"{row['n_judged']:,}", share, f"{row['n_passed']:,}")
        table.add_row(row["source"], row["kind"], *numbers)
    return table


def _tasks(kinds: list[dict[str, Any]]) -> Table:
    head = ("tests from", "judged", "passed", "kept", "to train on", "packages held out")
    table = Table(*head, title="Tasks with hidden tests")
    names = ("n_judged", "n_passed", "n_kept", "n_train", "n_held_package")
    for row in kinds:
        table.add_row(row["kind"].replace("_", " "), *(f"{row[name]:,}" for name in names))
    return table


class _Status:
    """One line that is updated in place on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("") if console.is_terminal else None
        self.last = 0.0

    def __enter__(self) -> _Status:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def show(self, text: str) -> None:
        """Show what is being done."""
        if self.status:
            self.status.update(text)
        elif time.monotonic() - self.last >= _LINE_EVERY_S:
            self.last = time.monotonic()
            self.console.print(text, highlight=False)
