"""Extraction: exact text out of pages, whole programs behind it, slices that hold together."""

from __future__ import annotations

import html
import urllib.parse
from html.parser import HTMLParser

import pytest

from nanochat_lib.data.extraction.pages import (
    mdbook_examples,
    no_run_texts,
    rustdoc_examples,
    source_of_page,
    wrap_main,
)
from nanochat_lib.data.extraction.slices import library_source, self_contained_slices
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust.toolchain import find_toolchain


def rustdoc_block(visible: str, whole: str, mark: str = "", edition: str = "2024") -> str:
    """Write an example as rustdoc does: coloured text, and the program in the arrow's link."""
    link = html.escape(
        f"https://play.rust-lang.org/?code={urllib.parse.quote_plus(whole)}&edition={edition}"
    )
    tip = '<a href="#" class="tooltip" title="This example panics">ⓘ</a>' if mark else ""
    code = html.escape(visible, quote=False).replace("let", '<span class="kw">let</span>')
    return (
        f'<div class="example-wrap{mark}">{tip}<pre class="rust rust-example-rendered"><code>'
        f'{code}</code></pre><a class="test-arrow" target="_blank" href="{link}"></a></div>'
    )


def mdbook_block(code: str, classes: str = "") -> str:
    return f'<pre class="playground"><code class="language-rust{classes}">{code}</code></pre>'


def test_entities_and_tags_give_back_the_exact_text():
    text = 'let v: Vec<&\'a str> = vec!["&amp; <b> \\" é🦀"];\nlet s = r#"<i>"#;'
    (example,) = rustdoc_examples(rustdoc_block(text, f"fn main() {{\n{text}\n}}"))
    assert example.text == text


def test_the_program_of_a_rustdoc_example_has_its_hidden_lines():
    whole = (
        "#![allow(unused)]\nfn main() {\n    use std::mem;\n    let x = mem::size_of::<u8>();\n}"
    )
    (example,) = rustdoc_examples(rustdoc_block("let x = mem::size_of::<u8>();", whole))
    assert "use std::mem;" not in example.text
    assert example.program == whole.removeprefix("#![allow(unused)]\n")
    assert (example.edition, example.runnable, example.must_panic) == ("2024", True, False)


@pytest.mark.parametrize("mark", [" ignore", " compile_fail"])
def test_examples_not_meant_to_compile_are_no_candidates(mark):
    assert not list(rustdoc_examples(rustdoc_block("let x = 1;", "fn main() {}", mark)))


def test_should_panic_becomes_a_test_that_must_panic():
    whole = "#![allow(unused)]\nfn main() {\n    None::<u8>.unwrap();\n}"
    block = rustdoc_block("None::<u8>.unwrap();", whole, " should_panic")
    (example,) = rustdoc_examples(block)
    assert example.must_panic
    assert example.program.startswith("fn main() {")
    assert example.program.endswith(
        "#[test]\n#[should_panic]\nfn example_panics() {\n    let _ = main();\n}\n"
    )


def test_mdbook_hides_boring_lines_from_the_text_but_not_from_the_program():
    code = (
        '<span class="boring">#![allow(unused)]\n</span><span class="boring">fn main() {\n</span>'
        '    let s = "a &lt; b";\n\n    print!("{s}");\n<span class="boring">}</span>'
    )
    (example,) = mdbook_examples(mdbook_block(code, " edition2021"))
    assert example.text == 'let s = "a < b";\n\nprint!("{s}");'
    assert example.program == 'fn main() {\n    let s = "a < b";\n\n    print!("{s}");\n}'
    assert example.edition == "2021"


def test_mdbook_marks_keep_the_meaning_they_have_in_the_books():
    page = "".join(
        mdbook_block("fn f() {}", classes)
        for classes in (
            " ignore does_not_compile",
            " compile_fail E0308 edition2021",
            ",ignore",
            " no_run",
            " should_panic panics edition2024",
            " not_desired_behavior noplayground",
        )
    )
    no_run, panics, misbehaves = mdbook_examples(page + "<code class='language-toml'>x</code>")
    assert not no_run.runnable
    assert panics.must_panic
    assert not misbehaves.runnable
    assert not list(mdbook_examples('<code class="language-rusty">x</code></pre>'))


def test_code_without_main_is_wrapped_and_crate_lines_stay_in_front():
    wrapped = wrap_main("#![allow(dead_code)]\nextern crate alloc;\nlet x = 1;\nassert_eq!(x, 1);")
    assert wrapped == (
        "#![allow(dead_code)]\nextern crate alloc;\nfn main() {\nlet x = 1;\nassert_eq!(x, 1);\n}\n"
    )
    assert wrap_main("use std::io;\nfn main() {}\n") == "use std::io;\nfn main() {}\n"


