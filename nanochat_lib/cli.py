"""The `nanochat` command: run the stages, look at runs, plan a machine, judge Rust.

Exit codes: 0 done, 1 a problem the user can mend (one paragraph on standard error), 2 wrong usage,
130 interrupted (the run can be resumed); `verify` also 3 a program did not pass, 4 one could not be
judged.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from nanochat_lib import pipeline
from nanochat_lib.config import RunConfig, VerifyConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.pipeline import PipelineInterrupted
from nanochat_lib.runs import REPORTS_DIR, Run, create_run, list_runs, open_run, write_atomic

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Profile = Annotated[str, typer.Option(help="profile name, or the path of a .toml file")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="override, e.g. --set pretrain.total_steps=20")
]
RunsDir = Annotated[Path, typer.Option(help="folder of the run folders")]
Cluster = Annotated[
    str, typer.Option(help="address of a Dask scheduler whose workers judge, e.g. tcp://host:8786")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def main() -> None:
    """Run the command line; problems the user can mend are one paragraph, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except WorkbenchError as error:
        Console(stderr=True).print(f"nanochat: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
    except PipelineInterrupted as stopped:
        Console(stderr=True).print(f"\nnanochat: {stopped}", markup=False, highlight=False)
        raise SystemExit(130) from None


@app.command()
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


@app.command()
def runs(runs_dir: RunsDir = REPORTS_DIR / "runs", as_json: JsonFlag = False) -> None:
    """List the runs with their status, the newest first."""
    _show(list_runs(runs_dir).to_dicts(), as_json, empty=f"No runs in {runs_dir} yet.")


@app.command()
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
    _show(made.rows(), False, title=f"Plan of profile {profile}")
    _show(made.memory_rows(), False, title="Memory by part")
    for finding in made.findings:
        console.print(f"[yellow]•[/yellow] {finding.text}", highlight=False)


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help=".rs files or folders of them")],
    level: Annotated[str, typer.Option(help="syntax, check, build or test")] = "test",
    json_file: Annotated[
        str, typer.Option("--json", help="write a JSON object per program here; -: print them")
    ] = "",
    workers: Annotated[
        int | None, typer.Option(min=1, help="jobs at a time; default: one per CPU")
    ] = None,
    cluster: Cluster = "",
    cache: Annotated[Path, typer.Option(help="folder of verdicts kept")] = REPORTS_DIR / ".cache",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="judge everything anew")] = False,
    allow_unsandboxed: Annotated[
        bool, typer.Option(help="judge even when no sandbox is available")
    ] = False,
) -> None:
    """Judge Rust programs by rustc in the sandbox; one line per program, as verdicts come.

    Exit codes: 0 every program passed, 3 one did not, 4 one could not be judged, 130 interrupted
    (what was judged is in the cache: the same command goes on there).
    """
    from nanochat_lib.cli_verify import verify_files

    config = _verify_config(cluster=cluster, allow_unsandboxed=allow_unsandboxed)
    cache_dir = None if no_cache else cache
    try:
        code = verify_files(
            paths, level, config=config, cache_dir=cache_dir, workers=workers, json_file=json_file
        )
    except KeyboardInterrupt:
        hint = "" if no_cache else "; the same command goes on from here"
        Console(stderr=True).print(f"\nnanochat: interrupted{hint}", highlight=False)
        code = 130
    raise typer.Exit(code)


