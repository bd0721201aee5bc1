"""What the commands share: common options, how rows are shown, how `--set` is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
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


def _cell(value: Any) -> Text:
    """Return a value as text that is printed as it is: no markup, no control characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Text("".join(c if c.isprintable() else " " for c in text))
