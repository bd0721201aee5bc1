"""Level 5: traits, recursion, compositions of several steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch


def recursive_sum(rng: Random) -> Sketch:
    """Sum mapped, filtered values by recursion over the slice."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    name = f"recursive_{test.key}_{op.key}_sum"
    rest = f"{name}(rest)"
    return Sketch(
        name=name,
        doc=f"By recursion, keeps the values that are {test.phrase},\n"
        f"{op.done_to('each')} and returns their sum.",
        arguments=(("values", f"&[{kind}]"),),
        result=kind,
        bodies=(
            f"match values {{\n    [] => 0,\n    [x, rest @ ..] => {{\n        let x = *x;\n"
            f"        if {test.rust('x')} {{\n            {op.of('x')} + {rest}\n"
            f"        }} else {{\n            {rest}\n        }}\n    }}\n}}",
            f"if values.is_empty() {{\n    return 0;\n}}\nlet x = values[0];\n"
            f"let rest = {name}(&values[1..]);\n"
            f"if {test.rust('x')} {{\n    {op.of('x')} + rest\n}} else {{\n    rest\n}}",
        ),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=lambda values: sum(op.apply(x) for x in values if test.holds(x)),
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def digit_sum(rng: Random) -> Sketch:
    """Add the mapped digits of a number in some base by recursion."""
    kind, op, base = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(2, 16)
    name = f"digit_{op.key}_sum"

    def reference(n: int) -> int:
        total = 0
        while n:
            n, digit = divmod(n, base)
            total += op.apply(digit)
        return total

    return Sketch(
        name=name,
        doc=f"Takes the digits of `n` in base {base}, {op.done_to('each')} and adds them up.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"if n == 0 {{\n    return 0;\n}}\nlet x = n % {base};\n"
            f"{op.rust(grammar.Expr('x')).within(grammar.SUM)} + {name}(n / {base})",
            f"let mut n = n;\nlet mut total = 0;\nwhile n > 0 {{\n    let x = n % {base};\n"
            f"    total += {op.of('x')};\n    n /= {base};\n}}\ntotal",
        ),
        inputs=lambda rng: [
            (n,) for n in (0, 1, base - 1, base, base**2, base**3, *rng.sample(range(9999), 4))
        ],
        reference=reference,
        composition=("digits", op.key),
        parameters=(kind, base, *op.constants),
    )


def steps_until(rng: Random) -> Sketch:
    """Count steps of a rule that shrinks a number to a bound."""
    kind, d, c = rng.choice(INTEGERS), rng.randint(2, 6), rng.randint(1, 20)
    name = "count_steps"

    def reference(n: int) -> int:
        steps = 0
        while n > c:
            n = n // d if n % d == 0 else n - 1
            steps += 1
        return steps

    return Sketch(
        name=name,
        doc=f"Counts the steps until `n` is at most {c}: divide by {d} when divisible,\n"
        "otherwise subtract 1.",
        arguments=(("n", kind),),
        result="u32",
        bodies=(
            f"if n <= {c} {{\n    0\n}} else if n % {d} == 0 {{\n    1 + {name}(n / {d})\n"
            f"}} else {{\n    1 + {name}(n - 1)\n}}",
            f"let mut n = n;\nlet mut steps = 0;\nwhile n > {c} {{\n    if n % {d} == 0 {{\n"
            f"        n /= {d};\n    }} else {{\n        n -= 1;\n    }}\n    steps += 1;\n}}\n"
            "steps",
        ),
        inputs=lambda rng: [(n,) for n in (-3, 0, c, c + 1, *rng.sample(range(900), 5))],
        reference=reference,
        parameters=(kind, d, c),
    )


