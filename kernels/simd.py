"""Vector values inside numba: register types and the few operations the kernels need.

A `Vector` is an LLVM vector in a register, a `Bundle` a fixed number of them; `load_*` and
`store_*` move vectors from and to arrays without bounds checks. Operations are plain LLVM IR, which
every CPU can run, except the two multiply-adds: at level "avx2" they are the instructions
vpmaddubsw and vpmaddwd, which LLVM does not form by itself from the portable IR. Operations that
only one level has are beside their kernels in levels/, made from the helpers here.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from kernels.compile import LEVELS

_AVX2 = len(LEVELS["avx2"])


class Vector(types.Type):
    """A register of `lanes` values of one element type."""

    def __init__(self, element: types.Type, lanes: int):
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"Vector({element}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = manager.lookup(vector.element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


class Bundle(types.Type):
    """`count` registers of one vector type, e.g. the sums of as many tokens."""

    def __init__(self, vector: Vector, count: int):
        self.vector = vector
        self.count = count
        super().__init__(name=f"Bundle({vector}, {count})")


@register_model(Bundle)
class _BundleModel(models.PrimitiveModel):
    def __init__(self, manager, bundle):
        vector = manager.lookup(bundle.vector).get_value_type()
        super().__init__(manager, bundle, ir.ArrayType(vector, bundle.count))


U8X32 = Vector(types.uint8, 32)
I16X16 = Vector(types.int16, 16)
I32X8 = Vector(types.int32, 8)
F32X16 = Vector(types.float32, 16)
U8X64 = Vector(types.uint8, 64)
I32X16 = Vector(types.int32, 16)

I32 = ir.IntType(32)


def llvm(vector: Vector) -> ir.VectorType:
    """Return the LLVM type of a vector."""
    bits = {types.uint8: ir.IntType(8), types.int16: ir.IntType(16), types.int32: I32}
    return ir.VectorType(bits.get(vector.element, ir.FloatType()), vector.lanes)


def splat(vector: ir.VectorType, value: int | float) -> ir.Constant:
    """Return the constant with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def address(context, builder, array_type, array, index, llvm_type):
    """Return a pointer to the element `index` of an array, seen as another type."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm_type.as_pointer())


def _load(vector: Vector):
    def load(typingctx, array, index):
        def generate(context, builder, signature, args):
            pointer = address(context, builder, signature.args[0], *args, llvm(vector))
            return builder.load(pointer, align=array.dtype.bitwidth // 8)

        return vector(array, types.intp), generate

    return intrinsic(load)


def _store(vector: Vector):
    def store(typingctx, array, index, value):
        def generate(context, builder, signature, args):
            pointer = address(context, builder, signature.args[0], *args[:2], llvm(vector))
            builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), generate

    return intrinsic(store)


def _binary(vector: Vector, operation: str):
    def binary(typingctx, a, b):
        def generate(context, builder, signature, args):
            return getattr(builder, operation)(*args)

        return vector(vector, vector), generate

    return intrinsic(binary)


def zeros_bundle(bundle: Bundle):
    """Return an intrinsic that makes a bundle of zeros."""

    def zeros(typingctx):
        def generate(context, builder, signature, args):
            one = splat(llvm(bundle.vector), 0)
            return ir.Constant(ir.ArrayType(one.type, bundle.count), [one] * bundle.count)

        return bundle(), generate

    return intrinsic(zeros)


def zeros(vector: Vector):
    """Return an intrinsic that makes a vector of zeros."""

    def zero(typingctx):
        def generate(context, builder, signature, args):
            return splat(llvm(vector), 0)

        return vector(), generate

    return intrinsic(zero)


def _shifted_right(vector: Vector, bits: int, operation: str, width: ir.VectorType):
    def shift(typingctx, a):
        def generate(context, builder, signature, args):
            value = builder.bitcast(args[0], width)
            shifted = getattr(builder, operation)(value, splat(width, bits))
            return builder.bitcast(shifted, llvm(vector))

        return vector(vector), generate

    return intrinsic(shift)


def _masked(mask: int):
    def masked(typingctx, a):
        def generate(context, builder, signature, args):
            return builder.and_(args[0], splat(llvm(U8X32), mask))

        return U8X32(U8X32), generate

    return intrinsic(masked)


def _multiply_add(operand: Vector, result: Vector, name: str, first_signed: bool):
    """Return `f(level, a, b)`: lane i is a[2i] * b[2i] + a[2i+1] * b[2i+1] in the wider type.

    The portable form takes even and odd elements apart with shifts inside the wider lanes, which
    measured 2 to 3 times faster than widening both halves and shuffling.
    """

    def multiply_add(typingctx, level, a, b):
        def generate(context, builder, signature, args):
            wide = llvm(result)
            if signature.args[0].count >= _AVX2:
                signed = ir.FunctionType(wide, [llvm(operand)] * 2)
                function = cgutils.get_or_insert_function(builder.module, signed, name)
                return builder.call(function, args[1:])
            shift = splat(wide, wide.element.width // 2)
            left, right = (builder.bitcast(value, wide) for value in args[1:])
            high = builder.ashr if first_signed else builder.lshr
            odd = builder.mul(high(left, shift), builder.ashr(right, shift))
            low = high(builder.shl(left, shift), shift)
            even = builder.mul(low, builder.ashr(builder.shl(right, shift), shift))
            return builder.add(even, odd)

        return result(level, operand, operand), generate

    return intrinsic(multiply_add)


load_u8 = _load(U8X32)
load_i32 = _load(I32X8)
load_u8x64 = _load(U8X64)
store_i32 = _store(I32X8)
store_f32 = _store(F32X16)
store_i32x16 = _store(I32X16)
store_u8x64 = _store(U8X64)
zeros_u8x64 = zeros(U8X64)
zeros_i16 = zeros(I16X16)
zeros_i32 = zeros(I32X8)
zeros_f32 = zeros(F32X16)
add_u8x64 = _binary(U8X64, "add")
add_i16 = _binary(I16X16, "add")
add_i32 = _binary(I32X8, "add")
sub_i32 = _binary(I32X8, "sub")
low_field = _masked(0x03)  # field 0 of each byte
next_field = _masked(0x0C)  # field 1 of each byte, times 4
upper_fields = _shifted_right(U8X32, 4, "lshr", ir.VectorType(ir.IntType(16), 16))
quarter_i32 = _shifted_right(I32X8, 2, "ashr", ir.VectorType(I32, 8))
# unsigned a x signed b; exact as long as no pair leaves int16 (the instruction saturates)
dot_pairs_u8 = _multiply_add(U8X32, I16X16, "llvm.x86.avx2.pmadd.ub.sw", False)
dot_pairs_i16 = _multiply_add(I16X16, I32X8, "llvm.x86.avx2.pmadd.wd", True)


@intrinsic
def load_numbers(typingctx, array, index):
    """Return sixteen elements of a float32 or int16 array as F32X16."""

    def generate(context, builder, signature, args):
        is_float = array.dtype == types.float32
        element = ir.FloatType() if is_float else ir.IntType(16)
        pointer = address(context, builder, array, *args, ir.VectorType(element, 16))
        loaded = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return loaded if is_float else builder.sitofp(loaded, llvm(F32X16))

    return F32X16(array, types.intp), generate


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of element `index`, which may lie outside the array."""

    def generate(context, builder, signature, args):
        pointer = address(context, builder, signature.args[0], *args, ir.IntType(8))
        signed = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, signed, "llvm.prefetch.p0")
        builder.call(function, [pointer, I32(0), I32(3), I32(1)])  # to read, into L1, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def broadcast_bytes(typingctx, array, index):
    """Return the four bytes of a 1-D int8 `array` from `index` on, repeated over U8X32."""

    def generate(context, builder, signature, args):
        pointer = address(context, builder, signature.args[0], *args, I32)
        return builder.bitcast(repeat(builder, builder.load(pointer, align=1), 8), llvm(U8X32))

    return U8X32(array, types.intp), generate


@intrinsic
def splat_i16(typingctx, value):
    """Return one integer in every lane of I16X16."""

    def generate(context, builder, signature, args):
        return repeat(builder, builder.trunc(args[0], ir.IntType(16)), 16)

    return I16X16(types.intp), generate


@intrinsic
def splat_i32(typingctx, value):
    """Return one int32 in every lane of I32X8."""

    def generate(context, builder, signature, args):
        return repeat(builder, args[0], 8)

    return I32X8(types.int32), generate


@intrinsic
def multiply_add_f32(typingctx, scalar, b, c):
    """Return scalar * b + c, with one rounding where the CPU has fused multiply-add."""

    def generate(context, builder, signature, args):
        wide = llvm(F32X16)
        signed = ir.FunctionType(wide, [wide] * 3)
        function = cgutils.get_or_insert_function(builder.module, signed, "llvm.fmuladd.v16f32")
        return builder.call(function, [repeat(builder, args[0], 16), args[1], args[2]])

    return F32X16(types.float32, F32X16, F32X16), generate


def repeat(builder, scalar, lanes: int):
    """Return a scalar in every lane."""
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    order = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, first, order)
