"""Where a completion ends, what a program is made of, and which completions cheat."""

from __future__ import annotations

import pytest

from nanochat_lib.records import Task, Verdict
from nanochat_lib.rust.programs import assemble, tampering, truncate_completion
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.verify import verify

TASK = Task(
    task_id="t/1",
    prompt="/// Doubles.\npub fn double(x: i32) -> i32 {",
    canonical_solution="\n    x * 2\n}\n",
    tests="#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n"
    "    fn doubles() { assert_eq!(double(4), 8); }\n}\n",
    task_set="builtin",
)


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("\n    x * 2\n}\nfn other() {}\n", "\n    x * 2\n}"),
        (" if x > 0 { x } else { -x } } }", " if x > 0 { x } else { -x } }"),
        (' let s = "}"; x }\n}', ' let s = "}"; x }'),
        (r' let s = "\"}"; x } rest', r' let s = "\"}"; x }'),
        (' let s = r#"}"}"#; x } rest', ' let s = r#"}"}"#; x }'),
        (" let c = '}'; x } rest", " let c = '}'; x }"),
        (r" let c = '\''; x } rest", r" let c = '\''; x }"),
        (" let c = b'}'; x } rest", " let c = b'}'; x }"),
        (" // }\n x } rest", " // }\n x }"),
        (" /* } /* } */ } */ x } rest", " /* } /* } */ } */ x }"),
        (" f::<'a>(x, &'static y) } rest", " f::<'a>(x, &'static y) }"),
        (" let é = '→'; x } rest", " let é = '→'; x }"),
        (' let s = r##"}"#"##; x } rest', ' let s = r##"}"#"##; x }'),
        (' let s = br"}"; let t = b"}"; x } rest', ' let s = br"}"; let t = b"}"; x }'),
        (' let s = c"}"; x } rest', ' let s = c"}"; x }'),
        (r' let s = "\\"; x } rest', r' let s = "\\"; x }'),
        (' println!("{{}} {}", x); x } rest', ' println!("{{}} {}", x); x }'),
        (" let c = '{'; let d = '\\u{7d}'; x } rest", " let c = '{'; let d = '\\u{7d}'; x }"),
        (
            "\n    /// }\n    fn g() { { } }\n    x\n}\n\n/// }",
            "\n    /// }\n    fn g() { { } }\n    x\n}",
        ),
        (" 'a: loop { break 'a; } } rest", " 'a: loop { break 'a; } }"),
        (' let s = "a\n}\nb"; x } rest', ' let s = "a\n}\nb"; x }'),
        (" m! { a { b } } } rest", " m! { a { b } } }"),
        (" x * 2", " x * 2"),
        (' "never closed }', ' "never closed }'),
        ("", ""),
        ("}", "}"),
    ],
)
def test_a_completion_ends_with_the_function(completion: str, kept: str) -> None:
    assert truncate_completion(completion) == kept
    assert truncate_completion(kept) == kept


def test_stop_tokens_cut_outside_of_strings() -> None:
    assert truncate_completion(' let s = "<end>"; <end> x }', ("<end>",)) == ' let s = "<end>"; '
    assert truncate_completion(" x\n}\n", ("\n}",)) == " x"
    assert truncate_completion(" x }", ("", "none")) == " x }"


def test_a_program_is_its_parts_in_order() -> None:
    program = assemble(TASK, TASK.canonical_solution)
    assert program.program_id == "t/1"
    assert program.source == TASK.prompt + TASK.canonical_solution + "\n" + TASK.tests


CHEATS = {
    "macro": " 0 }\nmacro_rules! assert_eq { ($($t:tt)*) => {} }",
    "macro_inside": " #[macro_export] macro_rules! assert_eq { ($($t:tt)*) => {} } 0 }",
    "attribute": " 0 }\n#[cfg(any())]",
    "ignore": ' 0 }\n#[ignore = "x]"]',
    "own_tests": " 0 }\n#[test] fn fine() {}\n#[cfg(any())]",
    "own_module": " 0 }\nmod tests { }\n#[cfg(any())]",
    "raw_name": " 0 }\nmacro_rules! r#assert_eq { ($($t:tt)*) => {} }",
    "renamed": " 0 }\nmacro_rules! nothing { ($($t:tt)*) => {} }\nuse nothing as assert_eq;",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_is_named(name: str) -> None:
    assert tampering(CHEATS[name])


@pytest.mark.parametrize(
    "completion", [" x * 2 }", " let v = vec![x]; v[0] * 2 }", " #[allow(unused)] let y = [1]; x }"]
)
def test_honest_completions_are_not_accused(completion: str) -> None:
    assert tampering(completion) == ""


@pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
def test_only_the_honest_solution_passes() -> None:
    honest = assemble(TASK, TASK.canonical_solution)
    first, *others = verify([honest, *(assemble(TASK, c) for c in CHEATS.values())], "test")
    assert first.verdict is Verdict.PASSED
    assert first.n_tests == 1
    assert {one.verdict for one in others} == {Verdict.COMPILE_ERROR}


@pytest.mark.parametrize("completion", ["", "\n", "}", "x }", "// only a comment"])
def test_very_short_completions_are_plain_programs(completion: str) -> None:
    assert tampering(completion) == ""


def test_a_module_of_tests_at_the_very_end_is_tampering() -> None:
    assert tampering("} mod tests") != ""
