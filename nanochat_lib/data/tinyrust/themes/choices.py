"""Tuples, arrays, bits, ranges in `match`, arithmetic that may overflow, and pairs of Options."""

from __future__ import annotations

from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Err, Family, Ok, Sketch, Some


def tuple_pair(rng: Random) -> Sketch:
    """Map both parts of a tuple and swap them or not."""
    kind, first, second = rng.choice(INTEGERS), grammar.int_map(rng), grammar.int_map(rng)
    swaps = rng.random() < 0.5
    a, b = first.of("a"), second.of("b")
    a0, b1 = first.rust(grammar.Expr("pair.0")).text, second.rust(grammar.Expr("pair.1")).text
    order = "the second before the first" if swaps else "the first before the second"

    def reference(pair: tuple[int, int]) -> tuple[int, int]:
        one, other = first.apply(pair[0]), second.apply(pair[1])
        return (other, one) if swaps else (one, other)

    draw = grammar.integer_inputs((*first.constants, *second.constants))
    return Sketch(
        name=f"{first.key}_{second.key}_{'swapped' if swaps else 'pair'}",
        doc=f"{grammar.capitalised(first.done_to('the first part'))},\n"
        f"{second.done_to('the second')} and returns {order}.",
        arguments=(("pair", f"({kind}, {kind})"),),
        result=f"({kind}, {kind})",
        bodies=(
            f"let (a, b) = pair;\n({b}, {a})" if swaps else f"let (a, b) = pair;\n({a}, {b})",
            f"({b1}, {a0})" if swaps else f"({a0}, {b1})",
        ),
        inputs=lambda rng: (
            [((x, rng.randint(-30, 30)),) for (x,) in draw(rng)]
            + [((rng.randint(-30, 30), x),) for (x,) in draw(rng)[:4]]
        ),
        reference=reference,
        composition=(first.key, second.key, str(swaps)),
        parameters=(kind, *first.constants, *second.constants),
    )


_BITS = (
    ("mask", "keeps the bits of {n} that are set in {c}", "{x} & {c}", lambda x, c: x & c),
    ("set", "sets the bits of {n} that are set in {c}", "{x} | {c}", lambda x, c: x | c),
    ("flip", "flips the bits of {n} that are set in {c}", "{x} ^ {c}", lambda x, c: x ^ c),
)
_COUNTS = (
    ("ones", "counts the bits that are set", "count_ones()", lambda x, w: x.bit_count()),
    ("leading", "counts the leading zero bits", "leading_zeros()", lambda x, w: w - x.bit_length()),
    ("trailing", "counts the trailing zero bits", "trailing_zeros()",
     lambda x, w: (x & -x).bit_length() - 1 if x else w),
)  # fmt: skip


def bits(rng: Random) -> Sketch:
    """Mask, set or flip bits, then count some."""
    kind, width = rng.choice((("u8", 8), ("u16", 16), ("u32", 32)))
    (key, phrase, code, change), (end, words, method, count) = (
        rng.choice(_BITS),
        rng.choice(_COUNTS),
    )
    c = rng.randint(3, 120)
    changed = code.format(x="n", c=c)
    said = phrase.format(n="`n`", c=c)
    return Sketch(
        name=f"{key}_then_{end}",
        doc=f"{grammar.capitalised(said)} and {words} of the result.",
        arguments=(("n", kind),),
        result="u32",
        bodies=(f"({changed}).{method}", f"let x = {changed};\nx.{method}"),
        inputs=lambda rng: [(n,) for n in (0, 1, c, 255, 128, *rng.sample(range(250), 5))],
        reference=lambda n: count(change(n, c), width),
        composition=(key, end, kind),
        parameters=(c,),
    )


_SCALES = (
    ("low", "medium", "high"), ("cold", "warm", "hot"), ("small", "fair", "big"),
    ("early", "on time", "late"),
)  # fmt: skip


