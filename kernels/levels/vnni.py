"""The integer product at level "avx512vnni": byte dot products of 64 bytes at a time.

vpdpbusd multiplies 64 unsigned by 64 signed bytes and adds each four to an int32 lane: exactly one
field of a packed block times four activations, for 16 output rows. One token is bound by reading
the weights, so fields are masked but not shifted (field p counts 4^p times and has a sum of its
own), and four far-apart row groups are read at once. Several tokens are bound by the dot products,
so fields are shifted once and used by all.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import simd
from kernels.compile import inline

TOKENS = 16  # tokens that share a decoded field: one sum each, in 16 of the 32 registers
# Bytes asked for ahead of the reading, and how much farther each next stream asks. On one core of
# a Xeon, 4096 x 4096 from memory: 93 % of plain reading at equal distances, 96 % at these.
_AHEAD, _AHEAD_STEP = 2048, 512

_FIELDS = simd.Bundle(simd.I32X16, 4)
_SUMS = simd.Bundle(simd.I32X16, TOKENS)
_zero_fields = simd.zeros_bundle(_FIELDS)
_zero_sums = simd.zeros_bundle(_SUMS)


@inline
def accumulate(packed, x_q, x_sum, tokens, groups, out):
    """Do what `cpu.accumulate` says with AVX-512 VNNI, for tokens[0] to tokens[1]."""
    if tokens[1] - tokens[0] == 1:
        _one_token(packed, x_q, x_sum, tokens[0], groups, out)
        return
    for group in range(groups[0], groups[1]):
        token = np.int64(tokens[0])
        while token + TOKENS <= tokens[1]:
            _many_tokens(packed, group, x_q, x_sum, token, out)
            token += TOKENS
        while token < tokens[1]:
            _one_group(packed, group, x_q, x_sum, token, out)
            token += 1


@inline
def _one_token(packed, x_q, x_sum, token, groups, out):
    """Read four row groups at a time, a quarter of the weights apart."""
    first, quarter = groups[0], (groups[1] - groups[0]) // 4
    for group in range(first, first + quarter):
        _four_groups(packed, (group, quarter), x_q, x_sum, token, out)
    for group in range(first + 4 * quarter, groups[1]):
        _one_group(packed, group, x_q, x_sum, token, out)


@inline
def _four_groups(packed, place, x_q, x_sum, token, out):
    """One token and the groups place[0] + i * place[1], for i from 0 to 3."""
    at, stride = place[0] * packed.shape[1] * 64, place[1] * packed.shape[1] * 64
    x_start, x_end = token * x_q.shape[1], token * x_q.shape[1] + packed.shape[1] * 16
    sum_0, sum_1, sum_2, sum_3 = _zero_fields(), _zero_fields(), _zero_fields(), _zero_fields()
    for x_at in range(x_start, x_end, 16):
        prefetch_four(packed, at, stride)
        sum_0 = _add_fields(sum_0, simd.load_u8x64(packed, at), x_q, x_at)
        sum_1 = _add_fields(sum_1, simd.load_u8x64(packed, at + stride), x_q, x_at)
        sum_2 = _add_fields(sum_2, simd.load_u8x64(packed, at + 2 * stride), x_q, x_at)
        sum_3 = _add_fields(sum_3, simd.load_u8x64(packed, at + 3 * stride), x_q, x_at)
        at += 64
    out_at, rows = token * out.shape[1] + place[0] * 16, place[1] * 16
    simd.store_i32x16(out, out_at, _ternary(sum_0, x_sum[token]))
    simd.store_i32x16(out, out_at + rows, _ternary(sum_1, x_sum[token]))
    simd.store_i32x16(out, out_at + 2 * rows, _ternary(sum_2, x_sum[token]))
    simd.store_i32x16(out, out_at + 3 * rows, _ternary(sum_3, x_sum[token]))


@inline
def prefetch_four(packed, at, stride):
    """Ask for what four streams will read, each a little farther ahead than the one before."""
    simd.prefetch(packed, at + _AHEAD)
    simd.prefetch(packed, at + stride + _AHEAD + _AHEAD_STEP)
    simd.prefetch(packed, at + 2 * stride + _AHEAD + 2 * _AHEAD_STEP)
    simd.prefetch(packed, at + 3 * stride + _AHEAD + 3 * _AHEAD_STEP)


@inline
def _one_group(packed, group, x_q, x_sum, token, out):
    sums = _zero_fields()
    at, x_at = group * packed.shape[1] * 64, token * x_q.shape[1]
    for _ in range(packed.shape[1]):
        simd.prefetch(packed, at + _AHEAD)
        sums = _add_fields(sums, simd.load_u8x64(packed, at), x_q, x_at)
        at += 64
        x_at += 16
    simd.store_i32x16(out, token * out.shape[1] + group * 16, _ternary(sums, x_sum[token]))


@inline
def _many_tokens(packed, group, x_q, x_sum, token, out):
    sums = _zero_sums()
    at, x_at = group * packed.shape[1] * 64, token * x_q.shape[1]
    for _ in range(packed.shape[1]):
        simd.prefetch(packed, at + _AHEAD)
        sums = _add_tokens(sums, simd.load_u8x64(packed, at), x_q, x_at, x_q.shape[1])
        at += 64
        x_at += 16
    _store_tokens(sums, x_sum, token, out, token * out.shape[1] + group * 16)


def dot(builder, sums, unsigned, signed):
    """Emit vpdpbusd: each int32 lane gains four products of bytes."""
    vector, operand = simd.llvm(simd.I32X16), simd.llvm(simd.U8X64)
    kind = ir.FunctionType(vector, [vector, operand, operand])
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [sums, unsigned, signed])


def four_inputs(context, builder, array_type, array, index):
    """Emit the four activations from `index` on, repeated over 64 bytes."""
    pointer = simd.address(context, builder, array_type, array, index, simd.I32)
    inputs = builder.load(pointer, align=1)
    return builder.bitcast(simd.repeat(builder, inputs, 16), simd.llvm(simd.U8X64))


@intrinsic
def _add_fields(typingctx, sums, weights, x_q, x_at):
    """Add 16 rows x 16 inputs of one token; sum p gains 4^p times the product of field p."""

    def generate(context, builder, signature, args):
        sums, weights, x_q, x_at = args
        for p in range(4):
            at = builder.add(x_at, ir.Constant(x_at.type, 4 * p))
            inputs = four_inputs(context, builder, signature.args[2], x_q, at)
            field = builder.and_(weights, simd.splat(weights.type, 3 << 2 * p))
            grown = dot(builder, builder.extract_value(sums, p), field, inputs)
            sums = builder.insert_value(sums, grown, p)
        return sums

    return sums(sums, weights, x_q, types.intp), generate


@intrinsic
def _ternary(typingctx, sums, x_sum):
    """Return the products of the fields less the sum of x: fields are codes + 1."""

    def generate(context, builder, signature, args):
        total = builder.extract_value(args[0], 0)
        for p in range(1, 4):
            shift = simd.splat(total.type, 2 * p)
            total = builder.add(total, builder.ashr(builder.extract_value(args[0], p), shift))
        return builder.sub(total, simd.repeat(builder, args[1], 16))

    return simd.I32X16(sums, types.int32), generate


@intrinsic
def _add_tokens(typingctx, sums, weights, x_q, x_at, x_stride):
    """Add 16 rows x 16 inputs of as many tokens as there are sums."""

    def generate(context, builder, signature, args):
        sums, weights, x_q, x_at, x_stride = args
        for p in range(4):
            field = shifted_field(builder, weights, p)
            at = builder.add(x_at, ir.Constant(x_at.type, 4 * p))
            for token in range(signature.args[0].count):
                inputs = four_inputs(context, builder, signature.args[2], x_q, at)
                grown = dot(builder, builder.extract_value(sums, token), field, inputs)
                sums = builder.insert_value(sums, grown, token)
                at = builder.add(at, x_stride)
        return sums

    return sums(sums, weights, x_q, types.intp, types.intp), generate


def shifted_field(builder, weights, p: int):
    """Emit field p of 64 packed bytes as bytes 0, 1 or 2 (bytes have no shift: words do)."""
    words = ir.VectorType(ir.IntType(16), 32)
    shifted = builder.lshr(builder.bitcast(weights, words), simd.splat(words, 2 * p))
    field = builder.bitcast(shifted, weights.type) if p else weights
    return builder.and_(field, simd.splat(weights.type, 3))


@intrinsic
def _store_tokens(typingctx, sums, x_sum, token, out, out_at):
    """Store each token's sums, less its sum of x, into its own row of `out`."""

    def generate(context, builder, signature, args):
        sums, x_sum, token, out, at = args
        x_sum_type, out_type = signature.args[1], signature.args[3]
        stride = cgutils.create_struct_proxy(out_type)(context, builder, out).shape
        stride = builder.extract_value(stride, 1)
        for i in range(signature.args[0].count):
            index = builder.add(token, ir.Constant(token.type, i))
            less = builder.load(simd.address(context, builder, x_sum_type, x_sum, index, simd.I32))
            value = builder.extract_value(sums, i)
            value = builder.sub(value, simd.repeat(builder, less, 16))
            pointer = simd.address(context, builder, out_type, out, at, value.type)
            builder.store(value, pointer, align=4)
            at = builder.add(at, stride)
        return context.get_dummy_value()

    return types.void(sums, x_sum, types.intp, out, types.intp), generate
