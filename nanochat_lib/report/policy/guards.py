"""Known ways to please a reward without solving the task, as stage 3 counted them.

Input: `guards` of the stage's summary, and of its looks. Output: one `Guard` each with its band, in
words, and what to try when it is beyond it. The counting itself is in `train/rl/measures.py`, what
is looked for in `rust/hacks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from nanochat_lib.rust.hacks import HACKS

MEANINGS = HACKS | {
    "one_body": "the most frequent body among the first programs of different tasks",
    "length_collapse": "programs became shorter",
    "entropy_collapse": "the policy is nearly sure of every token, so nothing new is tried",
}
_READ = "read the programs below; keep maxrl.reward at tests"
_CALM = (
    "lower maxrl.learning_rate, raise maxrl.prompts_per_step or maxrl.kl_weight, stop earlier "
    "(docs/troubleshooting.md#the-policy-repeats-itself)"
)
_HOLE = "the judge gives such programs nothing, so read those that passed: a hole in it is a bug"
ADVICE = {
    "empty_body": f"{_READ}: an empty body earns the base of the shaped reward",
    "gives_up": f"{_READ}: what compiles and never answers earns the shaped reward",
    "constant_return": f"{_READ}, and look for tasks whose tests a constant passes",
    "copied_prompt": "train stage 2 longer, or lower maxrl.temperature",
    "leaves_early": _HOLE,
    "pretends": _HOLE,
    "tampers": _HOLE,
    "dead_branches": f"{_READ}: the shaped reward pays for complexity",
    "one_body": _CALM,
    "length_collapse": _CALM,
    "entropy_collapse": f"raise maxrl.temperature; {_CALM}",
}


@dataclass(frozen=True)
class Guard:
    """One guard at the last look, and its share at the first one where that was counted."""

    name: str
    n: float
    of: float
    share: float
    band: float
    is_alarm: bool
    share_before: float | None

    @property
    def label(self) -> str:
        """Return the name in words."""
        return self.name.replace("_", " ")

    @property
    def value(self) -> str:
        """Return what was counted, with its counts."""
        if self.name == "length_collapse":
            return f"{self.share:.0%} shorter: {self.of:g} tokens before, {self.n:g} after"
        if self.name == "entropy_collapse":
            return f"{self.n:g} nats per token, {self.of:g} before"
        what = "tasks" if self.name == "one_body" else "programs"
        before = "" if self.share_before is None else f"; {self.share_before:.1%} before"
        return f"{self.share:.1%} ({self.n:,} of {self.of:,} {what}){before}"

    @property
    def bound(self) -> str:
        """Return the band in words."""
        if self.name == "entropy_collapse":
            return f"at least {self.band:g} nats"
        return f"at most {self.band:.0%}" + (" shorter" if self.name == "length_collapse" else "")


def guards_of(summary: dict[str, Any]) -> list[Guard]:
    """Return the guards of a stage's end, alarms first."""
    before = summary.get("before", {}).get("guards", {})
    found = [
        Guard(
            name, row["n"], row["of"], row["share"], row["band"], bool(row["alarm"]),
            before.get(name, {}).get("share"),
        )
        for name, row in summary.get("guards", {}).items()
    ]  # fmt: skip
    return sorted(found, key=lambda guard: not guard.is_alarm)


def alarms_between(summary: dict[str, Any]) -> dict[str, tuple[float, int]]:
    """Return guards that are sound at the end and were not at some look: share and update."""
    found: dict[str, tuple[float, int]] = {}
    for guard in guards_of(summary):
        shares = [
            (look["guards"][guard.name], look["step"])
            for look in summary.get("looks", [])
            if guard.name in look.get("guards", {})
        ]
        worst = max(shares, default=None)
        if worst and not guard.is_alarm and worst[0] > guard.band:
            found[guard.name] = worst
    return found


def guard_table(summary: dict[str, Any]) -> pl.DataFrame:
    """Return one row per guard: what it is, what was counted, its band, whether it is an alarm."""
    rows = [
        {
            "guard": guard.label,
            "what it is": MEANINGS.get(guard.name, "not described by this version"),
            "counted": guard.value,
            "band": guard.bound,
            "alarm": "ALARM" if guard.is_alarm else "no",
        }
        for guard in guards_of(summary)
    ]
    return pl.DataFrame(rows)
