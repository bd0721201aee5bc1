"""Cut examples out of the documentation comments of source files, by rustdoc's rules.

Input: the text of a `.rs` file. Output: the same `Example`s that `pages.py` cuts out of rendered
documentation. A block is Rust when its fence says nothing, or only words that rustdoc knows; lines
that start with `# ` are compiled and not shown; what the fence marks `ignore` or `compile_fail` is
no candidate. Not read: blocks that are code by indentation only, and `#[doc = "..."]` attributes.

Source: rustdoc book, "Documentation tests"; `LangString::parse` in rustdoc's markdown module.
"""

from __future__ import annotations

import platform
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat_lib.data.extraction.pages import Example, example_of

_LINE_DOC = re.compile(r"^[ \t]*//(?:/(?!/)|!)(?P<text>.*)$")
_BLOCK_DOC = re.compile(r"/\*(?:\*(?![*/])|!)(?P<text>.*?)\*/", re.DOTALL)
_STAR = re.compile(r"^[ \t]*\*[ ]?", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_KNOWN = frozenset({"rust", "should_panic", "no_run", "ignore", "compile_fail", "test_harness"})
_TARGET = f"{platform.machine()}-{sys.platform}"  # `ignore-windows` ignores on Windows only
_EDITION = re.compile(r"edition(\d{4})")
_ERROR_CODE = re.compile(r"E\d{4}")


@dataclass(frozen=True)
class Block:
    """A closed fenced block: what its fence says, what is inside, and the lines it takes up."""

    info: str
    lines: list[str]
    place: range  # of lines of the comment, with both fences


def comment_examples(source: str, edition: str) -> Iterator[Example]:
    """Yield the examples of a file's documentation comments, in file order by kind of comment.

    Args:
        edition: of the package; a block may name another one.
    """
    if "```" not in source and "~~~" not in source:
        return
    for comment in comments_of(source):
        for block in blocks_of(comment):
            marks = marks_of(block.info)
            if marks is None or marks & {"ignore", "compile_fail"} or not any(block.lines):
                continue
            named = [m[1] for mark in marks if (m := _EDITION.fullmatch(mark))]
            shown, whole = without_hidden(block.lines)
            if shown.strip():
                yield example_of(shown, whole, marks, named[0] if named else edition)


def comments_of(source: str) -> Iterator[list[str]]:
    """Yield each documentation comment as its lines, indented alike."""
    run: list[str] = []
    for line in source.splitlines():
        match = _LINE_DOC.match(line)
        if match:
            run.append(match["text"])
        elif run:
            yield _dedented(run)
            run = []
    if run:
        yield _dedented(run)
    if "/**" in source or "/*!" in source:
        for match in _BLOCK_DOC.finditer(source):
            yield _dedented(_STAR.sub("", match["text"]).splitlines())


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def blocks_of(lines: list[str]) -> Iterator[Block]:
    """Yield the closed fenced blocks of a comment."""
    fence, info, first = "", "", 0
    for n, line in enumerate(lines):
        match = _FENCE.match(line)
        if not match:
            continue
        if not fence:
            fence, info, first = match["fence"], match["info"], n
        elif match["fence"].startswith(fence) and not match["info"].strip():
            yield Block(info, lines[first + 1 : n], range(first, n + 1))
            fence = ""


def marks_of(info: str) -> frozenset[str] | None:
    """Return the words of a fence; None when they say that the block is not Rust."""
    marks = frozenset(word for word in re.split(r"[,\s]+", info) if word)
    targets = {mark for mark in marks if mark.startswith("ignore-")}
    marks -= targets
    if any(target.removeprefix("ignore-") in _TARGET for target in targets):
        marks |= {"ignore"}
    is_known = all(
        mark in _KNOWN or _EDITION.fullmatch(mark) or _ERROR_CODE.fullmatch(mark) for mark in marks
    )
    return marks if is_known or "rust" in marks else None


def without_hidden(lines: list[str]) -> tuple[str, str]:
    """Return what a reader sees and what is compiled: `# x` is hidden, `## x` shows `# x`."""
    shown, whole = [], []
    for line in lines:
        text = line.lstrip()
        if text == "#" or text.startswith("# "):
            whole.append(text[2:])
        else:
            if text.startswith("##"):
                line = line.replace("##", "#", 1)
            shown.append(line)
            whole.append(line)
    return "\n".join(shown), "\n".join(whole) + "\n"
