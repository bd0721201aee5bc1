"""Break Rust programs in the ways that language models and tired people do.

Input: a program that works. Output: a mutant of it, changed in one place: a token lost, doubled or
moved, a name misspelt, a borrow or `mut` forgotten, a type or operator exchanged, a line dropped,
the text cut off. Some mutants still work: what they are worth is decided by rustc and the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nanochat_lib.rust.syntax import Token, tokens

_OPERATORS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "<": ">", ">": "<", "&": "|", "|": "&",
    "!": "", "?": "",
}  # fmt: skip
_TYPES = ("i32", "u8", "u64", "usize", "f64", "bool", "char", "String", "&str", "Vec<i32>")
_CLOSING = frozenset(")]}")

Edit = Callable[[str, list[Token], Random], str | None]


def mutants(source: str, n: int, rng: Random) -> list[tuple[str, str]]:
    """Return up to `n` distinct (kind, text) mutants of a program, kinds drawn evenly.

    Example: `let mut x = 1;` with kind `lose_mut` -> `let x = 1;`.
    """
    lexed = list(tokens(source))
    found: dict[str, str] = {}
    for _ in range(4 * n):
        kind = rng.choice(KINDS)
        text = EDITS[kind](source, lexed, rng) if lexed else None
        if text is not None and text != source:
            found.setdefault(text, kind)
        if len(found) == n:
            break
    return [(kind, text) for text, kind in found.items()]


def _replace(source: str, token: Token, text: str) -> str:
    return source[: token.start] + text + source[token.start + len(token.text) :]


def _at_one(lexed: list[Token], rng: Random, fits: Callable[[Token], bool]) -> Token | None:
    places = [token for token in lexed if fits(token)]
    return rng.choice(places) if places else None


def _with(fits: Callable[[Token], bool], change: Callable[[Token, Random], str]) -> Edit:
    """Return an edit that rewrites one fitting token."""

    def edit(source: str, lexed: list[Token], rng: Random) -> str | None:
        token = _at_one(lexed, rng, fits)
        return None if token is None else _replace(source, token, change(token, rng))

    return edit


def _is_name(token: Token) -> bool:
    return token.kind == "word" and token.text.lower() == token.text and len(token.text) < 20


def _swap_neighbours(source: str, lexed: list[Token], rng: Random) -> str | None:
    if len(lexed) < 2:
        return None
    place = rng.randrange(len(lexed) - 1)
    first, second = lexed[place : place + 2]
    between = source[first.start + len(first.text) : second.start]
    swapped = second.text + between + first.text
    return source[: first.start] + swapped + source[second.start + len(second.text) :]


def _take_other_name(source: str, lexed: list[Token], rng: Random) -> str | None:
    names = [token for token in lexed if _is_name(token)]
    if len(names) < 2:
        return None
    return _replace(source, rng.choice(names), rng.choice(names).text)


def _drop_line(source: str, lexed: list[Token], rng: Random) -> str | None:
    lines = source.split("\n")
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines)


def _repeat_line(source: str, lexed: list[Token], rng: Random) -> str | None:
    lines = source.split("\n")
    place = rng.randrange(len(lines))
    return "\n".join([*lines[:place], lines[place], *lines[place:]])


def _cut_off(source: str, lexed: list[Token], rng: Random) -> str | None:
    return source[: lexed[rng.randrange(len(lexed) // 2, len(lexed))].start]


def _drop_call(source: str, lexed: list[Token], rng: Random) -> str | None:
    """Drop one `.method()` without arguments, such as `.clone()` or `.iter()`."""
    places = [
        i for i in range(len(lexed) - 3)
        if lexed[i].text == "." and lexed[i + 2].text == "(" and lexed[i + 3].text == ")"
    ]  # fmt: skip
    if not places:
        return None
    place = rng.choice(places)
    return source[: lexed[place].start] + source[lexed[place + 3].start + 1 :]


def _is(*texts: str) -> Callable[[Token], bool]:
    return lambda token: token.text in texts


EDITS: dict[str, Edit] = {
    "lose_token": _with(lambda token: True, lambda token, rng: ""),
    "double_token": _with(lambda token: True, lambda token, rng: f"{token.text} {token.text}"),
    "swap_neighbours": _swap_neighbours,
    "other_name": _take_other_name,
    "misspell": _with(_is_name, lambda token, rng: token.text + rng.choice("sx_1")),
    "lose_mut": _with(_is("mut"), lambda token, rng: ""),
    "lose_borrow": _with(_is("&"), lambda token, rng: ""),
    "borrow": _with(_is_name, lambda token, rng: "&" + token.text),
    "move_out": _with(_is_name, lambda token, rng: "*" + token.text),
    "other_number": _with(
        lambda token: token.kind == "number",
        lambda token, rng: rng.choice(("0", "1", "2", "10", token.text + "0", "256")),
    ),
    "other_operator": _with(_is(*_OPERATORS), lambda token, rng: _OPERATORS[token.text]),
    "other_type": _with(_is(*_TYPES), lambda token, rng: rng.choice(_TYPES)),
    "lose_semicolon": _with(_is(";"), lambda token, rng: ""),
    "lose_bracket": _with(_is(*_CLOSING), lambda token, rng: ""),
    "lose_quote": _with(lambda token: token.kind == "string", lambda token, rng: token.text[:-1]),
    "lose_lifetime": _with(lambda token: token.kind == "lifetime", lambda token, rng: ""),
    "drop_line": _drop_line,
    "repeat_line": _repeat_line,
    "drop_call": _drop_call,
    "cut_off": _cut_off,
    "todo": _with(_is("{"), lambda token, rng: "{ todo!() ;"),
    "panic": _with(_is("{"), lambda token, rng: '{ panic!("no") ;'),
}
KINDS = tuple(EDITS)
