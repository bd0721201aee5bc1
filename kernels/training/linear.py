"""Ternary linear layers for training, with int8 products: forward, and backward to the inputs.

In: activations, and master weights that `ternary` has quantised once for a step (all loops and
micro-batches share the result). Out: products, with the straight-through gradients of
nanochat_lib/model/ternary.py. Forward is exact in the integers: int8 activations times codes, then
scales. Backward to the inputs multiplies output gradients, rounded to int8 per token, by the same
codes (about 1 % of their norm; `int8_backward=False` keeps them); weights' gradients are products
of the given type. On a GPU with triton these are Triton kernels, elsewhere the same sums in torch.

It replaces a layer's norm, quantiser and `F.linear` together:

    weights = [ternary(layer.q.weight), ternary(layer.k.weight), ternary(layer.v.weight)]
    q, k, v = norm_linear(x, layer.attn_norm.weight, eps, weights)
    (y,) = swiglu_linear(gate, up, [ternary(layer.down.weight)])

`M` tokens, `N` outputs, `K` inputs. Not measured on a GPU yet.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SCALE = 1e-5
_PLAIN, _NORM, _SWIGLU = range(3)
_BLOCK = 4096  # numbers of a weight that one program quantises


@dataclass(frozen=True)
class Ternary:
    """A master weight (N, K) with its int8 codes, their transpose, and its scale (a 0-d tensor)."""

    weight: Tensor
    codes: Tensor
    transposed: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Call:
    """What is not a tensor: how rows are quantised, and whether gradients are rounded."""

    kind: int
    eps: float
    int8_backward: bool


def ternary(weight: Tensor) -> Ternary:
    """Quantise a master weight: absmean scale rounded to float16, codes in {-1, 0, +1}."""
    data = weight.detach().contiguous()
    if _has_kernels(data):
        scale, codes = _ternary_by_triton(data)
    else:
        scale = _rounded(data.abs().mean(dtype=torch.float64))
        codes = (data.float() / scale).round().clamp(-1, 1).to(torch.int8)
    return Ternary(weight, codes, codes.T.contiguous(), scale)


def linear(x: Tensor, weights: Sequence[Ternary], *, int8_backward: bool = True) -> list[Tensor]:
    """Return x (..., K), quantised per token, times each weight: a list of (..., N)."""
    return _apply(_Call(_PLAIN, 0.0, int8_backward), x, None, weights)


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weights: Sequence[Ternary], *,
    int8_backward: bool = True,
) -> list[Tensor]:  # fmt: skip
    """Return the RMSNorm of x (..., K), quantised per token, times each weight."""
    return _apply(_Call(_NORM, eps, int8_backward), x, norm_weight, weights)


def swiglu_linear(
    gate: Tensor, up: Tensor, weights: Sequence[Ternary], *, int8_backward: bool = True
) -> list[Tensor]:
    """Return silu(gate) * up (..., K), quantised per token, times each weight."""
    return _apply(_Call(_SWIGLU, 0.0, int8_backward), gate, up, weights)


def _apply(
    call: _Call, x: Tensor, other: Tensor | None, weights: Sequence[Ternary]
) -> list[Tensor]:
    K = x.shape[-1]
    for weight in weights:
        if weight.codes.shape[1] != K:
            raise ValueError(f"x has {K} inputs, a weight {tuple(weight.codes.shape)}")
    rows = x.reshape(-1, K).contiguous()
    if call.kind == _SWIGLU:
        other = other.reshape(-1, K).contiguous()
    masters = [weight.weight for weight in weights]
    found = _Products.apply(call, tuple(weights), rows, other, *masters)
    return [y.reshape(*x.shape[:-1], -1) for y in found]


class _Products(torch.autograd.Function):
    """Rows, quantised once, times several weights; straight-through gradients."""

    @staticmethod
    def forward(ctx, call, weights, x, other, *masters):
        codes, act_scale = rows_to_int8(call.kind, x, other, call.eps)
        ctx.call, ctx.weights = call, weights
        ctx.save_for_backward(x, other, codes, act_scale)
        return tuple(product(codes, w.codes, act_scale, w.scale, x.dtype) for w in weights)

    @staticmethod
    def backward(ctx, *grads):
        x, other, codes, act_scale = ctx.saved_tensors
        grads = [grad.contiguous() for grad in grads]
        inner = sum(_to_inputs(ctx.call, g, w) for g, w in zip(grads, ctx.weights, strict=True))
        given = (codes.to(act_scale.dtype) * act_scale[:, None]).to(x.dtype)
        to_masters = [(grad.T @ given).to(w.weight.dtype)
                      for grad, w in zip(grads, ctx.weights, strict=True)]  # fmt: skip
        to_x, to_other = _through(ctx.call, x, other, inner)
        return None, None, to_x, to_other, *to_masters


def _to_inputs(call: _Call, grad: Tensor, weight: Ternary) -> Tensor:
    if not call.int8_backward:
        return grad @ (weight.codes.to(grad.dtype) * weight.scale.to(grad.dtype))
    codes, scale = rows_to_int8(_PLAIN, grad, None, 0.0)
    return product(codes, weight.transposed, scale, weight.scale, grad.dtype)


def _through(
    call: _Call, x: Tensor, other: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients to x and other of what stands before the quantiser."""
    if call.kind == _PLAIN:
        return grad, None
    with torch.enable_grad():
        x, other = x.detach().requires_grad_(), other.detach().requires_grad_()
        if call.kind == _NORM:
            before = F.rms_norm(x, x.shape[1:], other.to(x.dtype), call.eps)
        else:
            before = F.silu(x) * other
    return torch.autograd.grad(before, (x, other), grad)


