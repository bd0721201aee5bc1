"""Ternary weights and int8 activations: values by hand, straight-through gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanochat_lib.model.ternary import (
    BitLinear,
    activation_codes,
    quantize_activations,
    quantize_weight,
    ternary_weight,
)


def test_codes_of_a_worked_example():
    codes, scale = quantize_weight(torch.tensor([[0.9, -0.1], [-1.1, 0.31]]))
    assert codes.dtype == torch.int8
    assert codes.tolist() == [[1, 0], [-1, 1]]
    assert scale == float(np.float16(np.mean([0.9, 0.1, 1.1, 0.31])))


@pytest.mark.parametrize("seed", range(3))
def test_weight_scale_is_exact_in_float16(seed):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(seed)) * 0.07
    codes, scale = quantize_weight(weight)
    assert float(np.float16(scale)) == scale
    expected = np.clip(np.round(weight.numpy() / np.float32(scale)), -1, 1)
    assert np.array_equal(codes.numpy(), expected)


def test_training_computes_with_exactly_the_exported_weights():
    weight = torch.randn(48, 64)
    codes, scale = quantize_weight(weight)
    assert torch.equal(ternary_weight(weight), codes.float() * scale)


def test_activations_use_255_levels_per_token():
    x = torch.tensor([[1.0, -0.5, 0.004], [0.0, 0.0, 0.0]])
    codes, scale = activation_codes(x)
    assert codes.tolist() == [[127, -64, 1], [0, 0, 0]]  # 63.5 rounds half to even
    assert torch.equal(quantize_activations(x), codes.float() * scale)
    assert (quantize_activations(x)[0] - x[0]).abs().max() <= scale[0] / 2


def test_gradients_pass_straight_through():
    layer = BitLinear(6, 4)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(5, 6, requires_grad=True)
    upstream = torch.randn(5, 4)
    layer(x).backward(upstream)
    x_q, w_q = quantize_activations(x.detach()), ternary_weight(layer.weight.detach())
    torch.testing.assert_close(x.grad, upstream @ w_q)  # as if x had not been rounded
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x_q)


def test_a_weight_quantised_once_serves_many_calls():
    layer = BitLinear(8, 8)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), layer(x, layer.effective_weight()))


def test_all_zero_weights_do_not_divide_by_zero():
    codes, scale = quantize_weight(torch.zeros(4, 4))
    assert not codes.any()
    assert scale > 0


def test_an_ordinary_layer_rounds_nothing():
    layer = BitLinear(6, 4, ternary=False)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 6)
    assert torch.equal(layer(x), x @ layer.weight.T)
