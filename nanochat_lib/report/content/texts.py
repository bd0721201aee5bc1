"""What stage 1 made of its texts: which rewrites kept the meaning, how much a token holds.

Input: the rows `augmentation` and `vocabularies` of the stage's `summary.json`. Output: two
figures, which the notebook shows too, and their blocks of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from nanochat_lib.report.content.blocks import Block, frame_of, make_block
from nanochat_lib.report.content.readings import share
from nanochat_lib.report.plots.bars import Bar, Row, horizontal_bars, rate_bars, wilson_interval
from nanochat_lib.report.plots.figures import missing_figure


def accepted_rewrites(rows: Sequence[Row]) -> go.Figure:
    """Draw the share of variants that passed as their originals did, by rewrite."""
    title = "Rewritten programs that mean the same"
    judged = sorted((row for row in rows if row["n_judged"]), key=lambda row: -row["n_judged"])
    if not judged:
        return missing_figure(title, "no variant was judged (data.augment_per_example).")
    bars = [
        Bar(
            row["rewrite"].replace("_", " "),
            row["n_accepted"] / row["n_judged"],
            share(row["n_accepted"], row["n_judged"]),
            span=wilson_interval(row["n_accepted"], row["n_judged"]),
        )
        for row in judged
    ]
    return rate_bars(bars, title=title, unit="share accepted; whiskers: 95% interval")


def vocabularies(rows: Sequence[Row]) -> go.Figure:
    """Draw the bytes that a token holds on held-out text, by vocabulary."""
    title = "Bytes a token holds"
    measured = [row for row in rows if row["n_tokens"]]
    if not measured:
        return missing_figure(title, "there was no held-out text to encode.")
    bars = [
        Bar(
            f"{row['name']}, {row['vocab_size']:,} tokens",
            row["bytes_per_token"],
            f"{row['bytes_per_token']:.2f} ({row['n_bytes']:,} bytes)",
            "blue" if row["name"] == "ours" else "muted",
        )
        for row in sorted(measured, key=lambda row: row["vocab_size"])
    ]
    return horizontal_bars(bars, title=title, unit="UTF-8 bytes per token of held-out real Rust")


def text_blocks(summary: dict[str, Any], source: str) -> list[Block]:
    """Return the report's blocks on rewriting and on vocabularies."""
    rewrites, sizes = summary.get("augmentation", []), summary.get("vocabularies", [])
    parts = (
        ("augmentation", accepted_rewrites(rewrites), _read_rewrites(rewrites), rewrites),
        ("vocabularies", vocabularies(sizes), _read_vocabularies(sizes), sizes),
    )
    return [
        make_block(anchor, figure, reading=text, table=frame_of(rows), source=source)
        for anchor, figure, text, rows in parts
    ]


def _read_rewrites(rows: Sequence[Row]) -> str:
    n_accepted, n_judged = (sum(row[key] for row in rows) for key in ("n_accepted", "n_judged"))
    if not n_judged:
        return ""
    return (
        f"Of the variants judged, {share(n_accepted, n_judged)} build and pass as their originals "
        "do; the others are dropped."
    )


def _read_vocabularies(rows: Sequence[Row]) -> str:
    ours = next((row for row in rows if row["name"] == "ours" and row["n_tokens"]), None)
    if ours is None:
        return ""
    absent = " ".join(f"{row['name']}." for row in rows if not row["n_tokens"])
    best = max((row for row in rows if row["n_tokens"]), key=lambda row: row["bytes_per_token"])
    return (
        f"Our {ours['vocab_size']:,} tokens hold {ours['bytes_per_token']:.2f} bytes each, the "
        f"{best['vocab_size']:,} of the best one here {best['bytes_per_token']:.2f}. {absent}"
    ).strip()
