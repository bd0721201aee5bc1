"""Functions with their tests: whole programs that pass, and prompts that hide the answer."""

from __future__ import annotations

import pytest

from nanochat_lib.data.extraction.unit_tests import MAX_TESTS, functions_with_tests
from nanochat_lib.records import Program, Verdict
from nanochat_lib.rust.verify import verify

SOURCE = """\
use std::collections::BTreeMap;
use std::fmt;

const LIMIT: usize = 3;

/// Count words, up to a limit.
///
/// Brace in the comment: {
pub fn count<'a>(text: &'a str) -> BTreeMap<&'a str, usize> {
    let mut found = BTreeMap::new();
    for word in text.split(' ').take(LIMIT) {
        *found.entry(word).or_insert(0) += 1;
    }
    found
}

#[derive(Debug, PartialEq)]
pub struct Wrapped(pub usize);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.0)
    }
}

/// Wrap what `count` finds.
pub fn wrap(text: &str) -> Wrapped
where
    str: ToString,
{
    Wrapped(count(text).len())
}

fn untested() -> u8 {
    7
}

pub fn elsewhere() -> other::Thing {
    other::make()
}

#[test]
fn beside_the_code() {
    assert_eq!(wrap("a b a"), Wrapped(2));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn sample() -> &'static str {
        "é é x y"
    }

    #[test]
    fn counts_what_repeats() {
        let keys: HashSet<_> = count(sample()).into_keys().collect();
        assert_eq!(keys.len(), 2);
    }

    #[test]
    #[should_panic(expected = "nothing")]
    fn panics() {
        count("").get("missing").expect("nothing");
    }

    #[test]
    fn wraps() {
        assert_eq!(wrap(sample()).to_string(), "<2>");
    }
}
"""


@pytest.fixture(scope="module")
def found():
    return {made.name: made for made in functions_with_tests(SOURCE)}


def test_only_functions_that_a_test_names_are_found(found):
    assert list(found) == ["count", "wrap"]


def test_every_program_passes_its_own_tests_and_all_of_them(found):
    programs = [Program(name, made.program) for name, made in found.items()]
    judged = {v.program_id: v for v in verify(programs, "test")}
    assert {name: v.verdict for name, v in judged.items()} == {
        "count": Verdict.PASSED, "wrap": Verdict.PASSED,
    }  # fmt: skip
    assert {name: v.n_tests for name, v in judged.items()} == {"count": 2, "wrap": 2}


def test_a_wrong_body_fails(found):
    made = found["wrap"]
    wrong = f"{made.prelude}{made.prompt}\n    Wrapped(99)\n}}\n{made.tests}"
    (verdict,) = verify([Program("wrong", wrong)], "test")
    assert verdict.verdict is Verdict.TEST_FAILED


def test_the_prompt_ends_at_the_brace_and_the_prelude_is_what_is_needed(found):
    count, wrap = found["count"], found["wrap"]
    assert count.prompt.startswith("/// Count words, up to a limit.")
    assert count.prompt.endswith("-> BTreeMap<&'a str, usize> {")
    assert "found.entry" in count.solution
    assert "found.entry" not in count.prompt + count.prelude + count.tests
    assert "const LIMIT" in count.prelude
    assert "struct Wrapped" not in count.prelude
    assert wrap.prompt.endswith("    str: ToString,\n{")
    assert "impl fmt::Display for Wrapped" in wrap.prelude
    assert "pub fn count" in wrap.prelude
    assert "untested" not in wrap.program


def test_a_file_without_tests_or_with_needs_outside_gives_nothing():
    assert not list(functions_with_tests("fn alone() -> u8 {\n    1\n}\n"))
    outside = SOURCE.replace("use std::fmt;", "use serde::fmt;")
    assert [made.name for made in functions_with_tests(outside)] == ["count"]


def test_a_function_keeps_a_few_of_many_tests():
    many = "".join(f"#[test]\nfn t{n}() {{\n    assert_eq!(one(), {n});\n}}\n" for n in range(30))
    (made,) = functions_with_tests(f"fn one() -> u8 {{\n    1\n}}\n{many}")
    assert made.tests.count("#[test]") == MAX_TESTS


def test_text_inside_literals_is_not_moved():
    source = (
        'fn same(x: &str) -> &str {\n    x\n}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n'
        '    #[test]\n    fn keeps() {\n        assert_eq!(same("a\n  b"), "a\\n  b");\n    }\n}\n'
    )  # fmt: skip
    (made,) = functions_with_tests(source)
    (verdict,) = verify([Program("literal", made.program)], "test")
    assert verdict.verdict is Verdict.PASSED
