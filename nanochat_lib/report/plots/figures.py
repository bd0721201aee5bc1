"""Curves over steps: metric rows in, plotly figures out, for notebooks and reports alike.

Every function takes the metric frame of a run (`Run.metrics()` or `RunData.metrics`) and returns a
`go.Figure` in the light template. When nothing was recorded, the figure is empty and carries the
reason in `layout.meta["missing"]`; a page prints that instead. Bars are in `bars.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.plots import theme
from nanochat_lib.report.run_data import downsample, series

MAX_MARKED = 40  # lines with fewer points show each point
BRIEF_ENTROPY_BAND = (6.0, 8.0)  # nats, the brief's "healthy" band of the token entropy
HEALTHY_GAP = (-0.3, 0.3)  # nats, token entropy minus cross-entropy
_DASHES = ("dashdot", "dot", "dash")
COLLAPSED_EXIT = 0.1  # share of ln R below which the gate uses one loop only


@dataclass(frozen=True)
class Line:
    """One curve: which metric, its label, colour role and dash."""

    metric: str
    label: str
    role: str = "blue"
    dash: str = "solid"
    width: float = 2.0


@dataclass(frozen=True)
class Reference:
    """A horizontal line: a target, a baseline, a bound. Its value ends its label."""

    value: float | None
    label: str
    role: str = "text"
    dash: str = "dash"


def base_figure(title: str, x_title: str = "", y_title: str = "", height: int = 400) -> go.Figure:
    """Return an empty figure in the light template."""
    figure = go.Figure()
    figure.update_layout(template=theme.template("light"), title=title, height=height)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def missing_figure(title: str, why: str) -> go.Figure:
    """Return a figure without data that says why there is none."""
    figure = base_figure(title, height=160)
    figure.update_layout(meta={"missing": why}, xaxis_visible=False, yaxis_visible=False)
    figure.add_annotation(text=f"Not measured: {why}", showarrow=False, x=0.5, y=0.5)
    return figure


def curves(
    metrics: pl.DataFrame,
    stage: str,
    lines: Sequence[Line],
    *,
    title: str,
    y_title: str,
    references: Sequence[Reference] = (),
    x_title: str = "optimiser step",
) -> go.Figure:
    """Return a figure with one curve per metric that was recorded, and lines to compare with."""
    found = [(line, series(metrics, stage, line.metric)) for line in lines]
    found = [(line, rows) for line, rows in found if rows.height]
    if not found:
        names = ", ".join(str(line.metric) for line in lines)
        return missing_figure(title, f"stage {stage} recorded no {names}.")
    figure = base_figure(title, x_title, y_title)
    for line, rows in found:
        add_curve(figure, rows, line)
    steps = pl.concat([rows["step"] for _, rows in found])
    for reference in references:
        add_reference(figure, (steps.min(), steps.max()), reference)
    return figure


def add_curve(figure: go.Figure, rows: pl.DataFrame, line: Line) -> None:
    """Add (step, value) rows as a line; few points are also marked."""
    rows = downsample(rows)
    figure.add_scatter(
        x=rows["step"].to_numpy(),
        y=rows["value"].to_numpy(),
        name=line.label,
        mode="lines+markers" if rows.height <= MAX_MARKED else "lines",
        line={"color": theme.color(line.role), "dash": line.dash, "width": line.width},
        marker={"size": 3 * line.width},
        hovertemplate="step %{x}: %{y:.4g}<extra>" + line.label + "</extra>",
    )


def add_reference(figure: go.Figure, span: tuple[float, float], reference: Reference) -> None:
    """Draw a horizontal line to compare with; it is named in the legend, with its value."""
    if reference.value is None:
        return
    label = f"{reference.label} {reference.value:.4g}"
    low, high = span if span[0] < span[1] else (span[0] - 0.5, span[0] + 0.5)
    figure.add_scatter(
        x=[low, high],
        y=[reference.value] * 2,
        name=label,
        mode="lines",
        line={"color": theme.color(reference.role), "dash": reference.dash, "width": 1.5},
        hovertemplate=label + "<extra></extra>",
    )


def add_zone(figure: go.Figure, low: float, high: float, label: str, role: str = "zone") -> None:
    """Shade a band of the vertical axis and name it inside the plot."""
    figure.add_hrect(
        y0=low,
        y1=high,
        fillcolor=theme.color(role),
        opacity=0.1,
        line_width=0,
        annotation={
            "text": label,
            "x": 1,
            "xanchor": "right",
            "y": low,
            "yanchor": "bottom",
            "font": {"size": 11, "color": theme.color("muted")},
        },
    )


def loss_curves(
    metrics: pl.DataFrame, stage: str = "pretrain", target: float | None = None
) -> go.Figure:
    """Draw the training loss, its task part and the held-out loss, in nats per token."""
    lines = (
        Line(Metric.LOSS, "total loss (training batch)", "muted"),
        Line(Metric.TASK_LOSS, "task loss: expected cross-entropy (training batch)", "blue"),
        Line(Metric.VAL_LOSS, "held-out real Rust, last loop", "orange", "dot"),
    )
    references = (Reference(target, "target: final loss below"),)
    return curves(
        metrics,
        stage,
        lines,
        title="Loss" if stage == "pretrain" else f"Loss, {stage.replace('_', ' ')} stage",
        y_title="nats per token",
        references=references,
    )


def bits_per_byte(
    metrics: pl.DataFrame,
    compression: dict[str, float] | None = None,
    target: float | None = None,
    *,
    stage: str = "pretrain",
    n_loops: int = 1,
) -> go.Figure:
    """Draw held-out bits per byte of real Rust and of TinyRust, beside two compressors.

    Args:
        compression: `xz_bits_per_byte` and `zstd_bits_per_byte` of the same held-out real Rust.
        target: the profile's own line for real Rust.
        n_loops: with two or more, each earlier loop's prediction is a thin grey curve.
    """
    lines = [
        Line(Metric.BITS_PER_BYTE, "real Rust, held out", "blue"),
        Line(Metric.BITS_PER_BYTE_TINYRUST, "TinyRust, held out (generated)", "gold", "dot"),
    ]
    lines += [
        Line(
            f"{Metric.BITS_PER_BYTE_LOOP}{i}",
            f"real Rust after loop {i}",
            "muted",
            _DASHES[i % 3],
            1.0,
        )
        for i in range(1, n_loops)
    ]
    compression = compression or {}
    references = (
        Reference(
            compression.get("xz_bits_per_byte"), "xz -9e on the same text:", "purple", "dash"
        ),
        Reference(
            compression.get("zstd_bits_per_byte"), "zstd -19 on the same text:", "green", "longdash"
        ),
        Reference(target, "target: below", "text", "dot"),
    )
    figure = curves(
        metrics,
        stage,
        lines,
        title="Held-out bits per byte",
        y_title="bits per byte (lower is better)",
        references=references,
    )
    _show_late_part(figure, [r.value for r in references if r.value])
    return figure


def _show_late_part(figure: go.Figure, bounds: Sequence[float]) -> None:
    """Cut the steep beginning off the vertical axis, so that the lines compared with are apart."""
    lasts = [float(trace.y[-1]) for trace in figure.data]
    highest = max((float(max(trace.y)) for trace in figure.data), default=0.0)
    wanted = 2.0 * max([*lasts, *bounds], default=0.0)
    if wanted and highest > wanted:
        figure.update_yaxes(range=[0, wanted])


def token_entropy(metrics: pl.DataFrame, vocab_size: int, *, stage: str = "pretrain") -> go.Figure:
    """Draw the next-token entropy against the cross-entropy, ln V and the brief's band."""
    cross_entropy = "cross-entropy (a calibrated model has H close to it)"
    figure = curves(
        metrics,
        stage,
        (
            Line(Metric.TOKEN_ENTROPY, "token entropy H, held-out real Rust", "blue"),
            Line(Metric.VAL_LOSS, cross_entropy, "orange", "dot"),
        ),
        title="Token entropy",
        y_title="nats",
        references=(Reference(math.log(vocab_size), "ln V, a uniform guess:", "muted", "dash"),),
    )
    if "missing" not in (figure.layout.meta or {}):
        low, high = BRIEF_ENTROPY_BAND
        add_zone(figure, low, high, "brief's band 6 to 8 (only an untrained model lies here)")
        figure.update_yaxes(rangemode="tozero")
    return figure


