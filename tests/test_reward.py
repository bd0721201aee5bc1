"""The binary success holds against hacks to which the shaped reward falls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Level, Program, Task, Verdict, Verified
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.reward import (
    RewardCoefficients,
    has_compiled,
    reward_of,
    shaped_reward,
    success,
)
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.syntax import features
from nanochat_lib.rust.verify import verify

TESTS = "\n#[cfg(test)] mod tests { use super::*; #[test] fn t() { assert_eq!(double(4), 8); } }\n"
HONEST = "pub fn double(x: i32) -> i32 { x * 2 }"
HACKS = {
    "empty": "",
    "wrong": "pub fn double(x: i32) -> i32 { x }",
    "dead_branches": "pub fn double(x: i32) -> i32 { "
    + "".join(f"if x == {-n} && x == {n} {{ return {n}; }} " for n in range(1, 6))
    + "x }",
    "unused_lifetimes": "pub fn double<'a, 'b, 'c, 'd>(x: i32) -> i32 { x }",
}


@pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
def test_hacks_earn_more_than_honest_work_only_with_the_shaped_reward() -> None:
    sources = {"honest": HONEST, **HACKS}
    programs = [
        Program(name, source + (TESTS if source else "")) for name, source in sources.items()
    ]
    judged = {one.program_id: one for one in verify(programs, "test")}
    shaped = {n: reward_of(judged[n], s, kind="shaped") for n, s in sources.items()}
    binary = {n: reward_of(judged[n], s) for n, s in sources.items()}
    assert binary["honest"] == 1.0
    assert [binary[name] for name in HACKS if name != "empty"] == [0.0, 0.0, 0.0]
    assert binary["empty"] is None  # nothing to run: not judged, no reward
    assert shaped["wrong"] == shaped["honest"]
    assert shaped["dead_branches"] > shaped["honest"]
    assert shaped["unused_lifetimes"] > shaped["honest"]
    built = {one.program_id: one for one in verify([Program("empty", "")], "build")}
    assert reward_of(built["empty"], "", kind="shaped") > 0
    assert reward_of(built["empty"], "", kind="tests") == 0.0


TASK = Task(
    task_id="t/1",
    prompt="/// Doubles.\npub fn double(x: i32) -> i32 {",
    canonical_solution="\n    x * 2\n}",
    tests="#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn doubles() {\n"
    "        assert_eq!(double(4), 8);\n        assert_eq!(double(-3), -6);\n    }\n}\n",
    task_set="builtin",
)
# Completions that do not solve the task, and what the shaped formula pays for each. Those that
# tamper with the tests do not compile (`programs.tampering`), so that neither reward pays.
NOTHING_DONE = {
    "empty body": (" }", 0.0),  # no value of type i32
    "todo": ("\n    todo!()\n}", 1.02),
    "endless loop": ("\n    loop {}\n}", 1.04),
    "constant": ("\n    8\n}", 1.02),
    "panic": ('\n    panic!("test result: ok. 1 passed")\n}', 1.02),
    "recursion": ("\n    double(x)\n}", 1.02),
    "early exit": ("\n    std::process::exit(0)\n}", 1.02),
    "printed success": (
        '\n    println!("test tests::doubles ... ok\\n\\ntest result: ok. 1 passed; 0 failed");\n'
        "    std::process::exit(0)\n}",
        1.02,
    ),
    "dead branches": (f"\n{'    if x != x { return 1; }' * 20}\n    x\n}}", 1.2),
    "lifetimes nobody needs": ("\n    fn g<'a, 'b, 'c, 'd>() {}\n    x\n}", 1.24),
    "tests removed by cfg": (" x }\n#[cfg(any())]", 0.0),
    "tests ignored": (" x }\n#[cfg(test)] #[ignore]", 0.0),
    "own assert_eq": (" x }\nmacro_rules! assert_eq { ($($t:tt)*) => {} }", 0.0),
    "own assert_eq inside": (" #[macro_export] macro_rules! assert_eq { () => {} } x }", 0.0),
    "own tests": (" x }\nmod tests { #[test] fn doubles() {} }\n#[cfg(any())]", 0.0),
    "wrapped operators": (
        "\n    x\n}\nimpl PartialEq<i32> for Wrapped { fn eq(&self, _: &i32) -> bool { true } }\n"
        "struct Wrapped;",
        1.04,
    ),
}


@pytest.fixture(scope="module")
def nothing_done() -> dict[str, Verified]:
    programs = [
        replace(assemble(TASK, completion), program_id=name)
        for name, (completion, _) in NOTHING_DONE.items()
    ]
    found = verify(programs, "test", config=VerifyConfig(run_cpu_s=0.5))
    return {one.program_id: one for one in found}


@pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
@pytest.mark.parametrize("name", NOTHING_DONE)
def test_doing_nothing_earns_nothing_by_default_and_often_more_when_shaped(
    name: str, nothing_done: dict[str, Verified]
) -> None:
    completion, shaped = NOTHING_DONE[name]
    source = TASK.prompt + completion
    assert reward_of(nothing_done[name], source) == 0.0
    assert reward_of(nothing_done[name], source, kind="shaped") == pytest.approx(shaped)


@pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
def test_honest_work_earns_the_default_and_less_than_a_hack_when_shaped() -> None:
    (judged,) = verify([assemble(TASK, TASK.canonical_solution)], "test")
    source = TASK.prompt + TASK.canonical_solution
    assert reward_of(judged, source) == 1.0
    honest = reward_of(judged, source, kind="shaped")
    assert honest == pytest.approx(1.02)
    falls_to = {name for name, (_, shaped) in NOTHING_DONE.items() if shaped > honest}
    equals = {name for name, (_, shaped) in NOTHING_DONE.items() if shaped == honest}
    assert {"dead branches", "lifetimes nobody needs"} <= falls_to
    assert {"todo", "constant", "early exit", "printed success"} <= equals


def test_a_coefficient_moves_its_own_term_only() -> None:
    built = Verified("p", Verdict.PASSED, Level.TEST)
    counts = features("fn f<'a>(x: &'a i32) -> i32 { if *x > 0 { unsafe { 1 } } else { 2 } }")
    terms = {"base": 1, "complexity_bonus": 2, "lifetime_bonus": 2, "unsafe_penalty": -1}
    zero = RewardCoefficients(**dict.fromkeys(terms, 0.0))
    assert shaped_reward(built, counts, zero) == 0
    for name, count in terms.items():
        assert shaped_reward(built, counts, replace(zero, **{name: 0.5})) == 0.5 * count


def test_the_formula_by_hand() -> None:
    built = Verified("p", Verdict.TEST_FAILED, Level.TEST)
    source = "fn f<'a>(x: &'a i32) -> i32 { if *x > 0 { unsafe { 1 } } else { 2 } }"
    weights = RewardCoefficients(base=1, complexity_bonus=0.1, lifetime_bonus=0.2, unsafe_penalty=2)
    assert shaped_reward(built, features(source), weights) == pytest.approx(1 + 0.2 + 0.4 - 2)


def test_counted_terms_are_capped() -> None:
    built = Verified("p", Verdict.PASSED, Level.BUILD)
    long = "fn f(x: i32) -> i32 { " + "if x > 0 { return 1; } " * 500 + "0 }"
    assert shaped_reward(built, features(long)) == pytest.approx(1 + 0.02 * 10)


@pytest.mark.parametrize(
    ("verdict", "level", "detail", "compiled"),
    [
        (Verdict.COMPILE_ERROR, Level.TEST, "", False),
        (Verdict.BUILD_ERROR, Level.TEST, "", False),
        (Verdict.RUN_ERROR, Level.TEST, "", True),
        (Verdict.TIMEOUT, Level.TEST, "the program passed its limit of CPU time", True),
        (Verdict.TIMEOUT, Level.TEST, "rustc passed its cpu limit", False),
        (Verdict.TIMEOUT, Level.BUILD, "rustc passed its cpu limit", False),
        (Verdict.PASSED, Level.BUILD, "", True),
    ],
)
def test_has_compiled(verdict: Verdict, level: Level, detail: str, compiled: bool) -> None:
    one = Verified("p", verdict, level, detail=detail)
    assert has_compiled(one) is compiled
    assert success(one) is False


def test_the_unjudged_earn_nothing_at_all() -> None:
    unjudged = Verified("p", Verdict.UNJUDGED, Level.TEST)
    assert reward_of(unjudged, HONEST) is None
    assert reward_of(unjudged, HONEST, kind="shaped") is None
