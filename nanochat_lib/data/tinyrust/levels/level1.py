"""Level 1: one operation over integers, bools or slices."""

from __future__ import annotations

from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Sketch


def int_op(rng: Random) -> Sketch:
    """One arithmetic operation with a constant: `n + 7`."""
    kind, op = rng.choice(INTEGERS), grammar.int_map(rng)
    return Sketch(
        name=f"{op.key}_number",
        doc=f"Returns {op.said('`n`')}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(op.of("n"),),
        inputs=grammar.integer_inputs(op.constants),
        reference=op.apply,
        parameters=(kind, op.key, *op.constants),
    )


def int_test(rng: Random) -> Sketch:
    """One condition on an integer: `n > 7`."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    return Sketch(
        name=f"is_{test.key}",
        doc=f"Returns true if `n` is {test.phrase}.",
        arguments=(("n", kind),),
        result="bool",
        bodies=(test.rust("n"),),
        inputs=grammar.integer_inputs(test.constants),
        reference=test.holds,
        parameters=(kind, test.key, *test.constants),
    )


def choose(rng: Random) -> Sketch:
    """A constant chosen by a condition on an integer."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    yes, no = rng.sample(range(grammar.LARGEST + 1), 2)
    condition = test.rust("n")
    return Sketch(
        name=f"choose_if_{test.key}",
        doc=f"Returns {yes} if `n` is {test.phrase}, otherwise {no}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"if {condition} {{\n    {yes}\n}} else {{\n    {no}\n}}",
            f"match {condition} {{\n    true => {yes},\n    false => {no},\n}}",
        ),
        inputs=grammar.integer_inputs(test.constants),
        reference=lambda n: yes if test.holds(n) else no,
        parameters=(kind, test.key, *test.constants, yes, no),
    )


def clamp(rng: Random) -> Sketch:
    """Limit an integer to a range."""
    kind, low = rng.choice(INTEGERS), rng.randint(-12, 12)
    high = low + rng.randint(2, 12)
    return Sketch(
        name="limit_to_range",
        doc=f"Limits `n` to the range from {low} to {high}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"n.clamp({low}, {high})",
            f"n.max({low}).min({high})",
            f"if n < {low} {{\n    {low}\n}} else if n > {high} {{\n    {high}\n}} else {{\n"
            "    n\n}",
        ),
        inputs=grammar.integer_inputs((low, high)),
        reference=lambda n: min(max(n, low), high),
        parameters=(kind, low, high),
    )


def distance(rng: Random) -> Sketch:
    """The distance of an integer from a constant (held out)."""
    kind, c = rng.choice(INTEGERS), rng.randint(1, 2 * grammar.LARGEST)
    return Sketch(
        name="distance_from",
        doc=f"Returns the distance between `n` and {c}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"(n - {c}).abs()",
            f"if n > {c} {{\n    n - {c}\n}} else {{\n    {c} - n\n}}",
        ),
        inputs=grammar.integer_inputs((c,)),
        reference=lambda n: abs(n - c),
        parameters=(kind, c),
    )


def count_matching(rng: Random) -> Sketch:
    """How many values of a slice satisfy a condition."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    condition = test.rust("x")
    return Sketch(
        name=f"count_{test.key}",
        doc=f"Counts the values that are {test.phrase}.",
        arguments=(("values", f"&[{kind}]"),),
        result="usize",
        bodies=(
            f"values.iter().filter(|&&x| {condition}).count()",
            f"let mut count = 0;\nfor &x in values {{\n    if {condition} {{\n"
            "        count += 1;\n    }\n}\ncount",
        ),
        inputs=grammar.slice_inputs(test.constants),
        reference=lambda values: sum(map(test.holds, values)),
        parameters=(kind, test.key, *test.constants),
    )


def any_or_all(rng: Random) -> Sketch:
    """Whether any value, or every value, satisfies a condition."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    quantifier, words, reference = rng.choice(
        (("any", "any value is", any), ("all", "every value is", all))
    )
    found, otherwise = ("true", "false") if quantifier == "any" else ("false", "true")
    condition = test.rust("x") if quantifier == "any" else f"!({test.rust('x')})"
    return Sketch(
        name=f"{quantifier}_{test.key}",
        doc=f"Returns true if {words} {test.phrase}.",
        arguments=(("values", f"&[{kind}]"),),
        result="bool",
        bodies=(
            f"values.iter().{quantifier}(|&x| {test.rust('x')})",
            f"for &x in values {{\n    if {condition} {{\n        return {found};\n    }}\n}}\n"
            f"{otherwise}",
        ),
        inputs=grammar.slice_inputs(test.constants),
        reference=lambda values: reference(map(test.holds, values)),
        parameters=(kind, quantifier, test.key, *test.constants),
    )


def value_at(rng: Random) -> Sketch:
    """The value at an index, or a default."""
    kind, index, default = rng.choice(INTEGERS), rng.randint(0, 9), rng.randint(0, grammar.LARGEST)
    return Sketch(
        name="value_at",
        doc=f"Returns the value at index {index}, or {default} if there is none.",
        arguments=(("values", f"&[{kind}]"),),
        result=kind,
        bodies=(
            f"values.get({index}).copied().unwrap_or({default})",
            f"match values.get({index}) {{\n    Some(&x) => x,\n    None => {default},\n}}",
        ),
        inputs=lambda rng: [
            (grammar.numbers_near(rng, (default,), n),) for n in (0, index, index + 1, index + 3)
        ],
        reference=lambda values: values[index] if index < len(values) else default,
        parameters=(kind, index, default),
    )


