"""The parts a section is made of: a figure with its sentence, table and source.

`make_block` turns a figure without data into the reason that it carries, so that a page says "not
measured" instead of showing an empty plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.report.content.listings import Group
from nanochat_lib.report.run_data import RunData, series

MAX_TABLE_ROWS = 30
GOOD, WATCH, BAD, UNKNOWN = "good", "watch", "bad", "unknown"  # states of a health check
OUTCOMES_PAGE = "outcomes.html"  # beside report.html


@dataclass(frozen=True)
class Block:
    """One figure with what belongs to it; `missing` replaces a figure that has no data."""

    anchor: str
    title: str
    figure: go.Figure | None
    reading: str
    table: pl.DataFrame
    source: str
    missing: str = ""
    is_open: bool = False  # whether the table shows without a click


@dataclass(frozen=True)
class Check:
    """One health check, in words a newcomer can act on."""

    name: str
    quantity: str
    value: str
    band: str
    state: str
    advice: str


@dataclass(frozen=True)
class KeyNumber:
    """One number of the top row: what it is, its value, its count, where it is explained."""

    label: str
    number: float
    value: str  # the number as written
    count: str  # what it was counted on, in a word or two
    detail: str
    anchor: str


@dataclass(frozen=True)
class Section:
    """One stage of the report."""

    anchor: str
    title: str
    intro: str
    status: str
    blocks: list[Block] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)  # (text, file beside the page)


def make_block(
    anchor: str, figure: go.Figure, *, reading: str, table: pl.DataFrame, source: str
) -> Block:
    """Return a block; a figure that says `missing` is replaced by its reason."""
    missing = (figure.layout.meta or {}).get("missing", "")
    title = figure.layout.title.text
    if missing:
        return Block(anchor, title, None, "", pl.DataFrame(), "", missing)
    return Block(anchor, title, figure, reading, thin(table), source)


def thin(table: pl.DataFrame) -> pl.DataFrame:
    """Return at most `MAX_TABLE_ROWS` rows, evenly chosen, always with the last."""
    if table.height <= MAX_TABLE_ROWS:
        return table
    last = table.height - 1
    picks = [round(i * last / (MAX_TABLE_ROWS - 1)) for i in range(MAX_TABLE_ROWS)]
    return table[picks]


def _steps_table(metrics: pl.DataFrame, stage: str, names: Sequence[str]) -> pl.DataFrame:
    rows = pl.concat([series(metrics, stage, name) for name in names])
    if rows.is_empty():
        return pl.DataFrame()
    order = [name for name in names if name in rows["name"]]
    wide = rows.pivot("name", index="step", values="value", aggregate_function="last")
    return wide.select("step", *order).sort("step")


def curve_block(
    run: RunData,
    anchor: str,
    figure: go.Figure,
    names: Sequence[str],
    *,
    reading: str,
    stage: str = "pretrain",
) -> Block:
    """Return the block of curves over steps; the metrics named make its table."""
    names = [str(name) for name in names]
    table = _steps_table(run.metrics, stage, names)
    source = f"{table.height:,} steps measured; stage {stage}; {run.machine}"
    return make_block(anchor, figure, reading=reading, table=table, source=source)


def stage_status(run: RunData, stage: str) -> str:
    """Return how a stage ended, with its time or error."""
    state = run.stage(stage)
    if not state:
        return "not run"
    seconds = f", {state['seconds']:,.0f} s" if state.get("seconds") else ""
    error = f": {state['error']}" if state.get("error") else ""
    return f"{state.get('status', 'unknown')}{seconds}{error}"


def frame_of(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Return rows as a frame; columns of mixed types become text."""
    return (
        pl.DataFrame(list(rows), infer_schema_length=None, strict=False) if rows else pl.DataFrame()
    )
