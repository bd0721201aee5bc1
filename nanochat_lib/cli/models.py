"""`nanochat generate` and `nanochat evaluate`: what a checkpoint writes, and what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_lib.cli.shared import Cluster, console, show, verify_config
from nanochat_lib.config import RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import write_atomic


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
