"""Losses that are not finite or jump: recognised before the update, and by policy skipped.

Rolling back returns to the last checkpoint and skips every batch since, the bad one included:
training is deterministic, so the same batches would lead to the same loss again. What was skipped
is written to `spikes.json` before anything else happens; from it follows which batch a step reads,
so that a run that is killed and resumed skips the same ones.

Source: PaLM (arXiv 2204.02311), section 5.1, which skipped 200 to 500 batches around a spike.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nanochat_lib.config import PretrainConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Metric
from nanochat_lib.runs import write_atomic

SPIKE_NATS = 3.0  # above the smoothed loss; ordinary batches stay within 0.5


@dataclass(frozen=True)
class Spike:
    """One bad step: what was seen, and which batches are skipped because of it."""

    step: int
    loss: str  # as text: JSON knows no NaN
    smooth_loss: str
    grad_norm: str
    batch_file: str
    resumed_at: int
    first_skipped: int  # batches, both ends included
    last_skipped: int


def is_spike(loss: float, smooth_loss: float, grad_norm: float) -> bool:
    """Return whether a step must not be taken; a smoothed loss of NaN means there is none yet."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return True
    return loss > smooth_loss + SPIKE_NATS


def describe(values: dict[str, float], smooth_loss: float) -> str:
    """Return what is wrong with a step, as the middle of a sentence."""
    return (
        f"the loss is {values[Metric.LOSS]:.3f} (smoothed before: {smooth_loss:.3f}) and the "
        f"gradient norm {values[Metric.GRAD_NORM]:.3g}"
    )


def stop_advice(plan: PretrainConfig, n_rollbacks: int) -> str:
    """Return what to try after a spike that ended the training."""
    advice = (
        "Lower pretrain.learning_rate and pretrain.muon_learning_rate, or raise "
        "pretrain.warmup_steps. See docs/troubleshooting.md#loss-spike."
    )
    if plan.on_spike == "stop":
        return f'{advice} With pretrain.on_spike = "rollback" such batches are skipped.'
    return f"It had gone back {n_rollbacks} times (pretrain.max_rollbacks). {advice}"


def save_batch(folder: Path, step: int, tokens: Tensor) -> Path:
    """Keep a batch (B, T + 1) for inspection; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad_batch_step_{step:06d}.safetensors"
    save_file({"tokens": tokens.cpu().contiguous()}, path)
    return path


class SpikeLog:
    """The spikes of one stage, in `spikes.json` of its folder."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier attempt at the stage has written.

        Raises:
            WorkbenchError: the file is damaged.
        """
        self.path = folder / "spikes.json"
        self.spikes: list[Spike] = []
        if not self.path.exists():
            return
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            self.spikes = [Spike(**row) for row in rows]
        except (OSError, ValueError, TypeError) as error:
            raise WorkbenchError(
                f"{self.path} is damaged ({error}): which batches were skipped is not known, so "
                "the stage cannot be resumed. Run it again from the start (if_exists='replace')."
            ) from error

    def add(
        self,
        step: int,
        resumed_at: int,
        values: dict[str, float],
        smooth_loss: float,
        batch_file: Path,
    ) -> Spike:
        """Write down, synced, that the batches from `resumed_at` to the bad `step` are skipped."""
        spike = Spike(
            step=step,
            loss=f"{values[Metric.LOSS]:.6g}",
            smooth_loss=f"{smooth_loss:.6g}",
            grad_norm=f"{values[Metric.GRAD_NORM]:.6g}",
            batch_file=batch_file.name,
            resumed_at=resumed_at,
            first_skipped=self.batch_of(resumed_at),
            last_skipped=self.batch_of(step),
        )
        self.spikes.append(spike)
        write_atomic(self.path, json.dumps([asdict(s) for s in self.spikes], indent=1) + "\n")
        return spike

    def batch_of(self, step: int) -> int:
        """Return the batch that a step reads: the step-th one that is not skipped.

        Example: with batches 4 to 6 skipped, steps 3, 4, 5 read batches 3, 7, 8.
        """
        batch, covered = step, -1
        for spike in sorted(self.spikes, key=lambda s: s.first_skipped):
            first = max(spike.first_skipped, covered + 1)  # skipped ranges may overlap
            if batch >= first:
                batch += max(0, spike.last_skipped - first + 1)
            covered = max(covered, spike.last_skipped)
        return batch
