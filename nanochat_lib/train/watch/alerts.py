"""Warnings of a training run: a quantity outside its healthy band, and what to try.

In: the metrics of a look; out: `warnings.json` in the stage's folder, which reports show, and one
log line when a quantity leaves its band for the first time. The brief's own band of the token
entropy is kept apart as a note: it fits an untrained model only, because a calibrated model's
entropy equals its loss.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_lib.config import ModelConfig, TargetsConfig
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.records import Metric
from nanochat_lib.runs import write_atomic

logger = logging.getLogger(__name__)

FILE = "warnings.json"
GUIDE = "docs/troubleshooting.md"
ENTROPY_ADVICE = (
    "raise pretrain.entropy_weight, or train longer before judging: the gate follows the loops"
)
TEXT_ADVICE = (
    "look at the samples; lower the learning rates, mix in more varied data, and check that "
    "documents are separated"
)


@dataclass(frozen=True)
class Rule:
    """A healthy band [low, high] of one quantity, from a share of the run on."""

    quantity: str
    value: Callable[[dict[str, float], ModelConfig], float | None]
    meaning: str
    advice: str
    low: float = -math.inf
    high: float = math.inf
    anchor: str = ""
    since: float = 0.0  # share of the steps before which nothing is said
    is_note: bool = False


@dataclass
class Alert:
    """A quantity outside its band: seen first and last at which step, with the last value."""

    quantity: str
    value: float
    low: float | None
    high: float | None
    meaning: str
    advice: str
    guide: str
    is_note: bool
    first_step: int
    last_step: int

    def sentence(self) -> str:
        """Return the whole alert in one line."""
        guide = f" See {self.guide}." if self.guide else ""
        kind = "the brief's band" if self.is_note else "healthy"
        return (
            f"{self.quantity} is {self.value:.3g} at step {self.last_step}; {kind}: "
            f"{_band(self.low, self.high)}. {self.meaning} Try: {self.advice}.{guide}"
        )


class Alerts:
    """The warnings of one stage."""

    def __init__(self, folder: Path, config: ModelConfig, targets: TargetsConfig) -> None:
        """Continue the file of an earlier attempt, where there is one."""
        self.path, self.config = folder / FILE, config
        self.rules = (*RULES, *_own_rules(targets))
        self.alerts = read_alerts(self.path)

    def look(self, step: int, values: dict[str, float], done: float = 1.0) -> None:
        """Compare metrics with their bands.

        Args:
            values: metrics by name; what is missing is not judged.
            done: share of the run that is over.
        """
        for rule in self.rules:
            value = rule.value(values, self.config) if done >= rule.since else None
            if value is not None and not rule.low <= value <= rule.high:
                self.raise_alert(step, rule, value)

    def raise_alert(self, step: int, rule: Rule, value: float) -> None:
        """Write down that a quantity is outside its band; log it the first time."""
        before = self.alerts.get(rule.quantity)
        alert = Alert(
            quantity=rule.quantity,
            value=value,
            low=_finite(rule.low),
            high=_finite(rule.high),
            meaning=rule.meaning,
            advice=rule.advice,
            guide=f"{GUIDE}#{rule.anchor}" if rule.anchor else "",
            is_note=rule.is_note,
            first_step=min(step, before.first_step) if before else step,
            last_step=step,
        )
        self.alerts[rule.quantity] = alert
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(found) for found in self.alerts.values()]
        write_atomic(self.path, json.dumps(rows, indent=1) + "\n")
        if before is None:
            logger.log(logging.INFO if rule.is_note else logging.WARNING, alert.sentence())


def read_alerts(path: Path) -> dict[str, Alert]:
    """Return the alerts of a file by quantity; none where there is no readable file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["quantity"]: Alert(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _metric(name: str) -> Callable[[dict[str, float], ModelConfig], float | None]:
    return lambda values, config: values.get(str(name))


def _exit_entropy_share(values: dict[str, float], config: ModelConfig) -> float | None:
    entropy = values.get(str(Metric.EXIT_ENTROPY))
    return None if entropy is None or config.n_loops < 2 else entropy / math.log(config.n_loops)


def _largest_drift(values: dict[str, float], config: ModelConfig) -> float | None:
    found = [value for name, value in values.items() if name.startswith(Metric.SCALE_DRIFT)]
    return max(found, key=abs) if found else None


def _memory_share(values: dict[str, float], config: ModelConfig) -> float | None:
    """Return the fuller of main memory and the GPU's."""
    machine = detect_machine()
    gpu_gb = machine.gpus[0].memory_gb if machine.gpus else 0.0
    limits = {Metric.PEAK_RSS_MIB: machine.memory_gb, Metric.PEAK_GPU_MIB: gpu_gb}
    shares = [
        values[str(name)] * 2**20 / (limit * 1e9)
        for name, limit in limits.items()
        if limit and str(name) in values
    ]
    return max(shares, default=None)


def _own_rules(targets: TargetsConfig) -> tuple[Rule, ...]:
    if targets.compile_rate is None:
        return ()
    return (
        Rule(
            "compile_rate", _metric(Metric.COMPILE_RATE), "Fewer samples compile than targeted.",
            "add verified examples, raise maxrl.reward_threshold, check what the errors have in "
            "common", low=targets.compile_rate, anchor="low-compile-rate", since=0.5,
        ),
    )  # fmt: skip


def _band(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


RULES: tuple[Rule, ...] = (
    Rule(
        "exit_entropy / ln R", _exit_entropy_share, "The gate uses one loop only.",
        ENTROPY_ADVICE, low=0.1, anchor="the-exit-gate-collapsed",
    ),
    Rule(
        "calibration_gap_nats", _metric(Metric.CALIBRATION_GAP),
        "The model is surer (below) or less sure (above) than it is right on held-out text.",
        "below: fewer passes over the data or more of it; above: train longer",
        low=-0.3, high=0.3, anchor="the-model-is-too-sure-or-too-unsure", since=0.25,
    ),
    Rule(
        "token_entropy / ln V", _metric(Metric.TOKEN_ENTROPY_SHARE),
        "The model is certain of nearly every token.", TEXT_ADVICE, low=0.03,
        anchor="the-policy-repeats-itself",
    ),
    Rule(
        "token_entropy_nats", _metric(Metric.TOKEN_ENTROPY),
        "Below 5 the brief warns of collapse; a model that learns gets there, because its "
        "entropy follows its loss.", "compare with the calibration gap, which is the alarm here",
        low=6.0, high=8.0, is_note=True,
    ),
    Rule(
        "repetition", _metric(Metric.REPETITION), "Free-running text repeats itself.",
        TEXT_ADVICE, high=0.5, anchor="the-policy-repeats-itself", since=0.1,
    ),
    Rule(
        "distinct_2", _metric(Metric.DISTINCT_2), "Free-running text has few distinct pairs.",
        TEXT_ADVICE, low=0.1, anchor="the-policy-repeats-itself", since=0.1,
    ),
    Rule(
        "zero_fraction", _metric(Metric.ZERO_FRACTION),
        "Of normally distributed weights 31 % become zero.",
        "check weight decay and learning rates; much zero means capacity is lost",
        low=0.15, high=0.7,
    ),
    Rule(
        "flip_rate", _metric(Metric.FLIP_RATE), "Codes still change as if training had begun.",
        "lower pretrain.muon_learning_rate or lengthen pretrain.decay_steps", high=0.3, since=0.8,
    ),
    Rule(
        "scale_drift (log2)", _largest_drift, "A layer's scales have left their start far behind.",
        "lower the learning rate of the matrices, or raise pretrain.weight_decay",
        low=-3.0, high=3.0,
    ),
    Rule(
        "loss above its smoothed value", _metric("loss_jump"), "One batch was much worse.",
        "watch whether it recurs: lower the learning rates or raise pretrain.warmup_steps; "
        "pretrain.on_spike = \"rollback\" skips what is worse", high=1.5, anchor="loss-spike",
        since=0.02,
    ),
    Rule(
        "matmul_peak_share", _metric(Metric.PEAK_SHARE),
        "Little of this machine's matmul speed reaches the training step.",
        "a larger micro-batch or model, torch.compile with a C++ compiler, bfloat16, fewer "
        "programs beside it", low=0.04, anchor="slow-cpu-training",
    ),
    Rule(
        "memory share", _memory_share, "Memory is nearly full.",
        "lower pretrain.micro_batch_size, or set pretrain.activation_checkpointing",
        high=0.92, anchor="cuda-out-of-memory",
    ),
)  # fmt: skip
