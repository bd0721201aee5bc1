"""Where the time of stage 3 goes, and what bounds it.

Input: `seconds` of the stage's summary. Sampling, waiting for the judge and learning follow each
other, so they add up to the time of the updates; the judge works beside them, in threads of its
own, and costs an update only what is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_WAITING = 0.10  # of the time of updates; above it the judge is what bounds the stage
_PARTS = (
    ("sampling programs", "generate_s", "blue"),
    ("waiting for the judge", "wait_s", "orange"),
    ("learning", "update_s", "green"),
)


@dataclass(frozen=True)
class Part:
    """One part of the time of all updates."""

    label: str
    seconds: float
    share: float
    role: str


def time_parts(summary: dict[str, Any], prefix: str = "") -> list[Part]:
    """Return the parts that add up to the time of updates; none where waiting was not measured.

    Args:
        summary: of stage 3.
        prefix: "held_out_" for the looks at held-out tasks instead, which learn nothing.
    """
    seconds = summary.get("seconds", {})
    if f"{prefix}wait_s" not in seconds:
        return []
    found = [(label, seconds.get(prefix + key, 0.0), role) for label, key, role in _PARTS]
    found = [one for one in found if one[1]]
    counted = sum(value for _, value, _ in found)
    whole = max(seconds.get(f"{prefix}updates_s", counted), counted)
    if whole > 1.005 * counted:
        found.append(("everything else", whole - counted, "muted"))
    return [Part(label, value, value / whole, role) for label, value, role in found if whole]


def wait_share(summary: dict[str, Any]) -> float | None:
    """Return the share of the time of updates spent waiting for the judge."""
    parts = time_parts(summary)
    if not parts:
        return None
    return sum(part.share for part in parts if part.label == "waiting for the judge")


def read_bound(summary: dict[str, Any]) -> str:
    """Say in one sentence what bounds the stage."""
    parts = time_parts(summary)
    if not parts:
        return ""
    text = ", ".join(f"{part.share:.0%} {part.label}" for part in parts)
    whole = sum(part.seconds for part in parts)
    waited = wait_share(summary) or 0.0
    judged = summary["seconds"].get("verify_s", 0.0)
    top = max(parts, key=lambda part: part.seconds).label
    bound = "judging" if waited > MOST_WAITING else top
    allowed = "within" if waited <= MOST_WAITING else "more than"
    return (
        f"{bound[0].upper()}{bound[1:]} bounds this stage: of {whole:,.1f} s of updates, {text}; "
        f"the judge worked {judged:,.1f} s beside them. Waiting is {allowed} the "
        f"{MOST_WAITING:.0%} that it may take."
    )
