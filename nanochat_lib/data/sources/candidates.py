"""What a source gives: rows to be, each with the program the compiler will judge.

Input: a file of Rust and what is known of its package. Output: `Candidate`s in a fixed order: a
`RustSource` row (text, origin, licence, group) and the program that decides about it. Nothing is
judged or dropped for its quality here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nanochat_lib.data.extraction.doc_comments import comment_examples
from nanochat_lib.data.extraction.pages import DEFAULT_EDITION, Example
from nanochat_lib.data.extraction.slices import library_source, self_contained_slices
from nanochat_lib.data.extraction.unit_tests import functions_with_tests
from nanochat_lib.data.sources.packages import Package
from nanochat_lib.records import RustSource, Task

MAX_TEXT_BYTES = 16_000  # of an example, a slice, or a function with its tests
MIN_TEXT_BYTES = 24
LIBRARY_CRATES = frozenset({"core", "alloc", "std"})
# An example that reaches for files, the network or other processes is built and not run: it would
# fail in the sandbox whatever it is worth, and running it alone costs ten times a shared build.
_REACHES_OUT = re.compile(r"\b(?:net|os|fs|process|env)::|\bstdin\(")


@dataclass(frozen=True)
class Candidate:
    """A row to be, and the program that decides about it; of a tested function also its task."""

    row: RustSource
    program: str
    edition: str = DEFAULT_EDITION
    task: Task | None = None


@dataclass(frozen=True)
class RustFile:
    """One file of Rust with what is known of it."""

    text: str
    path: str
    source: str  # "folder" | "debian" | ...
    origin: str  # the folder's or archive's name, the second part of the ids of its rows
    package: Package
    licence: str


def file_candidates(file: RustFile) -> Iterator[Candidate]:
    """Yield slices, tested functions and examples of a file, then the file itself."""
    library = file.package.name if file.package.name in LIBRARY_CRATES else ""
    text = library_source(file.text, library) if library else file.text
    place = f"{file.source}/{file.origin}/{file.path}"
    row = RustSource(
        source_id=f"{place}#file",
        text=text.strip("\n").rstrip(),
        kind="file",
        source=file.source,
        package=file.package.name,
        path=file.path,
        licence=file.licence,
        group=file.package.name,
        runnable="#[test]" in text,  # a lone `main` may want arguments or input: build it only
        version=file.package.version,
    )
    edition = file.package.edition
    for n, piece in enumerate(self_contained_slices(text)):
        part = replace(
            row,
            source_id=f"{place}#{n}",
            text=piece.text.rstrip(),
            kind="function",
            runnable=False,
        )
        yield Candidate(part, piece.text, edition)
    yield from _tested(text, row, place, edition)
    for n, example in enumerate(comment_examples(file.text, edition)):
        yield example_candidate(example, row, f"{place}#doc{n}")
    yield Candidate(row, text, edition)


def example_candidate(example: Example, row: RustSource, source_id: str) -> Candidate:
    """Return a documentation example as a candidate; `row` says where it comes from."""
    row = replace(
        row,
        source_id=source_id,
        text=example.text,
        kind="doc_example",
        runnable=example.runnable and not _REACHES_OUT.search(example.program),
        must_panic=example.must_panic,
    )
    return Candidate(row, example.program, example.edition)


def _tested(text: str, row: RustSource, place: str, edition: str) -> Iterator[Candidate]:
    """Yield the functions of a file with their tests, each also as a task."""
    for n, found in enumerate(functions_with_tests(text)):
        part = replace(
            row,
            source_id=f"{place}#test{n}",
            text=found.program.rstrip(),
            kind="test",
            runnable=not _REACHES_OUT.search(found.program),
        )
        task = Task(
            task_id=part.source_id,
            prompt=found.prompt,
            canonical_solution=found.solution,
            tests=found.tests,
            task_set="corpus",
            prelude=found.prelude,
        )
        yield Candidate(part, found.program, edition, task)


def seeded_order(seed: int, key: str) -> bytes:
    """Return a sort key that shuffles keys by seed, whatever order they come in."""
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
