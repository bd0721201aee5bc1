"""The top of a report: key numbers with counts, targets beside them, and the health of the run.

A `Check` names its quantity, value, healthy band and what to try. A `TargetRow` sets a measured
number beside the profile's target and says whether the two can be compared: a target for a model of
billions of parameters is shown as a target, never as this model's result. The brief's entropy band
is only drawn; checks use the calibration gap, H / ln V, the exit entropy against ln R and
repetition, because a calibrated model has H close to its loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.content.blocks import (
    BAD,
    GOOD,
    UNKNOWN,
    WATCH,
    Check,
    KeyNumber,
)
from nanochat_lib.report.content.readings import number, share
from nanochat_lib.report.policy.health import key_policy, policy_checks
from nanochat_lib.report.run_data import RunData, series

SPIKE_WINDOW = 25  # steps of the running median a loss spike is measured against
SPIKE_NATS = 0.5  # least height of a spike
COMPARABLE_SIZE = 3.0  # targets apply to models within this factor of the size they were set for


@dataclass(frozen=True)
class TargetRow:
    """One number of the run beside its target."""

    name: str
    measured: str
    target: str
    outcome: str  # "met" | "not met" | "not measured" | "another scale"


def key_numbers(run: RunData) -> list[KeyNumber]:
    """Return the numbers a reader wants first; those that were not measured are left out."""
    found = [
        _key_compile_rate(run),
        _key_bits(run),
        key_policy(run),
        *_key_evaluation(run),
        _key_speed(run),
    ]
    return [entry for entry in found if entry]


def _key_compile_rate(run: RunData) -> KeyNumber | None:
    rate = run.summary("preprocess").get("compile_rate", {}).get("before", {})
    if not rate.get("n_judged"):
        return None
    count = f"{rate['n_compiled']:,} of {rate['n_judged']:,}"
    found, detail = rate["n_compiled"] / rate["n_judged"], f"{count} programs, before filtering"
    return KeyNumber("Sources that compile", found, f"{found:.1%}", count, detail, "compile-rate")


def _key_bits(run: RunData) -> KeyNumber | None:
    rows = series(run.metrics, "pretrain", Metric.BITS_PER_BYTE)
    if rows.is_empty():
        return None
    xz = run.summary("preprocess").get("compression", {}).get("xz_bits_per_byte")
    found, count = rows["value"][-1], f"step {rows['step'][-1]:,}"
    detail = f"real Rust, {count}" + (f"; xz -9e: {xz:.2f}" if xz else "")
    label, anchor = "Held-out bits per byte", "bits-per-byte"
    return KeyNumber(label, found, f"{found:.3f}", count, detail, anchor)


def _key_evaluation(run: RunData) -> list[KeyNumber]:
    found = []
    for row in whole_sets(run.results):
        if row["metric"] != "pass@1":
            continue
        rate, count = row["rate"], f"{row['n_correct']:,} of {row['n_samples']:,}"
        detail = (
            f"{count} samples, {row['n_problems']:,} problems, {row['checkpoint']}; "
            f"95%: {row['low']:.1%} to {row['high']:.1%}"
        )
        label, anchor = f"pass@1 on {row['task_set']}", metric_anchor("pass@1")
        found.append(KeyNumber(label, rate, f"{rate:.1%}", count, detail, anchor))
    return found


def _key_speed(run: RunData) -> KeyNumber | None:
    rows = series(run.metrics, "pretrain", Metric.TOKENS_PER_S)
    if rows.is_empty():
        return None
    found, count = rows["value"].median(), f"median of {rows.height:,}"
    detail = f"{count} measurements, {run.machine}"
    return KeyNumber("Training tokens/s", found, number(found), count, detail, "throughput")


def metric_anchor(metric: str) -> str:
    """Return the anchor of an evaluation metric's figure."""
    return "evaluation-" + re.sub(r"[^a-z0-9]+", "-", metric.lower()).strip("-")


def whole_sets(results: pl.DataFrame) -> list[dict]:
    """Return the last trained checkpoint's rows on whole task sets, HumanEval-Rust at the end."""
    if results.is_empty():
        return []
    rows = results.filter(
        pl.col("checkpoint") != "canonical", ~pl.col("task_set").str.contains("/", literal=True)
    )
    rows = rows.unique(["task_set", "metric"], keep="last", maintain_order=True).to_dicts()
    return sorted(
        rows, key=lambda row: (is_human_eval(row["task_set"]), row["task_set"] != "tinyrust")
    )


def is_comparable(run: RunData) -> bool:
    """Return whether the model is near enough in size to the one the targets were set for."""
    wanted = run.targets.get("parameters_b")
    if wanted is None:
        return True
    size = run.n_parameters / 1e9
    return wanted / COMPARABLE_SIZE <= size <= wanted * COMPARABLE_SIZE


