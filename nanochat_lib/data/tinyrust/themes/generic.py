"""Generics with bounds, traits, operators, iterators of our own, closures in boxes."""

from __future__ import annotations

from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch, Some, literal

# Nine values of a type, in rising order.
_POOLS: tuple[tuple[str, list], ...] = (
    ("i32", [-7, -2, 0, 3, 4, 12, 19, 25, 31]),
    ("i64", [-90, -5, 1, 2, 8, 9, 40, 77, 100]),
    ("char", ["A", "Z", "a", "d", "k", "m", "q", "x", "z"]),
    ("&str", ["apple", "banana", "cherry", "fig", "kiwi", "lime", "pear", "plum", "quince"]),
    ("f64", [-4.5, -1.25, 0.0, 0.5, 2.5, 3.0, 7.0, 8.75, 10.5]),
)
_SELECTIONS = (
    ("largest", "the largest value", ">", lambda v: max(v)),
    ("smallest", "the smallest value", "<", lambda v: min(v)),
    ("last_largest", "the last of the largest values", ">=", lambda v: max(v)),
)


def generic_pick(rng: Random) -> Sketch:
    """The extreme of any ordered type among part of the values, or a fallback."""
    key, phrase, sign, pick = rng.choice(_SELECTIONS)
    k = rng.randint(2, 6)
    kind, pool = _POOLS[(k + len(key)) % len(_POOLS)]  # not in the prompt, so not by chance
    which, cut, python_cut = rng.choice(
        (
            ("the first {k}", "iter().take({k})", lambda v: v[:k]),
            ("all but the first {k}", "iter().skip({k})", lambda v: v[k:]),
            ("those at an index divisible by {k}", "iter().step_by({k})", lambda v: v[::k]),
        )
    )
    cut, which = cut.format(k=k), which.format(k=k)
    bound, where = rng.choice(
        (("<T: PartialOrd + Copy>", ""), ("<T>", " where T: PartialOrd + Copy"))
    )
    head = f"let mut best: Option<T> = None;\nfor &x in values.{cut} {{\n"
    return Sketch(
        name=f"{key}_or",
        generics=bound,
        bounds=where,
        doc=f"Of the values, looks at {which} and returns {phrase} of them,\n"
        "or `fallback` if there are none.",
        arguments=(("values", "&[T]"), ("fallback", "T")),
        result="T",
        bodies=(
            f"{head}    match best {{\n        Some(b) if !(x {sign} b) => {{}}\n"
            "        _ => best = Some(x),\n    }\n}\nbest.unwrap_or(fallback)",
            f"let mut chosen = values.{cut};\nlet Some(&first) = chosen.next() else {{\n"
            f"    return fallback;\n}};\nlet mut best = first;\nfor &x in chosen {{\n"
            f"    if x {sign} best {{\n        best = x;\n    }}\n}}\nbest",
        ),
        test_types=(f"&[{kind}]", kind, kind),
        inputs=lambda rng: [
            *((rng.sample(pool, n), pool[1]) for n in (0, 1, 5)),
            *((pool[:n][::way], pool[1]) for n in (k, k + 1, k + 2) for way in (1, -1)),
        ],
        reference=lambda values, fallback: pick(c) if (c := python_cut(values)) else fallback,
        composition=(key, which.replace(str(k), "k"), where and "where"),
        parameters=(k,),
    )


_PAIRS = ("Pair", "Couple", "Duo", "Range")


