"""The training loop of stages 2 and 4.

In: a LoopLM, a plan, a source of batches and a folder; out: a trained model, checkpoints, metrics.
A batch is a pure function of its step, so the weights, the optimiser state and the step number are
all that a resumed run needs to compute exactly what an uninterrupted one would. A stop request or
signal ends the loop between two steps, after a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanochat_lib.config import HardwareConfig, PretrainConfig
from nanochat_lib.control import must_stop
from nanochat_lib.data.batches import Recipe, TokenData
from nanochat_lib.data.loader import Loader
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import TrainState, load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.monitors import CodeMonitor, HeldOut, evaluate, exit_metrics, peak_rss_mib
from nanochat_lib.train.objective import stage_one_loss
from nanochat_lib.train.optim import Optimizers

logger = logging.getLogger(__name__)

SPIKE_NATS = 3.0  # above the smoothed loss; ordinary batches stay within 0.5
SMOOTHING = 0.9
EVAL_MICRO_BATCH = 16

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

    @property
    def recipe(self) -> Recipe:
        """Return what decides the batch of a step."""
        plan = self.plan
        return Recipe(plan.batch_size, plan.seq_len, self.seed, self.tinyrust_share)

    def tokens(self, step: int, device: torch.device) -> Tensor:
        """Return the batch of a step, (B, T + 1) int64."""
        rows = self.data.rows(step, self.recipe, range(self.plan.batch_size))
        return torch.from_numpy(rows).to(device)


@dataclass
class Progress:
    """What changes from step to step besides tensors; stored in checkpoints as JSON."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0  # spent in training steps
    micro_batch_size: int = 0
    dtype: str = "float32"
    compiled: bool = False
    smooth_loss: float = math.nan
    best_bits_per_byte: float = math.inf
    first_bits_per_byte: float = math.nan
    last: dict[str, float] = field(default_factory=dict)  # metrics, as last written


