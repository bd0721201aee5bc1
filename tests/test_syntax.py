"""The lexer against tree-sitter's leaves, and style counters against hand counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanochat_lib.rust.syntax import features, functions, parses, tokens, tree_of, walk

SAMPLE = """
/// Counts.
pub fn classify<'a, T: Ord, const N: usize>(xs: &'a [T; N], limit: usize) -> Option<&'a T> {
    let mut n = 0;
    for x in xs {
        if n > limit && n > 3 || n == 1 {
            return Some(x);
        } else if n == 7 {
            n += 1;
        }
        match n {
            0 => n += 1,
            1 => n += 2,
            _ => (),
        }
        n += 1;
    }
    let first = xs.first()?;
    let s: &'static str = "if while {";
    let _ = unsafe { *(first as *const T as *const u8) };
    let _ = s.parse::<i32>().unwrap() + "3".parse::<i32>().expect("number");
    None
}
"""


def test_counters_match_a_count_by_hand() -> None:
    found = features(SAMPLE)
    # 1 + for + if + && + || + else if + 2 of 3 match arms + `?`
    assert found.cyclomatic_complexity == 9
    assert found.explicit_lifetimes == 3  # declared once, used twice; 'static is not counted
    assert found.unsafe_blocks == 1
    assert found.n_unwraps == 2
    assert found.n_generics == 2
    assert found.max_nesting == 2  # for > if, for > match; else-if is no deeper
    assert found.n_lines == len([line for line in SAMPLE.splitlines() if line.strip()])


def test_empty_text_counts_nothing() -> None:
    assert set(vars(features("")).values()) == {0}


def test_functions_have_places_and_owners() -> None:
    source = "struct S;\nimpl S {\n    fn m(&self) {}\n}\n#[test]\nfn t() {\n    fn inner() {}\n}\n"
    found = {f.name: f for f in functions(source)}
    assert set(found) == {"m", "t", "inner"}
    assert found["m"].is_method
    assert not found["t"].is_method
    assert found["t"].is_test
    assert not found["inner"].is_test
    assert (found["t"].first_line, found["t"].last_line) == (6, 8)
    text = source.encode()[found["t"].start : found["t"].end]
    assert text.startswith(b"fn t() {")
    assert source.encode()[found["m"].body_start : found["m"].end] == b"{}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("fn main() {}", True), ("fn main() {", False), ("let = ;", False), ("", True)],
)
def test_parses(source: str, expected: bool) -> None:
    assert parses(source) is expected


def test_deep_nesting_is_walked_without_recursion() -> None:
    source = "fn f() { " + "{" * 5_000 + "}" * 5_000 + " }"
    assert features(source).n_lines == 1


def test_lexer_agrees_with_tree_sitter_on_what_is_hidden() -> None:
    """Strings, characters and comments must begin and end at the same places in both."""
    cases = Path(__file__).parent / "fixtures" / "mixed_programs.rs.txt"
    hidden = {"string_literal", "raw_string_literal", "char_literal", "line_comment"}
    hidden.add("block_comment")
    kinds = {"string", "char", "line_comment", "block_comment"}
    compared = 0
    for part in cases.read_text().split("//// ")[1:]:
        source = part.partition("\n")[2]
        if not source.isascii() or not parses(source):
            continue
        tree = {
            (n.start_byte, n.end_byte)
            for n, _ in walk(tree_of(source).root_node)
            if n.type in hidden
        }
        ours = {
            (t.start, t.start + len(t.text))
            for t in tokens(source, comments=True)
            if t.kind in kinds
        }
        # tree-sitter gives a doc comment its line end
        strip = lambda spans, text=source: {(a, a + len(text[a:b].rstrip())) for a, b in spans}  # noqa: E731
        assert strip(ours) == strip(tree), source
        compared += len(ours)
    assert compared > 30


def test_tokens_cover_everything_but_white_space() -> None:
    joined = "".join(token.text for token in tokens(SAMPLE, comments=True))
    assert re.sub(r"\s", "", joined) == re.sub(r"\s", "", SAMPLE)
