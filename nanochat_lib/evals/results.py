"""From judged episodes to numbers: rates with counts and intervals, verdicts, error codes.

Input: tasks and `Episode`s of one checkpoint. Output: `EvalResult` rows and the tables of
summary.json. What could not be judged is in no rate; it is counted beside each.
Letters: P problems.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nanochat_lib.evals.humaneval import is_flawed
from nanochat_lib.intervals import bootstrap_interval
from nanochat_lib.passk import pass_at_k
from nanochat_lib.records import Episode, EvalResult, Task, Verdict
from nanochat_lib.runs import write_binary
from nanochat_lib.rust.error_classes import ERROR_CLASSES
from nanochat_lib.rust.semantics import (
    error_classes,
    explain_semantics,
    semantic_ok,
    semantic_score,
)
from nanochat_lib.rust.toolchain import find_toolchain

RESULT_SCHEMA = {
    "checkpoint": pl.String,
    "task_set": pl.String,
    "metric": pl.String,
    "rate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n_correct": pl.Int64,
    "n_samples": pl.Int64,
    "n_problems": pl.Int64,
    "n_unjudged": pl.Int64,
}
EPISODE_SCHEMA = {
    "task_id": pl.String,
    "checkpoint": pl.String,
    "task_set": pl.String,
    "level": pl.Int64,
    "family": pl.String,
    "split": pl.String,
    "flags": pl.List(pl.String),
    "sample_idx": pl.Int64,
    "prompt": pl.String,
    "completion": pl.String,
    "verdict": pl.String,
    "codes": pl.List(pl.String),
    "error_classes": pl.List(pl.String),
    "detail": pl.String,
    "sandbox": pl.String,
    "semantic_ok": pl.Boolean,  # null: nobody asked, or a gate could not look
    "semantic_detail": pl.String,
    "lints": pl.List(pl.String),
    "n_unsafe": pl.Int64,
    "is_flaky": pl.Boolean,  # null: not judged twice
    "n_tokens": pl.Int64,
    "expected_loops": pl.Float64,
}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ProblemCounts:
    """What the samples of one problem came to; samples that could not be judged are left out."""

    n_judged: int
    n_compiled: int
    n_passed: int
    n_graded: int  # judged samples whose compilation ended by itself
    progress: float  # sum of `semantic_progress` over the graded samples
    n_known: int  # judged samples of which `semantic_ok` could be said
    n_ok: int


def result_rows(
    checkpoint: str, name: str, tasks: list[Task], episodes: list[Episode], *, ks: Sequence[int]
) -> list[EvalResult]:
    """Return the rates of one task set: as a whole, then in the parts worth telling apart.

    TinyRust is also given per level and per split, HumanEval-X also without the problems that
    ask for more than the function of their prompt (`humaneval.is_flawed`).
    """
    by_task = defaultdict(list)
    for episode in episodes:
        by_task[episode.task_id].append(episode)
    rows = []
    for part, members in {name: tasks, **_parts(name, tasks)}.items():
        problems = [by_task[task.task_id] for task in members if by_task[task.task_id]]
        rows += _rates(checkpoint, part, problems, ks)
    return rows


def _parts(name: str, tasks: list[Task]) -> dict[str, list[Task]]:
    parts: dict[str, list[Task]] = defaultdict(list)
    if any(task.task_set == "tinyrust" for task in tasks):
        for task in sorted(tasks, key=lambda task: task.level):
            parts[f"{name}/level{task.level}"].append(task)
        for task in sorted(tasks, key=lambda task: task.split):
            parts[f"{name}/{task.split or 'no_split'}"].append(task)
    fair = [task for task in tasks if not is_flawed(task)]
    if len(fair) < len(tasks):
        parts[f"{name}/without_flagged"] = fair
    return parts


def count_problem(episodes: list[Episode]) -> ProblemCounts:
    """Count one problem's samples."""
    judged = [e.verified for e in episodes if e.verified.verdict is not Verdict.UNJUDGED]
    graded = semantic_score(judged)
    known = [ok for e in episodes if (ok := _semantic_ok(e)) is not None]
    return ProblemCounts(
        n_judged=len(judged),
        n_compiled=graded.n_compiled,
        n_passed=sum(one.verdict is Verdict.PASSED for one in judged),
        n_graded=graded.n_judged,
        progress=graded.score * graded.n_judged,
        n_known=len(known),
        n_ok=sum(known),
    )


