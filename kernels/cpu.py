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
from kernels.compile import inline, jit

# Blocks of 16 inputs summed in int16: fields 1 and 3 give at most 4096 a block, so 8 * 4096 just
# fits (-32768 is reached when every code is +1 and every activation -128).
_INT16_BLOCKS = 8
_ABS_BITS = np.int32(0x7FFFFFFF)
_INFINITY_BITS = np.int32(0x7F800000)


@jit
def quantize(x, n_tokens, n_inputs, x_q, act_scale, x_sum):
    """Quantise `n_tokens` rows of float32 x to int8; see reference.quantize_activations.

    x_q (B, K padded) gets zeros behind `n_inputs`; x_sum (B,) int32 the sum of each row of x_q.
    The largest magnitude is taken over the bits, because an integer maximum vectorises and puts
    NaN and infinity on top: returns False when a row holds one.
    """
    finite = True
    for token in range(n_tokens):
        row = x[token]
        bits = row.view(np.int32)
        largest = np.int32(0)
        for k in range(n_inputs):
            largest = max(largest, bits[k] & _ABS_BITS)
        finite = finite and largest < _INFINITY_BITS
        absmax = np.int32(largest).view(np.float32)
        scale = max(absmax, np.float32(1e-5)) / np.float32(127)
        codes = x_q[token]
        total = np.int32(0)
        for k in range(n_inputs):
            code = np.int32(np.rint(row[k] / scale))
            codes[k] = code
            total += code
        codes[n_inputs:] = 0
        act_scale[token] = scale
        x_sum[token] = total
    return finite


@jit
def accumulate(level, packed, x_q, x_sum, n_tokens, groups, out):
    """Write int32 dot products of the row groups from groups[0] to groups[1] to out (B, N padded).

    x_q and out may be wider than K and N need.
    """
    for group in range(groups[0], groups[1]):
        token = np.int64(0)  # not a literal, for which numba would compile the callees twice
        while token + 4 <= n_tokens:
            for half_group in range(2 * group, 2 * group + 2):
                _four_tokens(level, packed, half_group, x_q, x_sum, token, out)
            token += 4
        while token < n_tokens:
            _one_token(level, packed, group, x_q, x_sum, token, out)
            token += 1


@inline
def _block(level, weights, x_q, at, even, odd):
    """Add 8 rows x 16 inputs to int16 sums: fields 0, 2 to `even`, 4 times fields 1, 3 to `odd`."""
    upper = simd.upper_fields(weights)
    field_0, field_1 = simd.low_field(weights), simd.next_field(weights)
    field_2, field_3 = simd.low_field(upper), simd.next_field(upper)
    x_0, x_1 = simd.broadcast_bytes(x_q, at), simd.broadcast_bytes(x_q, at + 4)
    x_2, x_3 = simd.broadcast_bytes(x_q, at + 8), simd.broadcast_bytes(x_q, at + 12)
    even = simd.add_i16(even, simd.dot_pairs_u8(level, field_0, x_0))
    odd = simd.add_i16(odd, simd.dot_pairs_u8(level, field_1, x_1))
    even = simd.add_i16(even, simd.dot_pairs_u8(level, field_2, x_2))
    odd = simd.add_i16(odd, simd.dot_pairs_u8(level, field_3, x_3))
    return even, odd


@inline
def _widen(level, total, even, odd):
    """Add 4 * even + odd, which is 4 times the product of the fields, to the int32 total."""
    total = simd.add_i32(total, simd.dot_pairs_i16(level, even, simd.splat_i16(4)))
    return simd.add_i32(total, simd.dot_pairs_i16(level, odd, simd.splat_i16(1)))


@inline
def _finish(total, x_sum, out, at):
    """Store the ternary product: fields are codes + 1, so the sum of x comes off."""
    simd.store_i32(out, at, simd.sub_i32(simd.quarter_i32(total), simd.splat_i32(x_sum)))


@inline
def _one_token(level, packed, group, x_q, x_sum, token, out):
    """16 rows x 1 token: both halves of a block at once, so weights are read in order."""
    input_groups = packed.shape[1]
    at, x_at = group * input_groups * 64, token * x_q.shape[1]
    low, high = simd.zeros_i32(), simd.zeros_i32()
    for start in range(0, input_groups, _INT16_BLOCKS):
        even_low, odd_low = simd.zeros_i16(), simd.zeros_i16()
        even_high, odd_high = simd.zeros_i16(), simd.zeros_i16()
        for _ in range(start, min(start + _INT16_BLOCKS, input_groups)):
            weights = simd.load_u8(packed, at)
            even_low, odd_low = _block(level, weights, x_q, x_at, even_low, odd_low)
            weights = simd.load_u8(packed, at + 32)
            even_high, odd_high = _block(level, weights, x_q, x_at, even_high, odd_high)
            at += 64
            x_at += 16
        low = _widen(level, low, even_low, odd_low)
        high = _widen(level, high, even_high, odd_high)
    out_at = token * out.shape[1] + group * 16
    _finish(low, x_sum[token], out, out_at)
    _finish(high, x_sum[token], out, out_at + 8)


