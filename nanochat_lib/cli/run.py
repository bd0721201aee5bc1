"""`nanochat run` and `nanochat sweep`: the stages headless, once or in many variants."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nanochat_lib import pipeline
from nanochat_lib.cli.shared import (
    JsonFlag,
    Profile,
    RunsDir,
    Setting,
    console,
    parse_settings,
    progress_bar,
    show,
)
from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.registry import list_runs
from nanochat_lib.runs import REPORTS_DIR, Run, create_run, open_run
from nanochat_lib.rust.toolchain import find_toolchain


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


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file of settings to vary; see docs/sweeps.md")],
    jobs: Annotated[int, typer.Option(min=0, help="points at a time; 0: what fits")] = 0,
    dry_run: Annotated[bool, typer.Option(help="list the points, run nothing")] = False,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    as_json: JsonFlag = False,
) -> None:
    """Run many variants of a run, several at a time, and compare them on one page.

    Killed or stopped, the same command goes on; what is done is skipped, what failed is tried
    again, and a file with more values or seeds adds points.

    Exit codes: 0 every point completed, 3 one failed, 130 interrupted.
    """
    from nanochat_lib.experiments.sweep import divide_machine, run_sweep
    from nanochat_lib.experiments.sweep_spec import read_sweep, sweep_points
    from nanochat_lib.report.compare.sweep import sweep_outcomes, sweep_table, write_sweep_page
    from nanochat_lib.report.pages.index import write_index

    spec = read_sweep(file)
    spec = spec.model_copy(update={"jobs": jobs or spec.jobs})
    points = sweep_points(spec)
    if dry_run:
        rows = [{"run": p.run_id, **p.swept, "seed": p.seed} for p in points]
        show(rows, as_json, title=f"Sweep {spec.name}: {len(points)} points")
        return
    crew = divide_machine(spec, len(points))
    told = Console(stderr=True) if as_json else console
    told.print(f"{len(points)} points, {crew.jobs} at a time, {crew.threads} threads each")
    find_toolchain()
    with progress_bar(f"sweep {spec.name}", len(points), told) as advance:
        results = run_sweep(spec, runs_dir, on_point=lambda *ended: advance(_ended(*ended)))
    ranked = sweep_table(*sweep_outcomes(spec.name, runs_dir)).to_dicts()
    show(ranked, as_json, title=f"Sweep {spec.name}")
    told.print(f"page   {write_sweep_page(spec.name, runs_dir)}", soft_wrap=True, highlight=False)
    told.print(f"index  {write_index(runs_dir.parent)}", soft_wrap=True, highlight=False)
    if any(result.status != "completed" for result in results):
        raise typer.Exit(3)


def _ended(result: Any, n_ended: int, n: int) -> str:
    why = f": {result.error}" if result.error else ""
    took = "done before" if result.was_done else f"{result.seconds:.0f} s"
    return f"{n_ended} of {n}  {result.point.run_id} {result.status} ({took}){why}"


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
            console.print(line, highlight=False, soft_wrap=True)
        self.last = place
