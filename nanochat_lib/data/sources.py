"""Find Rust on this machine: the toolchain's documentation and library source, or a folder.

Input: the `html` folder of the `rust-docs` component, or a folder of `.rs` files. Output:
`Candidate`s in a fixed order: a `RustSource` row (text, origin, licence, group) and the program the
compiler will judge. Nothing is judged or dropped for its quality here; what could not be read is
counted in `skipped`.

Pages read: those of `std` (which re-exports nearly all of `core` and `alloc`; the pages of `core`
are 41,000 and add a few examples only), the Book, Rust by Example, the reference, and the rendered
source files of the three crates.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat_lib.data import extract, packages
from nanochat_lib.data.extract import Example, library_source, self_contained_slices
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import RustSource

DOCS_LICENCE = "MIT OR Apache-2.0"  # of the Rust project, its library, books and examples
BOOKS = ("book", "reference", "rust-by-example")
MAX_FILE_BYTES = 1_000_000
MAX_TEXT_BYTES = 16_000  # of an example or a slice
MIN_TEXT_BYTES = 24
# An example that reaches for files, the network or other processes is built and not run: it would
# fail in the sandbox whatever it is worth, and running it alone costs ten times a shared build.
_REACHES_OUT = re.compile(r"\b(?:net|os|fs|process|env)::|\bstdin\(")
# Folders of library source that are private, generated or per platform: nothing there stands alone.
_INTERNAL = frozenset({"sys", "os", "stdarch", "core_arch", "intrinsics", "tests", "portable-simd"})
_NUMBER_SIZES = frozenset({"8", "16", "32", "64", "128", "size"})
_SKIPPED_FOLDERS = frozenset({"target", ".git", "node_modules"})


@dataclass(frozen=True)
class Candidate:
    """A row to be, and the program that decides about it."""

    row: RustSource
    program: str
    edition: str = extract.DEFAULT_EDITION


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
        for n, example in enumerate(extract.rustdoc_examples(_read(page))):
            if example.text in no_run:
                example = replace(example, runnable=False)
            yield _example_candidate(example, "std", f"{path}#{n}", group)
    for book in BOOKS:
        for page in _book_pages(docs / book):
            path = page.relative_to(docs).as_posix()
            for n, example in enumerate(extract.mdbook_examples(_read(page))):
                yield _example_candidate(example, book, f"{path}#{n}", _book_group(path))


def folder_candidates(
    folder: Path, *, seed: int, most: int, skipped: Counter[str]
) -> Iterator[Candidate]:
    """Yield whole files and slices of a folder of `.rs` files, packages in turn, at most `most`.

    Args:
        skipped: counts what was passed over, by reason ("not UTF-8", "larger than 1 MB", ...).

    Raises:
        WorkbenchError: the folder does not exist, or holds no `.rs` file that can be read.
    """
    if not folder.is_dir():
        raise WorkbenchError(f"Input folder {folder} does not exist. Set data.input_dir.")
    n_files = n_rows = 0
    finder = packages.PackageFinder(folder)
    for path in _in_turns(_rust_files(folder, skipped), finder, seed):
        text = _readable_text(path, skipped)
        if text is None:
            continue
        n_files += 1
        for candidate in _file_candidates(path, text, folder, finder.package_of(path)):
            yield candidate
            n_rows += 1
        if n_rows >= most:
            return
    if not n_files:
        passed_over = "".join(f"; {n} {reason}" for reason, n in sorted(skipped.items()))
        raise WorkbenchError(
            f"Input folder {folder} holds no readable .rs file{passed_over}. Set data.input_dir to "
            "a folder with Rust source, or leave it empty to use the toolchain's documentation."
        )


def _library_slices(docs: Path, no_run: set[str]) -> Iterator[Candidate]:
    """Yield slices of the library's source; on the way, note the texts of `no_run` examples."""
    for crate in ("alloc", "core", "std"):
        for page in sorted((docs / "src" / crate).rglob("*.rs.html")):
            path = page.relative_to(docs).as_posix()
            if _INTERNAL & set(Path(path.removesuffix(".rs.html")).parts):
                continue
            source = extract.source_of_page(_read(page))
            no_run.update(text.strip("\n").rstrip() for text in extract.no_run_texts(source))
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


def _example_candidate(example: Example, package: str, place: str, group: str) -> Candidate:
    row = RustSource(
        source_id=f"toolchain_docs/{package}/{place}",
        text=example.text,
        kind="doc_example",
        source="toolchain_docs",
        package=package,
        path=place.partition("#")[0],
        licence=DOCS_LICENCE,
        group=group,
        runnable=example.runnable and not _REACHES_OUT.search(example.program),
        must_panic=example.must_panic,
    )
    return Candidate(row, example.program, example.edition)


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


def _rust_files(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Return the regular `.rs` files below a folder; links are counted, never followed."""
    found: list[Path] = []
    for base, folders, names in os.walk(folder, followlinks=False):
        skipped["symbolic links"] += sum(os.path.islink(os.path.join(base, f)) for f in folders)
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".rs"):
                found.append(Path(base, name))
    return found


def _in_turns(paths: list[Path], finder: packages.PackageFinder, seed: int) -> Iterator[Path]:
    """Yield one file of each package in turn, in an order that only the seed decides."""
    queues: dict[str, list[Path]] = {}
    for path in sorted(
        paths, key=lambda p: seeded_order(seed, p.relative_to(finder.top).as_posix())
    ):
        queues.setdefault(finder.package_of(path).name, []).append(path)
    waiting = [queues[name] for name in sorted(queues)]
    for turn in range(max(map(len, waiting), default=0)):
        yield from (queue[turn] for queue in waiting if turn < len(queue))


def _readable_text(path: Path, skipped: Counter[str]) -> str | None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            skipped["symbolic links" if stat.S_ISLNK(status.st_mode) else "not a plain file"] += 1
        elif status.st_size > MAX_FILE_BYTES:
            skipped["larger than 1 MB"] += 1
        else:
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
    except OSError:
        skipped["unreadable"] += 1
    return None


def _file_candidates(
    path: Path, text: str, folder: Path, package: packages.Package
) -> Iterator[Candidate]:
    place = path.relative_to(folder).as_posix()
    row = RustSource(
        source_id=f"folder/{package.name}/{place}#file",
        text=text.strip("\n").rstrip(),
        kind="file",
        source="folder",
        package=package.name,
        path=place,
        licence=package.licence,
        group=package.name,
        runnable="#[test]" in text,  # a lone `main` may want arguments or input: build it only
    )
    yield Candidate(row, text, package.edition)
    for n, piece in enumerate(self_contained_slices(text)):
        part = replace(
            row,
            source_id=f"folder/{package.name}/{place}#{n}",
            text=piece.text.rstrip(),
            kind="function",
            runnable=False,
        )
        yield Candidate(part, piece.text, package.edition)


def seeded_order(seed: int, key: str) -> bytes:
    """Return a sort key that shuffles keys by seed, whatever order they come in."""
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8", errors="replace")
