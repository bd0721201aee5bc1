"""What a page with figures carries besides them: templates, styles, scripts, its policy.

The plotting script (5 MB) is embedded, or one copy lies beside the pages that share it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nanochat_lib.report.pages.html import asset, content_policy, json_text
from nanochat_lib.report.plots import theme
from nanochat_lib.runs import write_atomic


def drawing_parts(plotly_src: str = "") -> dict[str, Any]:
    """Return what the templates call `page`: policy, style, setup and scripts.

    Args:
        plotly_src: relative address of the shared plotting script; empty: embed it.
    """
    script = asset("report.js")
    plotly_js = Markup("") if plotly_src else plotly_script()
    scripts = (script,) if plotly_src else (script, plotly_js)
    return {
        "policy": content_policy(*scripts, shared=bool(plotly_src)),
        "style": asset("style.css"),
        "setup": json_text(page_setup()),
        "plotly_src": plotly_src,
        "plotly_js": plotly_js,
        "script": script,
    }


def page_setup() -> dict[str, Any]:
    """Return what the page's script needs once: both templates, the colour swap, the settings."""
    modes = ("light", "dark")
    return {
        "templates": {mode: theme.template(mode).to_plotly_json() for mode in modes},
        "swap": theme.swap_table(),
        "config": theme.PLOTLY_CONFIG,
    }


def write_shared_plotly(folder: Path) -> Path:
    """Write the plotting script that several pages share, unless it is there already."""
    path, text = folder / "plotly.min.js", plotly_script()
    if not path.exists() or path.stat().st_size != len(text.encode("utf-8")):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


@cache
def plotly_script() -> Markup:
    """Return the plotting library, as it stands inside a script element."""
    return Markup(get_plotlyjs().replace("\r\n", "\n"))
