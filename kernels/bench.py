"""Measure the kernels on this machine: `python -m kernels.bench [--json FILE]`.

Out: one row per kernel, backend, shape and batch, with medians of interleaved repeats: every
round runs each case once, so that a busy moment of the machine touches all of them alike. One
thread is timed by its CPU time, in a child process, because BLAS only takes its number of threads
from the environment. Peers: NumPy float32, torch float32 and bfloat16 (when torch is
there), and the rate at which memory of the weights' size can be read at all. Used by notebook 07.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kernels
from kernels import cpu
from kernels.compile import LEVELS, jit

SMALL_SHAPES = ((768, 256), (256, 768), (2560, 2560))
LARGE_SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (11008, 4096))
SLICE_S = 0.004  # a case is repeated inside a round until it fills this much time


@dataclass(frozen=True)
class _Case:
    kernel: str
    backend: str
    n: int
    k: int
    batch: int
    n_bytes: int  # weight bytes read per call
    run: Callable[[], object]


def run_bench(
    shapes: Iterable[tuple[int, int]] = SMALL_SHAPES,
    *,
    batches: tuple[int, ...] = (1, 8, 32),
    n_repeats: int = 9,
    seed: int = 0,
) -> list[dict[str, str | int | float]]:
    """Time every usable backend.

    Args:
        shapes: (N, K) of the weights; they stay in cache between calls when they fit.
        batches: tokens multiplied together.
        n_repeats: rounds; the median over rounds is reported.

    Returns:
        Rows of kernel, backend, n, k, batch, threads, us_median, gb_per_s (weight bytes),
        gops (2 N K B), ratio_to_numpy_f32 (above 1: faster; 0: not comparable), n_repeats. Kernel
        "ternary" includes quantising the activations and applying the scales.
    """
    request = {"shapes": list(shapes), "batches": batches, "n_repeats": n_repeats, "seed": seed}
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    child = [sys.executable, "-m", "kernels.bench", "--measure", json.dumps(request)]
    done = subprocess.run(
        child, env=os.environ | one_thread, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def _run_here(
    *, shapes: list[tuple[int, int]], batches: list[int], n_repeats: int, seed: int
) -> list[dict[str, str | int | float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for n, k in shapes:
        rows += _measure(_read_cases(n, k, rng), n_repeats)
        for batch in batches:
            rows += _measure(list(_cases(n, k, batch, rng)), n_repeats)
    return rows


def _cases(n: int, k: int, batch: int, rng: np.random.Generator) -> Iterable[_Case]:
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x = rng.standard_normal((batch, k)).astype(np.float32)
    packed, weight = kernels.pack(codes), codes.astype(np.float32)
    transposed = weight.T
    yield _Case("dense_f32", "numpy", n, k, batch, weight.nbytes, lambda: x @ transposed)
    for name, level in LEVELS.items():
        if name in kernels.backends():
            run = _ternary_call(level, packed, x, n)
            yield _Case("ternary", name, n, k, batch, packed.nbytes, run)
    tiles = np.ascontiguousarray(
        np.resize(weight, (-(-n // 16) * 16, k)).reshape(-1, 16, k).transpose(0, 2, 1)
    )
    out = np.empty((batch, len(tiles) * 16), np.float32)
    run = lambda: cpu.dense(tiles, x, batch, k, out)  # noqa: E731
    yield _Case("dense_f32", "numba", n, k, batch, weight.nbytes, run)
    yield from _torch_cases(weight, x)


def _ternary_call(level, packed: np.ndarray, x: np.ndarray, n: int) -> Callable[[], None]:
    """Return what the decode program does for one matrix: quantise, accumulate, scale."""
    B, K = x.shape
    x_q, rows = np.empty((B, kernels.activation_width(K)), np.int8), packed.shape[0] * 16
    act_scale, x_sum = np.empty(B, np.float32), np.empty(B, np.int32)
    sums, out = np.empty((B, rows), np.int32), np.empty((B, rows), np.float32)
    weight_scale = np.ones(n, np.float32)

    def run() -> None:
        cpu.quantize(x, B, K, x_q, act_scale, x_sum)
        cpu.accumulate(level, (packed,), x_q, x_sum, B, (0, packed.shape[0]), sums)
        cpu.apply_scales(sums, act_scale, weight_scale, B, n, out)

    return run


def _torch_cases(weight: np.ndarray, x: np.ndarray) -> Iterable[_Case]:
    """Yield torch's own products where torch is already installed."""
    try:
        import torch
    except ImportError:
        return
    (n, k), batch = weight.shape, len(x)
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        w, a = torch.from_numpy(weight).to(dtype), torch.from_numpy(x).to(dtype)
        run = lambda w=w, a=a: torch.nn.functional.linear(a, w)  # noqa: E731
        yield _Case(f"dense_{name}", "torch", n, k, batch, w.nbytes, run)