@app.command()
def corpus(
    out: Annotated[Path, typer.Option(help="folder of the corpus; the same one goes on")],
    profile: Profile = "laptop",
    settings: Setting = None,
) -> None:
    """Build a large corpus of verified Rust: sources, licences, dedup, rustc, dataset card.

    Killed or stopped, the same command goes on where it was. Sources and licences are settings:
    --set 'corpus.sources=["toolchain","debian"]'.
    """
    from nanochat_lib.cli_corpus import build

    try:
        build(load_profile(profile, parse_settings(settings or [])), out, console)
    except KeyboardInterrupt:
        hint = "interrupted; the same command goes on from here"
        Console(stderr=True).print(f"\nnanochat: {hint}", highlight=False)
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    tasks: Annotated[str, typer.Option(help="'builtin' or a task file")] = "builtin",
    completions: Annotated[
        str, typer.Option(help="'canonical', or JSON lines with task_id and completion")
    ] = "canonical",
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
    cluster: Cluster = "",
    page: Annotated[
        Path | None, typer.Option("--html", help="write every problem's outcome here")
    ] = None,
) -> None:
    """Judge completions of a task set without a model."""
    from nanochat_lib.evals import suite
    from nanochat_lib.evals.tasks import load_tasks
    from nanochat_lib.report.page import write_outcomes

    for target in (out, page):
        if target is not None and not target.parent.is_dir():
            raise WorkbenchError(f"There is no folder {target.parent} to write {target.name} to.")
    chosen = load_tasks(tasks)
    config = RunConfig(verify=_verify_config(cluster=cluster))
    result = suite.judge_file(chosen, completions, config)
    title = f"{Path(tasks).name}: {len(chosen)} tasks, completions {Path(completions).name}"
    if out is not None:
        write_atomic(out, json.dumps(result, indent=1))
    if page is not None:
        write_outcomes(result["episodes"], page, title=title, rates=result["rates"])
    console.print(title, highlight=False, markup=False)
    for name in dict.fromkeys(row["task_set"] for row in result["rates"]):
        rates = [_rate_row(row) for row in result["rates"] if row["task_set"] == name]
        _show(rates, False, title=name)
    for row in result["verdicts"]:
        console.print(f"{row['n']:6,} {row['verdict']}", highlight=False)
    if n := result["n_tasks_without_completion"]:
        console.print(f"{n:,} of {len(chosen):,} tasks have no completion: they are in no rate.")


@app.command()
def kernels(as_json: JsonFlag = False) -> None:
    """Show the ternary kernels and which of them this machine runs."""
    import kernels as kernel_package

    _show(kernel_package.describe(), as_json, title="Ternary kernels")


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder, e.g. .../maxrl/final")],
    prompt: Annotated[str, typer.Option(help="doc comment and signature up to the brace")],
    max_new_tokens: Annotated[int, typer.Option(help="longest completion in tokens")] = 160,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    exit_threshold: Annotated[float, typer.Option(help="leave the loops at this exit cdf")] = 1.0,
) -> None:
    """Write Rust with a checkpoint and the packed decode engine."""
    from nanochat_lib.evals.suite import complete_prompt

    text = complete_prompt(
        checkpoint,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        exit_threshold=exit_threshold,
    )
    typer.echo(prompt.rstrip() + text)


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(help="run to write the report of")],
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    self_contained: Annotated[
        bool, typer.Option(help="embed the plotting script in the page")
    ] = True,
) -> None:
    """Write a run's HTML report again, and the index of all runs."""
    from nanochat_lib.report.index import write_index
    from nanochat_lib.report.page import write_run_report

    opened = open_run(run_id, runs_dir)
    typer.echo(write_run_report(opened.dir, self_contained=self_contained))
    typer.echo(write_index(runs_dir.parent))


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


def _verify_config(**values: Any) -> VerifyConfig:
    try:
        return VerifyConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"--{first['loc'][0]}: {first['msg']}, found {first['input']!r}."
        raise WorkbenchError(message) from error


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


def _show(
    rows: list[dict[str, Any]], as_json: bool, *, title: str = "", empty: str = "Nothing to show."
) -> None:
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
    console.print(table)


def _rate_row(row: dict[str, Any]) -> dict[str, str]:
    """Return an evaluation's number with its interval and counts, narrow enough for a terminal."""
    return {
        "metric": row["metric"],
        "rate": f"{row['rate']:.1%}",
        "95%": f"{row['low']:.1%} to {row['high']:.1%}",
        "samples": f"{row['n_samples']:,}",
        "problems": f"{row['n_problems']:,}",
        "not judged": f"{row['n_unjudged']:,}",
    }


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
