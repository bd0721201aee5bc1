"""`nanochat generate`, `evaluate`, `publish` and `tensorboard`: what a model writes, what that is
worth, and its files for others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_lib.cli.shared import (
    Cluster,
    JsonFlag,
    RunsDir,
    console,
    show,
    verify_config,
    visible,
)
from nanochat_lib.config import RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import REPORTS_DIR, open_run, write_atomic


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder, e.g. .../maxrl/final")],
    prompt: Annotated[str, typer.Option(help="doc comment and signature up to the brace")],
    max_new_tokens: Annotated[int, typer.Option(help="longest completion in tokens")] = 160,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    exit_threshold: Annotated[float, typer.Option(help="leave the loops at this exit cdf")] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Write Rust with a checkpoint and the packed decode engine.

    What a model writes is not checked here: judge it by `nanochat verify` before you run it.
    """
    from nanochat_lib.evals.suite import complete_prompt

    text = complete_prompt(
        checkpoint,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        exit_threshold=exit_threshold,
    )
    if as_json:
        typer.echo(json.dumps({"prompt": prompt.rstrip(), "completion": text}))
        return
    typer.echo(visible(prompt.rstrip() + text))


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
    from nanochat_lib.report.pages.run import write_outcomes

    for target in (out, page):
        if target is not None and not target.parent.is_dir():
            raise WorkbenchError(f"There is no folder {target.parent} to write {target.name} to.")
    chosen = load_tasks(tasks)
    config = RunConfig(verify=verify_config(cluster=cluster))
    result = suite.judge_file(chosen, completions, config)
    title = f"{Path(tasks).name}: {len(chosen)} tasks, completions {Path(completions).name}"
    if out is not None:
        write_atomic(out, json.dumps(result, indent=1))
    if page is not None:
        write_outcomes(result["episodes"], page, title=title, rates=result["rates"])
    console.print(title, highlight=False, markup=False)
    for name in dict.fromkeys(row["task_set"] for row in result["rates"]):
        rates = [_rate_row(row) for row in result["rates"] if row["task_set"] == name]
        show(rates, False, title=name)
    for row in result["verdicts"]:
        console.print(f"{row['n']:6,} {row['verdict']}", highlight=False)
    if n := result["n_tasks_without_completion"]:
        console.print(f"{n:,} of {len(chosen):,} tasks have no completion: they are in no rate.")


def publish(
    run_id: Annotated[str, typer.Argument(help="run whose model is exported")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the export; default: the run's artifacts")
    ] = None,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
    as_json: JsonFlag = False,
) -> None:
    """Export a run's model: safetensors, GGUF, model card, checksums. Nothing is uploaded."""
    from nanochat_lib.publish.export import publish as export

    opened = open_run(run_id, runs_dir)
    folder = out or opened.artifacts("publish")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = export(opened.dir, opened.config, folder)
    if as_json:
        typer.echo(json.dumps(manifest | {"folder": str(folder)}, indent=1))
        return
    files = [{"file": f["name"], "bytes": f"{f['bytes']:,}"} for f in manifest["files"]]
    show(files, False, title=f"Model of stage {manifest['stage']} in {folder}")
    for item in manifest["checklist"]:
        console.print(f"{'done' if item['done'] else 'open'}  {item['item']}", highlight=False)


def tensorboard(
    run_id: Annotated[str, typer.Argument(help="run whose metrics are written")],
    out: Annotated[
        Path | None, typer.Option(help="folder; default: tensorboard/RUN beside the runs' folder")
    ] = None,
    runs_dir: RunsDir = REPORTS_DIR / "runs",
) -> None:
    """Write a run's metrics as TensorBoard event files (needs the extra tensorboard)."""
    from nanochat_lib.publish.tensorboard import write_tensorboard

    folder = out or runs_dir.parent / "tensorboard" / run_id
    n = write_tensorboard(open_run(run_id, runs_dir).dir, folder)
    console.print(f"{n:,} values; look at them with: tensorboard --logdir {folder.parent}",
                  soft_wrap=True, highlight=False)  # fmt: skip


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