def rows_to_int8(kind: int, x: Tensor, other: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return int8 codes (M, K) and float32 act_scale (M,) of what `kind` makes of the rows of x."""
    if _has_kernels(x):
        return _rows_by_triton(kind, x, other, eps)
    values = x.float()
    if kind == _NORM:
        inverse = 1 / torch.sqrt((values * values).mean(-1, keepdim=True) + eps)
        values = values * inverse * other.float()
    if kind == _SWIGLU:
        values = F.silu(values) * other.float()
    scale = values.abs().amax(-1).clamp(min=MIN_SCALE) / 127.0
    return (values / scale[:, None]).round().to(torch.int8), scale


def product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int8 a (M, K) times int8 b (N, K), scaled per row of a and by one number for b.

    In torch as float32: sums of ternary codes times int8 are exact there up to 132,000 inputs.
    """
    if _has_kernels(a):
        out = a.new_empty(len(a), len(b), dtype=dtype)
        _launch_product(a, b, a_scale, b_scale, out)
        return out
    return ((a.float() @ b.float().T) * (a_scale * b_scale)[:, None]).to(dtype)


def sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the int32 sums of int8 a (M, K) times int8 b (N, K) by the Triton kernel."""
    out = a.new_empty(len(a), len(b), dtype=torch.int32)
    _launch_product(a, b, None, None, out)
    return out


def _rounded(mean: Tensor) -> Tensor:
    return mean.clamp(min=MIN_SCALE).half().float()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _has_kernels(tensor: Tensor) -> bool:
    """Return whether Triton runs on this tensor; its interpreter does on any."""
    if not _has_triton():
        return False
    import triton

    return tensor.is_cuda or triton.knobs.runtime.interpret


def _ternary_by_triton(weight: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.training import triton_kernels

    n = weight.numel()
    grid, partial = (-(-n // _BLOCK),), weight.new_empty(-(-n // _BLOCK), dtype=torch.float64)
    triton_kernels.sum_magnitudes[grid](weight, partial, n, BLOCK=_BLOCK)
    scale = _rounded(partial.sum() / n)
    codes = torch.empty_like(weight, dtype=torch.int8)
    triton_kernels.ternary_codes[grid](weight, scale, codes, n, BLOCK=_BLOCK)
    return scale, codes


def _rows_by_triton(
    kind: int, x: Tensor, other: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from kernels.training import triton_kernels

    (M, K), block = x.shape, 1 << (x.shape[1] - 1).bit_length()
    codes = torch.empty_like(x, dtype=torch.int8)
    act_scale = x.new_empty(M, dtype=torch.float32)
    triton_kernels.rows_to_int8[(M,)](
        x, x if other is None else other, codes, act_scale, K, K, eps,
        KIND=kind, BLOCK=block, num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip
    return codes, act_scale


def _launch_product(
    a: Tensor, b: Tensor, a_scale: Tensor | None, b_scale: Tensor | None, out: Tensor
) -> None:
    from kernels.training import triton_kernels

    (M, K), N = a.shape, len(b)
    sizes = tile_sizes(M, N, _capability(a.device))
    grid = (-(-M // sizes["BLOCK_M"]) * -(-N // sizes["BLOCK_N"]),)
    scales = (a if a_scale is None else a_scale, a if b_scale is None else b_scale)
    triton_kernels.int8_product[grid](
        a, b, *scales, out, M, N, K, **sizes, SCALED=a_scale is not None
    )


def tile_sizes(m: int, n: int, capability: int) -> dict[str, int]:
    """Return how a product is cut into programs; fixed, so that no run tunes and none differs.

    Three stages of the large tiles take 144 KB of shared memory, which data-centre GPUs have (from
    compute capability 8.0 163 KB, 9.0 and 10.0 227 KB), and 72 KB for the 99 KB of the others.
    """
    if min(m, n) < 1024:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
    depth = 128 if capability in (80, 90, 100) else 64
    return {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": depth, "num_warps": 8, "num_stages": 3}


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
