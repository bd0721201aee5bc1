"""The integer product at the levels "generic" and "avx2": one source, 256-bit vectors.

In: packed weights and quantised activations; out: int32 sums. Two bytes are multiplied and added
into int16, which a few blocks at a time cannot overflow, and those into int32.
"""

from __future__ import annotations

import numpy as np

from kernels import simd
from kernels.compile import inline

# Blocks of 16 inputs summed in int16: fields 1 and 3 give at most 4096 a block, so 8 * 4096 just
# fits (-32768 is reached when every code is +1 and every activation -128).
_INT16_BLOCKS = 8


@inline
def accumulate(level, packed, x_q, x_sum, n_tokens, groups, out):
    """Do what `cpu.accumulate` says, on any CPU."""
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
