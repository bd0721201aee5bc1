"""Level 2: compositions of filter, map and reduce, and of two integer operations."""

from __future__ import annotations

from itertools import pairwise
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
    kind, end = rng.choice(INTEGERS), grammar.reduction(rng, counting=op is None)
    parts = [part for part in (test, op, end) if part]
    steps = [f"keeps the values that are {test.phrase}"] if test else []
    if op:
        steps.append(op.done_to("each" if test else "each value"))
    bodies = [chain_body(test, op, end.method)]
    if end.step:
        bodies.append(loop_body(test, op, end.step))

    def reference(values: list[int]) -> int:
        kept = [x for x in values if test is None or test.holds(x)]
        return end.apply([op.apply(x) for x in kept] if op else kept)

    constants = (*(test.constants if test else ()), *(op.constants if op else ()))
    return Sketch(
        name="_".join(part.key for part in parts),
        doc=grammar.capitalised(f"{', '.join(steps)} and {end.phrase}."),
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


def two_maps(rng: Random) -> Sketch:
    """Two arithmetic operations, one after the other."""
    kind = rng.choice(INTEGERS)
    first, second = grammar.int_map(rng), grammar.int_map(rng)
    return Sketch(
        name=f"{first.key}_then_{second.key}",
        doc=grammar.capitalised(f"{first.done_to('`n`')}, then {second.done_to('the result')}."),
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            second.rust(first.rust(grammar.Expr("n"))).text,
            f"let x = {first.of('n')};\n{second.of('x')}",
        ),
        inputs=grammar.integer_inputs((*first.constants, *second.constants)),
        reference=lambda n: second.apply(first.apply(n)),
        composition=(first.key, second.key),
        parameters=(kind, *first.constants, *second.constants),
    )


def two_tests(rng: Random) -> Sketch:
    """Two conditions on an integer joined by `and` or `or`."""
    kind, first, second = rng.choice(INTEGERS), grammar.predicate(rng), grammar.predicate(rng)
    while second.key == first.key:
        second = grammar.predicate(rng)
    word, sign, join = rng.choice((("and", "&&", all), ("or", "||", any)))
    return Sketch(
        name=f"is_{first.key}_{word}_{second.key}",
        doc=f"Returns true if `n` is {first.phrase} {word} {second.phrase}.",
        arguments=(("n", kind),),
        result="bool",
        bodies=(
            f"{first.rust('n')} {sign} {second.rust('n')}",
            f"let first = {first.rust('n')};\nlet second = {second.rust('n')};\n"
            f"first {sign} second",
        ),
        inputs=grammar.integer_inputs((*first.constants, *second.constants)),
        reference=lambda n: join((first.holds(n), second.holds(n))),
        composition=(first.key, word, second.key),
        parameters=(kind, *first.constants, *second.constants),
    )


