"""On a GPU: products equal the reference bit by bit, in any batch, on streams and in graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
from kernels import reference
from kernels.cuda.driver import why_unavailable
from kernels.torch_op import ternary_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "a GPU is there"),
]


def arguments(n: int, k: int, b: int):
    rng = np.random.default_rng(n + k + b)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x, scale = rng.standard_normal((b, k)).astype(np.float32), rng.random(n).astype(np.float32)
    return x, kernels.pack(codes), scale


def is_the_cpu_product(shape, b) -> bool:
    x, packed, scale = arguments(*shape, b)
    out = ternary_linear(*(torch.from_numpy(a).cuda() for a in (x, packed, scale)))
    return np.array_equal(out.cpu().numpy(), kernels.ternary_matmul(packed, scale, x))


@pytest.mark.parametrize("b", [1, 2, 3, 8, 9, 16, 17, 32, 100])
@pytest.mark.parametrize("shape", [(4096, 4096), (2048, 14336)])
def test_every_batch_is_the_cpu_product(shape, b):
    assert is_the_cpu_product(shape, b)


@pytest.mark.parametrize("b", [1, 3, 9, 17, 100])
@pytest.mark.parametrize("shape", [(16, 128), (37, 100), (300, 512)])
def test_sanitizer_small_products_of_every_kernel(shape, b):
    """Small, because compute-sanitizer slows a kernel by ten to a hundred times."""
    assert is_the_cpu_product(shape, b)


@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("code", [-1, 1])
def test_extreme_inputs_do_not_overflow(code, x):
    packed = kernels.pack(np.full((17, 6912), code, np.int8))
    x_q = np.full((5, 6912), x, np.int8)
    found = kernels.accumulate(packed, x_q, n_rows=17, backend="cuda")
    assert (found == code * x * 6912).all()


def test_random_integers_are_bit_equal():
    rng = np.random.default_rng(0)
    for n, k, b in rng.integers(1, [300, 2000, 40], (30, 3)):
        codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
        x_q = rng.integers(-128, 128, (b, k)).astype(np.int8)
        found = kernels.accumulate(kernels.pack(codes), x_q, n_rows=int(n), backend="cuda")
        assert np.array_equal(found, reference.accumulate(codes, x_q)), (n, k, b)


@pytest.mark.parametrize("b", [1, 8])
def test_a_captured_graph_gives_the_same(b):
    x, packed, scale = (torch.from_numpy(a).cuda() for a in arguments(512, 1024, b))
    wanted = ternary_linear(x, packed, scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ternary_linear(x, packed, scale)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, wanted)


def test_rows_that_are_not_finite_become_nan():
    x, packed, scale = (torch.from_numpy(a).cuda() for a in arguments(64, 256, 3))
    x[1, 5] = float("nan")
    out = ternary_linear(x, packed, scale)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_torch_finds_the_operator_sound():
    tensors = tuple(torch.from_numpy(a).cuda() for a in arguments(64, 256, 3))
    torch.library.opcheck(torch.ops.nanochat.ternary_linear.default, tensors)
    with pytest.raises(ValueError, match="on one device"):
        ternary_linear(tensors[0], tensors[1].cpu(), tensors[2])
