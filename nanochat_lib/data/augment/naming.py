"""Other names and another order: alpha-renaming of locals, reordering of items.

A local is renamed wherever its name stands in its function, to a name that occurs nowhere in the
source, so that nothing is captured. Names that are also used as something else (a path, a macro's
text, a nested function) are left alone. Doc comments above the function that speak of `name` in
backticks change with a renamed parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from tree_sitter import Node

from nanochat_lib.data.augment.edits import Edit, field, nodes, text_of
from nanochat_lib.rust.syntax import tree_of, walk

# Short and ordinary, as people choose them.
_NAMES = (
    "item", "value", "current", "entry", "elem", "data", "input", "acc", "total", "left", "right",
    "found", "other", "count", "index", "pos", "size", "result", "buffer", "part", "first",
    "second", "word", "number", "head", "tail", "key", "node", "state", "step", "target", "list",
    "source",
)  # fmt: skip
_BINDINGS = ("let_declaration", "parameter", "for_expression", "closure_parameters",
             "let_condition", "match_pattern")  # fmt: skip
_PATTERNS = frozenset(
    ("tuple_pattern", "ref_pattern", "mut_pattern", "reference_pattern", "captured_pattern",
     "tuple_struct_pattern", "slice_pattern", "or_pattern")
)  # fmt: skip
# Where a name is not a local alone: paths, fields written short, items.
_FIXED = frozenset(
    ("scoped_identifier", "scoped_type_identifier", "shorthand_field_initializer",
     "shorthand_field_identifier", "const_item", "static_item", "use_declaration",
     "macro_definition")
)  # fmt: skip
_LEADING = frozenset(("line_comment", "block_comment", "attribute_item"))
_FIRST = frozenset(("use_declaration", "mod_item", "extern_crate_declaration"))
_MOVABLE = _FIRST | {
    "function_item", "struct_item", "enum_item", "union_item", "impl_item", "trait_item",
    "const_item", "static_item", "type_item",
}  # fmt: skip


def rename_locals(text: str, program: str, rng: Random) -> Iterator[Edit]:
    """Rename the locals and parameters of a text's functions, or of its statements."""
    words = set(re.findall(r"\w+", program))
    free = [name for name in rng.sample(_NAMES, len(_NAMES)) if name not in words]
    for function in _scopes(text):
        names = sorted(_bound_names(function) - _unsafe_names(function))
        renamed = dict(zip(rng.sample(names, len(names)), free, strict=False))
        yield from _renaming(function, renamed)
        yield from _doc_edits(function, renamed)


def _scopes(text: str) -> list[Node]:
    """Return the functions that stand in no other, or the whole of a text that is statements."""
    root = tree_of(text).root_node
    if any(node.type in ("let_declaration", "expression_statement") for node in root.children):
        return [] if root.has_error else [root]
    return [node for node in nodes(text, "function_item") if not _is_nested(node)]


def _is_nested(function: Node) -> bool:
    at = function.parent
    while at is not None and at.type != "function_item":
        at = at.parent
    return at is not None


def _bound_names(function: Node) -> set[str]:
    """Return the names that patterns in a function bind; constants are upper case."""
    found: set[str] = set()
    for node, _ in walk(function):
        if node.type not in _BINDINGS:
            continue
        holders = [field(node, "pattern")] if node.type != "match_pattern" else [node]
        if node.type == "closure_parameters":
            holders = list(node.named_children)
        for holder in filter(None, holders):
            found |= _names_in_pattern(holder)
    return {name for name in found if re.fullmatch(r"[a-z][a-z0-9_]*", name) and name != "self"}


def _names_in_pattern(pattern: Node) -> set[str]:
    if pattern.type == "identifier":
        return {text_of(pattern)}
    if pattern.type not in _PATTERNS | {"match_pattern"}:
        return set()
    kept = pattern.named_children
    if pattern.type == "tuple_struct_pattern":
        kept = kept[1:]
    if pattern.type == "match_pattern":
        kept = kept[:1]
    return {name for child in kept for name in _names_in_pattern(child)}


def _unsafe_names(function: Node) -> set[str]:
    """Return names that mean something else too, or that stand where they cannot be seen."""
    found: set[str] = set()
    for node, _ in walk(function):
        is_inner = node.type == "function_item" and node != function
        if node.type in _FIXED or is_inner:
            found |= set(re.findall(r"\w+", text_of(node)))
        elif node.type in ("string_literal", "raw_string_literal"):  # format!("{name}")
            found |= set(re.findall(r"\{(\w+)", text_of(node)))
        elif node.type == "macro_invocation":
            found |= {text_of(field(node, "macro"))}
    return found | {text_of(field(function, "name"))}


def _renaming(function: Node, renamed: dict[str, str]) -> Iterator[Edit]:
    for node, _ in walk(function):
        if node.type == "identifier" and text_of(node) in renamed and not _is_in_field(node):
            yield Edit(node.start_byte, node.end_byte, renamed[text_of(node)])


def _is_in_field(node: Node) -> bool:
    """Return whether an identifier inside a macro's tokens follows a dot: a field or a method."""
    before = node.prev_sibling
    return before is not None and before.type == "." and node.parent.type == "token_tree"  # type: ignore


def _doc_edits(function: Node, renamed: dict[str, str]) -> Iterator[Edit]:
    before = function.prev_sibling
    while before is not None and before.type in _LEADING:
        for mark in re.finditer(rb"`(\w+)`", before.text or b""):
            name = mark.group(1).decode()
            if before.type == "line_comment" and name in renamed:
                start = before.start_byte + mark.start(1)
                yield Edit(start, start + len(name), renamed[name])
        before = before.prev_sibling


def reorder_items(source: str, program: str, rng: Random) -> Iterator[Edit]:
    """Put the items of a source, with their comments, in another order; `use` lines stay on top."""
    root = tree_of(source).root_node
    groups, start = [], None
    for node in root.named_children:
        start = node.start_byte if start is None else start
        if node.type in _LEADING:
            continue
        if node.type not in _MOVABLE:
            return
        groups.append((node.type in _FIRST, start, node.end_byte))
        start = None
    body = [group for group in groups if not group[0]]
    if root.has_error or start is not None or len(body) < 2:
        return
    first = [group for group in groups if group[0]]
    shuffled = rng.sample(body, len(body))
    if shuffled == body:
        shuffled = [*body[1:], body[0]]
    data = source.encode()
    tops = "\n".join(data[a:b].decode() for _, a, b in first)
    rest = "\n\n".join(data[a:b].decode() for _, a, b in shuffled)
    yield Edit(groups[0][1], groups[-1][2], f"{tops}\n\n{rest}" if tops else rest)