_TWO = (
    ("sum", "the sum of `a` and `b`", "a + b", lambda a, b: a + b),
    ("difference", "`a` minus `b`", "a - b", lambda a, b: a - b),
    ("product", "the product of `a` and `b`", "a * b", lambda a, b: a * b),
    ("larger", "the larger of `a` and `b`", "a.max(b)", max),
    ("smaller", "the smaller of `a` and `b`", "a.min(b)", min),
)


def two_ints(rng: Random) -> Sketch:
    """One operation on two integers, plus a constant."""
    kind, c = rng.choice(INTEGERS), rng.randint(1, grammar.LARGEST)
    key, phrase, code, reference = rng.choice(_TWO)
    return Sketch(
        name=f"{key}_plus",
        doc=f"Returns {phrase}, plus {c}.",
        arguments=(("a", kind), ("b", kind)),
        result=kind,
        bodies=(f"{code} + {c}",),
        inputs=lambda rng: [tuple(grammar.numbers_near(rng, (), 2)) for _ in range(8)],
        reference=lambda a, b: reference(a, b) + c,
        parameters=(kind, key, c),
    )


_GATES = (
    ("both", "both `a` and `b` are true", "a && b", lambda a, b: a and b),
    ("either", "`a` or `b` is true", "a || b", lambda a, b: a or b),
    ("different", "`a` and `b` are different", "a != b", lambda a, b: a != b),
    ("neither", "neither `a` nor `b` is true", "!a && !b", lambda a, b: not (a or b)),
    ("only_first", "`a` is true and `b` is false", "a && !b", lambda a, b: a and not b),
)


def bool_gate(rng: Random) -> Sketch:
    """A constant chosen by a gate of two bools."""
    kind, (yes, no) = rng.choice(INTEGERS), rng.sample(range(grammar.LARGEST + 1), 2)
    key, phrase, code, gate = rng.choice(_GATES)
    return Sketch(
        name=f"choose_if_{key}",
        doc=f"Returns {yes} if {phrase}, otherwise {no}.",
        arguments=(("a", "bool"), ("b", "bool")),
        result=kind,
        bodies=(
            f"if {code} {{\n    {yes}\n}} else {{\n    {no}\n}}",
            f"match {code} {{\n    true => {yes},\n    false => {no},\n}}",
        ),
        inputs=lambda rng: [(a, b) for a in (False, True) for b in (False, True)],
        reference=lambda a, b: yes if gate(a, b) else no,
        parameters=(kind, key, yes, no),
    )


def extreme(rng: Random) -> Sketch:
    """The largest or smallest value of a slice, or a default."""
    kind, default = rng.choice(INTEGERS), rng.randint(0, grammar.LARGEST)
    word, method, pick = rng.choice((("largest", "max", max), ("smallest", "min", min)))
    return Sketch(
        name=f"{word}_or",
        doc=f"Returns the {word} value, or {default} if the slice is empty.",
        arguments=(("values", f"&[{kind}]"),),
        result=kind,
        bodies=(
            f"values.iter().copied().{method}().unwrap_or({default})",
            f"match values.iter().{method}() {{\n    Some(&x) => x,\n    None => {default},\n}}",
        ),
        inputs=grammar.slice_inputs(),
        reference=lambda values: pick(values, default=default),
        parameters=(kind, word, default),
    )


_LENGTHS = (
    ("more", "more than {c} values", ">", lambda n, c: n > c),
    ("fewer", "fewer than {c} values", "<", lambda n, c: n < c),
    ("exactly", "exactly {c} values", "==", lambda n, c: n == c),
    ("at_least", "at least {c} values", ">=", lambda n, c: n >= c),
)


def length_test(rng: Random) -> Sketch:
    """A condition on the length of a slice."""
    kind, c = rng.choice((*INTEGERS, "bool", "char")), rng.randint(1, 12)
    key, phrase, sign, holds = rng.choice(_LENGTHS)
    item = {"bool": True, "char": "x"}.get(kind, 5)
    return Sketch(
        name=f"has_{key}",
        doc=f"Returns true if the slice has {phrase.format(c=c)}.",
        arguments=(("values", f"&[{kind}]"),),
        result="bool",
        bodies=(f"values.len() {sign} {c}",),
        inputs=lambda rng: [([item] * n,) for n in (0, c - 1, c, c + 1, c + 3)],
        reference=lambda values: holds(len(values), c),
        parameters=(kind, key, c),
    )


FAMILIES = (
    Family("int_op", 1, int_op),
    Family("int_test", 1, int_test),
    Family("choose", 1, choose),
    Family("clamp", 1, clamp),
    Family("distance", 1, distance, held=True),
    Family("count_matching", 1, count_matching),
    Family("any_or_all", 1, any_or_all),
    Family("value_at", 1, value_at),
    Family("two_ints", 1, two_ints),
    Family("bool_gate", 1, bool_gate),
    Family("extreme", 1, extreme),
    Family("length_test", 1, length_test),
)
