"""Floats: arithmetic, comparisons, rounding, conversions, reductions over slices.

Constants and inputs are multiples of 0.25, so that sums and products are exact; quotients are
rounded alike by Rust and Python, which both follow IEEE 754. Tests compare with `==`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Sketch, Some


@dataclass(frozen=True)
class FloatMap:
    """A function of one float: words on "it", Rust on `{x}`, Python."""

    key: str
    phrase: str
    template: str
    apply: Callable[[float], float]
    constants: tuple[float, ...] = ()

    def rust(self, x: str) -> str:
        """Return this map of a variable or a method call."""
        return self.template.replace("{x}", x)


def _quarter(rng: Random, low: int = 1, high: int = 40) -> float:
    return rng.randint(low, high) / 4


def float_map(rng: Random) -> FloatMap:
    """Draw a function of one float with its constant."""
    c = _quarter(rng)
    return rng.choice(
        (
            FloatMap("add", f"adds {c} to {{}}", f"{{x}} + {c}", lambda x: x + c, (c,)),
            FloatMap("subtract", f"subtracts {c} from {{}}", f"{{x}} - {c}", lambda x: x - c, (c,)),
            FloatMap("multiply", f"multiplies {{}} by {c}", f"{{x}} * {c}", lambda x: x * c, (c,)),
            FloatMap("divide", f"divides {{}} by {c}", f"{{x}} / {c}", lambda x: x / c, (c,)),
            FloatMap(
                "cap", f"limits {{}} to at most {c}", f"{{x}}.min({c})", lambda x: min(x, c), (c,)
            ),
            FloatMap(
                "raise", f"raises {{}} to at least {c}", f"{{x}}.max({c})", lambda x: max(x, c),
                (c,),
            ),
            FloatMap("abs", "takes the absolute value of {}", "{x}.abs()", abs),
            FloatMap("square", "squares {}", "{x} * {x}", lambda x: x * x),
            FloatMap("floor", "rounds {} down", "{x}.floor()", lambda x: float(math.floor(x))),
            FloatMap("ceil", "rounds {} up", "{x}.ceil()", lambda x: float(math.ceil(x))),
        )
    )  # fmt: skip


def float_inputs(constants: tuple[float, ...] = ()) -> Callable[[Random], list[tuple]]:
    """Return a drawer of single floats: 0, every constant with its neighbours, and others."""
    near = dict.fromkeys([0.0, -2.5, *(c + d for c in constants for d in (-0.25, 0.0, 0.25))])
    return lambda rng: [(x,) for x in (*near, *(_quarter(rng, -120, 120) for _ in range(4)))]


def _slices(constants: tuple[float, ...]) -> Callable[[Random], list[tuple]]:
    def draw(rng: Random) -> list[tuple]:
        edges = [c + d for c in constants for d in (-0.25, 0.0, 0.25)] or [-0.5, 0.0, 1.5]
        others = [[_quarter(rng, -80, 80) for _ in range(n)] for n in (1, 2, 4, 5)]
        return [([],), (edges,), *(([x],) for x in dict.fromkeys(edges)), *((x,) for x in others)]

    return draw


def float_op(rng: Random) -> Sketch:
    """One operation on a float."""
    op = float_map(rng)
    return Sketch(
        name=f"{op.key}_float",
        doc=grammar.capitalised(f"{op.phrase.format('`x`')}."),
        arguments=(("x", "f64"),),
        result="f64",
        bodies=(op.rust("x"),),
        inputs=float_inputs(op.constants),
        reference=op.apply,
        parameters=(op.key, *op.constants),
    )


_COMPARISONS = (
    ("above", "greater than {c}", "x > {c}", lambda x, c: x > c),
    ("below", "less than {c}", "x < {c}", lambda x, c: x < c),
    ("at_least", "at least {c}", "x >= {c}", lambda x, c: x >= c),
    ("at_most", "at most {c}", "x <= {c}", lambda x, c: x <= c),
    ("near", "closer than {c} to 0", "x.abs() < {c}", lambda x, c: abs(x) < c),
)


def float_branch(rng: Random) -> Sketch:
    """One of two operations on a float, chosen by a comparison."""
    (key, phrase, code, holds), c = rng.choice(_COMPARISONS), _quarter(rng)
    yes, no = float_map(rng), float_map(rng)
    condition = code.format(c=c)
    return Sketch(
        name=f"{yes.key}_if_{key}_else_{no.key}",
        doc=f"If `x` is {phrase.format(c=c)}, {yes.phrase.format('it')},\n"
        f"otherwise {no.phrase.format('it')}.",
        arguments=(("x", "f64"),),
        result="f64",
        bodies=(
            f"if {condition} {{\n    {yes.rust('x')}\n}} else {{\n    {no.rust('x')}\n}}",
            f"match {condition} {{\n    true => {yes.rust('x')},\n    false => {no.rust('x')},\n}}",
        ),
        inputs=float_inputs((c, -c, *yes.constants, *no.constants)),
        reference=lambda x: yes.apply(x) if holds(x, c) else no.apply(x),
        composition=("float", key, yes.key, no.key),
        parameters=(c, *yes.constants, *no.constants),
    )


def int_to_float(rng: Random) -> Sketch:
    """Convert an integer and go on with a float (held out)."""
    kind, op, step = rng.choice((*INTEGERS, "u8", "u32")), float_map(rng), _quarter(rng)
    low = 0 if kind.startswith("u") else -60
    return Sketch(
        name=f"scaled_{op.key}",
        doc=f"Counts `n` steps of {step} each, then {op.phrase.format('the result')}.",
        arguments=(("n", kind),),
        result="f64",
        bodies=(f"let x = n as f64 * {step};\n{op.rust('x')}",),
        inputs=lambda rng: [(n,) for n in (0, 1, 2, *(rng.randint(low, 60) for _ in range(5)))],
        reference=lambda n: op.apply(n * step),
        composition=(kind, op.key),
        parameters=(step, *op.constants),
    )


_ROUNDINGS = (
    ("down", "floor()", lambda x: math.floor(x)),
    ("up", "ceil()", lambda x: math.ceil(x)),
    (
        "to the nearest integer", "round()",
        lambda x: int(math.copysign(math.floor(abs(x) + 0.5), x)),  # halves away from 0
    ),
    ("towards 0", "trunc()", lambda x: math.trunc(x)),
)  # fmt: skip


def round_to_int(rng: Random) -> Sketch:
    """Map a float, round it in one of four ways, map the integer."""
    kind, op, after = rng.choice(INTEGERS), float_map(rng), grammar.int_map(rng)
    words, method, rounded = rng.choice(_ROUNDINGS)
    return Sketch(
        name=f"{op.key}_{method[:-2]}_{after.key}",
        doc=grammar.capitalised(f"{op.phrase.format('`x`')}, rounds {words},\n")
        + f"then {after.done_to('the integer')}.",
        arguments=(("x", "f64"),),
        result=kind,
        bodies=(
            f"let n = ({op.rust('x')}).{method} as {kind};\n{after.of('n')}",
            f"let y = {op.rust('x')};\nlet n = y.{method} as {kind};\n{after.of('n')}",
        ),
        inputs=float_inputs((0.5, 1.5, *op.constants)),
        reference=lambda x: after.apply(rounded(op.apply(x))),
        composition=(op.key, method, after.key),
        parameters=(kind, *op.constants, *after.constants),
    )


_FLOAT_ENDS = (
    ("sum", "returns their sum", "sum()", "total += {y};",
     lambda v: reduce(operator.add, v, 0.0)),  # newer Pythons' sum is more exact than Rust's
    ("largest", "returns the largest, at least 0", "fold(0.0, f64::max)",
     "total = total.max({y});", lambda v: max([0.0, *v])),
    ("smallest", "returns the smallest, at most 0", "fold(0.0, f64::min)",
     "total = total.min({y});", lambda v: min([0.0, *v])),
)  # fmt: skip


def float_reduce(rng: Random) -> Sketch:
    """Filter, map and reduce a slice of floats."""
    (key, phrase, code, holds), c, op = rng.choice(_COMPARISONS), _quarter(rng), float_map(rng)
    end, words, method, step, finish = rng.choice(_FLOAT_ENDS)
    words = words.replace("the largest, or 0 if there is none", "the largest, at least 0")
    condition = code.format(c=c)
    total = "let mut total = 0.0;" if end == "sum" else "let mut total: f64 = 0.0;"
    return Sketch(
        name=f"float_{key}_{op.key}_{end}",
        doc=f"Keeps the values that are {phrase.format(c=c)},\n"
        f"{op.phrase.format('each')} and {words}.",
        arguments=(("values", "&[f64]"),),
        result="f64",
        bodies=(
            f"values.iter().copied().filter(|&x| {condition}).map(|x| {op.rust('x')}).{method}",
            f"{total}\nfor &x in values {{\n    if {condition} {{\n"
            f"        {step.replace('{y}', op.rust('x'))}\n    }}\n}}\ntotal",
        ),
        inputs=_slices((c, -c, *op.constants)),
        reference=lambda values: finish([op.apply(x) for x in values if holds(x, c)]),
        composition=(key, op.key, end),
        parameters=(c, *op.constants),
    )


def mean(rng: Random) -> Sketch:
    """The mean of the values that pass a comparison, or None."""
    (key, phrase, code, holds), c, op = rng.choice(_COMPARISONS), _quarter(rng), float_map(rng)
    condition = code.format(c=c)

    def reference(values: list[float]) -> Some | None:
        kept = [x for x in values if holds(x, c)]
        return Some(op.apply(sum(kept) / len(kept))) if kept else None

    return Sketch(
        name=f"mean_{key}_{op.key}",
        doc=f"Takes the mean of the values that are {phrase.format(c=c)}\n"
        f"and {op.phrase.format('it')}; None if there are no such values.",
        arguments=(("values", "&[f64]"),),
        result="Option<f64>",
        bodies=(
            "let mut sum = 0.0;\nlet mut count = 0;\nfor &x in values {\n"
            f"    if {condition} {{\n        sum += x;\n        count += 1;\n    }}\n}}\n"
            "if count == 0 {\n    return None;\n}\n"
            f"let mean = sum / count as f64;\nSome({op.rust('mean')})",
            f"let kept: Vec<f64> = values.iter().copied().filter(|&x| {condition}).collect();\n"
            "if kept.is_empty() {\n    None\n} else {\n"
            "    let mean = kept.iter().sum::<f64>() / kept.len() as f64;\n"
            f"    Some({op.rust('mean')})\n}}",
        ),
        inputs=_slices((c, -c)),
        reference=reference,
        composition=("mean", key, op.key),
        parameters=(c, *op.constants),
    )


FAMILIES = (
    Family("float_op", 1, float_op),
    Family("float_branch", 3, float_branch),
    Family("int_to_float", 3, int_to_float, held=True),
    Family("round_to_int", 3, round_to_int),
    Family("float_reduce", 3, float_reduce),
    Family("mean", 4, mean),
)
