"""From plain objects to safe HTML: the Jinja environment, its filters and the page's policy.

Everything is escaped unless it is one of our own assets. Three fences keep model output inert: it
is escaped, JSON inside a page cannot close its script element, and the content security policy
names the hashes of the only scripts that may run and allows no request to any host.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import polars as pl
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, RustLexer

from nanochat_lib.report.content.readings import number

ASSETS = Path(__file__).parents[1] / "assets"
# Control and direction-changing characters, which could hide or reorder what a model wrote.
HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


@cache
def environment() -> jinja2.Environment:
    """Return the template environment, with autoescape on for every template."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"rust": rust, "visible": visible, "spec": figure_json, "table": table}
    return found


def asset(name: str) -> Markup:
    """Return one of our own stylesheets or scripts, not escaped."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def render(template: str, **values: Any) -> str:
    """Return a rendered page as text that can be written as UTF-8."""
    text = environment().get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")


def content_policy(*scripts: str, shared: bool = False) -> str:
    """Return a policy that runs these scripts and nothing else, and requests nothing.

    Args:
        shared: also allow script files beside the page (the shared plotting script).
    """
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
    files = " 'self' file:" if shared else ""
    return (
        f"default-src 'none'; script-src {hashes}{files}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def visible(text: str) -> str:
    """Return text with hidden characters written out as `\\u{...}`."""
    return HIDDEN.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", str(text))


def rust(code: str) -> Markup:
    """Return Rust as escaped, coloured HTML."""
    return Markup(highlight(visible(code), RustLexer(stripnl=False), HtmlFormatter(nowrap=True)))


def python_html(code: str) -> Markup:
    """Return Python as escaped, coloured HTML."""
    return Markup(highlight(visible(code), PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)))


def json_text(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: no `<` can close it."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def figure_json(figure: go.Figure) -> Markup:
    """Return a figure for a page: without template and title, which the page gives it."""
    bare = go.Figure(figure)
    has_label_on_top = any(
        note.yanchor == "bottom" and note.y == 1 for note in bare.layout.annotations
    )
    top = 30 if has_label_on_top else 12
    bare.update_layout(template=None, title=None, meta=None, margin={"t": top})
    return json_text(bare.to_json())


def table(frame: pl.DataFrame, *, raw: bool = False) -> Markup:
    """Return a frame as an HTML table, numbers to the right.

    Args:
        raw: keep the underscores of column names, where these are settings or run ids.
    """
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    names = frame.columns if raw else [name.replace("_", " ") for name in frame.columns]
    heads = [_cell("th", name, n) for name, n in zip(names, numeric, strict=True)]
    lines = [
        [_cell("td", _text(value), n) for value, n in zip(row, numeric, strict=True)]
        for row in frame.iter_rows()
    ]
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(line)) for line in lines)
    head = Markup("").join(heads)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _cell(tag: str, text: str, numeric: bool) -> Markup:
    scope = ' scope="col"' if tag == "th" else ""
    kind = ' class="n"' if numeric else ""
    return Markup(f"<{tag}{scope}{kind}>{escape(visible(text))}</{tag}>")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
