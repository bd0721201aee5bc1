"""What every process of a training does in a step: gradients of its rows, then the update.

In: a model, a plan, and `Progress`, which says how training runs (number type, compilation,
products, sequences at once) and is decided by rank 0 alone. A process that trains alone is rank 0
of one, so the same code runs everywhere.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat_lib.config import PretrainConfig
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.objective import Objective, stage_one_loss
from nanochat_lib.train.optim import Optimizers
from nanochat_lib.train.safety.memory import is_out_of_memory, recomputed
from nanochat_lib.train.watch.gradients import clip_gradients
from nanochat_lib.train.watch.held_out import exit_metrics


@dataclass
class Progress:
    """What changes from step to step besides tensors; stored in checkpoints as JSON."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0  # spent in training steps
    micro_batch_size: int = 0
    processes: int = 1
    dtype: str = "float32"
    compiled: bool = False
    products: str = "float"
    smooth_loss: float = math.nan
    best_bits_per_byte: float = math.inf
    first_bits_per_byte: float = math.nan
    best_value: float = math.nan  # of the metric that early stopping follows
    looks_without_gain: int = 0
    is_stopped_early: bool = False
    last: dict[str, float] = field(default_factory=dict)  # metrics, as last written


class Step:
    """One process's model and optimisers, and its part of every step."""

    def __init__(self, model: LoopLM, plan: PretrainConfig) -> None:
        self.model, self.plan = model, plan
        self.device = model.head.weight.device

    def begin(self, progress: Progress, state: dict[str, Tensor]) -> None:
        """Run as `progress` says from now on, with this state of the optimisers; {}: none yet."""
        self.progress, self.dtype = progress, getattr(torch, progress.dtype)
        self.optimizers = Optimizers(self.model, self.plan, muon_dtype=self.dtype)
        if state:
            self.optimizers.load_state_tensors(state)

    def accumulate(self, rows: Tensor, size: int) -> list[float]:
        """Add up the gradients of this process's rows (B, T + 1), `size` of them at once.

        Returns:
            this process's part of loss, task loss, entropy term and exit distribution; nothing
            when memory did not suffice, and no gradient is kept.
        """
        compiled = execution.compiled_layers(self.model, self.progress.compiled)
        again = recomputed(self.model, self.plan.activation_checkpointing)
        try:
            with compiled, self.int8(), again:
                return self._forward_backward(rows.split(size), size / self.plan.batch_size)
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        self.optimizers.zero_grad()
        return []

    def clip(self) -> dict[str, float]:
        """Clip the gradients of the whole batch; return their norms."""
        return clip_gradients(self.model, self.plan.grad_clip)

    def update(self, step: int) -> float:
        """Apply the gradients and forget them; return AdamW's rate."""
        rate = self.optimizers.step(step)
        self.optimizers.zero_grad()
        return rate

    def checksum(self) -> int:
        """Return a sum over the bits of all weights: equal weights have equal sums."""
        bits = [p.detach().view(torch.int32) for p in self.model.parameters()]
        return sum(int(part.sum(dtype=torch.int64)) for part in bits)

    def int8(self) -> contextlib.AbstractContextManager[None]:
        """Let the layers multiply in int8 inside the block, where that was chosen."""
        return execution.int8_products(self.model, self.progress.products == "int8")

    def _forward_backward(self, micro_batches: tuple[Tensor, ...], share: float) -> list[float]:
        total, task, entropy_term, pdf = 0.0, 0.0, 0.0, 0.0
        objective = Objective.of(self.plan)
        for tokens in micro_batches:
            with execution.autocast(self.device, self.dtype):
                loss = stage_one_loss(
                    self.model,
                    self.model(tokens[:, :-1]),
                    tokens[:, 1:],
                    objective,
                    is_compiled=self.progress.compiled,
                )
            (loss.total * share).backward()
            total += float(loss.total.detach()) * share
            task += float(loss.task) * share
            entropy_term += float(loss.entropy_term.detach()) * share
            pdf = pdf + loss.pdf_mean * share
        return [total, task, entropy_term, *pdf.tolist()]


def values_of(parts: Sequence[list[float]]) -> dict[str, float]:
    """Return the metrics of a step from what `Step.accumulate` gave each process."""
    total, task, entropy_term, *pdf = (sum(column) for column in zip(*parts, strict=True))
    values = {Metric.LOSS: total, Metric.TASK_LOSS: task, Metric.ENTROPY_TERM: entropy_term}
    depth = exit_metrics(torch.tensor(pdf)[:, None])
    depth.pop(str(Metric.EXIT_ENTROPY))  # of the mean, not the mean of each token's
    return values | depth
