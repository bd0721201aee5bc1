"""What hangs on evaluations during training: early stopping, and the reward threshold.

The evaluations themselves are a callable (`Hooks.on_eval`), because judging programs belongs to
another floor; their metrics stand on the same axis of steps as everything else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nanochat_lib.config import PretrainConfig
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.records import Metric

if TYPE_CHECKING:  # the trainer imports this module
    from nanochat_lib.train.parallel.step import Progress

RISING = (
    Metric.COMPILE_RATE, Metric.PASS_RATE, Metric.SEMANTIC_SCORE, Metric.PASS_AT,
    Metric.DISTINCT_1, Metric.DISTINCT_2,
)  # fmt: skip
THRESHOLD_STEP = 0.02


def consider_stopping(progress: Progress, plan: PretrainConfig, values: dict[str, float]) -> None:
    """Note whether the named metric improved; mark the run as over when it did not for long.

    Looks without the metric do not count. Rates of evaluations should rise, all else should fall.
    The learning rate has not decayed when a run ends early, so its loss is higher than it could be.

    Raises:
        WorkbenchError: the very first look has no metric of that name.
    """
    name = plan.early_stopping_metric
    value = values.get(name)
    if value is None and progress.step == 0:
        raise WorkbenchError(
            f"pretrain.early_stopping_metric is {name!r}, which the validations of this run do "
            f"not measure.{nearest(name, values)}"
        )
    if value is None or math.isnan(value):
        return
    sign = -1 if name.startswith(RISING) else 1
    if math.isnan(progress.best_value) or sign * value < sign * progress.best_value:
        progress.best_value, progress.looks_without_gain = value, 0
        return
    progress.looks_without_gain += 1
    progress.is_stopped_early = progress.looks_without_gain >= plan.early_stopping_patience


def adjust_reward_threshold(threshold: float, compile_rate: float, target: float) -> float:
    """Return a stricter threshold while fewer programs compile than targeted (the brief's tip).

    A reward counts as a success from the threshold on, so a higher one asks for better programs.
    It never falls and is at most 1. Example: (0.9, compile rate 0.5, target 0.8) gives 0.92.
    """
    return min(1.0, threshold + THRESHOLD_STEP) if compile_rate < target else threshold
