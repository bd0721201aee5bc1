"""Cut examples out of the pages of rendered documentation.

Input: the HTML of one rustdoc or mdBook page. Output: `Example`s, each with the text a reader sees
and the whole program behind it.

Rust documentation hides set-up lines (`# use ...`): rustdoc leaves them out of the page but keeps
the whole program in the link of the "Run code" arrow, and mdBook keeps them in
`<span class="boring">`. So no hidden line has to be guessed; only where neither is there do we
wrap the text into `fn main` as rustdoc does. Regular expressions instead of a parser: the pages
are written by two programs with a fixed shape, and 120 MB of them are read in two seconds.

Source: rustdoc book, "Documentation tests" (attributes, wrapping); mdBook, "Rust playground".
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_plus

DEFAULT_EDITION = "2021"

_RUSTDOC_EXAMPLE = re.compile(
    r'<div class="example-wrap(?P<marks>[^"]*)">(?:<a [^>]*class="tooltip"[^>]*>[^<]*</a>)?'
    r'<pre class="rust rust-example-rendered[^"]*"><code>(?P<code>.*?)</code></pre>'
    r'(?:<a class="test-arrow"[^>]*href="(?P<link>[^"]*)")?',
    re.DOTALL,
)
_MDBOOK_EXAMPLE = re.compile(
    r'<code class="language-rust(?P<marks>(?:[ ,][^"]*)?)">(?P<code>.*?)</code></pre>', re.DOTALL
)
_BORING = re.compile(r'<span class="boring">.*?</span>', re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_LINE_NUMBER = re.compile(r"<a [^>]*data-nosnippet[^>]*>\d+</a>")
# Of no effect on a verdict, but a program with inner attributes must be compiled alone.
ALLOW_UNUSED = re.compile(r"^[ \t]*#!\[allow\((?:unused\w*|dead_code)\)\][ \t]*\n", re.MULTILINE)
MAIN = re.compile(r"^\s*(?:pub\s+)?(?:async\s+)?fn\s+main\s*\(", re.MULTILINE)
_CRATE_LINE = re.compile(r"^\s*(?:#!\[|extern crate )")
_NO_RUN_FENCE = re.compile(
    r"^[ \t]*//[/!] ?`{3,}(?:rust, ?)?no_run[^\n]*\n(?P<body>(?:[ \t]*//[/!][^\n]*\n)*?)"
    r"[ \t]*//[/!] ?`{3,}[ \t]*$",
    re.MULTILINE,
)
_DOC_PREFIX = re.compile(r"^[ \t]*//[/!] ?", re.MULTILINE)
# Marks of blocks that are not meant to compile, or that nobody checks.
_NOT_CANDIDATES = frozenset({"ignore", "compile_fail", "does_not_compile"})
# These compile; running them proves nothing (Book: "does not behave as intended").
_NOT_RUN = frozenset({"no_run", "not_desired_behavior"})
_PANICS = frozenset({"should_panic", "panics"})


@dataclass(frozen=True)
class Example:
    """One documentation example: what the reader sees, and the program behind it."""

    text: str
    program: str
    edition: str = DEFAULT_EDITION
    runnable: bool = True
    must_panic: bool = False


def rustdoc_examples(page: str) -> Iterator[Example]:
    """Yield the examples of one rustdoc page, without `ignore` and `compile_fail` ones."""
    for match in _RUSTDOC_EXAMPLE.finditer(page):
        marks = frozenset(match["marks"].replace(",", " ").split())
        if marks & _NOT_CANDIDATES:
            continue
        visible = _plain(match["code"])
        link = _link_values(match["link"] or "")
        yield example_of(visible, link.get("code") or visible, marks, link.get("edition"))


def mdbook_examples(page: str) -> Iterator[Example]:
    """Yield the Rust examples of one mdBook page (the Book, the reference, Rust by Example)."""
    for match in _MDBOOK_EXAMPLE.finditer(page):
        marks = frozenset(match["marks"].replace(",", " ").split())
        if marks & _NOT_CANDIDATES:
            continue
        editions = [mark.removeprefix("edition") for mark in marks if mark.startswith("edition")]
        visible = _plain(_BORING.sub("", match["code"]))
        edition = editions[0] if editions else None
        yield example_of(visible, _plain(match["code"]), marks, edition)


def source_of_page(page: str) -> str:
    """Return the exact source text of a rendered source page (`src/**/*.rs.html`).

    Every line starts with an anchor that holds its number; the rest is the text in tags.
    """
    start = page.find('<pre class="rust"><code>')
    end = page.rfind("</code></pre>")
    if start < 0 or end < start:
        return ""
    return _plain(_LINE_NUMBER.sub("", page[start:end]))


def no_run_texts(source: str) -> Iterator[str]:
    """Yield the visible text of every `no_run` example in a source's documentation comments.

    Pages do not show this mark, so it is looked up here: such an example compiles, but running it
    would wait for a network or fail.
    """
    for match in _NO_RUN_FENCE.finditer(source):
        lines = _DOC_PREFIX.sub("", match["body"]).splitlines()
        shown = (line for line in lines if line.strip() != "#" and not line.startswith("# "))
        yield "\n".join(shown)


def wrap_main(code: str) -> str:
    """Return `code` as a program: unchanged if it has a `main`, else wrapped as rustdoc does.

    Crate attributes and `extern crate` lines stay in front of the new `fn main`. An example that
    ends in `Ok::<(), E>(())` may use `?`: it becomes the body of a function that `main` unwraps.
    """
    if MAIN.search(code):
        return code
    lines = code.splitlines()
    front = [line for line in lines if _CRATE_LINE.match(line)]
    body = [line for line in lines if not _CRATE_LINE.match(line)]
    if code.rstrip().endswith("(())"):
        result = "Result<(), impl core::fmt::Debug>"
        body = [f"fn _inner() -> {result} {{", *body, "}", "_inner().unwrap()"]
    return "\n".join([*front, "fn main() {", *body, "}"]) + "\n"


def example_of(
    visible: str, whole: str, marks: frozenset[str], edition: str | None = None
) -> Example:
    """Return an example from its two texts and the marks of its block."""
    program = wrap_main(ALLOW_UNUSED.sub("", whole))
    must_panic = bool(marks & _PANICS)
    if must_panic:
        program = program.rstrip() + _PANIC_TEST
    text = textwrap.dedent(visible).strip("\n").rstrip()
    is_run = not marks & _NOT_RUN
    return Example(text, program, edition or DEFAULT_EDITION, is_run, must_panic)


_PANIC_TEST = """

#[test]
#[should_panic]
fn example_panics() {
    let _ = main();
}
"""


def _plain(markup: str) -> str:
    """Return the text of a piece of HTML: tags dropped, entities decoded."""
    return html.unescape(_TAG.sub("", markup))


def _link_values(link: str) -> dict[str, str]:
    """Return the parameters of a playground link, e.g. `code` (a whole program) and `edition`."""
    _, _, query = html.unescape(link).partition("?")
    pairs = (part.partition("=") for part in query.split("&") if part)
    return {name: unquote_plus(value) for name, _, value in pairs}
