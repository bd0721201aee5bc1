"""Small mutations of Rust text, for tests: each mutant differs in one place outside of strings.

`mutants(text)` yields (kind, mutated text): swapped operators, numbers off by one, negated
conditions, removed statements, exchanged methods. Some mutants mean the same as the original; an
oracle has to say which break a test.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from nanochat_lib.rust.syntax import tokens

_SWAPS = (
    ("operator", r"(?<=\s)\+(?=\s)", "-"),
    ("operator", r"(?<=\s)-(?=\s)", "+"),
    ("operator", r"(?<=\s)\*(?=\s)", "+"),
    ("operator", r"(?<=\s)/(?=\s)", "*"),
    ("operator", r"(?<=\s)%(?=\s)", "/"),
    ("operator", r"\+=", "-="),
    ("operator", r"-=", "+="),
    ("comparison", r"(?<=\s)<(?=\s)", "<="),
    ("comparison", r"(?<=\s)<=(?=\s)", "<"),
    ("comparison", r"(?<=\s)>(?=\s)", ">="),
    ("comparison", r"(?<=\s)>=(?=\s)", ">"),
    ("comparison", r"==", "!="),
    ("comparison", r"!=", "=="),
    ("logic", r"&&", "||"),
    ("logic", r"\|\|(?=\s)", "&&"),
    ("logic", r"\btrue\b", "false"),
    ("logic", r"\bfalse\b", "true"),
    ("branch", r"\bif (?!let\b)([^{};]+) \{", r"if !(\1) {"),
    ("branch", r"\bif (?!let\b)([^{};]+)\{", r"if true {"),
    ("branch", r"\bbreak;", "continue;"),
    ("branch", r"\bcontinue;", "break;"),
    ("range", r"\.\.=", ".."),
    ("range", r"\.\.(?=[\w(])", "..="),
    ("method", r"\.max\(", ".min("),
    ("method", r"\.min\(", ".max("),
    ("method", r"\.any\(", ".all("),
    ("method", r"\.is_empty\(\)", ".len() == 1"),
    ("method", r"\.to_lowercase\(\)", ".to_uppercase()"),
    ("method", r"\.rev\(\)", ""),
    ("statement", r"(?m)^ *(?!let |use |return |fn )[^\n{}]+;$", ""),
    ("statement", r"(?m)^( *)return [^\n{}]+;$", r"\1"),
)  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])|(?<=\[)\d+(?=\])")


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, mutant) for every place of every mutation."""
    hidden = [
        (token.start, token.start + len(token.text))
        for token in tokens(text, comments=True)
        if token.kind in ("string", "char", "line_comment", "block_comment")
    ]
    for kind, pattern, replacement in _SWAPS:
        for found in re.finditer(pattern, text):
            if not any(start <= found.start() < end for start, end in hidden):
                yield kind, text[: found.start()] + found.expand(replacement) + text[found.end() :]
    for found in _NUMBER.finditer(text):
        if not any(start <= found.start() < end for start, end in hidden):
            for change in (1, -1):
                number = int(found.group()) + change
                if number >= 0:
                    yield "number", text[: found.start()] + str(number) + text[found.end() :]


def some_mutants(text: str, n: int, seed: int) -> list[tuple[str, str]]:
    """Return at most `n` distinct mutants, the kinds in turns."""
    chance = random.Random(seed)
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, mutant in dict.fromkeys(mutants(text)):
        if mutant != text:
            by_kind.setdefault(kind, []).append((kind, mutant))
    for found in by_kind.values():
        chance.shuffle(found)
    chosen = []
    while len(chosen) < n and any(by_kind.values()):
        chosen += [found.pop() for found in by_kind.values() if found]
    return chosen[:n]
