"""Text formats, counts in a map, tables, records: small data and what is asked of it."""

from __future__ import annotations

from collections import Counter
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch, Some
from nanochat_lib.data.tinyrust.levels.level3 import LETTERS, text_inputs


def shift_letters(rng: Random) -> Sketch:
    """Shift letters in the alphabet, leave or replace the rest."""
    k, mark = rng.randint(3, 23), rng.choice("_*.-#+")
    replaces = rng.random() < 0.5
    other = f"'{mark}'" if replaces else "c"
    rest = f"replaces everything else by '{mark}'" if replaces else "leaves everything else"
    shifted = f"(b'a' + (c as u8 - b'a' + {k}) % 26) as char"

    def one(c: str) -> str:
        if c in LETTERS:
            return LETTERS[(LETTERS.index(c) + k) % 26]
        return mark if replaces else c

    return Sketch(
        name=f"shift_or_{'mark' if replaces else 'keep'}",
        doc=f"Moves each of the 26 lowercase letters forward by {k} in the alphabet,\n"
        f"from z on to a, and {rest}.",
        arguments=(("text", "&str"),),
        result="String",
        bodies=(
            "text.chars()\n    .map(|c| match c {\n"
            f"        'a'..='z' => {shifted},\n        _ => {other},\n    }})\n    .collect()",
            "let mut result = String::new();\nfor c in text.chars() {\n"
            f"    if c.is_ascii_lowercase() {{\n        result.push({shifted});\n"
            f"    }} else {{\n        result.push({other});\n    }}\n}}\nresult",
        ),
        inputs=text_inputs(("a", "z")),
        reference=lambda text: "".join(map(one, text)),
        composition=("shift", str(replaces)),
        parameters=(k, mark if replaces else ""),
    )


def number_text(rng: Random) -> Sketch:
    """Write a number in a format, with a label."""
    kind, label = rng.choice(("i32", "u32", "u8")), rng.choice(("n", "id", "code", "row", "no"))
    width, op = rng.randint(3, 8), grammar.int_map(rng)
    key, words, spec, write = rng.choice(
        (
            ("padded", f"filled with zeros on the left to {width} places", f":0>{width}",
             lambda x: f"{x:0>{width}}"),
            ("right", f"at the right of {width} places", f":>{width}", lambda x: f"{x:>{width}}"),
            ("left", f"at the left of {width} places", f":<{width}", lambda x: f"{x:<{width}}"),
            ("binary", "in binary", ":b", lambda x: f"{x:b}"),
            ("hex", "in hexadecimal", ":x", lambda x: f"{x:x}"),
        )
    )  # fmt: skip
    is_plain = kind != "i32" or key in ("binary", "hex")  # Python writes a sign, Rust the bits
    changed = "n" if is_plain else op.of("n")
    first = "" if is_plain else f"{op.done_to('`n`')}, then "
    low = 0 if is_plain else -60
    return Sketch(
        name=f"{label}_{key}",
        doc=grammar.capitalised(f'{first}writes "{label}=" and the number {words}.'),
        arguments=(("n", kind),),
        result="String",
        bodies=(
            f'let x = {changed};\nformat!("{label}={{x{spec}}}")',
            f'let x = {changed};\nlet mut text = String::from("{label}=");\n'
            f'text.push_str(&format!("{{x{spec}}}"));\ntext',
        ),
        inputs=lambda rng: [
            (n,) for n in (0, 1, 7, 10, *(rng.randint(low, 250) for _ in range(5)))
        ],
        reference=lambda n: f"{label}=" + write(n if is_plain else op.apply(n)),
        composition=(key, kind, "plain" if is_plain else op.key),
        parameters=(label, width if "{width}" in words else 0, *(() if is_plain else op.constants)),
    )


def best_window(rng: Random) -> Sketch:
    """The best sum of neighbouring values (held out)."""
    kind, k, op = rng.choice(INTEGERS), rng.randint(2, 4), grammar.int_map(rng)
    word, method, pick = rng.choice((("largest", "max", max), ("smallest", "min", min)))

    def reference(values: list[int]) -> Some | None:
        sums = [sum(values[i : i + k]) for i in range(len(values) - k + 1)]
        return Some(op.apply(pick(sums))) if sums else None

    return Sketch(
        name=f"{word}_window_{op.key}",
        doc=f"Finds the {word} sum of {k} neighbouring values and {op.done_to('it')};\n"
        f"None if there are fewer than {k} values.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Option<{kind}>",
        bodies=(
            f"values.windows({k}).map(|w| w.iter().sum::<{kind}>()).{method}()"
            f".map(|x| {op.of('x')})",
            f"let mut best: Option<{kind}> = None;\nfor w in values.windows({k}) {{\n"
            f"    let sum: {kind} = w.iter().sum();\n"
            f"    best = Some(best.map_or(sum, |b| b.{method}(sum)));\n}}\n"
            f"best.map(|x| {op.of('x')})",
        ),
        inputs=lambda rng: [
            (grammar.numbers_near(rng, op.constants, n),) for n in (0, k - 1, k, k + 1, 6, 7, 8)
        ],
        reference=reference,
        composition=("window", word, op.key),
        parameters=(kind, k, *op.constants),
    )