def target_rows(run: RunData) -> list[TargetRow]:
    """Return every target of the profile beside what was measured."""
    measured = _measured(run)
    rows = []
    for name, (label, sense, style) in _TARGETS.items():
        target = run.targets.get(name)
        if target is None:
            continue
        text = f"{'at least' if sense > 0 else 'below'} {style.format(target)}"
        value, detail = measured.get(name, (None, ""))
        if value is None:
            rows.append(TargetRow(label, "not measured in this run", text, "not measured"))
            continue
        reached = value >= target if sense > 0 else value < target
        outcome = "met" if reached else "not met"
        outcome = outcome if is_comparable(run) else "another scale"
        rows.append(TargetRow(label, f"{style.format(value)} ({detail})", text, outcome))
    return rows


# target -> label, +1 when more is better, how the number is written
_TARGETS = {
    "compile_rate": ("Compile rate of the model's programs", 1, "{:.1%}"),
    "semantic_score": ("Semantic score of the model's programs", 1, "{:.1%}"),
    "pass_at_1": ("HumanEval-Rust pass@1", 1, "{:.1%}"),
    "loss": ("Held-out loss, nats per token", -1, "{:.2f}"),
    "bits_per_byte": ("Held-out bits per byte, real Rust", -1, "{:.2f}"),
    "tokens_per_s": ("Training tokens per second", 1, "{:,.0f}"),
    "training_days": ("Days of pre-training", -1, "{:.3g}"),
    "context_length": ("Context length in tokens", 1, "{:,.0f}"),
}


def _measured(run: RunData) -> dict[str, tuple[float, str]]:
    """Return target name -> (value, what it was counted on)."""
    found = {}
    size = f"{number(run.n_parameters)} parameters"
    for row in whole_sets(run.results):  # later ones replace earlier ones: HumanEval-Rust counts
        metric = {"pass@1": "pass_at_1"}.get(row["metric"], row["metric"])
        if metric == "pass_at_1" and not is_human_eval(row["task_set"]):
            continue
        detail = f"{row['n_samples']:,} samples, {row['task_set']}, {row['checkpoint']}, {size}"
        found[metric] = (row["rate"], detail)
    for name, metric in (
        ("loss", Metric.VAL_LOSS),
        ("bits_per_byte", Metric.BITS_PER_BYTE),
        ("tokens_per_s", Metric.TOKENS_PER_S),
    ):
        rows = series(run.metrics, "pretrain", metric)
        if rows.height:
            found[name] = (rows["value"][-1], f"last of {rows.height:,}, {size}")
    if seconds := run.stage("pretrain").get("seconds"):
        found["training_days"] = (seconds / 86400, f"{number(seconds)} s, {size}")
    if run.stage("long_context").get("status") == "completed":
        length = run.config.get("long_context", {}).get("seq_len", 0)
        found["context_length"] = (length, f"trained on, {size}")
    return found


def is_human_eval(task_set: str) -> bool:
    """Return whether a task set is a HumanEval-Rust one (HumanEval-X or MultiPL-E)."""
    name = task_set.lower()
    return "humaneval" in name or "multipl" in name


def count_spikes(values: np.ndarray) -> int:
    """Count runs of steps that stand above the running median by `SPIKE_NATS` or six deviations."""
    if len(values) <= SPIKE_WINDOW:
        return 0
    frame = pl.DataFrame({"value": values})
    middle = frame["value"].rolling_median(SPIKE_WINDOW).shift(1).to_numpy()
    off = values - middle
    known = off[np.isfinite(off)]
    deviation = float(np.median(np.abs(known - np.median(known)))) * 1.4826
    high = np.nan_to_num(off, nan=0.0) > max(SPIKE_NATS, 6 * deviation)
    return int(high[0]) + int((high[1:] & ~high[:-1]).sum())


def distinct_rate(texts: Sequence[str], n: int = 4) -> float | None:
    """Return distinct word n-grams over all, pooled over texts; None when there are too few."""
    grams = []
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text)
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if len(grams) >= 20 else None


def health_checks(run: RunData) -> list[Check]:
    """Return every check of a run; what was not measured is `unknown`, never `good`."""
    return [
        _check_exit_entropy(run),
        _check_calibration(run),
        _check_token_entropy(run),
        _check_repetition(run),
        _check_spikes(run),
        *policy_checks(run),
        _check_unjudged(run),
        _check_sandbox(run),
    ]