class Trainer:
    """Trains one model by one job, from the newest checkpoint where there is one."""

    def __init__(self, model: LoopLM, job: Job, hooks: Hooks) -> None:
        self.model, self.job, self.hooks, self.plan = model, job, hooks, job.plan
        self.device = model.head.weight.device
        self.codes = CodeMonitor()
        self.progress = Progress(micro_batch_size=job.plan.micro_batch_size)
        self.checkpoints = job.folder / "checkpoints"
        self.loader = Loader(job.data, job.recipe, job.hardware)
        self._check_vocabulary()
        remove_drafts(self.checkpoints)
        newest = newest_checkpoint(self.checkpoints)
        if newest is None:
            self._choose_execution()
            self.optimizers = self._make_optimizers()
        else:
            self._resume(newest)
        self.dtype = getattr(torch, self.progress.dtype)

    def run(self) -> Progress:
        """Train to the last step.

        Raises:
            KeyboardInterrupt: a stop was asked for; the checkpoint is written.
            WorkbenchError: the loss is not finite or jumped; the batch is saved.
        """
        stop = self.hooks.stop or threading.Event()
        started_at = self.progress.step
        with execution.signals_set(stop), contextlib.closing(self.loader):
            if self.progress.step == 0:
                self._evaluate()
            while self.progress.step < self.plan.total_steps:
                if must_stop(self.job.folder, stop, self._save):
                    self._save()
                    raise KeyboardInterrupt(f"stopped at step {self.progress.step}")
                self._one_step()
                if self._is_due(self.plan.eval_every):
                    self._evaluate()
                if self._is_due(self.plan.checkpoint_every):
                    self._save()
            if stop.is_set():
                raise KeyboardInterrupt("stopped after the last step")
        if self.progress.step > started_at:
            self.hooks.log(self.progress.step, {str(Metric.PEAK_RSS_MIB): peak_rss_mib()})
        return self.progress

    def _one_step(self) -> None:
        step, began = self.progress.step, time.perf_counter()
        tokens = self.loader.batch(step).to(self.device, non_blocking=True)
        values = self._accumulate(tokens)
        grad_norm = self._clip()
        self._stop_if_unsound(values[Metric.LOSS], grad_norm, tokens)
        values[Metric.LEARNING_RATE] = self.optimizers.step(step)
        self.optimizers.zero_grad()
        seconds = time.perf_counter() - began
        values[Metric.GRAD_NORM] = grad_norm
        values[Metric.TOKENS_PER_S] = self.plan.batch_size * self.plan.seq_len / seconds
        self._count(values[Metric.LOSS], seconds)
        self._log(values)
        self.hooks.report(step + 1, self.plan.total_steps, f"loss {values[Metric.LOSS]:.3f}")

    def _accumulate(self, tokens: Tensor) -> dict[str, float]:
        """Add up the gradients of a batch in micro-batches that fit into memory."""
        while True:
            size = self.progress.micro_batch_size
            try:
                with execution.compiled_layers(self.model, self.progress.compiled):
                    return self._forward_backward(tokens.split(size))
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            self.optimizers.zero_grad()
            self.progress.micro_batch_size = largest_divisor(self.plan.batch_size, size // 2)
            logger.warning(
                "Out of memory with %d sequences at once: going on with %d; the batch stays %d.",
                size,
                self.progress.micro_batch_size,
                self.plan.batch_size,
            )

    def _forward_backward(self, micro_batches: tuple[Tensor, ...]) -> dict[str, float]:
        total, task, entropy_term, pdf = 0.0, 0.0, 0.0, 0.0
        share = 1 / len(micro_batches)
        for tokens in micro_batches:
            with execution.autocast(self.device, self.dtype):
                loss = stage_one_loss(
                    self.model,
                    self.model(tokens[:, :-1]),
                    tokens[:, 1:],
                    entropy_weight=self.plan.entropy_weight,
                    entropy_objective=self.plan.entropy_objective,
                )
            (loss.total * share).backward()
            total += float(loss.total.detach()) * share
            task += float(loss.task) * share
            entropy_term += float(loss.entropy_term.detach()) * share
            pdf = pdf + loss.pdf_mean * share
        values = {Metric.LOSS: total, Metric.TASK_LOSS: task, Metric.ENTROPY_TERM: entropy_term}
        depth = exit_metrics(pdf[:, None])
        depth.pop(str(Metric.EXIT_ENTROPY))  # of the mean, not the mean of each token's
        return values | depth

    def _clip(self) -> float:
        parameters = self.model.parameters()
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.plan.grad_clip))

    def _stop_if_unsound(self, loss: float, grad_norm: float, tokens: Tensor) -> None:
        smooth = self.progress.smooth_loss
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if is_finite and not loss > smooth + SPIKE_NATS:  # also when smooth is still NaN
            return
        step = self.progress.step
        path = self.job.folder / f"bad_batch_step_{step:06d}.safetensors"
        self.job.folder.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": tokens.cpu().contiguous()}, path)
        raise WorkbenchError(
            f"Training stopped at step {step}: the loss is {loss:.3f} (smoothed before: "
            f"{smooth:.3f}) and the gradient norm {grad_norm:.3g}. The batch is in {path}. Lower "
            "pretrain.learning_rate and pretrain.muon_learning_rate, raise pretrain.warmup_steps, "
            "or delete the newest checkpoints to resume earlier."
        )

    def _count(self, loss: float, seconds: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens_seen += self.plan.batch_size * self.plan.seq_len
        progress.seconds += seconds
        is_first = math.isnan(progress.smooth_loss)
        before = loss if is_first else progress.smooth_loss
        progress.smooth_loss = SMOOTHING * before + (1 - SMOOTHING) * loss

    def _evaluate(self) -> None:
        values = evaluate(self.model, self.job.held_out, micro_batch_size=EVAL_MICRO_BATCH)
        values |= self.codes.look(self.model)
        values[str(Metric.PEAK_RSS_MIB)] = peak_rss_mib()
        if self.hooks.on_eval is not None:
            values |= self.hooks.on_eval(self.progress.step, self.model)
        bits = values[str(Metric.BITS_PER_BYTE)]
        if math.isnan(self.progress.first_bits_per_byte):
            self.progress.first_bits_per_byte = bits
        elif bits < self.progress.best_bits_per_byte:
            self.progress.best_bits_per_byte = bits
            self._write(self.checkpoints / "best", state=None)
        self._log(values)

    def _log(self, values: dict[str, float]) -> None:
        plain = {str(name): float(value) for name, value in values.items()}
        self.progress.last |= plain
        self.hooks.log(self.progress.step, plain)

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.plan.total_steps

    def _save(self) -> None:
        """Write a training checkpoint; keep the newest few."""
        tensors = self.optimizers.state_tensors() | self.codes.state_tensors()
        tensors["rng"] = torch.get_rng_state()
        values = {"progress": vars(self.progress), "plan": self.plan.model_dump(mode="json")}
        path = self.checkpoints / f"step_{self.progress.step:06d}"
        self._write(path, state=TrainState(tensors, values))
        for old in training_checkpoints(self.checkpoints)[: -self.plan.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

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

    def _resume(self, folder: Path) -> None:
        checkpoint = load_checkpoint(folder, with_state=True)
        if checkpoint.config != self.model.config:
            raise WorkbenchError(
                f"The checkpoint {folder} belongs to another model ({checkpoint.config}) than the "
                f"one configured ({self.model.config}). Use another run_id, or remove that folder."
            )
        changed = {
            f"{name} {old} -> {getattr(self.plan, name)}"
            for name, old in checkpoint.state.values["plan"].items()
            if getattr(self.plan, name) != old
        }
        if changed:
            logger.warning("resuming with other settings: %s", ", ".join(sorted(changed)))
        self.model.load_state_dict(checkpoint.model.state_dict())
        self.progress = Progress(**checkpoint.state.values["progress"])
        self.optimizers = self._make_optimizers()
        self.optimizers.load_state_tensors(checkpoint.state.tensors)
        self.codes.load_state_tensors(checkpoint.state.tensors)
        torch.set_rng_state(checkpoint.state.tensors["rng"])
        logger.info("resumed at step %d from %s", self.progress.step, folder)

    def _choose_execution(self) -> None:
        dtype = execution.choose_dtype(self.plan.dtype, self.model.config, self.device)
        compiled = execution.choose_compile(self.plan, self.model.config, dtype)
        if compiled:
            tokens = self.job.tokens(0, self.device)[: self.progress.micro_batch_size, :-1]
            compiled = execution.compiles(self.model, tokens, dtype)
        self.progress.dtype = str(dtype).removeprefix("torch.")
        self.progress.compiled = compiled

    def _make_optimizers(self) -> Optimizers:
        muon_dtype = getattr(torch, self.progress.dtype)
        return Optimizers(self.model, self.plan, muon_dtype=muon_dtype)

    def _check_vocabulary(self) -> None:
        """Say before the first step that the shards do not fit the model."""
        vocab_size = self.model.config.vocab_size
        samples = [self.job.tokens(0, torch.device("cpu")).numpy()]
        samples += [held.windows for held in self.job.held_out.values()]
        largest = max(int(sample.max()) for sample in samples)
        if largest >= vocab_size:
            raise WorkbenchError(
                f"The shards hold token id {largest}, but the model knows {vocab_size} tokens "
                "(model.vocab_size). Run 01_preprocess again with this profile."
            )


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the resumable checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest resumable checkpoint, or None."""
    found = training_checkpoints(folder)
    return found[-1] if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory did not suffice, on a GPU or in main memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is at most `at_most` (at least 1)."""
    return next(d for d in range(max(1, at_most), 0, -1) if number % d == 0)
