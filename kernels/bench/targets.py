"""What the project set itself for its kernels, against what was measured in the same run.

In: rows of the benchmark; out: one check for each target, shape and batch, met or not. A check
compares two rows of one interleaved measurement wherever the target is a ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kernels.bench.timing import Row

VECTOR_LEVELS = ("generic", "avx2", "avx512vnni", "amx")


@dataclass(frozen=True)
class Check:
    """One number beside its target; `unit` is what the number counts."""

    what: str
    n: int
    k: int
    batch: int
    value: float
    target: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the number reaches its target."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def checks(rows: list[Row]) -> list[Check]:
    """Return a check for every target that the rows allow to judge."""
    by_place: dict[tuple, list[Row]] = {}
    for row in rows:
        by_place.setdefault((row["section"], row["n"], row["k"], row["batch"] or 1), []).append(row)
    return [
        check
        for (section, n, k, batch), part in by_place.items()
        if section in _CHECKS
        for what, value, target, unit in _CHECKS[section](part, n == k == 2560)
        for check in [Check(what, n, k, batch, value, target, unit, unit != "us at most")]
    ]


Found = Iterator[tuple[str, float, float, str]]


def _us(rows: list[Row], **wanted: object) -> float | None:
    """Return the smallest time of the rows with these values, None when there is none."""
    times = [r["us_median"] for r in rows if all(r[key] == v for key, v in wanted.items())]
    return min(times, default=None)


def _cold(rows: list[Row], is_small: bool) -> Found:
    two_bit = _us(rows, kernel="ternary", packing="2bit")
    share = _us(rows, kernel="read") / two_bit
    yield "2 bits from memory, of reading", share, 0.92 if is_small else 0.95, "x"
    ratio = two_bit / _us(rows, kernel="ternary", packing="base3")
    yield "1.6 bits from memory, of 2 bits", ratio, 1.20, "x"


def _l3(rows: list[Row], is_small: bool) -> Found:
    if not is_small:
        share = _us(rows, kernel="read") / _us(rows, kernel="ternary", packing="2bit")
        yield "2 bits from L3, of reading", share, 0.95, "x"


def _threads(rows: list[Row], is_small: bool) -> Found:
    several = max(row["threads"] for row in rows)
    together = _us(rows, kernel="ternary", threads=several)
    alone = _us(rows, kernel="ternary", threads=1)
    yield f"{several} threads from memory, of one", alone / together, 0.9 * several, "x"
    share = _us(rows, kernel="read", threads=several) / together
    yield f"{several} threads from memory, of reading", share, 0.85, "x"


def _gemm(rows: list[Row], is_small: bool) -> Found:
    tops = {row["backend"]: row["gops"] / 1e3 for row in rows if row["kernel"] == "ternary"}
    if "amx" in tops:
        yield "many tokens, AMX", tops["amx"], 2.5, "TOPS"
    elif "avx512vnni" in tops:
        yield "many tokens, VNNI", tops["avx512vnni"], 0.5, "TOPS"
    peak = _us(rows, kernel="tiles_alone")
    if peak and "amx" in tops:  # 2.5 TOPS of the 7.5 that a core's tiles reach undisturbed
        share = peak / _us(rows, kernel="ternary", backend="amx")
        yield "many tokens, AMX, of its tiles alone", share, 0.33, "x"
    peer = _us(rows, kernel="int_mm")
    if peer and "amx" in tops:
        ratio = peer / _us(rows, kernel="ternary", backend="amx")
        yield "many tokens, AMX, of torch._int_mm", ratio, 1.5, "x"


def _overhead(rows: list[Row], is_small: bool) -> Found:
    for what, kernel, target in (
        ("quantise K = 4096", "quantize", 1.0),
        ("first cached call after import", "first_call", 1e6),
    ):
        if _us(rows, kernel=kernel) is not None:
            yield what, _us(rows, kernel=kernel), target, "us at most"
    if _us(rows, kernel="torch_op") is not None:
        over = _us(rows, kernel="torch_op") - _us(rows, kernel="ternary")
        yield "torch operator, over its kernel", over, 10.0, "us at most"


def _peer(rows: list[Row], is_small: bool) -> Found:
    best = next(level for level in reversed(VECTOR_LEVELS) if _us(rows, backend=level))
    for what, packing, backend, peer, target in (
        ("2 bits, of ggml TQ2_0", "2bit", best, "tq2_0", 2.4),
        ("AVX2, of ggml TQ2_0", "2bit", "avx2", "tq2_0", 1.0),
        ("1.6 bits, of ggml TQ1_0", "base3", best, "tq1_0", 3.0),
    ):
        ours = _us(rows, kernel="ternary", packing=packing, backend=backend)
        if ours and _us(rows, kernel=peer):
            yield what, _us(rows, kernel=peer) / ours, target, "x"


_CHECKS: dict[str, Callable[[list[Row], bool], Found]] = {
    "cold": _cold,
    "l3": _l3,
    "threads": _threads,
    "gemm": _gemm,
    "overhead": _overhead,
    "peer": _peer,
}
