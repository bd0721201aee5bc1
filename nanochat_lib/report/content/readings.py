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
    """Return a rate with its counts: `85.0% (17 of 20)`."""
    return f"{n_hits / n:.1%} ({n_hits:,} of {n:,})" if n else "none judged (0 of 0)"


def trend(
    metrics: pl.DataFrame,
    stage: str,
    metric: str,
    label: str,
    *,
    unit: str = "",
    step: str = "step",
) -> str:
    """Return how a metric went from its first to its last value; unit "%" writes percentages."""
    rows = series(metrics, stage, metric)
    if rows.is_empty():
        return ""
    first, last, at = rows["value"][0], rows["value"][-1], rows["step"][-1]
    old, new = (f"{v:.1%}" if unit == "%" else number(v) for v in (first, last))
    unit = "" if unit == "%" else f" {unit}" * bool(unit)
    if rows.height == 1:
        return f"{label} is {new}{unit} at {step} {at} (one measurement)."
    moved = f"{'fell' if last < first else 'rose'} from {old} to {new}"
    moved = moved if old != new else f"stayed at {new}"
    return f"{label} {moved}{unit} by {step} {at:,} ({rows.height:,} measurements)."


def middle(metrics: pl.DataFrame, stage: str, metric: str, label: str, unit: str = "") -> str:
    """Return the median of a metric with its smallest and largest value."""
    values = series(metrics, stage, metric)["value"]
    if values.is_empty():
        return ""
    low, mid, high = (number(v) for v in (values.min(), values.median(), values.max()))
    unit = f" {unit}" if unit else ""
    return f"{label}: median {mid}{unit}, from {low} to {high} ({len(values):,} measurements)."


def read_bits(run: RunData) -> str:
    """Say where held-out bits per byte ended, against the compressors."""
    label, unit = "Held-out real Rust", "bits per byte"
    text = trend(run.metrics, "pretrain", Metric.BITS_PER_BYTE, label, unit=unit)
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
        side = "well calibrated" if abs(gap) <= 0.1 else side
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
    """Say how much of the sources is left before they are split, and which step removed most."""
    steps = [row for row in funnel if row["step"] not in ("train", "validation")]
    if len(steps) < 2:
        return ""
    first, last = steps[0], steps[-1]
    lost, step = max((a["n"] - b["n"], b["step"]) for a, b in pairwise(steps))
    return (
        f"{last['n']:,} of {first['n']:,} are left ({last['n'] / max(first['n'], 1):.1%}); "
        f"the largest step down, {lost:,}, is '{step}'."
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


def read_learning_rate(run: RunData) -> str:
    """Say where the learning rate peaked and where it ended."""
    rows = series(run.metrics, "pretrain", Metric.LEARNING_RATE)
    if rows.is_empty():
        return ""
    peak = rows["value"].arg_max()
    return (
        f"It peaked at {number(rows['value'][peak])} in step {rows['step'][peak]:,} and ended at "
        f"{number(rows['value'][-1])} in step {rows['step'][-1]:,}."
    )


def read_evaluation(results: pl.DataFrame, metric: str) -> str:
    """Say the last checkpoint's rate on each whole task set, with its interval."""
    if results.is_empty():
        return ""
    rows = results.filter(
        pl.col("metric") == metric, ~pl.col("task_set").str.contains("/", literal=True)
    )
    parts = [
        f"{row['rate']:.1%} on {row['task_set']} [{row['low']:.1%} to {row['high']:.1%}]"
        for row in rows.filter(pl.col("checkpoint") == pl.col("checkpoint").last()).to_dicts()
    ]
    return f"Checkpoint {rows['checkpoint'][-1]}: {', '.join(parts)}." if parts else ""


def read_kernels(rows: Sequence[dict[str, Any]]) -> str:
    """Name the fastest ternary kernel against NumPy float32."""
    timed = [row for row in rows if row.get("ratio_to_numpy_f32") and row["kernel"] == "ternary"]
    if not timed:
        return ""
    best = max(timed, key=lambda row: row["ratio_to_numpy_f32"])
    return (
        f"Best ternary kernel: {best['backend']} at {best['n']} x {best['k']}, batch "
        f"{best['batch']}, {best['ratio_to_numpy_f32']:.1f} times as fast as NumPy float32."
    )


def read_roof(rows: Sequence[dict[str, Any]]) -> str:
    """Say how near the product comes to reading alone, in the largest set measured."""
    rows = [row for row in rows if row.get("section") == "working_set"]
    largest = max((row["set_mb"] for row in rows if row["kernel"] == "read"), default=0)
    reads = [r["gb_per_s"] for r in rows if r["kernel"] == "read" and r["set_mb"] == largest]
    found = [r for r in rows if r.get("packing") == "2bit" and r["set_mb"] == largest]
    if not reads or not found:
        return ""
    return (
        f"Going through {largest:,.0f} MB, one thread reads {found[0]['gb_per_s']:.1f} GB/s of "
        f"packed weights, {found[0]['gb_per_s'] / max(reads):.0%} of what reading alone reaches."
    )


def read_exits(rows: Sequence[dict[str, Any]]) -> str:
    """Say what the lowest threshold gains."""
    rows = [row for row in rows if row.get("section") == "exit"]
    if not rows:
        return ""
    first = min(rows, key=lambda row: row["exit_threshold"])
    return (
        f"At threshold {first['exit_threshold']}, tokens leave after {first['mean_loops']:.1f} "
        f"loops on average and come {first['speedup']:.2f} times as fast as at full depth: the "
        "head is read whole for every token, whatever its depth."
    )


def read_parts(rows: Sequence[dict[str, Any]]) -> str:
    """Say how much of a token's time its kernels take."""
    token = [r for r in rows if r.get("section") == "part" and r["what"] == "token"]
    if not token:
        return ""
    return (
        f"A token takes {token[0]['us']:,.0f} us, {token[0]['of_kernels']:.2f} times its products, "
        "head and attention."
    )
