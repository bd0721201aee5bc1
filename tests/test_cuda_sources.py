"""The CUDA sources that users run, executed on the CPU and compared with the NumPy reference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from cuda_shim import compiled, shim
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import reference
from kernels.cuda import compiler, products, structs
from kernels.cuda.products import Device, codes_width, places, plan_product
from kernels.cuda.structs import Codes, Matrix, ProductArgs, Result, Rows, address

SMALL = Device(n_multiprocessors=3, max_shared=99 << 10)


def aligned(shape, dtype):
    """Return zeros that begin at a multiple of 128 bytes, as a GPU's allocator gives."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + 128, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def placed(array):
    """Return a copy that begins at a multiple of 128 bytes."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def new_codes(n_tokens: int, k: int) -> tuple[np.ndarray, ...]:
    codes = aligned((n_tokens, codes_width(k)), np.int8)
    return codes, aligned(n_tokens, np.float32), aligned(n_tokens, np.int32)


def accumulate(codes: np.ndarray, x_q: np.ndarray, device: Device = SMALL) -> np.ndarray:
    """Return the integers that the shipped product kernel sums for ternary codes and int8 x."""
    (n, k), n_tokens = codes.shape, len(x_q)
    packed, width = placed(kernels.pack(codes)), codes_width(k)
    arrays = new_codes(n_tokens, k)
    arrays[0][:, places(k)] = x_q
    arrays[1][:], arrays[2][:] = 1, x_q.sum(1, dtype=np.int32)
    scale, out = np.ones(n, np.float32), np.full((n_tokens, n), -7, np.int32)
    plan = plan_product(n, k, max(n_tokens, products.FUSED_TOKENS + 1), device)
    shim().allow(packed)
    for first in range(0, n_tokens, plan.n_tokens):
        count = min(plan.n_tokens, n_tokens - first)
        matrix = Matrix(address(packed), address(scale), n, k)
        parts = Codes(*(address(array[first:]) for array in arrays))
        result = Result(None, None, address(out[first:]), n, 0)
        args = ProductArgs(matrix, parts, Rows(), result, None, count, width, plan.slots)
        products.run_product(shim(), plan, args)
    return out


def test_structs_lie_as_the_compiler_of_the_sources_lays_them():
    kinds = [s for s in vars(structs).values()
             if isinstance(s, type) and issubclass(s, ctypes.Structure)]  # fmt: skip
    tail = ""
    for kind in kinds:
        offsets = ", ".join(f"offsetof({kind.__name__}, {name})" for name, _ in kind._fields_)
        sizes = f"(int)sizeof({kind.__name__}), {offsets}"
        tail += f'extern "C" const int layout_{kind.__name__}[] = {{{sizes}}};\n'
    library = compiled(f"#include <cstddef>\n{tail}")
    for kind in kinds:
        wanted = [ctypes.sizeof(kind), *(getattr(kind, name).offset for name, _ in kind._fields_)]
        array = (ctypes.c_int * len(wanted)).in_dll(library, f"layout_{kind.__name__}")
        assert list(array) == wanted, kind


@pytest.mark.parametrize("n_tokens", [1, 3, 8, 9, 16, 17, 32, 37])
@pytest.mark.parametrize("shape", [(16, 128), (37, 100), (130, 272), (64, 1040)])
def test_products_are_bit_equal_to_the_reference(shape, n_tokens):
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    x_q = rng.integers(-128, 128, (n_tokens, shape[1])).astype(np.int8)
    codes[0], codes[-1], x_q[-1] = 1, 0, -128
    assert np.array_equal(accumulate(codes, x_q), reference.accumulate(codes, x_q))


def test_every_tail_length_is_bit_equal():
    rng = np.random.default_rng(1)
    for k in [*range(1, 20), 63, 64, 65, 127, 129, 143, 144, 255, 257]:
        codes = rng.integers(-1, 2, (1 + k % 37, k)).astype(np.int8)
        x_q = rng.integers(-128, 128, (1 + k % 20, k)).astype(np.int8)
        assert np.array_equal(accumulate(codes, x_q), reference.accumulate(codes, x_q)), k


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 400), st.integers(1, 33))
def test_random_shapes_and_thread_orders_are_bit_equal(seed, n, k, b):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x_q = rng.integers(-128, 128, (b, k)).astype(np.int8)
    shim().seed = seed % 1000 + 1
    assert np.array_equal(accumulate(codes, x_q), reference.accumulate(codes, x_q))


@pytest.mark.parametrize("code", [-1, 1])
@pytest.mark.parametrize("x", [-128, 127])
def test_extreme_inputs_do_not_overflow(code, x):
    k = 6912
    found = accumulate(np.full((17, k), code, np.int8), np.full((2, k), x, np.int8))
    assert (found == code * x * k).all()


def quantized(kernel: str, rows: Rows, n_rows: int, n: int):
    arrays = new_codes(n_rows, n)
    args = products.quantize_args(rows, Codes(*map(address, arrays)), codes_width(n), n_rows)
    shim().launch(kernel, args, 2, 128)
    return in_order(arrays[0], n), arrays[1], arrays[2]


def in_order(codes: np.ndarray, k: int) -> np.ndarray:
    """Return the first k codes of each row; those behind them must be zero."""
    behind = np.delete(codes, places(k), axis=1)[:, :-64]
    assert not behind.any()
    return codes[:, places(k)]


def test_quantised_rows_are_those_of_the_reference_bit_by_bit():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((9, 300)) * 10.0 ** rng.integers(-8, 8, (9, 1))).astype(np.float32)
    x[3], x[4], x[5] = 0, np.float32(1e-20), [0.5, 1.5, 127.0] * 100
    found, scale, sums = quantized("quantize", Rows(address(x), None, None, 300, 300, 0), 9, 300)
    wanted, wanted_scale = reference.quantize_activations(x)
    assert np.array_equal(found, wanted)
    assert np.array_equal(scale, wanted_scale)
    assert np.array_equal(sums, wanted.sum(1, dtype=np.int32))


def test_norm_and_swiglu_are_those_of_float64():
    """Codes may differ by one where a value lies between two of them."""
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((5, 192)).astype(np.float32), rng.random(192).astype(np.float32)
    index = np.array([4, 0, 2], np.int32)
    rows = Rows(address(x), address(weight), address(index), 192, 192, 1e-5)
    found, scale, _ = quantized("norm_quantize", rows, 3, 192)
    chosen = x[index].astype(np.float64)
    wanted = chosen / np.sqrt((chosen**2).mean(1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(found * scale[:, None], wanted, atol=scale.max() * 0.51)
    gates = rng.standard_normal((5, 200)).astype(np.float32) * 3
    found, scale, _ = quantized(
        "swiglu_quantize", Rows(address(gates), None, None, 100, 200, 0), 5, 100
    )
    gate = gates[:, :100].astype(np.float64)
    wanted = gate / (1 + np.exp(-gate)) * gates[:, 100:]
    np.testing.assert_allclose(found * scale[:, None], wanted, atol=scale.max() * 0.51)


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 40])
def test_linear_is_the_cpu_product_bit_by_bit(n_tokens):
    """Both ways: quantising inside the product (1 and 2 tokens), and in a kernel before."""
    rng = np.random.default_rng(4)
    codes = rng.integers(-1, 2, (70, 210)).astype(np.int8)
    x, scale = rng.standard_normal((n_tokens, 210)).astype(np.float32), rng.random(70)
    scale, packed = scale.astype(np.float32), placed(kernels.pack(codes))
    out = np.full((n_tokens, 70), np.nan, np.float32)
    matrix = Matrix(address(packed), address(scale), 70, 210)
    shim().allow(packed)
    products.multiply(shim(), SMALL, matrix, x, out, new_codes(n_tokens, 210))
    assert np.array_equal(out, kernels.ternary_matmul(np.asarray(packed), scale, x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_tokens", [2, 3])
def test_a_row_that_is_not_finite_becomes_nan_and_spares_the_others(bad, n_tokens):
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (20, 64)).astype(np.int8)
    x = rng.standard_normal((n_tokens, 64)).astype(np.float32)
    wanted = kernels.ternary_matmul(kernels.pack(codes), 1.0, x, n_rows=20)
    x[1, 7], out = bad, np.zeros((n_tokens, 20), np.float32)
    packed, scale = placed(kernels.pack(codes)), np.ones(20, np.float32)
    matrix = Matrix(address(packed), address(scale), 20, 64)
    shim().allow(packed)
    products.multiply(shim(), SMALL, matrix, x, out, new_codes(n_tokens, 64))
    assert np.isnan(out[1]).all()
    assert np.array_equal(np.delete(out, 1, axis=0), np.delete(wanted, 1, axis=0))


def test_plans_fit_every_gpu_and_cover_all_tokens():
    for shared in (99 << 10, 163 << 10, 227 << 10):
        device = Device(132, shared)
        for n, k, b in [(16, 16, 1), (8192, 8192, 32), (32768, 4096, 16), (4096, 14336, 32)]:
            plan = plan_product(n, k, b, device)
            assert plan.shared <= shared
            assert 1 <= plan.n_tokens <= b
            assert plan.block // 32 % plan.slots == 0
    with pytest.raises(ValueError, match="shared memory"):
        plan_product(16, 300_000, 1, Device(132, 227 << 10))


# A golden vector, worked out by hand: row 0 is +1 -1 0 +1 and so on over 16 inputs, x is 1..16.
GOLDEN_CODES = [[1, -1, 0, 1] * 4, [0, 0, 0, 0] * 4, [-1, -1, -1, -1] * 4]
GOLDEN_X = list(range(1, 17))
# sum over the four quads 4q + (1, 2, 3, 4): (1 - 2 + 4) + 4q = 3 + 4q, that is 12 + 4 * 6; -136.
GOLDEN_SUMS = [36, 0, -136]


def test_golden_vector():
    codes, x_q = np.array(GOLDEN_CODES, np.int8), np.array([GOLDEN_X], np.int8)
    assert accumulate(codes, x_q)[0].tolist() == GOLDEN_SUMS
    for name in kernels.backends():
        found = kernels.accumulate(kernels.pack(codes), x_q, n_rows=3, backend=name)
        assert found[0].tolist() == GOLDEN_SUMS, name


def test_sources_have_no_include_and_lines_that_fit():
    for path in (Path(compiler.__file__).parent / "source").iterdir():
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.lstrip().startswith("#include")], path
        assert max(map(len, lines)) <= 100, path
    assert sorted(compiler.FILES) == sorted(p.stem for p in path.parent.iterdir())
