"""What the commands share: common options, how rows are shown, how `--set` is read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError

console = Console()
WIDE = 400  # columns of a table that is not read on a terminal

Profile = Annotated[str, typer.Option(help="profile name, or the path of a .toml file")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="override, e.g. --set pretrain.total_steps=20")
]
RunsDir = Annotated[Path, typer.Option(help="folder of the run folders")]
Cluster = Annotated[
    str, typer.Option(help="address of a Dask scheduler whose workers judge, e.g. tcp://host:8786")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into overrides; values are JSON where they parse, else text."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise WorkbenchError(f"--set expects key=value, found {setting!r}.")
        try:
            overrides[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            overrides[key.strip()] = text
    return overrides


def verify_config(**values: Any) -> VerifyConfig:
    """Return the settings of verification; a wrong one is an error that names its option."""
    try:
        return VerifyConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"--{first['loc'][0]}: {first['msg']}, found {first['input']!r}."
        raise WorkbenchError(message) from error


@contextmanager
def progress_bar(
    title: str, total: int, on: Console, *, every_s: float = 0.0
) -> Iterator[Callable[..., None]]:
    """Yield a function that counts one more and may say something about it.

    On a terminal that is a bar, and what is said stands above it; elsewhere each is a line.

    Args:
        title: what is being done.
        total: how many there are.
        on: where to show it.
        every_s: without a terminal, at least this many seconds between two lines that say nothing.
    """
    if not on.is_terminal:
        yield _Lines(title, total, on, every_s).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=on, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(text: str = "") -> None:
            bar.advance(task)
            if text:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield advance


class _Lines:
    """Progress where there is no terminal."""

    def __init__(self, title: str, total: int, on: Console, every_s: float) -> None:
        self.title, self.total, self.on, self.every_s = title, total, on, every_s
        self.done, self.last = 0, time.monotonic()

    def advance(self, text: str = "") -> None:
        self.done += 1
        if not text and time.monotonic() - self.last < self.every_s:
            return
        self.last = time.monotonic()
        line = text or f"{self.title} {self.done} of {self.total}"
        self.on.print(line, markup=False, highlight=False, soft_wrap=True)


def show(
    rows: list[dict[str, Any]], as_json: bool, *, title: str = "", empty: str = "Nothing to show."
) -> None:
    """Print rows as a table, or as JSON for scripts."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        console.print(empty)
        return
    table = Table(title=title or None)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    # a pipe has no width: nothing is wrapped or cut there
    (console if console.is_terminal else Console(width=WIDE)).print(table)


def visible(text: str) -> str:
    """Return text that cannot command a terminal: control characters are written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{{{ord(c):x}}}" for c in text)


def _cell(value: Any) -> Text:
    """Return a value as text that is printed as it is: no markup, no control characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Text("".join(c if c.isprintable() else " " for c in text))
