"""Cut out functions with the unit tests that call them, as tasks with tests.

Input: the text of a source file. Output: `FunctionWithTests`s in the shape of `records.Task`: the
items that a function needs, its documentation and signature up to the brace, the rest of it, and
its `#[test]` functions with what they need. Names are matched by spelling; rustc judges the whole.

Such a task is a prompt with hidden tests for stage 3 and evaluation; the whole program is a row of
kind "test" for stage 2.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from nanochat_lib.data.extraction.slices import (
    Item,
    closure_of,
    items_of,
    names_outside,
    parsed,
    write_out,
)
from nanochat_lib.rust.syntax import tokens, tree_of

MAX_TESTS = 8  # of one function
MAX_LINES = 160  # of the whole program
_TEST_MARK = re.compile(r"#\[\s*test\s*\]")
_CFG_TEST = re.compile(r"#\[\s*cfg\s*\(\s*test\s*\)\s*\]")
_GLOB_OF_PARENT = re.compile(r"^use\s+super\s*::\s*\*\s*;", re.MULTILINE)


@dataclass(frozen=True)
class FunctionWithTests:
    """A function with its tests; `prelude + prompt + solution + "\\n" + tests` is a program."""

    name: str
    prelude: str
    prompt: str
    solution: str
    tests: str

    @property
    def program(self) -> str:
        """Return the whole program."""
        return f"{self.prelude}{self.prompt}{self.solution}\n{self.tests}"


def functions_with_tests(source: str) -> Iterator[FunctionWithTests]:
    """Yield the functions of a file that its `#[test]` functions name, in file order."""
    if not _TEST_MARK.search(source):
        return
    data, root = parsed(source)
    items = items_of(data, root)
    inner = _test_module(data, root)
    tests = [item for item in (*inner, *items) if _TEST_MARK.search(item.text)]
    plain = [item for item in items if not _TEST_MARK.search(item.text)]
    helpers = [item for item in inner if not _TEST_MARK.search(item.text)]
    for item in plain:
        if item.kind == "function_item" and "main" not in item.names:
            found = _tested(item, plain, [t for t in tests if not t.words.isdisjoint(item.names)])
            if found and (made := _make(item, found, plain, helpers)):
                yield made


def _tested(item: Item, plain: list[Item], tests: list[Item]) -> list[Item]:
    """Return at most `MAX_TESTS` tests, those that name the fewest other items first."""
    others = [other for other in plain if other.kind == "function_item" and other is not item]
    n_others = {
        test.position: sum(not test.words.isdisjoint(other.names) for other in others)
        for test in tests
    }
    chosen = sorted(tests, key=lambda test: (n_others[test.position], test.text))[:MAX_TESTS]
    return [test for test in tests if test in chosen]


def _make(
    item: Item, tests: list[Item], plain: list[Item], helpers: list[Item]
) -> FunctionWithTests | None:
    beside = _needed(tests, helpers)
    words = frozenset().union(*(part.words for part in (*tests, *beside)))
    body = [_GLOB_OF_PARENT.sub("", part.text).strip() for part in beside]
    inside = "\n\n".join([*filter(None, body), *(test.text for test in tests)])
    return cut_out(item, plain, words, inside)


def cut_out(
    item: Item, items: list[Item], words: frozenset[str], inside: str, before: str | None = None
) -> FunctionWithTests | None:
    """Return a function with what it and its tests need.

    Args:
        item: the function.
        items: of its file, tests apart.
        words: that the tests name.
        inside: of the module of tests, without the `use` of its parent.
        before: comments and attributes of the function, where they are not to be its own.

    Returns: None when the program is too long, has no body or needs what is not here.
    """
    start, brace = places_of(item.text)
    if brace < 0:
        return None
    needed = [part for part in closure_of([item], items, words) if part is not item]
    made = FunctionWithTests(
        name=min(item.names),
        prelude=write_out(needed) + "\n\n" if needed else "",
        prompt=(item.text[:start] if before is None else before) + item.text[start : brace + 1],
        solution=item.text[brace + 1 :],
        tests=f"#[cfg(test)]\nmod tests {{\n    use super::*;\n\n{indented(inside)}\n}}\n",
    )
    is_fit = made.program.count("\n") <= MAX_LINES and not names_outside(made.program)
    return made if is_fit else None


def _needed(tests: list[Item], helpers: list[Item]) -> list[Item]:
    words = frozenset().union(*(test.words for test in tests))
    return closure_of([], helpers, words)


def indented(text: str) -> str:
    """Return text one level deeper; a text with a line break inside a literal stays as it is."""
    has_long_literal = any(
        "\n" in token.text for token in tokens(text) if token.kind in ("string", "open_quote")
    )
    return text if has_long_literal else textwrap.indent(textwrap.dedent(text), "    ")


def _test_module(data: bytes, root: Node) -> list[Item]:
    """Return the items of the file's `#[cfg(test)]` modules."""
    found: list[Item] = []
    is_test = False
    for node in root.children:
        if node.type == "attribute_item":
            is_test = is_test or bool(_CFG_TEST.search(node.text.decode()))
            continue
        body = node.child_by_field_name("body") if node.type == "mod_item" and is_test else None
        if body is not None:
            found += items_of(data, body, first=len(found) + len(data))
        is_test = False
    return found


def places_of(text: str) -> tuple[int, int]:
    """Return where a function starts, behind comments and attributes, and its opening brace.

    Returns: -1 for what is not there.
    """
    root = tree_of(text).root_node
    function = next((node for node in root.children if node.type == "function_item"), None)
    body = function.child_by_field_name("body") if function else None
    data = text.encode()
    ends = (node.start_byte if node else None for node in (function, body))
    start, brace = (-1 if end is None else len(data[:end].decode()) for end in ends)
    return start, brace