def branch(rng: Random) -> Sketch:
    """One of two operations, chosen by a condition."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    yes, no = grammar.int_map(rng), grammar.int_map(rng)
    condition = test.rust("n")
    constants = (*test.constants, *yes.constants, *no.constants)
    return Sketch(
        name=f"{yes.key}_if_{test.key}_else_{no.key}",
        doc=f"If `n` is {test.phrase}, {yes.done_to('it')}, otherwise {no.done_to('it')}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"if {condition} {{\n    {yes.of('n')}\n}} else {{\n    {no.of('n')}\n}}",
            f"match {condition} {{\n    true => {yes.of('n')},\n    false => {no.of('n')},\n}}",
        ),
        inputs=grammar.integer_inputs(constants),
        reference=lambda n: yes.apply(n) if test.holds(n) else no.apply(n),
        composition=(test.key, yes.key, no.key),
        parameters=(kind, *constants),
    )


_PAIRS = (
    ("product", "product", grammar.Expr("x * y", grammar.TERM), lambda x, y: x * y),
    ("sum", "sum", grammar.Expr("x + y", grammar.SUM), lambda x, y: x + y),
    ("difference", "difference", grammar.Expr("x - y", grammar.SUM), lambda x, y: x - y),
    ("larger", "larger", grammar.Expr("x.max(y)"), max),
    ("smaller", "smaller", grammar.Expr("x.min(y)"), min),
)


def zip_reduce(rng: Random) -> Sketch:
    """Combine two slices pair by pair, map, then reduce."""
    kind, op, end = rng.choice(INTEGERS), grammar.int_map(rng), grammar.reduction(rng, False)
    key, noun, pair, combine = rng.choice(_PAIRS)
    result = op.rust(pair).text
    bodies = [f"left.iter().zip(right).map(|(&x, &y)| {result}).{end.method}"]
    if end.step:
        bodies.append(
            "let mut total = 0;\nfor (&x, &y) in left.iter().zip(right) {\n"
            f"    {end.step.replace('{y}', result)}\n}}\ntotal"
        )
    draw = grammar.slice_inputs(op.constants)
    return Sketch(
        name=f"{key}_{op.key}_{end.key}",
        doc=f"Takes the {noun} of each pair of `left` and `right`,\n"
        f"{op.done_to('each')} and {end.phrase}.",
        arguments=(("left", f"&[{kind}]"), ("right", f"&[{kind}]")),
        result=kind,
        bodies=tuple(bodies),
        inputs=lambda rng: [
            (a, b) for (a,), (b,) in zip(draw(rng), [*draw(rng)[:-1], ([1, 2, 3],)], strict=True)
        ],
        reference=lambda left, right: end.apply(
            [op.apply(combine(x, y)) for x, y in zip(left, right, strict=False)]
        ),
        composition=(key, op.key, end.key),
        parameters=(kind, *op.constants),
    )


_PARTS = (
    ("skip", "Skips the first {k} values", "skip({k})", lambda v, k: v[k:]),
    ("take", "Takes the first {k} values", "take({k})", lambda v, k: v[:k]),
    ("last", "Takes the last {k} values", "rev().take({k})", lambda v, k: v[-k:]),
    ("step", "Takes every value at an index divisible by {k}", "step_by({k})", lambda v, k: v[::k]),
)


def part_reduce(rng: Random) -> Sketch:
    """Take a part of the slice, filter, then reduce."""
    kind, test, end = rng.choice(INTEGERS), grammar.predicate(rng), grammar.reduction(rng)
    key, phrase, method, cut = rng.choice(_PARTS)
    k = rng.randint(2, 5)
    matching = [x for x in range(-60, 60) if test.holds(x)][: 2 * k + 2]
    draw, part = grammar.slice_inputs(test.constants), method.format(k=k)
    bodies = [f"values.iter().copied().{part}.filter(|&x| {test.rust('x')}).{end.method}"]
    if end.step:
        bodies.append(
            f"let mut total = 0;\nfor &x in values.iter().{part} {{\n    if {test.rust('x')} {{\n"
            f"        {end.step.replace('{y}', 'x')}\n    }}\n}}\ntotal"
        )
    return Sketch(
        name=f"{key}_{test.key}_{end.key}",
        doc=f"{phrase.format(k=k)},\nkeeps those that are {test.phrase} and {end.phrase}.",
        arguments=(("values", f"&[{kind}]"),),
        result=end.result or kind,
        bodies=tuple(bodies),
        inputs=lambda rng: [
            *draw(rng),
            *((row,) for row in (matching, matching[::-1], draw(rng)[-1][0])),
        ],
        reference=lambda values: end.apply([x for x in cut(values, k) if test.holds(x)]),
        composition=(key, test.key, end.key),
        parameters=(kind, k, *test.constants),
    )


_RELATIONS = (
    ("rise", "rises by more than {c}", "w[1] - w[0] > {c}", lambda a, b, c: b - a > c),
    ("fall", "falls by more than {c}", "w[0] - w[1] > {c}", lambda a, b, c: a - b > c),
    (
        "jump",
        "changes by more than {c}",
        "(w[1] - w[0]).abs() > {c}",
        lambda a, b, c: abs(b - a) > c,
    ),
)


def neighbours(rng: Random) -> Sketch:
    """Count neighbouring values in a relation (held out)."""
    kind, c = rng.choice(INTEGERS), rng.randint(1, grammar.LARGEST)
    key, phrase, code, relation = rng.choice(_RELATIONS)
    return Sketch(
        name=f"count_{key}",
        doc=f"Counts how often a value {phrase.format(c=c)} to the next.",
        arguments=(("values", f"&[{kind}]"),),
        result="usize",
        bodies=(f"values.windows(2).filter(|w| {code.format(c=c)}).count()",),
        inputs=lambda rng: [
            ([],),
            ([0, c, 0, c + 1, 0],),
            *((grammar.numbers_near(rng, (c,), 6),) for _ in range(3)),
        ],
        reference=lambda values: sum(
            relation(a, b, c) for a, b in pairwise(values)
        ),
        parameters=(kind, key, c),
    )  # fmt: skip


FAMILIES = (
    Family("filter_reduce", 2, filter_reduce),
    Family("map_reduce", 2, map_reduce),
    Family("filter_map_reduce", 2, filter_map_reduce),
    Family("two_maps", 2, two_maps),
    Family("two_tests", 2, two_tests),
    Family("branch", 2, branch),
    Family("zip_reduce", 2, zip_reduce),
    Family("part_reduce", 2, part_reduce),
    Family("neighbours", 2, neighbours, held=True),
)
