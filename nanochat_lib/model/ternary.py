"""Ternary weights and int8 activations with straight-through gradients.

Choosing codes and scales is done here, because it needs gradients; storing and multiplying codes
belongs to `kernels`. In: float32 master weights and activations; out: the same tensors rounded to
what the packed kernels compute with. The scale of a weight is rounded to float16 while training,
so that an exported model holds exactly the weights that were trained.

Source: BitNet b1.58 (arXiv 2402.17764) and its FAQ. We differ by the float16 scale.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SCALE = 1e-5
MAX_INT8 = 127.0
MAX_INT16 = 32767.0
BELOW_INT16 = 32752.0  # the largest float16 that int16 holds


def weight_scale_of(weight: Tensor) -> Tensor:
    """Return mean(|W|) over the whole tensor, rounded to float16 and held in float32.

    The sum runs in float64: in float32 it depends on the number of threads, and at times the
    rounding to float16 would show it.
    """
    total = torch.linalg.vector_norm(weight.detach(), 1, dtype=torch.float64)
    mean = total / weight.numel()
    return mean.clamp(min=MIN_SCALE).half().float()


def quantize_weight(weight: Tensor) -> tuple[Tensor, float]:
    """Split a weight into ternary codes and one scale.

    Args:
        weight: (N, K) float.

    Returns:
        codes (N, K) int8 in {-1, 0, +1}, and weight_scale, so that W is about their product.

    Example: [[0.9, -0.1], [-1.1, 0.3]] has scale 0.6 and codes [[1, 0], [-1, 0]] (0.3/0.6 rounds
    half to even).
    """
    scale = weight_scale_of(weight)
    codes = (weight.detach().float() / scale).round().clamp(-1, 1).to(torch.int8)
    return codes, float(scale)


def row_steps(table: Tensor, largest: float = MAX_INT16) -> Tensor:
    """Return (N, 1): by row of a table (N, K), the power of two that its int16 codes count in."""
    most = table.detach().float().abs().amax(1, keepdim=True)
    _, exponent = torch.frexp(most.clamp(min=1e-30) / largest)
    return torch.ldexp(torch.ones_like(most), exponent)


def exact_in_16_bits(table: Tensor) -> Tensor:
    """Return a table (N, K) rounded to what float16 and int16 codes by row hold without loss.

    A multiple of its row's power of two that is less than 2^11 of them is a float16 number already;
    larger ones stay multiples when they are rounded to float16.
    """
    steps = row_steps(table, BELOW_INT16)
    return ((table.detach().float() / steps).round() * steps).half().float()


def activation_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes (..., K) and the act_scale (..., 1) to multiply them by, per token."""
    act_scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=MIN_SCALE) / MAX_INT8
    return (x.detach() / act_scale).round().to(torch.int8), act_scale


class _TernaryWeight(torch.autograd.Function):
    """W -> codes * weight_scale forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scale = weight_scale_of(weight)
        return (weight / scale).round_().clamp_(-1, 1).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Int8Activation(torch.autograd.Function):
    """x -> round(x / act_scale) * act_scale per token forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
        act_scale = largest.clamp_(min=MIN_SCALE).div_(MAX_INT8)
        return (x / act_scale).round_().mul_(act_scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def ternary_weight(weight: Tensor) -> Tensor:
    """Return codes * weight_scale with the gradient passed straight through to `weight`."""
    return _TernaryWeight.apply(weight)


def quantize_activations(x: Tensor) -> Tensor:
    """Return x rounded to 255 levels per token (last axis), straight-through gradient.

    The absolute maximum sets the scale, so no value is ever clipped and the gradient is exactly 1.
    """
    return _Int8Activation.apply(x)


class BitLinear(nn.Module):
    """Linear layer without bias: ternary weights, int8 activations, straight-through gradients.

    `ternary=False` makes it an ordinary linear layer, the baseline of the experiments.
    """

    def __init__(self, in_features: int, out_features: int, *, ternary: bool = True) -> None:
        super().__init__()
        self.ternary = ternary
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def effective_weight(self) -> Tensor:
        """Return the weight that multiplies: quantise it once per forward, share it over loops."""
        return ternary_weight(self.weight) if self.ternary else self.weight

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map (..., in_features) to (..., out_features); `weight`: an `effective_weight()`."""
        if weight is None:
            weight = self.effective_weight()
        return F.linear(quantize_activations(x) if self.ternary else x, weight)
