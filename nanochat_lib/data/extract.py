"""Cut Rust out of what holds it: examples out of pages, slices out of source files.

Input: the HTML of one rustdoc or mdBook page, or the text of a source file. Output: `Example`s,
each with the text a reader sees and the whole program behind it, or `Slice`s: an item with the
items of its file that it names.

Rust documentation hides set-up lines (`# use ...`): rustdoc leaves them out of the page but keeps
the whole program in the link of the "Run code" arrow, and mdBook keeps them in
`<span class="boring">`. So no hidden line has to be guessed; only where neither is there do we
wrap the text into `fn main` as rustdoc does. Regular expressions instead of a parser: the pages
are written by two programs with a fixed shape, and 120 MB of them are read in two seconds.

A function cut out alone compiles in 6 to 11 % of cases, a dependency-closed slice in about a
third: the compiler judges them all afterwards, so names are matched by spelling and not resolved.

Source: rustdoc book, "Documentation tests" (attributes, wrapping); mdBook, "Rust playground".
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import unquote_plus

from tree_sitter import Node

from nanochat_lib.rust.syntax import tree_of

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
_ALLOW_UNUSED = re.compile(r"^[ \t]*#!\[allow\((?:unused\w*|dead_code)\)\][ \t]*\n", re.MULTILINE)
_MAIN = re.compile(r"^\s*(?:pub\s+)?(?:async\s+)?fn\s+main\s*\(", re.MULTILINE)
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

MIN_SLICE_LINES = 3
MAX_SLICE_LINES = 80

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMENT = re.compile(r"//[^\n]*")
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*::")
# A top-level item that a slice can start from; parsing is what slicing costs.
_ROOT_LINE = re.compile(r"^(?:pub[^\n]* )?(?:[a-z]+ )*(?:fn|struct|enum) ", re.MULTILINE)
_ROOT_KINDS = frozenset({"function_item", "struct_item", "enum_item"})
_NAMED_KINDS = _ROOT_KINDS | {
    "const_item", "static_item", "type_item", "trait_item", "union_item", "macro_definition",
}  # fmt: skip
_LEADING_KINDS = frozenset({"line_comment", "block_comment", "attribute_item"})
_OUTSIDE = re.compile(r"\b(?:crate|super|self)\s*::|\bextern\s+crate\b|#\[(?:test|cfg)\b")
_VISIBILITY = re.compile(r"\bpub\s*\(\s*(?:super|in\b[^)]*)\s*\)")
# Attributes that only the standard library itself may use.
_STAGING = re.compile(
    r"^[ \t]*#!?\[(?:stable|unstable|rustc_\w+|lang|cfg_attr|doc\(|allow_internal\w*|fundamental)"
    r"[^\]]*\]+[ \t]*\n",
    re.MULTILINE,
)


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
        yield _example(visible, link.get("code") or visible, marks, link.get("edition"))


def mdbook_examples(page: str) -> Iterator[Example]:
    """Yield the Rust examples of one mdBook page (the Book, the reference, Rust by Example)."""
    for match in _MDBOOK_EXAMPLE.finditer(page):
        marks = frozenset(match["marks"].replace(",", " ").split())
        if marks & _NOT_CANDIDATES:
            continue
        editions = [mark.removeprefix("edition") for mark in marks if mark.startswith("edition")]
        visible = _plain(_BORING.sub("", match["code"]))
        edition = editions[0] if editions else None
        yield _example(visible, _plain(match["code"]), marks, edition)


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

    Crate attributes and `extern crate` lines stay in front of the new `fn main`.
    """
    if _MAIN.search(code):
        return code
    lines = code.splitlines()
    front = [line for line in lines if _CRATE_LINE.match(line)]
    body = [line for line in lines if not _CRATE_LINE.match(line)]
    return "\n".join([*front, "fn main() {", *body, "}"]) + "\n"


def _example(
    visible: str, whole: str, marks: frozenset[str], edition: str | None = None
) -> Example:
    program = wrap_main(_ALLOW_UNUSED.sub("", whole))
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


