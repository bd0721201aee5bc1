"""Figures of stage 3: `summary.json` and metric rows in, plotly figures out.

A figure without data says why; runs of older versions lack some of what is drawn here. Curves over
updates are of looks at the same held-out tasks with the same seeds. In notebooks:
`figures.before_after(summary, "pass")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import Bar, plain, rate_bars
from nanochat_lib.report.plots.figures import (
    Line,
    Reference,
    base_figure,
    curves,
    missing_figure,
)
from nanochat_lib.report.policy.changes import WORDS, Rate, changes, pass_at, rises
from nanochat_lib.report.policy.costs import time_parts

STAGE = "maxrl"
UPDATES = "policy update"
OLDER = "this run's summary lacks them (written by an older version, or not finished)."
Summary = dict[str, Any]


@dataclass(frozen=True)
class Dot:
    """One value with its interval, on a row of its own label."""

    label: str
    value: float
    low: float
    high: float
    text: str  # shown when pointed at


def dot_rows(
    figure: go.Figure, dots: Sequence[Dot], *, name: str, role: str, offset: float
) -> None:
    """Add a series of dots with whiskers, one per row from the top; `offset` parts two series."""
    figure.add_scatter(
        x=[dot.value for dot in dots],
        y=[i + offset for i in range(len(dots))],
        error_x=_whiskers([(dot.value, dot.low, dot.high) for dot in dots]),
        name=name,
        mode="markers",
        marker={"color": theme.color(role), "size": 9,
                "symbol": "circle-open" if role == "muted" else "circle"},
        hovertext=[f"{plain(dot.label)}: {plain(dot.text)}" for dot in dots],
        hovertemplate="%{hovertext}<extra>" + name + "</extra>",
    )  # fmt: skip


def _label_rows(figure: go.Figure, texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        figure.add_annotation(
            text=text, x=0, xref="paper", xanchor="left", y=i, yshift=20, showarrow=False,
            font={"size": 12},
        )  # fmt: skip
    figure.update_yaxes(range=[len(texts) - 0.5, -0.8], showticklabels=False, showgrid=False)
    figure.update_layout(margin={"l": 16}, height=150 + 52 * len(texts))


def before_after(summary: Summary, kind: str) -> go.Figure:
    """Draw a rate before and after the stage by level and split of the held-out tasks.

    Args:
        summary: of stage 3.
        kind: "pass" or "compile".
    """
    title = f"Held-out programs: {WORDS[kind]}, before and after"
    found = changes(summary, kind)
    if not found:
        return missing_figure(title, "the MaxRL stage measured no held-out tasks.")
    figure = base_figure(title, f"share of programs that {_VERBS[kind]}; whiskers: 95% over tasks")
    for name, role, offset in (("before", "muted", -0.08), ("after", "blue", 0.14)):
        dots = [_rate_dot(change.part, getattr(change, name)) for change in found]
        dot_rows(figure, dots, name=name, role=role, offset=offset)
    _label_rows(
        figure,
        [
            f"{plain(c.part)}  <b>{c.before.value:.1%} → {c.after.value:.1%}</b>"
            f"  {'separate' if c.is_separate else 'overlap'}"
            for c in found
        ],
    )
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    return figure


_VERBS = {"pass": "pass their tests", "compile": "compile"}


def _rate_dot(part: str, rate: Rate) -> Dot:
    text = f"{rate.text}, {rate.n_hits:,} of {rate.n:,} programs, {rate.n_tasks:,} tasks"
    return Dot(part, rate.value, rate.low, rate.high, text)


def paired_rises(summary: Summary) -> go.Figure:
    """Draw the mean difference over the same tasks, whose interval is narrower than two rates'."""
    title = "Rise over the same held-out tasks"
    found = rises(summary)
    if not found:
        return missing_figure(title, OLDER)
    figure = base_figure(title, "after minus before; whiskers: 95% over tasks")
    labels = [f"{WORDS[rise.kind]}, {rise.part}" for rise in found]
    dots = [
        Dot(label, r.rise, r.low, r.high,
            f"{_points(r.rise)} [{_points(r.low)} to {_points(r.high)}], {r.n_tasks:,} tasks")
        for label, r in zip(labels, found, strict=True)
    ]  # fmt: skip
    dot_rows(figure, dots, name="rise", role="blue", offset=0.1)
    figure.add_vline(
        x=0, layer="below", line={"color": theme.color("text"), "dash": "dot", "width": 1.5}
    )
    notes = ("not shown" if "not shown" in rise.says else "shown" for rise in found)
    texts = [
        f"{plain(dot.label)}  <b>{_points(dot.value)}</b>  {note}"
        for dot, note in zip(dots, notes, strict=True)
    ]
    _label_rows(figure, texts)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(tickformat="+.0%")
    return figure


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def pass_at_curves(summary: Summary) -> go.Figure:
    """Draw pass@k before and after: a policy that only grows surer loses at large k."""
    title = "pass@k on held-out tasks"
    found = {when: pass_at(summary, when) for when in ("before", "after")}
    if not all(found.values()):
        return missing_figure(title, OLDER)
    figure = base_figure(title, "k, programs that may be tried", "tasks solved by one of k")
    looks = (("before", "muted", "dash", 0.98), ("after", "blue", "solid", 1.02))
    for when, role, dash, aside in looks:
        rates = found[when]
        figure.add_scatter(
            x=[k * aside for k in rates],  # whiskers beside each other
            customdata=list(rates),
            y=[rate.value for rate in rates.values()],
            error_y=_whiskers([(rate.value, rate.low, rate.high) for rate in rates.values()]),
            name=f"{when} (n = {max(rate.n_tasks for rate in rates.values()):,} tasks)",
            mode="lines+markers",
            line={"color": theme.color(role), "dash": dash, "width": 2},
            hovertemplate="pass@%{customdata}: %{y:.1%}<extra>" + when + "</extra>",
        )
    ks = sorted({k for rates in found.values() for k in rates})
    figure.update_xaxes(type="log", tickvals=ks, ticktext=[str(k) for k in ks])
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def progress(
    metrics: pl.DataFrame, summary: Summary | None = None, target: float | None = None
) -> go.Figure:
    """Draw compile and pass rates over updates: training tasks, and held-out looks with intervals.

    Args:
        metrics: of a run.
        summary: of stage 3, where the intervals of the held-out looks are.
        target: compile rate asked for, drawn as a line.
    """
    lines = (
        Line(Metric.COMPILE_RATE, "compile rate, training tasks", "blue"),
        Line(Metric.PASS_RATE, "pass rate, training tasks", "orange"),
        Line(Metric.HELD_OUT_COMPILE_RATE, "compile rate, held-out tasks", "green", "dash"),
        Line(Metric.HELD_OUT_PASS_RATE, "pass rate, held-out tasks", "purple", "dash"),
    )
    figure = curves(
        metrics,
        STAGE,
        lines,
        title="Compile and pass rate over policy updates",
        y_title="share of sampled programs",
        references=(Reference(target, "target: compile rate at least", "text", "dot"),),
        x_title=UPDATES,
    )
    if "missing" in (figure.layout.meta or {}):
        return figure
    looks = (summary or {}).get("looks", [])
    for trace in figure.data:
        if looks and trace.name.endswith("held-out tasks"):
            _replace_by_looks(trace, looks, f"{trace.name.split()[0]}_rate")
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def _replace_by_looks(trace: go.Scatter, looks: Sequence[Summary], key: str) -> None:
    """Draw the looks themselves, which know their intervals."""
    trace.x, trace.y = [look["step"] for look in looks], [look[key] for look in looks]
    trace.mode = "lines+markers"
    trace.error_y = _whiskers(
        [(look[key], look[f"{key}_low"], look[f"{key}_high"]) for look in looks]
    )


