"""Look at programs inside a notebook: escaped listings.

Text written by a model or taken from the outside is always escaped: a `<script>` in it shows as
text. The listings are plain HTML, so they stay in a notebook that ran headless.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML

_CODE = "white-space:pre-wrap;border:1px solid #8886;border-radius:4px;padding:6px;margin:2px 0"


def show_samples(samples: Sequence[dict[str, Any]]) -> HTML:
    """Show what a model wrote: prompt, completion and verdict of each sample."""
    from IPython.display import HTML

    return HTML("".join(_listing(_caption(s), s["prompt"] + s["completion"]) for s in samples))


def show_before_after(examples: Sequence[dict[str, Any]]) -> HTML:
    """Show one task's program before and after stage 3, with both verdicts."""
    from IPython.display import HTML

    parts = []
    for example in examples:
        for when in ("before", "after"):
            caption = f"{example['task_id']} · {when}: {example[f'verdict_{when}']}"
            parts.append(_listing(caption, example["prompt"] + example[when]))
    return HTML("".join(parts) or "No examples were recorded.")


def _caption(sample: dict[str, Any]) -> str:
    return " · ".join(str(sample[k]) for k in ("note", "verdict") if sample.get(k))


def _listing(caption: str, code: str) -> str:
    return f'<div>{html.escape(caption)}</div><pre style="{_CODE}">{html.escape(code)}</pre>'
