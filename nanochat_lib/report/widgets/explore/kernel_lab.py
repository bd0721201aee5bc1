"""The kernel lab: choose a product, and see its time beside the memory's limit and the reference.

In: `kernels.bench.lab`. Out: a widget. Timing takes a second or two; machines are shared, so read
ratios within one measurement, not microseconds.
"""

from __future__ import annotations

import html

import ipywidgets as widgets
import plotly.graph_objects as go

import kernels
from kernels.bench.lab import CACHED_MB, Question, lab_rows
from kernels.bench.memory import COLD_MB
from kernels.bench.timing import Row
from nanochat_lib.report.plots import theme
from nanochat_lib.report.widgets.listing import table_html
from nanochat_lib.report.widgets.look import LiveFigure, framed, palette, row

SIZES = (256, 512, 1024, 2048, 2560, 4096, 6912, 11008)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class KernelLab:
    """Choose rows, columns, tokens and packing; measure; compare."""

    def __init__(self, question: Question | None = None) -> None:
        self.rows: list[Row] = []
        self._make(question or Question(1024, 1024))
        self.measure()

    def _make(self, first: Question) -> None:
        size, style = {"width": "200px"}, {"description_width": "90px"}
        self.n, self.k, self.batch = (
            widgets.Combobox(
                value=str(value), options=[str(one) for one in offered], description=name,
                continuous_update=False, layout=size, style=style,
            )
            for name, value, offered in (
                ("rows N", first.n, SIZES),
                ("columns K", first.k, SIZES),
                ("tokens B", first.batch, BATCHES),
            )
        )  # fmt: skip
        self.packing = widgets.Dropdown(
            options=list(kernels.PACKINGS), value=first.packing, description="packing", layout=size,
            style=style,
        )  # fmt: skip
        self.place = widgets.Dropdown(
            options=[("in cache: one matrix", CACHED_MB), (f"memory: {COLD_MB} MB", COLD_MB)],
            value=first.set_mb, description="weights", layout={"width": "270px"}, style=style,
        )  # fmt: skip
        self.go = widgets.Button(description="Measure", icon="clock-o", button_style="primary")
        self.said = widgets.HTML()
        self.figure = LiveFigure(lambda mode: time_bars(self.rows, mode))
        self.widget = framed(
            row(self.n, self.k, self.batch), row(self.packing, self.place, self.go),
            self.said, self.figure.widget, on_theme=self.figure.set_dark,
        )  # fmt: skip
        self.go.on_click(lambda _: self.measure())

    def question(self) -> Question:
        """Return what is chosen.

        Raises:
            ValueError: a number is missing, or out of range.
        """
        numbers = []
        for field in (self.n, self.k, self.batch):
            if not field.value.strip().isdigit():
                name = field.description
                raise ValueError(f"{name}: expected a whole number, found {field.value!r}")
            numbers.append(int(field.value))
        question = Question(*numbers, self.packing.value, self.place.value)
        question.check()
        return question

    def measure(self) -> None:
        """Time the chosen product on every level of this machine, and show it."""
        self.go.disabled, self.go.description = True, "Measuring …"
        try:
            self.rows = lab_rows(self.question())
            self.said.value = summary_html(self.rows)
        except ValueError as error:
            text = f"Nothing was measured: {error}."
            self.said.value = f'<div class="nano-error">{html.escape(text)}</div>'
        finally:
            self.go.disabled, self.go.description = False, "Measure"
        self.figure.redraw()


def memory_limit(rows: list[Row]) -> Row:
    """Return the faster of the two patterns of plain reading."""
    return min((row for row in rows if row["kernel"] == "read"), key=lambda row: row["us_median"])


def summary_html(rows: list[Row]) -> str:
    """Return the table of a measurement: time, rate, share of the limit, agreement."""
    limit = memory_limit(rows)["us_median"]
    reference = next(row["us_median"] for row in rows if row["kernel"] == "reference")
    shown = []
    for found in rows:
        is_reading = found["kernel"] == "read"
        time = float(found["us_median"])
        shown.append(
            (
                _label(found),
                "—" if is_reading else "yes" if found["equals_reference"] else "NO",
                f"{time:,.1f} µs",
                f"{found['gb_per_s']:.1f}",
                "" if is_reading else f"{found['gops']:.1f}",
                f"{limit / time:.0%}",
                f"{reference / time:,.1f} times",
            )
        )
    header = ("what", "equals the reference", "median time", "GB/s of weights", "GOP/s",
              "of the memory's limit", "against the reference")  # fmt: skip
    return table_html(shown, header, numeric=5)


def time_bars(rows: list[Row], mode: str) -> go.Figure:
    """Draw the times as bars on a logarithmic axis, with the memory's limit as a line."""
    colors = palette(mode)
    figure = go.Figure()
    figure.update_layout(template=theme.template(mode), height=320, showlegend=False)
    if not rows:
        return figure
    bars = sorted(rows, key=lambda found: -found["us_median"])
    roles = {"ternary": "blue", "read": "green", "reference": "muted"}
    figure.add_bar(
        y=[_label(found) for found in bars],
        x=[found["us_median"] for found in bars],
        orientation="h",
        marker={"color": [colors[roles[str(found["kernel"])]] for found in bars]},
        text=[f"{found['us_median']:,.1f} µs" for found in bars],
        textposition="auto",
        hovertemplate="%{y}: %{x:,.1f} µs<extra></extra>",
    )
    limit = memory_limit(rows)["us_median"]
    figure.add_vline(limit, line={"dash": "dash", "width": 1.5, "color": colors["text"]})
    first = rows[0]
    figure.update_layout(
        title=f"{first['n']} x {first['k']}, {first['batch']} token(s): one product, one thread"
    )
    figure.update_xaxes(type="log", title="µs, logarithmic; dashed: reading the weights once")
    return figure


def _label(found: Row) -> str:
    if found["kernel"] == "read":
        return f"reading, {found['backend']}"
    if found["kernel"] == "reference":
        return "reference (NumPy)"
    return f"{found['backend']}, {found['packing']}"