def match_ranges(rng: Random) -> Sketch:
    """Name the range a number lies in by `match` (held out)."""
    kind = rng.choice(INTEGERS)
    low = rng.randint(1, 12)
    middle = low + rng.randint(2, 12)
    words = rng.choice(_SCALES)
    a, b, c = words
    return Sketch(
        name=f"name_{a}_or_{c}",
        doc=f'Returns "{a}" for numbers below {low}, "{b}" from {low} to {middle},\n'
        f'"{c}" for greater ones.',
        arguments=(("n", kind),),
        result="&'static str",
        bodies=(
            f'match n {{\n    {low}..={middle} => "{b}",\n    n if n < {low} => "{a}",\n'
            f'    _ => "{c}",\n}}',
            f'if n < {low} {{\n    "{a}"\n}} else if n <= {middle} {{\n    "{b}"\n}} else {{\n'
            f'    "{c}"\n}}',
        ),
        test_types=(kind, "&str"),
        inputs=grammar.integer_inputs((low, middle)),
        reference=lambda n: a if n < low else b if n <= middle else c,
        parameters=(kind, words, low, middle),
    )


_LIMITED = {"u8": (0, 255), "i8": (-128, 127), "i16": (-32768, 32767)}
_ARITHMETIC = (
    ("add", "adds {c} to", lambda n, c: n + c),
    ("sub", "subtracts {c} from", lambda n, c: n - c),
    ("mul", "multiplies {c} with", lambda n, c: n * c),
)