def _semantic_ok(episode: Episode) -> bool | None:
    is_unjudged = episode.verified.verdict is Verdict.UNJUDGED
    return None if is_unjudged or not episode.semantics else semantic_ok(episode.semantics)


def _rates(
    checkpoint: str, part: str, problems: list[list[Episode]], ks: Sequence[int]
) -> list[EvalResult]:
    """Return compile rate, semantic score, pass@k and `semantic_ok` of P problems, each with its
    interval; the last one only where somebody asked.
    """
    counts = [count for count in map(count_problem, problems) if count.n_judged]
    n_all = sum(map(len, problems))
    n_unjudged = {"": n_all - sum(count.n_judged for count in counts)}
    graded = [count for count in counts if count.n_graded]
    # metric -> per problem (successes, attempts, correct samples, samples)
    table = {
        "compile_rate": [(c.n_compiled, c.n_judged, c.n_compiled, c.n_judged) for c in counts],
        "semantic_score": [(c.progress, c.n_graded, c.n_compiled, c.n_graded) for c in graded],
    }
    for k in ks:
        table[f"pass@{k}"] = [
            (pass_at_k(c.n_judged, c.n_passed, k), 1, c.n_passed, c.n_judged)
            for c in counts
            if c.n_judged >= k
        ]
    if any(episode.semantics for episodes in problems for episode in episodes):
        known = [count for count in counts if count.n_known]
        table["semantic_ok"] = [(c.n_ok, c.n_known, c.n_ok, c.n_known) for c in known]
        n_unjudged["semantic_ok"] = n_all - sum(count.n_known for count in known)
    rows = []
    for metric, values in table.items():
        successes, attempts, n_correct, n_samples = np.array(values).reshape(-1, 4).T
        low, high = bootstrap_interval(successes, attempts)
        rows.append(
            EvalResult(
                checkpoint=checkpoint,
                task_set=part,
                metric=metric,
                rate=float(successes.sum() / attempts.sum()) if values else 0.0,
                low=low,
                high=high,
                n_correct=int(n_correct.sum()),
                n_samples=int(n_samples.sum()),
                n_problems=len(values),
                n_unjudged=n_unjudged.get(metric, n_unjudged[""]),
            )
        )
    return rows


def episode_rows(
    checkpoint: str, name: str, tasks: list[Task], episodes: Iterable[Episode]
) -> Rows:
    """Return one row per episode with the columns of `EPISODE_SCHEMA`."""
    by_id = {task.task_id: task for task in tasks}
    return [
        {
            **_task_columns(by_id[episode.task_id]),
            "checkpoint": checkpoint,
            "task_set": name,
            "sample_idx": episode.sample_idx,
            "completion": episode.completion,
            "verdict": str(episode.verified.verdict),
            "codes": list(episode.verified.codes),
            "error_classes": list(error_classes(episode.verified)),
            "detail": explain_verdict(episode),
            "sandbox": episode.verified.sandbox,
            **_semantic_columns(episode),
            "is_flaky": episode.is_flaky,
            "n_tokens": episode.n_tokens,
            "expected_loops": episode.expected_loops,
        }
        for episode in episodes
    ]


def _task_columns(task: Task) -> dict[str, Any]:
    names = ("task_id", "level", "family", "split", "prompt")
    return {name: getattr(task, name) for name in names} | {"flags": list(task.flags)}


def _semantic_columns(episode: Episode) -> dict[str, Any]:
    found = episode.semantics
    return {
        "semantic_ok": _semantic_ok(episode),
        "semantic_detail": explain_semantics(found) if found else "",
        "lints": list(found.lints) if found else [],
        "n_unsafe": found.n_unsafe if found else 0,
    }


def explain_verdict(episode: Episode) -> str:
    """Return what there is to say of a verdict: its detail, or rustc's first error."""
    errors = (d.message for d in episode.verified.diagnostics if d.level == "error")
    return episode.verified.detail or next(errors, "")