def _read_cases(n: int, k: int, rng: np.random.Generator) -> list[_Case]:
    """Return the ceiling: reading as many bytes as the packed weight has, and doing nothing."""
    words = rng.integers(0, 1 << 30, max(64, n * k // 16)).astype(np.int32)
    return [_Case("read", "numba", n, k, 0, words.nbytes, lambda: _read(words))]


@jit
def _read(words):
    """Return the sum of the words: integer sums vectorise, so this runs at the speed of reading."""
    total = np.int32(0)
    for i in range(len(words)):
        total += words[i]
    return total


def _measure(cases: list[_Case], n_repeats: int) -> list[dict[str, str | int | float]]:
    counts = [_calls_per_slice(case) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(n_repeats):
        for case, count, spent in zip(cases, counts, times, strict=True):
            spent.append(_time(case, count))
    medians = [statistics.median(spent) for spent in times]
    base = next((t for c, t in zip(cases, medians, strict=True) if c.backend == "numpy"), None)
    return [
        {
            "kernel": case.kernel,
            "backend": case.backend,
            "n": case.n,
            "k": case.k,
            "batch": case.batch,
            "threads": 1,
            "us_median": seconds * 1e6,
            "gb_per_s": case.n_bytes / seconds / 1e9,
            "gops": 2 * case.n * case.k * case.batch / seconds / 1e9,
            "ratio_to_numpy_f32": base / seconds if base else 0.0,
            "n_repeats": n_repeats,
        }
        for case, seconds in zip(cases, medians, strict=True)
    ]


def _time(case: _Case, count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        case.run()
    return (time.thread_time() - start) / count


def _calls_per_slice(case: _Case) -> int:
    case.run()  # compiles
    return max(1, int(SLICE_S / max(_time(case, 1), 1e-7)))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="file the rows are written to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the child of run_bench
    parser.add_argument("--large", action="store_true", help="the shapes of billion-scale models")
    options = parser.parse_args(arguments)
    if options.measure:
        json.dump(_run_here(**json.loads(options.measure)), sys.stdout)
        return 0
    rows = run_bench(LARGE_SHAPES if options.large else SMALL_SHAPES)
    if options.json:
        _write(options.json, json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows) + "\n")
    return 0


def format_table(rows: list[dict[str, str | int | float]]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'kernel':10} {'backend':8} {'N x K':>12} {'B':>3} {'us':>9} {'GB/s':>7} "
             f"{'GOPS':>7} {'x NumPy':>8}"]  # fmt: skip
    for row in rows:
        lines.append(
            f"{row['kernel']:10} {row['backend']:8} {row['n']:>5} x {row['k']:>4} "
            f"{row['batch']:>3} {row['us_median']:9.1f} {row['gb_per_s']:7.1f} "
            f"{row['gops']:7.1f} {row['ratio_to_numpy_f32']:8.2f}"
        )
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


if __name__ == "__main__":
    raise SystemExit(main())