def count_map(rng: Random) -> Sketch:
    """Count values by a key in an ordered map, keep the frequent ones."""
    kind, op, least = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(1, 4)
    changed = op.of("x")

    def reference(values: list[int]) -> list[tuple[int, int]]:
        counts = Counter(map(op.apply, values))
        return sorted((x, n) for x, n in counts.items() if n >= least)

    def draw(rng: Random) -> list[tuple]:
        pool = [*(c + d for c in op.constants for d in (-1, 0, 1)), -3, 3, 0]
        return [([],), *(([rng.choice(pool[:4]) for _ in range(n)],) for n in (1, 3, 5, 7, 9)),
                ([pool[0]] * least,), ([pool[1]] * (least + 1),)]  # fmt: skip

    return Sketch(
        name=f"frequent_{op.key}",
        doc=f"{grammar.capitalised(op.done_to('each value'))} and counts equal results.\n"
        f"Returns those that occur at least {least} times with their counts, in order.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Vec<({kind}, usize)>",
        bodies=(
            "let mut counts = std::collections::BTreeMap::new();\nfor &x in values {\n"
            f"    *counts.entry({changed}).or_insert(0) += 1;\n}}\n"
            f"counts.into_iter().filter(|&(_, n)| n >= {least}).collect()",
            f"let mut keys: Vec<{kind}> = values.iter().map(|&x| {changed}).collect();\n"
            f"keys.sort();\nlet mut counts: Vec<({kind}, usize)> = Vec::new();\n"
            "for key in keys {\n    match counts.last_mut() {\n"
            "        Some((last, n)) if *last == key => *n += 1,\n"
            "        _ => counts.push((key, 1)),\n    }\n}\n"
            f"counts.retain(|&(_, n)| n >= {least});\ncounts",
        ),
        inputs=draw,
        reference=reference,
        composition=("count", op.key),
        parameters=(kind, least, *op.constants),
    )


def table(rng: Random) -> Sketch:
    """Filter and reduce the rows or the columns of a table."""
    kind, test, end = rng.choice(INTEGERS), grammar.predicate(rng), grammar.reduction(rng)
    by_rows = rng.random() < 0.5
    result = end.result or kind
    keep = f".filter(|&x| {test.rust('x')}).{end.method}"
    lines = "row" if by_rows else "column"

    def reference(rows: list[list[int]]) -> list[int]:
        groups = rows if by_rows else [list(c) for c in zip(*rows, strict=True)]
        return [end.apply([x for x in group if test.holds(x)]) for group in groups]

    width = "let width = rows.first().map_or(0, |row| row.len());\n"
    loop = (
        f"let mut result = Vec::new();\nfor row in rows {{\n"
        f"    let found: {result} = row.iter().copied(){keep};\n    result.push(found);\n}}\nresult"
        if by_rows
        else f"{width}let mut result = Vec::new();\nfor i in 0..width {{\n"
        f"    let found: {result} = rows.iter().map(|row| row[i]){keep};\n"
        "    result.push(found);\n}\nresult"
    )
    chain = (
        f"rows.iter().map(|row| row.iter().copied(){keep}).collect()"
        if by_rows
        else f"{width}(0..width)\n    .map(|i| rows.iter().map(|row| row[i]){keep})\n    .collect()"
    )

    def draw(rng: Random) -> list[tuple]:
        sizes = ((0, 0), (1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 3))
        return [
            ([grammar.numbers_near(rng, test.constants, w) for _ in range(h)],) for h, w in sizes
        ]

    return Sketch(
        name=f"{lines}s_{test.key}_{end.key}",
        doc=f"For each {lines} of the table, keeps the values that are {test.phrase}\n"
        f"and {end.phrase}.",
        arguments=(("rows", f"&[Vec<{kind}>]"),),
        result=f"Vec<{result}>",
        bodies=(chain, loop),
        inputs=draw,
        reference=reference,
        composition=(lines, test.key, end.key),
        parameters=(kind, *test.constants),
    )


_RECORDS = (("Person", "name", "age"), ("City", "name", "size"), ("Song", "title", "length"),
            ("Dish", "name", "price"))  # fmt: skip
_NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus")


