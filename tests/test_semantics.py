"""Error classes against what rustc says about programs made to have one mistake each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanochat_lib.records import (
    Diagnostic,
    Level,
    Program,
    SemanticFindings,
    Verdict,
    Verified,
)
from nanochat_lib.rust.error_classes import error_class
from nanochat_lib.rust.gates.clippy import ASKS_FOR_CLIPPY
from nanochat_lib.rust.gates.miri import find_miri
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.semantics import (
    count_codes,
    count_unsafe,
    error_classes,
    explain_semantics,
    judge_semantics,
    semantic_ok,
    semantic_progress,
    semantic_score,
)
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain
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


PASSED = Verified("p", Verdict.PASSED, Level.TEST)
TESTS = "\n#[cfg(test)] mod tests { use super::*; #[test] fn t() { assert!(f(3) == f(3)); } }\n"
FINE = "pub fn f(x: i32) -> i32 { x + 1 }"
UNSAFE = "pub fn f(x: i32) -> i32 { unsafe { *(&x as *const i32) } }"
UNDEFINED = "pub fn f(x: i32) -> i32 { unsafe { *(&x as *const i32).add(9); } x }"
needs_clippy = pytest.mark.skipif(
    sandbox_level() == "none" or find_toolchain().clippy is None,
    reason="no sandbox or no clippy-driver on this machine",
)


def _program(text: str) -> Program:
    return Program("p", text + TESTS)


def _findings(*texts: str, toolchain: Toolchain | None = None) -> list[SemanticFindings]:
    programs = [_program(text) for text in texts]
    return judge_semantics(programs, [PASSED] * len(texts), texts, toolchain=toolchain)


@needs_clippy
def test_semantic_ok_needs_tests_no_lint_and_no_unsafe() -> None:
    wrong = "pub fn f(x: i32) -> bool { x == x }"
    fine, linted, unsafe = _findings(FINE, wrong, UNSAFE)
    assert (fine.clippy, fine.miri, semantic_ok(fine)) == ("clean", "not needed", True)
    assert (linted.clippy, linted.lints, semantic_ok(linted)) == (
        "lints",
        ("clippy::eq_op",),
        False,
    )
    assert explain_semantics(linted) == "clippy::correctness: clippy::eq_op"
    assert (unsafe.clippy, unsafe.n_unsafe) == ("clean", 1)
    if unsafe.miri == "not available":
        assert semantic_ok(unsafe) is False
        assert explain_semantics(unsafe) == "unsafe code, and Miri is not available"
    for failed in (replace(PASSED, verdict=Verdict.TEST_FAILED), replace(PASSED, level="build")):
        (found,) = judge_semantics([_program(FINE)], [failed])
        assert (found.passed, found.clippy, semantic_ok(found)) == (False, "not asked", False)
        assert explain_semantics(found) == ""


@needs_clippy
def test_a_mistake_in_the_tests_is_not_charged_to_the_program() -> None:
    tests = "\n#[cfg(test)] mod tests { #[test] fn t() { let a = 3.14; assert!(a == a); } }\n"
    tests += "macro_rules! m { () => {} } #[allow(clippy::eq_op)] fn g() {}\n"
    program = Program("p", "// prelude\nfn e(x: i32) -> bool { x == x }\n" + FINE + tests)
    (own,) = judge_semantics([program], [PASSED], [FINE])
    (whole,) = judge_semantics([program], [PASSED])
    assert own.lints == ()
    assert set(whole.lints) >= {"clippy::eq_op", ASKS_FOR_CLIPPY}
    hidden = FINE.replace("pub fn", "#[cfg(not(clippy))] pub fn")
    (found,) = _findings(hidden + "\n#[cfg(clippy)] pub fn f(x: i32) -> i32 { x }")
    assert found.lints == (ASKS_FOR_CLIPPY,)
    assert semantic_ok(found) is False


def test_without_clippy_nothing_is_known_of_any_program(tmp_path: Path) -> None:
    bare = replace(find_toolchain(), sysroot=tmp_path)
    programs = [_program(FINE)] * 2
    found = judge_semantics(programs, [PASSED, replace(PASSED, verdict=Verdict.TEST_FAILED)],
                            toolchain=bare)  # fmt: skip
    assert [one.clippy for one in found] == ["not available"] * 2
    assert [semantic_ok(one) for one in found] == [None, None]
    assert "clippy is not installed" in explain_semantics(found[0])


@pytest.mark.parametrize(
    ("text", "n"),
    [
        (UNSAFE, 1),
        ("macro_rules! m { () => { unsafe { 1 } } }", 1),
        ('#[no_mangle] pub extern "C" fn main() {}', 1),
        ('#[link_section = ".init_array"] static A: fn() = f;', 1),
        ('use std::arch::global_asm; global_asm!("nop");', 2),
        ('// unsafe\nconst S: &str = "unsafe"; fn r#unsafe() {}', 0),
        ("unsafe fn f() {} unsafe impl Send for S {}", 2),
    ],
)
def test_unsafe_is_counted_in_macros_and_never_in_texts(text: str, n: int) -> None:
    assert count_unsafe(text) == n


# A stand-in that behaves like Miri towards the engine: its flags, status and message.
STAND_IN = """#!/bin/sh
test "$1" = --sysroot && test -d "$2/lib/rustlib" || exit 9
for last; do :; done
case "$(cat $last)" in
  *"add(9)"*) echo "error: Undefined Behavior: out-of-bounds pointer arithmetic" >&2; exit 1;;
  *"shell"*) echo "error: unsupported operation: can't call foreign function" >&2; exit 1;;
esac
"""


@needs_clippy
def test_miri_decides_about_unsafe_code_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_toolchain()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/miri").write_text(STAND_IN)
    (tmp_path / "bin/miri").chmod(0o755)
    (tmp_path / "bin/clippy-driver").symlink_to(real.clippy)
    (tmp_path / "std/lib/rustlib").mkdir(parents=True)
    monkeypatch.setenv("MIRI_SYSROOT", str(tmp_path / "std"))
    toolchain = replace(real, sysroot=tmp_path)
    asks = UNSAFE.replace("unsafe", "if cfg!(miri) { return 0 } unsafe")
    texts = (FINE, UNSAFE, UNDEFINED, asks, UNSAFE + " // shell")
    found = _findings(*texts, toolchain=toolchain)
    assert [one.miri for one in found] == [
        "not needed", "clean", "undefined behaviour", "not judged", "not judged",
    ]  # fmt: skip
    assert [semantic_ok(one) for one in found] == [True, True, False, None, None]
    assert explain_semantics(found[2]) == "unsafe code, and Miri found undefined behaviour"
    assert explain_semantics(found[3]) == "clippy or Miri could not judge it"


def test_miri_without_its_library_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/miri").touch()
    monkeypatch.setenv("MIRI_SYSROOT", str(tmp_path / "nowhere"))
    assert find_miri(replace(find_toolchain(), sysroot=tmp_path)) is None
