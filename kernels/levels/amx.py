"""The integer product at level "amx": tiles of 16 rows x 64 bytes, for prompts and batches.

One tile instruction multiplies 16 tokens x 64 inputs by 64 inputs x 16 output rows. 64 bytes of a
packed block, shifted and masked to one field, are one row of the weight tile, so decoding writes
whole lines. Two tiles of tokens and two of weights give four tiles of sums, the most that fit:
every load then serves two products. A stretch of weights is decoded once into a buffer that stays
in the nearest cache, and multiplied with as many tokens as fit the next cache.

What is left over (tokens beyond a multiple of 32, an odd row group, single tokens) is done by
vnni.py, and so is everything in a process that the system does not let use tiles.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import simd
from kernels.compile import PERMISSION_CALL, inline
from kernels.levels import vnni

TOKENS = 32
_BLOCKS = 32  # packed blocks of a row group decoded at a time: 8 KiB, twice, of 48 KiB
_GROUP_BYTES = _BLOCKS * 256  # a block is 4 lines of fields
_TOKEN_BYTES = 1 << 20  # activations that stay in a 2 MiB cache beside everything else
_MOST_TOKENS = 512  # tokens whose sums have a place in the buffer
_SUM_BYTES = 128  # sums of one token: 32 rows of int32
_TILE = 1024


@inline
def accumulate(packed, x_q, x_sum, n_tokens, groups, out):
    """Do what `cpu.accumulate` says with AMX tiles; rows of x_q are read in whole cache lines."""
    tiled = n_tokens // TOKENS * TOKENS
    odd = groups[0] + (groups[1] - groups[0]) // 2 * 2
    if tiled > 0 and odd > groups[0] and _may_use_tiles() == 0:
        scratch = _scratch()
        _configure()
        most = min(_MOST_TOKENS, max(TOKENS, _TOKEN_BYTES // x_q.shape[1] // TOKENS * TOKENS))
        for first in range(0, tiled, most):
            tokens = (first, min(first + most, tiled))
            _multiply(packed, x_q, x_sum, tokens, (groups[0], odd), out, scratch)
        _release()
        vnni.accumulate(packed, x_q, x_sum, (0, tiled), (odd, groups[1]), out)
    else:
        tiled = 0
    vnni.accumulate(packed, x_q, x_sum, (tiled, n_tokens), groups, out)


@inline
def multiply_nothing(n_steps):
    """Do the tile products of n_steps x 32 tokens x 64 inputs x 32 rows, and no loads: the peak."""
    if _may_use_tiles() == 0:
        _configure()
        _clear_sums()
        for _ in range(n_steps):
            _products_alone()
        _release()


@inline
def _multiply(packed, x_q, x_sum, tokens, groups, out, scratch):
    """Go through all stretches of all pairs of row groups, with all tokens for each stretch.

    While the last 32 tokens use a decoded tile of weights for the last time, the next stretch is
    decoded into its place, and the one after that is fetched: tiles and vectors work side by side.
    """
    stretches = (packed.shape[1] + _BLOCKS - 1) // _BLOCKS
    last = (groups[1] - groups[0]) // 2 * stretches - 1
    here = _place(packed, groups[0], 0)
    for tile in range(_n_tiles(packed, 0)):
        _decode_tile(packed, here, tile, 0, scratch)
    for stretch in range(last + 1):
        after = _place(packed, groups[0], min(stretch + 1, last))
        ahead = _offset(packed, _place(packed, groups[0], min(stretch + 2, last)))
        ahead -= _offset(packed, after)
        for token in range(tokens[0], tokens[1] - TOKENS, TOKENS):
            sums = scratch + 2 * _GROUP_BYTES + (token - tokens[0]) * _SUM_BYTES
            _start(here, sums)
            for tile in range(_n_tiles(packed, here[1])):
                _step(x_q, token, here[1], tile, scratch)
                if here[1] + _BLOCKS >= packed.shape[1]:
                    _fetch_output(out, token, here[0], tile)
            _end(packed, here, x_sum, token, out, sums)
        token = tokens[1] - TOKENS
        sums = scratch + 2 * _GROUP_BYTES + (token - tokens[0]) * _SUM_BYTES
        _start(here, sums)
        for tile in range(_n_tiles(packed, here[1])):
            _step(x_q, token, here[1], tile, scratch)
            if tile < _n_tiles(packed, after[1]):
                _decode_tile(packed, after, tile, ahead, scratch)
        for tile in range(_n_tiles(packed, here[1]), _n_tiles(packed, after[1])):
            _decode_tile(packed, after, tile, ahead, scratch)
        _end(packed, here, x_sum, token, out, sums)
        here = after


@inline
def _place(packed, first_group, stretch):
    """Return the first of the two row groups of a stretch, and its first block."""
    stretches = (packed.shape[1] + _BLOCKS - 1) // _BLOCKS
    return first_group + stretch // stretches * 2, stretch % stretches * _BLOCKS


@inline
def _offset(packed, place):
    return (place[0] * packed.shape[1] + place[1]) * 64


@inline
def _start(place, sums):
    if place[1] == 0:
        _clear_sums()
    else:
        _load_sums(sums)


@inline
def _step(x_q, token, block, tile, scratch):
    x = _address(x_q, token * x_q.shape[1] + block * 16 + tile * 64)
    _add_products(x, x_q.shape[1], scratch + tile * _TILE)
    _fetch_inputs(x, x_q.shape[1])


@inline
def _fetch_output(out, token, group, tile):
    """Ask for a few of the lines of the output that these tokens will be written to."""
    if tile < 8:
        at = (token + tile * 4) * out.shape[1] + group * 16
        for i in range(4):
            simd.prefetch(out, at + i * out.shape[1])
            simd.prefetch(out, at + i * out.shape[1] + 16)


@inline
def _end(packed, place, x_sum, token, out, sums):
    """Put the sums aside, or at the end of the inputs into the output."""
    _store_sums(sums)
    if place[1] + _BLOCKS >= packed.shape[1]:
        _finish_tokens(sums, x_sum, token, out, place[0])


@inline
def _n_tiles(packed, block):
    return (min(_BLOCKS, packed.shape[1] - block) + 3) // 4


@inline
def _finish_tokens(sums, x_sum, first, out, group):
    for i in range(TOKENS):
        token = first + i
        _finish(sums + i * _SUM_BYTES, x_sum[token], out, token * out.shape[1] + group * 16)


@inline
def _decode_tile(packed, place, tile, ahead, fields):
    """Write a tile of either row group; what it has beyond K multiplies whatever x_q holds."""
    block, group_bytes = place[1] + tile * 4, packed.shape[1] * 64
    at, fields = _offset(packed, place) + tile * 256, fields + tile * _TILE
    for i in range(4):
        simd.prefetch(packed, at + i * 64 + ahead)
        simd.prefetch(packed, at + i * 64 + ahead + group_bytes)
        if block + i < packed.shape[1]:
            first = simd.load_u8x64(packed, at + i * 64)
            second = simd.load_u8x64(packed, at + group_bytes + i * 64)
        else:
            first, second = simd.zeros_u8x64(), simd.zeros_u8x64()
        _store_fields(fields + i * 256, first)
        _store_fields(fields + _GROUP_BYTES + i * 256, second)


_VOID, _BYTE, _WORD = ir.VoidType(), ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()
# palette 1, then for each of the 8 tiles 64 bytes a row (16-bit numbers from byte 16 on) and 16
# rows (bytes from 48 on)
_CONFIGURATION = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]


def _emit(builder, name: str, *arguments) -> None:
    """Emit a call of an AMX instruction; tile numbers are constants."""
    kind = ir.FunctionType(_VOID, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, arguments)


def _pointer(builder, integer, offset=None):
    if offset is not None:
        integer = builder.add(integer, offset)
    return builder.inttoptr(integer, _POINTER)


@intrinsic
def _scratch(typingctx):
    """Return the address of a buffer on the caller's stack: decoded fields, then sums.

    Sums grow here and not in the output, whose rows are far apart: with N = 4096 they would all
    fall into a few sets of the cache, and moving four tiles took 290 ns instead of 58.
    """

    def generate(context, builder, signature, args):
        with builder.goto_entry_block():  # numba's own helper fills it, byte by byte
            buffer = builder.alloca(
                ir.ArrayType(_BYTE, 2 * _GROUP_BYTES + _MOST_TOKENS * _SUM_BYTES)
            )
        buffer.align = 64
        return builder.ptrtoint(buffer, _WORD)

    return types.intp(), generate


@intrinsic
def _address(typingctx, array, index):
    """Return the address of an element, by its index in the flat array."""

    def generate(context, builder, signature, args):
        pointer = simd.address(context, builder, signature.args[0], *args, _BYTE)
        return builder.ptrtoint(pointer, _WORD)

    return types.intp(array, types.intp), generate


@intrinsic
def _may_use_tiles(typingctx):
    """Ask Linux for the use of tiles: 0 when granted, once for all threads; a tenth of a us."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(_WORD, [_WORD], var_arg=True)
        function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
        return builder.call(function, [_WORD(number) for number in PERMISSION_CALL])

    return types.intp(), generate


