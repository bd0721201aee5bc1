"""Programs shown in a report: free samples, before and after MaxRL, one per verdict.

Input: a `RunData`. Output: groups of listings. Whatever a model wrote is text here and is escaped
by the page; nothing in this module makes HTML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from nanochat_lib.records import Verdict
from nanochat_lib.report.run_data import RunData

MAX_LISTINGS = 6


@dataclass(frozen=True)
class Listing:
    """A piece of generated or collected Rust; always shown as text."""

    title: str
    code: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Listings that are read side by side."""

    title: str
    listings: list[Listing]


def sample_groups(run: RunData, stage: str, title: str) -> list[Group]:
    """Show what a stage wrote by itself."""
    listings = [
        Listing(row["note"] or f"sample {i}", row["prompt"] + row["completion"])
        for i, row in enumerate(run.samples(stage)[:MAX_LISTINGS], start=1)
    ]
    return [Group(title, listings)] if listings else []


def before_after(run: RunData) -> list[Group]:
    """Pair programs of one task from before and after MaxRL, as the stage chose them."""
    return [
        Group(
            f"Before and after MaxRL: {row.get('task_id', '')}",
            [
                Listing(
                    f"{moment}: {row.get(f'verdict_{moment}', '')}",
                    str(row.get("prompt", "")) + str(row.get(moment, "")),
                    str(row.get(f"why_{moment}", "")),
                )
                for moment in ("before", "after")
            ],
        )
        for row in run.summary("maxrl").get("examples", [])[:MAX_LISTINGS]
    ]


def episode_groups(run: RunData) -> list[Group]:
    """Show one program per verdict and task set, of the last checkpoint."""
    if run.episodes.is_empty():
        return []
    episodes = run.episodes.filter(pl.col("checkpoint") != "canonical")
    groups = []
    for task_set in episodes["task_set"].unique(maintain_order=True):
        part = episodes.filter(pl.col("task_set") == task_set)
        part = part.filter(pl.col("checkpoint") == part["checkpoint"][-1])
        order = (pl.col("verdict") != Verdict.PASSED).cast(pl.Int8)
        picks = part.sort(order, maintain_order=True).unique("verdict", maintain_order=True)
        listings = [
            Listing(
                f"{row['verdict']}: {row['task_id']}",
                f"{row.get('prompt') or ''}{row['completion']}",
                _note(row),
            )
            for row in picks.head(3).iter_rows(named=True)
        ]
        title = f"Programs on {task_set}, checkpoint {part['checkpoint'][-1]}"
        groups.append(Group(title, listings))
    return groups


def _note(row: dict[str, Any]) -> str:
    codes = ", ".join(row.get("codes") or [])
    return " · ".join(text for text in (codes, str(row.get("detail") or "")) if text)