@dataclass(frozen=True)
class Slice:
    """A piece of a file that names nothing outside itself and the standard library, we think."""

    name: str
    text: str


@dataclass(frozen=True)
class _Item:
    position: int
    kind: str
    names: frozenset[str]  # what it defines or brings into scope; of an `impl`: the type it is for
    text: str
    words: frozenset[str] = field(repr=False)

    @property
    def is_use(self) -> bool:
        return self.kind == "use_declaration"


def library_source(text: str, crate: str) -> str:
    """Return standard-library source as an outside crate could write it.

    Stability attributes are dropped, and `crate::` becomes `core::` or `std::`.
    """
    root = "core" if crate == "core" else "std"
    return re.sub(r"\bcrate::", f"{root}::", _STAGING.sub("", text))


def self_contained_slices(source: str) -> Iterator[Slice]:
    """Yield the slices of a file in file order; an item that an earlier slice holds is no root."""
    if not _ROOT_LINE.search(source):
        return
    items = _items(source)
    covered: set[int] = set()
    for item in items:
        if item.kind not in _ROOT_KINDS or "main" in item.names or item.position in covered:
            continue
        chosen = _closure(item, items)
        n_lines = sum(part.text.count("\n") + 2 for part in chosen)
        if not MIN_SLICE_LINES < n_lines <= MAX_SLICE_LINES:
            continue
        text = _write_out(chosen)
        if not _OUTSIDE.search(_COMMENT.sub("", text)):
            covered.update(part.position for part in chosen)
            yield Slice(min(item.names), text + "\n")


def _write_out(parts: list[_Item]) -> str:
    """Join items by blank lines, `use` lines closer; in a slice the crate is the only outside."""
    text = parts[0].text
    for before, part in pairwise(parts):
        text += ("\n" if before.is_use and part.is_use else "\n\n") + part.text
    return _VISIBILITY.sub("pub(crate)", text)


def _closure(root: _Item, items: list[_Item]) -> list[_Item]:
    """Return `root` and every item of the file that it names, directly or not, in file order."""
    chosen = {root.position: root}
    named = set(root.names | root.words)
    waiting = [item for item in items if item.position != root.position]
    while found := [item for item in waiting if not item.names.isdisjoint(named)]:
        chosen |= {item.position: item for item in found}
        named.update(*(item.words for item in found if not item.is_use))
        waiting = [item for item in waiting if item.position not in chosen]
    return [chosen[position] for position in sorted(chosen)]


def _items(source: str) -> list[_Item]:
    """Return the top-level items with the comments and attributes that belong to them."""
    data = source.encode()
    items: list[_Item] = []
    start = None
    for node in tree_of(source).root_node.children:
        if node.type in _LEADING_KINDS:
            start = node.start_byte if start is None else start
            if node.type != "attribute_item" and not _is_documentation(data, node):
                start = None  # a plain comment says something about the file, not about the item
            continue
        begin = node.start_byte if start is None else start
        start = None
        names = _names_of(node)
        if not names or node.has_error:
            continue
        text = data[begin : node.end_byte].decode()
        words = frozenset(_WORD.findall(_COMMENT.sub("", text)))
        items.append(_Item(len(items), node.type, names, text, words))
    return items


def _is_documentation(data: bytes, node: Node) -> bool:
    return data[node.start_byte : node.start_byte + 3] in (b"///", b"/**")


def _names_of(node: Node) -> frozenset[str]:
    if node.type == "use_declaration":
        # All but leading path segments: more than the names bound, never fewer.
        names = _WORD.findall(_PATH.sub(" ", _COMMENT.sub("", node.text.decode())))
        return frozenset(names) - {"use", "pub", "as", "self"}
    inner = None
    if node.type in _NAMED_KINDS or node.type == "impl_item":
        inner = node.child_by_field_name("type" if node.type == "impl_item" else "name")
    return frozenset(_WORD.findall(inner.text.decode())[:1]) if inner else frozenset()
