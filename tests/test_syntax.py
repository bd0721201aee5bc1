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


# Counted by hand. Complexity: 1 for each function with a body, and what the comment names.
COMPLEXITY = [
    ("fn f() {}", 1),
    ("struct S;", 0),
    ("trait T { fn a(&self); fn b(&self) -> i32 { 1 } }", 1),
    ("fn f(a: bool) -> i32 { if a { 1 } else { 2 } }", 2),  # if
    ("fn f(a: i32) { if a > 0 {} else if a < 0 {} else {} }", 3),  # if, else if
    ("fn f(a: bool, b: bool) -> bool { a && b || !a }", 3),  # &&, ||
    ("fn f(x: i32) -> i32 { match x { 0 => 1, 1 | 2 => 2, _ => 3 } }", 3),  # 2 of 3 arms
    ("fn f(x: i32) -> i32 { match x { n if n > 2 => 0, _ => 1 } }", 2),  # 1 of 2 arms
    ("fn f(x: i32) -> i32 { match x { 0 => 1, _ => 2 /* the rest */ } }", 2),  # 1 of 2 arms
    ("fn f(x: i32) -> i32 { match x { n => n } }", 1),  # a single arm decides nothing
    ("fn f() { for _ in 0..2 {} while g() {} loop { break; } }", 4),  # for, while, loop
    ("fn f(mut v: Vec<i32>) { while let Some(_) = v.pop() {} }", 2),  # while let
    ("fn f(o: Option<i32>) -> i32 { let Some(x) = o else { return 0 }; x }", 2),  # let else
    ("fn f(o: Option<i32>) { if let Some(x) = o && x > 1 {} }", 3),  # if let, &&
    ("fn f() -> Option<i32> { let a = g()?; h(a)?; None }", 3),  # ?, ?
    ("fn f<T: ?Sized>(x: &&T, v: &[i32]) { v.iter().filter(|&&x| x > 1); let _ = || 3; }", 1),
    ('fn f(a: bool) { assert!(a && true); println!("{}", if a { 1 } else { 2 }); }', 1),
    ("fn f() { fn g(a: bool) { if a {} } }", 3),  # two functions, if
    ("fn f(v: &[i32]) { v.iter().map(|x| if *x > 0 { 1 } else { 0 }); }", 2),  # if
]
LIFETIMES = [
    ("fn f(x: &str) -> &str { x }", 0),
    ("fn f(x: &'static str, y: S<'_>) {}", 0),
    ("fn f<'a>(x: &'a str) -> &'a str { x }", 3),
    ("struct S<'a> { x: &'a str } impl<'a> S<'a> { fn g(&self) -> &'a str { self.x } }", 5),
    ("fn f(g: impl for<'b> Fn(&'b str)) {}", 2),
    ("fn f<'a, 'b: 'a>(x: &'a str, y: &'b str) {}", 5),
    ("fn f() { 'outer: loop { break 'outer; } }", 0),
    ("fn f() { let c = 'a'; let s = \"&'a\"; } // 'a", 0),
]
UNSAFE = [
    ('fn f() { let unsafe_name = "unsafe"; } // unsafe', 0),
    ("fn f() { unsafe { g() } unsafe { h() } }", 2),
    ("unsafe fn f() {} unsafe impl Send for S {} unsafe trait T {}", 3),
    ('unsafe extern "C" { fn k(); }', 1),
    ("macro_rules! m { () => { unsafe { 1 } } }", 1),
]
UNWRAPS = [
    ('fn f() { a.unwrap(); b.expect("x"); }', 2),
    ('fn f() { a.unwrap_or(1); b.unwrap_or_default(); c.unwrap_err(); d.expect_err("x"); }', 0),
    ('fn f() { v.iter().map(Option::unwrap); Result::expect(a, "x"); }', 2),
    ("fn f(unwrap: i32) { s.unwrap; let expect = unwrap; }", 0),
    ("fn f() { a.unwrap().b.unwrap().c(); }", 2),
]
NESTING = [
    ("fn f() { g(); }", 0),
    ("fn f() { if a {} if b {} }", 1),
    ("fn f() { if a {} else if b {} else if c {} }", 1),
    ("fn f() { if a {} else { if b {} } }", 2),
    ("fn f() { for x in y { match x { 1 => { if b { while c {} } } _ => {} } } }", 4),
    ("fn f() { v.map(|x| { if x { unsafe { g() } } }); }", 3),
    ("fn f() { { { { } } } }", 0),
]


@pytest.mark.parametrize(("source", "wanted"), COMPLEXITY)
def test_cyclomatic_complexity_is_counted_by_hand(source: str, wanted: int) -> None:
    assert parses(source)
    assert features(source).cyclomatic_complexity == wanted


@pytest.mark.parametrize(("source", "wanted"), LIFETIMES)
def test_explicit_lifetimes_are_counted_by_hand(source: str, wanted: int) -> None:
    assert features(source).explicit_lifetimes == wanted


@pytest.mark.parametrize(("source", "wanted"), UNSAFE)
def test_unsafe_blocks_are_counted_by_hand(source: str, wanted: int) -> None:
    assert features(source).unsafe_blocks == wanted


@pytest.mark.parametrize(("source", "wanted"), UNWRAPS)
def test_unwraps_are_counted_by_hand(source: str, wanted: int) -> None:
    assert features(source).n_unwraps == wanted


@pytest.mark.parametrize(("source", "wanted"), NESTING)
def test_nesting_is_counted_by_hand(source: str, wanted: int) -> None:
    assert features(source).max_nesting == wanted


def test_a_file_is_as_complex_as_its_functions_together() -> None:
    source = "\n".join(source for source, _ in COMPLEXITY)
    assert features(source).cyclomatic_complexity == sum(wanted for _, wanted in COMPLEXITY)
    by_function = [f.cyclomatic_complexity for f in functions("fn a() { if x {} } fn b() {}")]
    assert by_function == [2, 1]


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
