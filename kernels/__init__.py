"""Ternary arithmetic on the CPU: packing, matrix products, and the choice of a backend.

The public door of the package and the only place that checks arguments: the kernels behind it
check nothing. All backends return the same integers; see reference.py for the specification.
"""

from __future__ import annotations

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kernels import cpu, reference
from kernels.compile import LEVELS, missing_features
from kernels.packing import (
    MAX_K,
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
    "accumulate",
    "activation_width",
    "backends",
    "check_packed",
    "choose_backend",
    "describe",
    "pack",
    "packed_shape",
    "quantize_activations",
    "ternary_matmul",
    "unpack",
]

_NOTES = {
    "reference": "NumPy, the specification; slow",
    "generic": "numba, portable vector code for any CPU",
    "avx2": "numba with AVX2 byte dot products",
    "avx512vnni": "numba with AVX-512 VNNI byte dot products",
    "amx": "numba with AMX tiles for 32 tokens and more, else VNNI",
}


def backends() -> tuple[str, ...]:
    """Return the backends that this machine can run, slowest first."""
    return ("reference", *(level for level in LEVELS if not missing_features(level)))


def choose_backend(name: str | None = None) -> str:
    """Return the backend to use: the argument, else NANOCHAT_KERNEL (for tests), else the best.

    Raises:
        ValueError: no such backend, or this machine lacks what it needs.
    """
    wanted = name or os.environ.get("NANOCHAT_KERNEL") or "auto"
    if wanted == "auto":
        return backends()[-1]
    if wanted not in _NOTES:
        raise ValueError(f"there is no kernel backend {wanted!r}; known: {', '.join(_NOTES)}")
    if wanted not in backends():
        lacking = ", ".join(missing_features(wanted))
        raise ValueError(
            f"kernel backend {wanted!r} needs {lacking}, which this CPU lacks; "
            f"usable here: {', '.join(backends())}"
        )
    return wanted


def describe() -> list[dict[str, str | bool]]:
    """Return one row per backend: name, whether it is usable and chosen, and what it is."""
    chosen = choose_backend()
    return [
        {
            "backend": name,
            "usable": name in backends(),
            "chosen": name == chosen,
            "missing": "" if name == "reference" else ", ".join(missing_features(name)),
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
    backend: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Multiply activations by a packed ternary weight, quantising each token to int8 first.

    Args:
        packed: uint8 (ceil(N/16), ceil(K/16), 64) from `pack`.
        weight_scale: one number, or float32 (N,) with one scale per row.
        x: float32 (B, K), C-contiguous, finite; B = 1 is a matrix-vector product.
        n_rows: N; by default the length of a per-row scale, else all packed rows.
        backend: see `choose_backend`.
        threads: row groups are split over this many threads.

    Returns:
        float32 (B, N).

    Raises:
        ValueError: dtype, shape, strides or values are not as above.
    """
    scale = _checked_scale(weight_scale, n_rows)
    if not isinstance(packed, np.ndarray) or packed.ndim != 3:
        raise ValueError(f"packed must be uint8 (N/16, K/16, 64), found {_describe_array(packed)}")
    n = n_rows or (len(scale) if len(scale) > 1 else packed.shape[0] * 16)
    _check_activations(x, np.float32)
    check_packed_shape(packed, n, x.shape[1])
    name = choose_backend(backend)
    x_q, act_scale = quantize_activations(x, backend=name)
    products = accumulate(packed, x_q, n_rows=n, backend=name, threads=threads)
    return reference.apply_scales(products, act_scale, scale)


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
    backend: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Return the int32 (B, n_rows) products of int8 activations (B, K) and packed codes."""
    _check_activations(x_q, np.int8)
    B, K = x_q.shape
    check_packed_shape(packed, n_rows, K)
    name = choose_backend(backend)
    if name == "reference":
        return reference.accumulate(unpack(packed, n_rows, K), x_q)
    padded = np.zeros((B, activation_width(K)), np.int8)
    padded[:, :K] = x_q
    out = np.empty((B, packed.shape[0] * 16), np.int32)
    arguments = (LEVELS[name], packed, padded, x_q.sum(axis=1, dtype=np.int32), B)
    borders = np.linspace(0, packed.shape[0], max(1, threads) + 1).astype(int).tolist()
    if threads <= 1:
        cpu.accumulate(*arguments, (0, packed.shape[0]), out)
    else:
        parts = itertools.pairwise(borders)
        jobs = [_pool(threads).submit(cpu.accumulate, *arguments, part, out) for part in parts]
        for job in jobs:
            job.result()
    return out[:, :n_rows]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


def _check_activations(x: np.ndarray, dtype: type) -> None:
    name = np.dtype(dtype).name
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be {name} (B, K), not empty, found {_describe_array(x)}")
    if not (x.flags.c_contiguous and x.flags.aligned):
        raise ValueError("x must be C-contiguous and aligned; use np.ascontiguousarray")


def _checked_scale(weight_scale: float | np.ndarray, n_rows: int | None) -> np.ndarray:
    scale = np.atleast_1d(np.asarray(weight_scale, dtype=np.float32))
    if scale.ndim != 1 or (n_rows is not None and len(scale) not in (1, n_rows)):
        raise ValueError(
            f"weight_scale must be one number or float32 ({n_rows or 'N'},), found {scale.shape}"
        )
    if not np.isfinite(scale).all():
        raise ValueError("weight_scale holds NaN or infinity")
    return scale