def generic_struct(rng: Random) -> Sketch:
    """A generic struct with a method, used with one type."""
    name, c = rng.choice(_PAIRS), rng.randint(1, 4)
    kind, pool = _POOLS[(c + len(name)) % len(_POOLS)]  # not in the prompt, so not by chance
    left, right = rng.choice((("first", "second"), ("left", "right"), ("a", "b"), ("low", "high")))
    key, sign, choose = rng.choice((("larger", ">", max), ("smaller", "<", min)))
    items = (
        f"struct {name}<T> {{\n    {left}: T,\n    {right}: T,\n}}\n\n"
        f"impl<T: PartialOrd + Copy> {name}<T> {{\n    fn {key}(&self) -> T {{\n"
        f"        if self.{left} {sign} self.{right} {{\n            self.{left}\n"
        f"        }} else {{\n            self.{right}\n        }}\n    }}\n}}"
    )
    how = rng.choice(("more", "at most"))
    compare = ">" if how == "more" else "<="
    counting = f"{'more than' if how == 'more' else 'at most'} {c}"

    def reference(rows: list[tuple], limit: object) -> bool:
        n = sum(choose(pair) >= limit for pair in rows)
        return n > c if how == "more" else n <= c

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for n in (0, 1, c, c + 1, c + 2, 2 * c + 2):
            pairs = [(rng.choice(pool), rng.choice(pool)) for _ in range(n)]
            made = [
                f"{name} {{ {left}: {literal(a, kind)}, {right}: {literal(b, kind)} }}"
                for a, b in pairs
            ]
            limit = pool[0] if c <= n <= c + 1 else rng.choice(pool)  # the lowest: all count
            rows.append((Rust("&[" + ", ".join(made) + "]", pairs), limit))
        return rows

    return Sketch(
        name=f"{how.replace(' ', '_')}_{c}_{key}",
        items=items,
        generics="<T: PartialOrd + Copy>",
        doc=f"Returns true if {counting} of the pairs have `{key}`, the {key} part,\n"
        "at least `limit`.",
        arguments=(("pairs", f"&[{name}<T>]"), ("limit", "T")),
        result="bool",
        bodies=(
            f"pairs.iter().filter(|pair| pair.{key}() >= limit).count() {compare} {c}",
            f"let mut count = 0;\nfor pair in pairs {{\n    if pair.{key}() >= limit {{\n"
            f"        count += 1;\n    }}\n}}\ncount {compare} {c}",
        ),
        test_types=(name, kind, "bool"),
        inputs=draw,
        reference=reference,
        composition=(name, key, how),
        parameters=(left, c),
    )


_SHAPES = (
    ("Cost", "cost", ("Book", "pages"), ("Pen", "length")),
    ("Score", "score", ("Goal", "minute"), ("Save", "distance")),
    ("Weight", "weight", ("Crate", "items"), ("Barrel", "litres")),
    ("Size", "size", ("File", "bytes"), ("Folder", "entries")),
)


def default_method(rng: Random) -> Sketch:
    """A trait with a default method that one of two types overrides."""
    kind, (trait, method, (a, field_a), (b, field_b)) = rng.choice(INTEGERS), rng.choice(_SHAPES)
    op, own = grammar.int_map(rng), grammar.int_map(rng)
    test = grammar.predicate(rng)
    items = (
        f"trait {trait} {{\n    fn base(&self) -> {kind};\n\n    fn {method}(&self) -> {kind} {{\n"
        f"        {op.rust(grammar.Expr('self.base()')).text}\n    }}\n}}\n\n"
        f"struct {a} {{\n    {field_a}: {kind},\n}}\n\n"
        f"struct {b} {{\n    {field_b}: {kind},\n}}\n\n"
        f"impl {trait} for {a} {{\n    fn base(&self) -> {kind} {{\n"
        f"        self.{field_a}\n    }}\n}}\n\n"
        f"impl {trait} for {b} {{\n    fn base(&self) -> {kind} {{\n"
        f"        self.{field_b}\n    }}\n\n"
        f"    fn {method}(&self) -> {kind} {{\n"
        f"        {own.rust(grammar.Expr('self.base()')).text}\n    }}\n}}"
    )
    otherwise = rng.randint(0, grammar.LARGEST)

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for (x,) in grammar.integer_inputs((*test.constants, *op.constants))(rng):
            rows.append((Rust(f"&{a} {{ {field_a}: {x} }}", op.apply(x)),))
            rows.append((Rust(f"&{b} {{ {field_b}: {x} }}", own.apply(x)),))
        return rows[:16]

    return Sketch(
        name=f"{method}_if_{test.key}",
        items=items,
        generics=f"<T: {trait}>",
        doc=f"Returns `{method}` of the item if that is {test.phrase}, otherwise {otherwise}.",
        arguments=(("item", "&T"),),
        result=kind,
        bodies=(
            f"let x = item.{method}();\nif {test.rust('x')} {{\n    x\n}} else {{\n"
            f"    {otherwise}\n}}",
            f"match item.{method}() {{\n    x if {test.rust('x')} => x,\n    _ => {otherwise},\n}}",
        ),
        test_types=("", kind),
        inputs=draw,
        reference=lambda x: x if test.holds(x) else otherwise,
        composition=(trait, op.key, own.key, test.key),
        parameters=(kind, otherwise, *op.constants, *own.constants, *test.constants),
    )


