"""Look at ternary weights: codes as an image, how many are zero, scales, what each loop changes.

In: frames of `evals.inside.weights` and a function that returns the codes of a matrix. Out:
widgets whose figures follow the theme.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from nanochat_lib.report.plots import theme
from nanochat_lib.report.widgets.listing import table_html
from nanochat_lib.report.widgets.look import LiveFigure, framed, live_figure, palette, row

WINDOW = 192  # rows and columns of codes on the screen at once
_MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")

Codes = Callable[[int, str], tuple[np.ndarray, float]]  # layer from 0, matrix -> codes, scale


class CodeViewer:
    """One matrix at a time: a window of its codes as an image, and its numbers."""

    def __init__(self, rows: pl.DataFrame, codes: Codes) -> None:
        self._codes = codes
        layers, matrices = (
            rows["layer"].unique(maintain_order=True),
            rows["matrix"].unique(maintain_order=True),
        )
        size = {"width": "180px"}
        self.layer = widgets.Dropdown(
            description="layer", options=[(str(n), n - 1) for n in layers], layout=size
        )
        self.matrix = widgets.Dropdown(description="matrix", options=list(matrices), layout=size)
        self.top, self.left = (
            widgets.IntSlider(
                0, min=0, max=0, step=16, description=name, continuous_update=False,
                layout={"width": "300px"},
            )
            for name in ("first row", "first column")
        )  # fmt: skip
        self.said = widgets.HTML()
        self.codes, self.scale = codes(0, matrices[0])
        self.figure = LiveFigure(self._draw)
        self.widget = framed(
            row(self.layer, self.matrix, self.top, self.left), self.said, self.figure.widget,
            on_theme=self.figure.set_dark,
        )  # fmt: skip
        self.layer.observe(lambda _: self._open(), "value")
        self.matrix.observe(lambda _: self._open(), "value")
        self.top.observe(lambda _: self.figure.redraw(), "value")
        self.left.observe(lambda _: self.figure.redraw(), "value")
        self._open()

    def _open(self) -> None:
        self.codes, self.scale = self._codes(self.layer.value, self.matrix.value)
        for slider, length in zip((self.top, self.left), self.codes.shape, strict=True):
            slider.max = max(length - WINDOW, 0)
            slider.disabled = length <= WINDOW
        self.said.value = _facts(self.codes, self.scale)
        self.figure.redraw()

    @property
    def window(self) -> np.ndarray:
        """Return the codes on the screen."""
        top, left = self.top.value, self.left.value
        return self.codes[top : top + WINDOW, left : left + WINDOW]

    def _draw(self, mode: str) -> go.Figure:
        colors, part = palette(mode), self.window
        steps = [colors["orange"], colors["background"], colors["blue"]]
        figure = go.Figure(
            go.Heatmap(
                z=part, x0=self.left.value, y0=self.top.value, dx=1, dy=1, zmin=-1.5, zmax=1.5,
                colorscale=_three(steps), xgap=0, ygap=0,
                colorbar={"tickvals": [-1, 0, 1], "title": "code", "thickness": 14},
                hovertemplate="row %{y}, column %{x}: %{z}<extra></extra>",
            )
        )  # fmt: skip
        n, k = part.shape
        figure.update_layout(
            template=theme.template(mode), height=560, hovermode="closest",
            title=f"Codes of {self.matrix.value}, layer {self.layer.label}: {n} x {k} of "
            f"{self.codes.shape[0]} x {self.codes.shape[1]}",
        )  # fmt: skip
        figure.update_yaxes(autorange="reversed", title="row (output)", showgrid=False)
        figure.update_xaxes(title="column (input)", showgrid=False, constrain="domain")
        return figure.update_yaxes(scaleanchor="x")


def weight_figure(rows: pl.DataFrame) -> widgets.VBox:
    """Return share of zeros and scale of every matrix, by layer, as a widget."""
    return live_figure(lambda mode: _shares_and_scales(rows, mode))


def change_figure(changes: pl.DataFrame) -> widgets.VBox:
    """Return how much each layer changes the residual stream in each loop, as a widget."""
    return live_figure(lambda mode: _changes(changes, mode))


def _shares_and_scales(rows: pl.DataFrame, mode: str) -> go.Figure:
    titles = ("Share of zero codes", "Scale of the weights")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.09)
    colors = [palette(mode)[role] for role in theme.SERIES]
    for i, (layer, part) in enumerate(_by(rows, "layer")):
        look = {
            "x": part["matrix"].to_list(), "name": f"layer {layer}", "mode": "lines+markers",
            "legendgroup": str(layer), "line": {"color": colors[i % len(colors)], "width": 1},
            "marker": {"symbol": _MARKS[i % len(_MARKS)], "size": 9},
        }  # fmt: skip
        figure.add_scatter(y=part["zero"].to_list(), **look, row=1, col=1)
        figure.add_scatter(y=part["scale"].to_list(), **look, showlegend=False, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    return figure.update_layout(template=theme.template(mode), height=360, hovermode="x")


def _changes(changes: pl.DataFrame, mode: str) -> go.Figure:
    figure = go.Figure()
    colors = [palette(mode)[role] for role in theme.SERIES]
    for i, (layer, part) in enumerate(_by(changes, "layer")):
        figure.add_scatter(
            x=part["loop"].to_list(), y=part["change"].to_list(), name=f"layer {layer}",
            mode="lines+markers", line={"color": colors[i % len(colors)]},
            marker={"symbol": _MARKS[i % len(_MARKS)], "size": 9},
            hovertemplate="loop %{x}: changed by %{y:.1%}<extra>layer " + str(layer) + "</extra>",
        )  # fmt: skip
    figure.update_layout(
        template=theme.template(mode), height=340,
        title="Change of the residual stream by each layer, |out - in| / |in|",
    )  # fmt: skip
    figure.update_xaxes(title="loop", dtick=1)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def _by(rows: pl.DataFrame, column: str) -> list[tuple[int, pl.DataFrame]]:
    parts = rows.partition_by(column, as_dict=True, maintain_order=True)
    return [(key[0], part) for key, part in parts.items()]


def _three(colors: list[str]) -> list[tuple[float, str]]:
    """Return a scale of three flat colours."""
    borders = (0, 1 / 3, 2 / 3, 1)
    return [
        (place, color)
        for color, ends in zip(colors, pairwise(borders), strict=True)
        for place in ends
    ]


def _facts(codes: np.ndarray, scale: float) -> str:
    n_packed = -(-codes.size // 4)
    shares = [f"{(codes == code).mean():.1%}" for code in (-1, 0, 1)]
    values = (*shares, f"{scale:.5f}", f"{codes.size * 4:,} B", f"{n_packed:,} B")
    header = ("-1", "0", "+1", "scale", "float32", "2 bits each")
    return table_html([values], header, numeric=len(header))
