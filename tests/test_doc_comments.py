"""Examples of documentation comments: what rustdoc itself makes of the same file decides."""

from __future__ import annotations

import re
import subprocess

import pytest

from nanochat_lib.data.extraction.doc_comments import comment_examples
from nanochat_lib.records import Program
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

SOURCE = """\
//! The file itself.
//!
//! ```
//! assert_eq!(1 + 1, 2); // 1 of the file
//! ```

/// Hidden lines, and one that only looks like it.
///
/// ```
/// # use std::collections::BTreeMap;
/// # fn hidden() -> u8 { 3 }
/// #[derive(Debug)]
/// struct Two(BTreeMap<u8, u8>);
/// ## not_hidden!();
/// # macro_rules! unused { () => {} }
/// ```
///
/// ```
/// # let three = 3;
/// assert_eq!(three, 3); // 2 hidden
/// #
/// ```
pub fn hidden() {}

/// ```should_panic
/// panic!("3 as it should");
/// ```
/// ```should_panic
/// let quiet = "4 does not panic";
/// ```
/// ```no_run
/// loop { std::hint::spin_loop(); /* 5 no_run */ }
/// ```
/// ```ignore
/// this is not Rust at all
/// ```
/// ```ignore-wasm32
/// let six = "for one target only";
/// ```
/// ```compile_fail,E0308
/// let x: u8 = "7";
/// ```
/// ```text
/// +-----+
/// ```
/// ```python
/// print("not Rust")
/// ```
/// ```rust,edition2015
/// let async = 8; // a word like any other then
/// ```
/// ~~~rust
/// assert!("9 tildes".len() > 3);
/// ~~~
/// ````
/// let fence = "```"; // 10
/// ````
pub fn marks() {}

/**
 * ```
 * let block = "11 block comment";
 * assert_eq!(block.len(), 16);
 * ```
 */
pub fn block() {}

impl Thing {
    /// Returns.
    ///
    /// ```
    /// let parsed: u8 = "12".parse()?;
    /// assert_eq!(parsed, 12);
    /// # Ok::<(), std::num::ParseIntError>(())
    /// ```
    pub fn method(&self) {}
}

/// ```
/// let wrong: u8 = "13 does not compile";
/// ```
/// ```
/// fn main() {
///     assert_eq!(14, 15, "14 fails");
/// }
/// ```
/// ```
/// ```
pub struct Thing;

//// ```
//// let no_documentation = "16";
//// ```
fn quiet() {}
"""


def examples():
    return {example.text: example for example in comment_examples(SOURCE, "2021")}


def test_our_verdicts_are_those_of_rustdoc(tmp_path):
    """rustdoc's own: one line per example, `src/lib.rs - name (line N) ... ok | FAILED`."""
    rustdoc = find_toolchain().rustc.parent / "rustdoc"
    if not rustdoc.exists():
        pytest.skip("this toolchain has no rustdoc")
    path = tmp_path / "lib.rs"
    path.write_text(SOURCE)
    command = [rustdoc, "--test", "--edition", "2021", path, "--test-args", "--test-threads=2"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    lines = re.findall(r"\(line (\d+)\)(?: - [\w ]+)? \.\.\. (\w+)", said)
    wanted = {int(line): result for line, result in lines if result != "ignored"}
    found = list(comment_examples(SOURCE, "2021"))
    programs = [Program(e.text, e.program, e.edition) for e in found]
    passed = {
        v.program_id: v.verdict == "PASSED"
        for e, p in zip(found, programs, strict=True)
        for v in verify([p], "test" if e.runnable else "build")
    }
    ours = {_line_of(text): "ok" if ok else "FAILED" for text, ok in passed.items()}
    block = _line_of('let block = "11')
    wanted[block] = wanted.pop(block - 1)  # of `/**` rustdoc counts from the line before
    # For rustdoc a pass, for us no candidates: what must not compile, and an empty block.
    no_candidates = {_line_of('let x: u8 = "7";'), _line_of("assert_eq!(14, 15") + 5}
    assert ours == {line: result for line, result in wanted.items() if line not in no_candidates}
    assert len(ours) == 14


def _line_of(text):
    """Return the line of the fence before an example, as rustdoc counts them."""
    first = text.splitlines()[0].strip()
    place = next(n for n, line in enumerate(SOURCE.splitlines(), 1) if first in line)
    while not re.search(r"```|~~~", SOURCE.splitlines()[place - 1]) or place == _inside(place):
        place -= 1
    return place


def _inside(place):
    return place if 'let fence = "```"' in SOURCE.splitlines()[place - 1] else 0


def test_hidden_lines_are_compiled_and_not_shown():
    found = examples()["assert_eq!(three, 3); // 2 hidden"]
    assert "let three = 3;" in found.program
    escaped = next(text for text in examples() if text.startswith("#[derive(Debug)]"))
    assert "# not_hidden!();" in escaped
    assert "BTreeMap;" not in escaped


def test_marks_of_a_fence_decide_how_an_example_is_judged():
    found = examples()
    assert found['panic!("3 as it should");'].must_panic
    assert not found["loop { std::hint::spin_loop(); /* 5 no_run */ }"].runnable
    assert found["let async = 8; // a word like any other then"].edition == "2015"
    assert found["assert_eq!(1 + 1, 2); // 1 of the file"].edition == "2021"
