"""Jitted CPU kernels: quantise, ternary product, scales, and the dense product beside them.

In: arrays and counts; out: written into the last argument. Nothing is allocated or checked here
(`kernels/__init__.py` does that). One source serves every level: `level` selects the instructions
(see compile.py). Measured on one core of an AMD EPYC (family 25, AVX2 visible): 180 to 225 GOPS at
level "avx2" and 70 to 78 at "generic"; float32 BLAS gives 40 to 60 (`python -m kernels.bench`).

`B` tokens, `N` output rows, `K` inputs; rows and inputs padded to 16 as in packing.py.
"""

from __future__ import annotations

import numpy as np

from kernels import simd
from kernels.compile import LEVELS, inline, jit
from kernels.levels import amx, base3, portable, vnni

_VNNI, _AMX = len(LEVELS["avx512vnni"]), len(LEVELS["amx"])
_PART = 256  # row groups whose sums are scaled together: 16 KB of sums
_ABS_BITS = np.int32(0x7FFFFFFF)
_INFINITY_BITS = np.int32(0x7F800000)
_ROUNDER, _ROUNDER_BITS = np.float32(3 << 22), np.int32(0x4B400000)  # a number and its bits


@jit
def linear(level, matrix, x, n_tokens, groups, scratch, out):
    """Write n_tokens rows of float32 x times a ternary weight to out; False when x is not finite.

    `matrix` is the weights as `accumulate` takes them and weight_scale float32 (N,), `groups` the
    row groups to compute. `scratch` is x_q, act_scale and x_sum as `quantize` writes them, and
    int32 sums (B, N padded, or 4096 when that is less); out float32 (B, N or wider).

    Row groups are taken a few at a time, so that the sums stay in the nearest cache: a long vector
    of sums would go to memory and back, 2 % of the bytes at K = 4096.
    """
    weights, weight_scale = matrix
    x_q, act_scale, x_sum, sums = scratch
    finite = quantize(x, n_tokens, x.shape[1], x_q, act_scale, x_sum)
    n_groups = groups[1] - groups[0]
    n_parts = max(1, (n_groups + _PART - 1) // _PART)
    for part in range(n_parts):
        first = groups[0] + n_groups * part // n_parts
        last = groups[0] + n_groups * (part + 1) // n_parts
        some = (weights[0][first:last],) + weights[1:]  # noqa: RUF005, which numba lacks
        accumulate(level, some, x_q, x_sum, n_tokens, (0, last - first), sums)
        rows = (first * 16, min(last * 16, len(weight_scale)))
        apply_scales(sums, act_scale, weight_scale, n_tokens, rows, out)
    return finite


@jit
def quantize(x, n_tokens, n_inputs, x_q, act_scale, x_sum):
    """Quantise `n_tokens` rows of float32 x to int8; see reference.quantize_activations.

    x_q (B, K padded) gets zeros behind `n_inputs`; x_sum (B,) int32 the sum of each row of x_q.
    The largest magnitude is taken over the bits, because an integer maximum vectorises and puts
    NaN and infinity on top: returns False when a row holds one. numba widens what it computes
    from int32 to int64, and the loop's vectors with it: narrowing at once made this 1.4 times
    faster (0.7 us for K = 4096; multiplying by 1 / scale and correcting gained only 0.1 us more).
    """
    finite = True
    for token in range(n_tokens):
        row, codes = x[token], x_q[token]
        bits = row.view(np.int32)
        largest = np.int32(0)
        for k in range(n_inputs):
            largest = max(largest, np.int32(bits[k] & _ABS_BITS))
        finite = finite and largest < _INFINITY_BITS
        absmax = np.int32(largest).view(np.float32)
        scale = max(absmax, np.float32(1e-5)) / np.float32(127)
        total = np.int32(0)
        for k in range(n_inputs):
            code = _nearest_integer(row[k] / scale)
            codes[k] = code
            total = np.int32(total + code)
        codes[n_inputs:] = 0
        act_scale[token] = scale
        x_sum[token] = total
    return finite


@inline
def _nearest_integer(value):
    """Round half to even: adding 1.5 * 2^23 leaves no fraction bits (for |value| below 2^22)."""
    return np.int32(np.float32(value + _ROUNDER).view(np.int32) - _ROUNDER_BITS)


@jit
def accumulate(level, weights, x_q, x_sum, n_tokens, groups, out):
    """Write int32 dot products of the row groups from groups[0] to groups[1] to out (B, N padded).

    `weights` is (packed,) for codes in 2 bits, and (packed, slab, sums) for codes in base 3: slab
    uint8 (at least 1, K/16, 64) and sums int32 (B, 16 * len(slab)) are scratch, which one token
    at level "avx512vnni" leaves alone. x_q and out may be wider than K and N need. The
    lengths of `level` and `weights` are known when this is compiled, and numba drops the branches
    not taken before it compiles what they call.
    """
    if len(weights) == 1:
        _accumulate_2bit(level, weights[0], x_q, x_sum, n_tokens, groups, out)
    else:
        _accumulate_base3(level, weights, x_q, x_sum, n_tokens, groups, out)


@jit
def _accumulate_2bit(level, packed, x_q, x_sum, n_tokens, groups, out):
    if len(level) == _AMX:
        amx.accumulate(packed, x_q, x_sum, n_tokens, groups, out)
    elif len(level) == _VNNI:
        vnni.accumulate(packed, x_q, x_sum, (0, n_tokens), groups, out)
    else:
        portable.accumulate(level, packed, x_q, x_sum, n_tokens, groups, out)


@jit
def _accumulate_base3(level, weights, x_q, x_sum, n_tokens, groups, out):
    packed, slab, sums = weights
    if n_tokens == 1 and len(level) >= _VNNI:
        base3.one_token(packed, x_q, x_sum, groups, out)
        return
    for first in range(groups[0], groups[1], len(slab)):
        part = (np.int64(0), min(len(slab), groups[1] - first))
        base3.repack(packed, (first, first + part[1]), slab)
        _accumulate_2bit(level, slab, x_q, x_sum, n_tokens, part, sums)
        for token in range(n_tokens):
            target, source = out[token, first * 16 :], sums[token]
            for n in range(part[1] * 16):
                target[n] = source[n]


@jit
def apply_scales(accumulators, act_scale, weight_scale, n_tokens, rows, out):
    """Write accumulator * (act_scale * weight_scale) of the rows from rows[0] to rows[1].

    The first accumulator of each token is that of rows[0].
    """
    for token in range(n_tokens):
        act, sums = act_scale[token], accumulators[token]
        target, scale = out[token, rows[0] : rows[1]], weight_scale[rows[0] : rows[1]]
        for n in range(rows[1] - rows[0]):
            target[n] = np.float32(sums[n]) * (act * scale[n])


@jit
def dense(weight, x, n_tokens, n_inputs, groups, out):
    """Write float32 products to out (B, N padded); weight is float32 or int16 (N / 16, K, 16).

    `groups` are the row groups to compute. A product is summed in input order whatever the batch,
    so a row's result does not depend on the rows beside it.
    """
    token, last = np.int64(0), np.int64(groups[1] - 1)
    while token + 4 <= n_tokens:
        for group in range(groups[0], groups[1]):
            _dense_four_tokens(weight, group, x, token, n_inputs, out)
        token += 4
    while token + 2 <= n_tokens:
        for group in range(groups[0], groups[1], 4):
            _dense_two_tokens(weight, (np.int64(group), last), x, token, n_inputs, out)
        token += 2
    while token < n_tokens:
        for group in range(groups[0], groups[1], 4):
            _dense_one_token(weight, (np.int64(group), last), x, token, n_inputs, out)
        token += 1


@inline
def _dense_four_tokens(weight, group, x, token, n_inputs, out):
    sum_0, sum_1 = simd.zeros_f32(), simd.zeros_f32()
    sum_2, sum_3 = simd.zeros_f32(), simd.zeros_f32()
    at = group * weight.shape[1] * 16
    for k in range(n_inputs):
        row = simd.load_numbers(weight, at + k * 16)
        sum_0 = simd.multiply_add_f32(x[token, k], row, sum_0)
        sum_1 = simd.multiply_add_f32(x[token + 1, k], row, sum_1)
        sum_2 = simd.multiply_add_f32(x[token + 2, k], row, sum_2)
        sum_3 = simd.multiply_add_f32(x[token + 3, k], row, sum_3)
    rows, out_at = out.shape[1], token * out.shape[1] + group * 16
    simd.store_f32(out, out_at, sum_0)
    simd.store_f32(out, out_at + rows, sum_1)
    simd.store_f32(out, out_at + 2 * rows, sum_2)
    simd.store_f32(out, out_at + 3 * rows, sum_3)


@inline
def _dense_one_token(weight, groups, x, token, n_inputs, out):
    """Four groups at a time hide the latency of the multiply-add; the last may be done again."""
    first, last = groups
    second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    sum_0, sum_1 = simd.zeros_f32(), simd.zeros_f32()
    sum_2, sum_3 = simd.zeros_f32(), simd.zeros_f32()
    size = weight.shape[1] * 16
    for k in range(n_inputs):
        value, at = x[token, k], k * 16
        sum_0 = simd.multiply_add_f32(value, simd.load_numbers(weight, first * size + at), sum_0)
        sum_1 = simd.multiply_add_f32(value, simd.load_numbers(weight, second * size + at), sum_1)
        sum_2 = simd.multiply_add_f32(value, simd.load_numbers(weight, third * size + at), sum_2)
        sum_3 = simd.multiply_add_f32(value, simd.load_numbers(weight, fourth * size + at), sum_3)
    out_at = token * out.shape[1]
    simd.store_f32(out, out_at + first * 16, sum_0)
    simd.store_f32(out, out_at + second * 16, sum_1)
    simd.store_f32(out, out_at + third * 16, sum_2)
    simd.store_f32(out, out_at + fourth * 16, sum_3)


@inline
def _dense_two_tokens(weight, groups, x, token, n_inputs, out):
    """Do what `_dense_one_token` does for two, such as heads that share their keys."""
    first, last = groups
    second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    sum_0, sum_1, sum_2, sum_3 = (
        simd.zeros_f32(), simd.zeros_f32(), simd.zeros_f32(), simd.zeros_f32(),
    )  # fmt: skip
    sum_4, sum_5, sum_6, sum_7 = (
        simd.zeros_f32(), simd.zeros_f32(), simd.zeros_f32(), simd.zeros_f32(),
    )  # fmt: skip
    size = weight.shape[1] * 16
    for k in range(n_inputs):
        value_0, value_1, at = x[token, k], x[token + 1, k], k * 16
        row_0 = simd.load_numbers(weight, first * size + at)
        row_1 = simd.load_numbers(weight, second * size + at)
        row_2 = simd.load_numbers(weight, third * size + at)
        row_3 = simd.load_numbers(weight, fourth * size + at)
        sum_0 = simd.multiply_add_f32(value_0, row_0, sum_0)
        sum_1 = simd.multiply_add_f32(value_0, row_1, sum_1)
        sum_2 = simd.multiply_add_f32(value_0, row_2, sum_2)
        sum_3 = simd.multiply_add_f32(value_0, row_3, sum_3)
        sum_4 = simd.multiply_add_f32(value_1, row_0, sum_4)
        sum_5 = simd.multiply_add_f32(value_1, row_1, sum_5)
        sum_6 = simd.multiply_add_f32(value_1, row_2, sum_6)
        sum_7 = simd.multiply_add_f32(value_1, row_3, sum_7)
    for i, sums in enumerate(((sum_0, sum_1, sum_2, sum_3), (sum_4, sum_5, sum_6, sum_7))):
        out_at = (token + i) * out.shape[1]
        simd.store_f32(out, out_at + first * 16, sums[0])
        simd.store_f32(out, out_at + second * 16, sums[1])
        simd.store_f32(out, out_at + third * 16, sums[2])
        simd.store_f32(out, out_at + fourth * 16, sums[3])
