"""Optimisers and the learning-rate schedule.

Muon turns the momentum of each layer matrix into the nearest orthogonal matrix; AdamW takes the
embedding, the head, the norms and the gate (or everything). In: a LoopLM and its
`PretrainConfig`; out: one `Optimizers`, whose state goes into checkpoints as flat tensors.

torch.optim.Muon iterates in bfloat16 whatever the machine; on a CPU without bfloat16 units that
took 3.2 s a step against 0.13 s in float32 (14 matrices of 256 to 768), three times the training
step itself. Ours is the same update in a chosen type; a test compares the two.

Source: WSD, arXiv 2404.06395; Muon, K. Jordan 2024 and torch.optim.Muon; weight decay only in the
first half, BitNet b1.58 FAQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nanochat_lib.config import PretrainConfig
from nanochat_lib.model.looplm import BIT_LINEARS, LoopLM
from nanochat_lib.train.adam8 import adamw_8bit, flat_entry, set_rate, whole_entry

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic with the steepest slope at zero
NEWTON_SCHULZ_STEPS = 5
BETAS = (0.9, 0.95)


def lr_at(
    step: int, peak: float, *, warmup_steps: int, decay_steps: int, total_steps: int
) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, stable, linear decay to zero.

    Example: peak 1, 10 steps of which 2 warm up and 4 decay:
    0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    steps_left = total_steps - step
    return peak * min(1.0, steps_left / decay_steps) if decay_steps else peak


def orthogonalize(matrices: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return matrices (M, N, K) with their singular values moved close to 1.

    Newton-Schulz with a quintic polynomial: singular values end between about 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times lr * sqrt(max(1, rows / columns)).

    Matrices of one shape go through Newton-Schulz as one batch.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rows, columns = parameters[0].shape
        directions = torch.stack([self._direction(p, group["momentum"]) for p in parameters])
        updates = orthogonalize(directions, dtype=self.dtype).to(parameters[0].dtype)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        scaled_lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scaled_lr)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum).to(self.dtype)


class Optimizers:
    """The optimisers of one training run, following one schedule."""

    def __init__(
        self, model: LoopLM, plan: PretrainConfig, *, muon_dtype: torch.dtype = torch.float32
    ) -> None:
        self.plan = plan
        matrices, vectors, tables = [], [], []
        for name, parameter in model.named_parameters():
            if name.split(".")[-2] in BIT_LINEARS:
                matrices.append(parameter)
            else:
                is_table = parameter.ndim == 2 and not name.startswith("entry.")
                (tables if is_table else vectors).append(parameter)
        groups = [
            {"params": tables, "base_decay": plan.weight_decay},
            {"params": vectors, "base_decay": 0.0},
        ]
        self.members: list[torch.optim.Optimizer] = []
        if plan.optimizer == "muon":
            muon = Muon(matrices, lr=plan.muon_learning_rate, weight_decay=0.0, dtype=muon_dtype)
            muon.param_groups[0] |= {
                "peak_lr": plan.muon_learning_rate,
                "base_decay": plan.weight_decay,
            }
            self.members.append(muon)
        else:
            groups.append({"params": matrices, "base_decay": plan.weight_decay})
        for group in groups:
            group["peak_lr"] = plan.learning_rate
        if plan.optimizer == "adamw_8bit":
            self.members.append(adamw_8bit(groups, lr=plan.learning_rate, betas=BETAS))
        else:
            self.members.append(
                torch.optim.AdamW(groups, lr=plan.learning_rate, betas=BETAS, fused=True)
            )

    def step(self, step: int) -> float:
        """Apply the gradients at the rates of this step; return AdamW's rate."""
        plan = self.plan
        is_first_half = step < plan.total_steps / 2
        for member in self.members:
            for group in member.param_groups:
                rate = lr_at(
                    step,
                    group["peak_lr"],
                    warmup_steps=plan.warmup_steps,
                    decay_steps=plan.decay_steps,
                    total_steps=plan.total_steps,
                )
                set_rate(group, rate)
                group["weight_decay"] = group["base_decay"] if is_first_half else 0.0
            member.step()
        return float(self.members[-1].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state as flat tensors; rates and decays follow from the plan."""
        tensors = {}
        for i, member in enumerate(self.members):
            for j, entry in member.state_dict()["state"].items():
                flat = flat_entry(entry)
                tensors |= {f"optim.{i}.{j}.{key}": value for key, value in flat.items()}
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned (other names are ignored)."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.members]
        for name, value in tensors.items():
            head, *rest = name.split(".", 3)
            if head == "optim":
                states[int(rest[0])].setdefault(int(rest[1]), {})[rest[2]] = value
        for member, state in zip(self.members, states, strict=True):
            whole = {j: whole_entry(flat) for j, flat in state.items()}
            member.load_state_dict(member.state_dict() | {"state": whole})