def failure_tables(rows: Rows) -> dict[str, Rows]:
    """Return verdict mix, error codes, distinct bodies and gates of episode rows.

    Returns: `verdicts` {checkpoint, task_set, verdict, n}, `error_codes` {checkpoint, task_set,
    code, n, message} with programs per code, most frequent first, and `distinct_bodies`
    {checkpoint, task_set, rate, n}; a body is a completion without its white space;
    `error_classes` and `semantics`: see `_classes` and `_gates`.
    """
    verdicts: Counter[tuple[str, str, str]] = Counter()
    codes: Counter[tuple[str, str, str]] = Counter()
    messages: dict[str, str] = {}
    bodies: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        place = (row["checkpoint"], row["task_set"])
        verdicts[*place, row["verdict"]] += 1
        bodies[place].append(f"{row['task_id']} {''.join(row['completion'].split())}")
        for code in row["codes"]:
            codes[*place, code] += 1
            if code == row["codes"][0]:  # `detail` speaks of the first error
                messages.setdefault(code, row["detail"])
    return {
        "verdicts": _counted(verdicts, "verdict"),
        "error_codes": [
            {**row, "message": messages.get(row["code"], "")} for row in _counted(codes, "code")
        ],
        "distinct_bodies": [
            {
                "checkpoint": checkpoint,
                "task_set": name,
                "rate": len(set(texts)) / len(texts),
                "n": len(texts),
            }
            for (checkpoint, name), texts in bodies.items()
        ],
        "error_classes": _classes(rows),
        "semantics": _gates(rows),
    }


def _classes(rows: Rows) -> Rows:
    """Count programs with an error of a class: {checkpoint, task_set, class, n, n_judged}.

    A program may have errors of several classes; `n_judged` are all programs rustc judged.
    """
    judged = [row for row in rows if row["verdict"] != Verdict.UNJUDGED]
    totals = Counter((row["checkpoint"], row["task_set"]) for row in judged)
    counts = Counter(
        (row["checkpoint"], row["task_set"], name)
        for row in judged
        for name in row["error_classes"]
    )
    return [
        {"checkpoint": checkpoint, "task_set": task_set, "class": name,
         "n": counts[checkpoint, task_set, name], "n_judged": n_judged}
        for (checkpoint, task_set), n_judged in totals.items()
        for name in ERROR_CLASSES
    ]  # fmt: skip


def _gates(rows: Rows) -> Rows:
    """Count, of the programs that passed their tests, what the gates behind them said.

    Returns: {checkpoint, task_set, n_passed, n_ok, n_lints, n_unsafe, n_unknown, n_repeated,
    n_flaky}; the last two count the programs that were judged twice, whatever their verdict.
    """
    groups: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in rows:
        groups[row["checkpoint"], row["task_set"]].append(row)
    table = []
    for (checkpoint, name), members in groups.items():
        passed = [row for row in members if row["verdict"] == Verdict.PASSED]
        table.append(
            {
                "checkpoint": checkpoint,
                "task_set": name,
                "n_passed": len(passed),
                "n_ok": sum(row["semantic_ok"] is True for row in passed),
                "n_lints": sum(bool(row["lints"]) for row in passed),
                "n_unsafe": sum(row["n_unsafe"] > 0 for row in passed),
                "n_unknown": sum(row["semantic_ok"] is None for row in passed),
                "n_repeated": sum(row["is_flaky"] is not None for row in members),
                "n_flaky": sum(row["is_flaky"] is True for row in members),
            }
        )
    return table


def name_judges(rows: Rows) -> dict[str, str]:
    """Return the sandbox levels and the compiler that judged these episode rows."""
    sandboxes = sorted({row["sandbox"] for row in rows} - {""})
    return {"sandbox": ", ".join(sandboxes), "rustc": find_toolchain().version}


def _counted(counter: Counter[tuple[str, str, str]], key: str) -> Rows:
    return [
        {"checkpoint": checkpoint, "task_set": name, key: value, "n": n}
        for (checkpoint, name, value), n in counter.most_common()
    ]


def write_frame(rows: Rows, path: Path, schema: dict[str, Any]) -> None:
    """Write rows as Parquet, so that a reader sees the old file or the new one."""
    write_binary(path, pl.DataFrame(rows, schema=schema, orient="row").write_parquet)
