"""Level 4: structs and enums with match, closures, generics, lifetimes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch, Some

# Commands: variant, whether it carries a number `x`, words, Rust and Python on `state`.
_COMMANDS: tuple[tuple[str, bool, str, str, Callable[[int, int], int]], ...] = (
    ("Add", True, "adds its number", "state + x", lambda s, x: s + x),
    ("Take", True, "subtracts its number", "state - x", lambda s, x: s - x),
    ("Scale", True, "multiplies by its number", "state * x", lambda s, x: s * x),
    ("Cap", True, "limits to at most its number", "state.min(x)", min),
    ("Raise", True, "raises to at least its number", "state.max(x)", max),
    ("Set", True, "returns its number", "x", lambda s, x: x),
    ("Double", False, "doubles", "state * 2", lambda s, x: s * 2),
    ("Negate", False, "negates", "-state", lambda s, x: -s),
    ("Square", False, "squares", "state.pow(2)", lambda s, x: s * s),
    ("Keep", False, "changes nothing", "state", lambda s, x: s),
)
_ENUMS = ("Command", "Action", "Step", "Change")


def apply_command(rng: Random) -> Sketch:
    """Apply one command, an enum with data, to a number by `match`."""
    kind, enum = rng.choice(INTEGERS), rng.choice(_ENUMS)
    chosen = sorted(rng.sample(_COMMANDS, 3))
    constant = rng.randint(0, grammar.LARGEST)
    variants = [f"    {name}({kind})," if data else f"    {name}," for name, data, *_ in chosen]
    arms = [
        f"    {enum}::{name}(x) => {code}," if data else f"    {enum}::{name} => {code},"
        for name, data, _, code, _ in chosen
    ]
    said = ", ".join(f"`{name}` {words}" for name, _, words, *_ in chosen)

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for name, data, _, _, effect in (*chosen, *chosen):
            x = rng.randint(-12, 12)
            text = f"{enum}::{name}({x})" if data else f"{enum}::{name}"
            rows.append((rng.randint(-60, 60), Rust(text, (effect, x))))
        return [*rows, (5, Rust(f"{enum}::Reset", (lambda s, x: constant, 0)))]

    return Sketch(
        name=f"apply_{enum.lower()}",
        items="\n".join([f"enum {enum} {{", *variants, "    Reset,", "}"]),
        doc=f"Applies to `state`: {said}, `Reset` returns {constant}.",
        arguments=(("state", kind), (enum.lower(), enum)),
        result=kind,
        bodies=(
            "\n".join(
                [f"match {enum.lower()} {{", *arms, f"    {enum}::Reset => {constant},", "}"]
            ),
        ),
        inputs=draw,
        reference=lambda state, command: command[0](state, command[1]),
        composition=tuple(name for name, *_ in chosen),
        parameters=(kind, enum, constant),
    )


_STRUCTS = (
    ("Item", "item", "price", "count"),
    ("Player", "player", "score", "level"),
    ("Point", "point", "x", "y"),
    ("Order", "order", "amount", "fee"),
    ("Team", "team", "wins", "losses"),
)


def _struct(name: str, first: str, second: str, kind: str) -> str:
    return (
        "#[derive(Debug, Clone, Copy, PartialEq)]\n"
        f"struct {name} {{\n    {first}: {kind},\n    {second}: {kind},\n}}"
    )


def _instance(name: str, first: str, second: str, value: tuple[int, int]) -> Rust:
    return Rust(f"{name} {{ {first}: {value[0]}, {second}: {value[1]} }}", value)


def struct_value(rng: Random) -> Sketch:
    """Combine the fields of a struct, each after an operation."""
    kind, (name, variable, first, second) = rng.choice(INTEGERS), rng.choice(_STRUCTS)
    op = grammar.int_map(rng)
    key, phrase, sign, join = rng.choice(
        (("plus", "plus", "+", 1), ("minus", "minus", "-", -1))
    )  # fmt: skip
    left = op.rust(grammar.Expr(f"{variable}.{first}")).text
    return Sketch(
        name=f"{variable}_{op.key}_{key}",
        items=_struct(name, first, second, kind),
        doc=f"Takes `{first}`, {op.done_to('it')}, and returns that {phrase} `{second}`.",
        arguments=((variable, f"&{name}"),),
        result=kind,
        bodies=(f"{left} {sign} {variable}.{second}",),
        inputs=lambda rng: [
            (_borrowed(_instance(name, first, second, (a, rng.randint(-60, 60)))),)
            for (a,) in grammar.integer_inputs(op.constants)(rng)
        ],
        reference=lambda value: op.apply(value[0]) + join * value[1],
        composition=(name, op.key, key),
        parameters=(kind, *op.constants),
    )


def _borrowed(value: Rust) -> Rust:
    return Rust(f"&{value.text}", value.value)


def struct_update(rng: Random) -> Sketch:
    """Return a struct with one field changed under a condition on the other."""
    kind, (name, variable, first, second) = rng.choice(INTEGERS), rng.choice(_STRUCTS)
    test, op = grammar.predicate(rng), grammar.int_map(rng)
    condition = test.rust(f"{variable}.{first}")
    changed = op.rust(grammar.Expr(f"{variable}.{second}")).text

    def reference(value: tuple[int, int]) -> Rust:
        after = (value[0], op.apply(value[1]) if test.holds(value[0]) else value[1])
        return _instance(name, first, second, after)

    return Sketch(
        name=f"{op.key}_{second}_if_{test.key}",
        items=_struct(name, first, second, kind),
        doc=f"If `{first}` is {test.phrase}, {op.done_to(f'`{second}`')}; else changes nothing.",
        arguments=((variable, name),),
        result=name,
        bodies=(
            f"if {condition} {{\n    {name} {{ {second}: {changed}, ..{variable} }}\n"
            f"}} else {{\n    {variable}\n}}",
            f"let mut result = {variable};\nif {condition} {{\n"
            f"    result.{second} = {changed};\n}}\nresult",
        ),
        inputs=lambda rng: [
            (_instance(name, first, second, (a, b)),)
            for (a,), (b,) in zip(
                grammar.integer_inputs(test.constants)(rng),
                grammar.integer_inputs(op.constants)(rng),
                strict=False,
            )
        ],
        reference=reference,
        composition=(name, test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def struct_select(rng: Random) -> Sketch:
    """Filter structs by one field and reduce the other."""
    kind, (name, variable, first, second) = rng.choice(INTEGERS), rng.choice(_STRUCTS)
    test, end = grammar.predicate(rng), grammar.reduction(rng, counting=False)
    condition = test.rust(f"{variable}.{first}")
    bodies = [
        f"{variable}s.iter().filter(|{variable}| {condition})"
        f".map(|{variable}| {variable}.{second}).{end.method}"
    ]
    if end.step:
        step = end.step.replace("{y}", f"{variable}.{second}")
        bodies.append(
            f"let mut total = 0;\nfor {variable} in {variable}s {{\n    if {condition} {{\n"
            f"        {step}\n    }}\n}}\ntotal"
        )

    def draw(rng: Random) -> list[tuple]:
        return [
            ([_instance(name, first, second, (x, rng.randint(-60, 60))) for x in values],)
            for (values,) in grammar.slice_inputs(test.constants)(rng)
        ]

    return Sketch(
        name=f"{second}_{test.key}_{end.key}",
        items=_struct(name, first, second, kind),
        doc=f"Keeps those whose `{first}` is {test.phrase},\n"
        f"takes `{second}` of each and {end.phrase}.",
        arguments=((f"{variable}s", f"&[{name}]"),),
        result=kind,
        bodies=tuple(bodies),
        inputs=draw,
        reference=lambda rows: end.apply([b for a, b in rows if test.holds(a)]),
        composition=(name, test.key, end.key),
        parameters=(kind, *test.constants),
    )


def make_closure(rng: Random) -> Sketch:
    """Return a closure that captures its argument."""
    kind, op, c = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(1, grammar.LARGEST)
    key, phrase, code, join = rng.choice(
        (
            ("adder", "adds `amount` to it", "+ amount", lambda x, a: x + a),
            ("subtracter", "subtracts `amount` from it", "- amount", lambda x, a: x - a),
        )
    )
    first = op.of("x")
    return Sketch(
        name=f"make_{op.key}_{key}",
        doc=f"Returns a closure that takes `x`, {op.done_to('it')}, {phrase} and adds {c}.",
        arguments=(("amount", kind),),
        result=f"impl Fn({kind}) -> {kind}",
        bodies=(
            f"move |x| {first} {code} + {c}",
            f"move |x| {{\n    let y = {first};\n    y {code} + {c}\n}}",
        ),
        call="{name}({0})({1})",
        test_types=(kind, kind, kind),
        inputs=lambda rng: [
            (rng.randint(-60, 60), x) for (x,) in grammar.integer_inputs(op.constants)(rng)
        ],
        reference=lambda amount, x: join(op.apply(x), amount) + c,
        composition=(op.key, key),
        parameters=(kind, c, *op.constants),
    )


_CLOSURES = (
    ("|x| x + 3", lambda x: x + 3),
    ("|x| x * 2", lambda x: x * 2),
    ("|x| 5 - x", lambda x: 5 - x),
)


def apply_closure(rng: Random) -> Sketch:
    """Apply a closure several times and map the result."""
    kind, op, n = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(2, 5)

    def reference(f: Callable[[int], int], x: int) -> int:
        for _ in range(n):
            x = f(x)
        return op.apply(x)

    return Sketch(
        name=f"apply_then_{op.key}",
        generics=f"<F: Fn({kind}) -> {kind}>",
        doc=f"Applies `f` to `n` {n} times, then {op.done_to('the result')}.",
        arguments=(("f", "F"), ("n", kind)),
        result=kind,
        bodies=(
            f"let x = (0..{n}).fold(n, |x, _| f(x));\n{op.of('x')}",
            f"let mut x = n;\nfor _ in 0..{n} {{\n    x = f(x);\n}}\n{op.of('x')}",
        ),
        inputs=lambda rng: [
            (Rust(*_CLOSURES[i % 3]), x)
            for i, (x,) in enumerate(grammar.integer_inputs(op.constants)(rng))
        ],
        reference=reference,
        composition=("apply", op.key),
        parameters=(kind, n, *op.constants),
    )


_COUNTED = (("i32", [1, 2, 3]), ("char", ["a", "b", "c"]), ("&str", ["x", "yy", "zzz"]))


def generic_count(rng: Random) -> Sketch:
    """Count, in any comparable type, and compare with a constant."""
    c = rng.randint(1, 4)
    bound, key, phrase, code, relation = rng.choice(
        (
            ("PartialEq", "equal", "equal to", "x == target", lambda x, t: x == t),
            ("PartialEq", "unlike", "different from", "x != target", lambda x, t: x != t),
            ("PartialOrd", "above", "greater than", "x > target", lambda x, t: x > t),
            ("PartialOrd", "below", "less than", "x < target", lambda x, t: x < t),
        )
    )
    how, sign, holds = rng.choice(
        (("more than", ">", lambda n: n > c), ("exactly", "==", lambda n: n == c),
         ("at most", "<=", lambda n: n <= c))
    )  # fmt: skip
    kind, pool = _COUNTED[(c + len(key) + len(how)) % 3]  # not in the prompt, so not by chance
    return Sketch(
        name=f"count_{key}_is_{how.replace(' ', '_')}",
        generics=f"<T: {bound}>",
        doc=f"Returns true if {how} {c} values are {phrase} `target`.",
        arguments=(("values", "&[T]"), ("target", "&T")),
        result="bool",
        bodies=(
            f"values.iter().filter(|&x| {code}).count() {sign} {c}",
            f"let mut count = 0;\nfor x in values {{\n    if {code} {{\n        count += 1;\n"
            f"    }}\n}}\ncount {sign} {c}",
        ),
        test_types=(f"&[{kind}]", f"&{kind}", "bool"),
        inputs=lambda rng: [
            ([value] * n + [pool[1]] * (c - 1), _target(pool[1], kind))
            for value in pool
            for n in (0, 1, c - 1, c, c + 1)
        ],
        reference=lambda values, target: holds(sum(relation(x, target) for x in values)),
        composition=(key, how),
        parameters=(c,),
    )


def _target(value: int | str, kind: str) -> Rust:
    text = {"char": f"'{value}'", "&str": f'"{value}"'}.get(kind, str(value))
    return Rust(f"&{text}", value)


_PICKS = (
    ("longer", "`first` is longer than `second`", "first.len() > second.len()",
     lambda a, b, c, n: len(a) > len(b)),
    ("shorter", "`first` is shorter than `second`", "first.len() < second.len()",
     lambda a, b, c, n: len(a) < len(b)),
    ("long", "`first` has more than {n} bytes", "first.len() > {n}", lambda a, b, c, n: len(a) > n),
    ("starting", "`first` starts with '{c}'", "first.starts_with('{c}')",
     lambda a, b, c, n: a.startswith(c)),
    ("containing", "`second` contains '{c}'", "second.contains('{c}')",
     lambda a, b, c, n: c in b),
)  # fmt: skip


def pick_text(rng: Random) -> Sketch:
    """Return one of two borrowed texts: a shared lifetime."""
    key, phrase, code, picks = rng.choice(_PICKS)
    c = rng.choice("abcdefghijklmnopqrstuvwxyz") if "{c}" in code else "c"
    n = rng.randint(1, 12) if "{n}" in code else 4
    condition = code.format(c=c, n=n)
    pool = ["", c, c + "x", "y" + c, "a longer text", "q" * n, "q" * (n + 1), "zz"]
    return Sketch(
        name=f"pick_{key}",
        generics="<'a>",
        doc=f"Returns `first` if {phrase.format(c=c, n=n)}, otherwise `second`.",
        arguments=(("first", "&'a str"), ("second", "&'a str")),
        result="&'a str",
        bodies=(
            f"if {condition} {{\n    first\n}} else {{\n    second\n}}",
            f"match {condition} {{\n    true => first,\n    false => second,\n}}",
        ),
        inputs=lambda rng: [(a, rng.choice([b for b in pool if b != a])) for a in pool],
        reference=lambda a, b: a if picks(a, b, c, n) else b,
        parameters=(key, *((c,) if "{c}" in code else ()), *((n,) if "{n}" in code else ())),
    )


def find_part(rng: Random) -> Sketch:
    """Find a part of a text between separators, borrowed from it (held out)."""
    sign, n = rng.choice(",;:-/"), rng.randint(2, 8)
    which, method, order = rng.choice((("first", "find", 1), ("last", "rfind", -1)))
    return Sketch(
        name=f"{which}_long_part",
        generics="<'a>",
        doc=f"Splits the text at '{sign}' and returns the {which} part longer than {n} bytes.",
        arguments=(("text", "&'a str"),),
        result="Option<&'a str>",
        bodies=(
            f"text.split('{sign}').{method}(|part| part.len() > {n})",
            f"let mut result = None;\nfor part in text.split('{sign}') {{\n"
            f"    if part.len() > {n}{' && result.is_none()' if order > 0 else ''} {{\n"
            "        result = Some(part);\n    }\n}\nresult",
        ),
        test_types=("&str", "Option<&str>"),
        inputs=lambda rng: [
            (sign.join("abc"[i % 3] * x for i, x in enumerate(sizes)),)
            for sizes in (
                [n],
                [n + 1],
                [n, n + 1, n + 2],
                [n + 2, n + 1, n],
                *([rng.randint(1, n + 3) for _ in range(size)] for size in (3, 5)),
            )
        ],
        reference=lambda text: next(
            (Some(part) for part in text.split(sign)[::order] if len(part) > n), None
        ),
        parameters=(which, sign, n),
    )


FAMILIES = (
    Family("apply_command", 4, apply_command),
    Family("struct_value", 4, struct_value),
    Family("struct_update", 4, struct_update),
    Family("struct_select", 4, struct_select),
    Family("make_closure", 4, make_closure),
    Family("apply_closure", 4, apply_closure),
    Family("generic_count", 4, generic_count),
    Family("pick_text", 4, pick_text),
    Family("find_part", 4, find_part, held=True),
)
