"""`nanochat run` and `nanochat sweep`: the stages headless, once or in many variants."""

from __future__ import annotations

import json
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
from nanochat_lib.experiments.sweep_spec import SweepSpec
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
    as_json: JsonFlag = False,
) -> None:
    """Run all stages headless, in order, and end in an HTML report.

    Exit codes: 0 done, 1 a stage failed, 130 interrupted (--resume goes on).
    """
    overrides = parse_settings(settings or [])
    config = load_profile(profile, {"seed": seed, **overrides})
    named = [name.strip() for name in stages.split(",") if name.strip()]
    chosen = pipeline.choose_stages(named, config)
    find_toolchain()
    opened = _open_or_create(config, run_id, runs_dir, resume=resume)
    told = Console(stderr=True) if as_json else console
    told.print(f"run {opened.run_id}  folder {opened.dir}", highlight=False, soft_wrap=True)
    parameters = pipeline.notebook_parameters(profile, overrides, seed)
    with _ProgressLines(told) as shown:
        pipeline.run_pipeline(opened, chosen, parameters, on_progress=shown.show)
    page, index = opened.dir / "report.html", runs_dir.parent / "index.html"
    found = {"run_id": opened.run_id, "folder": str(opened.dir), "stages": [s.name for s in chosen]}
    if page.exists():
        told.print(f"report  {page}\nindex   {index}", highlight=False, soft_wrap=True)
        found |= {"report": str(page), "index": str(index)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))


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
    from nanochat_lib.experiments.sweep_spec import read_sweep, sweep_points

    spec = read_sweep(file)
    spec = spec.model_copy(update={"jobs": jobs or spec.jobs})
    points = sweep_points(spec)
    if dry_run:
        rows = [{"run": p.run_id, **p.swept, "seed": p.seed} for p in points]
        show(rows, as_json, title=f"Sweep {spec.name}: {len(points)} points")
        return
    find_toolchain()
    if not _run_points(spec, len(points), runs_dir, as_json=as_json):
        raise typer.Exit(3)


def _run_points(spec: SweepSpec, n_points: int, runs_dir: Path, *, as_json: bool) -> bool:
    """Run a sweep, show how it went, write its page; return whether every point completed."""
    from nanochat_lib.experiments.sweep import divide_machine, run_sweep
    from nanochat_lib.report.compare.sweep import sweep_outcomes, sweep_table, write_sweep_page
    from nanochat_lib.report.pages.index import write_index

    told = Console(stderr=True) if as_json else console
    crew = divide_machine(spec, n_points)
    told.print(f"{n_points} points, {crew.jobs} at a time, {crew.threads} threads each")
    try:
        with progress_bar(f"sweep {spec.name}", n_points, told) as advance:
            results = run_sweep(spec, runs_dir, on_point=lambda *ended: advance(_ended(*ended)))
    finally:  # also of a sweep that was stopped
        if any(runs_dir.glob(f"{spec.name}.*/run.json")):
            written = (write_sweep_page(spec.name, runs_dir), write_index(runs_dir.parent))
            told.print("page   {}\nindex  {}".format(*written), soft_wrap=True, highlight=False)
    ranked = sweep_table(*sweep_outcomes(spec.name, runs_dir)).to_dicts()
    show(ranked, as_json, title=f"Sweep {spec.name}")
    return all(result.status == "completed" for result in results)


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

    def __init__(self, told: Console) -> None:
        self.told, self.last = told, ""
        self.status = told.status("") if told.is_terminal else None

    def __enter__(self) -> _ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def show(self, progress: Any) -> None:
        """Show where the run is."""
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
            self.told.print(line, highlight=False, soft_wrap=True)
        self.last = place
