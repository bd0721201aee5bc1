"""The typed expression grammar: integer predicates, maps and reductions with three faces each.

Every operation carries a phrase for the doc comment, a Rust template and a Python reference, so
that any composition is documented, written and checked by the same three tables. Ranges are chosen
so that no test overflows i32: inputs lie in -60..60 and at most two maps follow each other.
Python's `%` and `//` on a positive divisor are Rust's `rem_euclid` and `div_euclid`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

# Largest constant of an operation. A small model must learn to copy each number from the prompt, so
# few numbers are learnt in minutes and many are not; variety comes from compositions instead.
LARGEST = 24

# Binding strength of a Rust expression: what it `gives`, and what an operand `needs`.
SUM, TERM, ATOM = 1, 2, 3


@dataclass(frozen=True)
class Expr:
    """A Rust expression with its binding strength."""

    text: str
    gives: int = ATOM

    def within(self, needs: int) -> str:
        """Return the text, in parentheses when it binds too weakly."""
        return self.text if self.gives >= needs else f"({self.text})"


@dataclass(frozen=True)
class Predicate:
    """A condition on one integer; `phrase` completes "values ..." and "`n` is ..."."""

    key: str
    phrase: str
    template: str
    holds: Callable[[int], bool]
    constants: tuple[int, ...] = ()

    def rust(self, x: str) -> str:
        """Return the condition on the variable `x`."""
        return self.template.replace("{x}", x)


@dataclass(frozen=True)
class Map:
    """An integer function; `each` follows "Keeps ...,", `once` is "Returns ..." of one number."""

    key: str
    each: str
    once: str
    template: str
    needs: int
    gives: int
    apply: Callable[[int], int]
    constants: tuple[int, ...] = ()

    def rust(self, x: Expr) -> Expr:
        """Return this map of an expression."""
        return Expr(self.template.replace("{x}", x.within(self.needs)), self.gives)

    def of(self, name: str) -> str:
        """Return the map of a variable as text."""
        return self.rust(Expr(name)).text

    def said(self, subject: str) -> str:
        """Return the value in words, such as "`n` plus 7"."""
        return self.once.replace("{x}", subject)

    def done_to(self, subject: str) -> str:
        """Return the action in words, such as "adds 7 to it"."""
        return self.each.replace("each", subject)


@dataclass(frozen=True)
class Reduction:
    """A slice of integers to one: `method` ends a chain, `step` is a loop's line or ""."""

    key: str
    phrase: str
    method: str
    step: str
    apply: Callable[[list[int]], int]
    result: str = ""  # "" : the element type


def predicate(rng: Random) -> Predicate:
    """Draw a predicate with its constants."""
    return rng.choice(_PREDICATES)(rng)


def int_map(rng: Random) -> Map:
    """Draw a map with its constants."""
    return rng.choice(_MAPS)(rng)


def reduction(rng: Random, counting: bool = True) -> Reduction:
    """Draw a reduction; without `counting` never the one that ignores the values."""
    return rng.choice(_REDUCTIONS if counting else [r for r in _REDUCTIONS if r.key != "count"])


def _even(rng: Random) -> Predicate:
    return Predicate("even", "even", "{x} % 2 == 0", lambda x: x % 2 == 0)


def _odd(rng: Random) -> Predicate:
    return Predicate("odd", "odd", "{x} % 2 != 0", lambda x: x % 2 == 1)


def _positive(rng: Random) -> Predicate:
    return Predicate("positive", "positive", "{x} > 0", lambda x: x > 0)


def _negative(rng: Random) -> Predicate:
    return Predicate("negative", "negative", "{x} < 0", lambda x: x < 0)


def _above(rng: Random) -> Predicate:
    c = rng.randint(1, LARGEST)
    return Predicate("above", f"greater than {c}", f"{{x}} > {c}", lambda x: x > c, (c,))


def _below(rng: Random) -> Predicate:
    c = rng.randint(1, LARGEST)
    return Predicate("below", f"less than {c}", f"{{x}} < {c}", lambda x: x < c, (c,))


def _multiple(rng: Random) -> Predicate:
    c = rng.randint(3, 12)
    phrase = f"divisible by {c}"
    return Predicate("multiple", phrase, f"{{x}} % {c} == 0", lambda x: x % c == 0, (c,))


def _not_multiple(rng: Random) -> Predicate:
    c = rng.randint(3, 12)
    phrase = f"not divisible by {c}"
    return Predicate("not_multiple", phrase, f"{{x}} % {c} != 0", lambda x: x % c != 0, (c,))


def _other_than(rng: Random) -> Predicate:
    c = rng.randint(1, LARGEST)
    phrase = f"different from {c}"
    return Predicate("other_than", phrase, f"{{x}} != {c}", lambda x: x != c, (c,))


