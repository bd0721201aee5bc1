"""Augmentation: each rewrite on its own, what is dropped, and programs with hidden lines."""

from __future__ import annotations

import textwrap
from random import Random

import pytest

from nanochat_lib.config import DataConfig, RunConfig
from nanochat_lib.data.augment import control, naming, variants
from nanochat_lib.data.augment.edits import Edit, apply_edits
from nanochat_lib.data.augment.embedding import changed_program
from nanochat_lib.data.augment.stage import more_rows
from nanochat_lib.data.augment.variants import REWRITES, Augmented, Parent, augment, rewritten
from nanochat_lib.data.rows import Judged
from nanochat_lib.data.sources.candidates import Candidate
from nanochat_lib.data.tinyrust.confirm import confirm, program_of
from nanochat_lib.data.tinyrust.generate import generate
from nanochat_lib.records import Level, Program, RustSource, Verdict, Verified
from nanochat_lib.rust.syntax import tokens
from nanochat_lib.rust.verify import verify

# rewrite: a function, what it becomes, and a test that holds for both.
CASES = {
    "if_let_to_match": (
        "fn f(x: Option<i32>) -> i32 {\n    if let Some(n) = x {\n        n + 1\n    } else {\n"
        "        0\n    }\n}",
        "fn f(x: Option<i32>) -> i32 {\n    match x {\n        Some(n) => {\n            n + 1\n"
        "        }\n        _ => {\n            0\n        }\n    }\n}",
        "assert_eq!((f(Some(4)), f(None)), (5, 0));",
    ),
    "match_to_if_let": (
        "fn f(x: Option<i32>) -> i32 {\n    match x {\n        Some(n) => n + 1,\n"
        "        None => 0,\n    }\n}",
        "fn f(x: Option<i32>) -> i32 {\n    if let Some(n) = x {\n        n + 1\n    } else {\n"
        "        0\n    }\n}",
        "assert_eq!((f(Some(4)), f(None)), (5, 0));",
    ),
    "while_to_loop": (
        "fn f(mut n: u32) -> u32 {\n    let mut k = 0;\n    while n > 1 {\n        n /= 2;\n"
        "        k += 1;\n    }\n    k\n}",
        "fn f(mut n: u32) -> u32 {\n    let mut k = 0;\n    loop {\n        if !(n > 1) {\n"
        "            break;\n        }\n        n /= 2;\n        k += 1;\n    }\n    k\n}",
        "assert_eq!((f(0), f(9)), (0, 3));",
    ),
    "loop_to_while": (
        "fn f(mut n: u32) -> u32 {\n    'all: loop {\n        if !(n > 1) {\n            break;\n"
        "        }\n        n /= 2;\n    }\n    n\n}",
        "fn f(mut n: u32) -> u32 {\n    'all: while n > 1 {\n        n /= 2;\n    }\n    n\n}",
        "assert_eq!((f(0), f(9)), (0, 1));",
    ),
    "for_to_iterator": (
        "fn f(v: &[i32]) -> i32 {\n    let mut s = 0;\n    for x in v {\n        s += x;\n    }\n"
        "    for x in v.iter().skip(9) {\n        s += x;\n    }\n"
        "    for i in 0..3 {\n        s += i;\n    }\n    s\n}",
        "fn f(v: &[i32]) -> i32 {\n    let mut s = 0;\n    v.into_iter().for_each(|x| {\n"
        "        s += x;\n    });\n    v.iter().skip(9).for_each(|x| {\n        s += x;\n    });\n"
        "    (0..3).for_each(|i| {\n        s += i;\n    });\n    s\n}",
        "assert_eq!(f(&[1, 2]), 6);",
    ),
    "iterator_to_for": (
        "fn f(v: &[i32]) -> i32 {\n    let mut s = 0;\n    v.iter().for_each(|x| s += x);\n"
        "    s\n}",
        "fn f(v: &[i32]) -> i32 {\n    let mut s = 0;\n    for x in v.iter() {\n        s += x;\n"
        "    }\n    s\n}",
        "assert_eq!(f(&[1, 2]), 3);",
    ),
    "collect_to_loop": (
        "fn f(v: &[i32]) -> usize {\n    let w: Vec<i32> = v.iter().map(|x| x * 2).collect();\n"
        "    w.len()\n}",
        "fn f(v: &[i32]) -> usize {\n    let mut w: Vec<i32> = Vec::new();\n"
        "    for item in v.iter().map(|x| x * 2) {\n        w.push(item);\n    }\n    w.len()\n}",
        "assert_eq!(f(&[1, 2]), 2);",
    ),
    "loop_to_collect": (
        "fn f(n: i32) -> Vec<i32> {\n    let mut w = Vec::new();\n    for x in 0..n {\n"
        "        w.push(x * x);\n    }\n    w\n}",
        "fn f(n: i32) -> Vec<i32> {\n    let mut w: Vec<_> = (0..n).map(|x| x * x).collect();\n"
        "    w\n}",
        "assert_eq!(f(3), [0, 1, 4]);",
    ),
    "explicit_types": (
        'fn f() -> String {\n    let s = format!("{}", 1);\n    s\n}',
        'fn f() -> String {\n    let s: String = format!("{}", 1);\n    s\n}',
        'assert_eq!(f(), "1");',
    ),
    "inferred_types": (
        "fn f(n: i32) -> i32 {\n    let k: i32 = n + 1;\n    k\n}",
        "fn f(n: i32) -> i32 {\n    let k = n + 1;\n    k\n}",
        "assert_eq!(f(1), 2);",
    ),
    "question_to_match": (
        "fn f(v: &[i32]) -> Option<i32> {\n    let x = v.first()?;\n    Some(x + 1)\n}",
        "fn f(v: &[i32]) -> Option<i32> {\n    let x = match v.first() {\n"
        "        Some(value) => value,\n        None => return None,\n    };\n    Some(x + 1)\n}",
        "assert_eq!((f(&[1]), f(&[])), (Some(2), None));",
    ),
    "match_to_question": (
        "fn f(t: &str) -> Result<i32, String> {\n    let n = match t.parse::<i32>() {\n"
        "        Ok(n) => n,\n        Err(e) => return Err(e.into()),\n    };\n    Ok(n)\n}",
        None,  # ParseIntError does not become a String: the compiler has the last word
        'assert!(f("x").is_err());',
    ),
    "rename_locals": (
        "/// Adds `n` and `m`.\nfn f(n: i32, m: i32) -> i32 {\n    let n = n + m;\n    n\n}",
        None,  # by chance
        "assert_eq!(f(1, 2), 3);",
    ),
    "reorder_items": (
        "use std::fmt;\n\n/// One.\nstruct A;\n\nfn f(_: A) -> i32 {\n    1\n}",
        "use std::fmt;\n\nfn f(_: A) -> i32 {\n    1\n}\n\n/// One.\nstruct A;",
        "assert_eq!(f(A), 1);",
    ),
}


