"""Attention: the path of compiled training gives what torch's own attention and rotation give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nanochat_lib.model.attention import (
    BLOCK,
    MAX_BLOCKED,
    _attend_in_blocks,
    attend,
    positions_of,
    project_rotated,
    rotate,
)


def heads(n: int, n_positions: int, n_heads: int) -> torch.Tensor:
    return torch.randn(
        n, n_positions, n_heads, 16, generator=torch.Generator().manual_seed(n_heads)
    )


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax over earlier keys, in float64, one query at a time."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(group, 2) for x in (k, v))
    out = torch.zeros_like(q, dtype=torch.float64)
    for t in range(q.shape[1]):
        scores = torch.einsum("bhk,bshk->bhs", q[:, t].double(), k[:, : t + 1]) / 4
        out[:, t] = torch.einsum("bhs,bshk->bhk", scores.softmax(-1), v[:, : t + 1])
    return out.flatten(2).float()


@pytest.mark.parametrize("n_positions", [BLOCK, 3 * BLOCK])
def test_blocks_give_what_the_definition_gives(n_positions):
    q, k, v = (heads(2, n_positions, n) for n in (4, 2, 2))
    mask = positions_of(n_positions, head_size=16, rope_base=1e4).mask
    expected = reference(q, k, v)
    torch.testing.assert_close(_attend_in_blocks(q, k, v, mask), expected)
    torch.testing.assert_close(attend(q, k, v, mask), expected)


def test_blocks_have_the_gradients_of_torch():
    inputs = [heads(2, 2 * BLOCK, n).double().requires_grad_() for n in (4, 2, 2)]
    mask = positions_of(2 * BLOCK, head_size=16, rope_base=1e4).mask
    weight = torch.randn(2, 2 * BLOCK, 64, dtype=torch.float64)
    ours = torch.autograd.grad((_attend_in_blocks(*inputs, mask) * weight).sum(), inputs)
    q, k, v = (x.transpose(1, 2) for x in inputs)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    theirs = torch.autograd.grad((out.transpose(1, 2).flatten(2) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):  # scores of blocks are in float32
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_only_lengths_that_fit_blocks_have_a_mask():
    for n_positions in (BLOCK - 1, BLOCK + 1, MAX_BLOCKED + BLOCK):
        assert not positions_of(n_positions, head_size=16, rope_base=1e4).mask.numel()


def test_rotation_turns_pairs_by_the_angle_of_their_position():
    x, rope = heads(2, 24, 4), positions_of(24, head_size=16, rope_base=1e4).rope
    turned = rotate(x, rope)
    pair, t = 3, 7
    angle = t * 1e4 ** (-2 * pair / 16)
    expected = torch.view_as_complex(x[0, t, 1].view(-1, 2))[pair] * torch.polar(
        torch.tensor(1.0), torch.tensor(angle)
    )
    found = torch.view_as_complex(turned[0, t, 1].view(-1, 2))[pair]
    torch.testing.assert_close(found, expected)


def test_compiled_order_of_pairs_leaves_all_scores_alone(monkeypatch):
    x, weight = torch.randn(2, 24, 32), torch.randn(64, 32)
    rope = positions_of(24, head_size=16, rope_base=1e4).rope
    eager = project_rotated(x, weight, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = project_rotated(x, weight, rope)
    assert not torch.equal(eager, compiled)
    scores = [torch.einsum("bthk,bshk->bhts", h, h) for h in (eager, compiled)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
