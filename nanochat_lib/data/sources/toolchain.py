"""The documentation and library source that a toolchain brings along.

Input: the `html` folder of the `rust-docs` component. Output: `Candidate`s in a fixed order.
Nothing is judged or dropped for its quality here.

Pages read: those of `std` (which re-exports nearly all of `core` and `alloc`; the pages of `core`
are 41,000 and add a few examples only), the Book, Rust by Example, the reference, and the rendered
source files of the three crates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nanochat_lib.data.extraction import pages
from nanochat_lib.data.extraction.pages import Example
from nanochat_lib.data.extraction.slices import library_source, self_contained_slices
from nanochat_lib.data.sources.candidates import Candidate, example_candidate
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import RustSource

DOCS_LICENCE = "MIT OR Apache-2.0"  # of the Rust project, its library, books and examples
BOOKS = ("book", "reference", "rust-by-example")
# Folders of library source that are private, generated or per platform: nothing there stands alone.
_INTERNAL = frozenset({"sys", "os", "stdarch", "core_arch", "intrinsics", "tests", "portable-simd"})
_NUMBER_SIZES = frozenset({"8", "16", "32", "64", "128", "size"})


def toolchain_candidates(docs: Path) -> Iterator[Candidate]:
    """Yield documentation examples and slices of library source from a toolchain's HTML folder.

    Raises:
        WorkbenchError: the folder holds none of the expected pages.
    """
    if not (docs / "std").is_dir():
        raise WorkbenchError(
            f"{docs} holds no pages of the standard library. Install them with "
            "`rustup component add rust-docs`, or set data.input_dir to a folder of .rs files."
        )
    no_run: set[str] = set()
    yield from _library_slices(docs, no_run)
    for page in sorted((docs / "std").rglob("*.html")):
        path = page.relative_to(docs).as_posix()
        group = _std_group(path)
        for n, example in enumerate(pages.rustdoc_examples(_read(page))):
            if example.text in no_run:
                example = replace(example, runnable=False)
            yield _example(example, "std", f"{path}#{n}", group)
    for book in BOOKS:
        for page in _book_pages(docs / book):
            path = page.relative_to(docs).as_posix()
            for n, example in enumerate(pages.mdbook_examples(_read(page))):
                yield _example(example, book, f"{path}#{n}", _book_group(path))


def _library_slices(docs: Path, no_run: set[str]) -> Iterator[Candidate]:
    """Yield slices of the library's source; on the way, note the texts of `no_run` examples."""
    for crate in ("alloc", "core", "std"):
        for page in sorted((docs / "src" / crate).rglob("*.rs.html")):
            path = page.relative_to(docs).as_posix()
            if _INTERNAL & set(Path(path.removesuffix(".rs.html")).parts):
                continue
            source = pages.source_of_page(_read(page))
            no_run.update(text.strip("\n").rstrip() for text in pages.no_run_texts(source))
            module = path.removesuffix(".rs.html").split("/")[2]
            for n, piece in enumerate(self_contained_slices(library_source(source, crate))):
                yield Candidate(
                    RustSource(
                        source_id=f"toolchain_docs/{crate}/{path}#{n}",
                        text=piece.text.rstrip(),
                        kind="function",
                        source="toolchain_docs",
                        package=crate,
                        path=path,
                        licence=DOCS_LICENCE,
                        group=f"std::{module}",
                        runnable=False,
                    ),
                    piece.text,
                    "2024",
                )


def _example(example: Example, package: str, place: str, group: str) -> Candidate:
    row = RustSource(
        source_id="",
        text="",
        kind="doc_example",
        source="toolchain_docs",
        package=package,
        path=place.partition("#")[0],
        licence=DOCS_LICENCE,
        group=group,
    )
    return example_candidate(example, row, f"toolchain_docs/{package}/{place}")


def _std_group(path: str) -> str:
    """Return the module of a std page; all number types are one group, being near copies.

    `std/collections/hash_map/struct.Entry.html` -> `std::collections`,
    `std/primitive.slice.html` -> `std::slice`, `std/primitive.u8.html` -> `std::num`.
    """
    _, module, *deeper = path.removesuffix(".html").split("/")
    kind, _, name = module.partition(".")
    if not deeper:
        module = name if kind == "primitive" else kind
    is_number = module[0] in "iuf" and module[1:] in _NUMBER_SIZES
    return "std::num" if is_number else f"std::{module}"


def _book_pages(book: Path) -> Iterator[Path]:
    """Yield a book's pages without its printable copy, translations and old editions.

    The latter two are whole books inside the folder, with an index of their own.
    """
    nested = {page.parent for page in book.glob("*/index.html")}
    for page in sorted(book.rglob("*.html")):
        if page != book / "print.html" and not nested & set(page.parents):
            yield page


def _book_group(path: str) -> str:
    """Return the chapter: `book/ch04-01-ownership.html` -> `book::ch04`."""
    book, chapter, *_ = path.split("/")
    name = chapter.removesuffix(".html")
    return f"{book}::{name[:4] if book == 'book' else name}"


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8", errors="replace")
