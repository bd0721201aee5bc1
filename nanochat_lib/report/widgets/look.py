"""What all widgets look like: one style sheet, and the theme of the page they are shown in.

The style sheet uses JupyterLab's own colours, so plain widgets follow its theme by themselves;
figures cannot, and are told by a `ThemeWatch`. Text that comes from anywhere but this project is
escaped before it goes into a widget of HTML (`html.escape`), which shows what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from nanochat_lib.report.plots import theme

ASSETS = Path(__file__).parent / "assets"


class ThemeWatch(anywidget.AnyWidget):
    """An invisible widget that knows whether the page around it is dark."""

    _esm = ASSETS / "theme.js"
    dark = traitlets.Bool(False).tag(sync=True)


@cache
def _style() -> str:
    return (ASSETS / "widgets.css").read_text(encoding="utf-8")


def shown(content: str) -> str:
    """Return HTML with the style sheet, for outputs that are not widgets."""
    return f'<style>{_style()}</style><div class="nano">{content}</div>'


def framed(*children: widgets.Widget, on_theme: Callable[[bool], None]) -> widgets.VBox:
    """Return children in a column with the style sheet; figures are told about the theme."""
    watch = ThemeWatch()
    watch.observe(lambda change: on_theme(change["new"]), "dark")
    sheet = widgets.HTML(f"<style>{_style()}</style>", layout={"display": "none"})
    box = widgets.VBox([sheet, watch, *children], layout={"overflow": "visible"})
    return box.add_class("nano")


def row(*children: widgets.Widget) -> widgets.HBox:
    """Return children side by side, wrapped where the window is narrow."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})


class LiveFigure:
    """A figure that is drawn again in place, when what it shows or the theme changes.

    Each FigureWidget carries a copy of the plotting script (5 MB), so one is kept and its content
    replaced.
    """

    def __init__(self, draw: Callable[[str], go.Figure]) -> None:
        """Keep how to draw: called with "light" or "dark"."""
        self._draw, self.mode = draw, "light"
        self.widget = go.FigureWidget(self._fresh())
        self.widget._config = theme.PLOTLY_CONFIG  # no public way to set it

    def redraw(self) -> None:
        """Draw what there is to show now."""
        fresh = self._fresh()
        with self.widget.batch_update():
            self.widget.data = ()
            self.widget.layout = fresh.layout
            self.widget.add_traces(fresh.data)

    def _fresh(self) -> go.Figure:
        return self._draw(self.mode).update_layout(autosize=True)  # as wide as the notebook

    def set_dark(self, is_dark: bool) -> None:
        """Draw in the colours of the dark or the light theme."""
        self.mode = "dark" if is_dark else "light"
        self.redraw()


def live_figure(draw: Callable[[str], go.Figure]) -> widgets.VBox:
    """Return a widget with one figure that follows the theme."""
    figure = LiveFigure(draw)
    return framed(figure.widget, on_theme=figure.set_dark)


def palette(mode: str) -> dict[str, str]:
    """Return the colour of every role of `theme` in a mode."""
    pick = int(mode == "dark")
    return {role: pair[pick] for role, pair in (theme.SERIES | theme.SURFACE).items()}
