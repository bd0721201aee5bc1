"""Causal attention with rotary positions, as training runs it.

In: quantised inputs (B, T, D) and the effective weights of q, k and v; out: (B, T, H * K). Compiled
on a CPU in bfloat16, short sequences take a path of their own, because there the flash kernel's
backward pass is slow: at T = 128 it needs 11 ms where products and softmax in blocks need 3, at 256
31 against 21 (B * T = 1,024 and 4,096, H = 4, K = 64, one core with AMX).

Source: rotary positions, arXiv 2104.09864, interleaved pairs.

B batch, T positions, D d_model, H heads, J key/value heads, K head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries that share one product; later keys are left out, a quarter of them at T = 256
MAX_BLOCKED = 512  # positions; the scores of longer sequences would not fit the cache


class Positions(NamedTuple):
    """What attention knows of positions: computed once per forward pass.

    rope: (2, T, 1, K/2), cosines and sines. mask: (T, T), 0 or -inf where the key lies ahead, or
    empty where only the flash kernel can be used.
    """

    rope: Tensor
    mask: Tensor


def positions_of(
    n_positions: int, *, head_size: int, rope_base: float, device: torch.device | str = "cpu"
) -> Positions:
    """Return the tables of positions 0 .. n_positions - 1."""
    is_blocked = n_positions <= MAX_BLOCKED and n_positions % BLOCK == 0
    size = n_positions if is_blocked and torch.device(device).type == "cpu" else 0
    mask = torch.full((size, size), float("-inf"), device=device).triu(1)
    return Positions(rope_table(n_positions, head_size, rope_base, device), mask)


def rope_table(
    n_positions: int, head_size: int, rope_base: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Return cosines and sines (2, T, 1, K/2): pair i turns by position * base^(-2i/K)."""
    half = torch.arange(head_size // 2, device=device, dtype=torch.float32)
    frequency = rope_base ** (-2 * half / head_size)
    angle = torch.outer(torch.arange(n_positions, device=device).float(), frequency)
    return torch.stack((angle.cos(), angle.sin()))[:, :, None]


def project_rotated(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """Return the heads (B, T, H, K) of x (B, T, D), turned by the angle of each position.

    Interleaved pairs (2i, 2i + 1) are turned as complex numbers, which is fast eagerly. Compilers
    do not vectorise strides of two, so compiled the weight's rows are put in the order evens, odds
    of each head first: all heads change alike, and no score of attention moves.
    """
    head_size = 2 * rope.shape[-1]
    if torch.compiler.is_compiling():
        weight = weight.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2)
        heads = F.linear(x, weight).unflatten(-1, (-1, head_size))
        return _rotate_halves(heads, rope)
    return rotate(F.linear(x, weight).unflatten(-1, (-1, head_size)), rope)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the interleaved pairs of x (B, T, H, K) by the angles of each position.

    Compilers know no complex numbers; where x and not the weight is at hand, pairs stay pairs.
    """
    if torch.compiler.is_compiling():
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack(_turned(even, odd, rope), -1).flatten(-2).to(x.dtype)
    turn = torch.complex(rope[0], rope[1])  # (T, 1, K/2)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def _rotate_halves(x: Tensor, rope: Tensor) -> Tensor:
    return torch.cat(_turned(*x.chunk(2, dim=-1), rope.to(x.dtype)), dim=-1)


def _turned(even: Tensor, odd: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = rope
    return even * cos - odd * sin, even * sin + odd * cos


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Return the causal attention (B, T, H * K) of q (B, T, H, K) over k and v (B, T, J, K)."""
    is_blocked = torch.compiler.is_compiling() and mask.numel() and q.dtype == torch.bfloat16
    if is_blocked:
        return _attend_in_blocks(q, k, v, mask)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(2)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    B, T, H, K = q.shape
    J = k.shape[2]
    q = q.unflatten(2, (J, H // J)).permute(0, 2, 3, 1, 4)  # (B, J, H/J, T, K)
    k, v = k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)  # (B, J, K, T), (B, J, T, K)
    blocks = []
    for start in range(0, T, BLOCK):
        end = start + BLOCK
        rows = q[..., start:end, :].reshape(B * J, -1, K)
        scores = torch.bmm(rows, k[..., :end].reshape(B * J, K, end))
        scores = scores.view(-1, BLOCK, end).float() * K**-0.5 + mask[start:end, :end]
        share = scores.softmax(-1).to(q.dtype).view(B * J, -1, end)
        out = torch.bmm(share, v[:, :, :end].reshape(B * J, end, K))
        blocks.append(out.view(B, J, H // J, BLOCK, K))
    out = torch.cat(blocks, 3) if len(blocks) > 1 else blocks[0]
    return out.permute(0, 3, 1, 2, 4).reshape(B, T, H * K)
