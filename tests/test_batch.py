"""What may share a crate, whose error is whose, and what happens when a batch dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_programs import sample_programs

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.rust.judging import batch
from nanochat_lib.rust.judging.batch import (
    Settings,
    Unit,
    compile_batch,
    is_parse_error,
    read_messages,
)
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

needs_sandbox = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")

SHARED = [
    "fn main() {}",
    "#[test] fn t() {}",
    "mod tests { use super::*; #[test] fn t() {} }",
    "pub(crate) fn f() {}",
    "trait Own {} impl Own for Vec<u8> {}",
    "struct S; impl Default for S { fn default() -> S { S } } impl<'a> From<&'a S> for S { }",
    "struct S<T>(T); impl<T: Fn(i32) -> u8> Iterator for S<T> where T: Copy {}",
    "fn f(process: i32, exit_code: i32, current: i32) -> i32 { process }",
    "fn f(x: impl for<'a> Fn(&'a u8) -> u8) -> impl Iterator<Item = u8> { 0..x(&1) }",
    '// crate:: unsafe std::process::exit\nfn main() { let s = "include!(x) unsafe"; }',
]
ALONE_TO_COMPILE = [
    "#![allow(x)]",
    "fn f() { crate::g() }",
    "macro_rules! m { () => { $crate::g() } }",
    "use super::x;",
    "mod a { mod b { fn f() { super::super::super::g() } } }",
    "mod elsewhere;",
    '#[path = "x.rs"] mod x;',
    "macro_rules! m { ($n:ident) => { mod $n; } }",
    "#[macro_export] macro_rules! m { () => {} }",
    "extern crate std as other;",
    "#[no_mangle] fn f() {}",
    "#[r#no_mangle] fn f() {}",
    'const X: &str = include_str!("x");',
    "fn f() -> &'static str { module_path!() }",
    "fn f() -> &'static str { file!() }",
    "#[deny(unused)] fn f() {}",
    "struct S; impl std::ops::Add<S> for i32 { }",
    "mod m { struct String; } struct S; impl From<S> for String { }",
    "use std::fmt::Display as Own; trait Other {} struct S; impl PartialEq<S> for &str {}",
    "async fn main() {}",
    "fn main() where u8: Copy {}",
    "fn main() {}\n#[inline]",
    "fn main() {}\n/// about nothing",
    "fn main() { cfg!(test); }",
]
OWN_PROCESS = [
    "fn main() { unsafe {} }",
    "fn main() { std::process::exit(0) }",
    "use std::process::{self as p, exit}; fn main() { exit(0) }",
    "macro_rules! go { ($a:ident, $b:ident) => { std::$a::$b(0) } }\n"
    "fn main() { go!(process, exit) }",
    'fn main() { std::fs::remove_file("x").ok(); }',
    "use std::io::*; fn main() { stdout().flush(); }",
]
ALONE_TO_RUN = [
    "fn main() { std::thread::current(); }",
    "fn main() { std::process::id(); }",
    "fn main() { std::panic::set_hook(Box::new(|_| ())); }",
]


@pytest.mark.parametrize("source", SHARED)
def test_ordinary_programs_may_share(source: str) -> None:
    policy = policy_of(source)
    assert (policy.compile_alone, policy.run_alone, policy.own_process) == ("", "", "")


@pytest.mark.parametrize("source", ALONE_TO_COMPILE)
def test_what_sees_the_crate_is_compiled_alone(source: str) -> None:
    assert policy_of(source).compile_alone
    assert policy_of(source).run_alone


@pytest.mark.parametrize("source", ALONE_TO_RUN)
def test_what_sees_that_it_is_one_of_many_is_built_alone_to_run(source: str) -> None:
    assert policy_of(source).run_alone


@pytest.mark.parametrize("source", OWN_PROCESS)
def test_what_reaches_the_process_has_one_of_its_own(source: str) -> None:
    policy = policy_of(source)
    assert policy.own_process
    assert not policy.compile_alone


MODULE = "#[cfg(test)] mod tests { use super::*; #[test] fn t() {} }"


@pytest.mark.parametrize(
    ("source", "is_apart"),
    [
        (f"fn f() {{}} {MODULE}", True),
        (f"fn f() {{}} {MODULE} fn g() {{}}", True),
        (f"fn f() {{ tests::t() }} {MODULE}", False),
        (f"#[cfg(test)] use std::fmt; {MODULE}", False),
        (f"mod inner {{ {MODULE} }}", False),
        (f"#[test] fn u() {{}} {MODULE}", False),
        (f"{MODULE} {MODULE}", False),
        ("#[cfg(test)] mod tests { impl super::T for super::S {} #[test] fn t() {} }", False),
        ("mod tests { #[test] fn t() {} }", False),
    ],
)
def test_screening_leaves_out_only_tests_that_the_rest_cannot_notice(
    source: str, is_apart: bool
) -> None:
    assert policy_of(source).has_tests_apart is is_apart


def test_other_editions_and_long_texts_are_alone() -> None:
    assert policy_of("fn main() {}", "2018").compile_alone
    assert policy_of("fn f() {}\n" * 10_000).compile_alone


def test_kinds_and_tests_are_counted() -> None:
    assert policy_of("fn main() {} #[test] fn t() {}").kind == "test"
    assert policy_of("fn main() {}").kind == "main"
    assert policy_of("// fn main\npub fn f() {}").kind == "lib"
    assert policy_of("#[test] fn a() {} # [ test ] fn b() {} // #[test]").n_tests == 2
    assert policy_of("#[test] #[ignore] #[test] fn a() {} #[test] fn b() {}").n_tests == 2
    assert policy_of("macro_rules! m { () => { #[test] fn t() {} } } m!();").n_tests == 0


def _message(level: str, text: str, *files: str) -> bytes:
    spans = [
        {"file_name": f, "line_start": 3, "column_start": 5, "is_primary": True, "expansion": None}
        for f in files
    ]
    entry = {"$message_type": "diagnostic", "message": text, "code": None, "level": level}
    return json.dumps(entry | {"spans": spans, "children": []}).encode()


def test_an_error_in_the_standard_library_belongs_to_the_note_after_it() -> None:
    lines = [
        _message("error", "evaluation panicked", "/rust/library/core/src/x.rs"),
        _message("note", "while instantiating", "p1.rs"),
        _message("error", "aborting due to 1 previous error"),
        b'{"$message_type":"artifact","artifact":"x","emit":"metadata"}',
        b'{"cut',
    ]
    (message,) = read_messages(b"\n".join(lines))
    assert (message.file, message.diagnostic.message) == ("p1.rs", "evaluation panicked")


def test_a_macro_of_the_standard_library_is_blamed_on_its_call() -> None:
    call = {"file_name": "p2.rs", "line_start": 9, "column_start": 1, "expansion": None}
    span = {"file_name": "/std/macros.rs", "line_start": 1, "column_start": 1, "is_primary": True}
    entry = json.loads(_message("error", "bad format"))
    entry["spans"] = [span | {"expansion": {"span": call}}]
    (message,) = read_messages(json.dumps(entry).encode())
    assert (message.file, message.diagnostic.line) == ("p2.rs", 9)


def test_grammar_errors_are_told_from_names() -> None:
    def first(text: str) -> list:
        return [m.diagnostic for m in read_messages(_message("error", text, "p.rs"))]

    assert is_parse_error(first("expected `;`, found `}`"))
    assert not is_parse_error(first("cannot find macro `x` in this scope"))
    assert not is_parse_error([])


def _units(sources: list[str]) -> list[Unit]:
    return [Unit(i, Program(str(i), s), policy_of(s)) for i, s in enumerate(sources)]


@needs_sandbox
def test_a_batch_without_a_culprit_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rustc's death is charged to nobody: here every crate of more than one program dies."""
    compile_crate = batch._compile_crate

    def die_together(units, folder, settings):
        done = compile_crate(units, folder, settings)
        if len(units) == 1:
            return done
        return type(done)(-11, b"", b"", 0.0, 0.0, "signal", done.sandbox)

    monkeypatch.setattr(batch, "_compile_crate", die_together)
    settings = Settings(Level.CHECK, VerifyConfig(), find_toolchain())
    sources = ["fn main() {}", "fn main() { x }", "pub fn f() {}"]
    outcome = compile_batch(_units(sources), tmp_path / "job", settings)
    assert {u.key for built in outcome.built for u in built.units} == {0, 2}
    assert outcome.judged[1].verdict is Verdict.COMPILE_ERROR


