"""The list of runs: one row per run folder, with its status and notes, the newest first.

A damaged folder is a row that says so; it never hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.notes import read_notes
from nanochat_lib.runs import read_run_json, status_of

DAMAGED = "damaged"
SCHEMA = {
    "run_id": pl.String,
    "status": pl.String,
    "profile": pl.String,
    "created": pl.String,
    "stages": pl.String,
    "seconds": pl.Float64,
    "commit": pl.String,
    "tags": pl.List(pl.String),
    "hypothesis": pl.String,
    "conclusion": pl.String,
    "problem": pl.String,  # why a stage failed, or what is damaged
}


def list_runs(runs_dir: Path) -> pl.DataFrame:
    """Return the registry of a folder of run folders; empty when there is none."""
    rows = [_row(path.parent) for path in runs_dir.glob("*/run.json")]
    return pl.DataFrame(rows, schema=SCHEMA).sort("created", "run_id", descending=True)


def select_runs(
    rows: pl.DataFrame,
    *,
    words: Sequence[str] = (),
    status: str = "",
    profile: str = "",
    tags: Sequence[str] = (),
) -> pl.DataFrame:
    """Return the rows that hold every word somewhere, in any letter case, and match the rest."""
    chosen = pl.lit(True)
    for word in words:
        texts = pl.concat_str(
            *(name for name, kind in SCHEMA.items() if kind == pl.String),
            pl.col("tags").list.join(" "),
            separator=" ",
        )
        chosen &= texts.str.to_lowercase().str.contains(word.lower(), literal=True)
    if status:
        chosen &= pl.col("status") == status
    if profile:
        chosen &= pl.col("profile") == profile
    for tag in tags:
        chosen &= pl.col("tags").list.contains(tag)
    return rows.filter(chosen)


def named_or_newest(names: str, runs_dir: Path, n: int = 3) -> list[str]:
    """Return the run ids in a text separated by commas, or those of the newest `n` runs."""
    named = [name.strip() for name in names.split(",") if name.strip()]
    return named or list_runs(runs_dir).filter(pl.col("status") != DAMAGED)["run_id"].to_list()[:n]


def _row(folder: Path) -> dict[str, Any]:
    row = {"run_id": folder.name, "status": DAMAGED, "profile": "", "created": "", "stages": "",
           "seconds": 0.0, "commit": "", "tags": [], "hypothesis": "", "conclusion": "",
           "problem": ""}  # fmt: skip
    try:
        state, notes = read_run_json(folder), read_notes(folder)
    except WorkbenchError as error:
        return row | {"problem": str(error)}
    stages = state.get("stages", {})
    done = [name for name, stage in stages.items() if stage["status"] == "completed"]
    return {
        "run_id": folder.name,
        "problem": "; ".join(stage["error"] for stage in stages.values() if stage.get("error")),
        "status": status_of(state),
        "profile": state.get("profile", ""),
        "created": state.get("created", ""),
        "stages": ", ".join(done),
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages.values()),
        "commit": state.get("git", {}).get("commit", "")[:9],
        "tags": list(notes.tags),
        "hypothesis": notes.hypothesis,
        "conclusion": notes.conclusion,
    }
