"""The losses of LoopLM training, for exits after every loop.

Stage I: the cross-entropy expected under the exit distribution, and an entropy term that keeps all
depths in use. Stage II: only the exit gate learns, from what a further loop would gain. In: the R
hidden states and exit probabilities of `LoopLM.forward`; out: scalars to differentiate.

The logits of all exits never exist at once: the head is applied to chunks of positions, and the
gradients of a chunk are made while its logits still lie in the cache. The gradients that go back to
the R hidden states wait until the backward pass reaches their loop, or are remade there.

Source: Ouro (arXiv 2510.25741), sections 3.2 and 3.4.

M = B * T positions, R loops, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lib.config import PretrainConfig
from nanochat_lib.model.looplm import LoopLM, LoopOutput, exit_entropy_nats, exit_pdf

CHUNK_POSITIONS = 512  # logits of one chunk: 4 MB at V = 2048; 128 to 1024 are equally fast
KEEP_SLOPE = 50.0
KEEP_GAIN_NATS = 0.005

Slopes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Objective:
    """What stage I minimises.

    entropy_objective: "expected" subtracts the mean entropy of each token's exit distribution
    (Ouro). "uniform_gap" adds |ln R - H| of the batch's mean exit distribution (the project brief):
    it asks that all depths are used by some token, not by every token. In both the gate also learns
    from the cross-entropies, because they are weighted by its distribution.

    trained_exits: "all", or "last": the cross-entropy of the last exit alone, with neither
    distribution nor entropy; what the gate knows it then learns in stage II.

    remakes_gradients: make the gradients of hidden states in the backward pass, from logits
    computed anew. A fourth product of the head, for R - 1 fewer gradients (M, D) in memory.
    """

    entropy_weight: float
    entropy_objective: Literal["expected", "uniform_gap"] = "expected"
    trained_exits: Literal["all", "last"] = "all"
    remakes_gradients: bool = False

    @classmethod
    def of(cls, plan: PretrainConfig) -> Objective:
        """Return the objective of a plan.

        "auto" keeps gradients unless activations are recomputed too: that is where memory is short.
        """
        remakes = plan.exit_gradients == "remade" or (
            plan.exit_gradients == "auto" and plan.activation_checkpointing != "none"
        )
        return cls(plan.entropy_weight, plan.entropy_objective, plan.trained_exits, remakes)


@dataclass(frozen=True)
class StageOneLoss:
    """`total = task + entropy_term`, all nats per token; `pdf_mean` (R,) is detached."""

    total: Tensor
    task: Tensor
    entropy_term: Tensor
    pdf_mean: Tensor


def stage_one_loss(
    model: LoopLM,
    output: LoopOutput,
    targets: Tensor,
    objective: Objective,
    *,
    is_compiled: bool = False,
) -> StageOneLoss:
    """Return the cross-entropy of the trained exits plus the entropy term.

    Args:
        targets: (B, T) int64, the next tokens.
        is_compiled: make the softmax and its gradient in one compiled pass.
    """
    pdf = exit_pdf(output.exit_prob).flatten(1)  # (R, M)
    n_positions = pdf.shape[1]
    if objective.trained_exits == "last":
        exits, weights = output.hidden[-1:], pdf.new_full((1, n_positions), 1 / n_positions)
        entropy_term = pdf.new_zeros(())
    else:
        exits, weights = output.hidden, pdf / n_positions
        penalty = entropy_penalty(pdf, objective.entropy_objective)
        entropy_term = objective.entropy_weight * penalty
    slopes = _compiled_slopes() if is_compiled else exit_slopes
    made = _Exits(slopes, targets.flatten(), objective.remakes_gradients)
    task = _ExitCrossEntropy.apply(made, weights, model.head.weight, *exits)
    if made.remakes:
        for loop_idx, h in enumerate(exits):
            h.register_hook(partial(made.with_gradient, loop_idx, h.detach()))
    return StageOneLoss(task + entropy_term, task.detach(), entropy_term, pdf.detach().mean(1))


def entropy_penalty(pdf: Tensor, objective: Literal["expected", "uniform_gap"]) -> Tensor:
    """Return the unweighted entropy term in nats of an exit_pdf (R, M)."""
    if objective == "expected":
        return -exit_entropy_nats(pdf).mean()
    return (math.log(len(pdf)) - exit_entropy_nats(pdf.mean(1))).abs()


def gate_loss(exit_prob: Tensor, cross_entropy: Tensor, *, look_ahead: bool = True) -> Tensor:
    """Return the stage-II loss: the gate learns whether a loop's gain is worth it.

    Args:
        exit_prob: (R, M), differentiable in the gate.
        cross_entropy: (R, M) nats of every loop; treated as constant.
        look_ahead: pair the gate after loop r - 1 with the gain of loop r, which is the decision
            it takes. Ouro (False) pairs the gate after loop r with the gain loop r has just made;
            its last gate decides nothing, so with two loops Ouro's form trains nothing useful.

    Source: Ouro, section 3.4: gain_r = max(0, CE_{r-1} - CE_r), keep_r = sigmoid(50 (gain_r -
    0.005)), loss = (1/R) sum_{r>=2} BCE(1 - exit_prob, keep_r). A model of one loop has loss 0.
    """
    gain = (cross_entropy[:-1] - cross_entropy[1:]).clamp(min=0).detach()  # (R - 1, M)
    keep = torch.sigmoid(KEEP_SLOPE * (gain - KEEP_GAIN_NATS))
    stay = 1 - (exit_prob[:-1] if look_ahead else exit_prob[1:])
    bce = F.binary_cross_entropy(stay.clamp(1e-6, 1 - 1e-6), keep, reduction="none")
    return bce.mean(1).sum() / len(exit_prob) if len(exit_prob) > 1 else exit_prob.sum() * 0


@torch.no_grad()
def token_statistics(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and entropy of the next-token distribution, both (M,) nats.

    Args:
        hidden: (M, D); head: (V, D); targets: (M,).
    """
    cross_entropy, entropy = [], []
    for rows in _chunks(len(targets)):
        log_prob = F.linear(hidden[rows], head).float().log_softmax(-1)
        cross_entropy.append(-log_prob.gather(1, targets[rows, None])[:, 0])
        entropy.append(-(log_prob.exp() * log_prob).sum(-1))
    return torch.cat(cross_entropy), torch.cat(entropy)


