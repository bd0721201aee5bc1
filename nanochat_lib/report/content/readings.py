"""One sentence per figure, computed from the run's numbers.

Input: a `RunData` or the rows that a figure draws. Output: plain text with the value, its unit and
its count; an empty text when nothing was measured. Judgements live in `summary.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.run_data import RunData, series


def number(value: float) -> str:
    """Return a number as people read it: 3 significant digits, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:.3g}"


def share(n_hits: int, n: int) -> str:
    """Return a rate with its counts: `85.0 % (17 of 20)`."""
    return f"{n_hits / n:.1%} ({n_hits:,} of {n:,})" if n else "none judged (0 of 0)"


def trend(metrics: pl.DataFrame, stage: str, metric: str, label: str, unit: str = "") -> str:
    """Return how a metric went from its first to its last value, with its extremes."""
    rows = series(metrics, stage, metric)
    if rows.is_empty():
        return ""
    first, last = rows["value"][0], rows["value"][-1]
    step, unit = rows["step"][-1], f" {unit}" if unit else ""
    if rows.height == 1:
        return f"{label} is {number(last)}{unit} at step {step} (one measurement)."
    verb = "fell" if last < first else "rose"
    moved = f"{verb} from {number(first)} to {number(last)}"
    moved = moved if last != first else f"stayed at {number(last)}"
    return f"{label} {moved}{unit} by step {step} ({rows.height:,} measurements)."


def read_bits(run: RunData) -> str:
    """Say where held-out bits per byte ended, against the compressors."""
    label, unit = "Held-out real Rust", "bits per byte"
    text = trend(run.metrics, "pretrain", Metric.BITS_PER_BYTE, label, unit)
    last = run.last("pretrain", Metric.BITS_PER_BYTE)
    compression = run.summary("preprocess").get("compression", {})
    notes = []
    for key, name in (("zstd_bits_per_byte", "zstd -19"), ("xz_bits_per_byte", "xz -9e")):
        if last is not None and compression.get(key):
            gap = last - compression[key]
            side = "below" if gap < 0 else "above"
            notes.append(f"{abs(gap):.2f} {side} {name} ({compression[key]:.2f})")
    return f"{text} That is {' and '.join(notes)}." if notes else text


def read_token_entropy(run: RunData) -> str:
    """Say how far the token entropy is from a uniform guess and from the loss."""
    last = run.last("pretrain", Metric.TOKEN_ENTROPY)
    if last is None:
        return ""
    bound = math.log(run.config.get("model", {}).get("vocab_size", 2))
    text = f"The last token entropy is {last:.2f} nats, {last / bound:.0%} of ln V = {bound:.2f}."
    gap = run.last("pretrain", Metric.CALIBRATION_GAP)
    if gap is not None:
        side = "less sure than it should be" if gap > 0 else "surer than it should be"
        text += f" It differs from the cross-entropy by {gap:+.2f} nats: the model is {side}."
    return text


def read_exit(run: RunData) -> str:
    """Say how spread the exits are, and the mean depth."""
    last = run.last("pretrain", Metric.EXIT_ENTROPY)
    if last is None or run.n_loops < 2:
        return ""
    bound = math.log(run.n_loops)
    text = f"The last exit entropy is {last:.2f} nats, {last / bound:.0%} of ln {run.n_loops}."
    depth = run.last("pretrain", Metric.EXPECTED_LOOPS)
    return text + (f" Tokens leave after {depth:.2f} of {run.n_loops} loops." if depth else "")


def read_exit_distribution(run: RunData) -> str:
    """Name the loop where most tokens leave."""
    shares = {
        i: run.last("pretrain", f"{Metric.EXIT_PDF}{i}") or 0.0 for i in range(1, run.n_loops + 1)
    }
    if not any(shares.values()):
        return ""
    top = max(shares, key=lambda i: shares[i])
    return f"In the end {shares[top]:.0%} of tokens leave after loop {top} of {run.n_loops}."


def read_funnel(funnel: Sequence[dict[str, Any]]) -> str:
    """Say how much of the sources is left, and which step removed most."""
    if len(funnel) < 2:
        return ""
    first, last = funnel[0], funnel[-1]
    drops = [(a["n"] - b["n"], b["step"]) for a, b in pairwise(funnel)]
    lost, step = max(drops)
    return (
        f"{last['n']:,} of {first['n']:,} are left ({last['n'] / max(first['n'], 1):.0%}); "
        f"the largest loss, {lost:,}, is at '{step}'."
    )


def read_compile_rate(rates: dict[str, Any]) -> str:
    """Say the compile rate before and after filtering."""
    before, after = rates.get("before"), rates.get("after")
    parts = []
    if before:
        parts.append(f"before filtering {share(before['n_compiled'], before['n_judged'])}")
    if after:
        parts.append(f"after it {share(after['n_compiled'], after['n_judged'])}")
    return f"Compile rate: {', '.join(parts)}." if parts else ""


def read_difficulty(difficulty: dict[str, Any]) -> str:
    """Name the level that misses its wanted share most."""
    after, wanted = difficulty.get("after", {}), difficulty.get("wanted", {})
    n, total = sum(after.values()), sum(wanted.values())
    if not n or not total:
        return ""
    gaps = {level: after.get(level, 0) / n - share_ / total for level, share_ in wanted.items()}
    level = max(gaps, key=lambda name: abs(gaps[name]))
    if abs(gaps[level]) < 0.01:
        return f"After balancing, {n:,} examples have the wanted mix within one point."
    return (
        f"After balancing, {level} is {abs(gaps[level]) * 100:.0f} points "
        f"{'above' if gaps[level] > 0 else 'below'} its wanted share ({n:,} examples)."
    )


def read_codes(rows: Sequence[dict[str, Any]]) -> str:
    """Name the most frequent error."""
    if not rows:
        return ""
    top, n = max(rows, key=lambda row: row["n"]), sum(row["n"] for row in rows)
    code = top["code"] or "An error without code"
    return f"{code} leads with {share(top['n'], n)} of the errors."


def read_maxrl(run: RunData) -> str:
    """Say how the held-out pass rate moved, or the training pass rate when that is all there is."""
    for metric, label in (
        (Metric.HELD_OUT_PASS_RATE, "The pass rate on held-out tasks"),
        (Metric.PASS_RATE, "The pass rate on training tasks"),
    ):
        if text := trend(run.metrics, "maxrl", metric, label):
            return text
    return ""


def read_evaluation(results: pl.DataFrame, task_set: str) -> str:
    """Name the last checkpoint's rates with counts and intervals."""
    rows = results.filter(pl.col("task_set") == task_set) if results.height else results
    if rows.is_empty():
        return ""
    checkpoint = rows["checkpoint"][-1]
    parts = [
        f"{r['metric']} {r['rate']:.1%} [{r['low']:.1%} to {r['high']:.1%}]"
        for r in rows.filter(pl.col("checkpoint") == checkpoint).iter_rows(named=True)
    ]
    n, problems = rows["n_samples"][-1], rows["n_problems"][-1]
    return f"Checkpoint {checkpoint}: {', '.join(parts)}; {n:,} samples of {problems:,} problems."
