"""The training loop of stages 2 and 4.

In: a LoopLM, a plan, a source of batches and a folder; out: a trained model, checkpoints, metrics.
A batch is a pure function of its step and of the batches skipped so far, so the weights, the
optimiser state, the step number and `spikes.json` are all that a resumed run needs to compute
exactly what an uninterrupted one would. A stop request or signal ends the loop between two steps,
after a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lib.config import HardwareConfig, PretrainConfig, TargetsConfig
from nanochat_lib.control import must_stop
from nanochat_lib.data.batches import Recipe, TokenData
from nanochat_lib.data.loader import Loader
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint, TrainState, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.parallel.choice import choose_processes
from nanochat_lib.train.parallel.ranks import Ranks
from nanochat_lib.train.parallel.step import Progress, Step, values_of
from nanochat_lib.train.parallel.worker import Share
from nanochat_lib.train.safety import kept
from nanochat_lib.train.safety.checks import check_fit
from nanochat_lib.train.safety.memory import largest_divisor
from nanochat_lib.train.safety.spikes import SpikeLog, describe, is_spike, save_batch, stop_advice
from nanochat_lib.train.watch.continuous import consider_stopping
from nanochat_lib.train.watch.held_out import HeldOut
from nanochat_lib.train.watch.looks import Watch

logger = logging.getLogger(__name__)

SMOOTHING = 0.9

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Hooks:
    """What a stage calls while it works; see `pretrain` for each."""

    log: Log
    stop: threading.Event | None = None
    progress: Callable[[int, int, str], None] | None = None
    on_eval: Callable[[int, LoopLM], dict[str, float]] | None = None

    def report(self, done: int, total: int, text: str) -> None:
        """Tell the progress, where somebody listens."""
        if self.progress is not None:
            self.progress(done, total, text)


@dataclass(frozen=True)
class Job:
    """What to train on, how long, and where to keep it."""

    stage: str
    plan: PretrainConfig
    data: TokenData
    folder: Path
    held_out: dict[str, HeldOut]
    seed: int = 0
    tinyrust_share: float = 0.0
    tokenizer_json: Path | None = None
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)

    @property
    def recipe(self) -> Recipe:
        """Return what decides a batch."""
        plan = self.plan
        return Recipe(plan.batch_size, plan.seq_len, self.seed, self.tinyrust_share)

    def tokens(self, batch: int, device: torch.device | str) -> Tensor:
        """Return a batch by its number, (B, T + 1) int64."""
        rows = self.data.rows(batch, self.recipe, range(self.plan.batch_size))
        return torch.from_numpy(rows).to(device)


class Trainer:
    """Trains one model by one job, from the newest checkpoint where there is one."""

    def __init__(self, model: LoopLM, job: Job, hooks: Hooks) -> None:
        """Check that everything fits, and load the newest checkpoint or prepare to begin.

        Raises:
            WorkbenchError: model, data and settings do not fit, or every checkpoint is refused.
        """
        self.model, self.job, self.hooks, self.plan = model, job, hooks, job.plan
        self.device = model.head.weight.device
        self.checkpoints = job.folder / "checkpoints"
        n = choose_processes(job.hardware, job.plan.batch_size, self.device)
        share = Share(n, model.config, job.plan, job.data, job.recipe, job.hardware)
        self.ranks = Ranks(share, self.device)
        self.loader = Loader(job.data, job.recipe, job.hardware, n_ranks=n)
        self.step = Step(model, job.plan)
        check_fit(model.config, job.plan, job.data, job.tokenizer_json)
        for folder in (self.checkpoints, job.folder):
            kept.remove_drafts(folder)
        self.spikes = SpikeLog(job.folder)
        self.watch = Watch(model, job)
        newest = kept.newest_sound_checkpoint(self.checkpoints)
        if newest is None:
            self.step.begin(self._choose_execution(), {})
        else:
            self._resume(newest)
        self.watch.measure(self.step.dtype, self.ranks.n)

    @property
    def progress(self) -> Progress:
        """Return how far training has come, and how it runs."""
        return self.step.progress

    def run(self) -> Progress:
        """Train to the last step.

        Raises:
            KeyboardInterrupt: a stop was asked for; the checkpoint is written.
            WorkbenchError: the loss is not finite or jumped, and the policy is to stop; the batch
                is saved. Or a checkpoint could not be written.
        """
        stop = self.hooks.stop or threading.Event()
        with execution.signals_set(stop), contextlib.closing(self.loader), self.ranks:
            self._begin()
            self.ranks.load(self.step)
            while not self._is_over():
                if must_stop(self.job.folder, stop, self._save):
                    self._save()
                    raise KeyboardInterrupt(f"stopped at step {self.progress.step}")
                if self._one_step():
                    self._look_and_keep()
            if stop.is_set():
                raise KeyboardInterrupt("stopped after the last step")
        return self.progress

    def _begin(self) -> None:
        """Look at the untrained model; with rollback, keep it to go back to."""
        if self.progress.step > 0:
            return
        if self.plan.on_spike == "rollback":
            self._save()
        self._evaluate()

    def _look_and_keep(self) -> None:
        if self._is_due(self.plan.eval_every):
            self._evaluate()
        if self._is_due(self.plan.checkpoint_every):
            self._save()

    def _one_step(self) -> bool:
        """Take a step; return False when it was not taken and training went back instead."""
        step, began = self.progress.step, time.perf_counter()
        batch = self.spikes.batch_of(step)
        rows = self.loader.batch(batch)
        values = self._accumulate(batch, rows.to(self.device, non_blocking=True))
        values |= self.step.clip()
        if is_spike(values[Metric.LOSS], self.progress.smooth_loss, values[Metric.GRAD_NORM]):
            self._go_back(values, rows if self.ranks.n == 1 else self.job.tokens(batch, "cpu"))
            return False
        self.ranks.order("update", step)
        values[Metric.LEARNING_RATE] = self.step.update(step)
        seconds = time.perf_counter() - began
        values[Metric.TOKENS_PER_S] = self.plan.batch_size * self.plan.seq_len / seconds
        self.watch.see_loss(step + 1, values[Metric.LOSS] - self.progress.smooth_loss)
        self._count(values[Metric.LOSS], seconds)
        self._log(values)
        self.hooks.report(step + 1, self.plan.total_steps, f"loss {values[Metric.LOSS]:.3f}")
        return True

    def _accumulate(self, batch: int, rows: Tensor) -> dict[str, float]:
        """Add up the gradients of a batch, in micro-batches that fit into every rank's memory."""
        while True:
            size = self.progress.micro_batch_size
            self.ranks.order("accumulate", batch, size)
            parts = [self.step.accumulate(rows, size), *self.ranks.answers()]
            if all(parts):
                self.ranks.sum_gradients(self.step)
                return values_of(parts)
            self.ranks.order("forget")
            self.step.optimizers.zero_grad()
            self.progress.micro_batch_size = self._fitting(size // 2)
            logger.warning(
                "Out of memory with %d sequences at once: going on with %d; the batch stays %d "
                "(docs/troubleshooting.md#cuda-out-of-memory).",
                size,
                self.progress.micro_batch_size,
                self.plan.batch_size,
            )

    def _fitting(self, size: int) -> int:
        """Return a micro-batch of at most `size` sequences that divides a process's share."""
        return largest_divisor(self.plan.batch_size // self.ranks.n, size)

    def _go_back(self, values: dict[str, float], tokens: Tensor) -> None:
        """Stop at a bad batch, or by policy return to the last checkpoint and skip to behind it.

        Raises:
            WorkbenchError: the policy is to stop, or it happened too often.
        """
        step, plan = self.progress.step, self.plan
        path = save_batch(self.job.folder, step, tokens)
        what = describe(values, self.progress.smooth_loss)
        good = None
        if plan.on_spike == "rollback" and len(self.spikes.spikes) < plan.max_rollbacks:
            good = kept.newest_sound_checkpoint(self.checkpoints)
        if good is None:
            raise WorkbenchError(
                f"Training stopped at step {step}: {what}. The batch is in {path}. "
                f"{stop_advice(plan, len(self.spikes.spikes))}"
            )
        spike = self.spikes.add(step, good.step, values, self.progress.smooth_loss, path)
        logger.warning(
            "At step %d %s: back to step %d, batches %d to %d are skipped. The bad one is in %s.",
            step, what, good.step, spike.first_skipped, spike.last_skipped, path,
        )  # fmt: skip
        self.step.optimizers.zero_grad()
        self.ranks.order("forget")
        self._resume(good)
        self.ranks.load(self.step)
        self._begin()

    def _count(self, loss: float, seconds: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens_seen += self.plan.batch_size * self.plan.seq_len
        progress.seconds += seconds
        is_first = math.isnan(progress.smooth_loss)
        before = loss if is_first else progress.smooth_loss
        progress.smooth_loss = SMOOTHING * before + (1 - SMOOTHING) * loss

    def _evaluate(self) -> None:
        """Look at the model: held-out text, codes, free text, speed, and tasks where asked for."""
        progress, plan = self.progress, self.plan
        values = self.watch.look(progress.tokens_seen, progress.seconds)
        values[str(Metric.PROCESSES)] = self.ranks.n
        if self.hooks.on_eval is not None and self._is_due(plan.task_eval_every or plan.eval_every):
            found = self.hooks.on_eval(progress.step, self.model)
            values |= {str(name): value for name, value in found.items()}
        self.watch.judge(progress.step, values)
        bits = values[str(Metric.BITS_PER_BYTE)]
        if math.isnan(progress.first_bits_per_byte):
            progress.first_bits_per_byte = bits
        elif bits < progress.best_bits_per_byte:
            progress.best_bits_per_byte = bits
            self._write(self.checkpoints / "best", state=None)
        if plan.early_stopping_metric:
            consider_stopping(progress, plan, values)
        self._log(values)

    def _log(self, values: dict[str, float]) -> None:
        plain = {str(name): float(value) for name, value in values.items()}
        self.progress.last |= plain
        self.hooks.log(self.progress.step, plain)

    def _is_over(self) -> bool:
        return self.progress.is_stopped_early or self.progress.step >= self.plan.total_steps

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self._is_over()

    def _save(self) -> None:
        """Write a training checkpoint; keep the newest few."""
        self.ranks.require_equal(self.step)
        tensors, first_scales = self.watch.codes.state()
        tensors |= self.step.optimizers.state_tensors()
        tensors["rng"] = torch.get_rng_state()
        values = {"progress": vars(self.progress), "plan": self.plan.model_dump(mode="json")}
        values["first_scales"] = first_scales
        path = self.checkpoints / f"step_{self.progress.step:06d}"
        self._write(path, state=TrainState(tensors, values))
        kept.drop_oldest(self.checkpoints, self.plan.keep_checkpoints)

    def _write(self, path: Path, *, state: TrainState | None) -> None:
        save_checkpoint(
            path,
            self.model,
            step=self.progress.step,
            tokens_seen=self.progress.tokens_seen,
            stage=self.job.stage,
            tokenizer_json=self.job.tokenizer_json,
            state=state,
        )

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Take over weights, optimiser and progress of a checkpoint."""
        kept.require_same(checkpoint, self.model.config, self.plan, self.checkpoints)
        tensors, values = checkpoint.state.tensors, checkpoint.state.values
        try:
            progress = Progress(**values["progress"])
            self._share_out(progress)
            self.step.begin(progress, tensors)
            self.watch.codes.load_state(tensors, values["first_scales"])
            torch.set_rng_state(tensors["rng"])
        except (KeyError, TypeError, ValueError) as error:
            raise WorkbenchError(
                f"The newest checkpoint in {self.checkpoints} has the training state of another "
                f"version ({error}). Use another run_id, or if_exists='replace' to start anew."
            ) from error
        self.model.load_state_dict(checkpoint.model.state_dict())
        logger.info("resumed at step %d of %s", self.progress.step, self.checkpoints)

    def _share_out(self, progress: Progress) -> None:
        """Set how many processes train, and how many sequences each takes at once."""
        if progress.step and progress.processes != self.ranks.n:
            logger.warning(
                "resuming with %d processes, before there were %d: sums in another order differ "
                "in their last bits.", self.ranks.n, progress.processes,
            )  # fmt: skip
        progress.processes = self.ranks.n
        progress.micro_batch_size = self._fitting(progress.micro_batch_size)

    def _choose_execution(self) -> Progress:
        progress = Progress(micro_batch_size=self.plan.micro_batch_size)
        self._share_out(progress)
        dtype = execution.choose_dtype(self.plan.dtype, self.model.config, self.device)
        progress.dtype = str(dtype).removeprefix("torch.")
        progress.products = execution.choose_products(self.plan, self.model, dtype)
        if execution.choose_compile(self.plan, self.model.config, dtype):
            tokens = self.job.tokens(0, self.device)[: progress.micro_batch_size, :-1]
            with execution.int8_products(self.model, progress.products == "int8"):
                progress.compiled = execution.compiles(self.model, tokens, dtype)
        return progress
