"""Programs and generated tokens as HTML for widgets; whatever comes in is escaped.

In: source text with rustc's diagnostics, or the tokens of a generation with what the model thought
of each. Out: HTML that shows them and runs nothing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from nanochat_lib.records import Diagnostic, Verdict, Verified
from nanochat_lib.report.plots import theme

MAX_LINES = 400
MAX_NOTES = 12
_GOOD = (Verdict.PASSED,)
_UNSURE = (Verdict.UNJUDGED,)


class Token(Protocol):
    """What is shown of a generated token (`evals.inside.explain.TokenStep`)."""

    token_id: int
    text: str
    loop: int
    entropy_nats: float
    probability: float
    candidates: Sequence[tuple[str, float]]
    exit_pdf: Sequence[float]


def code_html(source: str, diagnostics: Iterable[Diagnostic] = ()) -> str:
    """Return a program with line numbers, and each diagnostic under the line it points at."""
    by_line: dict[int, list[Diagnostic]] = {}
    for one in list(diagnostics)[:MAX_NOTES]:
        by_line.setdefault(one.line, []).append(one)
    lines = source.split("\n")
    rows = [_note(one) for one in by_line.pop(0, ())]
    for number, text in enumerate(lines[:MAX_LINES], 1):
        found = by_line.pop(number, [])
        rows.append(f'<span class="no">{number}</span>{_marked(text, number, found)}\n')
        rows += [_note(one) for one in found]
    if len(lines) > MAX_LINES:
        rows.append(f"… {len(lines) - MAX_LINES} more lines\n")
    rows += [_note(one) for rest in by_line.values() for one in rest]
    return f'<pre class="nano-code">{"".join(rows)}</pre>'


def verdict_html(verified: Verified) -> str:
    """Return a verdict as a chip, with codes, the detail and what it cost."""
    return chip_html(verified.verdict) + _join(
        " ".join(verified.codes),
        verified.detail,
        f"tests run: {verified.n_tests}" if verified.n_tests else "",
        f"level {verified.level}",
        "from the cache" if verified.cached else f"{verified.cpu_ms:.0f} ms of CPU",
        f"sandbox: {verified.sandbox}" if verified.sandbox else "",
    )


def chip_html(verdict: str) -> str:
    """Return a verdict as a coloured word; the word itself says it, too."""
    kind = "good" if verdict in _GOOD else "quiet" if verdict in _UNSURE else "bad"
    return f'<span class="nano-chip nano-{kind}">{html.escape(verdict)}</span> '


def tokens_html(prompt: str, tokens: Sequence[Token], n_loops: int) -> str:
    """Return a prompt and its continuation, every token coloured by the loop it left at.

    The prompt is grey. Hovering over a token (or reaching it with the Tab key) shows what else the
    model thought of.
    """
    shades = theme.ramp(n_loops)
    spans = "".join(_token(token, shades[token.loop - 1], n_loops) for token in tokens)
    quiet = f'<span class="nano-quiet">{html.escape(prompt)}</span>'
    return f'<pre class="nano-tokens">{quiet}{spans}</pre>'


def depth_legend(tokens: Sequence[Token], n_loops: int) -> str:
    """Return the colours of the loops with how many tokens left at each, and the mean depth."""
    shades = theme.ramp(n_loops)
    parts = []
    for loop, shade in enumerate(shades, 1):
        n = sum(token.loop == loop for token in tokens)
        parts.append(f'<span><i style="background:{shade}"></i>loop {loop}: {n}</span>')
    if tokens:
        mean = sum(token.loop for token in tokens) / len(tokens)
        saved = 1 - mean / n_loops
        parts.append(f"<span>mean depth <b>{mean:.2f}</b> of {n_loops}</span>")
        parts.append(f"<span>loops saved <b>{saved:.0%}</b> of {len(tokens)} tokens</span>")
    return f'<div class="nano-legend">{"".join(parts)}</div>'


def table_html(rows: Sequence[Sequence[Any]], header: Sequence[str], numeric: int = 0) -> str:
    """Return a small table; the last `numeric` columns are aligned to the right."""
    first = len(header) - numeric

    def cells(row: Sequence[Any], tag: str) -> str:
        kinds = [' class="num"' if i >= first else "" for i in range(len(row))]
        return "".join(
            f"<{tag}{k}>{html.escape(str(v))}</{tag}>" for k, v in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<table class="nano-table"><tr>{cells(header, "th")}</tr>{body}</table>'


def _token(token: Token, shade: str, n_loops: int) -> str:
    shown = token.text.replace("\n", "↵\n") if token.text else "∅"
    rows = [(repr(text)[1:-1], f"{p:.1%}") for text, p in token.candidates]
    loops = " · ".join(f"{i}: {p:.0%}" for i, p in enumerate(token.exit_pdf, 1))
    tip = (
        f"<b>left at loop {token.loop} of {n_loops}</b><br>"
        f"entropy {token.entropy_nats:.2f} nats · chosen with {token.probability:.1%}<br>"
        f"chance to leave at each loop: {loops}" + table_html(rows, ("candidate", "p"), numeric=1)
    )
    label = f"token {shown.strip()!r}, loop {token.loop}, entropy {token.entropy_nats:.2f} nats"
    ink = "#fff" if _is_dark(shade) else "#14171c"
    return (
        f'<span class="t" tabindex="0" aria-label="{html.escape(label, quote=True)}" '
        f'style="background:{shade};color:{ink}">{html.escape(shown)}'
        f'<span class="tip">{tip}</span></span>'
    )


def _is_dark(color: str) -> bool:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def _marked(text: str, number: int, found: Sequence[Diagnostic]) -> str:
    """Return a line with the span of its first diagnostic marked; columns count characters."""
    spans = [d for d in found if d.column]
    if not spans:
        return html.escape(text)
    start = spans[0].column - 1
    end = spans[0].end_column - 1 if spans[0].end_line == number else len(text)
    end = max(end, start + 1)
    before, marked, after = text[:start], text[start:end] or " ", text[end:]
    return (
        f'{html.escape(before)}<span class="mark">{html.escape(marked)}</span>{html.escape(after)}'
    )


def _note(one: Diagnostic) -> str:
    code = f"[{one.code}] " if one.code else ""
    kind = "note" if one.level == "error" else "note warning"
    text = html.escape(f"{one.level} {code}{one.message}")
    return f'<span class="{kind}">{text}</span>'


def _join(*parts: str) -> str:
    return html.escape(" · ".join(part for part in parts if part))
