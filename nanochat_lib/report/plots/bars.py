"""Bars and areas of counts and rates: rows of a summary in, plotly figures out.

Input: the lists and dictionaries of a stage's `summary.json`, a frame of `EvalResult` rows, rows of
the planner. Like in `figures.py`, a figure without data says why.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.figures import base_figure, missing_figure

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


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: label and text stand above it, so that narrow windows show both."""

    label: str
    value: float
    text: str
    role: str = "blue"
    span: tuple[float, float] | None = None  # ends of an interval, drawn as a whisker


def horizontal_bars(rows: Sequence[Bar], *, title: str, unit: str) -> go.Figure:
    """Return bars from top to bottom, each under its label and value."""
    figure = base_figure(title, unit, "", height=110 + 46 * len(rows))
    for i, row in enumerate(rows):
        low, high = row.span or (row.value, row.value)
        figure.add_bar(
            x=[row.value],
            y=[i],
            width=0.42,
            orientation="h",
            marker_color=theme.color(row.role),
            error_x=_whisker(row.value, low, high) if row.span else None,
            hovertemplate=f"{plain(row.label)}: {plain(row.text)}<extra></extra>",
            showlegend=False,
        )
        figure.add_annotation(
            text=f"{plain(row.label)}  <b>{plain(row.text)}</b>",
            x=0,
            xref="paper",
            xanchor="left",
            y=i,
            yshift=18,
            showarrow=False,
            font={"size": 12},
        )
    figure.update_yaxes(range=[len(rows) - 0.5, -0.8], showticklabels=False, showgrid=False)
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(margin={"l": 16}, barmode="overlay")
    return figure


def rate_bars(rows: Sequence[Bar], *, title: str, unit: str) -> go.Figure:
    """Return horizontal bars of rates on an axis from 0 to 100%."""
    figure = horizontal_bars(rows, title=title, unit=unit)
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def verification_funnel(funnel: Sequence[Row]) -> go.Figure:
    """Draw how many programs are left after each step: rows of {step, n}."""
    title = "From sources to verified programs"
    if not funnel:
        return missing_figure(title, "preprocessing wrote no funnel.")
    first = max(int(funnel[0]["n"]), 1)
    rows = [Bar(row["step"], row["n"], f"{row['n']:,} ({row['n'] / first:.1%})") for row in funnel]
    return horizontal_bars(rows, title=title, unit="programs")


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
    parts = [
        Bar(
            label,
            n_ok / n,
            f"{n_ok / n:.1%} ({n_ok:,} of {n:,})",
            "muted" if label.startswith("all,") else "blue",
            wilson_interval(n_ok, n),
        )
        for label, n_ok, n in rows
    ]
    figure = rate_bars(parts, title=title, unit="share that compiles; whiskers: 95% interval")
    if target is not None:
        _vertical_target(figure, target, f"asked of what is kept: {target:.0%}")
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
    found = [
        Bar(
            f"{row['code'] or 'no code'} {_short(row.get('message', ''))}",
            row["n"],
            f"{row['n']:,}",
        )
        for row in rows
    ]
    return horizontal_bars(found, title=title, unit="programs with this error")


def evaluation_bars(
    results: pl.DataFrame,
    metric: str,
    target: float | None = None,
    *,
    parts_of: str = "",
) -> go.Figure:
    """Draw one metric per task set and checkpoint, with intervals, counts and the target.

    Args:
        results: `EvalResult` rows.
        metric: "compile_rate", "semantic_score", "semantic_ok", "pass@1", ...
        target: drawn as a line, never as a bar. That of pass@k is meant for HumanEval-Rust.
        parts_of: draw the parts of this set (levels, splits) instead of the whole sets.
    """
    name = metric.replace("_", " ")
    title = f"{name[0].upper()}{name[1:]}" if name.startswith(("c", "s")) else name
    title += f" on parts of {parts_of}" if parts_of else ""
    rows = results.filter(pl.col("metric") == metric) if results.height else results
    if rows.height:
        whole = ~pl.col("task_set").str.contains("/", literal=True)
        part = pl.col("task_set").str.starts_with(f"{parts_of}/")
        rows = rows.filter(part if parts_of else whole)
    if rows.is_empty():
        return missing_figure(title, f"the evaluation holds no {name} of such tasks.")
    checkpoints = rows["checkpoint"].unique(maintain_order=True).to_list()
    order = rows["task_set"].unique(maintain_order=True).to_list()
    found = sorted(rows.to_dicts(), key=lambda r: order.index(r["task_set"]))
    roles = [role for role in theme.SERIES if role != "muted"]
    bars = [
        Bar(
            f"{row['task_set'].removeprefix(parts_of + '/')} · {row['checkpoint']}",
            row["rate"],
            f"{row['rate']:.1%} ({_counts(row)})",
            roles[checkpoints.index(row["checkpoint"]) % len(roles)],
            (row["low"], row["high"]),
        )
        for row in found
    ]
    unit = "whiskers: 95% interval over problems"
    figure = rate_bars(bars, title=title, unit=unit)
    if target is not None:
        meant = "target on HumanEval-Rust" if metric.startswith("pass@") else "target"
        _vertical_target(figure, target, f"{meant}: {target:.0%}")
    return figure


def _counts(row: Row) -> str:
    """Return what a rate was counted from; graded scores and pass@k are no share of samples."""
    if row["metric"] in ("compile_rate", "pass@1", "semantic_ok"):
        return f"{row['n_correct']:,} of {row['n_samples']:,}"
    return f"n = {row['n_samples']:,}"


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
    for i, name in enumerate(key for key in rows[0] if key != "position"):
        label = _POSITION_LABELS.get(name, name.replace("_", " "))
        figure.add_scatter(
            x=[row["position"] for row in rows],
            y=[row.get(name) for row in rows],
            name=label,
            mode="lines+markers",
            line={"color": theme.series_color(i), "dash": ("solid", "dash", "dot")[i % 3]},
            hovertemplate="from position %{x}: %{y:.3f}<extra>" + label + "</extra>",
        )
    if trained_length:
        _vertical_target(figure, trained_length, f"pre-training length: {trained_length}")
    return figure


_POSITION_LABELS = {
    "before": "before, run at the new length as it was",
    "after": "after this stage",
    "short_context": "after, but given only the old length of context",
}


def memory_plan(rows: Sequence[Row], limit_gb: float | None = None) -> go.Figure:
    """Draw planned memory by part: rows of {part, gb}, and the memory there is."""
    title = "Planned memory"
    if not rows:
        return missing_figure(title, "no plan was made.")
    total = sum(row["gb"] for row in rows)
    bars = [Bar(row["part"], row["gb"], f"{row['gb']:,.2f} GB") for row in rows]
    bars.append(Bar("together", total, f"{total:,.2f} GB", "muted"))
    figure = horizontal_bars(bars, title=title, unit="GB")
    if limit_gb:
        _vertical_target(figure, limit_gb, f"memory there is: {limit_gb:,.0f} GB")
    return figure


def _whisker(value: float, low: float, high: float) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value)],
        "arrayminus": [max(0.0, value - low)],
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
    return text if len(text) <= most else text[: most - 1] + "…"
