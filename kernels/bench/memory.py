"""Products of one token, whose time is that of reading the weights, beside plain reading.

A ring of copies of a weight is gone through, one copy after the other, so that each comes from the
level of memory that a ring of that size fits into. Quantising the activations and applying the
scales is part of every product. Loops over the ring are jitted: a call from Python costs as much
as 20 KB of weights. Reading is measured in two patterns, one stream and four with prefetches.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import kernels
from kernels import cpu, simd, team
from kernels.bench.timing import Case, Row, measure
from kernels.compile import LEVELS, jit
from kernels.levels import vnni

SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (11008, 4096), (16384, 4096))
COLD_MB, L3_MB = 640, 32
SETS_MB = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 640)  # of the roofline


class Ring:
    """Copies of one packed weight; the next product takes the next copy."""

    def __init__(self, n: int, k: int, packing: str, megabytes: float) -> None:
        self.n, self.k, self.packing = n, k, packing
        codes = np.random.default_rng(0).integers(-1, 2, (n, k)).astype(np.int8)
        packed = kernels.pack(codes, packing)
        n_copies = max(1, round(megabytes * 1e6 / packed.nbytes))
        self.stack = np.repeat(packed[None], n_copies, axis=0)
        self.set_mb = self.stack.nbytes / 1e6
        self._next = 0

    def take(self, count: int) -> tuple[int, int]:
        """Return where to begin, and how many copies to go through."""
        first = self._next
        self._next = (first + count) % len(self.stack)
        return first, count


def cold_rows(n_repeats: int = 9) -> list[Row]:
    """Time each shape from memory, in both packings: more than 600 MB of weights in turn."""
    return [row for n, k in SHAPES for row in _ring_rows("cold", n, k, COLD_MB, n_repeats)]


def l3_rows(n_repeats: int = 9) -> list[Row]:
    """Time each shape from the last level of cache, where 32 MB fit and 2 or 4 MB do not."""
    return [row for n, k in SHAPES for row in _ring_rows("l3", n, k, L3_MB, n_repeats)]


def working_set_rows(
    sets_mb: tuple[float, ...] = SETS_MB, n_repeats: int = 9, backend: str | None = None
) -> list[Row]:
    """Time one product beside reading, for rings of growing size: the roofline of one token."""
    rows = []
    for megabytes in sets_mb:
        n, k = (1024, 1024) if megabytes < 1 else (2048, 2048)
        rows += _ring_rows("working_set", n, k, megabytes, n_repeats, backend)
    return rows


def thread_rows(n_repeats: int = 9, threads: int = 2) -> list[Row]:
    """Time a team of threads against one, on the cold ring, by the clock on the wall."""
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        for n, k in SHAPES:
            ring, cases = Ring(n, k, "2bit", COLD_MB), []
            for size in (1, threads):
                workers = (pool, team.new_team(size))
                cases.append(product_case(ring, "threads", workers=workers))
                read = _read_case(ring, "threads", "four streams", _read_four, workers)
                cases.append(read)
            rows += measure(cases, n_repeats, slice_s=0.02)
    return rows


def _ring_rows(
    section: str, n: int, k: int, megabytes: float, n_repeats: int, backend: str | None = None
) -> list[Row]:
    cases = []
    for packing in kernels.PACKINGS:
        ring = Ring(n, k, packing, megabytes)
        cases.append(product_case(ring, section, backend=backend))
        if packing == "2bit":
            cases += read_cases(ring, section)
    return measure(cases, n_repeats)


Workers = tuple[ThreadPoolExecutor | None, list[team.Team]]


def product_case(
    ring: Ring, section: str, *, backend: str | None = None, workers: Workers | None = None
) -> Case:
    """Return the product of one token by the copies of a ring, by one thread or a team."""
    pool, members = workers or (None, team.new_team(1))
    name, rows = kernels.choose_backend(backend), ring.stack.shape[1] * 16
    level, scale = LEVELS[name], np.ones(ring.n, np.float32)
    x = np.random.default_rng(1).standard_normal((1, ring.k)).astype(np.float32)
    out, own = np.empty((1, rows), np.float32), [_own_arrays(ring, rows) for _ in members]

    def run(count: int) -> None:
        place = ring.take(count)

        def work(member: team.Team) -> None:
            extra, scratch = own[member.rank]
            _multiply_ring(level, member, (ring.stack, extra, scale), x, place, scratch, out)

        _together(work, pool, members)

    return _case(ring, section, ("ternary", name, ring.packing), run, len(members))


def _own_arrays(ring: Ring, rows: int) -> tuple[tuple, tuple]:
    """Return what one thread needs beside the weights: a slab for base 3, and its scratch."""
    extra = kernels.with_scratch(ring.stack[0], ring.packing, ring.k, 1)[1:]
    return extra, kernels.new_scratch(1, ring.k, rows)


def read_cases(ring: Ring, section: str) -> list[Case]:
    """Return plain reading of the copies of a ring by one thread, in both patterns."""
    patterns = (("one stream", _read_one), ("four streams", _read_four))
    return [_read_case(ring, section, name, pattern) for name, pattern in patterns]


def _read_case(
    ring: Ring, section: str, name: str, pattern: Callable, workers: Workers | None = None
) -> Case:
    pool, members = workers or (None, team.new_team(1))
    sums = [np.empty(64, np.uint8) for _ in members]

    def run(count: int) -> None:
        place = ring.take(count)
        _together(lambda m: pattern(m, ring.stack, place, sums[m.rank]), pool, members)

    return _case(ring, section, ("read", name, ""), run, len(members))


def _case(
    ring: Ring, section: str, names: tuple[str, str, str], run: Callable, threads: int
) -> Case:
    kernel, backend, packing = names
    return Case(
        section, kernel, backend, ring.n, ring.k, int(kernel == "ternary"), ring.stack[0].nbytes,
        run, packing, threads, ring.set_mb,
    )  # fmt: skip


def _together(work: Callable, pool: ThreadPoolExecutor | None, members: list) -> None:
    """Call work(member) for all members of a team at once."""
    others = [pool.submit(work, member) for member in members[1:]]
    work(members[0])
    for other in others:
        other.result()


@jit
def _multiply_ring(level, member, weights, x, place, scratch, out):
    stack, extra, scale = weights
    groups = team.share(member, stack.shape[1])
    for i in range(place[0], place[0] + place[1]):
        matrix = ((stack[i % len(stack)],) + extra, scale)  # noqa: RUF005, which numba lacks
        cpu.linear(level, matrix, x, 1, groups, scratch, out)
        team.wait(member)


@jit
def _read_one(member, stack, place, out):
    """Read each copy from its beginning to its end."""
    total = simd.zeros_u8x64()
    first, last = team.share(member, stack.shape[1])
    group_bytes = stack.shape[2] * 64
    for i in range(place[0], place[0] + place[1]):
        packed = stack[i % len(stack)]
        for at in range(first * group_bytes, last * group_bytes, 64):
            total = simd.add_u8x64(total, simd.load_u8x64(packed, at))
        team.wait(member)
    simd.store_u8x64(out, 0, total)


@jit
def _read_four(member, stack, place, out):
    """Read four places of each copy at a time, with the prefetches that the products make."""
    total = simd.zeros_u8x64()
    first, last = team.share(member, stack.shape[1])
    group_bytes = stack.shape[2] * 64
    stride = (last - first) // 4 * group_bytes
    for i in range(place[0], place[0] + place[1]):
        packed = stack[i % len(stack)]
        for at in range(first * group_bytes, first * group_bytes + stride, 64):
            vnni.prefetch_four(packed, at, stride)
            total = simd.add_u8x64(total, simd.load_u8x64(packed, at))
            total = simd.add_u8x64(total, simd.load_u8x64(packed, at + stride))
            total = simd.add_u8x64(total, simd.load_u8x64(packed, at + 2 * stride))
            total = simd.add_u8x64(total, simd.load_u8x64(packed, at + 3 * stride))
        team.wait(member)
    simd.store_u8x64(out, 0, total)
