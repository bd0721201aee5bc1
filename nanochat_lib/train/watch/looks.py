"""One look at a model while it learns: everything that is watched, and what is out of its band.

In: a model, its job, and how far training has come; out: metrics by name, and warnings in the
stage's folder. What a look remembers between two of them (codes, scales) goes into checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train.watch.alerts import Alerts
from nanochat_lib.train.watch.codes import CodeMonitor
from nanochat_lib.train.watch.held_out import evaluate
from nanochat_lib.train.watch.speed import Speed, memory_metrics
from nanochat_lib.train.watch.text import FreeText

if TYPE_CHECKING:  # the trainer imports this module
    from nanochat_lib.train.trainer import Job


class Watch:
    """What one training run watches."""

    def __init__(self, model: LoopLM, job: Job) -> None:
        self.model, self.job = model, job
        self.device = model.head.weight.device
        self.codes = CodeMonitor()
        self.text = FreeText(job.plan.free_text_tokens, job.hardware)
        self.alerts = Alerts(job.folder, model.config, job.targets)
        self.speed: Speed | None = None

    def measure(self, dtype: torch.dtype, n_processes: int = 1) -> None:
        """Measure the matmul peak that achieved FLOP/s are compared with: of all GPUs in use."""
        config, seq_len = self.model.config, self.job.plan.seq_len
        self.speed = Speed.measured(config, seq_len, self.device, dtype)
        if self.device.type == "cuda":
            self.speed.peak_flops *= n_processes

    def look(self, tokens_seen: int, seconds: float) -> dict[str, float]:
        """Return every metric of a look; `seconds` of training led to it."""
        return evaluate(self.model, self.job.held_out) | self.watched(tokens_seen, seconds)

    def watched(self, tokens_seen: int, seconds: float) -> dict[str, float]:
        """Return what is watched besides held-out text: codes, free text, speed, memory."""
        values = self.codes.look(self.model) | self.text.look(self.model)
        if self.speed is not None:
            values |= self.speed.look(tokens_seen, seconds)
        return values | memory_metrics(self.device)

    def judge(self, step: int, values: dict[str, float]) -> None:
        """Compare the metrics of a look with their healthy bands."""
        self.alerts.look(step, values, done=step / self.job.plan.total_steps)

    def see_loss(self, step: int, jump: float) -> None:
        """Compare a step's loss with the smoothed one; `jump` is their difference in nats."""
        self.judge(step, {"loss_jump": jump} if jump > 0 else {})
