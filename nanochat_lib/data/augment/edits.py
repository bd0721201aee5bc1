"""Text edits by syntax tree: find nodes, replace their text, keep the layout.

Input: source text and its tree-sitter nodes. Output: changed source text. A rewrite lists `Edit`s
at places that may lie inside each other; `apply_edits` keeps the outermost. What a macro receives
is not parsed by tree-sitter, so no rewrite reaches inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tree_sitter import Node

from nanochat_lib.rust.syntax import tree_of, walk

_STRINGS = frozenset(("string_literal", "raw_string_literal"))
_FUNCTIONS = frozenset(("function_item", "closure_expression", "async_block"))
# What can be followed by `.method()` as it stands.
_POSTFIX = frozenset(
    ("identifier", "call_expression", "field_expression", "index_expression", "array_expression",
     "parenthesized_expression", "scoped_identifier", "macro_invocation", "self",
     "tuple_expression", "try_expression", "string_literal")
)  # fmt: skip
# Parents under which an expression that begins with a keyword needs parentheses.
_TIGHT = frozenset(
    ("field_expression", "try_expression", "binary_expression", "unary_expression",
     "reference_expression", "index_expression", "call_expression", "type_cast_expression",
     "await_expression", "range_expression")
)  # fmt: skip


class Edit(NamedTuple):
    """Replace the bytes from `start` to `end` by a text."""

    start: int
    end: int
    text: str


def nodes(source: str, *kinds: str) -> Iterator[Node]:
    """Yield the nodes of some kinds in text order; nothing where the source does not parse."""
    root = tree_of(source).root_node
    if not root.has_error:
        yield from (node for node, _ in walk(root) if node.type in kinds)


def apply_edits(source: str, edits: Sequence[Edit]) -> str:
    """Return the source with the edits made; of edits inside each other the outermost."""
    data, end, parts = source.encode(), 0, []
    for edit in sorted(edits, key=lambda e: (e.start, -e.end)):
        if edit.start >= end:
            parts += [data[end : edit.start], edit.text.encode()]
            end = edit.end
    return b"".join([*parts, data[end:]]).decode()


def replace(node: Node, text: str) -> Edit:
    """Return the edit that puts a text in the place of a node."""
    return Edit(node.start_byte, node.end_byte, text)


def text_of(node: Node | None) -> str:
    """Return the text of a node; of none, nothing."""
    return node.text.decode() if node is not None and node.text is not None else ""


def field(node: Node, name: str) -> Node | None:
    """Return the child in a field."""
    return node.child_by_field_name(name)


def inside(block: Node) -> str:
    """Return the text between the braces of a block, without the blanks around it."""
    return text_of(block)[1:-1].strip()


def margin(node: Node, source: str) -> str:
    """Return the white space at the beginning of the line that a node starts in."""
    data = source.encode()
    line = data[data.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte].decode()
    return line[: len(line) - len(line.lstrip())]


def deeper(text: str) -> str:
    """Return a text with all its lines but the first indented by one level."""
    return text.replace("\n", "\n    ").replace("\n    \n", "\n\n")


def has_long_string(node: Node) -> bool:
    """Return whether a string goes over several lines: indenting it would change it."""
    return any(n.type in _STRINGS and b"\n" in (n.text or b"") for n, _ in walk(node))


def leaves(node: Node) -> bool:
    """Return whether code may jump out of a node: break, continue, return, `?`, await."""
    jumps = ("break_expression", "continue_expression", "return_expression", "try_expression",
             "await_expression", "yield_expression")  # fmt: skip
    return any(n.type in jumps for n, _ in walk(node))


def label_of(loop: Node) -> str:
    """Return the label of a loop with its colon, or nothing."""
    first = loop.children[0] if loop.children else None
    return f"{text_of(first)}: " if first is not None and first.type == "label" else ""


def is_statement(node: Node) -> bool:
    """Return whether a node is a statement or stands at the end of a block, its value unused."""
    parent = node.parent
    return parent is not None and parent.type in ("expression_statement", "block", "source_file")


def callable_text(node: Node) -> str:
    """Return an expression that `.method()` can follow."""
    return text_of(node) if node.type in _POSTFIX else f"({text_of(node)})"


def guarded(node: Node, text: str) -> str:
    """Return a text that begins with a keyword, in parentheses where its parent binds tighter."""
    parent = node.parent
    if parent is not None and parent.type in _TIGHT:
        return f"({text})"
    return text


def enclosing_function(node: Node) -> Node | None:
    """Return the function, closure or async block that `return` and `?` inside a node leave."""
    at = node.parent
    while at is not None and at.type not in _FUNCTIONS:
        at = at.parent
    return at
