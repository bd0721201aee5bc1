"""What became better between the first and the last look of stage 3, and whether that is shown.

Input: `summary.json` of the stage, of this version or an older one. Output: `Change`s of rates by
part of the held-out tasks, paired `Rise`s, and how they read. Intervals are over tasks, because
samples of one task depend on each other. A bootstrap over equal values has no width, and would
prove anything: there Wilson's interval over the number of tasks stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanochat_lib.report.plots.bars import wilson_interval

SEPARATE, OVERLAP = "intervals are separate", "intervals overlap: not shown"
MAIN_SPLIT = "held_parameters"
WORDS = {"pass": "tests passed", "compile": "compiled"}
_HITS = {"pass": "n_passed", "compile": "n_compiled"}
Summary = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """A rate with its 95 % interval over tasks."""

    value: float
    low: float
    high: float
    n_hits: int
    n: int
    n_tasks: int

    @property
    def text(self) -> str:
        """Return the rate with its interval: `30.5% [15.6% to 44.5%]`."""
        return f"{self.value:.1%} [{self.low:.1%} to {self.high:.1%}]"


@dataclass(frozen=True)
class Change:
    """One rate of one part of the held-out tasks, at the first and at the last look."""

    part: str
    before: Rate
    after: Rate

    @property
    def is_separate(self) -> bool:
        """Return whether the two intervals have nothing in common."""
        return self.after.low > self.before.high or self.after.high < self.before.low

    @property
    def says(self) -> str:
        """Return what the intervals show of the change."""
        if not self.is_separate:
            return OVERLAP
        return f"{SEPARATE}: {'higher' if self.after.value > self.before.value else 'lower'}"


@dataclass(frozen=True)
class Rise:
    """The mean difference of a rate over the same tasks, with its 95 % interval."""

    part: str
    kind: str  # of `WORDS`
    rise: float
    low: float
    high: float
    n_tasks: int

    @property
    def says(self) -> str:
        """Return what the interval shows: one task alone, or equal differences, show nothing."""
        if self.low <= 0 <= self.high or self.low == self.high:
            return "the interval holds zero: not shown"
        return "a rise is shown" if self.low > 0 else "a fall is shown"


def changes(summary: Summary, kind: str) -> list[Change]:
    """Return the change of all main held-out tasks, then of each level, then of other splits.

    Args:
        summary: of stage 3; parts that were not looked at twice are left out.
        kind: "pass" or "compile".
    """
    before, after = summary.get("before", {}), summary.get("after", {})
    pairs = [("all, new parameters", before, after)]
    levels = sorted(before.get("by_level", {}), key=int)
    pairs += [(f"level {level}", *_both(before, after, "by_level", level)) for level in levels]
    pairs += [
        (split.replace("held_", "new "), *_both(before, after, "by_split", split))
        for split in before.get("by_split", {})
        if split != MAIN_SPLIT
    ]
    found = [(part, rate_of(old, kind), rate_of(new, kind)) for part, old, new in pairs]
    return [Change(part, old, new) for part, old, new in found if old and new]


def _both(before: Summary, after: Summary, group: str, name: str) -> tuple[Summary, Summary]:
    return before[group][name], after.get(group, {}).get(name, {})


def rate_of(row: Summary, kind: str) -> Rate | None:
    """Return one rate of a look, or None where nothing was judged."""
    n, n_hits = row.get("n_judged", 0), row.get(_HITS[kind], 0)
    if not n:
        return None
    value, n_tasks = n_hits / n, row.get("n_tasks", 0)
    low, high = row.get(f"{kind}_rate_low", value), row.get(f"{kind}_rate_high", value)
    return Rate(value, *_with_width(value, low, high, n_tasks), n_hits, n, n_tasks)


def pass_at(summary: Summary, when: str) -> dict[int, Rate]:
    """Return pass@k of the "before" or "after" look, in order of k."""
    rows = summary.get(when, {}).get("pass_at", {})
    found = {}
    for k, row in sorted(rows.items(), key=lambda item: int(item[0])):
        n = row["n_tasks"]
        span = _with_width(row["rate"], row["low"], row["high"], n)
        found[int(k)] = Rate(row["rate"], *span, round(row["rate"] * n), n, n)
    return found


def rises(summary: Summary) -> list[Rise]:
    """Return the paired differences of all main held-out tasks and of each level."""
    gains = summary.get("gains", {})
    levels = sorted((key for key in gains if key.startswith("level")), key=lambda key: int(key[5:]))
    parts = [("all", gains), *((f"level {key[5:]}", gains[key]) for key in levels)]
    return [
        Rise(part, kind, row["rise"], row["low"], row["high"], row["n_tasks"])
        for part, rows in parts
        for kind in WORDS
        if (row := rows.get(f"{kind}_rate"))
    ]


def _with_width(value: float, low: float, high: float, n_tasks: int) -> tuple[float, float]:
    if low != high:
        return low, high
    return wilson_interval(round(value * n_tasks), n_tasks)
