"""The section of stage 3 in a report: what became better, what went wrong, and what it cost.

Input: a `RunData`. Output: a `Section`. Of what an older version did not record there is no block;
the change of the held-out rates and the curves over updates are always there, or say why not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from nanochat_lib.records import Metric
from nanochat_lib.report.content.blocks import (
    Block,
    Section,
    curve_block,
    frame_of,
    make_block,
    stage_status,
)
from nanochat_lib.report.content.listings import before_after, sample_groups
from nanochat_lib.report.content.readings import middle, share
from nanochat_lib.report.plots.bars import wilson_interval
from nanochat_lib.report.policy import figures, looks, readings
from nanochat_lib.report.policy.costs import read_bound, time_parts
from nanochat_lib.report.policy.guards import guard_table
from nanochat_lib.report.run_data import RunData

STAGE = "maxrl"
Rows = list[dict[str, Any]]


def policy_section(run: RunData) -> Section:
    """Return the section of stage 3."""
    config = run.config.get(STAGE, {})
    n_samples = config.get("prompts_per_step", 0) * config.get("rollouts_per_prompt", 0)
    intro = (
        f"The model writes programs, rustc and their tests judge them. Reward: "
        f"{config.get('reward', 'tests')}. Each update samples {n_samples} programs; each held-out "
        f"point is measured on {config.get('eval_tasks', 0)} tasks it never trained on."
    )
    optional = [
        *_change_blocks(run)[2:],
        *_look_blocks(run),
        *_guard_blocks(run),
        *_cost_blocks(run),
    ]
    blocks = [
        *_change_blocks(run)[:2],
        _progress_block(run),
        *(block for block in optional if not block.missing),
        _seconds_block(run),
    ]
    groups = before_after(run) or sample_groups(run, STAGE, "Programs after MaxRL")
    title = "3 · MaxRL: learning from the compiler"
    status, facts = stage_status(run, STAGE), _facts(run)
    return Section(STAGE, title, intro, status, blocks, facts, groups)


def _block(run: RunData, anchor: str, figure: go.Figure, reading: str, rows: Rows) -> Block:
    return make_block(anchor, figure, reading=reading, table=frame_of(rows), source=_source(run))


def _source(run: RunData) -> str:
    after = run.summary(STAGE).get("after", {})
    n_judged, n_tasks = after.get("n_judged", 0), after.get("n_tasks", 0)
    return (
        f"{n_judged:,} programs of {n_tasks:,} tasks, the same tasks and seeds before and after; "
        f"{after.get('n_unjudged', 0):,} could not be judged and are in no rate; sandbox "
        f"{run.sandbox or 'not recorded'}; decoded on {run.decoded_on(STAGE)}; {run.machine}"
    )


def _look_source(run: RunData) -> str:
    found = run.summary(STAGE).get("looks", [])
    if not found:
        return run.machine
    last = found[-1]
    n_tasks = last.get("n_tasks", 0)
    low, high = wilson_interval(n_tasks // 2, n_tasks)
    return (
        f"{len(found):,} looks at {last.get('n_judged', 0):,} judged programs of {n_tasks:,} tasks "
        f"each; 95% of a share near one half, over tasks: about ±{(high - low) / 2:.0%}; "
        f"sandbox {run.sandbox or 'not recorded'}; {run.machine}"
    )


def _change_blocks(run: RunData) -> list[Block]:
    summary = run.summary(STAGE)
    blocks = [
        _block(
            run,
            anchor,
            figures.before_after(summary, kind),
            readings.read_change(summary, kind),
            readings.change_rows(summary, kind),
        )
        for anchor, kind in (("maxrl-before-after", "pass"), ("maxrl-compiled", "compile"))
    ]
    rises = [{**vars(rise), "shown": rise.says} for rise in figures.rises(summary)]
    return [
        *blocks,
        _block(
            run, "maxrl-rises", figures.paired_rises(summary), readings.read_rises(summary), rises
        ),
        _block(
            run,
            "maxrl-pass-at",
            figures.pass_at_curves(summary),
            readings.read_pass_at(summary),
            readings.pass_at_rows(summary),
        ),
    ]


def _progress_block(run: RunData) -> Block:
    target = run.targets.get("compile_rate")
    figure = figures.progress(run.metrics, run.summary(STAGE), target)
    names = (
        Metric.HELD_OUT_PASS_RATE, Metric.HELD_OUT_COMPILE_RATE, Metric.PASS_RATE,
        Metric.COMPILE_RATE, Metric.MIXED_GROUPS,
    )  # fmt: skip
    reading = readings.read_progress(run)
    return curve_block(run, "maxrl-progress", figure, names, reading=reading, stage=STAGE)


def _look_blocks(run: RunData) -> list[Block]:
    found = run.summary(STAGE).get("looks", [])
    kind = run.summary(STAGE).get("reward", "tests")
    specs = [
        ("maxrl-outcomes", looks.outcomes(found), readings.read_outcomes(found)),
        ("maxrl-classes", looks.error_classes(found), readings.read_mistakes(found, "classes")),
        ("maxrl-codes", looks.error_codes(found), readings.read_mistakes(found, "codes")),
        ("maxrl-reward", looks.reward_parts(found), readings.read_reward(found, kind)),
    ]
    specs += [
        (anchor, looks.policy_lines(found, anchor), readings.read_line(found, anchor))
        for anchor in looks.POLICY_LINES
    ]
    return [
        make_block(
            anchor,
            figure,
            reading=text,
            table=frame_of(_rows_of(figure, found)),
            source=_look_source(run),
        )
        for anchor, figure, text in specs
    ]


def _rows_of(figure: go.Figure, found: list[looks.Look]) -> Rows:
    """Return the numbers of a figure over looks: one row per look drawn."""
    judged = {look["step"]: look.get("n_judged") for look in found}
    steps = [list(trace.x) for trace in figure.data][:1]
    return [
        {"update": step, "n judged": judged[step]}
        | {trace.name: trace.y[i] for trace in figure.data}
        for i, step in enumerate(steps[0] if steps else [])
    ]


def _guard_blocks(run: RunData) -> list[Block]:
    """Return the guards and the curriculum, whose tables are what is read first."""
    summary = run.summary(STAGE)
    found = summary.get("looks", [])
    guards = make_block(
        "maxrl-guards",
        looks.guard_shares(found),
        reading=readings.read_guards(summary),
        table=guard_table(summary),
        source=_look_source(run),
    )
    rows = [
        {"family": row["family"], "level": row["level"], "tasks": row["n_tasks"],
         "tried": row["n_tried"], "passed": row["n_passed"],
         "passed lately": _percent(row["pass_rate_recent"]),
         "share of draws": _percent(row["weight"])}
        for row in summary.get("curriculum", [])
    ]  # fmt: skip
    reading = readings.read_curriculum(summary)
    tasks = _block(run, "maxrl-curriculum", figures.curriculum(summary), reading, rows)
    n_programs = f"{summary.get('n_rollouts', 0):,} programs sampled in training; {run.machine}"
    tasks = replace(tasks, source=n_programs, table=frame_of(rows), is_open=True)
    return [replace(guards, is_open=True), tasks]


def _percent(value: float | None) -> str:
    return "not tried" if value is None else f"{value:.1%}"


def _cost_blocks(run: RunData) -> list[Block]:
    summary, metrics = run.summary(STAGE), run.metrics
    rows = [
        {"of": of, "part": part.label, "seconds": part.seconds, "share": f"{part.share:.1%}"}
        for of, prefix in (("updates", ""), ("looks at held-out tasks", "held_out_"))
        for part in time_parts(summary, prefix)
    ]
    steps = f"{summary.get('steps', 0):,} updates; {run.machine}"
    bars = make_block(
        "maxrl-time",
        figures.time_bars(summary),
        reading=read_bound(summary),
        table=frame_of(rows),
        source=steps,
    )
    speeds = [
        curve_block(
            run,
            anchor,
            figures.throughput(metrics, metric),
            [metric],
            reading=middle(metrics, STAGE, metric, label),
            stage=STAGE,
        )
        for anchor, metric, label in (
            ("maxrl-tokens-per-s", Metric.COMPLETION_TOKENS_S, "Tokens per second of sampling"),
            ("maxrl-programs-per-s", Metric.PROGRAMS_S, "Programs per second of judging"),
        )
    ]
    return [bars, *speeds]


def _seconds_block(run: RunData) -> Block:
    names = [Metric.GENERATE_S, Metric.VERIFY_S, Metric.WAIT_S, Metric.UPDATE_S]
    figure, reading = figures.seconds(run.metrics), readings.read_seconds(run)
    return curve_block(run, "maxrl-seconds", figure, names, reading=reading, stage=STAGE)


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return how the stage was run, and what could not be judged."""
    summary, config = run.summary(STAGE), run.config.get(STAGE, {})
    if "gate" not in summary:
        return []
    threshold = summary.get("reward_threshold", config.get("reward_threshold"))
    facts = [
        ("Advantages", str(summary.get("advantage", ""))),
        ("Success", f"reward {summary.get('reward', 'tests')} of at least {threshold}"),
        ("Exit gate", str(summary["gate"])),
        ("Optimiser steps per batch", f"{config.get('inner_steps', 1)}"),
        ("Weight of the KL from the base", f"{config.get('kl_weight', 0):g}"),
    ]
    if n := summary.get("n_rollouts"):
        text = f"{share(summary.get('n_unjudged', 0), n)} of those sampled in training"
        facts.append(("Could not be judged", f"{text}; in no reward and no rate"))
    if start := summary.get("warm_start"):
        text = (
            f"{start['n_used']:,} distinct programs of {start['n_passed']:,} that passed "
            f"({start['n_judged']:,} judged, {start['n_tasks']:,} tasks), in "
            f"{start['n_steps']:,} steps"
        )
        facts.append(("Warm start", text))
    return facts
