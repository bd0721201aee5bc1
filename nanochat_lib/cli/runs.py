"""`nanochat runs`, `note`, `compare` and `report`: look at what ran, and say what it showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_lib.cli.shared import JsonFlag, RunsDir, console, show
from nanochat_lib.experiments.notes import read_notes, write_notes
from nanochat_lib.experiments.registry import list_runs, select_runs
from nanochat_lib.runs import REPORTS_DIR, open_run

SelfContained = Annotated[
    bool, typer.Option(help="embed the plotting script (5 MB), or link the copy in assets/")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="tag; may be given again")]


def runs(
    words: Annotated[
        list[str] | None, typer.Argument(help="words a run must hold, anywhere in its row")
    ] = None,
    status: Annotated[
        str, typer.Option(help="completed, running, failed, interrupted, new or damaged")
    ] = "",
    profile: Annotated[str, typer.Option(help="name of the profile")] = "",
    tags: Tags = None,
    limit: Annotated[int, typer.Option(min=0, help="show the newest only; 0: all")] = 0,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    as_json: JsonFlag = False,
) -> None:
    """List the runs with status, tags and notes, the newest first."""
    found = list_runs(runs_dir)
    kept = select_runs(found, words=words or [], status=status, profile=profile, tags=tags or [])
    rows = kept.head(limit or kept.height).to_dicts()
    none = (
        f"None of {found.height} runs matches." if found.height else f"No runs in {runs_dir} yet."
    )
    show(rows if as_json else [_shown(row) for row in rows], as_json, empty=none)


def note(
    run_id: Annotated[str, typer.Argument(help="run to write about")],
    hypothesis: Annotated[
        str | None, typer.Option(help="what is expected, and why; '' removes it")
    ] = None,
    conclusion: Annotated[str | None, typer.Option(help="what it showed; '' removes it")] = None,
    tags: Tags = None,
    untag: Annotated[list[str] | None, typer.Option(help="tag to take away")] = None,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    as_json: JsonFlag = False,
) -> None:
    """Tag a run and note its hypothesis or conclusion; without options, show its notes."""
    folder = open_run(run_id, runs_dir).dir
    changes = {"hypothesis": hypothesis, "conclusion": conclusion}
    changes |= {"add_tags": tags or [], "remove_tags": untag or []}
    is_change = hypothesis is not None or conclusion is not None or tags or untag
    notes = write_notes(folder, **changes) if is_change else read_notes(folder)
    shown = {"run_id": run_id, "tags": list(notes.tags)}
    shown |= {"hypothesis": notes.hypothesis, "conclusion": notes.conclusion}
    if as_json:
        typer.echo(json.dumps(shown, indent=1))
        return
    for name, value in shown.items():
        text = ", ".join(value) if isinstance(value, list) else value
        console.print(f"{name:10}  {text or '-'}", highlight=False, markup=False)


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Return a run's row, narrow enough for a terminal."""
    return {
        "run": row["run_id"],
        "status": row["status"],
        "profile": row["profile"],
        "started": row["created"][:16].replace("T", " "),
        "minutes": f"{row['seconds'] / 60:.1f}",
        "stages": row["stages"],
        "tags": ", ".join(row["tags"]),
        "note": row["problem"] or row["conclusion"] or row["hypothesis"],
    }


def compare(
    run_ids: Annotated[list[str] | None, typer.Argument(help="runs, two or more")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="also every run with this tag")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the page; default: compare/ beside the runs' folder")
    ] = None,
    title: Annotated[str, typer.Option(help="heading of the page")] = "",
    self_contained: SelfContained = True,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    as_json: JsonFlag = False,
) -> None:
    """Set runs beside each other: a page with parameters, environment, numbers and curves."""
    from nanochat_lib.report.compare.page import comparison_json, load_runs, numbers_frame
    from nanochat_lib.report.compare.page import write_comparison as write

    tagged = select_runs(list_runs(runs_dir), tags=tags)["run_id"] if tags else []
    found = load_runs([*(run_ids or []), *tagged], runs_dir)
    if as_json:
        typer.echo(json.dumps(comparison_json(found), indent=1))
        return
    name = "_".join([*(tags or []), *(run_ids or [])]).replace(":", "-")[:80]
    path = out or runs_dir.parent / "compare" / f"{name}.html"
    show(numbers_frame(found).to_dicts(), False)
    written = write(found, path, title=title, self_contained=self_contained)
    console.print(f"page  {written}", soft_wrap=True, highlight=False)


def report(
    run_id: Annotated[str, typer.Argument(help="run to write the report of")],
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    self_contained: SelfContained = True,
) -> None:
    """Write a run's HTML report again, and the index of all runs."""
    from nanochat_lib.report.pages.index import write_index
    from nanochat_lib.report.pages.run import write_run_report

    opened = open_run(run_id, runs_dir)
    typer.echo(write_run_report(opened.dir, self_contained=self_contained))
    typer.echo(write_index(runs_dir.parent))