_UNITS = (("Money", "cents"), ("Span", "seconds"), ("Mass", "grams"), ("Steps", "count"))


def operator_sum(rng: Random) -> Sketch:
    """Implement an operator for a struct and fold a slice with it."""
    kind, (unit, field) = rng.choice(INTEGERS), rng.choice(_UNITS)
    trait, method, sign, join = rng.choice(
        (("Add", "add", "+", lambda a, b: a + b), ("Sub", "sub", "-", lambda a, b: a - b))
    )
    test, op = grammar.predicate(rng), grammar.int_map(rng)
    start = rng.randint(0, grammar.LARGEST)
    inner = op.rust(grammar.Expr(f"other.{field}")).within(grammar.TERM)
    items = (
        f"use std::ops::{trait};\n\n#[derive(Debug, Clone, Copy, PartialEq)]\n"
        f"struct {unit} {{\n    {field}: {kind},\n}}\n\n"
        f"impl {trait} for {unit} {{\n    type Output = {unit};\n\n"
        f"    fn {method}(self, other: {unit}) -> {unit} {{\n"
        f"        {unit} {{ {field}: self.{field} {sign} {inner} }}\n    }}\n}}"
    )

    def reference(values: list[int]) -> Rust:
        total = start
        for x in values:
            if test.holds(x):
                total = join(total, op.apply(x))
        return Rust(f"{unit} {{ {field}: {total} }}", total)

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for (values,) in grammar.slice_inputs((*test.constants, *op.constants))(rng):
            made = ", ".join(f"{unit} {{ {field}: {x} }}" for x in values)
            rows.append((Rust(f"&[{made}]", values),))
        return rows

    condition = test.rust(f"item.{field}")
    return Sketch(
        name=f"{method}_all_{test.key}",
        items=items,
        doc=f"Starts from {start} {field} and joins by `{sign}` each item\n"
        f"whose `{field}` is {test.phrase}, from left to right.",
        arguments=(("items", f"&[{unit}]"),),
        result=unit,
        bodies=(
            f"let mut total = {unit} {{ {field}: {start} }};\nfor &item in items {{\n"
            f"    if {condition} {{\n        total = total {sign} item;\n    }}\n}}\ntotal",
            f"items\n    .iter()\n    .filter(|item| {condition})\n"
            f"    .fold({unit} {{ {field}: {start} }}, |total, &item| total {sign} item)",
        ),
        test_types=("", unit),
        inputs=draw,
        reference=reference,
        composition=(unit, trait, op.key, test.key),
        parameters=(kind, start, *op.constants, *test.constants),
    )


def own_iterator(rng: Random) -> Sketch:
    """Implement Iterator for a struct, then filter and reduce what it yields."""
    kind, op, test = rng.choice(INTEGERS), grammar.int_map(rng), grammar.predicate(rng)
    name, d, k = rng.choice(("Counter", "Walk", "Series")), rng.randint(1, 9), rng.randint(2, 6)
    end = grammar.reduction(rng)
    items = (
        f"struct {name} {{\n    at: {kind},\n    left: usize,\n}}\n\n"
        f"impl Iterator for {name} {{\n    type Item = {kind};\n\n"
        f"    fn next(&mut self) -> Option<{kind}> {{\n        if self.left == 0 {{\n"
        f"            return None;\n        }}\n        let at = self.at;\n"
        f"        self.left -= 1;\n        self.at += {d};\n        Some({op.of('at')})\n    }}\n}}"
    )

    def reference(start: int) -> int:
        values = [op.apply(start + d * i) for i in range(k)]
        return end.apply([x for x in values if test.holds(x)])

    bodies = [
        f"{name} {{ at: start, left: {k} }}.filter(|&x| {test.rust('x')}).{end.method}",
    ]
    if end.step:
        bodies.append(
            f"let mut total = 0;\nfor x in ({name} {{ at: start, left: {k} }}) {{\n"
            f"    if {test.rust('x')} {{\n        {end.step.replace('{y}', 'x')}\n    }}\n}}\ntotal"
        )
    return Sketch(
        name=f"{name.lower()}_{test.key}_{end.key}",
        items=items,
        doc=f"Runs a `{name}` of {k} numbers from `start`,\n"
        f"keeps those that are {test.phrase} and {end.phrase}.",
        arguments=(("start", kind),),
        result=end.result or kind,
        bodies=tuple(bodies),
        inputs=grammar.integer_inputs(test.constants),
        reference=reference,
        composition=(op.key, test.key, end.key),
        parameters=(kind, name, d, k, *op.constants, *test.constants),
    )