@inline
def _four_tokens(level, packed, half_group, x_q, x_sum, token, out):
    """8 rows x 4 tokens: each decoded field is used four times."""
    input_groups, width = packed.shape[1], x_q.shape[1]
    at = half_group // 2 * input_groups * 64 + half_group % 2 * 32
    x_at = token * width
    total_0, total_1 = simd.zeros_i32(), simd.zeros_i32()
    total_2, total_3 = simd.zeros_i32(), simd.zeros_i32()
    for start in range(0, input_groups, _INT16_BLOCKS):
        even_0, odd_0 = simd.zeros_i16(), simd.zeros_i16()
        even_1, odd_1 = simd.zeros_i16(), simd.zeros_i16()
        even_2, odd_2 = simd.zeros_i16(), simd.zeros_i16()
        even_3, odd_3 = simd.zeros_i16(), simd.zeros_i16()
        for _ in range(start, min(start + _INT16_BLOCKS, input_groups)):
            weights = simd.load_u8(packed, at)
            even_0, odd_0 = _block(level, weights, x_q, x_at, even_0, odd_0)
            even_1, odd_1 = _block(level, weights, x_q, x_at + width, even_1, odd_1)
            even_2, odd_2 = _block(level, weights, x_q, x_at + 2 * width, even_2, odd_2)
            even_3, odd_3 = _block(level, weights, x_q, x_at + 3 * width, even_3, odd_3)
            at += 64
            x_at += 16
        total_0 = _widen(level, total_0, even_0, odd_0)
        total_1 = _widen(level, total_1, even_1, odd_1)
        total_2 = _widen(level, total_2, even_2, odd_2)
        total_3 = _widen(level, total_3, even_3, odd_3)
    rows, out_at = out.shape[1], token * out.shape[1] + half_group * 8
    _finish(total_0, x_sum[token], out, out_at)
    _finish(total_1, x_sum[token + 1], out, out_at + rows)
    _finish(total_2, x_sum[token + 2], out, out_at + 2 * rows)
    _finish(total_3, x_sum[token + 3], out, out_at + 3 * rows)


@jit
def apply_scales(accumulators, act_scale, weight_scale, n_tokens, n_rows, out):
    """Write accumulator * (act_scale * weight_scale); weight_scale is float32 (n_rows,)."""
    for token in range(n_tokens):
        act, row, target = act_scale[token], accumulators[token], out[token]
        for n in range(n_rows):
            target[n] = np.float32(row[n]) * (act * weight_scale[n])


@jit
def dense(weight, x, n_tokens, n_inputs, out):
    """Write float32 products to out (B, N padded); weight is float32 (N / 16, K, 16).

    A product is summed in input order whatever the batch, so a row's result does not depend on
    the rows beside it.
    """
    groups = weight.shape[0]
    token = np.int64(0)
    while token + 4 <= n_tokens:
        for group in range(groups):
            _dense_four_tokens(weight, group, x, token, n_inputs, out)
        token += 4
    while token < n_tokens:
        group = np.int64(0)
        while group + 4 <= groups:
            _dense_four_groups(weight, group, x, token, n_inputs, out)
            group += 4
        while group < groups:
            _dense_one(weight, group, x, token, n_inputs, out)
            group += 1
        token += 1


@inline
def _dense_four_tokens(weight, group, x, token, n_inputs, out):
    sum_0, sum_1 = simd.zeros_f32(), simd.zeros_f32()
    sum_2, sum_3 = simd.zeros_f32(), simd.zeros_f32()
    at = group * weight.shape[1] * 16
    for k in range(n_inputs):
        row = simd.load_f32(weight, at + k * 16)
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
def _dense_four_groups(weight, group, x, token, n_inputs, out):
    """One token: four independent sums hide the latency of the multiply-add."""
    sum_0, sum_1 = simd.zeros_f32(), simd.zeros_f32()
    sum_2, sum_3 = simd.zeros_f32(), simd.zeros_f32()
    stride = weight.shape[1] * 16
    at = group * stride
    for k in range(n_inputs):
        value = x[token, k]
        sum_0 = simd.multiply_add_f32(value, simd.load_f32(weight, at), sum_0)
        sum_1 = simd.multiply_add_f32(value, simd.load_f32(weight, at + stride), sum_1)
        sum_2 = simd.multiply_add_f32(value, simd.load_f32(weight, at + 2 * stride), sum_2)
        sum_3 = simd.multiply_add_f32(value, simd.load_f32(weight, at + 3 * stride), sum_3)
        at += 16
    out_at = token * out.shape[1] + group * 16
    simd.store_f32(out, out_at, sum_0)
    simd.store_f32(out, out_at + 16, sum_1)
    simd.store_f32(out, out_at + 32, sum_2)
    simd.store_f32(out, out_at + 48, sum_3)


@inline
def _dense_one(weight, group, x, token, n_inputs, out):
    total = simd.zeros_f32()
    at = group * weight.shape[1] * 16
    for k in range(n_inputs):
        total = simd.multiply_add_f32(x[token, k], simd.load_f32(weight, at + k * 16), total)
    simd.store_f32(out, token * out.shape[1] + group * 16, total)
