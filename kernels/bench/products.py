"""Products of many tokens, and what a call costs beside its kernel.

Weights are in cache as far as they fit, as when a prompt is read. The integer products are timed
alone, against `torch._int_mm`, which multiplies int8 weights four times as large.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

import kernels
from kernels import cpu
from kernels.bench.memory import SHAPES
from kernels.bench.timing import Case, Row, measure
from kernels.compile import LEVELS, jit
from kernels.levels import amx
from kernels.packing import activation_width

BATCHES = (128, 512)
FIRST_CALL = """
import time
import numpy as np
import kernels
packed, x = np.zeros((16, 16, 64), np.uint8), np.ones((1, 256), np.float32)
began = time.perf_counter()
kernels.ternary_matmul(packed, 1.0, x)
print(time.perf_counter() - began)
"""


def gemm_rows(n_repeats: int = 5) -> list[Row]:
    """Time the integer products of 128 and 512 tokens on every vector level of this machine."""
    rows, rng = [], np.random.default_rng(0)
    for n, k in SHAPES:
        codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
        for batch in BATCHES:
            x_q = rng.integers(-127, 128, (batch, k)).astype(np.int8)
            rows += measure(list(_gemm_cases(codes, x_q)), n_repeats)
    return rows


def _gemm_cases(codes: np.ndarray, x_q: np.ndarray) -> Iterator[Case]:
    (n, k), batch, packed = codes.shape, len(x_q), kernels.pack(codes)
    padded = np.zeros((batch, activation_width(k)), np.int8)
    padded[:, :k] = x_q
    x_sum, out = x_q.sum(axis=1, dtype=np.int32), np.empty((batch, packed.shape[0] * 16), np.int32)
    for name, level in LEVELS.items():
        if name in kernels.backends() and name != "generic":

            def multiply(level: tuple = level) -> None:
                groups = (0, packed.shape[0])
                cpu.accumulate(level, (packed,), padded, x_sum, batch, groups, out)

            yield Case(
                "gemm", "ternary", name, n, k, batch, packed.nbytes, _repeat(multiply), "2bit"
            )
    if "amx" in kernels.backends():
        steps = max(1, n // 32 * (k // 64) * (batch // 32))
        run = _repeat(lambda: _tile_peak(steps))
        yield Case("gemm", "tiles_alone", "amx", n, k, batch, 0, run)
    try:
        import torch
    except ImportError:
        return
    weight, x = torch.from_numpy(codes).t(), torch.from_numpy(x_q)
    run = _repeat(lambda: torch._int_mm(x, weight))
    yield Case("gemm", "int_mm", "torch", n, k, batch, codes.nbytes, run)


@jit
def _tile_peak(n_steps):
    amx.multiply_nothing(n_steps)


def overhead_rows(n_repeats: int = 15) -> list[Row]:
    """Time quantising 4096 activations, the torch operator beside its kernel, and a first call."""
    rng = np.random.default_rng(0)
    n = k = 256  # a product of one microsecond, so that the rest shows
    x = rng.standard_normal((1, k)).astype(np.float32)
    packed = kernels.pack(rng.integers(-1, 2, (n, k)).astype(np.int8))
    scale, backend = np.ones(n, np.float32), kernels.choose_backend()
    scratch = kernels.new_scratch(1, k, n)
    out, matrix = np.empty((1, n), np.float32), ((packed,), scale)

    def product() -> None:
        cpu.linear(LEVELS[backend], matrix, x, 1, (0, n // 16), scratch, out)

    place = Case("overhead", "ternary", backend, n, k, 1, packed.nbytes, _repeat(product), "2bit")
    cases = [place, _quantize_case(rng)]
    try:
        import torch

        from kernels.torch_op import ternary_linear

        tensors = [torch.from_numpy(array) for array in (x, packed, scale)]
        run = _repeat(lambda: ternary_linear(*tensors))
        cases.append(replace(place, kernel="torch_op", run=run))
    except ImportError:
        pass
    rows = measure(cases, n_repeats)
    first = {"kernel": "first_call", "us_median": _first_call_s() * 1e6, "n_repeats": 3}
    return [*rows, rows[0] | first | {"gb_per_s": 0.0, "gops": 0.0}]


def _quantize_case(rng: np.random.Generator) -> Case:
    k = 4096
    x = rng.standard_normal((1, k)).astype(np.float32)
    x_q, act_scale = np.empty((1, k), np.int8), np.empty(1, np.float32)
    x_sum = np.empty(1, np.int32)
    run = _repeat(lambda: cpu.quantize(x, 1, k, x_q, act_scale, x_sum))
    return Case("overhead", "quantize", kernels.choose_backend(), 0, k, 1, x.nbytes, run)


def _first_call_s() -> float:
    """Return the time of the first product after the import, with a warm cache: median of three."""
    command = [sys.executable, "-c", FIRST_CALL]
    times = [
        float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(4)
    ]
    return sorted(times[1:])[1]  # the very first may compile


def _repeat(work: Callable[[], object]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            work()

    return run
