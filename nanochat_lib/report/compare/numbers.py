"""What came out of runs, number by number: value, interval where one is known, count, best marked.

A number is marked "best" only where more or less of it is better, and "level" when its interval
reaches into the best one's: then the runs do not tell which is better. Numbers without an interval
(one training run each) are marked by their value alone; seeds are what tells more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat_lib.records import Metric
from nanochat_lib.report.content.readings import number
from nanochat_lib.report.content.summary import whole_sets
from nanochat_lib.report.policy.changes import WORDS, pass_at, rate_of, rises
from nanochat_lib.report.policy.costs import wait_share
from nanochat_lib.report.run_data import RunData, series

BEST, LEVEL = "best", "level"


@dataclass(frozen=True)
class Number:
    """One measured number of one run."""

    value: float
    text: str
    count: str = ""  # what it was counted on
    span: tuple[float, float] | None = None  # a 95 % interval


@dataclass(frozen=True)
class NumberRow:
    """One quantity over all runs; `None` where it was not measured."""

    label: str
    sense: int  # +1 more is better, -1 less is better, 0 neither
    cells: tuple[Number | None, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """Return "best", "level" or an empty text for each run."""
        known = [cell for cell in self.cells if cell]
        if not self.sense or len({cell.value for cell in known}) < 2:
            return ("",) * len(self.cells)
        best = max(known, key=lambda cell: self.sense * cell.value)
        return tuple(_mark(cell, best) for cell in self.cells)


def _mark(cell: Number | None, best: Number) -> str:
    if cell is None:
        return ""
    if cell.value == best.value:
        return BEST
    if cell.span and best.span:
        apart = cell.span[1] < best.span[0] or cell.span[0] > best.span[1]
        return "" if apart else LEVEL
    return ""


def number_rows(runs: Sequence[RunData]) -> list[NumberRow]:
    """Return every number that at least one run measured."""
    rows = [
        NumberRow(label, sense, tuple(_curve(run, stage, metric, how) for run in runs))
        for label, sense, stage, metric, how in _CURVES
    ]
    rows.insert(0, NumberRow("Stored parameters", 0, tuple(_parameters(run) for run in runs)))
    rows += _policy_rows(runs) + _evaluation_rows(runs) + _second_rows(runs)
    return [row for row in rows if any(row.cells)]


# label, sense, stage, metric, which value of its curve
_CURVES: tuple[tuple[str, int, str, str, str], ...] = (
    ("Held-out bits per byte, real Rust", -1, "pretrain", Metric.BITS_PER_BYTE, "last"),
    ("Held-out bits per byte, TinyRust", -1, "pretrain", Metric.BITS_PER_BYTE_TINYRUST, "last"),
    ("Held-out loss, nats per token", -1, "pretrain", Metric.VAL_LOSS, "last"),
    ("Token entropy, nats", 0, "pretrain", Metric.TOKEN_ENTROPY, "last"),
    ("Exit entropy, nats", 0, "pretrain", Metric.EXIT_ENTROPY, "last"),
    ("Mean loops used", 0, "pretrain", Metric.EXPECTED_LOOPS, "last"),
    ("Share of zero codes", 0, "pretrain", Metric.ZERO_FRACTION, "last"),
    ("Training tokens per second", 1, "pretrain", Metric.TOKENS_PER_S, "median"),
    ("Peak memory of training, MiB", -1, "pretrain", Metric.PEAK_RSS_MIB, "max"),
    ("Distinct bodies of sampled programs", 0, "maxrl", Metric.DISTINCT_BODIES, "last"),
    ("Prompts whose programs differ in reward", 0, "maxrl", Metric.MIXED_GROUPS, "median"),
    ("Tokens sampled per second in MaxRL", 1, "maxrl", Metric.COMPLETION_TOKENS_S, "median"),
    ("Loss of stage 4, nats per token", -1, "long_context", Metric.VAL_LOSS, "last"),
)


def _curve(run: RunData, stage: str, metric: str, how: str) -> Number | None:
    rows = series(run.metrics, stage, metric)
    if rows.is_empty():
        return None
    values = rows["value"]
    pick: dict[str, Callable[[], float]] = {
        "last": lambda: values[-1],
        "median": values.median,
        "max": values.max,
    }
    found = float(pick[how]())
    count = f"step {rows['step'][-1]:,}" if how == "last" else f"{how} of {rows.height:,}"
    return Number(found, f"{found:.3f}" if 0.001 <= abs(found) < 100 else number(found), count)


def _parameters(run: RunData) -> Number | None:
    n = run.n_parameters
    return Number(n, f"{n:,}") if n else None


def _policy_rows(runs: Sequence[RunData]) -> list[NumberRow]:
    names = (("Held-out TinyRust compiled", "compile"), ("Held-out TinyRust passed", "pass"))
    found = [run.summary("maxrl") for run in runs]
    rows = [
        NumberRow(f"{label} {when} MaxRL", 1, tuple(_policy(one, when, kind) for one in found))
        for label, kind in names
        for when in ("before", "after")
    ]
    ks = sorted({k for one in found for k in pass_at(one, "after")} - {1})
    rows += [
        NumberRow(f"Held-out pass@{k} after MaxRL", 1, tuple(_pass_at(one, k) for one in found))
        for k in ks[-1:]
    ]
    rows += [
        NumberRow(f"Rise over the same tasks: {name}", 1, tuple(_rise(one, kind) for one in found))
        for kind, name in WORDS.items()
    ]
    waits = tuple(_waiting(one) for one in found)
    return [*rows, NumberRow("Share of MaxRL spent waiting for the judge", -1, waits)]


def _policy(summary: dict, when: str, kind: str) -> Number | None:
    rate = rate_of(summary.get(when, {}), kind)
    if rate is None:
        return None
    count = f"{rate.n:,} programs, {rate.n_tasks} tasks"
    return Number(rate.value, f"{rate.value:.1%}", count, (rate.low, rate.high))


def _pass_at(summary: dict, k: int) -> Number | None:
    rate = pass_at(summary, "after").get(k)
    if rate is None:
        return None
    return Number(rate.value, f"{rate.value:.1%}", f"{rate.n_tasks} tasks", (rate.low, rate.high))


def _rise(summary: dict, kind: str) -> Number | None:
    found = [one for one in rises(summary) if one.kind == kind and one.part == "all"]
    if not found:
        return None
    (one,) = found
    text = f"{100 * one.rise:+.1f} points"
    return Number(one.rise, text, f"{one.n_tasks} tasks", (one.low, one.high))


def _waiting(summary: dict) -> Number | None:
    waited = wait_share(summary)
    n = f"{summary.get('steps', 0):,} updates"
    return None if waited is None else Number(waited, f"{waited:.0%}", n)


def _evaluation_rows(runs: Sequence[RunData]) -> list[NumberRow]:
    found = [
        {(row["metric"], row["task_set"]): row for row in whole_sets(run.results)} for run in runs
    ]
    keys = dict.fromkeys(key for rows in found for key in rows)
    return [
        NumberRow(
            f"{metric.replace('_', ' ')} on {task_set}",
            1,
            tuple(_rate(rows.get((metric, task_set))) for rows in found),
        )
        for metric, task_set in keys
    ]


def _rate(row: dict | None) -> Number | None:
    if row is None:
        return None
    count = f"{row['n_samples']:,} samples, {row['n_problems']:,} problems, {row['checkpoint']}"
    return Number(row["rate"], f"{row['rate']:.1%}", count, (row["low"], row["high"]))


def _second_rows(runs: Sequence[RunData]) -> list[NumberRow]:
    names = dict.fromkeys(name for run in runs for name in run.state.get("stages", {}))
    return [
        NumberRow(f"Seconds of stage {name}", 0, tuple(_seconds(run, name) for run in runs))
        for name in names
    ]


def _seconds(run: RunData, stage: str) -> Number | None:
    found = run.stage(stage).get("seconds")
    return (
        Number(found, f"{found:,.0f}", str(run.stage(stage).get("status", ""))) if found else None
    )
