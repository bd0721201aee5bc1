"""Error classes against what rustc says about programs made to have one mistake each."""

from __future__ import annotations

import pytest

from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.semantics import (
    count_codes,
    error_class,
    error_classes,
    semantic_ok,
    semantic_progress,
    semantic_score,
)
from nanochat_lib.rust.syntax import features
from nanochat_lib.rust.verify import verify

ONE_MISTAKE = {
    "resolution": "fn main() { missing() }",
    "types": 'fn main() { let x: i32 = "a"; }',
    "lifetimes": "fn f(a: &str, b: &str) -> &str { a } fn main() {}",
    "ownership": "fn main() { let s = String::new(); drop(s); drop(s); }",
    "others": "fn main() { unsafe_one() } unsafe fn unsafe_one() {}",
}
PROGRESS = {"resolution": 0.25, "types": 0.5, "lifetimes": 0.75, "ownership": 0.75, "others": 0.25}


@pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
def test_one_mistake_gives_its_class() -> None:
    programs = [Program(name, source) for name, source in ONE_MISTAKE.items()]
    judged = verify([*programs, Program("fine", "fn main() {}"), Program("bad", "fn")], "check")
    by_name = {one.program_id: one for one in judged}
    for name in ONE_MISTAKE:
        assert error_classes(by_name[name]) == (name,)
        assert semantic_progress(by_name[name]) == PROGRESS[name]
    score = semantic_score(judged)
    assert score.score == pytest.approx((sum(PROGRESS.values()) + 1 + 0) / 7)
    assert (score.n_judged, score.n_compiled, score.n_unjudged) == (7, 1, 0)
    assert all(score.by_class[name] >= 1 for name in ONE_MISTAKE)


def test_a_program_is_placed_by_its_earliest_mistake() -> None:
    errors = tuple(Diagnostic("error", code, "") for code in ("E0382", "E0308"))
    both = Verified("p", Verdict.COMPILE_ERROR, Level.CHECK, errors)
    assert semantic_progress(both) == 0.5
    assert error_classes(both) == ("types", "ownership")
    assert count_codes([both, both]) == {"E0382": 2, "E0308": 2}


def test_what_was_not_judged_is_in_no_denominator() -> None:
    rows = [
        Verified("a", Verdict.UNJUDGED, Level.CHECK),
        Verified("b", Verdict.TIMEOUT, Level.CHECK, detail="rustc passed its cpu limit"),
        Verified("c", Verdict.TEST_FAILED, Level.TEST),
    ]
    score = semantic_score(rows)
    assert (score.score, score.n_judged, score.n_unjudged) == (1.0, 1, 2)
    assert semantic_score([]).n_judged == 0


def test_unknown_codes_are_types_and_no_code_is_others() -> None:
    assert error_class("E9999") == "types"
    assert error_class("") == "others"
    assert error_class("overflowing_literals") == "others"


def test_semantic_ok_needs_tests_and_no_unsafe() -> None:
    passed = Verified("p", Verdict.PASSED, Level.TEST)
    assert semantic_ok(passed, features("fn f() {}"))
    assert not semantic_ok(passed, features("fn f() { unsafe {} }"))
    assert not semantic_ok(Verified("p", Verdict.PASSED, Level.CHECK), features("fn f() {}"))
