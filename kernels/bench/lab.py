"""One product, as somebody asks for it: every level that runs here, the reference, and reading.

In: a shape, a number of tokens, a packing and how much weight is gone through. Out: rows of
`timing.measure`, and whether each level's integers equal the reference's. The time of reading the
packed weights once is the memory's limit; with many tokens arithmetic takes longer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import kernels
from kernels import cpu
from kernels.bench.memory import Ring, product_case, read_cases
from kernels.bench.timing import Case, Row, measure
from kernels.compile import LEVELS

REFERENCE_REPEATS = 3
CACHED_MB = 0.0


@dataclass(frozen=True)
class Question:
    """What to measure."""

    n: int = 2560
    k: int = 2560
    batch: int = 1
    packing: str = "2bit"
    set_mb: float = CACHED_MB  # of weights gone through in turn; 0: one matrix, in cache

    def check(self) -> None:
        """Refuse what cannot be packed or would not fit.

        Raises:
            ValueError: what is expected, and what was found.
        """
        if not (16 <= self.n <= 65_536 and 16 <= self.k <= kernels.MAX_K):
            raise ValueError(
                f"rows must lie between 16 and 65536 and columns between 16 and {kernels.MAX_K}, "
                f"found {self.n} x {self.k}"
            )
        if not 1 <= self.batch <= 4096 or not 0 <= self.set_mb <= 2048:
            raise ValueError(
                f"tokens must lie between 1 and 4096 and the set between 0 and 2048 MB, found "
                f"{self.batch} tokens and {self.set_mb:g} MB"
            )


def lab_rows(question: Question, n_repeats: int = 7) -> list[Row]:
    """Time every level of this machine on one question, interleaved with reading; medians.

    Returns: rows of `timing.measure`: "ternary" per level with `equals_reference`, "read" in two
        patterns, and "reference", NumPy, which is timed apart because it is slow.
    """
    question.check()
    ring = Ring(question.n, question.k, question.packing, question.set_mb)
    x = np.random.default_rng(1).standard_normal((question.batch, question.k)).astype(np.float32)
    wanted = _product(ring, x, "reference")
    levels = [name for name in LEVELS if name in kernels.backends()]
    cases = [*(_case(ring, x, name) for name in levels), *read_cases(ring, "lab")]
    rows = measure(cases, n_repeats)
    for row in rows:
        if row["kernel"] == "ternary":
            found = _product(ring, x, str(row["backend"]))
            row["equals_reference"] = bool(np.array_equal(found, wanted))
    slow = [_plain_case(ring, x)]
    return rows + [row | {"equals_reference": True} for row in measure(slow, REFERENCE_REPEATS, 0)]


def _product(ring: Ring, x: np.ndarray, backend: str) -> np.ndarray:
    """Return the integer products of the first copy."""
    x_q, _ = kernels.quantize_activations(x, backend="reference")
    return kernels.accumulate(
        ring.stack[0], x_q, n_rows=ring.n, packing=ring.packing, backend=backend
    )


def _case(ring: Ring, x: np.ndarray, backend: str) -> Case:
    """Return the whole product by one thread: quantise, multiply, scale.

    That of one token goes through its copies in jitted code: a call from Python costs as much as
    20 KB of weights.
    """
    if len(x) == 1:
        return product_case(ring, "lab", backend=backend)
    level, rows, batch = LEVELS[backend], ring.stack.shape[1] * 16, len(x)
    scale, out = np.ones(ring.n, np.float32), np.empty((batch, rows), np.float32)
    scratch = kernels.new_scratch(batch, ring.k, rows)
    extra = kernels.with_scratch(ring.stack[0], ring.packing, ring.k, batch)[1:]

    def run(count: int) -> None:
        for packed in _copies(ring, count):
            matrix = ((packed, *extra), scale)
            cpu.linear(level, matrix, x, batch, (0, rows // 16), scratch, out)

    return _row_of(ring, ("ternary", backend), batch, run)


def _plain_case(ring: Ring, x: np.ndarray) -> Case:
    def run(count: int) -> None:
        for packed in _copies(ring, count):
            kernels.ternary_matmul(
                packed, 1.0, x, n_rows=ring.n, packing=ring.packing, backend="reference"
            )

    return _row_of(ring, ("reference", "numpy"), len(x), run)


def _copies(ring: Ring, count: int) -> Iterator[np.ndarray]:
    first, count = ring.take(count)
    for i in range(first, first + count):
        yield ring.stack[i % len(ring.stack)]


def _row_of(ring: Ring, names: tuple[str, str], batch: int, run: Callable[[int], object]) -> Case:
    return Case(
        "lab", *names, ring.n, ring.k, batch, ring.stack[0].nbytes, run, ring.packing,
        set_mb=ring.set_mb,
    )  # fmt: skip
