"""ggml's ternary formats, TQ2_0 and TQ1_0, from memory beside our kernels.

ggml comes with llama-cpp-python (`pip install .[peers]`, which compiles it for this machine). Its
dot product of a row is called for every row from a jitted loop, as llama.cpp's own loop does on
one thread, after its own quantisation of the activations.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from kernels.bench import memory
from kernels.bench.timing import Case, Row, measure

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
FORMATS = {"tq2_0": 66, "tq1_0": 54}  # bytes of 256 weights
_ACTIVATION_BYTES = 292  # of 256 activations, as ggml quantises them


@functools.cache
def ggml() -> ctypes.CDLL | None:
    """Return ggml's CPU library, or None when llama-cpp-python is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    paths = sorted((Path(found.origin).parent / "lib").glob("libggml-cpu.*"))
    if not paths:
        return None
    library = ctypes.CDLL(str(paths[0]))
    library.ggml_cpu_init()
    return library


def peer_rows(n_repeats: int = 9) -> list[Row]:
    """Time ggml's formats and our packings from memory; no rows when ggml is not there."""
    if ggml() is None:
        return []
    rows = []
    for n, k in memory.SHAPES:
        cases = [ggml_case(n, k, name) for name in FORMATS]
        for packing, backend in (("2bit", None), ("base3", None), ("2bit", "avx2")):
            ring = memory.Ring(n, k, packing, memory.COLD_MB)
            cases.append(memory.product_case(ring, "peer", backend=backend))
        rows += measure(cases, n_repeats)
    return rows


def ggml_case(n: int, k: int, name: str) -> Case:
    """Return the product of one token by a ring of weights in one of ggml's formats."""
    row_bytes = k // 256 * FORMATS[name]
    n_copies = max(1, round(memory.COLD_MB * 1e6 / (n * row_bytes)))
    stack = np.random.default_rng(0).integers(0, 121, (n_copies, n, row_bytes)).astype(np.uint8)
    x = np.random.default_rng(1).standard_normal(k).astype(np.float32)
    multiply, first = ggml_product(name), [0]
    out = np.empty(n, np.float32)

    def run(count: int) -> None:
        multiply(stack, x, np.array([first[0], count]), out)
        first[0] = (first[0] + count) % n_copies

    set_mb = stack.nbytes / 1e6
    return Case("peer", name, "ggml", n, k, 1, n * row_bytes, run, name, set_mb=set_mb)


@functools.cache
def ggml_product(name: str) -> Callable:
    """Return a jitted loop over weights (copies, n, row bytes): place is the first and how many."""
    library = ggml()
    dot = getattr(library, f"ggml_vec_dot_{name}_q8_K")
    dot.argtypes = [ctypes.c_int, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, ctypes.c_int]
    dot.restype = None
    quantize = library.quantize_row_q8_K
    quantize.argtypes, quantize.restype = [_POINTER, _POINTER, ctypes.c_int64], None

    @numba.njit(nogil=True)
    def multiply(stack, x, place, out):
        k, row_bytes = len(x), stack.shape[2]
        x_q = np.empty(k // 256 * _ACTIVATION_BYTES, np.uint8)
        for i in range(place[0], place[0] + place[1]):
            quantize(x.ctypes.data, x_q.ctypes.data, k)
            at = stack[i % len(stack)].ctypes.data
            for row in range(stack.shape[1]):
                target = out.ctypes.data + 4 * row
                dot(k, target, 0, at + row * row_bytes, 0, x_q.ctypes.data, 0, 1)

    return multiply
