"""Ternary arithmetic: packing, matrix products, and the choice of a backend.

The public door of the package and the only place that checks arguments: the kernels behind it
check nothing. All backends return the same integers; see reference.py for the specification.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kernels import cpu, reference
from kernels.compile import LEVELS, missing_features
from kernels.cuda.driver import why_unavailable
from kernels.packing import (
    MAX_K,
    PACKINGS,
    activation_width,
    check_packed,
    check_packed_shape,
    pack,
    packed_shape,
    unpack,
)
from kernels.packing import describe as _describe_array

__all__ = [
    "MAX_K",
    "PACKINGS",
    "accumulate",
    "activation_width",
    "backends",
    "best_level",
    "check_packed",
    "choose_backend",
    "describe",
    "pack",
    "packed_shape",
    "quantize_activations",
    "ternary_matmul",
    "unpack",
]

_SLAB = 8  # row groups repacked at a time: 128 KiB at K = 4096, for the nearer caches
_NOTES = {
    "reference": "NumPy, the specification; slow",
    "generic": "numba, portable vector code for any CPU",
    "avx2": "numba with AVX2 byte dot products",
    "avx512vnni": "numba with AVX-512 VNNI byte dot products",
    "amx": "numba with AMX tiles for 32 tokens and more, else VNNI",
    "cuda": "a GPU's integer tensor cores; takes over where tensors are on one",
}


def backends() -> tuple[str, ...]:
    """Return the backends for arrays in memory that this machine can run, slowest first."""
    return ("reference", *(level for level in LEVELS if not missing_features(level)))


def choose_backend(name: str | None = None) -> str:
    """Return the backend to use: the argument, else NANOCHAT_KERNEL (for tests), else the best.

    Raises:
        ValueError: no such backend, or this machine lacks what it needs.
    """
    return _usable(name or os.environ.get("NANOCHAT_KERNEL") or "auto")


def best_level(at_most: str = "amx") -> str:
    """Return the best of `LEVELS` that this machine has, up to the one named; the least it has.

    NANOCHAT_KERNEL (for tests) decides where it is set; the reference is no level, and gives the
    least.

    Raises:
        ValueError: NANOCHAT_KERNEL names what is not there, or there is no level `at_most`.
    """
    if at_most not in LEVELS:
        raise ValueError(f"there is no kernel level {at_most!r}; known: {', '.join(LEVELS)}")
    if os.environ.get("NANOCHAT_KERNEL"):
        forced = choose_backend()
        return forced if forced in LEVELS else "generic"
    most = len(LEVELS[at_most])
    return [name for name in backends() if name in LEVELS and len(LEVELS[name]) <= most][-1]


@functools.cache
def _usable(wanted: str) -> str:
    if wanted == "auto":
        return backends()[-1]
    if wanted not in _NOTES:
        raise ValueError(f"there is no kernel backend {wanted!r}; known: {', '.join(_NOTES)}")
    if wanted == "cuda" and _missing("cuda"):
        raise ValueError(f"kernel backend 'cuda' cannot run here: {_missing('cuda')}")
    if wanted == "cuda":
        return wanted
    if wanted not in backends():
        lacking = ", ".join(missing_features(wanted))
        raise ValueError(
            f"kernel backend {wanted!r} needs {lacking}, which this CPU lacks; "
            f"usable here: {', '.join(backends())}"
        )
    return wanted


def _missing(name: str) -> str:
    """Return what a backend needs and this machine lacks, empty when nothing."""
    if name == "cuda":
        return why_unavailable()
    return "" if name == "reference" else ", ".join(missing_features(name))


def describe() -> list[dict[str, str | bool]]:
    """Return one row per backend: name, whether it is usable and chosen, and what it is."""
    chosen = choose_backend()
    return [
        {
            "backend": name,
            "usable": not _missing(name),
            "chosen": name == chosen,
            "missing": _missing(name),
            "note": note,
        }
        for name, note in _NOTES.items()
    ]


def ternary_matmul(
    packed: np.ndarray,
    weight_scale: float | np.ndarray,
    x: np.ndarray,
    *,
    n_rows: int | None = None,
    packing: str = "2bit",
    backend: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Multiply activations by a packed ternary weight, quantising each token to int8 first.

    Args:
        packed: uint8 (ceil(N/16), ceil(K/16), 64) from `pack`; with a scale for every K/G inputs
            (G, ceil(N/16), ceil(K/G/16), 64), the columns of each group packed by themselves.
        weight_scale: one number, or float32 (N,) with one per row; float32 (G, N) for groups.
        x: float32 (B, K), C-contiguous, finite; B = 1 is a matrix-vector product.
        n_rows: N; by default the length of a per-row scale, else all packed rows.
        packing: "2bit", or "base3" (see packing.py; K then counts in 20, not 16).
        backend: see `choose_backend`.
        threads: row groups are split over this many threads.

    Returns:
        float32 (B, N).

    Raises:
        ValueError: dtype, shape, strides or values are not as above.
    """
    if not isinstance(packed, np.ndarray) or packed.ndim not in (3, 4) or 0 in packed.shape:
        raise ValueError(
            "packed must be uint8 (N/16, K/16, 64), or (G, N/16, K/G/16, 64) for G groups, and "
            f"not empty, found {_describe_array(packed)}"
        )
    _check_activations(x, np.float32)
    groups = packed if packed.ndim == 4 else packed[None]
    scales = _checked_scale(weight_scale, n_rows, len(groups) if packed.ndim == 4 else None)
    n, (G, K) = n_rows or scales.shape[1], (len(groups), x.shape[1])
    if scales.shape[1] == 1:
        n = n_rows or groups.shape[1] * 16
        scales = np.repeat(scales, n, axis=1)
    if K % G:
        raise ValueError(f"x has {K} inputs, which do not divide into the {G} groups of packed")
    for part in groups:
        check_packed_shape(part, n, K // G, packing)
    name = choose_backend(backend)
    x_q, act_scale = quantize_activations(x, backend=name)
    out = np.zeros((len(x), n), np.float32)
    for part, scale, codes in zip(groups, scales, np.split(x_q, G, axis=1), strict=True):
        arguments = {"n_rows": n, "packing": packing, "backend": name, "threads": threads}
        sums = accumulate(part, np.ascontiguousarray(codes), **arguments)
        out += reference.apply_scales(sums, act_scale, scale)
    return out


def quantize_activations(
    x: np.ndarray, *, backend: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 (B, K) and act_scale float32 (B,) of finite float32 activations (B, K)."""
    _check_activations(x, np.float32)
    if choose_backend(backend) == "reference":
        if not np.isfinite(x).all():
            raise ValueError("x holds NaN or infinity")
        return reference.quantize_activations(x)
    B, K = x.shape
    x_q, act_scale = np.empty((B, K), np.int8), np.empty(B, np.float32)
    if not cpu.quantize(x, B, K, x_q, act_scale, np.empty(B, np.int32)):
        raise ValueError("x holds NaN or infinity")
    return x_q, act_scale


def accumulate(
    packed: np.ndarray,
    x_q: np.ndarray,
    *,
    n_rows: int,
    packing: str = "2bit",
    backend: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Return the int32 (B, n_rows) products of int8 activations (B, K) and packed codes.

    `packing`, `backend` and `threads` as in `ternary_matmul`.
    """
    _check_activations(x_q, np.int8)
    B, K = x_q.shape
    check_packed_shape(packed, n_rows, K, packing)
    name = choose_backend(backend)
    if name == "reference":
        return reference.accumulate(unpack(packed, n_rows, K, packing), x_q)
    if name == "cuda":
        return _accumulate_on_gpu(packed, x_q, n_rows, packing)
    padded = np.zeros((B, activation_width(K)), np.int8)
    padded[:, :K] = x_q
    x_sum, out = x_q.sum(axis=1, dtype=np.int32), np.empty((B, packed.shape[0] * 16), np.int32)

    def multiply(first: int, last: int) -> None:
        weights = with_scratch(packed, packing, K, B)
        cpu.accumulate(LEVELS[name], weights, padded, x_sum, B, (first, last), out)

    in_parts(multiply, packed.shape[0], threads)
    return out[:, :n_rows]


def _accumulate_on_gpu(
    packed: np.ndarray, x_q: np.ndarray, n_rows: int, packing: str
) -> np.ndarray:
    from kernels.cuda import tensors  # which imports torch

    if packing != "2bit":
        packed = pack(unpack(packed, n_rows, x_q.shape[1], packing))
    return tensors.accumulate(packed, x_q, n_rows)


def with_scratch(packed: np.ndarray, packing: str, k: int, n_tokens: int) -> tuple:
    """Return what `cpu.accumulate` takes as weights: for "base3" with scratch, of one thread."""
    if packing == "2bit":
        return (packed,)
    n_groups = min(_SLAB, packed.shape[0])
    slab = np.empty((n_groups, *packed_shape(1, k)[1:]), np.uint8)
    return packed, slab, np.empty((n_tokens, n_groups * 16), np.int32)


def new_scratch(n_tokens: int, k: int, n_rows: int) -> tuple[np.ndarray, ...]:
    """Return the scratch of `cpu.linear` for one thread: x_q, act_scale, x_sum and sums."""
    return (
        np.empty((n_tokens, activation_width(k)), np.int8),
        np.empty(n_tokens, np.float32),
        np.empty(n_tokens, np.int32),
        np.empty((n_tokens, n_rows), np.int32),
    )


def in_parts(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """Call work(first, last) for as many parts of range(n) as there are threads, side by side."""
    if threads <= 1:
        work(0, n)
        return
    borders = np.linspace(0, n, threads + 1).astype(int).tolist()
    jobs = [_pool(threads).submit(work, *part) for part in itertools.pairwise(borders)]
    for job in jobs:
        job.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


def _check_activations(x: np.ndarray, dtype: type) -> None:
    name = np.dtype(dtype).name
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be {name} (B, K), not empty, found {_describe_array(x)}")
    if not (x.flags.c_contiguous and x.flags.aligned):
        raise ValueError("x must be C-contiguous and aligned; use np.ascontiguousarray")


def _checked_scale(
    weight_scale: float | np.ndarray, n_rows: int | None, n_groups: int | None
) -> np.ndarray:
    """Return the scales as float32 (G, N) or (G, 1)."""
    scale = np.asarray(weight_scale, dtype=np.float32)
    rows = np.atleast_1d(scale)
    wanted = f"one number or float32 ({n_rows or 'N'},)"
    if n_groups is not None:
        wanted = f"float32 ({n_groups}, {n_rows or 'N'})"
        is_sound = scale.ndim == 2 and len(scale) == n_groups
    else:
        is_sound, rows = rows.ndim == 1, rows[None]
    if not is_sound or (n_rows is not None and rows.shape[-1] not in (1, n_rows)):
        raise ValueError(f"weight_scale must be {wanted}, found {scale.shape}")
    if not np.isfinite(scale).all():
        raise ValueError("weight_scale holds NaN or infinity")
    return rows
