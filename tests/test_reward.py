"""The binary success holds against hacks to which the shaped reward falls."""

from __future__ import annotations

import pytest

from nanochat_lib.records import Level, Program, Verdict, Verified
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
