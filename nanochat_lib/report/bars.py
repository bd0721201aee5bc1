"""Bars and areas of counts and rates: rows of a summary in, plotly figures out.

Input: the lists and dictionaries of a stage's `summary.json`, a frame of `EvalResult` rows, rows of
the kernel bench or of the planner. Like in `figures.py`, a figure without data says why.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.report import theme
from nanochat_lib.report.figures import base_figure, missing_figure

Row = dict[str, Any]


def wilson_interval(n_hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a rate from its counts (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    rate = n_hits / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


def plain(text: str) -> str:
    """Return text that plotly shows as it is: its labels understand a few HTML tags."""
    return html.escape(str(text), quote=False)


def horizontal_bars(
    labels: Sequence[str], values: Sequence[float], texts: Sequence[str], *, title: str, unit: str
) -> go.Figure:
    """Return bars with the first label on top and the text beside each bar."""
    figure = base_figure(title, unit, "", height=130 + 34 * len(labels))
    figure.add_bar(
        x=list(values),
        y=[plain(label) for label in labels],
        orientation="h",
        text=list(texts),
        textposition="auto",
        cliponaxis=False,
        marker_color=theme.color("blue"),
        hovertemplate="%{y}: %{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", ticksuffix=" ")
    figure.update_layout(margin={"r": 60})
    return figure


def verification_funnel(funnel: Sequence[Row]) -> go.Figure:
    """Draw how many programs are left after each step: rows of {step, n}."""
    title = "From sources to verified programs"
    if not funnel:
        return missing_figure(title, "preprocessing wrote no funnel.")
    first = max(int(funnel[0]["n"]), 1)
    texts = [f"{row['n']:,} ({row['n'] / first:.0%})" for row in funnel]
    return horizontal_bars(
        [row["step"] for row in funnel],
        [row["n"] for row in funnel],
        texts,
        title=title,
        unit="programs",
    )


def compile_rate_by_source(rates: Row, target: float | None = None) -> go.Figure:
    """Draw the compile rate before and after verification and per source, with intervals.

    Args:
        rates: `before`, `after` ({n_compiled, n_judged}) and `by_source` (with source and kind).
        target: least rate asked for, drawn as a line.
    """
    title = "Compile rate of the training data"
    rows = [
        (label, rates[key]["n_compiled"], rates[key]["n_judged"])
        for key, label in (("before", "all, before filtering"), ("after", "kept, after filtering"))
        if key in rates
    ]
    rows += [
        (f"{row['source']}: {row['kind']}", row["n_compiled"], row["n_judged"])
        for row in rates.get("by_source", [])
    ]
    rows = [row for row in rows if row[2]]
    if not rows:
        return missing_figure(title, "preprocessing judged no program.")
    values = [n_ok / n for _, n_ok, n in rows]
    texts = [f"{n_ok / n:.1%} ({n_ok:,} of {n:,})" for _, n_ok, n in rows]
    unit = "share that compiles; whiskers: 95 % interval"
    figure = horizontal_bars([r[0] for r in rows], values, texts, title=title, unit=unit)
    spans = [wilson_interval(n_ok, n) for _, n_ok, n in rows]
    high = [max(0.0, s[1] - v) for s, v in zip(spans, values, strict=True)]
    low = [max(0.0, v - s[0]) for s, v in zip(spans, values, strict=True)]
    figure.update_traces(
        error_x=_whiskers(high, low), textposition="inside", insidetextanchor="start"
    )
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%")
    if target is not None:
        _vertical_target(figure, target, f"target: at least {target:.0%}")
    return figure


def difficulty_mix(difficulty: Row) -> go.Figure:
    """Draw shares of easy, medium and hard examples before and after balancing, and as wanted."""
    title = "Difficulty of the examples"
    levels = ("easy", "medium", "hard")
    parts = (("before", "before balancing", "muted"), ("after", "after balancing", "blue"))
    found = [part for part in parts if sum(difficulty.get(part[0], {}).values())]
    if not found:
        return missing_figure(title, "preprocessing graded no example.")
    figure = base_figure(title, "", "share of examples")
    for key, label, role in found:
        counts = [difficulty[key].get(level, 0) for level in levels]
        n = sum(counts)
        figure.add_bar(
            x=list(levels),
            y=[count / n for count in counts],
            name=f"{label} (n = {n:,})",
            text=[f"{count:,}" for count in counts],
            marker_color=theme.color(role),
            hovertemplate="%{x}: %{y:.1%}, %{text} examples<extra>" + label + "</extra>",
        )
    if wanted := difficulty.get("wanted"):
        total = sum(wanted.values()) or 1
        _target_marks(figure, levels, [wanted.get(level, 0) / total for level in levels], "wanted")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def error_codes(rows: Sequence[Row], *, most: int = 12) -> go.Figure:
    """Draw the most frequent rustc error codes: rows of {code, n, message}."""
    title = "Why programs do not compile"
    rows = sorted(rows, key=lambda row: -row["n"])[:most]
    if not rows:
        return missing_figure(title, "no compile error was recorded.")
    figure = horizontal_bars(
        [row["code"] or "no code" for row in rows],
        [row["n"] for row in rows],
        [f"{row['n']:,}  {_short(row.get('message', ''))}" for row in rows],
        title=title,
        unit="programs with this error",
    )
    return figure


def evaluation_bars(
    results: pl.DataFrame, task_set: str, targets: dict[str, float] | None = None
) -> go.Figure:
    """Draw the rates of one task set per checkpoint, with intervals and targets beside them.

    Args:
        results: `EvalResult` rows.
        task_set: the set to draw; sets are never mixed in one figure.
        targets: metric name -> target; drawn as marks, never as bars.
    """
    title = f"Evaluation on {task_set}"
    if results.is_empty() or task_set not in results["task_set"]:
        return missing_figure(title, f"the evaluation holds no results on {task_set}.")
    rows = results.filter(pl.col("task_set") == task_set)
    names = rows["metric"].unique(maintain_order=True).to_list()
    figure = base_figure(title, "", "rate")
    for i, checkpoint in enumerate(rows["checkpoint"].unique(maintain_order=True)):
        part = rows.filter(pl.col("checkpoint") == checkpoint)
        figure.add_bar(
            x=part["metric"].to_list(),
            y=part["rate"].to_list(),
            name=plain(checkpoint),
            marker_color=theme.series_color(i),
            text=[f"{rate:.0%}" for rate in part["rate"]],
            textposition="inside",
            insidetextanchor="start",
            error_y=_whiskers((part["high"] - part["rate"]).clip(0).to_list(),
                              (part["rate"] - part["low"]).clip(0).to_list()),
            customdata=part.select("n_correct", "n_samples", "n_problems").to_numpy(),
            hovertemplate="%{x}: %{y:.1%} (%{customdata[0]} of %{customdata[1]} samples, "
            "%{customdata[2]} problems)<extra>" + plain(checkpoint) + "</extra>",
        )  # fmt: skip
    wanted = [(name, (targets or {})[name]) for name in names if name in (targets or {})]
    if wanted:
        label = "the profile's target"
        _target_marks(figure, [w[0] for w in wanted], [w[1] for w in wanted], label)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def loss_by_position(
    rows: Sequence[Row], trained_length: int | None = None, title: str = "Loss by position"
) -> go.Figure:
    """Draw the loss over token positions: rows of {position, <name>: nats, ...}, a line per name.

    Args:
        trained_length: length the earlier stage was trained on, drawn as a vertical line.
    """
    if not rows:
        return missing_figure(title, "the long-context stage measured no loss by position.")
    figure = base_figure(title, "token position", "nats per token")
    names = [name for name in rows[0] if name.startswith("loss")]
    for i, name in enumerate(names):
        label = name.replace("_", " ")
        figure.add_scatter(
            x=[row["position"] for row in rows],
            y=[row.get(name) for row in rows],
            name=label,
            mode="lines+markers",
            line={"color": theme.series_color(i), "dash": ("solid", "dash", "dot")[i % 3]},
            hovertemplate="position %{x}: %{y:.3f}<extra>" + label + "</extra>",
        )
    if trained_length:
        _vertical_target(figure, trained_length, f"pre-training length: {trained_length}")
    return figure


def memory_plan(rows: Sequence[Row], limit_gb: float | None = None) -> go.Figure:
    """Draw planned memory by part: rows of {part, gb}, and the memory there is."""
    title = "Planned memory"
    if not rows:
        return missing_figure(title, "no plan was made.")
    total = sum(row["gb"] for row in rows)
    labels = [*(row["part"] for row in rows), "together"]
    values = [*(row["gb"] for row in rows), total]
    figure = horizontal_bars(
        labels, values, [f"{v:,.2f} GB" for v in values], title=title, unit="GB"
    )
    colors = [theme.color("blue")] * len(rows) + [theme.color("muted")]
    figure.update_traces(marker_color=colors)
    if limit_gb:
        _vertical_target(figure, limit_gb, f"memory there is: {limit_gb:,.0f} GB")
    return figure


def _whiskers(high: list[float], low: list[float]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": high,
        "arrayminus": low,
        "color": theme.color("text"),
        "thickness": 1.3,
        "width": 5,
    }


def _vertical_target(figure: go.Figure, value: float, label: str) -> None:
    figure.add_vline(
        x=value,
        line={"color": theme.color("text"), "dash": "dot", "width": 1.5},
        annotation={"text": label, "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "right",
                    "font": {"size": 12}},
    )  # fmt: skip


def _target_marks(figure: go.Figure, x: Sequence[str], y: Sequence[float], label: str) -> None:
    color = theme.color("text")
    figure.add_scatter(
        x=list(x),
        y=list(y),
        name=label,
        mode="markers",
        marker={
            "symbol": "line-ew",
            "size": 44,
            "line": {"width": 3, "color": color},
        },
        hovertemplate="%{x}: " + label + " %{y:.0%}<extra></extra>",
    )


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return plain(text if len(text) <= most else text[: most - 1] + "…")
