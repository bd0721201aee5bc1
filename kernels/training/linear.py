"""Ternary linear layers for training, with int8 products: forward, and backward to the inputs.

In: activations, and master weights that `ternary` has quantised once for a step (all loops and
micro-batches share the result). Out: products, with the straight-through gradients of
nanochat_lib/model/ternary.py. Forward is exact in the integers: int8 activations times codes, then
scales. Backward to the inputs multiplies output gradients, rounded to int8 per token, by the same
codes (about 1 % of their norm; `int8_backward=False` keeps them); weights' gradients are products
of the given type. Under autocast outputs have its type, whatever the inputs have.

It replaces a layer's norm, quantiser and `F.linear` together:

    weights = [ternary(layer.q.weight), ternary(layer.k.weight), ternary(layer.v.weight)]
    q, k, v = norm_linear(x, layer.attn_norm.weight, eps, weights)
    (y,) = swiglu_linear(gate, up, [ternary(layer.down.weight)])

`M` tokens, `N` outputs, `K` inputs. Not measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.training.operators import NORM, PLAIN, SWIGLU, product, rows_to_int8, ternary_codes


class Ternary(NamedTuple):
    """A master weight (N, K) with its int8 codes, their transpose, and its scale (a 0-d tensor)."""

    weight: Tensor
    codes: Tensor
    transposed: Tensor
    scale: Tensor


class _Call(NamedTuple):
    """What is not a tensor: how rows are quantised, the type of outputs, how gradients are made."""

    kind: int
    eps: float
    dtype: torch.dtype
    int8_backward: bool


def ternary(weight: Tensor) -> Ternary:
    """Quantise a master weight: absmean scale rounded to float16, codes in {-1, 0, +1}."""
    scale, codes = ternary_codes(weight)
    return Ternary(weight, codes, codes.T.contiguous(), scale)


def linear(x: Tensor, weights: Sequence[Ternary], *, int8_backward: bool = True) -> list[Tensor]:
    """Return x (..., K), quantised per token, times each weight: a list of (..., N)."""
    return _apply(_Call(PLAIN, 0.0, _dtype_of(x), int8_backward), x, None, weights)


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weights: Sequence[Ternary], *,
    int8_backward: bool = True,
) -> list[Tensor]:  # fmt: skip
    """Return the RMSNorm of x (..., K), quantised per token, times each weight."""
    return _apply(_Call(NORM, eps, _dtype_of(x), int8_backward), x, norm_weight, weights)


def swiglu_linear(
    gate: Tensor, up: Tensor, weights: Sequence[Ternary], *, int8_backward: bool = True
) -> list[Tensor]:
    """Return silu(gate) * up (..., K), quantised per token, times each weight."""
    return _apply(_Call(SWIGLU, 0.0, _dtype_of(gate), int8_backward), gate, up, weights)


def _dtype_of(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _apply(
    call: _Call, x: Tensor, other: Tensor | None, weights: Sequence[Ternary]
) -> list[Tensor]:
    K = x.shape[-1]
    for weight in weights:
        if weight.codes.shape[1] != K:
            raise ValueError(f"x has {K} inputs, a weight {tuple(weight.codes.shape)}")
    rows = x.reshape(-1, K)
    if call.kind == SWIGLU:
        other = other.reshape(-1, K)
    found = _Products.apply(*call, rows, other, *(tensor for w in weights for tensor in w))
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in found]


class _Products(torch.autograd.Function):
    """Rows, quantised once, times several weights; straight-through gradients.

    Tensors come one by one, four for each weight, because torch.compile follows no other form.
    """

    @staticmethod
    def forward(ctx, kind, eps, dtype, int8_backward, x, other, *tensors):
        ctx.call, ctx.n_weights = _Call(kind, eps, dtype, int8_backward), len(tensors) // 4
        weights = [Ternary(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
        codes, act_scale = rows_to_int8(x, other, kind, eps)
        ctx.save_for_backward(x, other, codes, act_scale, *tensors)
        return tuple(product(codes, w.codes, act_scale, w.scale, dtype) for w in weights)

    @staticmethod
    def backward(ctx, *grads):
        x, other, codes, act_scale, *tensors = ctx.saved_tensors
        weights = [Ternary(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
        given = (codes.to(act_scale.dtype) * act_scale[:, None]).to(ctx.call.dtype)
        inner, to_weights = 0.0, []
        for grad, weight in zip(grads, weights, strict=True):
            inner = inner + _to_inputs(ctx.call, grad, weight)
            to_weights += [(grad.T @ given).to(weight.weight.dtype), None, None, None]
        to_x, to_other = _through(ctx.call, x, other, inner.float())
        return None, None, None, None, to_x, to_other, *to_weights


def _to_inputs(call: _Call, grad: Tensor, weight: Ternary) -> Tensor:
    if not call.int8_backward:
        return grad @ (weight.codes.to(grad.dtype) * weight.scale.to(grad.dtype))
    codes, scale = rows_to_int8(grad, None, PLAIN, 0.0)
    return product(codes, weight.transposed, scale, weight.scale, grad.dtype)


def _through(
    call: _Call, x: Tensor, other: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients to x and other of what stands before the quantiser."""
    if call.kind == PLAIN:
        return grad.to(x.dtype), None
    values = x.float()
    if call.kind == NORM:
        inverse = torch.rsqrt((values * values).mean(-1, keepdim=True) + call.eps)
        unit = values * inverse
        to_unit = grad * other.float()
        to_x = inverse * (to_unit - unit * (to_unit * unit).mean(-1, keepdim=True))
        return to_x.to(x.dtype), (grad * unit).sum(0).to(other.dtype)
    gate = torch.sigmoid(values)
    to_x = grad * other.float() * gate * (1 + values * (1 - gate))
    return to_x.to(x.dtype), (grad * values * gate).to(other.dtype)