@intrinsic
def _configure(typingctx):
    """Make all tiles 16 rows x 64 bytes."""

    def generate(context, builder, signature, args):
        value = ir.Constant(ir.ArrayType(_BYTE, 64), _CONFIGURATION)
        memory = cgutils.global_constant(builder, "tile_configuration", value)
        _emit(builder, "ldtilecfg", builder.bitcast(memory, _POINTER))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _release(typingctx):
    """Give the tiles back, so that the system need not save them."""

    def generate(context, builder, signature, args):
        _emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _store_fields(typingctx, target, weights):
    """Store the four fields of a block, one cache line each."""

    def generate(context, builder, signature, args):
        target, weights = args
        for p in range(4):
            pointer = _pointer(builder, target, ir.Constant(_WORD, 64 * p))
            pointer = builder.bitcast(pointer, weights.type.as_pointer())
            builder.store(vnni.shifted_field(builder, weights, p), pointer, align=64)
        return context.get_dummy_value()

    return types.void(types.intp, weights), generate


def _each_sum(instruction: str):
    """Return an intrinsic that moves the four tiles of sums: 32 tokens x 32 rows of int32."""

    def move(typingctx, sums):
        def generate(context, builder, signature, args):
            for tile in range(4):
                place = 16 * _SUM_BYTES * (tile // 2) + 64 * (tile % 2)
                pointer = _pointer(builder, args[0], ir.Constant(_WORD, place))
                _emit(builder, instruction, _BYTE(tile), pointer, ir.Constant(_WORD, _SUM_BYTES))
            return context.get_dummy_value()

        return types.void(types.intp), generate

    return intrinsic(move)


_load_sums = _each_sum("tileloadd64")
_store_sums = _each_sum("tilestored64")


@intrinsic
def _clear_sums(typingctx):
    """Set the four tiles of sums to zero."""

    def generate(context, builder, signature, args):
        for tile in range(4):
            _emit(builder, "tilezero", _BYTE(tile))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _finish(typingctx, sums, x_sum, out, out_at):
    """Store the 32 sums of a token less its sum of x: fields are codes + 1."""

    def generate(context, builder, signature, args):
        sums, x_sum, out, out_at = args
        vector = simd.llvm(simd.I32X16)
        less = simd.repeat(builder, x_sum, 16)
        for half in range(2):
            source = _pointer(builder, sums, ir.Constant(_WORD, 64 * half))
            source = builder.bitcast(source, vector.as_pointer())
            value = builder.sub(builder.load(source, align=64), less)
            at = builder.add(out_at, ir.Constant(out_at.type, 16 * half))
            target = simd.address(context, builder, signature.args[2], out, at, vector)
            builder.store(value, target, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.int32, out, types.intp), generate


@intrinsic
def _fetch_inputs(typingctx, x, x_stride):
    """Ask for the inputs of the step after next, which the tile loads' rows, pages apart, hide.

    Without it 128 tokens ran at 2.1 TOPS in some placements of the arrays and 3.3 in others.
    """

    def generate(context, builder, signature, args):
        x, x_stride = args
        kind = ir.FunctionType(_VOID, [_POINTER, simd.I32, simd.I32, simd.I32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        at = builder.add(x, ir.Constant(_WORD, 2 * 64))
        for _ in range(TOKENS):
            where = [_pointer(builder, at), simd.I32(0), simd.I32(3), simd.I32(1)]
            builder.call(prefetch, where)  # to read, into L1, data
            at = builder.add(at, x_stride)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _products_alone(typingctx):
    """Multiply what the tiles hold, as `_add_products` does."""

    def generate(context, builder, signature, args):
        for tile in range(4):
            _emit(builder, "tdpbsud", _BYTE(tile), _BYTE(4 + tile // 2), _BYTE(6 + tile % 2))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _add_products(typingctx, x, x_stride, fields):
    """Add 32 tokens x 64 inputs times 64 inputs x 32 rows to the four tiles of sums."""

    def generate(context, builder, signature, args):
        x, x_stride, fields = args
        line = ir.Constant(_WORD, 64)
        lower = builder.add(x, builder.shl(x_stride, ir.Constant(_WORD, 4)))
        second = ir.Constant(_WORD, _GROUP_BYTES)
        _emit(builder, "tileloadd64", _BYTE(4), _pointer(builder, x), x_stride)
        _emit(builder, "tileloadd64", _BYTE(6), _pointer(builder, fields), line)
        _emit(builder, "tdpbsud", _BYTE(0), _BYTE(4), _BYTE(6))
        _emit(builder, "tileloadd64", _BYTE(7), _pointer(builder, fields, second), line)
        _emit(builder, "tdpbsud", _BYTE(1), _BYTE(4), _BYTE(7))
        _emit(builder, "tileloadd64", _BYTE(5), _pointer(builder, lower), x_stride)
        _emit(builder, "tdpbsud", _BYTE(2), _BYTE(5), _BYTE(6))
        _emit(builder, "tdpbsud", _BYTE(3), _BYTE(5), _BYTE(7))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate
