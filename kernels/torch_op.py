"""The ternary product as a torch operator, `torch.ops.nanochat.ternary_linear`.

Importing this module registers it; `kernels` alone never imports torch. In: tensors on the CPU or
on a GPU; out: a new tensor there. It has a fake implementation, so torch.compile and torch.export
take it as it is; there is no gradient, because packed codes have none (training is in
nanochat_lib/model/ternary.py).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

import kernels
from kernels import cpu
from kernels.compile import LEVELS

# A Library and not torch.library.custom_op, whose wrapper alone costs several microseconds a call.
_LIBRARY = torch.library.Library("nanochat", "DEF")
_LIBRARY.define(
    "ternary_linear(Tensor x, Tensor packed, Tensor weight_scale, str packing='2bit', "
    "int threads=1) -> Tensor"
)


def ternary_linear(
    x: Tensor, packed: Tensor, weight_scale: Tensor, packing: str = "2bit", threads: int = 1
) -> Tensor:
    """Multiply activations by a packed ternary weight, quantising each token to int8 first.

    Args:
        x: float32 (..., K), finite.
        packed: uint8 from `kernels.pack`, contiguous.
        weight_scale: float32 (N,), one scale per row.
        packing: how `packed` was packed, "2bit" or "base3" (on the CPU alone).
        threads: row groups are split over this many threads of the CPU.

    Returns:
        float32 (..., N).

    Raises:
        ValueError: a tensor is not as above; on the CPU also when x is not finite, where a GPU
            returns NaN for that row.
        CudaUnavailableError: the tensors are on a GPU that cannot run the kernels, and why.
    """
    return _OPERATOR(x, packed, weight_scale, packing, threads)


def _on_cpu(
    x: Tensor, packed: Tensor, weight_scale: Tensor, packing: str = "2bit", threads: int = 1
) -> Tensor:
    _check(x, packed, weight_scale)
    K, N = x.shape[-1], weight_scale.shape[0]
    rows = x if x.dim() == 2 and x.is_contiguous() else x.reshape(-1, K).contiguous()
    if rows.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], N)
    arrays = packed.numpy(), _array(weight_scale), _array(rows)
    kernels.check_packed_shape(arrays[0], N, K, packing)
    level = _backend()
    if level == "reference" or threads > 1:
        options = {"n_rows": N, "packing": packing, "backend": level, "threads": threads}
        found = kernels.ternary_matmul(*arrays, **options)
    else:
        found = _multiply(LEVELS[level], *arrays, packing)
    out = torch.from_numpy(found)
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], N)


def _on_cuda(
    x: Tensor, packed: Tensor, weight_scale: Tensor, packing: str = "2bit", threads: int = 1
) -> Tensor:
    from kernels.cuda import tensors

    _check(x, packed, weight_scale)
    K, N = x.shape[-1], weight_scale.shape[0]
    if packing != "2bit":
        raise ValueError(f"packing must be '2bit' on a GPU, found {packing!r}")
    if tuple(packed.shape) != kernels.packed_shape(N, K):
        raise ValueError(
            f"packed must be uint8 {kernels.packed_shape(N, K)} for a ({N}, {K}) weight, found "
            f"{tuple(packed.shape)}"
        )
    if not x.device == packed.device == weight_scale.device:
        places = f"{x.device}, {packed.device} and {weight_scale.device}"
        raise ValueError(f"x, packed and weight_scale must be on one device, found {places}")
    rows = x.detach().reshape(-1, K).contiguous()
    if rows.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], N)
    return tensors.linear(rows, packed, weight_scale.contiguous()).reshape(*x.shape[:-1], N)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()


_backend = functools.cache(kernels.choose_backend)  # at first use; the environment is slow to read


def _multiply(
    level: tuple[int, ...], packed: np.ndarray, scale: np.ndarray, x: np.ndarray, packing: str
) -> np.ndarray:
    """Do what `kernels.ternary_matmul` does in one jitted call: it costs a fourth of the time."""
    (B, K), N = x.shape, len(scale)
    scratch = kernels.new_scratch(B, K, packed.shape[0] * 16)
    out = np.empty((B, N), np.float32)
    matrix = (kernels.with_scratch(packed, packing, K, B), scale)
    if not cpu.linear(level, matrix, x, B, (0, packed.shape[0]), scratch, out):
        raise ValueError("x holds NaN or infinity")
    return out


def _fake(
    x: Tensor, packed: Tensor, weight_scale: Tensor, packing: str = "2bit", threads: int = 1
) -> Tensor:
    _check(x, packed, weight_scale)
    return x.new_empty(*x.shape[:-1], weight_scale.shape[0])


def _check(x: Tensor, packed: Tensor, weight_scale: Tensor) -> None:
    if x.dtype is not torch.float32 or x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x must be float32 (..., K), found {x.dtype} {tuple(x.shape)}")
    if packed.dtype is not torch.uint8 or packed.dim() != 3 or not packed.is_contiguous():
        raise ValueError(
            "packed must be contiguous uint8 (N/16, K/16, 64) from kernels.pack, found "
            f"{packed.dtype} {tuple(packed.shape)}"
        )
    if weight_scale.dtype is not torch.float32 or weight_scale.dim() != 1:
        raise ValueError(
            "weight_scale must be float32 (N,), one per row, found "
            f"{weight_scale.dtype} {tuple(weight_scale.shape)}"
        )


_LIBRARY.impl("ternary_linear", _on_cpu, "CPU")
_LIBRARY.impl("ternary_linear", _on_cuda, "CUDA")
torch.library.register_fake("nanochat::ternary_linear", _fake, lib=_LIBRARY)
_OPERATOR = torch.ops.nanochat.ternary_linear.default  # without looking for the overload
