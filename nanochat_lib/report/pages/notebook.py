"""Executed notebooks as offline HTML: figures stay interactive, nothing is requested.

Stock `nbconvert --to html` drops plotly figures (their only output is a plotly mime bundle) and
pulls scripts from the network. This exporter puts that bundle first, draws it with the plotting
script shared by all runs (or embedded), removes MathJax and widgets, and forbids requests by a
content security policy.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbformat import ValidationError
from nbformat.reader import NotJSONError
from traitlets.config import Config

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.report.pages.drawing import drawing_parts, write_shared_plotly
from nanochat_lib.report.pages.html import ASSETS, asset, json_text, python_html
from nanochat_lib.runs import write_atomic

PLOTLY = "application/vnd.plotly.v1+json"
TEXTS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


def export_notebook(ipynb: Path, html: Path, *, plotly_src: str = "") -> Path:
    """Write an executed notebook as one HTML page that opens offline.

    Args:
        ipynb: the notebook, with its outputs.
        html: where the page goes.
        plotly_src: relative address of a shared plotting script; empty: embed it (5 MB).

    Raises:
        WorkbenchError: the file is not a notebook.
    """
    try:
        notebook = nbformat.read(ipynb, as_version=4)
    except (NotJSONError, ValidationError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{ipynb} is not a readable notebook: {error}.") from error
    _number_figures(notebook)
    page = drawing_parts(plotly_src)
    page |= {
        "title": ipynb.stem,
        "style": asset("style.css") + asset("notebook.css"),
        "has_figures": bool(_figures(notebook)),
    }
    body, _ = _exporter().from_notebook_node(notebook, resources={"page": page})
    write_atomic(html, body.encode("utf-8", "replace").decode("utf-8"))
    return html


def export_notebooks(run_dir: Path) -> list[Path]:
    """Export every executed notebook of a run beside it, with the shared plotting script."""
    found = sorted((run_dir / "notebooks").glob("*.ipynb"))
    if found:
        write_shared_plotly(run_dir.parent.parent / "assets")
    source = "../../../assets/plotly.min.js"
    return [export_notebook(p, p.with_suffix(".html"), plotly_src=source) for p in found]


def figure_spec(value: Any) -> Markup:
    """Return a figure's JSON without its template, safe inside a script element."""
    layout = {key: part for key, part in value.get("layout", {}).items() if key != "template"}
    return json_text({"data": value.get("data", []), "layout": layout})


def figure_height(value: Any) -> int:
    """Return a figure's height in pixels."""
    height = value.get("layout", {}).get("height")
    return int(height) if isinstance(height, int | float) else 400


def figure_label(value: Any) -> str:
    """Return a figure's title as plain text, for readers that cannot see it."""
    title = value.get("layout", {}).get("title") or ""
    text = title.get("text", "") if isinstance(title, dict) else title
    return re.sub(r"<[^>]*>", "", str(text)) or "figure"


def _exporter() -> HTMLExporter:
    config = Config()
    config.NbConvertBase.display_data_priority = [PLOTLY, *TEXTS]
    config.HTMLExporter.template_paths = [str(ASSETS), *HTMLExporter().template_paths]
    config.HTMLExporter.exclude_input_prompt = True
    config.HTMLExporter.exclude_output_prompt = True
    config.HTMLExporter.filters = {
        "python_html": python_html,
        "figure_spec": figure_spec,
        "figure_height": figure_height,
        "figure_label": figure_label,
    }
    return HTMLExporter(config=config, template_file="notebook.html.j2")


def _figures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [out for out in outputs if PLOTLY in out.get("data", {})]


def _number_figures(notebook: nbformat.NotebookNode) -> None:
    """Give every figure its own id, and parse bundles that were stored as text."""
    for number, output in enumerate(_figures(notebook)):
        value = output["data"][PLOTLY]
        output["data"][PLOTLY] = json.loads(value) if isinstance(value, str) else value
        output["metadata"]["figure_id"] = f"figure-{number}"