def pipeline(rng: Random) -> Sketch:
    """Filter, map, sort, deduplicate and cut into a vector."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    k, descending = rng.randint(1, 5), rng.random() < 0.5
    order = "descending" if descending else "ascending"
    sort = "result.sort_by(|a, b| b.cmp(a));" if descending else "result.sort();"
    keep = f".filter(|&x| {test.rust('x')}).map(|x| {op.of('x')})"

    def reference(values: list[int]) -> list[int]:
        return sorted({op.apply(x) for x in values if test.holds(x)}, reverse=descending)[:k]

    return Sketch(
        name=f"{order}_{test.key}_{op.key}",
        doc=f"Keeps the values that are {test.phrase}, {op.done_to('each')},\n"
        f"sorts them {order} without repeats and returns the first {k}.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Vec<{kind}>",
        bodies=(
            f"let mut result: Vec<{kind}> = values.iter().copied(){keep}.collect();\n"
            f"{sort}\nresult.dedup();\nresult.truncate({k});\nresult",
            f"let kept: std::collections::BTreeSet<{kind}> =\n"
            f"    values.iter().copied(){keep}.collect();\n"
            f"kept.into_iter(){'.rev()' if descending else ''}.take({k}).collect()",
        ),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=reference,
        composition=(order, test.key, op.key),
        parameters=(kind, k, *test.constants, *op.constants),
    )


_TRAITS = (("Shape", "area", "Square", "side"), ("Price", "cost", "Ticket", "zone"),
           ("Animal", "weight", "Dog", "age"), ("Task", "effort", "Job", "hours"))  # fmt: skip


def trait_total(rng: Random) -> Sketch:
    """Filter and reduce trait objects by what their method returns."""
    kind, (trait, method, struct, field) = rng.choice(INTEGERS), rng.choice(_TRAITS)
    op, test = grammar.int_map(rng), grammar.predicate(rng)
    end = grammar.reduction(rng)
    inner = op.rust(grammar.Expr(f"self.{field}")).text
    items = (
        f"trait {trait} {{\n    fn {method}(&self) -> {kind};\n}}\n\n"
        f"struct {struct} {{\n    {field}: {kind},\n}}\n\n"
        f"impl {trait} for {struct} {{\n    fn {method}(&self) -> {kind} {{\n"
        f"        {inner}\n    }}\n}}"
    )
    chain = f"items.iter().map(|item| item.{method}()).filter(|&x| {test.rust('x')})"
    bodies = [f"{chain}.{end.method}"]
    if end.step:
        bodies.append(
            f"let mut total = 0;\nfor item in items {{\n    let x = item.{method}();\n"
            f"    if {test.rust('x')} {{\n        {end.step.replace('{y}', 'x')}\n    }}\n}}\ntotal"
        )

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for (values,) in grammar.slice_inputs((*op.constants, *test.constants))(rng):
            boxed = ", ".join(f"Box::new({struct} {{ {field}: {x} }})" for x in values)
            rows.append((Rust(f"&[{boxed}]", values),))
        return rows

    return Sketch(
        name=f"{method}_{test.key}_{end.key}",
        items=items,
        doc=f"Takes `{method}` of each item, keeps those that are {test.phrase}\nand {end.phrase}.",
        arguments=(("items", f"&[Box<dyn {trait}>]"),),
        result=end.result or kind,
        bodies=tuple(bodies),
        inputs=draw,
        reference=lambda values: end.apply([y for x in values if test.holds(y := op.apply(x))]),
        composition=(trait, test.key, end.key),
        parameters=(kind, op.key, *op.constants, *test.constants),
    )


def run_lengths(rng: Random) -> Sketch:
    """Collapse runs of characters that are long enough into pairs."""
    n = rng.randint(1, 9)
    result, shape, pair, phrase = rng.choice(
        (
            ("Vec<(char, usize)>", "pairs", "(c, n)", "characters with their lengths"),
            ("Vec<char>", "letters", "c", "characters"),
            ("Vec<usize>", "lengths", "n", "lengths"),
        )
    )
    pick: Callable[[str, int], object] = {
        "pairs": lambda c, size: (c, size), "letters": lambda c, size: c,
        "lengths": lambda c, size: size,
    }[shape]  # fmt: skip
    return Sketch(
        name=f"run_{shape}",
        doc=f"Finds the runs of at least {n} equal characters and returns their {phrase}.",
        arguments=(("text", "&str"),),
        result=result,
        bodies=(
            "let mut runs: Vec<(char, usize)> = Vec::new();\nfor c in text.chars() {\n"
            "    match runs.last_mut() {\n        Some((last, n)) if *last == c => *n += 1,\n"
            "        _ => runs.push((c, 1)),\n    }\n}\n"
            f"runs.into_iter().filter(|&(_, n)| n >= {n}).map(|(c, n)| {pair}).collect()",
        ),
        inputs=lambda rng: [
            ("b" * (n - 1) + "a" * n + "c" * (n + 1),),
            *(
                ("".join(rng.choice("abc") * rng.randint(1, n + 2) for _ in range(size)),)
                for size in (0, 1, 2, 4, 6)
            ),
        ],
        reference=lambda text: [
            pick(c, size) for c, run in groupby(text) if (size := len(list(run))) >= n
        ],
        parameters=(shape, n),
    )


_NODES = (
    ("Add", "+", lambda a, b: a + b),
    ("Sub", "-", lambda a, b: a - b),
    ("Mul", "*", lambda a, b: a * b),
)


def expression_tree(rng: Random) -> Sketch:
    """Evaluate an expression tree by recursion (held out)."""
    kind, c = rng.choice(INTEGERS), rng.randint(1, grammar.LARGEST)
    chosen = rng.sample(_NODES, 2)
    variants = [f"    {name}(Box<Expr>, Box<Expr>)," for name, *_ in chosen]
    arms = ["    Expr::Num(n) => *n,", f"    Expr::Constant => {c},"]
    arms += [f"    Expr::{name}(a, b) => eval(a) {sign} eval(b)," for name, sign, _ in chosen]

    def tree(rng: Random, depth: int) -> Rust:
        if depth == 0 or rng.random() < 0.2:
            if rng.random() < 0.3:
                return Rust("Expr::Constant", c)
            x = rng.randint(-9, 9)
            return Rust(f"Expr::Num({x})", x)
        name, _, join = rng.choice(chosen)
        a, b = tree(rng, depth - 1), tree(rng, depth - 1)
        text = f"Expr::{name}(Box::new({a.text}), Box::new({b.text}))"
        return Rust(text, join(a.value, b.value))

    def draw(rng: Random) -> list[tuple]:
        trees = [Rust("Expr::Constant", c), *(tree(rng, depth) for depth in (1, 1, 2, 2))]
        return [(Rust(f"&{made.text}", made.value),) for made in trees]

    return Sketch(
        name="eval",
        items="\n".join(["enum Expr {", f"    Num({kind}),", "    Constant,", *variants, "}"]),
        doc=f"Evaluates the tree; `Constant` is {c}.",
        arguments=(("expr", "&Expr"),),
        result=kind,
        bodies=("\n".join(["match expr {", *arms, "}"]),),
        inputs=draw,
        reference=lambda value: value,
        parameters=(kind, c, *(name for name, *_ in chosen)),
    )  # fmt: skip


FAMILIES = (
    Family("recursive_sum", 5, recursive_sum),
    Family("digit_sum", 5, digit_sum),
    Family("steps_until", 5, steps_until),
    Family("pipeline", 5, pipeline),
    Family("trait_total", 5, trait_total),
    Family("run_lengths", 5, run_lengths),
    Family("expression_tree", 5, expression_tree, held=True),
)