def sort_records(rng: Random) -> Sketch:
    """Filter structs, sort them by a field and return a text of each."""
    kind, (name, text, number) = rng.choice(("u32", "i32")), rng.choice(_RECORDS)
    test, k, rising = grammar.predicate(rng), rng.randint(1, 4), rng.random() < 0.5
    variable, order = name.lower(), "smallest" if rising else "largest"
    items = f"#[derive(Clone)]\nstruct {name} {{\n    {text}: String,\n    {number}: {kind},\n}}"
    condition = test.rust(f"{variable}.{number}")
    compare = f"a.{number}.cmp(&b.{number})" if rising else f"b.{number}.cmp(&a.{number})"
    key = f"{variable}.{number}" if rising else f"std::cmp::Reverse({variable}.{number})"

    def reference(rows: list[tuple[str, int]]) -> list[str]:
        kept = sorted((r for r in rows if test.holds(r[1])), key=lambda r: r[1], reverse=not rising)
        return [r[0] for r in kept][:k]

    near = [c + d for c in test.constants for d in (-1, 0, 1)] or [1, 2, 3]

    def draw(rng: Random) -> list[tuple]:
        found = []
        for n in (0, 1, len(near), len(near), 2, 5, 7):
            numbers = rng.sample(near if n == len(near) else range(40), n)
            rows = list(zip(rng.sample(_NAMES, n), numbers, strict=True))
            made = [f'{name} {{ {text}: "{t}".to_string(), {number}: {x} }}' for t, x in rows]
            found.append((Rust("&[" + ", ".join(made) + "]", rows),))
        return found

    return Sketch(
        name=f"{order}_{test.key}",
        items=items,
        doc=f"Keeps those whose `{number}` is {test.phrase} and returns the `{text}` of the {k}\n"
        f"with the {order} `{number}`, in that order.",
        arguments=((f"{variable}s", f"&[{name}]"),),
        result="Vec<String>",
        bodies=(
            f"let mut kept: Vec<&{name}> = {variable}s.iter().filter(|{variable}| {condition})"
            f".collect();\nkept.sort_by(|a, b| {compare});\n"
            f"kept.iter().take({k}).map(|{variable}| {variable}.{text}.clone()).collect()",
            f"let mut kept = {variable}s.to_vec();\nkept.retain(|{variable}| {condition});\n"
            f"kept.sort_by_key(|{variable}| {key});\nkept.truncate({k});\n"
            f"kept.into_iter().map(|{variable}| {variable}.{text}).collect()",
        ),
        test_types=("", "Vec<String>"),
        inputs=draw,
        reference=reference,
        composition=(name, test.key, order),
        parameters=(kind, k, *test.constants),
    )


def key_values(rng: Random) -> Sketch:
    """Read `key=number` fields from a text and reduce those of one key."""
    kind, end = rng.choice(INTEGERS), grammar.reduction(rng)
    kind = "i32" if end.result else kind  # a count does not show it
    key, sign = rng.choice(("age", "hp", "x", "cost", "k")), rng.choice(";,|")
    test = grammar.predicate(rng)

    def reference(text: str) -> int:
        found = []
        for part in text.split(sign):
            name, is_field, value = part.partition("=")
            if is_field and name == key and value.removeprefix("-").isdigit():
                found.append(int(value))
        return end.apply([x for x in found if test.holds(x)])

    def draw(rng: Random) -> list[tuple]:
        near = [c + d for c in test.constants for d in (-1, 0, 1)] or [-1, 0, 2, 3]
        fields = [f"{key}={x}" for x in near]
        noise = ["other=5", key, f"{key}=", f"{key}=no", "=4", f"{key}{key}=8"]
        mixed = [*rng.sample(fields, len(fields)), *noise]
        rng.shuffle(mixed)
        return [("",), (noise[3],), *((field,) for field in fields), (sign.join(fields),),
                (sign.join(mixed),), (sign.join([*noise[:2], f"{key}=7"]),)]  # fmt: skip

    parsed = f"value.parse::<{kind}>()"
    bodies = [
        f"text.split('{sign}')\n    .filter_map(|part| part.split_once('='))\n"
        f'    .filter(|(name, _)| *name == "{key}")\n'
        f"    .filter_map(|(_, value)| {parsed}.ok())\n"
        f"    .filter(|&x| {test.rust('x')})\n    .{end.method}"
    ]
    if end.step:
        bodies.append(
            f"let mut total = 0;\nfor part in text.split('{sign}') {{\n"
            "    let Some((name, value)) = part.split_once('=') else {\n        continue;\n    };\n"
            f'    if name != "{key}" {{\n        continue;\n    }}\n'
            f"    if let Ok(x) = {parsed} {{\n        if {test.rust('x')} {{\n"
            f"            {end.step.replace('{y}', 'x')}\n        }}\n    }}\n}}\ntotal"
        )
    return Sketch(
        name=f"{key}_{test.key}_{end.key}",
        doc=f"The text holds fields such as {key}=1, with '{sign}' between. Takes the numbers of\n"
        f"`{key}`, keeps those that are {test.phrase} and {end.phrase};\n"
        "fields that are not numbers do not count.",
        arguments=(("text", "&str"),),
        result=end.result or kind,
        bodies=tuple(bodies),
        inputs=draw,
        reference=reference,
        composition=("fields", test.key, end.key),
        parameters=(kind, key, sign, *test.constants),
    )


FAMILIES = (
    Family("number_text", 3, number_text),
    Family("shift_letters", 3, shift_letters),
    Family("best_window", 3, best_window, held=True),
    Family("count_map", 4, count_map),
    Family("table", 4, table),
    Family("sort_records", 4, sort_records),
    Family("key_values", 4, key_values),
)
