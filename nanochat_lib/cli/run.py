"""`nanochat run` and `nanochat plan`: the stages headless, and what a profile asks for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_lib import pipeline
from nanochat_lib.cli.shared import (
    JsonFlag,
    Profile,
    RunsDir,
    Setting,
    console,
    parse_settings,
    show,
)
from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.registry import list_runs
from nanochat_lib.runs import REPORTS_DIR, Run, create_run, open_run


def run(
    profile: Profile = "laptop",
    run_id: Annotated[str, typer.Option(help="name of the run; default: profile and time")] = "",
    settings: Setting = None,
    stages: Annotated[str, typer.Option(help="comma-separated stages; default: all")] = "",
    seed: Annotated[int, typer.Option(help="seed of data order, weights and sampling")] = 0,
    resume: Annotated[bool, typer.Option(help="continue a run; skips what is done")] = False,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
) -> None:
    """Run all stages headless, in order, and end in an HTML report."""
    from nanochat_lib.rust.toolchain import find_toolchain

    overrides = parse_settings(settings or [])
    config = load_profile(profile, {"seed": seed, **overrides})
    named = [name.strip() for name in stages.split(",") if name.strip()]
    chosen = pipeline.choose_stages(named, config)
    find_toolchain()
    opened = _open_or_create(config, run_id, runs_dir, resume=resume)
    console.print(f"run [bold]{opened.run_id}[/bold]  folder {opened.dir}", highlight=False)
    parameters = pipeline.notebook_parameters(profile, overrides, seed)
    shown = _ProgressLines()
    pipeline.run_pipeline(opened, chosen, parameters, on_progress=shown)
    if (opened.dir / "report.html").exists():
        console.print(f"report  {opened.dir / 'report.html'}", soft_wrap=True)
        console.print(f"index   {runs_dir.parent / 'index.html'}", soft_wrap=True)


def plan(
    profile: Annotated[str, typer.Argument(help="profile name, or a .toml file")] = "laptop",
    settings: Setting = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a profile asks for: parameters, time, memory, and what does not add up."""
    from nanochat_lib.hardware.planner import make_plan

    made = make_plan(load_profile(profile, parse_settings(settings or [])))
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=1))
        return
    show(made.rows(), False, title=f"Plan of profile {profile}")
    show(made.memory_rows(), False, title="Memory by part")
    for finding in made.findings:
        console.print(f"[yellow]•[/yellow] {finding.text}", highlight=False)


def _open_or_create(config: RunConfig, run_id: str, runs_dir: Path, *, resume: bool) -> Run:
    if not resume:
        return create_run(config, run_id or _new_run_id(config.profile), runs_dir)
    if not run_id:
        same = [
            r["run_id"] for r in list_runs(runs_dir).to_dicts() if r["profile"] == config.profile
        ]
        if not same:
            raise WorkbenchError(f"There is no run of profile {config.profile!r} to resume.")
        run_id = same[0]
    return open_run(run_id, runs_dir, config)


def _new_run_id(profile: str) -> str:
    return f"{profile}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


class _ProgressLines:
    """Show progress: one line updated in place on a terminal, a line per change elsewhere."""

    def __init__(self) -> None:
        self.last = ""
        self.status = console.status("") if console.is_terminal else None

    def __call__(self, progress: Any) -> None:
        place = f"stage {progress.number} of {progress.n_stages} {progress.stage}"
        if progress.status == "running":
            step = f" {progress.done}/{progress.total} {progress.text}" if progress.total else ""
            line = f"{place}{step}  about {progress.eta_s / 60:.0f} min left"
        else:
            line = f"{place}: {progress.status}"
        if self.status and progress.status == "running":
            self.status.start()
            self.status.update(line)
        elif progress.status != "running" or place != self.last:
            if self.status:
                self.status.stop()
            console.print(line, highlight=False)
        self.last = place