def calibration_gap(metrics: pl.DataFrame, *, stage: str = "pretrain") -> go.Figure:
    """Draw token entropy minus cross-entropy: above 0 too unsure, below 0 too sure."""
    figure = curves(
        metrics,
        stage,
        (Line(Metric.CALIBRATION_GAP, "token entropy minus cross-entropy", "blue"),),
        title="Calibration gap",
        y_title="nats",
        references=(Reference(0.0, "calibrated:", "muted"),),
    )
    if "missing" not in (figure.layout.meta or {}):
        add_zone(figure, *HEALTHY_GAP, "healthy: within 0.3 nats of zero")
    return figure


def exit_entropy(metrics: pl.DataFrame, n_loops: int, *, stage: str = "pretrain") -> go.Figure:
    """Draw the entropy of the exit distribution against its bound ln R."""
    title = "Exit entropy"
    if n_loops < 2:
        return missing_figure(title, "the model has one loop, so there is no exit to choose.")
    bound = math.log(n_loops)
    figure = curves(
        metrics,
        stage,
        (Line(Metric.EXIT_ENTROPY, "exit entropy", "blue"),),
        title=title,
        y_title="nats",
        references=(Reference(bound, f"ln {n_loops}, all loops equally likely:", "muted"),),
    )
    if "missing" not in (figure.layout.meta or {}):
        label = "collapsed: one loop takes nearly all"
        add_zone(figure, 0.0, COLLAPSED_EXIT * bound, label, "orange")
        figure.update_yaxes(range=[0, bound * 1.1])
    return figure


