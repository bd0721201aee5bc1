"""Documented functions as tasks: rustdoc decides which bodies their examples accept."""

from __future__ import annotations

import re
import subprocess

import pytest

from nanochat_lib.data.extraction.doc_tests import documented_functions
from nanochat_lib.records import Program, Verdict
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

# Every function, and what the wrong library of `test_..._rustdoc` returns in its place.
SOURCE = """\
use std::num::ParseIntError;

/// A pair of numbers.
#[derive(Debug, PartialEq)]
pub struct Pair(pub u32, pub u32);

/// Return twice `x`.
///
/// # Examples
///
/// ```
/// use my_crate::double;
///
/// assert_eq!(double(21), 42);
/// ```
///
/// # Panics
///
/// Never.
#[must_use]
#[cfg(not(feature = "without-double"))]
pub fn double(x: u32) -> u32 {
    x * 2
}

/// Parse two numbers, one from each text.
///
/// ```
/// # use my_crate::{
/// #     parse_two,
/// #     Pair,
/// # };
/// let found = parse_two("1", "2")?;
/// # let wanted = Pair(1, 2);
/// assert_eq!(found, wanted);
/// # Ok::<(), std::num::ParseIntError>(())
/// ```
pub fn parse_two(a: &str, b: &str) -> Result<Pair, ParseIntError> {
    Ok(Pair(a.parse()?, b.parse()?))
}

/// Tell whether a text is a number.
///
/// ```rust
/// extern crate my_crate;
/// use my_crate::is_number;
///
/// fn main() -> Result<(), std::num::ParseIntError> {
///     assert!(is_number("12") && !is_number("x"));
///     let _: u8 = "7".parse()?;
///     Ok(())
/// }
/// ```
pub fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok()
}

/// Divide by two; odd numbers are refused.
///
/// ```
/// assert_eq!(my_crate::half(4), 2);
/// ```
/// ```should_panic
/// # use my_crate::*;
/// half(3);
/// ```
pub fn half(x: u32) -> u32 {
    assert!(x % 2 == 0);
    x / 2
}

/**
 * Add one, with an example
 * in a comment of another form.
 *
 * ~~~
 * # use my_crate::add_one;
 * assert_eq!(add_one(
 *     1), 2, "a
 *   text of two lines");
 * ~~~
 */
pub fn add_one(x: u32) -> u32
where
    u32: Copy,
{ x + 1 }

/// Called like its crate.
///
/// The first example is not run, so it stays where it is:
/// ```no_run
/// # use my_crate::my_crate;
/// assert_eq!(my_crate(0), 1);
/// ```
/// # Examples
/// ```
/// # use my_crate::my_crate;
/// assert_eq!(my_crate(2), 3);
/// ```
pub fn my_crate(x: u32) -> u32 {
    x + 1
}
"""
WRONG = {
    "double": "x + 2", "parse_two": "Ok(Pair(b.parse()?, a.parse()?))", "is_number": "true",
    "half": "x / 2", "add_one": "x", "my_crate": "x",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {made.name: made for made in documented_functions(SOURCE, "my_crate")}


def with_body(made, body):
    return f"{made.prelude}{made.prompt} {body} }}\n{made.tests}"


def rustdoc_says(source, folder):
    """Return by function whether rustdoc passes all its examples against the library itself."""
    toolchain = find_toolchain()
    rustdoc = toolchain.rustc.parent / "rustdoc"
    if not rustdoc.exists():
        pytest.skip("this toolchain has no rustdoc")
    folder.mkdir()
    (folder / "lib.rs").write_text(source)
    about = ["--edition", "2021", "--crate-name", "my_crate"]
    build = [toolchain.rustc, *about, "--crate-type", "lib", "-Awarnings", "--out-dir", folder]
    subprocess.run([*build, folder / "lib.rs"], check=True)
    library = f"my_crate={folder / 'libmy_crate.rlib'}"
    command = [rustdoc, "--test", *about, "--extern", library, "lib.rs"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout
    results: dict[str, list[str]] = {}
    for name, result in re.findall(r" - (\w+) \(line \d+\)(?: - [\w ]+)? \.\.\. (\w+)", said):
        results.setdefault(name, []).append(result)
    return {name: set(marks) == {"ok"} for name, marks in results.items()}


def test_right_and_wrong_bodies_fare_as_rustdoc_says(found, tmp_path):
    wrong = SOURCE
    for name, body in WRONG.items():
        wrong = wrong.replace(found[name].solution, f" {body} }}", 1)
    programs = [Program(name, made.program) for name, made in found.items()]
    programs += [Program(name, with_body(found[name], WRONG[name])) for name in found]
    verdicts = [v.verdict is Verdict.PASSED for v in verify(programs, "test")]
    assert dict(zip(found, verdicts[: len(found)], strict=True)) == rustdoc_says(
        SOURCE, tmp_path / "right"
    )
    # `no_run` of `my_crate` passes either way, its other example does not.
    assert dict(zip(found, verdicts[len(found) :], strict=True)) == rustdoc_says(
        wrong, tmp_path / "wrong"
    )
    assert all(verdicts[: len(found)])
    assert not any(verdicts[len(found) :])
    assert set(found) == set(WRONG)


def test_the_prompt_keeps_the_prose_and_loses_the_examples_that_became_tests(found):
    assert found["double"].prompt == (
        "/// Return twice `x`.\n///\n/// # Panics\n///\n/// Never.\n#[must_use]\n"
        "pub fn double(x: u32) -> u32 {"
    )
    assert found["add_one"].prompt == (
        "/// Add one, with an example\n/// in a comment of another form.\n"
        "pub fn add_one(x: u32) -> u32\nwhere\n    u32: Copy,\n{"
    )
    for made in found.values():
        asked = re.findall(r"assert\w*!.*", made.tests)
        assert asked
        assert not any(line in made.prompt + made.solution for line in asked)


def test_an_example_that_is_no_test_stays_with_its_hidden_lines(found):
    lines = found["my_crate"].prompt.splitlines()
    assert lines[2:7] == [
        "/// The first example is not run, so it stays where it is:", "/// ```no_run",
        "/// # use my_crate::my_crate;", "/// assert_eq!(my_crate(0), 1);", "/// ```",
    ]  # fmt: skip
    assert "# Examples" not in found["my_crate"].prompt
    assert found["my_crate"].tests.count("#[test]") == 1


def test_the_prelude_is_what_function_and_examples_need(found):
    assert "struct Pair" in found["parse_two"].prelude
    assert found["double"].prelude == ""
    assert found["half"].tests.count("#[should_panic]") == 1


DOC = (
    "/// Return twice the number.\n///\n/// ```{mark}\n{lines}/// ```\n"
    "pub fn twice(x: u32) -> u32 {{\n    x * 2\n}}\n"
)


def tasks_of(example, mark="", prose=True):
    lines = "".join(f"/// {line}\n" for line in example.splitlines())
    source = DOC.format(mark=mark, lines=lines)
    return list(documented_functions(source if prose else source.partition("\n")[2], "my_crate"))


def test_the_frame_of_the_cases_below_gives_a_task():
    assert len(tasks_of("assert_eq!(twice(2), 4);")) == 1


@pytest.mark.parametrize(
    ("example", "mark"),
    [
        ("let four = twice(2);", ""),
        ("twice(2); // assert_eq!(twice(2), 4)", ""),
        ('let _ = "assert!(true)"; twice(2);', ""),
        ("assert_eq!(2 + 2, 4);", ""),
        ("// twice\nassert_eq!(2 + 2, 4);", ""),
        ("assert_eq!(twice(2), 4);", "no_run"),
        ("assert_eq!(twice(2), 4);", "ignore"),
        ("assert_eq!(twice(2), 4);", "compile_fail"),
        ("assert_eq!(twice(2), 4);", "text"),
        ("use serde::Serialize;\nassert_eq!(twice(2), 4);", ""),
        ("use my_crate as other;\nassert_eq!(other::twice(2), 4);", ""),
        ("let two = my_crate::elsewhere::two();\nassert_eq!(twice(two), 4);", ""),
        ("assert_eq!(twice(2), 4); }\n#[test] fn mine() { assert!(twice(0) == 0);", ""),
        ("assert_eq!(twice(2), 4); }", ""),
        ("assert_eq!(twice(2), 4); /* never closed", ""),
        ('assert_eq!(twice(2), 4); let open = "', ""),
    ],
)
def test_examples_that_test_nothing_or_need_more_are_left_out(example, mark):
    assert tasks_of(example, mark) == []


def test_a_function_without_a_word_about_it_is_left_out():
    assert tasks_of("assert_eq!(twice(2), 4);", prose=False) == []


def test_methods_and_nested_functions_are_left_out():
    inside = DOC.format(mark="", lines="/// assert_eq!(twice(2), 4);\n")
    for outside in ("impl Thing {", "mod inner {"):
        assert list(documented_functions(f"{outside}\n{inside}}}\n", "my_crate")) == []


def test_an_unclosed_fence_is_no_example():
    source = DOC.format(mark="", lines="/// assert_eq!(twice(2), 4);\n").replace(
        "/// ```\npub", "pub"
    )
    assert list(documented_functions(source, "my_crate")) == []


def test_odd_comments_take_no_time():
    deep = "/// " + "```\n/// " * 4000 + "\npub fn twice(x: u32) -> u32 {\n    x\n}\n"
    wide = "/// a\n/// ```\n/// " + "use my_crate::" * 4000 + "\n/// ```\nfn twice() {}\n"
    blank = "///" + " " * 200_000 + "\n/// ```\n///" + "\n" * 20_000 + "fn twice() {}\n"
    for source in (deep, wide, blank):
        assert list(documented_functions(source, "my_crate")) == []