def returned_iterator(rng: Random) -> Sketch:
    """Return an iterator that borrows the values (held out)."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    return Sketch(
        name=f"each_{test.key}_{op.key}",
        doc=f"Yields the values that are {test.phrase}, and {op.done_to('each')}.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"impl Iterator<Item = {kind}> + '_",
        bodies=(
            f"values.iter().copied().filter(|&x| {test.rust('x')}).map(|x| {op.of('x')})",
            f"values.iter().filter_map(|&x| if {test.rust('x')} {{ Some({op.of('x')}) }} "
            "else { None })",
        ),
        call="{name}({given}).collect::<Vec<_>>()",
        test_types=(f"&[{kind}]", f"Vec<{kind}>"),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=lambda values: [op.apply(x) for x in values if test.holds(x)],
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def boxed_closures(rng: Random) -> Sketch:
    """Build closures in boxes and run a number through them while a condition holds."""
    kind, (first, second) = rng.choice(INTEGERS), (grammar.int_map(rng), grammar.int_map(rng))
    test = grammar.predicate(rng)
    steps = f"vec![Box::new(|x| {first.of('x')}), Box::new(|x| {second.of('x')})]"
    boxes = f"let steps: Vec<Box<dyn Fn({kind}) -> {kind}>> =\n    {steps};"

    def reference(n: int) -> int:
        for op in (first, second):
            if test.holds(n):
                n = op.apply(n)
        return n

    return Sketch(
        name=f"{first.key}_then_{second.key}_while_{test.key}",
        doc=f"Two steps: the first {first.done_to('the number')},\n"
        f"the second {second.done_to('it')}. A step is left out if the number\n"
        f"before it is not {test.phrase}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"{boxes}\nlet mut x = n;\nfor step in &steps {{\n    if {test.rust('x')} {{\n"
            "        x = step(x);\n    }\n}\nx",
            f"{boxes}\nsteps\n    .iter()\n    .fold(n, |x, step| if {test.rust('x')} "
            "{ step(x) } else { x })",
        ),
        inputs=grammar.integer_inputs((*test.constants, *first.constants)),
        reference=reference,
        composition=(first.key, second.key, test.key),
        parameters=(kind, *first.constants, *second.constants, *test.constants),
    )


def const_generic(rng: Random) -> Sketch:
    """A function over arrays of any size: the place of a value, from the front or the back."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    side, method = rng.choice((("first", "position"), ("last", "rposition")))

    def reference(values: list[int]) -> Some | None:
        places = [i for i, x in enumerate(values) if test.holds(op.apply(x))]
        return Some(places[0 if side == "first" else -1]) if places else None

    changed = op.of("x")
    loop = "0..N" if side == "first" else "(0..N).rev()"
    return Sketch(
        name=f"{side}_{op.key}_{test.key}",
        generics="<const N: usize>",
        doc=f"{grammar.capitalised(op.done_to('each value'))} and returns the index of the {side}\n"
        f"result that is {test.phrase}.",
        arguments=(("values", f"[{kind}; N]"),),
        result="Option<usize>",
        bodies=(
            f"values.iter().map(|&x| {changed}).{method}(|y| {test.rust('y')})",
            f"for i in {loop} {{\n    let x = values[i];\n    let y = {changed};\n"
            f"    if {test.rust('y')} {{\n        return Some(i);\n    }}\n}}\nNone",
        ),
        test_types=("", "Option<usize>"),
        inputs=lambda rng: [
            (Rust(f"{values}", values),)
            for (values,) in grammar.slice_inputs(test.constants)(rng)
            if values
        ],
        reference=reference,
        composition=(side, op.key, test.key),
        parameters=(kind, *op.constants, *test.constants),
    )  # fmt: skip


FAMILIES = (
    Family("generic_pick", 3, generic_pick),
    Family("generic_struct", 4, generic_struct),
    Family("const_generic", 4, const_generic),
    Family("returned_iterator", 4, returned_iterator, held=True),
    Family("default_method", 5, default_method),
    Family("operator_sum", 5, operator_sum),
    Family("own_iterator", 5, own_iterator),
    Family("boxed_closures", 5, boxed_closures),
)