def _between(rng: Random) -> Predicate:
    low = rng.randint(1, LARGEST // 2)
    high = low + rng.randint(2, LARGEST // 2)
    phrase, code = f"between {low} and {high}", f"{{x}} >= {low} && {{x}} <= {high}"
    return Predicate("between", phrase, code, lambda x: low <= x <= high, (low, high))


def _add(rng: Random) -> Map:
    c = rng.randint(1, LARGEST)
    return Map(
        "add", f"adds {c} to each", f"{{x}} plus {c}", f"{{x}} + {c}", SUM, SUM, lambda x: x + c,
        (c,),
    )  # fmt: skip


def _subtract(rng: Random) -> Map:
    c = rng.randint(1, LARGEST)
    return Map(
        "subtract", f"subtracts {c} from each", f"{{x}} minus {c}", f"{{x}} - {c}", SUM, SUM,
        lambda x: x - c, (c,),
    )  # fmt: skip


def _multiply(rng: Random) -> Map:
    c = rng.randint(2, 12)
    return Map(
        "multiply", f"multiplies each by {c}", f"{{x}} times {c}", f"{{x}} * {c}", TERM, TERM,
        lambda x: x * c, (c,),
    )  # fmt: skip


def _remainder(rng: Random) -> Map:
    c = rng.randint(2, 12)
    return Map(
        "remainder", f"takes each modulo {c}", f"{{x}} modulo {c}", f"{{x}}.rem_euclid({c})",
        ATOM, ATOM, lambda x: x % c, (c,),
    )  # fmt: skip


def _at_most(rng: Random) -> Map:
    c = rng.randint(1, LARGEST)
    return Map(
        "cap", f"limits each to at most {c}", f"the smaller of {{x}} and {c}", f"{{x}}.min({c})",
        ATOM, ATOM, lambda x: min(x, c), (c,),
    )  # fmt: skip


def _at_least(rng: Random) -> Map:
    c = rng.randint(1, LARGEST)
    return Map(
        "raise", f"raises each to at least {c}", f"the larger of {{x}} and {c}", f"{{x}}.max({c})",
        ATOM, ATOM, lambda x: max(x, c), (c,),
    )  # fmt: skip


def _square(rng: Random) -> Map:
    return Map(
        "square", "squares each", "the square of {x}", "{x}.pow(2)", ATOM, ATOM, lambda x: x * x
    )


def _negate(rng: Random) -> Map:
    return Map("negate", "negates each", "the negative of {x}", "-{x}", ATOM, TERM, lambda x: -x)


def _absolute(rng: Random) -> Map:
    phrase = "takes the absolute value of each"
    return Map("abs", phrase, "the absolute value of {x}", "{x}.abs()", ATOM, ATOM, abs)


_PREDICATES = (
    _even, _odd, _positive, _negative, _above, _below, _multiple, _not_multiple, _other_than,
    _between,
)  # fmt: skip
_MAPS = (
    _add, _subtract, _multiply, _remainder, _at_most, _at_least, _square, _negate, _absolute,
)  # fmt: skip
_REDUCTIONS = (
    Reduction("sum", "returns their sum", "sum()", "total += {y};", sum),
    Reduction("count", "returns how many there are", "count()", "total += 1;", len, "usize"),
    Reduction(
        "largest", "returns the largest, or 0 if there is none", "max().unwrap_or(0)", "",
        lambda values: max(values, default=0),
    ),
    Reduction(
        "smallest", "returns the smallest, or 0 if there is none", "min().unwrap_or(0)", "",
        lambda values: min(values, default=0),
    ),
)  # fmt: skip


def numbers_near(rng: Random, constants: tuple[int, ...], n: int) -> list[int]:
    """Draw `n` integers in -60..60, about half of them at or beside a constant."""
    near = [c + d for c in constants for d in (-1, 0, 1)] or [-1, 0, 1, 2]
    return [rng.choice(near) if rng.random() < 0.5 else rng.randint(-60, 60) for _ in range(n)]


def integer_inputs(constants: tuple[int, ...] = ()) -> Callable[[Random], list[tuple]]:
    """Return a drawer of single integers: 0, every constant with its neighbours, and others."""
    near = dict.fromkeys([0, -7, *(c + d for c in constants for d in (-1, 0, 1))])
    return lambda rng: [(x,) for x in (*near, *(rng.randint(-60, 60) for _ in range(2)))]


def slice_inputs(constants: tuple[int, ...] = ()) -> Callable[[Random], list[tuple]]:
    """Return a drawer of single slices: the empty one, the edges together and alone, others.

    The edges alone matter: among others a wrong bound often hides (in a maximum, say).
    """

    def draw(rng: Random) -> list[tuple]:
        edges = [c + d for c in constants for d in (-1, 0, 1)] or [-2, -1, 0, 1, 2]
        alone = [([edge],) for edge in dict.fromkeys(edges)]
        return [
            ([],),
            (edges,),
            *alone,
            *((numbers_near(rng, constants, n),) for n in (4, 7)),
        ]

    return draw


def capitalised(text: str) -> str:
    """Return a sentence with a capital first letter (the rest as it is)."""
    return text[0].upper() + text[1:]
