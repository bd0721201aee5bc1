"""Triton kernels of training: absmean codes of weights, rows to int8, and the int8 product.

Importing this module needs triton, which CUDA builds of torch bring; `linear.py` imports it only
for tensors on a GPU. Without one the tests run these kernels in Triton's interpreter, where int8
products are exact, and compile them for six architectures. Only what 3.6 to 3.9 have is used.

`M` rows (tokens), `N` outputs, `K` inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLAIN, NORM, SWIGLU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_HALF_TO_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits of a fraction


@triton.jit
def _nearest(x):
    return (x + _HALF_TO_EVEN) - _HALF_TO_EVEN


@triton.jit
def sum_magnitudes(weight, sums, n, BLOCK: tl.constexpr):
    """Write the sum of |weight| of each block of BLOCK numbers, in float64."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(weight + at, mask=at < n, other=0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(tl.abs(values), axis=0))


@triton.jit
def ternary_codes(weight, scale, codes, n, BLOCK: tl.constexpr):
    """Write round(weight / scale) within -1 to 1 as int8."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(weight + at, mask=at < n, other=0.0).to(tl.float32)
    rounded = _nearest(tl.div_rn(values, tl.load(scale) + tl.zeros_like(values)))
    clamped = tl.minimum(tl.maximum(rounded, -1.0), 1.0)
    tl.store(codes + at, clamped.to(tl.int8), mask=at < n)


@triton.jit
def rows_to_int8(
    x, other, codes, act_scale, n, stride, eps, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """Quantise one row: as it is, after an RMSNorm (other: its weight) or SwiGLU (other: up)."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < n
    values = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == NORM:
        mean = tl.sum(values * values, axis=0) / n
        inverse = 1.0 / tl.sqrt_rn(mean + eps)
        values = values * inverse * tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == SWIGLU:
        up = tl.load(other + row * stride + at, mask=inside, other=0.0).to(tl.float32)
        values = values / (1.0 + tl.exp(-values)) * up
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), axis=0), 1e-5), 127.0)
    rounded = _nearest(tl.div_rn(values, scale + tl.zeros_like(values)))
    tl.store(codes + row * n + at, rounded.to(tl.int8), mask=inside)
    tl.store(act_scale + row, scale)


@triton.jit
def int8_product(
    a, b, a_scale, b_scale, out, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Write a (M, K) times b (N, K) transposed, both int8 and contiguous.

    SCALED: times a_scale (M,) and the one number b_scale, else the int32 sums. Programs that follow
    each other share rows of b: eight blocks of rows of a for each of its columns.
    """
    n_m, n_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (8 * n_n)
    n_rows = tl.minimum(n_m - group * 8, 8)
    place = tl.program_id(0) % (8 * n_n)
    rows = (group * 8 + place % n_rows).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (place // n_rows).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    a_at = a + (rows % M)[:, None] * K + inputs[None, :]
    b_at = b + (columns % N)[None, :] * K + inputs[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in range(0, K, BLOCK_K):
        a_part = tl.load(a_at + k, mask=inputs[None, :] < K - k, other=0)
        b_part = tl.load(b_at + k, mask=inputs[:, None] < K - k, other=0)
        sums = tl.dot(a_part, b_part, acc=sums, out_dtype=tl.int32)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    out_at = out + rows[:, None] * N + columns[None, :]
    if SCALED:
        scale = tl.load(a_scale + rows, mask=rows < M, other=0.0) * tl.load(b_scale)
        result = sums.to(tl.float32) * scale[:, None]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out_at, sums, mask=inside)
