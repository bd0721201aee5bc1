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
import traitlets

ASSETS = Path(__file__).parent / "assets"


class ThemeWatch(anywidget.AnyWidget):
    """An invisible widget that knows whether the page around it is dark."""

    _esm = ASSETS / "theme.js"
    dark = traitlets.Bool(False).tag(sync=True)


@cache
def _style() -> str:
    return (ASSETS / "widgets.css").read_text(encoding="utf-8")


def framed(*children: widgets.Widget, on_theme: Callable[[bool], None]) -> widgets.VBox:
    """Return children in a column with the style sheet; figures are told about the theme."""
    watch = ThemeWatch()
    watch.observe(lambda change: on_theme(change["new"]), "dark")
    sheet = widgets.HTML(f"<style>{_style()}</style>", layout={"display": "none"})
    box = widgets.VBox([sheet, watch, *children])
    return box.add_class("nano")


def row(*children: widgets.Widget) -> widgets.HBox:
    """Return children side by side, wrapped where the window is narrow."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})