def exit_distribution(metrics: pl.DataFrame, n_loops: int, *, stage: str = "pretrain") -> go.Figure:
    """Draw the chance of leaving at each loop over the steps, as a stacked area."""
    title = "Where tokens leave the loops"
    if n_loops < 2:
        return missing_figure(title, "the model has one loop, so there is no exit to choose.")
    names = [f"{Metric.EXIT_PDF}{i}" for i in range(1, n_loops + 1)]
    found = [series(metrics, stage, name) for name in names]
    if not all(rows.height for rows in found):
        return missing_figure(title, f"stage {stage} recorded no exit distribution.")
    figure = base_figure(title, "optimiser step", "share of tokens")
    keep = pl.int_range(pl.len()) % max(1, found[0].height // 500) == 0
    for i, (rows, shade) in enumerate(zip(found, theme.ramp(n_loops), strict=True), start=1):
        rows = rows.filter(keep)
        figure.add_scatter(
            x=rows["step"].to_numpy(),
            y=rows["value"].to_numpy(),
            name=f"loop {i}",
            mode="lines",
            stackgroup="exit",
            fillcolor=shade,
            line={"color": theme.color("background"), "width": 1},
            hovertemplate=f"step %{{x}}: loop {i} takes %{{y:.1%}}<extra></extra>",
        )
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return figure


def throughput(
    metrics: pl.DataFrame, stage: str = "pretrain", target: float | None = None
) -> go.Figure:
    """Draw training tokens per second."""
    return curves(
        metrics,
        stage,
        (Line(Metric.TOKENS_PER_S, "training tokens per second", "blue"),),
        title="Training speed",
        y_title="tokens per second",
        references=(Reference(target, "target: at least", "text", "dot"),),
    )


def learning_rate(metrics: pl.DataFrame, stage: str = "pretrain") -> go.Figure:
    """Draw the learning rate that was used (warm-up, stable, decay)."""
    return curves(
        metrics,
        stage,
        (Line(Metric.LEARNING_RATE, "learning rate", "blue"),),
        title="Learning rate",
        y_title="learning rate",
    )


def gradient_norm(metrics: pl.DataFrame, stage: str = "pretrain") -> go.Figure:
    """Draw the global gradient norm before clipping."""
    return curves(
        metrics,
        stage,
        (Line(Metric.GRAD_NORM, "gradient norm before clipping", "blue"),),
        title="Gradient norm",
        y_title="norm",
    )


def ternary_codes(metrics: pl.DataFrame, stage: str = "pretrain") -> go.Figure:
    """Draw the share of zero codes and of codes that changed since the last look."""
    figure = curves(
        metrics,
        stage,
        (
            Line(Metric.ZERO_FRACTION, "codes that are zero", "blue"),
            Line(Metric.FLIP_RATE, "codes changed since the last look", "orange", "dash"),
        ),
        title="Ternary weights",
        y_title="share of codes",
    )
    if "missing" not in (figure.layout.meta or {}):
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure
