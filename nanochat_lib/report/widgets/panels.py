"""The dashboard's figure: nine small plots in one FigureWidget, redrawn in place.

In: a `MetricTail` and the run's configuration. Out: one widget whose traces are replaced in one
`batch_update`, and only those whose metric grew. What each plot shows, and the bands and bounds
beside it, is the table `_panels`; the long explanations are in the report (`figures.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nanochat_lib.records import Metric
from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.figures import BRIEF_ENTROPY_BAND, COLLAPSED_EXIT, MAX_MARKED
from nanochat_lib.report.widgets.look import palette
from nanochat_lib.report.widgets.tail import MetricTail

POINTS = 400  # most points of a curve: a plot is about that many pixels wide
HEIGHT = 860
_DASHES = ("dot", "dash", "dashdot")


@dataclass(frozen=True)
class Trace:
    """One curve: its metric, label and look; `stage` empty means the stage that is shown."""

    metric: str
    label: str
    role: str = "blue"
    dash: str = "solid"
    stage: str = ""
    area: str = ""  # colour of a stacked area
    width: float = 1.6


@dataclass(frozen=True)
class Panel:
    """One small plot and where its legend goes."""

    title: str
    traces: tuple[Trace, ...]
    axis: dict[str, Any]
    legend: tuple[str, str] = ("right", "top")  # corner
    bands: tuple[tuple[float, float, str, str], ...] = ()  # low, high, role, label
    bound: tuple[float, str] | None = None


def _panels(n_loops: int, vocab_size: int) -> list[Panel]:
    most = math.log(n_loops) if n_loops > 1 else 1.0
    loops = range(1, n_loops + 1)
    return [
        Panel("Loss, nats per token", (
            Trace(Metric.LOSS, "total", "muted"),
            Trace(Metric.TASK_LOSS, "task"),
            Trace(Metric.VAL_LOSS, "held out", "orange"),
        ), {}),
        Panel("Held-out bits per byte", (
            *(Trace(f"{Metric.BITS_PER_BYTE_LOOP}{i}", f"loop {i}", "muted", _DASHES[i % 3])
              for i in loops if i < n_loops),
            Trace(Metric.BITS_PER_BYTE, f"loop {n_loops} (last)", width=2.4),
            Trace(Metric.BITS_PER_BYTE_TINYRUST, "TinyRust", "gold"),
        ), {"rangemode": "tozero"}, ("left", "bottom")),
        Panel("Tokens per second", (
            Trace(Metric.TOKENS_PER_S, "training", "green"),
            Trace(Metric.COMPLETION_TOKENS_S, "sampled (MaxRL)", "orange", "dash"),
        ), {"rangemode": "tozero"}, ("right", "bottom")),
        Panel("Token entropy, nats", (
            Trace(Metric.TOKEN_ENTROPY, "token entropy"),
            Trace(Metric.VAL_LOSS, "cross-entropy", "orange", "dot"),
        ), {"range": [0, 1.12 * math.log(vocab_size)]}, ("right", "bottom"),
            ((*BRIEF_ENTROPY_BAND, "zone", "brief's band"),), (math.log(vocab_size), "ln V")),
        Panel("Exit entropy, nats", (Trace(Metric.EXIT_ENTROPY, "exit entropy"),),
              {"range": [0, 1.12 * most]}, ("right", "bottom"),
              ((0.0, COLLAPSED_EXIT * most, "orange", "collapsed"),), (most, f"ln {n_loops}")),
        Panel("Where tokens leave the loops", tuple(
            Trace(f"{Metric.EXIT_PDF}{i}", f"loop {i}", area=shade)
            for i, shade in zip(loops, theme.ramp(n_loops), strict=True)
        ), {"range": [0, 1], "tickformat": ".0%"}, ("right", "bottom")),
        Panel("Compile and pass rate (MaxRL)", (
            Trace(Metric.COMPILE_RATE, "compiles", stage="maxrl"),
            Trace(Metric.PASS_RATE, "passes", "orange", stage="maxrl"),
            Trace(Metric.HELD_OUT_COMPILE_RATE, "compiles, held out", "green", "dash", "maxrl"),
            Trace(Metric.HELD_OUT_PASS_RATE, "passes, held out", "purple", "dash", "maxrl"),
        ), {"range": [0, 1.03], "tickformat": ".0%"}, ("left", "top")),
        Panel("Seconds of an update (MaxRL)", (
            Trace(Metric.GENERATE_S, "samples", stage="maxrl"),
            Trace(Metric.WAIT_S, "waits for the judge", "orange", "dash", "maxrl"),
            Trace(Metric.UPDATE_S, "learns", "green", "dot", "maxrl"),
        ), {"rangemode": "tozero"}, ("right", "top")),
        Panel("Gradient norm", (Trace(Metric.GRAD_NORM, "before clipping", "purple"),),
              {"rangemode": "tozero"}),
    ]  # fmt: skip


class Panels:
    """One FigureWidget, and what it shows."""

    def __init__(self, n_loops: int, vocab_size: int) -> None:
        self.shape = (n_loops, vocab_size)
        self._panels = _panels(*self.shape)
        self._drawn: dict[int, tuple[int, int]] = {}  # trace -> (points, last step) as drawn
        self.figure = self._empty_figure()

    @staticmethod
    def shape_of(config: dict[str, Any]) -> tuple[int, int]:
        """Return what of a run's configuration decides the plots: loops and vocabulary."""
        return config["model"]["n_loops"], config["model"]["vocab_size"]

    def draw(self, tail: MetricTail, stage: str) -> None:
        """Show what the metrics of a stage are now; curves that did not grow are left alone."""
        changed = {}
        for number, trace in enumerate(self._traces()):
            curve = tail.curve(trace.stage or stage, trace.metric)
            size = (len(curve.steps), curve.steps[-1] if curve.steps else -1)
            if self._drawn.get(number, (0, -1)) != size:
                changed[number], self._drawn[number] = curve.points(POINTS), size
        if not changed:
            return
        with self.figure.batch_update():
            for number, (steps, values) in changed.items():
                mode = "lines+markers" if len(steps) <= MAX_MARKED else "lines"
                self.figure.data[number].update(
                    x=steps, y=values, visible=bool(len(steps)), mode=mode
                )
            self._say_what_is_missing()

    def forget(self) -> None:
        """Draw every curve again at the next `draw`: another run or stage is shown."""
        self._drawn = dict.fromkeys(range(len(self.figure.data)), (-1, -1))

    def set_dark(self, is_dark: bool) -> None:
        """Draw in the colours of the dark or the light theme."""
        mode = "dark" if is_dark else "light"
        colors = palette(mode)
        with self.figure.batch_update():
            self.figure.layout.template = _small(theme.template(mode))
            for trace, drawn in zip(self._traces(), self.figure.data, strict=True):
                drawn.line.color = colors["background" if trace.area else trace.role]
            for note in self.figure.layout.annotations:
                if note.name == "quiet":
                    note.font.color = colors["muted"]
            for number in range(len(self._panels)):
                legend = self.figure.layout[f"legend{number + 1}" if number else "legend"]
                legend.bgcolor = _faint(colors["background"])

    def _traces(self) -> list[Trace]:
        return [trace for panel in self._panels for trace in panel.traces]

    def _empty_figure(self) -> go.FigureWidget:
        figure = go.FigureWidget(
            make_subplots(
                3, 3, subplot_titles=[panel.title for panel in self._panels],
                horizontal_spacing=0.05, vertical_spacing=0.1,
            )
        )  # fmt: skip
        figure.layout.template = _small(theme.template("light"))
        figure.update_layout(height=HEIGHT, uirevision="kept", showlegend=True, autosize=True)
        figure.update_annotations(font_size=13)
        figure._config = theme.PLOTLY_CONFIG  # the only way to reach a FigureWidget's configuration
        for number, panel in enumerate(self._panels):
            self._add_panel(figure, number, panel)
        return figure

    def _add_panel(self, figure: go.FigureWidget, number: int, panel: Panel) -> None:
        name = f"legend{number + 1}" if number else "legend"
        place = {"row": number // 3 + 1, "col": number % 3 + 1}
        for trace in panel.traces:
            is_named = len(panel.traces) > 1
            style = _style(trace, panel.axis.get("tickformat") == ".0%")
            figure.add_scatter(**style, legend=name, showlegend=is_named, **place)
        figure.update_yaxes(**panel.axis, **place)
        for low, high, role, label in panel.bands:
            figure.add_hrect(
                low, high, fillcolor=theme.color(role), opacity=0.14, line_width=0, **place,
                annotation=_quiet(label, low, "bottom right"),
            )  # fmt: skip
        if panel.bound:
            value, label = panel.bound
            figure.add_hline(
                value, line={"dash": "dot", "width": 1, "color": theme.color("muted")}, **place,
                annotation=_quiet(label, value, "bottom left"),
            )  # fmt: skip
        box = figure.get_subplot(place["row"], place["col"])
        x, y = (
            box.xaxis.domain[panel.legend[0] == "right"],
            box.yaxis.domain[panel.legend[1] == "top"],
        )
        figure.layout[name] = {
            "x": x, "y": y, "xanchor": panel.legend[0], "yanchor": panel.legend[1],
            "orientation": "v", "font": {"size": 10}, "tracegroupgap": 0,
            "bgcolor": _faint(theme.color("background")),
        }  # fmt: skip
        self._add_missing_note(figure, number, place)

    def _add_missing_note(self, figure: go.FigureWidget, number: int, place: dict) -> None:
        figure.add_annotation(
            text="nothing recorded by this stage yet", name="quiet", showarrow=False,
            x=0.5, y=0.5, xref="x domain", yref="y domain", font={"size": 11}, **place,
        )  # fmt: skip

    def _say_what_is_missing(self) -> None:
        """Show the note of every panel that has no point."""
        notes = [n for n in self.figure.layout.annotations if n.text.startswith("nothing")]
        first = 0
        for note, panel in zip(notes, self._panels, strict=True):
            drawn = (self._drawn.get(first + i, (0, -1)) for i in range(len(panel.traces)))
            note.visible = not any(n_points for n_points, _ in drawn)
            first += len(panel.traces)


def _style(trace: Trace, is_share: bool) -> dict[str, Any]:
    line = {"color": theme.color(trace.role), "dash": trace.dash, "width": trace.width}
    style: dict[str, Any] = {"name": trace.label, "line": line, "visible": False}
    style["marker"] = {"size": 4}
    if trace.area:
        line |= {"color": theme.color("background"), "width": 0.5}
        style |= {"stackgroup": "loops", "fillcolor": trace.area, "marker": {"size": 0.1}}
    value = "%{y:.1%}" if is_share else "%{y:.4g}"
    return style | {"hovertemplate": f"step %{{x}}: {value}<extra>{trace.label}</extra>"}


def _quiet(text: str, y: float, position: str) -> dict[str, Any]:
    vertical, side = position.split()
    return {
        "text": text, "name": "quiet", "font": {"size": 10, "color": theme.color("muted")},
        "x": 1 if side == "right" else 0, "y": y, "xanchor": side, "yanchor": vertical,
        "showarrow": False,
    }  # fmt: skip


def _small(template: go.layout.Template) -> go.layout.Template:
    """Return a page's template with the margins and letters of small plots."""
    template.layout.update(
        margin={"l": 40, "r": 12, "t": 36, "b": 32},
        font={"size": 11},
        xaxis={"title": {"font": {"size": 11}}, "nticks": 6},
        yaxis={"title": {"font": {"size": 11}}, "nticks": 6},
    )
    return template


def _faint(color: str) -> str:
    """Return a colour as a see-through one, for legends over curves."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.6)"