def overflow(rng: Random) -> Sketch:
    """Arithmetic near the limits of a type: checked, saturating or wrapping."""
    kind = rng.choice(tuple(_LIMITED))
    low, high = _LIMITED[kind]
    (key, phrase, join), c = rng.choice(_ARITHMETIC), rng.randint(2, 90)
    way, words = rng.choice(
        (("checked", "None if it overflows"), ("saturating", "the nearest limit if it overflows"),
         ("wrapping", "wrapped around if it overflows"))
    )  # fmt: skip

    def reference(n: int) -> int | Some | None:
        exact = join(n, c)
        if way == "checked":
            return Some(exact) if low <= exact <= high else None
        if way == "saturating":
            return min(max(exact, low), high)
        return (exact - low) % (high - low + 1) + low

    code = f"n.{way}_{key}({c})"
    bodies = [code]
    if way == "checked":
        bodies.append(f"match {code} {{\n    Some(x) => Some(x),\n    None => None,\n}}")
        bodies.append(f"let x = {code}?;\nSome(x)")
    return Sketch(
        name=f"{way}_{key}",
        doc=grammar.capitalised(f"{phrase.format(c=c)} `n`; the result is {words}."),
        arguments=(("n", kind),),
        result=f"Option<{kind}>" if way == "checked" else kind,
        bodies=tuple(bodies),
        inputs=lambda rng: [
            (n,)
            for n in (0, 1, low, high, low + c, high - c, high - c + 1, high // c, high // c + 1)
        ],
        reference=reference,
        composition=(way, key, kind),
        parameters=(c,),
    )


def array_fold(rng: Random) -> Sketch:
    """Map and reduce an array of fixed size."""
    kind, op, size = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(2, 5)
    end = grammar.reduction(rng, counting=False)
    bodies = [f"values.map(|x| {op.of('x')}).into_iter().{end.method}"]
    bodies.append(f"values.iter().map(|&x| {op.of('x')}).{end.method}")
    if end.step:
        bodies.append(
            "let mut total = 0;\nfor x in values {\n"
            f"    {end.step.replace('{y}', op.of('x'))}\n}}\ntotal"
        )
    return Sketch(
        name=f"array_{op.key}_{end.key}",
        doc=f"{grammar.capitalised(op.done_to('each'))} of the {size} numbers and {end.phrase}.",
        arguments=(("values", f"[{kind}; {size}]"),),
        result=kind,
        bodies=tuple(bodies),
        test_types=(f"&[{kind}]", kind),
        call="{name}(*{0})",
        inputs=lambda rng: [(grammar.numbers_near(rng, op.constants, size),) for _ in range(7)],
        reference=lambda values: end.apply([op.apply(x) for x in values]),
        composition=("array", op.key, end.key),
        parameters=(kind, size, *op.constants),
    )


_JOINS = (
    ("sum", "their sum", "x + y", lambda x, y: x + y),
    ("difference", "their difference", "x - y", lambda x, y: x - y),
    ("product", "their product", "x * y", lambda x, y: x * y),
    ("larger", "the larger", "x.max(y)", max),
)
_Maybe = Some | None


def option_pair(rng: Random) -> Sketch:
    """Join two Options where both are there, map, and check the result."""
    kind, (key, words, code, join) = rng.choice(INTEGERS), rng.choice(_JOINS)
    op, test = grammar.int_map(rng), grammar.predicate(rng)
    inner = op.of("z")

    def reference(a: _Maybe, b: _Maybe) -> _Maybe:
        if a is None or b is None or not test.holds(join(a.value, b.value)):
            return None
        return Some(op.apply(join(a.value, b.value)))

    def draw(rng: Random) -> list[tuple]:
        near = [c + d for c in test.constants for d in (-1, 0, 1)] or [-1, 0, 1, 2]
        numbers = [Some(x) for x in grammar.numbers_near(rng, test.constants, 5)]
        pairs = [(x, Some(rng.randint(-20, 20))) for x in numbers]
        exact = [(Some(x - 3), Some(3)) for x in near]
        return [(None, None), (Some(4), None), (None, Some(4)), *pairs, *exact]

    return Sketch(
        name=f"{key}_if_{test.key}_{op.key}",
        doc=f"If both are there, takes {words}; if it is {test.phrase},\n{op.done_to('it')}. "
        "In all other cases None.",
        arguments=(("a", f"Option<{kind}>"), ("b", f"Option<{kind}>")),
        result=f"Option<{kind}>",
        bodies=(
            f"let x = a?;\nlet y = b?;\nlet z = {code};\nif {test.rust('z')} {{\n"
            f"    Some({inner})\n}} else {{\n    None\n}}",
            "match (a, b) {\n    (Some(x), Some(y)) => {\n"
            f"        let z = {code};\n        if {test.rust('z')} {{\n"
            f"            Some({inner})\n        }} else {{\n            None\n        }}\n    }}\n"
            "    _ => None,\n}",
            f"a.zip(b).map(|(x, y)| {code}).filter(|&z| {test.rust('z')}).map(|z| {inner})",
        ),
        inputs=draw,
        reference=reference,
        composition=(key, test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def parse_two(rng: Random) -> Sketch:
    """Parse two numbers with `?`, join them, and refuse some results."""
    kind, (key, words, code, join) = rng.choice(INTEGERS), rng.choice(_JOINS)
    test, op = grammar.predicate(rng), grammar.int_map(rng)
    missing, refused = rng.sample(("missing", "no number", "bad input", "out of range", "no"), 2)
    sign = rng.choice(",:;/")
    parse = f'parse::<{kind}>().map_err(|_| "{missing}".to_string())?'

    def reference(text: str) -> Ok | Err:
        left, found, right = text.partition(sign)
        numbers = [t for t in (left, right) if t.removeprefix("-").isdigit()]
        if not found or len(numbers) < 2:
            return Err(missing)
        z = join(int(left), int(right))
        return Err(refused) if test.holds(z) else Ok(op.apply(z))

    def draw(rng: Random) -> list[tuple]:
        near = [c + d for c in test.constants for d in (-1, 0, 1)] or [-1, 0, 1, 2]
        pairs = [(rng.randint(-20, 20), rng.randint(-20, 20)) for _ in range(3)]
        good = [f"{a}{sign}{b}" for a, b in [(x, 0) for x in near] + [(x, 1) for x in near] + pairs]
        return [(t,) for t in ("", "7", f"x{sign}2", f"3{sign}", f"1{sign}2{sign}3", *good)]

    return Sketch(
        name=f"parse_{key}_{op.key}",
        doc=f"Parses two numbers with '{sign}' between and takes {words};\n"
        f'anything else is the error "{missing}". If the result is {test.phrase}\n'
        f'it is the error "{refused}", otherwise {op.done_to("it")}.',
        arguments=(("text", "&str"),),
        result=f"Result<{kind}, String>",
        bodies=(
            f"let (left, right) = text.split_once('{sign}').ok_or(\"{missing}\".to_string())?;\n"
            f"let x = left.{parse};\nlet y = right.{parse};\nlet z = {code};\n"
            f'if {test.rust("z")} {{\n    return Err("{refused}".to_string());\n}}\n'
            f"Ok({op.of('z')})",
            f"let Some((left, right)) = text.split_once('{sign}') else {{\n"
            f'    return Err("{missing}".to_string());\n}};\n'
            f"match (left.parse::<{kind}>(), right.parse::<{kind}>()) {{\n"
            f"    (Ok(x), Ok(y)) => {{\n        let z = {code};\n        if {test.rust('z')} {{\n"
            f'            Err("{refused}".to_string())\n        }} else {{\n'
            f"            Ok({op.of('z')})\n        }}\n    }}\n"
            f'    _ => Err("{missing}".to_string()),\n}}',
        ),
        inputs=draw,
        reference=reference,
        composition=(key, test.key, op.key),
        parameters=(kind, sign, missing, refused, *test.constants, *op.constants),
    )


def take_until(rng: Random) -> Sketch:
    """Walk a slice until a condition and collect what was met, mapped."""
    kind, stop, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    keep = grammar.predicate(rng)

    def reference(values: list[int]) -> list[int]:
        met = []
        for x in values:
            if stop.holds(x):
                break
            if keep.holds(x):
                met.append(op.apply(x))
        return met

    return Sketch(
        name=f"until_{stop.key}_{op.key}",
        doc=f"Walks the values and stops at the first that is {stop.phrase}.\n"
        f"Of those before it keeps what is {keep.phrase} and {op.done_to('each')}.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Vec<{kind}>",
        bodies=(
            f"let mut met = Vec::new();\nfor &x in values {{\n    if {stop.rust('x')} {{\n"
            f"        break;\n    }}\n    if {keep.rust('x')} {{\n        met.push({op.of('x')});\n"
            "    }\n}\nmet",
            f"values\n    .iter()\n    .copied()\n    .take_while(|&x| !({stop.rust('x')}))\n"
            f"    .filter(|&x| {keep.rust('x')})\n    .map(|x| {op.of('x')})\n    .collect()",
            f"let mut met = Vec::new();\nlet mut i = 0;\nwhile i < values.len() {{\n"
            f"    let x = values[i];\n    if {stop.rust('x')} {{\n        return met;\n    }}\n"
            f"    if {keep.rust('x')} {{\n        met.push({op.of('x')});\n    }}\n"
            "    i += 1;\n}\nmet",
        ),
        inputs=grammar.slice_inputs((*stop.constants, *keep.constants)),
        reference=reference,
        composition=(stop.key, keep.key, op.key),
        parameters=(kind, *stop.constants, *keep.constants, *op.constants),
    )


FAMILIES = (
    Family("tuple_pair", 1, tuple_pair),
    Family("bits", 3, bits),
    Family("match_ranges", 1, match_ranges, held=True),
    Family("overflow", 3, overflow),
    Family("array_fold", 2, array_fold),
    Family("option_pair", 3, option_pair),
    Family("take_until", 3, take_until),
    Family("parse_two", 4, parse_two),
)
