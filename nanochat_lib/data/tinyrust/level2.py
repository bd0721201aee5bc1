"""Level 2: compositions of filter, map and reduce, and of two integer operations."""

from __future__ import annotations

from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Sketch, indent


def chain_body(test: grammar.Predicate | None, op: grammar.Map | None, method: str) -> str:
    """Return a slice pipeline as an iterator chain."""
    chain = "values.iter().copied()"
    if test:
        chain += f".filter(|&x| {test.rust('x')})"
    if op:
        chain += f".map(|x| {op.of('x')})"
    return f"{chain}.{method}"


def loop_body(test: grammar.Predicate | None, op: grammar.Map | None, step: str) -> str:
    """Return a slice pipeline as a for loop that updates `total`."""
    line = step.replace("{y}", op.of("x") if op else "x")
    if test:
        line = f"if {test.rust('x')} {{\n    {line}\n}}"
    return f"let mut total = 0;\nfor &x in values {{\n{indent(line)}\n}}\ntotal"


def _pipeline(rng: Random, test: grammar.Predicate | None, op: grammar.Map | None) -> Sketch:
    kind, end = rng.choice(INTEGERS), grammar.reduction(rng)
    if test is None and end.key == "count":
        end = grammar.Reduction("sum", "returns their sum", "sum()", "0", "total += {y};", sum)
    parts = [part for part in (test, op, end) if part]
    steps = ([f"keeps the values that are {test.phrase}"] if test else []) + (
        [op.each if test else op.each.replace("each", "each value")] if op else []
    )
    doc = f"{', '.join(steps)} and {end.phrase}."
    bodies = [chain_body(test, op, end.method)]
    if end.step:
        bodies.append(loop_body(test, op, end.step))

    def reference(values: list[int]) -> int:
        kept = [x for x in values if test is None or test.holds(x)]
        return end.apply([op.apply(x) for x in kept] if op else kept)

    constants = (*(test.constants if test else ()), *(op.constants if op else ()))
    return Sketch(
        name="_".join(part.key for part in parts),
        doc=doc[0].upper() + doc[1:],
        arguments=(("values", f"&[{kind}]"),),
        result=end.result or kind,
        bodies=tuple(bodies),
        inputs=grammar.slice_inputs(constants),
        reference=reference,
        composition=tuple(part.key for part in parts),
        parameters=(kind, *constants),
    )


def filter_reduce(rng: Random) -> Sketch:
    """Filter, then reduce."""
    return _pipeline(rng, grammar.predicate(rng), None)


def map_reduce(rng: Random) -> Sketch:
    """Map, then reduce."""
    return _pipeline(rng, None, grammar.int_map(rng))


def filter_map_reduce(rng: Random) -> Sketch:
    """Filter, map, then reduce."""
    return _pipeline(rng, grammar.predicate(rng), grammar.int_map(rng))


FAMILIES = (
    Family("filter_reduce", 2, filter_reduce),
    Family("map_reduce", 2, map_reduce),
    Family("filter_map_reduce", 2, filter_map_reduce),
)
