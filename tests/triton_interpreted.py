"""Checks of the Triton kernels in Triton's interpreter, run by test_training_linear.py.

Its own process, because triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton

import kernels
from kernels import reference
from kernels.training import linear
from kernels.training import operators as ours
from nanochat_lib.model.ternary import quantize_weight

assert triton.knobs.runtime.interpret, "run with TRITON_INTERPRET=1"


@pytest.fixture
def in_torch(monkeypatch):
    """Return a function that computes something without the Triton kernels."""

    def run(function, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(ours, "has_kernels", lambda tensor: False)
            return function(*args, **options)

    return run


def random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("shape", [(16, 32, 48), (37, 100, 65), (70, 257, 130), (1, 5, 3)])
def test_sums_are_bit_equal_to_numpy_and_numba(shape):
    (m, k, n), rng = shape, np.random.default_rng(0)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x_q = rng.integers(-128, 128, (m, k)).astype(np.int8)
    found = ours.sums(torch.from_numpy(x_q), torch.from_numpy(codes)).numpy()
    assert np.array_equal(found, reference.accumulate(codes, x_q))
    assert np.array_equal(found, kernels.accumulate(kernels.pack(codes), x_q, n_rows=n))


@pytest.mark.parametrize("x", [-128, 127])
def test_extreme_inputs_do_not_overflow(x):
    a, b = torch.full((17, 6912), x, dtype=torch.int8), torch.ones(20, 6912, dtype=torch.int8)
    assert (ours.sums(a, b) == x * 6912).all()
    assert (ours.sums(a, -b) == -x * 6912).all()


@pytest.mark.parametrize("shape", [(64, 96), (33, 50), (1, 9001)])
def test_weights_are_those_of_training(shape, in_torch):
    weight = random(*shape, seed=1, scale=0.02)
    codes, scale = quantize_weight(weight)
    for found in (linear.ternary(weight), in_torch(linear.ternary, weight)):
        assert torch.equal(found.codes, codes)
        assert torch.equal(found.transposed, codes.T)
        assert float(found.scale) == scale


def test_quantised_rows_are_those_of_the_reference():
    x = random(9, 300) * 10.0 ** random(9, 1).round()
    x[3], x[4] = 0, torch.tensor([0.5, 1.5, 127.0] * 100)
    codes, scale = ours.rows_to_int8(x, None, 0, 0.0)
    wanted, wanted_scale = reference.quantize_activations(x.numpy())
    assert np.array_equal(codes.numpy(), wanted)
    assert np.array_equal(scale.numpy(), wanted_scale)


@pytest.mark.parametrize("kind", [1, 2])
def test_norm_and_swiglu_rows_are_those_of_torch(kind, in_torch):
    x, other = random(6, 200), random(*((200,) if kind == 1 else (6, 200)), seed=2)
    codes, scale = ours.rows_to_int8(x, other, kind, 1e-5)
    wanted, wanted_scale = in_torch(ours.rows_to_int8, x, other, kind, 1e-5)
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-5, atol=0)
    assert (codes.int() - wanted.int()).abs().max() <= 1  # between two codes
    assert (codes != wanted).float().mean() < 0.01


@pytest.mark.parametrize("name", ["linear", "norm_linear", "swiglu_linear"])
def test_forward_and_gradients_are_those_of_torch(name, in_torch):
    """The same function with and without kernels, forward and backward."""
    found = gradients(name)
    wanted = in_torch(gradients, name)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


def gradients(name: str) -> list[torch.Tensor]:
    x, other, extra = random(40, 96).requires_grad_(), random(40, 96, seed=3), ()
    weights = [random(64, 96, seed=4, scale=0.1), random(32, 96, seed=5, scale=0.1)]
    weights = [weight.requires_grad_() for weight in weights]
    if name != "linear":
        other = (random(96, seed=3).abs() if name == "norm_linear" else other).requires_grad_()
        extra = (other, 1e-5) if name == "norm_linear" else (other,)
    outs = getattr(linear, name)(x, *extra, [linear.ternary(weight) for weight in weights])
    sum((y * random(*y.shape, seed=6)).sum() for y in outs).backward()
    leaves = [x, *weights, *([other] if name != "linear" else [])]
    return [*(y.detach() for y in outs), *(leaf.grad for leaf in leaves)]
