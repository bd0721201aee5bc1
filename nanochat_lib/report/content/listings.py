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
    """Pair programs of one task from before and after MaxRL; first those that were mended."""
    episodes = run.episodes
    if episodes.is_empty():
        return []
    keys = ["task_set", "task_id", "sample_idx"]
    before = episodes.filter(pl.col("checkpoint") == "pretrain")
    after = episodes.filter(pl.col("checkpoint") == "maxrl")
    both = before.join(after, on=keys, suffix="_after")
    passed = pl.col("verdict") == Verdict.PASSED
    mended = (~passed & (pl.col("verdict_after") == Verdict.PASSED)).cast(pl.Int8)
    both = both.sort(mended, descending=True, maintain_order=True).unique(
        "task_id", keep="first", maintain_order=True
    )
    return [
        Group(
            f"Before and after MaxRL: {row['task_id']}",
            [
                Listing(f"before: {row['verdict']}", row["completion"], row["detail"]),
                Listing(f"after: {row['verdict_after']}", row["completion_after"],
                        row["detail_after"]),
            ],
        )
        for row in both.head(3).iter_rows(named=True)
    ]  # fmt: skip


def episode_groups(run: RunData) -> list[Group]:
    """Show one program per verdict and task set, of the last checkpoint."""
    if run.episodes.is_empty():
        return []
    episodes = run.episodes.filter(pl.col("checkpoint") != "canonical")
    groups = []
    for task_set in episodes["task_set"].unique(maintain_order=True):
        part = episodes.filter(pl.col("task_set") == task_set)
        part = part.filter(pl.col("checkpoint") == part["checkpoint"][-1])
        picks = part.unique("verdict", keep="first", maintain_order=True).head(3)
        listings = [
            Listing(f"{row['verdict']}: {row['task_id']}", row["completion"], _note(row))
            for row in picks.iter_rows(named=True)
        ]
        groups.append(Group(f"Programs on {task_set}", listings))
    return groups


def _note(row: dict[str, Any]) -> str:
    codes = ", ".join(row.get("codes") or [])
    return " · ".join(text for text in (codes, str(row.get("detail") or "")) if text)