@dataclass
class _Exits:
    """What forward and backward of the loss over the exits share."""

    slopes: Slopes
    targets: Tensor  # (M,)
    remakes: bool
    weights: Tensor | None = None  # (R, M), times the loss's gradient: known once backward began
    table: Tensor | None = None  # the head as it multiplies, (V, D)

    def with_gradient(self, loop_idx: int, hidden: Tensor, grad: Tensor) -> Tensor:
        """Add the loss's gradient to what later loops send back to hidden, both (B, T, D).

        In place where that is a sum with our zeros, which autograd has just made for us alone.
        """
        total = grad if grad.is_contiguous() else grad.clone(memory_format=torch.contiguous_format)
        flat, given, weights = total.flatten(0, 1), hidden.flatten(0, 1), self.weights[loop_idx]
        for rows in _chunks(len(self.targets)):
            logits = F.linear(given[rows].to(self.table.dtype), self.table)
            _, slope = self.slopes(logits, self.targets[rows], weights[rows])
            flat[rows] += slope @ self.table
        return total


class _ExitCrossEntropy(torch.autograd.Function):
    """(weights, head, *hidden) -> sum_r sum_m weights[r, m] * CE_r[m].

    The weights are known in the forward pass, so each chunk's gradients are made at once: three
    matmuls for each position instead of the four of recomputing the logits, and one chunk of
    logits in memory whatever R is. Where hidden states' gradients are remade, each gets an expanded
    zero here, and a hook adds its gradient when the backward pass has come to its loop. So no other
    backward pass may go through the same hidden states.
    """

    @staticmethod
    def forward(ctx: Any, made: _Exits, weights: Tensor, head: Tensor, *hidden: Tensor) -> Tensor:
        cross_entropy = torch.empty_like(weights)  # (R, M)
        grad_head = torch.zeros_like(head)
        kind = torch.contiguous_format
        grad_hidden = (
            [] if made.remakes else [torch.empty_like(h, memory_format=kind) for h in hidden]
        )
        table = head.detach().to(_matmul_dtype(head))
        for loop_idx, h in enumerate(hidden):
            given = h.flatten(0, 1)
            for rows in _chunks(len(made.targets)):
                rows_in = given[rows].to(table.dtype)
                logits = F.linear(rows_in, table)
                nats, slope = made.slopes(logits, made.targets[rows], weights[loop_idx, rows])
                cross_entropy[loop_idx, rows] = nats
                if not made.remakes:
                    grad_hidden[loop_idx].flatten(0, 1)[rows] = slope @ table
                grad_head += slope.T @ rows_in
        ctx.made, ctx.no_gradients = made, [h.new_zeros(()).expand_as(h) for h in hidden]
        ctx.save_for_backward(weights, table, cross_entropy, grad_head, *grad_hidden)
        return (weights * cross_entropy).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, table, cross_entropy, *gradients = ctx.saved_tensors
        head, *hidden = (g.mul_(grad) for g in gradients)  # ours alone: no need for a copy
        if ctx.made.remakes:
            ctx.made.weights, ctx.made.table = weights * grad, table
            hidden = ctx.no_gradients
        return (None, grad * cross_entropy, head, *hidden)


def exit_slopes(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy (M,) in nats and the gradient of its weighted sum by the logits.

    Args:
        logits: (M, V); targets: (M,) int64; weights: (M,).
    """
    log_prob = logits.float().log_softmax(-1)
    nats = -log_prob.gather(1, targets[:, None])[:, 0]
    is_target = targets[:, None] == torch.arange(logits.shape[1], device=logits.device)
    slope = log_prob.exp_().sub_(is_target.to(torch.int8)).mul_(weights[:, None])
    return nats, slope.to(logits.dtype)


@cache
def _compiled_slopes() -> Slopes:
    return torch.compile(exit_slopes, dynamic=False)


def _matmul_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _chunks(n_positions: int) -> list[slice]:
    return [slice(i, i + CHUNK_POSITIONS) for i in range(0, n_positions, CHUNK_POSITIONS)]
