"""One metric of several runs on one axis.

Runs differ by colour and by dash. At most `MOST` are drawn, those that ended best; the sentence
under the figure names how many were left out. `over="seconds"` puts the stage's own time on the
axis instead of steps: two runs that cost the same are then above each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.compare.differences import column_names
from nanochat_lib.report.content.blocks import Block, make_block
from nanochat_lib.report.content.readings import number
from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import plain
from nanochat_lib.report.plots.figures import base_figure, missing_figure
from nanochat_lib.report.run_data import RunData, downsample, series

MOST = 10
_DASHES = ("solid", "dash", "dot", "dashdot")  # with five colours: twenty different lines
_AXES = {"step": "step", "seconds": "seconds of the stage"}

# anchor, stage, metric, title, unit, sense: the figures of a comparison
OVERLAYS: tuple[tuple[str, str, str, str, str, int], ...] = (
    ("bits-per-byte", "pretrain", Metric.BITS_PER_BYTE, "Held-out bits per byte, real Rust",
     "bits per byte (lower is better)", -1),
    ("bits-per-byte-tinyrust", "pretrain", Metric.BITS_PER_BYTE_TINYRUST,
     "Held-out bits per byte, TinyRust", "bits per byte (lower is better)", -1),
    ("task-loss", "pretrain", Metric.TASK_LOSS, "Training loss", "nats per token", -1),
    ("token-entropy", "pretrain", Metric.TOKEN_ENTROPY, "Token entropy", "nats", 0),
    ("exit-entropy", "pretrain", Metric.EXIT_ENTROPY, "Exit entropy", "nats", 0),
    ("expected-loops", "pretrain", Metric.EXPECTED_LOOPS, "Mean loops used", "loops", 0),
    ("zero-fraction", "pretrain", Metric.ZERO_FRACTION, "Share of zero codes", "share", 0),
    ("gradient-norm", "pretrain", Metric.GRAD_NORM, "Gradient norm", "norm", 0),
    ("tokens-per-s", "pretrain", Metric.TOKENS_PER_S, "Training speed", "tokens per second", 1),
    ("held-out-pass-rate", "maxrl", Metric.HELD_OUT_PASS_RATE, "Held-out TinyRust passed",
     "share of programs", 1),
    ("held-out-compile-rate", "maxrl", Metric.HELD_OUT_COMPILE_RATE, "Held-out TinyRust compiled",
     "share of programs", 1),
    ("pass-rate", "maxrl", Metric.PASS_RATE, "Training tasks passed", "share of programs", 1),
    ("mixed-groups", "maxrl", Metric.MIXED_GROUPS, "Prompts whose programs differ in reward",
     "share of prompts", 0),
    ("policy-entropy", "maxrl", Metric.TOKEN_ENTROPY, "Token entropy while sampling",
     "nats per token", 0),
    ("sampled-tokens-per-s", "maxrl", Metric.COMPLETION_TOKENS_S, "Tokens sampled per second",
     "tokens per second", 1),
    ("long-context-loss", "long_context", Metric.TASK_LOSS, "Training loss of stage 4",
     "nats per token", -1),
)  # fmt: skip


def overlay(
    runs: Sequence[RunData],
    stage: str,
    metric: str,
    *,
    title: str = "",
    unit: str = "",
    sense: int = 0,
    over: str = "step",
) -> go.Figure:
    """Return a figure with one line per run that recorded the metric.

    Args:
        runs: in the order of the legend.
        stage: pretrain, maxrl or long_context.
        metric: a name of `records.Metric`.
        title: of the figure; empty: the metric's name.
        unit: of the vertical axis.
        sense: -1 when less is better: which runs are drawn when there are too many.
        over: step or seconds.
    """
    found = _drawn(runs, stage, metric, sense)
    title = title or metric.replace("_", " ")
    if not found:
        return missing_figure(title, f"no run recorded {metric} in stage {stage}.")
    figure = base_figure(title, _AXES[over], unit, height=380 + 16 * len(found))
    for i, (name, rows) in enumerate(found):
        points = _over_seconds(rows) if over == "seconds" else rows
        points = downsample(points.select("step", "value"))
        figure.add_scatter(
            x=points["step"].to_numpy(),
            y=points["value"].to_numpy(),
            name=plain(name),
            mode="lines+markers" if points.height <= 40 else "lines",
            line={"color": theme.series_color(i), "dash": _DASHES[i % 4], "width": 2},
            marker={"size": 5, "symbol": i % 8},
            hovertemplate=f"{over} %{{x:,}}: %{{y:.4g}}<extra>{plain(name)}</extra>",
        )
    return figure


def overlay_blocks(runs: Sequence[RunData]) -> list[Block]:
    """Return the figures of a comparison, with sentence and table; only what some run recorded."""
    blocks = []
    for anchor, stage, metric, title, unit, sense in OVERLAYS:
        known = _known(runs, stage, metric)
        if not known:
            continue
        axes = ("step", "seconds") if metric == Metric.BITS_PER_BYTE else ("step",)
        for over in axes:
            suffix = "" if over == "step" else " by time"
            figure = overlay(
                runs, stage, metric, title=title + suffix, unit=unit, sense=sense, over=over
            )
            table = _table(known)
            block = make_block(
                anchor + suffix.replace(" ", "-"),
                figure,
                reading=_reading(known, sense),
                table=table,
                source=f"{len(known)} of {len(runs)} runs recorded it; stage {stage}",
            )
            blocks.append(replace(block, table=table))  # every run, where a curve is thinned
    return blocks


Known = list[tuple[str, pl.DataFrame]]


def _known(runs: Sequence[RunData], stage: str, metric: str) -> Known:
    rows = [series(run.metrics, stage, metric) for run in runs]
    return [(name, one) for name, one in zip(column_names(runs), rows, strict=True) if one.height]


def _drawn(runs: Sequence[RunData], stage: str, metric: str, sense: int) -> Known:
    known = _known(runs, stage, metric)
    if len(known) <= MOST:
        return known
    best = sorted(known, key=lambda one: -(sense or -1) * one[1]["value"][-1])[:MOST]
    names = {name for name, _ in best}
    return [one for one in known if one[0] in names]


def _over_seconds(rows: pl.DataFrame) -> pl.DataFrame:
    """Put the time since the stage began in place of steps; a resume begins its clock anew."""
    went_on = pl.col("wall_s").diff().fill_null(pl.col("wall_s").first()).clip(lower_bound=0)
    return rows.with_columns(went_on.cum_sum().alias("step"))


def _reading(known: Known, sense: int) -> str:
    last = {name: rows["value"][-1] for name, rows in known}
    left_out = len(known) - MOST
    more = f" {left_out} more runs are in the table alone." if left_out > 0 else ""
    if len(last) == 1:
        (name, value), *_ = last.items()
        return f"Only {name} recorded it: {number(value)} at the end."
    order = sorted(last, key=lambda name: last[name], reverse=sense > 0)
    ends = [f"{name} {number(last[name])}" for name in (order[0], order[-1])]
    if number(last[order[0]]) == number(last[order[-1]]):
        return f"All {len(last)} runs end at {number(last[order[0]])}.{more}"
    words = ("from", "to") if sense == 0 else ("best", "last")
    return f"At the end: {words[0]} {ends[0]}, {words[1]} {ends[1]} of {len(last)} runs.{more}"


def _table(known: Known) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "run": name,
                "measurements": rows.height,
                "first": rows["value"][0],
                "lowest": rows["value"].min(),
                "highest": rows["value"].max(),
                "last": rows["value"][-1],
                "last step": rows["step"][-1],
            }
            for name, rows in known
        ]
    )