def _whiskers(spans: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Return plotly's error bars of (value, low, high)."""
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [max(0.0, high - value) for value, _, high in spans],
        "arrayminus": [max(0.0, value - low) for value, low, _ in spans],
    }  # fmt: skip


def time_bars(summary: Summary) -> go.Figure:
    """Draw how the time of all updates is divided, waiting for the judge apart."""
    title = "Where the time of the updates goes"
    parts = time_parts(summary)
    if not parts:
        return missing_figure(title, OLDER)
    bars = [
        Bar(part.label, part.share, f"{part.share:.1%} ({part.seconds:,.1f} s)", part.role)
        for part in parts
    ]
    return rate_bars(bars, title=title, unit="share of the time of all updates")


def seconds(metrics: pl.DataFrame) -> go.Figure:
    """Draw the seconds of every update; the judge works beside the other parts."""
    lines = (
        Line(Metric.GENERATE_S, "sample programs", "blue"),
        Line(Metric.VERIFY_S, "compile and test them", "orange", "dash"),
        Line(Metric.WAIT_S, "wait for the judge", "purple", "dashdot"),
        Line(Metric.UPDATE_S, "learn", "green", "dot"),
    )
    title = "Seconds per policy update"
    return curves(metrics, STAGE, lines, title=title, y_title="seconds", x_title=UPDATES)


def throughput(metrics: pl.DataFrame, metric: str) -> go.Figure:
    """Draw what one part of the stage achieves per second of its own work.

    Args:
        metrics: of a run.
        metric: `COMPLETION_TOKENS_S` (while sampling) or `PROGRAMS_S` (while judging).
    """
    title, label = {
        Metric.COMPLETION_TOKENS_S: ("Tokens sampled per second", "tokens per second of sampling"),
        Metric.PROGRAMS_S: ("Programs judged per second", "programs per second of judging"),
    }[Metric(metric)]
    line = Line(metric, label, "blue" if metric == Metric.COMPLETION_TOKENS_S else "orange")
    figure = curves(metrics, STAGE, (line,), title=title, y_title="per second", x_title=UPDATES)
    figure.update_yaxes(rangemode="tozero")
    return figure


def curriculum(summary: Summary) -> go.Figure:
    """Draw how often each family is drawn against how often it passed lately."""
    title = "Which tasks are tried: share of the draws by recent pass rate"
    tried = [r for r in summary.get("curriculum", []) if r["pass_rate_recent"] is not None]
    if not tried:
        return missing_figure(title, OLDER)
    figure = base_figure(title, "passed lately", "share of the draws")
    levels = sorted({row["level"] for row in tried})
    for i, level in enumerate(levels):
        rows = [row for row in tried if row["level"] == level]
        figure.add_scatter(
            x=[row["pass_rate_recent"] for row in rows],
            y=[row["weight"] for row in rows],
            name=f"level {level}" if level else "your tasks",
            mode="markers",
            marker={"color": theme.series_color(i), "symbol": i % 8, "size": 10},
            hovertext=[
                f"{plain(r['family'])}: passed {r['n_passed']:,} of {r['n_tried']:,}" for r in rows
            ],
            hovertemplate="%{hovertext}; lately %{x:.0%}, drawn %{y:.1%}<extra></extra>",
        )
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(rangemode="tozero", tickformat=".1%")
    return figure
