"""Confirming many examples at once: the engine's verdicts, and nobody sinks the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.tinyrust import bench
from nanochat_lib.data.tinyrust import confirm as confirming
from nanochat_lib.data.tinyrust.confirm import confirm, confirm_batch, program_of
from nanochat_lib.data.tinyrust.generate import FAMILIES, TinyExample, generate, write_out
from nanochat_lib.records import Level, Verdict
from nanochat_lib.rust.judging.jobs import settings_here
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.verify import verify

LEVELS = (1, 2, 3, 4, 5)
BAD = {
    "fails": 'panic!("wrong")',
    "hangs": "loop {}",
    "overflows": "fn deep(n: u64) -> u64 { 1 + deep(n + 1) } deep(0);",
    "leaves": "std::process::exit(0)",
    "aborts": "std::process::abort()",
    "writes": 'println!("\\n0 1\\nend"); panic!()',
}


@pytest.fixture(scope="module")
def examples() -> list[TinyExample]:
    return list(generate(LEVELS, 12, seed=3))


def spoiled(example: TinyExample, name: str) -> TinyExample:
    """Return an example whose test does something bad before it compares anything."""
    head, marker, tail = example.task.tests.partition("        for (found")
    task = replace(example.task, tests=f"{head}        {BAD[name]};\n{marker}{tail}", task_id=name)
    return replace(example, task=task)


def test_verdicts_equal_those_of_the_engine(examples) -> None:
    ours = confirm(examples)
    engine = verify(map(program_of, examples), Level.TEST)
    assert [v.verdict for v in ours] == [Verdict.PASSED] * len(examples)
    assert [(v.program_id, v.verdict, v.n_tests) for v in ours] == [
        (v.program_id, v.verdict, v.n_tests) for v in engine
    ]
    assert all(v.cpu_ms > 0 and v.sandbox for v in ours)


@pytest.mark.parametrize("name", BAD)
def test_one_bad_example_is_found_and_sinks_no_other(examples, name) -> None:
    """The first, a middle and the last place: each is judged as the engine judges it alone."""
    config = VerifyConfig(run_cpu_s=0.5)
    settings = settings_here(Level.TEST, config)
    for place in (0, 5, len(examples) - 1):
        mixed = [*examples]
        mixed[place] = spoiled(examples[place], name)
        found = confirm_batch(mixed, settings)
        assert [i for i, one in enumerate(found) if one is None] == [place]
    judged = confirm(mixed, config=config)
    (alone,) = verify([program_of(mixed[place])], Level.TEST, config=config)
    assert judged[place].verdict is alone.verdict is not Verdict.PASSED
    assert judged[place].detail == alone.detail
    assert all(v.verdict is Verdict.PASSED for i, v in enumerate(judged) if i != place)


def test_several_bad_examples_are_all_found(examples) -> None:
    mixed = [spoiled(e, "fails") if i % 2 else e for i, e in enumerate(examples)]
    verdicts = [v.verdict for v in confirm(mixed)]
    assert verdicts == [Verdict.PASSED, Verdict.TEST_FAILED] * (len(examples) // 2)


def test_a_batch_that_does_not_compile_is_judged_by_the_engine(examples) -> None:
    wrong = replace(examples[4].task, canonical_solution="\n    nothing_like_this\n}")
    mixed = [*examples]
    mixed[4] = TinyExample(wrong, wrong.prompt + wrong.canonical_solution)
    judged = confirm(mixed)
    assert judged[4].verdict is Verdict.COMPILE_ERROR
    assert judged[4].codes == ("E0425",)
    assert all(v.verdict is Verdict.PASSED for i, v in enumerate(judged) if i != 4)


def test_a_wrong_expected_value_never_passes(examples) -> None:
    """Every example fails once its table ends in a case that is wrong."""
    settings = settings_here(Level.TEST, VerifyConfig())
    for example in examples:
        tests = example.task.tests.replace("assert_eq!(", "assert_ne!(")
        changed = replace(example, task=replace(example.task, tests=tests))
        assert confirm_batch([changed], settings) == [None]


def test_examples_are_read_as_they_are_judged(monkeypatch, examples) -> None:
    monkeypatch.setattr(confirming, "BATCH_SIZE", 2)
    seen: list[int] = []
    n_read = 0

    def reading() -> Iterator[TinyExample]:
        nonlocal n_read
        for example in examples:
            n_read += 1
            yield example

    def on_progress(n: int) -> None:
        seen.append(n_read)
        assert n == 2

    confirm(reading(), workers=1, on_progress=on_progress)
    assert seen[0] < len(examples) == seen[-1]


def test_what_is_known_is_not_judged_again(monkeypatch, tmp_path: Path, examples) -> None:
    first = confirm(examples[:6], cache_dir=tmp_path)
    asked = []
    monkeypatch.setattr(
        confirming, "confirm_batch", lambda new, _: asked.append(len(new)) or confirm_batch(new, _)
    )
    second = confirm(examples, cache_dir=tmp_path)
    assert asked == [len(examples) - 6]
    assert [v.cached for v in second] == [True] * 6 + [False] * (len(examples) - 6)
    assert [v.verdict for v in second[:6]] == [v.verdict for v in first]
    engine = verify(map(program_of, examples), Level.TEST, cache_dir=tmp_path)
    assert all(v.cached for v in engine)


def test_every_family_may_share_a_crate() -> None:
    """What the engine's policy asks of a program in a batch holds for all idioms."""
    rng = Random(7)
    for family in FAMILIES:
        for sketch in (family.sketch(rng) for _ in range(6)):
            for idiom in range(len(sketch.bodies)):
                source = program_of(write_out(family, sketch, idiom)).source
                policy = policy_of(source)
                reasons = policy.compile_alone + policy.run_alone + policy.own_process
                assert not reasons, (family.name, reasons)
                assert policy.is_balanced
                assert policy.n_tests == 1


def test_the_benchmark_judges_the_same_examples_on_both_sides(
    monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(bench, "SLICE", 6)
    assert bench.main(["--n", "12", "--json", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["side"]: row for row in found["rows"]}
    assert {side: row["n_passed"] for side, row in rows.items()} == {
        "confirm": 12, "engine": 12, "generate only": 0,
    }  # fmt: skip
    assert all(row["n_examples"] == 12 and row["n_slices"] == 2 for row in rows.values())
    assert rows["confirm"]["cpu_ms"] > rows["generate only"]["cpu_ms"] > 0
    assert found["machine"]["cpu"] in capsys.readouterr().out
