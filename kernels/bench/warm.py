"""Small products in cache, on every backend, beside NumPy and torch: what notebook 07 draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

import kernels
from kernels import cpu
from kernels.bench.timing import Case, Row, measure
from kernels.compile import LEVELS

SHAPES = ((768, 256), (256, 768), (2560, 2560))
BATCHES = (1, 8, 32)


def warm_rows(
    shapes: Iterable[Sequence[int]] = SHAPES,
    batches: Sequence[int] = BATCHES,
    n_repeats: int = 9,
    seed: int = 0,
) -> list[Row]:
    """Time every usable backend on every shape and batch.

    Args:
        shapes: (N, K) of the weights; they stay in cache between calls when they fit.
        batches: tokens multiplied together.

    Returns:
        Rows as `timing.measure` makes them, with ratio_to_numpy_f32 (above 1: faster than NumPy).
        Kernel "ternary" includes quantising the activations and applying the scales.
    """
    rng, rows = np.random.default_rng(seed), []
    for n, k in shapes:
        for batch in batches:
            part = measure(list(warm_cases(n, k, batch, rng)), n_repeats)
            base = next(row["us_median"] for row in part if row["backend"] == "numpy")
            rows += [row | {"ratio_to_numpy_f32": base / row["us_median"]} for row in part]
    return rows


def warm_cases(n: int, k: int, batch: int, rng: np.random.Generator) -> Iterable[Case]:
    """Yield the cases of one shape and batch; each `run(1)` is one product."""
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x = rng.standard_normal((batch, k)).astype(np.float32)
    packed, weight = kernels.pack(codes), codes.astype(np.float32)

    def case(kernel: str, backend: str, n_bytes: int, work: Callable) -> Case:
        def run(count: int) -> object:
            for _ in range(count):
                result = work()
            return result

        packing = "2bit" if kernel == "ternary" else ""
        return Case("warm", kernel, backend, n, k, batch, n_bytes, run, packing)

    transposed = weight.T
    yield case("dense_f32", "numpy", weight.nbytes, lambda: x @ transposed)
    for name, level in LEVELS.items():
        if name in kernels.backends():
            yield case("ternary", name, packed.nbytes, _ternary_call(level, packed, x, n))
    tiles = np.ascontiguousarray(
        np.resize(weight, (-(-n // 16) * 16, k)).reshape(-1, 16, k).transpose(0, 2, 1)
    )
    out = np.empty((batch, len(tiles) * 16), np.float32)
    yield case(
        "dense_f32",
        "numba",
        weight.nbytes,
        lambda: cpu.dense(tiles, x, batch, k, (0, len(tiles)), out),
    )
    try:
        import torch
    except ImportError:
        return
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        w, a = torch.from_numpy(weight).to(dtype), torch.from_numpy(x).to(dtype)
        work = lambda w=w, a=a: torch.nn.functional.linear(a, w)  # noqa: E731
        yield case(f"dense_{name}", "torch", w.nbytes, work)


def _ternary_call(level, packed: np.ndarray, x: np.ndarray, n: int) -> Callable[[], np.ndarray]:
    """Return what the decode program does for one matrix: quantise, accumulate, scale."""
    (B, K), rows = x.shape, packed.shape[0] * 16
    scratch = kernels.new_scratch(B, K, rows)
    out, matrix = np.empty((B, rows), np.float32), ((packed,), np.ones(n, np.float32))

    def run() -> np.ndarray:
        cpu.linear(level, matrix, x, B, (0, packed.shape[0]), scratch, out)
        return out[:, :n]

    return run
