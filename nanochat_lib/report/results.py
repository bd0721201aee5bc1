"""The table that ends a notebook: number, sample count, target, and whether the target applies.

Read from the run folder like everything in this package. A target of the brief is meant for a
model of billions of parameters; it is shown beside the number and said not to apply here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.content.readings import number, share
from nanochat_lib.report.content.summary import is_comparable
from nanochat_lib.report.policy.changes import WORDS, changes, pass_at, rises
from nanochat_lib.report.policy.guards import guards_of
from nanochat_lib.report.run_data import RunData, load_run, series

COLUMNS = ("stage", "number", "measured", "n", "target", "applies")
Row = dict[str, Any]


def results_table(run_dir: Path, stage: str = "") -> pl.DataFrame:
    """Return the result rows of one stage, or of every stage that the run has."""
    run = load_run(run_dir)
    stages = [stage] if stage else [name for name in _ROWS if name in run.state["stages"]]
    rows = [{"stage": name, **row} for name in stages if name in _ROWS for row in _ROWS[name](run)]
    return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String))


def _row(run: RunData, name: str, measured: str, n: str, target: str = "") -> Row:
    applies = "" if not target else "yes" if is_comparable(run) else "no: meant for a larger model"
    return {"number": name, "measured": measured, "n": n, "target": target, "applies": applies}


def _rate(hits: int, n: int) -> str:
    return f"{hits / n:.1%}" if n else "not measured"


def _preprocess(run: RunData) -> list[Row]:
    summary = run.summary("preprocess")
    rates, semantic = summary["compile_rate"], summary["semantic_rate"]
    bound = run.config["data"]["min_compile_rate"]
    rows = [
        _row(run, f"compile rate {when}", _rate(found["n_compiled"], found["n_judged"]),
             f"{found['n_judged']:,} programs")
        for when, found in (("before", rates["before"]), ("after", rates["after"]))
    ]  # fmt: skip
    rows[1] |= {"target": f"> {bound:.0%}", "applies": "yes"}
    rate = _rate(semantic["n_passed"], semantic["n_judged"])
    judged = f"{semantic['n_judged']:,} programs"
    rows.append(_row(run, "semantic correctness", rate, judged))
    if gates := summary.get("gates"):
        n_clean = gates["n_asked"] - gates["n_linted"] - gates["n_unjudged"]
        rate = _rate(n_clean, gates["n_asked"]) if gates["clippy"] == "asked" else "not available"
        n = f"{gates['n_asked']:,} programs that pass"
        rows.append(_row(run, "clean for clippy::correctness", rate, n))
    tokens = summary["tokens"]
    for kind in ("real", "tinyrust"):
        count = f"{tokens[f'{kind}_train']:,} tokens"
        rows.append(_row(run, f"training text, {kind}", count, f"{summary['rustc']}"))
    return rows


def _pretrain(run: RunData) -> list[Row]:
    summary, targets = run.summary("pretrain"), run.targets
    held_out = f"{run.summary('preprocess').get('compression', {}).get('n_bytes', 0):,} bytes"
    steps = f"{summary['steps']:,} steps, {summary['tokens_seen']:,} tokens"
    wanted = (
        ("bits per byte, held-out real Rust", Metric.BITS_PER_BYTE, held_out, "bits_per_byte"),
        ("bits per byte, held-out TinyRust", Metric.BITS_PER_BYTE_TINYRUST, "held-out tasks", ""),
        ("held-out loss, nats per token", Metric.VAL_LOSS, held_out, "loss"),
        ("exit entropy, nats", Metric.EXIT_ENTROPY, steps, ""),
        ("token entropy, nats", Metric.TOKEN_ENTROPY, steps, ""),
        ("mean loops used", Metric.EXPECTED_LOOPS, steps, ""),
        ("training tokens per second", Metric.TOKENS_PER_S, run.machine, "tokens_per_s"),
    )
    rows = []
    for name, metric, n, key in wanted:
        last = run.last("pretrain", metric)
        target = "" if key not in targets else f"{targets[key]:g}"
        shown = "not measured" if last is None else number(last)
        rows.append(_row(run, name, shown, n, target))
    return rows


def _maxrl(run: RunData) -> list[Row]:
    """Return before and after with intervals; without them the last points of the curves."""
    summary, target = run.summary("maxrl"), run.targets.get("compile_rate")
    rows = [
        _row(
            run,
            f"held-out {'tests passed' if kind == 'pass' else 'compile rate'}, after"
            + ("" if i == 0 else f": {change.part}"),
            f"{change.after.text} ({change.before.text} before; {change.says})",
            f"{change.after.n:,} programs of {change.after.n_tasks:,} tasks",
            f"> {target:.0%}" if target and kind == "compile" and i == 0 else "",
        )
        for kind in ("pass", "compile")
        for i, change in enumerate(changes(summary, kind))
    ]
    return (rows or _maxrl_curves(run)) + _maxrl_more(run)


def _maxrl_curves(run: RunData) -> list[Row]:
    rows = []
    for name, metric in (
        ("held-out tests passed", Metric.HELD_OUT_PASS_RATE),
        ("held-out compile rate", Metric.HELD_OUT_COMPILE_RATE),
    ):
        values = series(run.metrics, "maxrl", metric)["value"]
        moved = f"{values[0]:.1%} -> {values[-1]:.1%}" if len(values) else "not measured"
        n = f"{run.config['maxrl']['eval_tasks']} tasks, {len(values)} looks"
        rows.append(_row(run, f"{name}, first -> last", moved, n))
    return rows


def _maxrl_more(run: RunData) -> list[Row]:
    """Return paired rises, pass@k, alarms and what could not be judged, where they were counted."""
    summary = run.summary("maxrl")
    rows = [
        _row(run, f"rise over the same tasks: {WORDS[rise.kind]}",
             f"{100 * rise.rise:+.1f} points [{100 * rise.low:+.1f} to {100 * rise.high:+.1f}] "
             f"({rise.says})", f"{rise.n_tasks:,} tasks")
        for rise in rises(summary)
        if rise.part == "all"
    ]  # fmt: skip
    before = pass_at(summary, "before")
    for k, rate in pass_at(summary, "after").items():
        shown = f"{rate.text} ({before[k].text} before)" if k in before else rate.text
        rows.append(_row(run, f"pass@{k} on held-out tasks, after", shown, f"{rate.n_tasks} tasks"))
    if guards := guards_of(summary):
        alarms = ", ".join(guard.label for guard in guards if guard.is_alarm)
        rows.append(_row(run, "alarms of reward hacks", alarms or "none", f"{len(guards)} guards"))
    if n := summary.get("n_rollouts"):
        unjudged = f"{share(summary.get('n_unjudged', 0), n)}"
        n_updates = f"{n:,} programs sampled in {summary.get('steps', 0):,} updates"
        rows.append(_row(run, "could not be judged", unjudged, n_updates))
    return rows


def _long_context(run: RunData) -> list[Row]:
    positions = run.summary("long_context").get("loss_by_position", [])
    if not positions:
        return []
    last = positions[-1]
    losses = {k: v for k, v in last.items() if k != "position" and isinstance(v, float)}
    place = f"up to position {last['position']}"
    return [_row(run, f"loss there, {name}", number(v), place) for name, v in losses.items()]


def _evaluate(run: RunData) -> list[Row]:
    keys = {"compile_rate": "compile_rate", "semantic_score": "semantic_score"}
    rows = []
    for found in run.results.to_dicts():
        target = run.targets.get(keys.get(found["metric"], ""))
        if found["metric"] == "pass@1" and "humaneval" in found["task_set"]:
            target = run.targets.get("pass_at_1")
        shown = f"{found['rate']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
        n = f"{found['n_samples']} samples, {found['n_problems']} problems"
        name = f"{found['checkpoint']} on {found['task_set']}: {found['metric']}"
        rows.append(_row(run, name, shown, n, f"> {target:.0%}" if target else ""))
    return rows


def _publish(run: RunData) -> list[Row]:
    checklist = run.summary("publish").get("checklist", [])
    done = sum(1 for item in checklist if item["done"])
    return [_row(run, "publication checklist", f"{done} of {len(checklist)}", "items")]


def _kernels(run: RunData) -> list[Row]:
    return [
        _row(run, f"{row['kernel']} ({row['backend']}) {row['n']}x{row['k']}, batch {row['batch']}",
             f"{row['ratio_to_numpy_f32']:.2f} x numpy float32",
             f"{row['n_repeats']} repeats, {run.machine}")
        for row in run.summary("kernels").get("bench", [])
        if row.get("ratio_to_numpy_f32")
    ]  # fmt: skip


_ROWS: dict[str, Callable[[RunData], list[Row]]] = {
    "preprocess": _preprocess,
    "pretrain": _pretrain,
    "maxrl": _maxrl,
    "long_context": _long_context,
    "evaluate": _evaluate,
    "publish": _publish,
    "kernels": _kernels,
}
