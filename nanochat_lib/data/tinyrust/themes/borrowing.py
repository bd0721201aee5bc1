"""Ownership: changes through `&mut`, values moved in and out, borrowed parts, lifetimes in structs.

Where a function changes what it borrows, the tests look at both the result and the changed value.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch
from nanochat_lib.data.tinyrust.levels.level3 import LETTERS, text_inputs


def edit_in_place(rng: Random) -> Sketch:
    """Change the matching values of a mutable slice and count them."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    changed = op.of("x")

    def reference(values: list[int]) -> tuple[int, list[int]]:
        after = [op.apply(x) if test.holds(x) else x for x in values]
        return sum(map(test.holds, values)), after

    return Sketch(
        name=f"{op.key}_where_{test.key}",
        doc=f"Finds the values that are {test.phrase}, {op.done_to('each')} in place\n"
        "and returns how many there were.",
        arguments=(("values", f"&mut [{kind}]"),),
        result="usize",
        bodies=(
            "let mut count = 0;\nfor value in values.iter_mut() {\n    let x = *value;\n"
            f"    if {test.rust('x')} {{\n        *value = {changed};\n        count += 1;\n"
            "    }\n}\ncount",
            "let mut count = 0;\nfor i in 0..values.len() {\n    let x = values[i];\n"
            f"    if {test.rust('x')} {{\n        values[i] = {changed};\n        count += 1;\n"
            "    }\n}\ncount",
        ),
        call="{{ let mut values = {0}; ({name}(&mut values), values) }}",
        test_types=(f"Vec<{kind}>", f"(usize, Vec<{kind}>)"),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=reference,
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def push_when(rng: Random) -> Sketch:
    """Push a changed value onto a borrowed vector, or do nothing."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    result = op.of("n")
    draw = grammar.integer_inputs((*test.constants, *op.constants))
    return Sketch(
        name=f"push_{op.key}_if_{test.key}",
        doc=f"If `n` is {test.phrase}, {op.done_to('it')} and pushes the result to `values`.",
        arguments=(("values", f"&mut Vec<{kind}>"), ("n", kind)),
        result="",
        bodies=(
            f"if {test.rust('n')} {{\n    values.push({result});\n}}",
            f"if !({test.rust('n')}) {{\n    return;\n}}\nvalues.push({result});",
        ),
        call="{{ let mut values = {0}; {name}(&mut values, {1}); values }}",
        test_types=(f"Vec<{kind}>", kind, f"Vec<{kind}>"),
        inputs=lambda rng: [([rng.randint(0, 9)] * rng.randint(0, 2), n) for (n,) in draw(rng)],
        reference=lambda values, n: [*values, op.apply(n)] if test.holds(n) else values,
        composition=("push", test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def _moves(c: int, k: int) -> tuple[tuple[str, str, str, Callable[[list[int]], list[int]]], ...]:
    return (
        ("push", f"appends {c}", f"values.push({c});", lambda v: [*v, c]),
        ("insert", f"inserts {c} at the front", f"values.insert(0, {c});", lambda v: [c, *v]),
        ("reverse", "reverses the order", "values.reverse();", lambda v: v[::-1]),
        ("sort", "sorts them", "values.sort();", sorted),
        ("pop", "removes the last", "values.pop();", lambda v: v[:-1]),
        ("truncate", f"keeps at most {k} of them", f"values.truncate({k});", lambda v: v[:k]),
        ("repeat", "appends a copy of all", "values.extend(values.clone());", lambda v: [*v, *v]),
        ("fill", f"sets all to {c}", f"values.fill({c});", lambda v: [c] * len(v)),
        ("clear_if", f"removes all if there are more than {k}",
         f"if values.len() > {k} {{\n    values.clear();\n}}", lambda v: [] if len(v) > k else v),
    )  # fmt: skip


def move_through(rng: Random) -> Sketch:
    """Move a vector in, change it two times, move it out."""
    kind, c, k = rng.choice((*INTEGERS, "u8", "u32")), rng.randint(1, 24), rng.randint(1, 5)
    (first, said, code, apply), (second, said2, code2, apply2) = rng.sample(_moves(c, k), 2)
    # What the prompt does not show must not decide its tests.
    c = c if {first, second} & {"push", "insert", "fill"} else 0
    k = k if {first, second} & {"truncate", "clear_if"} else 3
    return Sketch(
        name=f"{first}_then_{second}",
        doc=f"Takes the values, {said}, then {said2} and gives them back.",
        arguments=(("mut values", f"Vec<{kind}>"),),
        result=f"Vec<{kind}>",
        bodies=(f"{code}\n{code2}\nvalues",),
        test_types=(f"Vec<{kind}>", f"Vec<{kind}>"),
        inputs=lambda rng: [
            ([rng.randint(0, 30) for _ in range(n)],) for n in (0, 1, 2, k, k + 1, 2 * k, 4)
        ],
        reference=lambda values: apply2(apply(values)),
        composition=(first, second),
        parameters=(kind, c, k),
    )


def replace_slot(rng: Random) -> Sketch:
    """Change a borrowed number and return what it was, mapped."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    c = rng.randint(0, grammar.LARGEST)
    old = op.of("old")
    return Sketch(
        name=f"replace_if_{test.key}_{op.key}",
        doc=f"If `slot` is {test.phrase}, sets it to {c}. Takes what it was before\n"
        f"and {op.done_to('it')}.",
        arguments=(("slot", f"&mut {kind}"),),
        result=kind,
        bodies=(
            f"let old = *slot;\nif {test.rust('old')} {{\n    *slot = {c};\n}}\n{old}",
            f"let old = *slot;\n*slot = if {test.rust('old')} {{ {c} }} else {{ old }};\n{old}",
        ),
        call="{{ let mut slot = {0}; ({name}(&mut slot), slot) }}",
        test_types=(kind, f"({kind}, {kind})"),
        inputs=grammar.integer_inputs((c, *test.constants)),
        reference=lambda n: (op.apply(n), c if test.holds(n) else n),
        composition=("slot", test.key, op.key),
        parameters=(kind, c, *test.constants, *op.constants),
    )


_CUTS = (
    ("first", "the first {k} values", "&values[..values.len().min({k})]", lambda v, k: v[:k]),
    ("without_first", "all but the first {k} values", "&values[values.len().min({k})..]",
     lambda v, k: v[k:]),
    ("last", "the last {k} values", "&values[values.len().saturating_sub({k})..]",
     lambda v, k: v[-k:]),
    ("without_last", "all but the last {k} values", "&values[..values.len().saturating_sub({k})]",
     lambda v, k: v[:-k]),
)  # fmt: skip


def borrow_part(rng: Random) -> Sketch:
    """Return a part of a slice, borrowed from it, or an empty one."""
    kind, k, (key, phrase, code, cut) = rng.choice(INTEGERS), rng.randint(1, 8), rng.choice(_CUTS)
    test = grammar.predicate(rng)
    part = code.format(k=k)
    return Sketch(
        name=f"{key}_if_any_{test.key}",
        doc=f"Returns {phrase.format(k=k)} (fewer if there are not so many)\n"
        f"if any value is {test.phrase}, otherwise nothing.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"&[{kind}]",
        bodies=(
            f"if values.iter().any(|&x| {test.rust('x')}) {{\n    {part}\n}} else {{\n    &[]\n}}",
            f"for &x in values {{\n    if {test.rust('x')} {{\n        return {part};\n    }}\n}}\n"
            "&[]",
        ),
        call="{name}({given}).to_vec()",
        test_types=(f"&[{kind}]", f"Vec<{kind}>"),
        inputs=lambda rng: [
            *grammar.slice_inputs(test.constants)(rng),
            *((grammar.numbers_near(rng, test.constants, n),) for n in (k - 1, k, k + 1, k + 3)),
        ],
        reference=lambda values: cut(values, k) if any(map(test.holds, values)) else [],
        composition=(key, test.key),
        parameters=(kind, k, *test.constants),
    )


def _edits(a: str, n: int) -> tuple[tuple[str, str, str, Callable[[str], str]], ...]:
    return (
        ("push", f"appends '{a}'", f"text.push('{a}');", lambda t: t + a),
        ("prefix", f"puts '{a}' in front", f"text.insert(0, '{a}');", lambda t: a + t),
        ("upper", "makes it upper case", "text.make_ascii_uppercase();", str.upper),
        ("shorten", f"keeps at most {n} bytes", f"text.truncate({n});", lambda t: t[:n]),
        ("drop", "removes the last character", "text.pop();", lambda t: t[:-1]),
        ("remove", f"removes every '{a}'", f"text.retain(|c| c != '{a}');",
         lambda t: t.replace(a, "")),
        ("double", "appends a copy", "text.push_str(&text.clone());", lambda t: t + t),
    )  # fmt: skip


def edit_string(rng: Random) -> Sketch:
    """Take a String, edit it two or three times, give it back."""
    a, n = rng.choice(LETTERS), rng.randint(2, 12)
    chosen = rng.sample(_edits(a, n), rng.randint(2, 3))
    keys = {key for key, *_ in chosen}
    a = a if keys & {"push", "prefix", "remove"} else "a"
    n = n if "shorten" in keys else 4
    said = ", ".join(words for _, words, *_ in chosen[:-1])

    def reference(text: str) -> str:
        for *_, edit in chosen:
            text = edit(text)
        return text

    return Sketch(
        name="_".join(key for key, *_ in chosen),
        doc=f"Takes the text, {said}, then {chosen[-1][1]} and gives it back.",
        arguments=(("mut text", "String"),),
        result="String",
        bodies=("\n".join([*(code for _, _, code, _ in chosen), "text"]),),
        inputs=lambda rng: [*text_inputs((a,))(rng), ("z" * (n - 1) + a + a,)],
        reference=reference,
        composition=tuple(key for key, *_ in chosen),
        parameters=(a, n),
    )


_PARTS = (
    ("before", "what stands before the first '{a}'",
     "self.text.split('{a}').next().unwrap_or(\"\")",
     lambda t, a, n: t.split(a)[0]),
    ("after", "what stands after the last '{a}'",
     "self.text.rsplit('{a}').next().unwrap_or(\"\")", lambda t, a, n: t.split(a)[-1]),
    ("trimmed", "the text without '{a}' at its ends", "self.text.trim_matches('{a}')",
     lambda t, a, n: t.strip(a)),
    ("start", "its first {n} bytes", "&self.text[..self.text.len().min({n})]",
     lambda t, a, n: t[:n]),
)  # fmt: skip
_HOLDERS = ("Span", "Line", "Field", "Label")


def borrowing_struct(rng: Random) -> Sketch:
    """A method of a struct that borrows a text, and a function that measures or returns it."""
    holder, a, n = rng.choice(_HOLDERS), rng.choice(LETTERS[:12] + ",;-"), rng.randint(2, 9)
    key, phrase, code, part = rng.choice(_PARTS)
    a, n = (a, 4) if "{a}" in code else (",", n)  # the other one is not in the prompt
    variable = holder.lower()
    items = (
        f"struct {holder}<'a> {{\n    text: &'a str,\n}}\n\n"
        f"impl<'a> {holder}<'a> {{\n    fn part(&self) -> &'a str {{\n"
        f"        {code.format(a=a, n=n)}\n    }}\n}}"
    )
    least, other = rng.randint(1, 9), rng.choice(("short", "none", "empty", "?"))

    def draw(rng: Random) -> list[tuple]:
        texts = ["", a, f"{a}bc{a}", f"left{a}right", f"one{a}two{a}{'q' * least}", "q" * (n + 1)]
        texts += ["".join(rng.choices(f"xyz{a}", k=least + d)) for d in (0, 1, 4)]
        texts += ["q" * least, "q" * (least + 1)]
        return [(Rust(f'&{holder} {{ text: "{text}" }}', text),) for text in texts]

    return Sketch(
        name=f"long_{key}",
        items=items,
        generics="<'a>",
        doc=f"Takes `part` of the {variable}, which is {phrase.format(a=a, n=n)},\n"
        f'and returns it if it is longer than {least} bytes, otherwise "{other}".',
        arguments=((variable, f"&{holder}<'a>"),),
        result="&'a str",
        bodies=(
            f"let part = {variable}.part();\nif part.len() > {least} {{\n    part\n}} else {{\n"
            f'    "{other}"\n}}',
            f"match {variable}.part() {{\n    part if part.len() > {least} => part,\n"
            f'    _ => "{other}",\n}}',
        ),
        inputs=draw,
        reference=lambda text: p if len(p := part(text, a, n)) > least else other,
        composition=(holder, key),
        parameters=(a, n, least, other),
    )


FAMILIES = (
    Family("push_when", 3, push_when),
    Family("move_through", 3, move_through),
    Family("replace_slot", 3, replace_slot),
    Family("borrow_part", 3, borrow_part),
    Family("edit_in_place", 4, edit_in_place),
    Family("edit_string", 4, edit_string),
    Family("borrowing_struct", 5, borrowing_struct),
)
