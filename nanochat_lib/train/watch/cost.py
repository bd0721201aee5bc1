"""What watching costs: the share of training time that monitors take, measured in one process.

`monitor_cost` takes real training steps on random tokens and times, interleaved, a step, what
watching adds to every step, and a look. Validation on held-out text is given apart: a run without
any monitor would do it too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from nanochat_lib.config import RunConfig
from nanochat_lib.data.batches import Recipe
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train import execution
from nanochat_lib.train.trainer import Hooks, Job, Trainer
from nanochat_lib.train.watch.gradients import clip_gradients
from nanochat_lib.train.watch.held_out import EVAL_WINDOWS, evaluate, held_out
from nanochat_lib.train.watch.speed import synchronize


class _RandomTokens:
    """Batches of random tokens, as large as those of a run."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def rows(self, step: int, recipe: Recipe, chosen: range) -> np.ndarray:
        rng = np.random.default_rng([recipe.seed, step])
        shape = (recipe.batch_size, recipe.seq_len + 1)
        return rng.integers(0, self.vocab_size, shape)[list(chosen)]

    def validation_windows(self, kind: str, seq_len: int, max_windows: int) -> np.ndarray:
        return self.rows(-1 % 2**32, Recipe(max_windows, seq_len), range(max_windows))

    def bytes_per_token(self, kind: str) -> float:
        return 3.0

    def largest_id(self) -> int:
        return self.vocab_size - 1

    def empty_shards(self) -> list[str]:
        return []


@dataclass(frozen=True)
class MonitorCost:
    """Medians in seconds; shares are of a step, a look being spread over `eval_every` steps."""

    step_s: float
    every_step_s: float  # what watching adds to each step
    look_s: float
    validation_s: float
    eval_every: int

    @property
    def share(self) -> float:
        """Return the share of step time that monitors take; the target is at most 0.03."""
        return (self.every_step_s + self.look_s / self.eval_every) / self.step_s

    @property
    def validation_share(self) -> float:
        """Return the share of step time that validation takes."""
        return self.validation_s / self.eval_every / self.step_s


def monitor_cost(config: RunConfig, *, n_rounds: int = 7, steps_per_round: int = 5) -> MonitorCost:
    """Measure what watching costs with the model, batch and pace of a configuration.

    Args:
        n_rounds: interleaved repetitions whose medians are taken, after one that is thrown away.
        steps_per_round: training steps timed in each.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        execution.cpu_threads(config.hardware.cpu_threads, Path(name)),
    ):
        trainer = _trainer(config, Path(name))
        rounds = [_round(trainer, steps_per_round) for _ in range(n_rounds + 1)][1:]
    step, every, look, validation = (median(column) for column in zip(*rounds, strict=True))
    return MonitorCost(step, max(0.0, every), look, validation, config.pretrain.eval_every)


def _trainer(config: RunConfig, folder: Path) -> Trainer:
    data, plan = _RandomTokens(config.model.vocab_size), config.pretrain
    held = held_out(data, plan.seq_len, EVAL_WINDOWS)
    alone = config.hardware.model_copy(update={"train_processes": 1})
    job = Job("bench", plan, data, folder, held, hardware=alone)
    model = LoopLM(config.model).to(execution.choose_device(config.hardware))
    return Trainer(model, job, Hooks(lambda step, values: None))


def _round(trainer: Trainer, n_steps: int) -> tuple[float, float, float, float]:
    """Return seconds of a step, of watching in it, of a look and of a validation."""
    watch, progress, model = trainer.watch, trainer.progress, trainer.model
    step = _seconds(trainer, trainer._one_step, n_steps)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    limit = trainer.plan.grad_clip
    ours = _seconds(trainer, lambda: (clip_gradients(model, limit), watch.see_loss(1, 0.1)), 5)
    plain = _seconds(
        trainer, lambda: float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)), 5
    )
    trainer.step.optimizers.zero_grad()
    look = _seconds(
        trainer,
        lambda: watch.judge(progress.step, watch.watched(progress.tokens_seen, progress.seconds)),
    )
    validation = _seconds(trainer, lambda: evaluate(model, trainer.job.held_out))
    return step, ours - plain, look, validation


def _seconds(trainer: Trainer, work: Callable[[], object], times: int = 1) -> float:
    synchronize(trainer.device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(trainer.device)
    return (time.perf_counter() - start) / times