def _check_exit_entropy(run: RunData) -> Check:
    name, band = "Exit gate", "above 30% of ln R; below 10% it has collapsed"
    advice = (
        "raise pretrain.entropy_weight; the gate uses nearly one loop only "
        "(docs/troubleshooting.md#the-exit-gate-collapsed)"
    )
    last = run.last("pretrain", Metric.EXIT_ENTROPY)
    quantity = "exit entropy / ln R"
    if last is None or run.n_loops < 2:
        why = "the model has one loop" if run.n_loops < 2 else "not measured"
        return Check(name, quantity, why, band, UNKNOWN, "")
    ratio = last / math.log(run.n_loops)
    state = GOOD if ratio >= 0.3 else WATCH if ratio >= 0.1 else BAD
    value = f"{ratio:.0%} ({last:.2f} of {math.log(run.n_loops):.2f} nats)"
    return Check(name, quantity, value, band, state, advice)


def _check_calibration(run: RunData) -> Check:
    name, quantity = "Calibration", "token entropy minus cross-entropy"
    band = "within 0.3 nats of zero; beyond 0.6 is bad"
    last = run.last("pretrain", Metric.CALIBRATION_GAP)
    if last is None:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    state = GOOD if abs(last) <= 0.3 else WATCH if abs(last) <= 0.6 else BAD
    advice = (
        "too sure of itself: more data or fewer repeats of it, a lower learning rate"
        if last < 0
        else "too unsure: train longer, or let the learning rate decay to zero"
    )
    return Check(name, quantity, f"{last:+.2f} nats", band, state, advice)


def _check_token_entropy(run: RunData) -> Check:
    name, quantity, band = "Token entropy", "H / ln V", "2% to 75%"
    last = run.last("pretrain", Metric.TOKEN_ENTROPY)
    if last is None:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    ratio = last / math.log(run.config.get("model", {}).get("vocab_size", 2))
    state = GOOD if 0.02 <= ratio <= 0.75 else WATCH
    advice = (
        "it has hardly learned: train longer, or raise the learning rate"
        if ratio > 0.75
        else "it is nearly certain of every token: look for repeated or leaked data"
    )
    return Check(name, quantity, f"{ratio:.0%} ({last:.2f} nats)", band, state, advice)


def _check_repetition(run: RunData) -> Check:
    name, quantity = "Repetition", "distinct 4-grams in free-running samples"
    band = "above 50%; below 25% the text has collapsed"
    samples = [sample["completion"] for sample in run.samples("pretrain")]
    rate = distinct_rate(samples)
    if rate is None:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    state = GOOD if rate >= 0.5 else WATCH if rate >= 0.25 else BAD
    value = f"{rate:.0%} ({len(samples)} samples)"
    return Check(name, quantity, value, band, state, "train longer; raise the temperature")


def _check_spikes(run: RunData) -> Check:
    name, quantity, band = "Loss spikes", "spikes above the running median", "0; more than 3 is bad"
    losses = run.metrics.filter((pl.col("stage") == "pretrain") & (pl.col("name") == Metric.LOSS))
    if losses.is_empty():
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    values = losses.sort("step")["value"].to_numpy()
    n_broken = int((~np.isfinite(values)).sum())
    n_spikes = count_spikes(values[np.isfinite(values)])
    state = BAD if n_broken or n_spikes > 3 else WATCH if n_spikes else GOOD
    value = f"{n_spikes} in {len(values):,} steps" + (f", {n_broken} not finite" * bool(n_broken))
    advice = (
        "lower the learning rate, lengthen the warm-up, lower pretrain.grad_clip "
        "(docs/troubleshooting.md#loss-spike)"
    )
    return Check(name, quantity, value, band, state, advice)


def _check_unjudged(run: RunData) -> Check:
    name, quantity = "Judging", "programs that could not be judged"
    band = "below 1%; they count neither as right nor as wrong"
    summary = run.summary("preprocess")
    n_judged = summary.get("compile_rate", {}).get("before", {}).get("n_judged")
    if n_judged is None or "n_unjudged" not in summary:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    n_unjudged = summary["n_unjudged"]
    rate = n_unjudged / max(n_judged + n_unjudged, 1)
    state = GOOD if rate < 0.01 else WATCH if rate < 0.05 else BAD
    advice = (
        "raise verify.compile_cpu_s or verify.memory_mib; run nanochat doctor "
        "(docs/troubleshooting.md#verification-fails)"
    )
    return Check(name, quantity, share(n_unjudged, n_judged + n_unjudged), band, state, advice)


def _check_sandbox(run: RunData) -> Check:
    name, quantity, band = "Sandbox", "isolation of generated programs", "any level but none"
    if not run.sandbox:
        return Check(name, quantity, "not recorded", band, UNKNOWN, "")
    state = BAD if run.sandbox == "none" else GOOD
    advice = (
        "install bubblewrap or use a kernel with Landlock; run nanochat doctor "
        "(docs/troubleshooting.md#no-sandbox)"
    )
    return Check(name, quantity, run.sandbox, band, state, advice)
