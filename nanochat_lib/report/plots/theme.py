"""One colour-blind-safe palette, a light and a dark plotly template, and how a page picks one.

Figures are drawn in the light palette. A page drops `layout.template` from every figure, carries
both templates once, and swaps each light colour for its dark partner when the reader's system asks
for dark (`swap_table`), so that a figure holds no second copy of its data.

Every pair of series colours stays apart under simulated protanopia, deuteranopia and tritanopia,
and every colour has at least 3:1 contrast with its background: `tests/test_figures.py` measures
both. Series also differ by dash or marker, so colour is never the only sign.
"""

from __future__ import annotations

import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# role -> (on light, on dark); the first five are series colours, in the order they are used
SERIES: dict[str, tuple[str, str]] = {
    "blue": ("#2f7fd6", "#6cb0f5"),
    "orange": ("#b5480a", "#e0662d"),
    "green": ("#0a6a50", "#3fd6a2"),
    "purple": ("#5e2a7e", "#a566e0"),
    "gold": ("#b38a00", "#f0d24a"),
    "muted": ("#6b7280", "#8892a3"),
}
SURFACE: dict[str, tuple[str, str]] = {
    "background": ("#ffffff", "#171a20"),
    "text": ("#1b1f26", "#e7e9ee"),
    "grid": ("#e4e7ec", "#2c313b"),
    "axis": ("#8b93a1", "#79818f"),
    "zone": ("#0a6a51", "#3fd6a3"),
}
# Ordered colours for areas (loops 1..R): dark blue to yellow, readable without red-green vision.
RAMP = (
    "#10295c", "#2f4a78", "#58607a", "#7d7c78", "#a39a70", "#cbb964", "#e6d04e", "#fee838",
)  # fmt: skip

PLOTLY_CONFIG: dict[str, object] = {
    "displaylogo": False,
    "showSendToCloud": False,  # the modebar's share button would upload the figure
    "responsive": True,
    "scrollZoom": False,
    "toImageButtonOptions": {"format": "svg"},
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}


def color(role: str) -> str:
    """Return the light colour of a role; pages swap it for the dark one."""
    return (SERIES.get(role) or SURFACE[role])[0]


def series_color(index: int) -> str:
    """Return the colour of series number `index` (from 0); repeats after five."""
    roles = [role for role in SERIES if role != "muted"]
    return color(roles[index % len(roles)])


def ramp(n: int) -> list[str]:
    """Return `n` ordered area colours, from the first to the last of the ramp."""
    last = len(RAMP) - 1
    return [RAMP[round(i * last / max(n - 1, 1))] for i in range(n)]


def swap_table() -> dict[str, str]:
    """Return light colour -> dark colour, for the page's script."""
    return dict((*SERIES.values(), *SURFACE.values()))


def template(mode: str = "light") -> go.layout.Template:
    """Return the plotly template of a mode ("light" or "dark")."""
    pick = 0 if mode == "light" else 1
    text, grid = SURFACE["text"][pick], SURFACE["grid"][pick]
    background, axis_line = SURFACE["background"][pick], SURFACE["axis"][pick]
    axis = {
        "gridcolor": grid,
        "linecolor": axis_line,
        "zerolinecolor": grid,
        "tickcolor": axis_line,
        "ticks": "outside",
        "showline": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": text},
            "paper_bgcolor": background,
            "plot_bgcolor": background,
            "colorway": [pair[pick] for role, pair in SERIES.items() if role != "muted"],
            # one side each: margins that answer each other make plotly redraw until it gives up
            "xaxis": {**axis, "automargin": "bottom"},
            "yaxis": {**axis, "automargin": "left", "showline": False, "ticks": ""},
            "hoverlabel": {
                "bgcolor": background,
                "font": {"color": text},
                "bordercolor": axis_line,
            },
            "hovermode": "closest",
            "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0, "xanchor": "left"},
            "margin": {"l": 64, "r": 24, "t": 48, "b": 56},
            "title": {"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 16}},
            "bargap": 0.25,
        }
    )
