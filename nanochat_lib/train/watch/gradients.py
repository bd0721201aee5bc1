"""Gradient norms by group of parameters, measured by the same pass that clips."""

from __future__ import annotations

import torch
from torch import nn

from nanochat_lib.records import Metric

GROUP_OF = {
    "embed": "embedding", "head": "head", "exit_gate": "exit_gate",
    "q": "attention", "k": "attention", "v": "attention", "o": "attention",
    "gate": "feed_forward", "up": "feed_forward", "down": "feed_forward",
}  # fmt: skip
GROUPS = ("embedding", "attention", "feed_forward", "norms", "exit_gate", "head")


def group_of(name: str) -> str:
    """Return the group of a parameter, e.g. `layers.0.q.weight` is "attention"."""
    return GROUP_OF.get(name.split(".")[-2], "norms")


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> dict[str, float]:
    """Scale the gradients so that their global norm is at most `max_norm`.

    Returns:
        the norm before clipping, of all parameters and of each group that has gradients.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
    squares = torch.stack(torch._foreach_norm([p.grad for _, p in named])).float().square()
    places = torch.tensor([GROUPS.index(group_of(name)) for name, _ in named])
    by_group = squares.new_zeros(len(GROUPS)).index_add(0, places.to(squares.device), squares)
    total = by_group.sum().sqrt()
    torch.nn.utils.clip_grads_with_norm_([p for _, p in named], max_norm, total)
    norms = by_group.sqrt().tolist()
    seen = {int(i) for i in places}
    return {str(Metric.GRAD_NORM): float(total)} | {
        f"{Metric.GRAD_NORM_GROUP}{group}": norms[i] for i, group in enumerate(GROUPS) if i in seen
    }
