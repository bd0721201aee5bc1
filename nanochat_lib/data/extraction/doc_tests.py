"""Cut out functions with the examples of their documentation, as tasks with tests.

Input: the text of a source file. Output: `FunctionWithTests`s as `unit_tests.py` gives them. Each
runnable example that calls the function and asserts something becomes a `#[test]`, by rustdoc's
rules (hidden lines, `fn main`, `?`, `should_panic`). The prompt keeps what the documentation says
in words and loses the examples that became tests: left there, the values that the tests ask for
could be copied into the body. Examples that are no tests stay, as a reader sees them.

Left out: an example that asserts nothing (every body that compiles would pass), that names another
crate or its own by more than paths to items of this file, that is not run, or that does not parse
alone; a function without a word of prose, since nobody could know what it is to do. Names are
matched by spelling; rustc judges the whole.

Source: rustdoc book, "Documentation tests".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from nanochat_lib.data.extraction.doc_comments import (
    Block,
    blocks_of,
    comments_of,
    marks_of,
    without_hidden,
)
from nanochat_lib.data.extraction.pages import ALLOW_UNUSED, MAIN
from nanochat_lib.data.extraction.slices import Item, items_of, names_outside, parsed
from nanochat_lib.data.extraction.unit_tests import (
    MAX_TESTS,
    FunctionWithTests,
    cut_out,
    indented,
    places_of,
)
from nanochat_lib.rust.syntax import tokens, tree_of

_NOT_RUN = frozenset({"ignore", "compile_fail", "no_run", "test_harness"})
_ASSERTS = ("assert", "debug_assert")  # also macros of a crate's own that begin so
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s")
# Features of the package decide about them, or its documentation; here every function is wanted.
_ABOUT_BUILDING = re.compile(r"#\[\s*(?:cfg|cfg_attr|doc)\b")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class _Test:
    """An example as a `#[test]` function."""

    block: Block
    text: str
    words: frozenset[str]


def documented_functions(source: str, crate: str) -> Iterator[FunctionWithTests]:
    """Yield the functions of a file whose documentation holds examples that test them.

    Args:
        crate: by which examples call the file's own crate.
    """
    if not _has_fence(source):
        return
    items = [item for item in items_of(*parsed(source)) if "#[test]" not in item.text]
    names = frozenset().union(*(item.names for item in items if not item.is_use))
    for item in items:
        is_candidate = item.kind == "function_item" and _has_fence(item.text)
        if is_candidate and (made := _make(item, items, names, crate)):
            yield made


def _has_fence(text: str) -> bool:
    return "```" in text or "~~~" in text


def _make(
    item: Item, items: list[Item], names: frozenset[str], crate: str
) -> FunctionWithTests | None:
    start, _ = places_of(item.text)
    lines = [line for comment in comments_of(item.text[: max(start, 0)]) for line in comment]
    blocks = list(blocks_of(lines))
    tests: list[_Test] = []
    for block in blocks:
        found = _test_of(block, crate, names, len(tests) + 1)
        if found and not found.words.isdisjoint(item.names) and len(tests) < MAX_TESTS:
            tests.append(found)
    prose = _without(lines, blocks, [test.block for test in tests])
    if not tests or not any(_WORD.search(line) for line in prose if not _HEADING.match(line)):
        return None
    comment = "".join(f"/// {line}".rstrip() + "\n" for line in prose)
    words = frozenset().union(*(test.words for test in tests))
    inside = "\n\n".join(test.text for test in tests)
    return cut_out(item, items, words, inside, comment + _attributes(item.text[:start]))


def _test_of(block: Block, crate: str, names: frozenset[str], number: int) -> _Test | None:
    """Return an example as a test, or None when it cannot be one or would test nothing."""
    marks = marks_of(block.info)
    if marks is None or marks & _NOT_RUN:
        return None
    must_panic = "should_panic" in marks
    code = _at_home(ALLOW_UNUSED.sub("", without_hidden(block.lines)[1]), crate, names)
    lexed = [token.text for token in tokens(code)]
    pairs = frozenset(pairwise(lexed))
    has_assert = any(a.startswith(_ASSERTS) and b == "!" for a, b in pairs)
    names_crate = (crate, ":") in pairs or names_outside(code)
    if names_crate or not (has_assert or must_panic) or not _stays_inside(code):
        return None
    result = ""
    if MAIN.search(code):
        code = f"{code.rstrip()}\n\n{'let _ = main();' if must_panic else 'main()'}"
        result = "" if must_panic else " -> impl std::process::Termination"
    elif code.rstrip().endswith("(())"):
        result = " -> Result<(), impl std::fmt::Debug>"
    mark = "#[test]\n#[should_panic]" if must_panic else "#[test]"
    text = f"{mark}\nfn example_{number}(){result} {{\n{indented(code.strip())}\n}}"
    return _Test(block, text, frozenset(lexed))


def _at_home(code: str, crate: str, names: frozenset[str]) -> str:
    """Return an example without the name of its crate, where a `use` of the parent replaces it."""
    own = rf"(?:::\s*)?\b{re.escape(crate)}\b"
    code = re.sub(rf"(?m)^[ \t]*(?:#\[macro_use\]\s*)?extern\s+crate\s+{crate}\s*;", "", code)
    code = re.sub(rf"\buse\s+{own}\s*(?:::[^;]{{0,1000}})?;", "", code)

    def last(path: re.Match[str]) -> str:
        return path["name"] if path["name"] in names else path[0]

    return re.sub(rf"{own}\s*::\s*(?:[a-z_]\w*\s*::\s*)*(?P<name>\w+)", last, code)


def _stays_inside(code: str) -> bool:
    """Return whether an example parses as the body of one function: no brace closes more."""
    root = tree_of(f"fn example() {{\n{code}\n}}").root_node
    return not root.has_error and root.named_child_count == 1


def _without(lines: list[str], blocks: list[Block], dropped: list[Block]) -> list[str]:
    """Return a comment's lines without some blocks and without headings that stand over nothing."""
    fenced = {n for block in blocks for n in block.place}
    gone = {n for block in dropped for n in block.place}
    left = [(lines[n], n in fenced) for n in range(len(lines)) if n not in gone]
    kept: list[str] = []
    level = 0  # of the heading above which nothing was said yet, read from the end
    is_said = False
    for line, is_code in reversed(left):
        heading = None if is_code else _HEADING.match(line)
        if heading and not is_said and level <= len(heading[1]):
            continue
        if heading:
            is_said, level = False, len(heading[1])
        elif line.strip():
            is_said = True
        if line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept[::-1]


def _attributes(text: str) -> str:
    """Return the attributes before a function, a line for each, without those about building it."""
    nodes = tree_of(text).root_node.children
    found = [node.text.decode() for node in nodes if node.type == "attribute_item"]
    return "".join(f"{attribute}\n" for attribute in found if not _ABOUT_BUILDING.match(attribute))
