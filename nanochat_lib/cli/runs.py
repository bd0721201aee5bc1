"""`nanochat runs` and `nanochat report`: look at what ran."""

from __future__ import annotations

from typing import Annotated

import typer

from nanochat_lib.cli.shared import JsonFlag, RunsDir, show
from nanochat_lib.runs import REPORTS_DIR, list_runs, open_run


def runs(runs_dir: RunsDir = REPORTS_DIR / "runs", as_json: JsonFlag = False) -> None:
    """List the runs with their status, the newest first."""
    show(list_runs(runs_dir).to_dicts(), as_json, empty=f"No runs in {runs_dir} yet.")


def report(
    run_id: Annotated[str, typer.Argument(help="run to write the report of")],
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    self_contained: Annotated[
        bool, typer.Option(help="embed the plotting script in the page")
    ] = True,
) -> None:
    """Write a run's HTML report again, and the index of all runs."""
    from nanochat_lib.report.pages.index import write_index
    from nanochat_lib.report.pages.run import write_run_report

    opened = open_run(run_id, runs_dir)
    typer.echo(write_run_report(opened.dir, self_contained=self_contained))
    typer.echo(write_index(runs_dir.parent))
