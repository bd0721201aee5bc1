"""The clippy gate: what it finds, that nothing silences it, and that batching changes nothing."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Program, Verdict, Verified
from nanochat_lib.rust.gates.clippy import ASKS_FOR_CLIPPY, asks_for_clippy, find_lints
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain

needs_clippy = pytest.mark.skipif(
    sandbox_level() == "none" or find_toolchain().clippy is None,
    reason="no sandbox or no clippy-driver on this machine",
)
WRONG = "pub fn f(x: i32) -> bool { x == x }"
CLEAN = "pub fn f(x: i32) -> bool { x == 1 }"
# A mistake of each kind that compiles, and the lint that a person expects (clippy's own list).
MISTAKES = {
    "clippy::eq_op": WRONG,
    "clippy::erasing_op": "pub fn f(x: i32) -> i32 { x * 0 }",
    "clippy::never_loop": "pub fn f() -> i32 { loop { return 1; } }",
    "clippy::reversed_empty_ranges": "pub fn f() { for i in 5..0 { drop(i) } }",
    "clippy::while_immutable_condition": "pub fn f(n: i32) { let i = 0; while i < n { g() } }"
    " fn g() {}",
    "clippy::min_max": "pub fn f(x: i32) -> i32 { x.max(9).min(3) }",
    "clippy::self_assignment": "pub fn f(mut x: [i32; 2]) -> [i32; 2] { x[0] = x[0]; x }",
    "clippy::approx_constant": "pub fn f(r: f64) -> f64 { 3.14 * r }",
    "clippy::out_of_bounds_indexing": "pub fn f(x: [i32; 2], r: &mut [i32]) { r.copy_from_slice("
    "&x[0..3]) }",
}
SILENCED = {
    "inner allow": f"#![allow(clippy::all, clippy::correctness, clippy::eq_op)]\n{WRONG}",
    "inner allow of warnings": f"#![allow(warnings)]\n{WRONG}",
    "allow": f"#[allow(clippy::eq_op)]\n{WRONG}",
    "allow of the group": f"#[allow(clippy::correctness)]\n{WRONG}",
    "expect": f"#[expect(clippy::eq_op)]\n{WRONG}",
    "allow on a statement": "pub fn f(x: i32) { #[allow(clippy::all)] let _y = x == x; }",
    "allow by cfg": f"#[cfg_attr(all(), allow(clippy::eq_op))]\n{WRONG}",
    "skipped by rustfmt": f"#[rustfmt::skip]\n{WRONG}",
    "automatically derived": f"pub struct S;\n#[automatically_derived]\nimpl S {{ {WRONG} }}",
    "deny of other lints": f"#[deny(clippy::pedantic, clippy::nursery)]\n{WRONG}",
    "a module that allows": f"#[allow(clippy::all)]\npub mod m {{ {WRONG} }}",
}
HIDDEN = {
    "cfg": "#[cfg(clippy)] pub fn f() {}\n#[cfg(not(clippy))] " + WRONG,
    "cfg_attr": f"#[cfg_attr(clippy, cfg(any()))] {WRONG}",
    "cfg!": "pub fn f(x: i32) -> bool { if cfg!(clippy) { true } else { x == 1 } }",
    "raw": f"#[cfg(not(r#clippy))] {WRONG}",
    "oldest version": f'#[clippy::msrv = "1.0.0"] {CLEAN}',
    "a macro that carries the name": "macro_rules! m { (#[allow($c:ident::all)]) => "
    "{ #[cfg(not($c))] pub fn f(x: i32) -> bool { x == x } } }\nm!{ #[allow(clippy::all)] }",
}


def _look(sources: dict[str, str], batch_size: int = 64) -> dict[str, Verified]:
    programs = [Program(name, source) for name, source in sources.items()]
    found = find_lints(programs, config=VerifyConfig(batch_size=batch_size))
    return {one.program_id: one for one in found}


def _codes(found: Verified) -> set[str]:
    return {lint.code for lint in found.diagnostics}


@needs_clippy
def test_each_mistake_gives_its_lint_and_honest_code_gives_none() -> None:
    honest = {f"honest {i}": f"pub fn f{i}(x: i32) -> i32 {{ x + {i} }}" for i in range(4)}
    found = _look({**MISTAKES, **honest, "style": "pub fn f(v: &Vec<i32>) -> usize { v.len() }"})
    for lint in MISTAKES:
        assert _codes(found[lint]) == {lint}
    assert {one.verdict for one in found.values()} == {Verdict.PASSED}
    assert not any(found[name].diagnostics for name in [*honest, "style"])


@needs_clippy
def test_no_attribute_silences_the_gate() -> None:
    found = _look(SILENCED)
    assert {name for name, one in found.items() if "clippy::eq_op" not in _codes(one)} == set()
    assert {one.verdict for one in found.values()} == {Verdict.PASSED}


@needs_clippy
def test_a_program_that_asks_for_clippy_is_charged_with_it() -> None:
    found = _look(HIDDEN)
    assert {name for name, one in found.items() if ASKS_FOR_CLIPPY not in _codes(one)} == set()


@pytest.mark.parametrize("name", HIDDEN)
def test_naming_clippy_outside_of_lint_attributes_is_seen(name: str) -> None:
    assert asks_for_clippy(HIDDEN[name])


@pytest.mark.parametrize(
    "source", [CLEAN, "// cfg(clippy)", 'const S: &str = "cfg(clippy)";', *SILENCED.values()]
)
def test_lint_attributes_and_texts_are_no_question(source: str) -> None:
    assert asks_for_clippy(source) is ("cfg_attr" in source)


@needs_clippy
def test_a_batch_finds_what_one_clippy_for_each_program_finds() -> None:
    tests = "\n#[cfg(test)] mod tests { #[test] fn t() { assert!(1 + 1 == 2); } }"
    mixed = {**MISTAKES, **SILENCED, "tests": WRONG + tests, "main": WRONG + " fn main() {}"}
    mixed["lines"] = f"\n\n// é\n  {WRONG}"
    together, alone = _look(mixed), _look(mixed, batch_size=1)
    for name, one in alone.items():
        assert together[name].diagnostics == one.diagnostics, name
    assert (together["lines"].diagnostics[0].line, together["lines"].diagnostics[0].column) == (
        4,
        30,
    )


@needs_clippy
def test_a_program_that_clippy_cannot_read_spoils_no_neighbour() -> None:
    found = _look({"a": WRONG, "broken": "pub fn f() -> i32 { missing }", "b": CLEAN, "c": WRONG})
    assert found["broken"].verdict is Verdict.UNJUDGED
    assert "cannot find value `missing`" in found["broken"].detail
    assert [bool(found[name].diagnostics) for name in "abc"] == [True, False, True]


@needs_clippy
def test_a_second_look_comes_from_the_cache(tmp_path: Path) -> None:
    programs = [Program("a", WRONG), Program("b", CLEAN), Program("again", WRONG)]
    first = find_lints(programs, cache_dir=tmp_path)
    second = find_lints(programs, cache_dir=tmp_path)
    assert [one.cached for one in second] == [True] * 3
    assert [one.program_id for one in second] == ["a", "b", "again"]
    assert [one.diagnostics for one in second] == [one.diagnostics for one in first]


@needs_clippy
def test_any_executor_may_look() -> None:
    programs = [Program("a", WRONG), Program("b", CLEAN)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = find_lints(programs, executor=pool)
    assert [bool(one.diagnostics) for one in found] == [True, False]


def test_without_clippy_nobody_says_clean(tmp_path: Path) -> None:
    bare = replace(find_toolchain(), sysroot=tmp_path)
    (found,) = find_lints([Program("a", CLEAN)], toolchain=bare)
    assert found.verdict is Verdict.UNJUDGED
    assert "rustup component add clippy" in found.detail
    assert find_lints([]) == []
