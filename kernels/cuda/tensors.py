"""Ternary products of torch tensors on a GPU, and of NumPy arrays through one.

In: tensors that kernels/torch_op.py has checked; out: a new tensor, on torch's current stream. Rows
with NaN or infinity give NaN: a GPU cannot raise without waiting for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.cuda import products
from kernels.cuda.driver import device, program
from kernels.cuda.structs import Codes, Matrix, ProductArgs, Result, Rows, address

if TYPE_CHECKING:
    from torch import Tensor


def linear(x: Tensor, packed: Tensor, weight_scale: Tensor) -> Tensor:
    """Multiply float32 x (B, K) by a packed weight with one scale per row, into float32 (B, N)."""
    (B, K), N = x.shape, len(weight_scale)
    if packed.data_ptr() % 16:
        raise ValueError("packed must begin at a multiple of 16 bytes: use packed.clone()")
    out, index = x.new_empty(B, N), x.device.index
    matrix = Matrix(address(packed), address(weight_scale), N, K)
    products.multiply(program(index), device(index), matrix, x, out, new_codes(x, K))
    return out


def new_codes(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scratch for the codes of x (B, ...): x_q, act_scale and x_sum."""
    import torch

    n_tokens, place = len(x), {"device": x.device}
    return (
        torch.empty(n_tokens, products.codes_width(k), dtype=torch.int8, **place),
        torch.empty(n_tokens, dtype=torch.float32, **place),
        torch.empty(n_tokens, dtype=torch.int32, **place),
    )


def accumulate(packed: np.ndarray, x_q: np.ndarray, n_rows: int) -> np.ndarray:
    """Do what `kernels.accumulate` does on the first GPU: for tests, as arrays travel both ways."""
    import torch

    (B, K), width = x_q.shape, products.codes_width(x_q.shape[1])
    codes = np.zeros((B, width), np.int8)
    codes[:, products.places(K)] = x_q
    scale = torch.ones(max(B, n_rows), device="cuda")
    arrays = [torch.from_numpy(a).cuda() for a in (packed, codes, x_q.sum(1, dtype=np.int32))]
    out = torch.empty(B, n_rows, dtype=torch.int32, device="cuda")
    plan = products.plan_product(n_rows, K, max(B, products.FUSED_TOKENS + 1), device(0))
    matrix = Matrix(address(arrays[0]), address(scale), n_rows, K)
    for first in range(0, B, plan.n_tokens):
        n = min(plan.n_tokens, B - first)
        part = Codes(address(arrays[1][first:]), address(scale), address(arrays[2][first:]))
        result = Result(None, None, address(out[first:]), n_rows, 0)
        args = ProductArgs(matrix, part, Rows(), result, None, n, width, plan.slots)
        products.run_product(program(0), plan, args)
    return out.cpu().numpy()
