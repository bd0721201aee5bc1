"""Timing: interleaved rounds, medians, one thread by its own CPU time.

A case is something to call again and again; every round runs a slice of each case, so that a busy
moment of the machine touches all of them alike. Out: one row per case, a flat dictionary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SLICE_S = 0.004  # a case is repeated inside a round until it fills this much time

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Case:
    """One thing to time; `run(count)` does it `count` times."""

    section: str
    kernel: str
    backend: str
    n: int
    k: int
    batch: int
    n_bytes: int  # of weights, read once a time
    run: Callable[[int], object]
    packing: str = ""
    threads: int = 1
    set_mb: float = 0.0  # of weights gone through before the first comes again; 0: one weight


def measure(cases: Sequence[Case], n_repeats: int, slice_s: float = SLICE_S) -> list[Row]:
    """Time the cases against each other.

    Args:
        n_repeats: rounds; the median over rounds is reported.
        slice_s: time that one case takes in a round.

    Returns:
        A row per case: what it is, us_median, gb_per_s (of weights), gops (2 N K B), n_repeats. One
        thread is timed by its CPU time, several by the clock on the wall.
    """
    together = any(case.threads > 1 for case in cases)
    clock = time.perf_counter if together else time.thread_time
    counts = [_calls_per_slice(case, clock, slice_s) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(n_repeats):
        for case, count, spent in zip(cases, counts, times, strict=True):
            spent.append(_time(case, count, clock))
    return [
        _row(case, statistics.median(t), n_repeats) for case, t in zip(cases, times, strict=True)
    ]


def _time(case: Case, count: int, clock: Callable[[], float]) -> float:
    start = clock()
    case.run(count)
    return (clock() - start) / count


def _calls_per_slice(case: Case, clock: Callable[[], float], slice_s: float) -> int:
    case.run(1)  # compiles
    return max(1, int(slice_s / max(_time(case, 2, clock), 1e-7)))


def _row(case: Case, seconds: float, n_repeats: int) -> Row:
    return {
        "section": case.section,
        "kernel": case.kernel,
        "backend": case.backend,
        "packing": case.packing,
        "n": case.n,
        "k": case.k,
        "batch": case.batch,
        "threads": case.threads,
        "set_mb": case.set_mb,
        "us_median": seconds * 1e6,
        "gb_per_s": case.n_bytes / seconds / 1e9,
        "gops": 2 * case.n * case.k * case.batch / seconds / 1e9,
        "n_repeats": n_repeats,
    }
