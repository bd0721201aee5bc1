"""TinyRust: determinism, splits that never share, wording, and rustc's own judgement."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.confirm import confirm
from nanochat_lib.data.tinyrust.family import Err, Ok, Rust, Some, literal, plain, split_types
from nanochat_lib.data.tinyrust.generate import (
    FAMILIES,
    SPLITS,
    TinyExample,
    generate,
    split_of,
    write_out,
)
from nanochat_lib.data.tinyrust.unseen import unseen_tasks
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.rust.programs import truncate_completion
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

LEVELS = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def examples() -> list[TinyExample]:
    return list(generate(LEVELS, 4000, seed=1))


def every_family_and_idiom(n_each: int, seed: int) -> list[TinyExample]:
    """Draw `n_each` sketches of each family and write out all their idioms."""
    rng = Random(seed)
    drawn = [(family, family.sketch(rng)) for family in FAMILIES for _ in range(n_each)]
    return [
        write_out(family, sketch, idiom)
        for family, sketch in drawn
        for idiom in range(len(sketch.bodies))
    ]


def test_there_are_enough_families() -> None:
    levels = Counter(family.level for family in FAMILIES)
    assert len(FAMILIES) >= 60
    assert min(levels.values()) >= 10
    assert set(levels) == set(LEVELS)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for level in LEVELS:
        assert any(f.held for f in FAMILIES if f.level == level), f"no held-out family at {level}"


# What the families must show, each in several of them: a mark of it in the text.
FEATURES = {
    "integers": r"\bi(32|64)\b", "small integers": r"\b(u8|i8|u16|u32|u64)\b", "floats": r"\bf64\b",
    "bool": r"-> bool", "strings": r"&str", "owned strings": r"[>:] String",
    "slices": r"&\[",
    "arrays": r"\[i(32|64); \w\]", "vectors": r"Vec<", "options": r"Option<", "results": r"Result<",
    "tuples": r"\(i(32|64), |\(usize, ", "structs": r"\bstruct ", "enums": r"\benum ",
    "match": r"\bmatch ", "closures": r"\|x\|", "iterators": r"\.(map|filter|fold)\(",
    "own iterators": r"impl Iterator", "generics": r"<T: |<F: |<T>", "const generics": r"<const N",
    "lifetimes": r"<'a>", "mutable borrows": r"&mut ", "moves": r"\(mut ",
    "traits": r"\bimpl \w+ for", "trait objects": r"dyn ", "operators": r"impl (Add|Sub) for",
    "loops": r"\bwhile |\bfor ",
    "early returns": r"\?;|return ", "boxes": r"Box<", "maps": r"BTreeMap",
}  # fmt: skip


def test_the_families_show_the_language() -> None:
    seen: dict[str, set[str]] = {feature: set() for feature in FEATURES}
    recursive = set()
    for example in every_family_and_idiom(4, seed=2):
        task = example.task
        for feature, mark in FEATURES.items():
            if re.search(mark, example.text):
                seen[feature].add(task.family)
        name = re.findall(r"\bfn (\w+)", task.prompt)[-1]
        if re.search(rf"\b{name}\(", task.canonical_solution):
            recursive.add(task.family)
    rare = {"arrays", "const generics", "own iterators", "operators", "maps", "trait objects"}
    for feature, families in seen.items():
        assert len(families) >= (1 if feature in rare else 3), (feature, families)
    assert len(recursive) >= 5


def test_equal_seeds_give_equal_examples() -> None:
    first, second = (list(generate((1, 3), 300, seed=5)) for _ in range(2))
    assert first == second
    assert first != list(generate((1, 3), 300, seed=6))


def test_examples_are_distinct_and_shared_evenly(examples: list[TinyExample]) -> None:
    assert len({e.text for e in examples}) == len(examples)
    assert len({e.task.task_id for e in examples}) == len(examples)
    levels = Counter(e.task.level for e in examples)
    assert min(levels.values()) > 0.8 * len(examples) / len(LEVELS)


def test_a_prompt_decides_its_tests_and_its_split() -> None:
    """Tests belong to the function and not to the moment it was drawn."""
    n_again = 0
    for family in FAMILIES:
        seen: dict[str, tuple[str, str]] = {}
        for draw in range(1500):
            task = write_out(family, family.sketch(Random(f"{family.name} {draw}")), 0).task
            n_again += task.prompt in seen
            assert seen.setdefault(task.prompt, (task.tests, task.split)) == (
                task.tests,
                task.split,
            ), task.prompt
    assert n_again > 10_000


def test_prompt_and_solution_follow_the_contract(examples: list[TinyExample]) -> None:
    for example in examples:
        task = example.task
        assert task.prompt.endswith("{")
        assert task.canonical_solution.startswith("\n")
        assert example.text == task.prompt + task.canonical_solution
        assert "///" in task.prompt
        assert "#[test]" in task.tests
        assert "use super::*;" in task.tests
        assert task.tests.count("            (") >= 3  # cases of the table
        assert "#[test]" not in example.text


def test_solutions_survive_truncation(examples: list[TinyExample]) -> None:
    """The brace that ends a solution is the one that closes the function of the prompt."""
    for example in examples:
        solution = example.task.canonical_solution
        assert truncate_completion(solution + "\n\nfn next() {}") == solution


def test_prompts_say_everything_the_body_needs(examples: list[TinyExample]) -> None:
    """Every number of a body, but 0, 1 and 2, stands in its prompt: nothing must be guessed."""
    for example in examples:
        body = re.sub(r"_?[iuf](32|64)", "", example.task.canonical_solution)
        wanted = set(re.findall(r"\b\d+\b", body)) - {"0", "1", "2"}
        assert wanted <= set(re.findall(r"\d+", example.task.prompt)), example.text


def test_splits_never_share(examples: list[TinyExample]) -> None:
    by_split = {s: {e.task.prompt for e in examples if e.task.split == s} for s in SPLITS}
    assert all(by_split.values())
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i + 1 :]:
            assert not by_split[first] & by_split[second]


def test_a_split_depends_on_what_a_function_is_alone() -> None:
    """All draws of one (family, composition, parameters), whatever the order, agree."""
    seen: dict[tuple, str] = {}
    compositions: dict[tuple, set[str]] = {}
    rng = Random(0)
    for family in FAMILIES:
        for _ in range(200):
            sketch = family.sketch(rng)
            key = (family.name, sketch.composition, sketch.parameters)
            split = split_of(family, sketch)
            assert seen.setdefault(key, split) == split
            compositions.setdefault(key[:2], set()).add(split)
            assert (split == "held_family") == family.held
    held = [splits for splits in compositions.values() if "held_composition" in splits]
    assert held
    assert all(splits == {"held_composition"} for splits in held)


def test_held_shares_are_near_a_tenth() -> None:
    splits = Counter(e.task.split for e in generate((2,), 3000, seed=3))
    assert 0.04 < splits["held_parameters"] / 3000 < 0.2
    assert 0.04 < splits["held_composition"] / 3000 < 0.2


def test_only_the_splits_asked_for_come() -> None:
    wanted = ("held_parameters", "held_family")
    assert {e.task.split for e in generate(LEVELS, 200, 0, splits=wanted)} == set(wanted)


@pytest.mark.parametrize(
    ("levels", "n", "splits", "words"),
    [
        ((7,), 5, SPLITS, "levels must be among"),
        ((), 5, SPLITS, "levels must be among"),
        ((1,), 5, ("test",), "splits must be among"),
        ((1,), 10_000, ("held_family",), "has only"),
    ],
)
def test_bad_wishes_are_refused(levels, n, splits, words) -> None:
    with pytest.raises(WorkbenchError, match=words):
        list(generate(levels, n, 0, splits=splits))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (-3, "i32", "-3"),
        (True, "bool", "true"),
        ([1, 2], "&[i64]", "&[1, 2]"),
        ([], "Vec<i32>", "Vec::<i32>::new()"),
        ([("a", 2)], "Vec<(char, usize)>", "vec![('a', 2)]"),
        ("it's", "&str", '"it\'s"'),
        ('say "x"', "String", '"say \\"x\\"".to_string()'),
        ("'", "char", "'\\''"),
        (Some([1]), "Option<Vec<i32>>", "Some(vec![1])"),
        (None, "Option<i32>", "None"),
        (Ok(3), "Result<i32, String>", "Ok(3)"),
        (Err("no"), "Result<(i32, bool), String>", 'Err("no".to_string())'),
        ((1, False), "(i32, bool)", "(1, false)"),
        (Rust("Point { x: 1 }", 1), "Point", "Point { x: 1 }"),
    ],
)
def test_literals(value, kind, text) -> None:
    assert literal(value, kind) == text


def test_types_are_split_at_outer_commas() -> None:
    assert split_types("i32, Vec<(char, usize)>, [u8; 4]") == [
        "i32",
        "Vec<(char, usize)>",
        "[u8; 4]",
    ]
    assert plain([Rust("a", 1), [Rust("b", 2)]]) == [1, [2]]


def test_expressions_get_parentheses_only_where_they_bind() -> None:
    maps = {}
    rng = Random(0)
    while len(maps) < 9:
        found = grammar.int_map(rng)
        maps[found.key] = found
    add, square, multiply = (
        maps[key].rust(grammar.Expr("n")) for key in ("add", "square", "multiply")
    )
    assert maps["square"].rust(add).text == f"({add.text}).pow(2)"
    assert maps["add"].rust(multiply).text.startswith(f"{multiply.text} + ")
    assert maps["multiply"].rust(square).text.startswith("n.pow(2) * ")


def programs_of(examples: list[TinyExample]) -> list[Program]:
    return [Program(e.task.task_id, f"{e.text}\n\n{e.task.tests}") for e in examples]


def assert_all_pass(examples: list[TinyExample], tmp_path: Path) -> None:
    judged = verify(programs_of(examples), Level.TEST, cache_dir=tmp_path)
    failed = [
        (v.verdict, v.diagnostics, v.detail, e.text)
        for v, e in zip(judged, examples, strict=True)
        if v.verdict is not Verdict.PASSED
    ]
    assert not failed, failed[0]


def test_every_family_passes_rustc_and_its_tests(tmp_path: Path) -> None:
    """One function of each family, written in a drawn idiom."""
    rng = Random(11)
    drawn = [(family, family.sketch(rng)) for family in FAMILIES]
    assert_all_pass([write_out(f, s, rng.randrange(len(s.bodies))) for f, s in drawn], tmp_path)


@pytest.mark.slow
def test_many_examples_pass_rustc_and_their_tests(tmp_path: Path) -> None:
    assert_all_pass(every_family_and_idiom(8, seed=23), tmp_path)


@pytest.mark.slow
def test_there_are_a_hundred_thousand_distinct_examples() -> None:
    """Distinct by prompt and solution, from every family, and no family in two kinds of split."""
    texts, families = set(), {}
    for example in generate(LEVELS, 100_000, seed=0):
        texts.add(example.text)
        is_held = example.task.split == "held_family"
        families.setdefault(example.task.family, set()).add(is_held)
    assert len(texts) == 100_000
    assert families.keys() == {family.name for family in FAMILIES}
    assert all(families[family.name] == {family.held} for family in FAMILIES)


@pytest.mark.slow
def test_five_thousand_examples_pass() -> None:
    judged = confirm(generate(LEVELS, 5000, seed=17))
    assert Counter(v.verdict for v in judged) == {Verdict.PASSED: 5000}


@pytest.mark.slow
def test_tests_notice_a_changed_number(tmp_path: Path) -> None:
    """Nearly all functions fail once the first constant of their body is moved by one."""
    mutants = []
    for example in generate(LEVELS, 300, seed=31):
        match = re.search(
            r"(?<![\w.\]\[])([3-9]|[1-9]\d)(?![\w.])", example.task.canonical_solution
        )
        if match:
            solution = example.task.canonical_solution
            changed = f"{solution[: match.start()]}{int(match[0]) + 1}{solution[match.end() :]}"
            source = f"{example.task.prompt}{changed}\n\n{example.task.tests}"
            mutants.append(Program(example.task.task_id, source))
    judged = verify(mutants, Level.TEST, cache_dir=tmp_path)
    survived = sum(v.verdict is Verdict.PASSED for v in judged)
    assert len(mutants) > 100
    assert survived / len(mutants) < 0.07, survived  # some mutants mean the same


def test_a_plain_rustc_agrees(tmp_path: Path) -> None:
    """Without the verification engine: one crate of modules, built and run by libtest."""
    chosen = list(generate(LEVELS, 40, seed=41))
    modules = [f"mod m{i} {{\n{e.text}\n{e.task.tests}\n}}" for i, e in enumerate(chosen)]
    (tmp_path / "all.rs").write_text("\n".join(modules))
    rustc = str(find_toolchain().rustc)
    command = [rustc, "--edition", "2021", "--test", "-Awarnings", "--out-dir", ".", "all.rs"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    ran = subprocess.run(["./all"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert f"{len(chosen)} passed; 0 failed" in ran.stdout


def test_unseen_tasks_are_new_and_of_the_training_split(tmp_path) -> None:
    known = {e.task.prompt for e in generate((1, 3), 600, seed=0)}
    settings = {"known": known, "config": VerifyConfig(), "cache_dir": tmp_path}
    found = unseen_tasks((1, 3), 40, seed=5, **settings)
    assert len(found) == len({task.prompt for task in found}) == 40
    assert known.isdisjoint(task.prompt for task in found)
    assert {task.split for task in found} == {"train"}
    assert {task.level for task in found} == {1, 3}
    assert unseen_tasks((1, 3), 40, seed=5, **settings) == found
    assert unseen_tasks((1, 3), 40, seed=6, **settings) != found


def test_too_many_unseen_tasks_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("nanochat_lib.data.tinyrust.unseen._SPARE", 1)
    known = {e.task.prompt for e in generate((1,), 300, seed=0, splits=("train",))}
    with pytest.raises(WorkbenchError, match=r"maxrl\.new_tasks asks for 400"):
        unseen_tasks((1,), 400, seed=0, known=known, config=VerifyConfig(), cache_dir=None)