def test_source_pages_give_back_the_file():
    source = "//! Doc of <T> & \"x\".\nfn f<T>(x: &T) -> u8 {\n\n    b'&' // é\n}\n"
    lines = html.escape(source, quote=False).split("\n")
    anchors = [
        f"<a href=#{n} id={n} data-nosnippet>{n}</a>{x}" for n, x in enumerate(lines[:-1], 1)
    ]
    page = f'<body><pre class="rust"><code>{chr(10).join(anchors)}\n</code></pre></body>'
    assert source_of_page(page.replace("fn f", '<span class="kw">fn</span> f')) == source
    assert source_of_page("<html></html>") == ""


def test_no_run_marks_are_found_in_documentation_comments():
    source = (
        "    /// ```no_run\n    /// # use std::net::TcpStream;\n    /// let a = 1;\n    ///\n"
        "    /// b(a);\n    /// ```\n    fn f() {}\n/// ```\n/// let runs = 1;\n/// ```\n"
        "//! ```rust,no_run\n//! c();\n//! ```\n"
    )
    assert list(no_run_texts(source)) == ["let a = 1;\n\nb(a);", "c();"]


SOURCE = """\
use std::collections::HashMap;
use std::fmt;

const LIMIT: usize = 3;

/// A pair.
#[derive(Clone)]
struct Pair {
    left: u8,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.left)
    }
}

// Not about the next item.

/// Counts words, `Pair` is not needed.
pub(super) fn count(words: &[&str]) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    for word in words.iter().take(LIMIT) {
        *found.entry(word.to_string()).or_insert(0) += 1;
    }
    found
}

fn needs_the_crate() -> usize {
    let n = crate::other::n();
    n
}

fn main() {
    println!("{}", needs_the_crate());
}
"""


def test_a_slice_holds_what_it_names_and_nothing_else():
    pair, count = self_contained_slices(SOURCE)
    assert [pair.name, count.name] == ["Pair", "count"]
    assert pair.text.startswith("use std::fmt;\n\n/// A pair.\n#[derive(Clone)]\nstruct Pair {")
    assert "impl fmt::Display for Pair" in pair.text
    assert count.text == (
        "use std::collections::HashMap;\n\nconst LIMIT: usize = 3;\n\n"
        + SOURCE[SOURCE.index("/// Counts") : SOURCE.index("fn needs_the")].rstrip() + "\n"
    ).replace("pub(super)", "pub(crate)")  # fmt: skip


def test_slices_survive_broken_and_empty_files():
    assert list(self_contained_slices("")) == []
    assert list(self_contained_slices("fn f( { \n\n } ] struct")) == []


def test_library_source_loses_only_what_outside_crates_may_not_write():
    text = (
        '#[stable(feature = "a", since = "1.0.0")]\n#[inline]\n#[rustc_const_stable(\n'
        '    feature = "b",\n    since = "1.1.0"\n)]\n'
        "pub fn f() -> usize {\n    crate::mem::size_of::<u8>()\n}\n"
    )
    assert library_source(text, "core") == (
        "#[inline]\npub fn f() -> usize {\n    core::mem::size_of::<u8>()\n}\n"
    )


class _Blocks(HTMLParser):
    """An independent reader of the same pages: a real HTML parser."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.texts, self.links, self._inside, self._parts = [], [], False, []

    def handle_starttag(self, tag, attrs):
        classes = dict(attrs).get("class") or ""
        if tag == "pre" and "rust-example-rendered" in classes:
            self._inside, self._parts = True, []
        if tag == "a" and classes == "test-arrow":
            query = urllib.parse.urlsplit(dict(attrs)["href"]).query
            self.links.append(urllib.parse.parse_qs(query)["code"][0])

    def handle_endtag(self, tag):
        if tag == "pre" and self._inside:
            self._inside = False
            self.texts.append("".join(self._parts))

    def handle_data(self, data):
        if self._inside:
            self._parts.append(data)


@pytest.mark.parametrize("page", ["std/option/enum.Option.html", "std/macro.assert.html"])
def test_an_html_parser_reads_the_same_from_installed_pages(page):
    docs = installed_docs()
    text = (docs / page).read_text(encoding="utf-8")
    reader = _Blocks()
    reader.feed(text)
    ours = list(rustdoc_examples(text))
    theirs = set(zip(map(str.strip, reader.texts), reader.links, strict=True))
    assert ours
    for example in ours:
        if not example.must_panic:
            assert any(
                example.text == shown and whole.endswith(example.program) for shown, whole in theirs
            )


def installed_docs():
    try:
        docs = find_toolchain().docs
    except WorkbenchError:
        docs = None
    if docs is None:
        pytest.skip("the toolchain's documentation is not installed")
    return docs
