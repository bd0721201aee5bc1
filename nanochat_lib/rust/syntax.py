"""Rust's surface: a lexer, and a tree-sitter tree with style counters and functions.

Input: source text. Output: tokens (`tokens`), whether it parses (`parses`), the counters of
`SyntaxFeatures`, the functions of a file (`functions`). Nothing here judges: rustc does
(`verify.py`). The lexer follows the Rust reference for editions 2021 and later, where comments,
strings, characters and lifetimes are concerned; numbers and operators are only cut, not read.
Cyclomatic complexity is McCabe's count: 1 + the branches of a function. A guard belongs to its arm,
`let ... else` is a branch, and what a macro receives is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import tree_sitter_rust
from tree_sitter import Language, Node, Parser, Tree

_TOKEN = re.compile(
    r"""
    (?P<line_comment>//[^\n]*)
  | (?P<block_comment>/\*)
  | (?P<string>(?:[bc]?r(?P<hashes>\#*)"[\s\S]*?"(?P=hashes)) | [bc]?"(?:[^"\\]|\\[\s\S])*")
  | (?P<char>b?'(?:\\(?:u\{[0-9a-fA-F_]*\}|x[0-9a-fA-F]{2}|[\s\S])|[^\\'\n])')
  | (?P<lifetime>'(?:r\#)?[^\W\d]\w*)
  | (?P<word>(?:r\#)?[^\W\d]\w*)
  | (?P<number>\d\w*)
  | (?P<open_quote>[bc]?r\#*"|")
  | (?P<punct>[^\s\w])
    """,
    re.VERBOSE,
)
_BLOCK_MARK = re.compile(r"/\*|\*/")

_LOOPS = frozenset(("while_expression", "for_expression", "loop_expression"))
_BRANCHES = _LOOPS | {"if_expression", "match_arm", "try_expression", "let_declaration", "&&", "||"}
_UNWRAPS = (b"unwrap", b"expect")
_NESTING = _LOOPS | {"if_expression", "match_expression", "closure_expression", "unsafe_block"}


class Token(NamedTuple):
    """One token: its kind (a group of `_TOKEN`), text, and where it starts."""

    kind: str
    text: str
    start: int


@dataclass(frozen=True)
class SyntaxFeatures:
    """Style counters of a file, all at least 0."""

    cyclomatic_complexity: int  # of all functions together: 1 per function + branches
    n_lines: int  # lines that hold more than white space
    explicit_lifetimes: int  # uses of a named lifetime other than 'static and '_
    unsafe_blocks: int  # unsafe blocks and unsafe functions, impls and traits
    max_nesting: int  # deepest nesting of control flow and closures
    n_unwraps: int  # uses of unwrap and expect, as methods or as paths
    n_generics: int  # type and const parameters
    n_functions: int = 0


@dataclass(frozen=True)
class Function:
    """A function item with a body; offsets count bytes, lines from 1."""

    name: str
    start: int
    end: int
    body_start: int  # offset of the opening brace
    first_line: int
    last_line: int
    is_method: bool
    is_test: bool
    cyclomatic_complexity: int


def tokens(source: str, *, comments: bool = False) -> Iterator[Token]:
    """Yield the tokens of a source; an unterminated string or comment yields kind `open_quote`."""
    position = 0
    while match := _TOKEN.search(source, position):
        kind, start, position = match.lastgroup or "", match.start(), match.end()
        if kind == "hashes":
            kind = "string"
        if kind == "block_comment":
            position = _end_of_block(source, position)
            if position < 0:
                yield Token("open_quote", source[start:], start)
                return
        if comments or not kind.endswith("comment"):
            yield Token(kind, source[start:position], start)


def _end_of_block(source: str, position: int) -> int:
    """Return where a block comment ends (they nest), or -1."""
    depth = 1
    for mark in _BLOCK_MARK.finditer(source, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return -1


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_rust.language()))


def tree_of(source: str) -> Tree:
    """Return the syntax tree of a source."""
    return _parser().parse(source.encode("utf-8", "replace"))


def parses(source: str) -> bool:
    """Return whether tree-sitter reads the source without an error; rustc has the last word."""
    return not tree_of(source).root_node.has_error


def walk(node: Node) -> Iterator[tuple[Node, int]]:
    """Yield every node below and including `node` with its depth, in text order, no recursion."""
    cursor, depth = node.walk(), 0
    while True:
        yield cursor.node, depth
        if cursor.goto_first_child():
            depth += 1
            continue
        while not cursor.goto_next_sibling():
            if depth == 0 or not cursor.goto_parent():
                return
            depth -= 1


def features(source: str) -> SyntaxFeatures:
    """Return the style counters of a source; of what can be read, when it does not parse."""
    count = dict.fromkeys(
        ("branches", "functions", "lifetimes", "unsafe", "unwraps", "generics", "nesting"), 0
    )
    open_nests: list[int] = []  # depths of the control flow that the walk is inside
    for node, depth in walk(tree_of(source).root_node):
        while open_nests and open_nests[-1] >= depth:
            open_nests.pop()
        kind = node.type
        if kind in _NESTING and not _is_else_if(node):
            open_nests.append(depth)
            count["nesting"] = max(count["nesting"], len(open_nests))
        count["branches"] += _is_branch(node)
        count["functions"] += kind == "function_item"
        count["lifetimes"] += kind == "lifetime" and node.text not in (b"'static", b"'_")
        count["unsafe"] += kind == "unsafe"
        count["unwraps"] += _is_unwrap(node)
        count["generics"] += kind in ("type_parameter", "const_parameter")
    return SyntaxFeatures(
        cyclomatic_complexity=count["functions"] + count["branches"],
        n_lines=sum(1 for line in source.splitlines() if line.strip()),
        explicit_lifetimes=count["lifetimes"],
        unsafe_blocks=count["unsafe"],
        max_nesting=count["nesting"],
        n_unwraps=count["unwraps"],
        n_generics=count["generics"],
        n_functions=count["functions"],
    )


def functions(source: str) -> list[Function]:
    """Return the functions of a file that have a body, in text order, nested ones included."""
    root = tree_of(source).root_node
    return [_function(node) for node, _ in walk(root) if node.type == "function_item"]


def _function(node: Node) -> Function:
    body, name, parent = (
        node.child_by_field_name("body"),
        node.child_by_field_name("name"),
        node.parent and node.parent.parent,
    )
    branches = sum(_is_branch(inner) for inner, _ in walk(node))
    return Function(
        name=name.text.decode("utf-8", "replace") if name else "",
        start=node.start_byte,
        end=node.end_byte,
        body_start=body.start_byte if body else node.end_byte,
        first_line=node.start_point[0] + 1,
        last_line=node.end_point[0] + 1,
        is_method=parent is not None and parent.type in ("impl_item", "trait_item"),
        is_test=is_test(node),
        cyclomatic_complexity=1 + branches,
    )


def is_test(function: Node) -> bool:
    """Return whether a function item carries `#[test]`."""
    sibling = function.prev_sibling
    while sibling is not None and sibling.type in (
        "attribute_item",
        "line_comment",
        "block_comment",
    ):
        if sibling.type == "attribute_item" and re.fullmatch(rb"#\s*\[\s*test\s*\]", sibling.text):
            return True
        sibling = sibling.prev_sibling
    return False


def _is_branch(node: Node) -> bool:
    if node.type not in _BRANCHES:
        return False
    if node.type == "let_declaration":
        return node.child_by_field_name("alternative") is not None
    if node.type in ("&&", "||"):
        return node.parent is not None and node.parent.type in ("binary_expression", "let_chain")
    return node.type != "match_arm" or not _is_last_arm(node)


def _is_last_arm(arm: Node) -> bool:
    """A match with n arms decides n - 1 times: the last arm is the way that is left."""
    following = arm.next_named_sibling
    while following is not None and following.type.endswith("comment"):
        following = following.next_named_sibling
    return following is None


def _is_else_if(node: Node) -> bool:
    return node.parent is not None and node.parent.type == "else_clause"


def _is_unwrap(node: Node) -> bool:
    if node.type == "scoped_identifier":  # Option::unwrap
        name = node.child_by_field_name("name")
        return name is not None and name.text in _UNWRAPS
    if node.type != "field_expression":
        return False
    name = node.child_by_field_name("field")
    called = node.parent is not None and node.parent.type == "call_expression"
    return called and name is not None and name.text in _UNWRAPS
