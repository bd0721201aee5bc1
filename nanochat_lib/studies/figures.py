"""Figures of studies: arms with their seeds, quality over computation, exit rules over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import Bar, horizontal_bars
from nanochat_lib.report.plots.figures import base_figure, missing_figure
from nanochat_lib.studies.tables import MEASURES, mean_interval

MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def arms(rows: pl.DataFrame, measure: str) -> go.Figure:
    """Return a bar per arm: the mean over seeds with its 95 % interval.

    Args:
        rows: of `tables.point_rows`.
        measure: a key of `tables.MEASURES`.
    """
    bars = []
    for (arm,), group in rows.group_by("arm", maintain_order=True):
        mean, half = mean_interval(group[measure].drop_nulls().to_list())
        if math.isnan(half):  # one seed
            bars.append(Bar(arm, mean, f"{mean:.3f}, {len(group)} seed"))
            continue
        text = f"{mean:.3f} ± {half:.3f}, {len(group)} seeds"
        span = (max(0.0, mean - half), mean + half)  # nothing measured here is negative
        bars.append(Bar(arm, mean, text, "blue", span))
    return horizontal_bars(bars, title=MEASURES[measure], unit=MEASURES[measure])


def over_computation(rows: pl.DataFrame, measure: str) -> go.Figure:
    """Return a marker per arm and seed: a measure over the FLOPs of training."""
    title = f"{MEASURES[measure]} over training computation"
    figure = base_figure(title, "training TFLOP", MEASURES[measure])
    for i, ((arm,), group) in enumerate(rows.group_by("arm", maintain_order=True)):
        figure.add_scatter(
            x=(group["train_flops"] / 1e12).to_list(),
            y=group[measure].to_list(),
            name=arm,
            mode="markers",
            marker={"color": theme.series_color(i), "symbol": MARKERS[i % len(MARKERS)], "size": 9},
        )
    figure.update_xaxes(type="log")
    return figure


def over_depth(rows: pl.DataFrame, value: str, title: str) -> go.Figure:
    """Return a line per exit rule: the mean over seeds of `value` over the mean depth.

    Args:
        rows: of `measure.measure_exits`; rows without `value` are left out.
        value: "loss" or "compile_rate".
    """
    rows = rows.drop_nulls(value) if value in rows.columns else rows.clear()
    if rows.is_empty():
        return missing_figure(title, "no finished point")
    figure = base_figure(title, "mean loops per token", value.replace("_", " "))
    for i, ((rule,), group) in enumerate(rows.group_by("rule", maintain_order=True)):
        number = pl.int_range(pl.len()).over("arm", "seed")  # levels are quantiles: not equal
        steps = group.with_columns(step=number).group_by("step")
        line = steps.agg(pl.col("mean_depth", value).mean()).sort("mean_depth")
        figure.add_scatter(
            x=line["mean_depth"].to_list(),
            y=line[value].to_list(),
            name=rule,
            mode="lines+markers",
            line={"color": theme.series_color(i), "dash": ("solid", "dash", "dot")[i % 3]},
            marker={"symbol": MARKERS[i % len(MARKERS)], "size": 8},
        )
    return figure


def over_programs(rows: pl.DataFrame, value: str, title: str) -> go.Figure:
    """Return a line per estimator: `value` over programs sampled, the mean over seeds.

    Args:
        rows: of `policies.curve_rows`.
        value: one of its columns.
    """
    figure = base_figure(title, "programs sampled", value.replace("_", " "))
    for i, ((arm,), group) in enumerate(rows.group_by("arm", maintain_order=True)):
        line = group.group_by("programs").agg(
            pl.col(value).mean().alias("mean"), low=pl.col(value).min(), high=pl.col(value).max()
        )
        line = line.sort("programs")
        figure.add_scatter(
            x=line["programs"].to_list(),
            y=line["mean"].to_list(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (line["high"] - line["mean"]).to_list(),
                "arrayminus": (line["mean"] - line["low"]).to_list(),
            },
            name=f"{arm}, {group['seed'].n_unique()} seeds",
            mode="lines+markers",
            line={"color": theme.series_color(i), "dash": ("solid", "dash", "dot")[i % 3]},
            marker={"symbol": MARKERS[i % len(MARKERS)], "size": 8},
        )
    return figure


def kept_caches(rows: pl.DataFrame) -> go.Figure:
    """Return a bar per arm and way of sharing: the loss when decoding token by token."""
    bars: list[Bar] = []
    kinds: Sequence[tuple[str, str]] = rows.select("arm", "kept").unique(maintain_order=True).rows()
    for arm, kept in kinds:
        group = rows.filter((pl.col("arm") == arm) & (pl.col("kept") == kept))
        mean, half = mean_interval(group["loss"].to_list())
        text = f"{mean:.3f} ± {half:.3f} nats, {len(group)} seeds"
        bars.append(Bar(f"{arm}, cache of {_kept_name(kept)}", mean, text, "blue"))
    return horizontal_bars(bars, title="Loss by what the cache keeps", unit="nats per token")


def _kept_name(kept: str) -> str:
    return "all loops" if kept == "full" else f"the {kept} loop"