def passed(name: str, source: str) -> Verified:
    (verified,) = verify([Program(name, source)], Level.TEST)
    return verified


def with_test(text: str, statement: str) -> str:
    return f"{text}\n#[test]\nfn holds() {{\n    {statement}\n}}\n"


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_gives_what_a_person_would_write(name) -> None:
    text, expected, statement = CASES[name]
    found = dict(rewritten(text, with_test(text, statement), Random(0)))
    if expected is not None:
        assert found[name] == expected
        assert passed(name, with_test(found[name], statement)).verdict is Verdict.PASSED
    assert found[name] != text


def test_the_way_back_gives_the_text_again() -> None:
    text = CASES["while_to_loop"][0].replace("n > 1", "!(n > 1)")
    changed = dict(rewritten(text, text, Random(0)))["while_to_loop"]
    again = dict(rewritten(changed, changed, Random(0)))["loop_to_while"]
    assert again == text


# rewrite: texts that it must leave alone, each the body of `fn f(a: Option<i32>, v: &[i32])`.
LEFT_ALONE = {
    "if_let_to_match": ('if let Some(1) = a { "x\ny"; }', "if true {} else if let None = a {}"),
    "match_to_if_let": (
        "match a { Some(n) if n > 0 => n, _ => 0 };",
        "match v.is_empty() { true => 1, false => 0 };",
    ),
    "for_to_iterator": (
        "for x in v { if *x > 0 { return; } }",
        "for x in v { if *x > 0 { break; } }",
        "'all: for x in v { drop(x); }",
    ),
    "loop_to_while": (
        "let n = loop { if true { break; } };",
        "loop { if true { drop(1); break; } }",
    ),
    "question_to_match": ("(|| Some(None::<i32>?))();",),
    "explicit_types": ('let b = b"x";', "let c = v;"),
    "reorder_items": ("",),
    "collect_to_loop": ("let item = 1; let w: Vec<i32> = (0..item).collect();",),
    "rename_locals": ('println!("{v:?}{a:?}");',),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_rewrite_leaves_alone_what_it_would_change(name) -> None:
    for body in LEFT_ALONE[name]:
        text = f"fn f(a: Option<i32>, v: &[i32]) {{\n    {body}\n}}"
        assert name not in dict(rewritten(text, text, Random(0))), body
    shorthand = "struct P {\n    x: i32,\n}\n\nfn f(x: i32) -> P {\n    P { x }\n}"
    macro = "macro_rules! m { () => {} }\n\nfn a() {\n    m!();\n}\n\nfn b() {}"
    assert "rename_locals" not in dict(rewritten(shorthand, shorthand, Random(0)))
    assert "reorder_items" not in dict(rewritten(macro, macro, Random(0)))


def test_renaming_changes_names_everywhere_and_nothing_else() -> None:
    text = (
        "/// Adds `n` to each of `rows`, not to `len`.\nfn f(n: i32, rows: &[i32]) -> Vec<i32> {\n"
        '    let len = rows.len();\n    assert!(n > 0, "{}", n);\n'
        "    rows.iter().map(|x| x + n).take(len).collect()\n}"
    )
    for seed in range(20):
        edits = list(naming.rename_locals(text, text, Random(seed)))
        changed = apply_edits(text, edits)
        before, after = [t.text for t in tokens(text)], [t.text for t in tokens(changed)]
        names = {a: b for a, b in zip(before, after, strict=True) if a != b}
        assert set(names) == {"n", "rows", "len", "x"}
        assert len(set(names.values())) == 4
        assert not set(names.values()) & set(before)
        assert f"`{names['n']}` to each of `{names['rows']}`" in changed
        assert ".len()" in changed  # the method keeps its name


def test_of_edits_inside_each_other_the_outermost_is_made() -> None:
    assert apply_edits("a é b c", [Edit(5, 6, "B"), Edit(2, 6, "X"), Edit(7, 8, "C")]) == "a X C"


HIDDEN = """\
#![allow(unused)]
fn main() {
    let hidden = 3;
    let x = hidden + 1;
    let shown = 2;

    while shown > x {
        println!("{}", x);
    }
}"""
SHOWN = """\
let x = hidden + 1;
let shown = 2;

while shown > x {
    println!("{}", x);
}"""


def test_a_text_is_changed_inside_the_program_that_hides_lines() -> None:
    (edit,) = control.while_to_loop(SHOWN)
    changed = apply_edits(SHOWN, [edit])
    found = changed_program(SHOWN, changed, HIDDEN)
    assert found == HIDDEN.replace(
        textwrap.indent(SHOWN[SHOWN.index("while") :], "    "),
        textwrap.indent(changed[changed.index("loop") :], "    "),
    )


def test_a_change_around_a_hidden_line_has_no_place() -> None:
    program = "fn main() {\n    let a = 1;\n    let hidden = 2;\n    let b = 3;\n}"
    assert changed_program("let a = 1;\nlet b = 3;", "let c = 1;\nlet b = 3;", program) == (
        program.replace("let a", "let c")
    )
    assert changed_program("let a = 1;\nlet b = 3;", "let c = 4;", program) is None
    assert changed_program("let z = 1;", "let y = 1;", program) is None


@pytest.fixture(scope="module")
def parents() -> list[Parent]:
    examples = list(generate((1, 2, 3, 4, 5), 60, seed=9))
    verdicts = confirm(examples)
    return [
        Parent(e.task.task_id, e.text, program_of(e).source, v)
        for e, v in zip(examples, verdicts, strict=True)
    ]


def test_variants_pass_as_their_parents_did(parents) -> None:
    found = augment(parents, 3, seed=1)
    assert len(found.kept) > 80
    assert {v.verdict for _, v in found.kept} == {Verdict.PASSED}
    texts = [variant.text for variant, _ in found.kept]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {parent.text for parent in parents}
    rows = {row["rewrite"]: row for row in found.table()}
    assert rows.keys() == REWRITES.keys()
    assert sum(row["n_accepted"] for row in rows.values()) == len(found.kept)
    for row in rows.values():
        assert row["n_applied"] == row["n_duplicate"] + row["n_judged"] + row["n_unjudged"]
    assert _texts(found) == _texts(augment(parents, 3, seed=1))
    assert _texts(found) != _texts(augment(parents, 3, seed=2))


def _texts(found: Augmented) -> list[str]:
    return [variant.text for variant, _ in found.kept]


def test_what_changes_the_meaning_is_dropped(parents, monkeypatch) -> None:
    """A rewrite that makes every `+` a `-` keeps only what the tests cannot tell apart."""

    def spoil(text, program, rng):
        return [Edit(i, i + 1, "-") for i, c in enumerate(text) if c == "+" and text[i + 1] == " "]

    monkeypatch.setattr(variants, "REWRITES", {"spoil": spoil})
    (row,) = augment(parents, 1, seed=0).table()
    assert row["n_judged"] > 5
    assert row["n_accepted"] == 0


def test_repeats_are_dropped(parents, monkeypatch) -> None:
    """White space makes no new text, and neither does a second parent of the same text."""

    def widen(text, program, rng):
        return [Edit(0, 0, "\n")]

    def name(text, program, rng):
        return [Edit(0, 0, "// the same\n")]

    monkeypatch.setattr(variants, "REWRITES", {"widen": widen, "name": name})
    found = augment([parents[0], parents[0]], 2, seed=0)
    rows = {row["rewrite"]: row for row in found.table()}
    assert rows["widen"]["n_duplicate"] == 2
    assert (rows["name"]["n_duplicate"], rows["name"]["n_accepted"]) == (1, 1)


def judged_row(number: int, split: str, parent: Parent) -> Judged:
    row = RustSource(
        f"folder/p{number}/a.rs#0", parent.text, "function", "folder", f"p{number}", "a.rs", "MIT",
        f"group {number}",
    )  # fmt: skip
    return Judged(Candidate(row, parent.program), parent.verified, split)


def test_variants_stay_with_their_parents_and_out_of_the_held_out_text(parents) -> None:
    splits = ["train", "validation"]
    kept = [judged_row(n, splits[n % 2], parent) for n, parent in enumerate(parents[:20])]
    config = RunConfig(data=DataConfig(augment_per_example=2), seed=4)
    found = more_rows(kept, config, None)
    assert len(found.added) == sum(row["n_accepted"] for row in found.table) > 8
    by_id = {judged.row.source_id: judged for judged in kept}
    for added in found.added:
        before = by_id[added.row.source_id.rpartition("~")[0]]
        assert before.split == added.split == "train"
        assert added.row.text != before.row.text
        assert added.row.text in added.candidate.program
        same = ("kind", "source", "package", "path", "licence", "group", "runnable")
        assert all(getattr(added.row, name) == getattr(before.row, name) for name in same)
    none = more_rows(kept, RunConfig(data=DataConfig(augment_per_example=0)), None)
    assert not none.added
