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
from typing import Any

from nanochat_lib.data.extraction.doc_comments import comment_examples
from nanochat_lib.data.extraction.doc_tests import documented_functions
from nanochat_lib.data.extraction.pages import DEFAULT_EDITION, Example
from nanochat_lib.data.extraction.slices import library_source, self_contained_slices
from nanochat_lib.data.extraction.unit_tests import FunctionWithTests, functions_with_tests
from nanochat_lib.data.sources.packages import Package
from nanochat_lib.records import RustSource, Task

MAX_TEXT_BYTES = 16_000  # of an example, a slice, or a function with its tests
MIN_TEXT_BYTES = 24
# Kinds of tasks, the first of a task's flags: where its tests come from.
DOCUMENTATION = "documentation"
UNIT_TESTS = "unit_tests"
# Kind of a candidate that is a task and no row: its function is one already, its examples, too.
TASK_ONLY = "task"
LIBRARY_CRATES = frozenset({"core", "alloc", "std"})
# An example that reaches for files, the network or other processes is built and not run: it would
# fail in the sandbox whatever it is worth, and running it alone costs ten times a shared build.
_REACHES_OUT = re.compile(r"\b(?:net|os|fs|process|env)::|\bstdin\(")


@dataclass(frozen=True)
class Candidate:
    """A row to be, and the program that decides about it; of a tested function also its task.

    One of kind `TASK_ONLY` is judged for its task and never becomes a row.
    """

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
    """Yield slices, tested functions, examples and documented ones of a file, then itself."""
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
    for n, found in enumerate(functions_with_tests(text)):
        yield _with_task(found, replace(row, source_id=f"{place}#test{n}", kind="test"), edition)
    for n, example in enumerate(comment_examples(file.text, edition)):
        yield example_candidate(example, row, f"{place}#doc{n}")
    for n, found in enumerate(documented_functions(text, file.package.crate)):
        if not _REACHES_OUT.search(found.program):
            task_row = replace(row, source_id=f"{place}#doctask{n}", kind=TASK_ONLY)
            yield _with_task(found, task_row, DEFAULT_EDITION)
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


def _with_task(found: FunctionWithTests, row: RustSource, edition: str) -> Candidate:
    """Return a function with its tests as a candidate that is also a task."""
    program = found.program
    row = replace(row, text=program.rstrip(), runnable=not _REACHES_OUT.search(program))
    task = Task(
        task_id=row.source_id,
        prompt=found.prompt,
        canonical_solution=found.solution,
        tests=found.tests,
        task_set="corpus",
        prelude=found.prelude,
        family=row.package,
        flags=(DOCUMENTATION if row.kind == TASK_ONLY else UNIT_TESTS, f"licence {row.licence}"),
    )
    return Candidate(row, program, edition, task)


def task_of(found: dict[str, Any]) -> Task:
    """Return the task of a JSON object.

    Raises:
        TypeError: it has other keys than a task.
    """
    tuples = {name: tuple(found.get(name, ())) for name in ("stop_tokens", "flags")}
    return Task(**(found | tuples))


def seeded_order(seed: int, key: str) -> bytes:
    """Return a sort key that shuffles keys by seed, whatever order they come in."""
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