@needs_sandbox
def test_the_batch_path_agrees_with_programs_judged_alone() -> None:
    programs = sample_programs(48, seed=5)
    together = verify(programs, "test")
    alone = verify(programs[:12], "test", config=VerifyConfig(batch_size=1))
    assert [o.verdict for o in alone] == [o.verdict for o in together[:12]]
    for one, other in zip(alone, together, strict=False):
        # Screened without its tests, a program shows the errors of its function alone.
        assert set(other.codes) <= set(one.codes)
        assert bool(other.diagnostics) == bool(one.diagnostics)
    assert len({o.verdict for o in together}) >= 3


@needs_sandbox
@pytest.mark.slow
def test_a_macro_that_explodes_takes_no_neighbour_with_it() -> None:
    bomb = "macro_rules! m { ($($t:tt)*) => { m!($($t)* $($t)*) } } fn main() { m!(a a a a) }"
    programs = [*sample_programs(20, seed=1), Program("bomb", bomb)]
    with_bomb = verify(programs, "check", config=VerifyConfig(compile_cpu_s=3))
    without = verify(programs[:-1], "check")
    assert [o.verdict for o in with_bomb[:-1]] == [o.verdict for o in without]
    assert with_bomb[-1].verdict in (Verdict.TIMEOUT, Verdict.RESOURCE_LIMIT, Verdict.COMPILE_ERROR)
