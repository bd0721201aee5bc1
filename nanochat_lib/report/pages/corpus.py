"""The page of a large corpus: funnel, compile rates by source and kind, licences, rejected rows.

Input: the folder of a finished corpus. Output: `report.html` in it, a page that runs no script and
asks for nothing. Every rate stands with its counts and its 95 % interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.report.pages.html import asset, content_policy, render
from nanochat_lib.report.plots.bars import wilson_interval
from nanochat_lib.runs import write_atomic

_REJECTED_SHOWN = 40


def write_corpus_page(folder: Path) -> Path:
    """Write the page of a corpus and return its path."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    n_rejected = summary["rows"]["rejected"]
    page = render(
        "corpus.html.j2",
        name=folder.absolute().name,
        reading=_reading(summary),
        tables=_tables(summary),
        rejected=_some_rejected(folder, n_rejected),
        n_rejected=f"{n_rejected:,}",
        style=asset("style.css"),
        policy=content_policy(),
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def _reading(summary: dict[str, Any]) -> str:
    rows, after = summary["rows"], summary["compile_rate"]["after"]
    return (
        f"{summary['n_bytes'] / 1e6:,.1f} MB of Rust (under permitted licences "
        f"{summary['n_permitted_bytes'] / 1e6:,.1f} MB) in {summary['n_files']:,} files of "
        f"{len(summary['units']):,} packages gave {rows['verified']:,} verified rows and "
        f"{rows['tasks']:,} tasks with tests (rustc {summary['rustc']}). Of the finished set, "
        f"{after['n_compiled']} of {after['n_judged']} sampled rows compiled once more."
    )


def _tables(summary: dict[str, Any]) -> list[tuple[str, str, pl.DataFrame]]:
    """Return title, a one-line reading and the numbers of each table."""
    return [
        (
            "Funnel", "What is left after each step; what goes before judging costs no compiler.",
            pl.DataFrame(summary["funnel"]),
        ),
        (
            "Compile rate before verification",
            "Of the rows that were judged; found counts also what was dropped before.",
            pl.DataFrame([_rate(row) for row in summary["compile_rate"]["by_source"]]),
        ),
        (
            "Tasks with hidden tests",
            "Kept when their own body passes, and neither a panic nor a default value does.",
            pl.DataFrame([_tasks(row) for row in summary.get("tasks", [])]),
        ),
        (
            "First error of rejected rows", "By rustc's code.",
            pl.DataFrame(summary["error_codes"][:20]),
        ),
        ("Licences of verified rows", "SPDX expressions.", pl.DataFrame(summary["licences"])),
        ("Files dropped for their licence", "", _named(summary["dropped_licences"])),
        ("Files passed over", "", _named(summary["skipped_files"])),
        (
            "What could not be had", "The rest went on without it.",
            pl.DataFrame({"what": summary["problems"]}),
        ),
    ]  # fmt: skip


def _rate(row: dict[str, Any]) -> dict[str, Any]:
    low, high = wilson_interval(row["n_compiled"], row["n_judged"])
    rate = row["n_compiled"] / max(row["n_judged"], 1)
    return {
        "source": row["source"],
        "kind": row["kind"],
        "found": row["n_found"],
        "judged": row["n_judged"],
        "compiled": row["n_compiled"],
        "rate": f"{rate:.1%}",
        "95 %": f"{low:.1%} to {high:.1%}",
        "passed": row["n_passed"],
    }


def _tasks(row: dict[str, Any]) -> dict[str, Any]:
    dropped = row["dropped"]
    return {
        "kind": row["kind"].replace("_", " "),
        "found": row["n_found"],
        "judged": row["n_judged"],
        "passed": row["n_passed"],
        **dropped,
        "kept": row["n_kept"],
        "to train on": row["n_train"],
        "packages held out": row["n_held_package"],
    }


def _named(counts: dict[str, int]) -> pl.DataFrame:
    return pl.DataFrame({"what": list(counts), "files": list(counts.values())})


def _some_rejected(folder: Path, n_rejected: int) -> list[dict[str, Any]]:
    """Return rows at equal distances in the table of rejected ones."""
    table = pl.scan_parquet(folder / "rejected.parquet").gather_every(
        max(n_rejected // _REJECTED_SHOWN, 1)
    )
    columns = ("source_id", "verdict", "codes", "detail", "program")
    return table.select(columns).head(_REJECTED_SHOWN).collect().to_dicts()
