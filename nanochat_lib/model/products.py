"""How a layer multiplies by its matrices: in floating point, or in int8.

In: the layer's input and its seven matrices, quantised once for a forward pass or for a step; out:
the same numbers up to rounding, with straight-through gradients. `LayerWeights` multiplies rounded
floats, the definition, fast on CPUs. `Int8Weights` multiplies the codes themselves (kernels/
training): exact sums, on GPUs with int8 tensor cores; gradients to its inputs are rounded to int8
too, about 1 % of their norm.

Both have the same three methods, and the layer knows no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.training.linear import Ternary, linear, norm_linear, swiglu_linear, ternary
from nanochat_lib.model.attention import project_rotated, rotate

if TYPE_CHECKING:  # looplm.py imports this module
    from nanochat_lib.model.looplm import Layer


class LayerWeights(NamedTuple):
    """The effective weights of one layer for one forward pass, (out, in).

    One fused matmul for gate and up was a third slower on a CPU: its halves are strided.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: Layer) -> LayerWeights:
        """Quantise every matrix once; the result serves all loops of a forward pass."""
        weights = (getattr(layer, name).effective_weight() for name in cls._fields)
        device = layer.q.weight.device.type
        if torch.is_autocast_enabled(device):  # else every loop would cast them anew
            weights = (weight.to(torch.get_autocast_dtype(device)) for weight in weights)
        return cls(*weights)

    def heads(self, layer: Layer, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (turned) and values (B, T, heads, K) of the layer's input."""
        x = layer.quantized(layer.attn_norm(x))
        q, k = project_rotated(x, self.q, rope), project_rotated(x, self.k, rope)
        return q, k, F.linear(x, self.v).unflatten(-1, (-1, layer.config.head_size))

    def output(self, layer: Layer, out: Tensor) -> Tensor:
        """Map what attention gives (B, T, D) to what it adds to the residual stream."""
        if layer.attn_sub_norm is not None:
            out = layer.attn_sub_norm(out)
        return F.linear(layer.quantized(out), self.o)

    def feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Map the layer's (B, T, D) to what SwiGLU adds to the residual stream."""
        x = layer.quantized(layer.ffn_norm(x))
        inner = F.silu(F.linear(x, self.gate)) * F.linear(x, self.up)  # (B, T, F)
        if layer.ffn_sub_norm is not None:
            inner = layer.ffn_sub_norm(inner)
        return F.linear(layer.quantized(inner), self.down)


BIT_LINEARS = LayerWeights._fields


class Int8Weights(NamedTuple):
    """The codes of one layer's matrices; see `LayerWeights` for the methods."""

    q: Ternary
    k: Ternary
    v: Ternary
    o: Ternary
    gate: Ternary
    up: Ternary
    down: Ternary

    @classmethod
    def of(cls, layer: Layer) -> Int8Weights:
        """Quantise every matrix once; the result serves until the masters change."""
        return cls(*(ternary(getattr(layer, name).weight) for name in BIT_LINEARS))

    def heads(self, layer: Layer, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (turned) and values; the input is quantised once for all."""
        norm = layer.attn_norm
        found = norm_linear(x, norm.weight, norm.eps, (self.q, self.k, self.v))
        q, k, v = (heads.unflatten(-1, (-1, layer.config.head_size)) for heads in found)
        return rotate(q, rope), rotate(k, rope), v

    def output(self, layer: Layer, out: Tensor) -> Tensor:
        """Map what attention gives to what it adds."""
        return _after(layer.attn_sub_norm, out, self.o)

    def feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Map the layer's input to what SwiGLU adds; silu(gate) * up is made while quantising."""
        norm = layer.ffn_norm
        gate, up = norm_linear(x, norm.weight, norm.eps, (self.gate, self.up))
        if layer.ffn_sub_norm is not None:
            return _after(layer.ffn_sub_norm, F.silu(gate) * up, self.down)
        return swiglu_linear(gate, up, (self.down,))[0]


def _after(norm: torch.nn.Module | None, x: Tensor, weight: Ternary) -> Tensor:
    if norm is None:
        return linear(x, (weight,))[0]
    return norm_linear(x, norm.weight, norm.eps, (weight,))[0]
