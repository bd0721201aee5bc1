"""The integer product of weights packed at 1.6 bits a code, on every level.

One token at level "avx512vnni": the fractions of packing.py are multiplied as they are, with no
digit taken out, because a weight that is read once from memory has to cost less time than its
bytes. Otherwise a few row groups at a time are repacked to 2 bits and handed to that kernel: with
many tokens the work is small beside the products, and other levels have no instruction for it.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import simd
from kernels.compile import inline
from kernels.levels import vnni

_REPACKED = simd.Bundle(simd.U8X64, 5)
_SUMS = simd.Bundle(simd.I32X16, 4)
_zero_sums = simd.zeros_bundle(_SUMS)
_ZERO_WEIGHTS = 128  # the byte of five codes 0


@inline
def one_token(packed, x_q, x_sum, groups, out):
    """Multiply token 0 by AVX-512 VNNI, reading four far-apart row groups at a time."""
    first, quarter = groups[0], (groups[1] - groups[0]) // 4
    for group in range(first, first + quarter):
        _four_groups(packed, (group, quarter), x_q, x_sum, out)
    for group in range(first + 4 * quarter, groups[1]):
        _one_group(packed, group, x_q, x_sum, out)


@inline
def _four_groups(packed, place, x_q, x_sum, out):
    """Do what `vnni._four_groups` does: the groups place[0] + i * place[1], i from 0 to 3."""
    at, stride = place[0] * packed.shape[1] * 64, place[1] * packed.shape[1] * 64
    sum_0, sum_1, sum_2, sum_3 = _zero_sums(), _zero_sums(), _zero_sums(), _zero_sums()
    for x_at in range(0, packed.shape[1] * 20, 20):
        vnni.prefetch_four(packed, at, stride)
        sum_0 = _add_fractions(sum_0, simd.load_u8x64(packed, at), x_q, x_at)
        sum_1 = _add_fractions(sum_1, simd.load_u8x64(packed, at + stride), x_q, x_at)
        sum_2 = _add_fractions(sum_2, simd.load_u8x64(packed, at + 2 * stride), x_q, x_at)
        sum_3 = _add_fractions(sum_3, simd.load_u8x64(packed, at + 3 * stride), x_q, x_at)
        at += 64
    out_at, rows = place[0] * 16, place[1] * 16
    simd.store_i32x16(out, out_at, _ternary(sum_0, x_sum[0]))
    simd.store_i32x16(out, out_at + rows, _ternary(sum_1, x_sum[0]))
    simd.store_i32x16(out, out_at + 2 * rows, _ternary(sum_2, x_sum[0]))
    simd.store_i32x16(out, out_at + 3 * rows, _ternary(sum_3, x_sum[0]))


@inline
def _one_group(packed, group, x_q, x_sum, out):
    sums, at = _zero_sums(), group * packed.shape[1] * 64
    for x_at in range(0, packed.shape[1] * 20, 20):
        simd.prefetch(packed, at + 2048)
        sums = _add_fractions(sums, simd.load_u8x64(packed, at), x_q, x_at)
        at += 64
    simd.store_i32x16(out, group * 16, _ternary(sums, x_sum[0]))


@inline
def repack(packed, groups, slab):
    """Write the row groups from groups[0] to groups[1] to the slab, in 2 bits.

    Four blocks of 20 inputs are five of 16: fields follow each other in the order of the inputs.
    """
    blocks, slab_blocks = packed.shape[1], slab.shape[1]
    for group in range(groups[0], groups[1]):
        at, to = group * blocks * 64, (group - groups[0]) * slab_blocks * 64
        for block in range(0, blocks, 4):
            first = simd.load_u8x64(packed, at)
            second, third, fourth = _no_weights(), _no_weights(), _no_weights()
            if block + 1 < blocks:
                second = simd.load_u8x64(packed, at + 64)
            if block + 2 < blocks:
                third = simd.load_u8x64(packed, at + 128)
            if block + 3 < blocks:
                fourth = simd.load_u8x64(packed, at + 192)
            repacked = _two_bit_blocks(first, second, third, fourth)
            _store_blocks(slab, to, min(5, slab_blocks - block // 4 * 5), repacked)
            at += 256
            to += 320


def _triple(builder, value):
    """Emit 3 * value mod 256 of each byte at level "avx512vnni".

    LLVM sees through value + value + value and multiplies, in 16-bit lanes, for want of a multiply
    of bytes: hence the assembly.
    """
    kind = ir.FunctionType(value.type, [value.type, value.type])
    add = ir.InlineAsm(kind, "vpaddb $2, $1, $0", "=v,v,v", side_effect=False)
    return builder.call(add, [builder.call(add, [value, value]), value])


@intrinsic
def _add_fractions(typingctx, sums, weights, x_q, x_at):
    """Add 16 rows x 20 inputs: sums 0 and 1 gain b_p x, sums 2 and 3 b_{p+1} x (p even and odd)."""

    def generate(context, builder, signature, args):
        sums, fraction, x_q, x_at = args
        parts = [builder.extract_value(sums, i) for i in range(4)]
        for p in range(5):
            at = builder.add(x_at, ir.Constant(x_at.type, 4 * p))
            inputs = vnni.four_inputs(context, builder, signature.args[2], x_q, at)
            parts[p % 2] = vnni.dot(builder, parts[p % 2], fraction, inputs)
            fraction = _triple(builder, fraction)
            parts[2 + p % 2] = vnni.dot(builder, parts[2 + p % 2], fraction, inputs)
        for i in range(4):
            sums = builder.insert_value(sums, parts[i], i)
        return sums

    return sums(sums, weights, x_q, types.intp), generate


@intrinsic
def _ternary(typingctx, sums, x_sum):
    """Return (3 sum(b_p x) - sum(b_{p+1} x)) / 256 - sum(x), which no wrap-around can harm."""

    def generate(context, builder, signature, args):
        here, after = (
            builder.add(builder.extract_value(args[0], i), builder.extract_value(args[0], i + 1))
            for i in (0, 2)
        )
        scaled = builder.sub(builder.mul(here, simd.splat(here.type, 3)), after)
        less = builder.shl(simd.repeat(builder, args[1], 16), simd.splat(here.type, 8))
        return builder.ashr(builder.sub(scaled, less), simd.splat(here.type, 8))

    return simd.I32X16(sums, types.int32), generate


@intrinsic
def _no_weights(typingctx):
    """Return the block of codes 0."""

    def generate(context, builder, signature, args):
        return simd.splat(simd.llvm(simd.U8X64), _ZERO_WEIGHTS)

    return simd.U8X64(), generate


def _digits(builder, fraction):
    """Emit the five fields of a block: a digit is how many thirds the fraction has reached."""
    for _ in range(5):
        one, two = (
            builder.zext(
                builder.icmp_unsigned(">", fraction, simd.splat(fraction.type, border)),
                fraction.type,
            )
            for border in (85, 170)
        )
        yield builder.add(one, two)
        fraction = builder.mul(fraction, simd.splat(fraction.type, 3))


@intrinsic
def _two_bit_blocks(typingctx, first, second, third, fourth):
    """Return the five 2-bit blocks of four base-3 blocks."""

    def generate(context, builder, signature, args):
        fields = [field for block in args for field in _digits(builder, block)]
        words = ir.VectorType(ir.IntType(16), 32)
        bundle = cgutils.get_null_value(ir.ArrayType(fields[0].type, 5))
        for i in range(5):
            block = builder.bitcast(fields[4 * i], words)
            for p in range(1, 4):
                field = builder.bitcast(fields[4 * i + p], words)
                block = builder.or_(block, builder.shl(field, simd.splat(words, 2 * p)))
            bundle = builder.insert_value(bundle, builder.bitcast(block, fields[0].type), i)
        return bundle

    return _REPACKED(first, second, third, fourth), generate


@intrinsic
def _store_blocks(typingctx, slab, at, count, blocks):
    """Store the first `count` blocks."""

    def generate(context, builder, signature, args):
        slab, at, count, blocks = args
        for i in range(5):
            with builder.if_then(builder.icmp_signed(">", count, ir.Constant(count.type, i))):
                index = builder.add(at, ir.Constant(at.type, 64 * i))
                value = builder.extract_value(blocks, i)
                pointer = simd.address(context, builder, signature.args[0], slab, index, value.type)
                builder.store(value, pointer, align=1)
        return context.get_dummy_value()

    return types.void(slab, types.intp, types.intp, _REPACKED), generate
