"""From the files of units to rows that are worth judging, with what dedup needs of them.

Input: `Unit`s and a place to start from. Output: a `Prepared` for each file: its rows in order and
counts of what was passed over, step by step. No state is kept between files, so that reading can
begin again at any file and gives the same. What names another crate or an unstable feature is not
judged, and counted: of 150 such functions, files and examples each, 0, 3 and 1 compiled alone,
their `use` being switched off by a `cfg`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rensa import RMinHash

from nanochat_lib.data.extraction.slices import names_outside
from nanochat_lib.data.ngrams import lexeme_hashes, run_hashes
from nanochat_lib.data.select import Benchmarks, content_hash, needs_nightly, without_numbers
from nanochat_lib.data.sources.candidates import (
    MAX_TEXT_BYTES,
    MIN_TEXT_BYTES,
    TASK_ONLY,
    Candidate,
)
from nanochat_lib.data.sources.units import ReadFile, Unit, read_unit
from nanochat_lib.records import Level

SHINGLE_TOKENS = 5
N_PERMUTATIONS = 126
_BAND_ROWS = 6  # 21 bands: a pair that agrees in 0.8 of its shingles is met with chance 0.998
_SEED = 20_240_229

# Steps of the funnel, in order; a row is counted where it ends. See `Prepared.ended`.
FOUND = "found"
UNFIT_SIZE = "too short or too long"
NIGHTLY = "for an unstable toolchain"
OUTSIDE = "names another crate or file"
BENCHMARK = "benchmark text"


@dataclass(frozen=True)
class Row:
    """A candidate that is worth judging, with what dedup needs of it."""

    candidate: Candidate
    level: Level
    exact: int  # hash of its text
    digest: bytes  # MinHash, uint32
    bands: tuple[int, ...]


@dataclass
class Prepared:
    """What one file gave."""

    unit: int
    file: int
    rows: list[Row] = field(default_factory=list)
    n_bytes: int = 0
    found: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (step, source, kind)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    is_last: bool = False  # of its unit


@dataclass(frozen=True)
class Reader:
    """How units are read; the same for a whole corpus."""

    scratch: Path
    benchmarks: Benchmarks
    any_licence: bool
    needs_tests: bool

    def files(
        self, units: Sequence[Unit], start: tuple[int, int]
    ) -> Generator[Prepared, None, None]:
        """Yield every file of the units from (unit, file) on, and an empty one after each unit."""
        first_unit, first_file = start
        for number in range(first_unit, len(units)):
            file = -1
            found = read_unit(units[number], self.scratch, any_licence=self.any_licence)
            for file, read in enumerate(found):
                if number > first_unit or file >= first_file:
                    yield self._prepare(read, units[number], number, file)
            yield Prepared(number, file + 1, is_last=True)

    def _prepare(self, read: ReadFile, unit: Unit, number: int, file: int) -> Prepared:
        made = Prepared(
            number, file, n_bytes=read.n_bytes, skipped=read.skipped, dropped=read.dropped,
            problem=read.problem,
        )  # fmt: skip
        for candidate in read.candidates:
            kind = candidate.row.kind
            if kind == TASK_ONLY and not self.needs_tests:
                continue
            made.found[FOUND, unit.source, kind] += 1
            row = self._row(candidate)
            if isinstance(row, Row):
                made.rows.append(row)
            else:
                made.found[row, unit.source, kind] += 1
        return made

    def _row(self, candidate: Candidate) -> Row | str:
        """Return a row, or the step at which the candidate ends."""
        text = candidate.row.text
        is_file = candidate.row.kind == "file"  # its limit was checked before it was read
        n_bytes = len(text.encode())
        if n_bytes < MIN_TEXT_BYTES or (n_bytes > MAX_TEXT_BYTES and not is_file):
            return UNFIT_SIZE
        if needs_nightly(candidate):
            return NIGHTLY
        if names_outside(candidate.program) or (is_file and "crate::" in text):
            return OUTSIDE
        if self.benchmarks.has_any(lexeme_hashes(text)):
            return BENCHMARK
        digest = minhash(text)
        level = Level.TEST if self.needs_tests and candidate.row.runnable else Level.BUILD
        # A task repeats the row of its function by nature: tasks are compared with tasks alone.
        space = TASK_ONLY if candidate.row.kind == TASK_ONLY else ""
        whole = content_hash(space + text)
        exact = int.from_bytes(bytes.fromhex(whole[:16]), "little", signed=True)
        return Row(candidate, level, exact, digest.tobytes(), _bands(digest, space.encode()))


def minhash(text: str) -> np.ndarray:
    """Return the MinHash of a text's shingles, numbers and number types made equal; uint32.

    The share of equal places estimates the share of shingles that two texts have in common.
    """
    shingles = np.unique(run_hashes(lexeme_hashes(without_numbers(text)), SHINGLE_TOKENS))
    offsets = np.array([0, len(shingles)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, N_PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def likeness(a: bytes, b: bytes) -> float:
    """Return the estimated share of shingles that two texts have in common, from their digests."""
    return float((np.frombuffer(a, np.uint32) == np.frombuffer(b, np.uint32)).mean())


def _bands(digest: np.ndarray, space: bytes) -> tuple[int, ...]:
    """Return a 64-bit hash of each band of the digest; its number and the space enter it."""
    parts = digest.reshape(-1, _BAND_ROWS)
    hashes = (
        hashlib.blake2b(space + bytes([n]) + part.tobytes(), digest_size=8).digest()
        for n, part in enumerate(parts)
    )
    return tuple(int.from_bytes(found, "little", signed=True) for found in hashes)
