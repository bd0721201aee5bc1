"""What a TinyRust family is, and how Python values become Rust literals.

A family is one small Python function `sketch(rng) -> Sketch`. It draws typed parameters and says,
for one concrete Rust function, its doc comment, signature, bodies in several idioms, an independent
Python `reference`, and `inputs` for the tests. Nothing here runs Rust. To add a family, write such
a function in the module of its level and add a line to that module's `FAMILIES`.

    Sketch(name="add_to", doc="Returns `n` plus 7.", arguments=(("n", "i32"),), result="i32",
           bodies=("n + 7",), reference=lambda n: n + 7, inputs=..., parameters=("i32", 7))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

INTEGERS = ("i32", "i64")


@dataclass(frozen=True)
class Sketch:
    """One concrete function before it is written out.

    Attributes:
        arguments: (name, Rust type) in order.
        bodies: one text per idiom, without outer indentation; all mean the same.
        inputs: draws argument tuples for the tests, given a generator of its own.
        reference: the expected value of one argument tuple, computed in Python.
        composition: names of the operations put together; held out as a whole when two or more.
        parameters: constants and types; held out together with the composition.
        items: structs, enums or traits shown above the doc comment.
        result: Rust type of the result; "": the function returns nothing.
        generics: text between the name and the arguments, such as `<'a>`.
        bounds: text between the result and the body, a `where` clause with a space before it.
        test_types: Rust types of arguments and result in the tests, where they differ.
        call: how the tests call it; `{0}`, `{1}` are single arguments, `{given}` all of them.
    """

    name: str
    doc: str
    arguments: tuple[tuple[str, str], ...]
    result: str
    bodies: tuple[str, ...]
    inputs: Callable[[Random], list[tuple]]
    reference: Callable[..., Any]
    composition: tuple[str, ...] = ()
    parameters: tuple = ()
    items: str = ""
    generics: str = ""
    bounds: str = ""
    test_types: tuple[str, ...] = ()
    call: str = "{name}({given})"

    @property
    def types(self) -> tuple[str, ...]:
        """Return the concrete types of the arguments, then of the result."""
        return self.test_types or (*(kind for _, kind in self.arguments), self.result)


@dataclass(frozen=True)
class Family:
    """A named generator of sketches; `held` families never enter training."""

    name: str
    level: int
    sketch: Callable[[Random], Sketch]
    held: bool = False


class Rust(NamedTuple):
    """A test input whose Rust text is given: the reference sees `value` only."""

    text: str
    value: Any


class Some(NamedTuple):
    """`Some(value)`; Python's None is Rust's `None`."""

    value: Any


class Ok(NamedTuple):
    """`Ok(value)`."""

    value: Any


class Err(NamedTuple):
    """`Err(value)`."""

    value: Any


def plain(value: Any) -> Any:
    """Return a test input as the reference sees it, with `Rust` texts taken off."""
    if isinstance(value, Rust):
        return value.value
    return [plain(part) for part in value] if isinstance(value, list) else value


def literal(value: Any, kind: str) -> str:
    """Return a Python value as a Rust expression of type `kind`.

    `literal([1, 2], "&[i32]")` is `&[1, 2]`; `literal(Some("a"), "Option<String>")` is
    `Some("a".to_string())`. Empty vectors name their type, since `assert_eq!` cannot infer it.
    """
    if isinstance(value, Rust):
        return value.text
    if isinstance(value, Some | Ok | Err):
        inner = split_types(kind[kind.index("<") + 1 : -1])
        of = inner[-1] if isinstance(value, Err) else inner[0]
        return f"{type(value).__name__}({literal(value.value, of)})"
    if value is None:
        return "None"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value, kind)
    if isinstance(value, tuple):
        parts = zip(value, split_types(kind[1:-1]), strict=True)
        return "(" + ", ".join(literal(part, of) for part, of in parts) + ")"
    if isinstance(value, list):
        return _list(value, kind)
    return str(value)


def _text(value: str, kind: str) -> str:
    if kind == "char":
        return "'" + value.replace("'", "\\'") + "'"
    quoted = json.dumps(value)
    return f"{quoted}.to_string()" if kind == "String" else quoted


def _list(value: list, kind: str) -> str:
    if kind.startswith("Vec<"):
        of = kind[4:-1]
        inside = ", ".join(literal(part, of) for part in value)
        return f"vec![{inside}]" if value else f"Vec::<{of}>::new()"
    of = kind.removeprefix("&").removeprefix("'a ")[1:-1]
    return "&[" + ", ".join(literal(part, of) for part in value) + "]"


def split_types(text: str) -> list[str]:
    """Split `A, Vec<(B, C)>` at its outer commas."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "<([" and 1) or -(sign in ">)]")
        if sign == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def indent(text: str, by: int = 1) -> str:
    """Indent every line that is not empty by `by` levels of four spaces."""
    pad = "    " * by
    return "\n".join(pad + line if line else line for line in text.split("\n"))
