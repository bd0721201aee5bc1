"""Results of a study as tables: means over seeds with intervals, and differences by seed.

In: finished points; out: data frames. Intervals are Student's t over seeds, which are few; a
difference is taken seed by seed, because arms of one seed see the same batches, and is worth
reading only where its interval leaves out zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.studies.points import Point

# Two-sided 95 % quantiles of Student's t for 1, 2, .. degrees of freedom; 1.96 far beyond.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MEASURES = {
    "bits_per_byte": "bits per byte, real Rust",
    "bits_per_byte_tinyrust": "bits per byte, TinyRust",
    "pass_level_1": "pass@1, level 1",
    "pass_level_2": "pass@1, level 2 (compositions)",
    "pass_held_composition": "pass@1, compositions never seen",
    "compile_rate": "compile rate",
}
_PARTS = {
    "pass_level_1": ("tinyrust/level1", "pass@1"),
    "pass_level_2": ("tinyrust/level2", "pass@1"),
    "pass_held_composition": ("tinyrust/held_composition", "pass@1"),
    "compile_rate": ("tinyrust", "compile_rate"),
}


def point_rows(points: Sequence[Point]) -> pl.DataFrame:
    """Return a row per point: costs, bits per byte and rates, with the sample counts."""
    return pl.DataFrame([_row(point.result()) for point in points], infer_schema_length=None)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    final = result["final"]
    rates = {(row["task_set"], row["metric"]): row for row in result["tasks"]}
    row = {name: result[name] for name in ("arm", "seed", "parameters_stored", "train_flops")}
    row |= {"tokens": result["tokens_seen"], "cpu_s": result["cpu_s"]}
    for name in ("bits_per_byte", "bits_per_byte_tinyrust"):
        row[name] = final.get(name)
    row["exit_entropy_nats"] = final.get(str(Metric.EXIT_ENTROPY))
    row["expected_loops"] = final.get(str(Metric.EXPECTED_LOOPS))
    for name, key in _PARTS.items():
        row[name] = rates[key]["rate"] if key in rates else None
    whole = rates.get(("tinyrust", "pass@1"))
    return row | {"n_programs": whole["n_samples"] if whole else 0}


def summary(rows: pl.DataFrame, measures: Sequence[str] = tuple(MEASURES)) -> pl.DataFrame:
    """Return a row per arm: costs, and the mean of each measure with its half interval.

    Args:
        rows: of `point_rows`; the order of arms is kept.
    """
    out = []
    for (arm,), group in rows.group_by("arm", maintain_order=True):
        first = group.row(0, named=True)
        row: dict[str, Any] = {
            "arm": arm,
            "seeds": len(group),
            "stored (M)": round(first["parameters_stored"] / 1e6, 2),
            "train TFLOP": round(first["train_flops"] / 1e12, 2),
            "tokens (M)": round(first["tokens"] / 1e6, 2),
        }
        for name in measures:
            mean, half = mean_interval(group[name].drop_nulls().to_list())
            row[MEASURES[name]] = interval_text(mean, half)
        out.append(row)
    return pl.DataFrame(out)


def differences(rows: pl.DataFrame, measures: Sequence[str] = tuple(MEASURES)) -> pl.DataFrame:
    """Return, for each arm but the first, the difference to the first, paired by seed."""
    arms = rows["arm"].unique(maintain_order=True).to_list()
    reference = {row["seed"]: row for row in rows.filter(pl.col("arm") == arms[0]).to_dicts()}
    out = []
    for arm in arms[1:]:
        group = [r for r in rows.filter(pl.col("arm") == arm).to_dicts() if r["seed"] in reference]
        row: dict[str, Any] = {"arm": f"{arm}, minus {arms[0]}", "seeds": len(group)}
        for name in measures:
            pairs = [(r[name], reference[r["seed"]][name]) for r in group]
            mean, half = mean_interval([a - b for a, b in pairs if None not in (a, b)])
            row[MEASURES[name]] = interval_text(mean, half, signed=True)
        out.append(row)
    return pl.DataFrame(out)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval; NaN where there are too few values.

    Example: [1, 2, 3] has mean 2 and half interval 4.303 * 1 / sqrt(3) = 2.48.
    """
    if not values:
        return math.nan, math.nan
    if len(values) == 1:
        return values[0], math.nan
    t = T_95[min(len(values) - 2, len(T_95) - 1)]
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def interval_text(mean: float, half: float, *, signed: bool = False) -> str:
    """Return a mean with its half interval, or that there is none."""
    if math.isnan(mean):
        return "not measured"
    number = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return number if math.isnan(half) else f"{number} ± {half:.3f}"
