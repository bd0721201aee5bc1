"""The page of several runs: what was asked of each, what differed, what came out, curves.

Input: run folders, finished or not. Output: one HTML page that opens offline. The frames it shows
are also what the notebook `09_compare.ipynb` looks at.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.report.compare.differences import (
    column_names,
    environment_differences,
    parameter_differences,
)
from nanochat_lib.report.compare.numbers import BEST, LEVEL, Number, NumberRow, number_rows
from nanochat_lib.report.compare.overlays import overlay_blocks
from nanochat_lib.report.content.blocks import Section
from nanochat_lib.report.pages.drawing import drawing_parts, write_shared_plotly
from nanochat_lib.report.pages.html import render
from nanochat_lib.report.pages.run import when
from nanochat_lib.report.run_data import RunData, load_run
from nanochat_lib.runs import write_atomic

MARKS = {BEST: "★ best", LEVEL: "≈ level", "": ""}


def load_runs(run_ids: Sequence[str], runs_dir: Path) -> list[RunData]:
    """Read the runs named, in their order.

    Raises:
        WorkbenchError: fewer than two different runs, or one that does not exist or is damaged.
    """
    wanted = list(dict.fromkeys(run_ids))
    if len(wanted) < 2:
        raise WorkbenchError(
            f"A comparison needs at least two different runs, found {', '.join(wanted) or 'none'}. "
            "`nanochat runs` lists them."
        )
    return [load_run(runs_dir / run_id) for run_id in wanted]


def write_comparison(
    runs: Sequence[RunData],
    path: Path,
    *,
    title: str = "",
    sections: Sequence[Section] = (),
    self_contained: bool = True,
) -> Path:
    """Write the page of several runs and return its path.

    Args:
        runs: from `load_runs`.
        path: the page.
        title: its heading; empty: the names of the runs.
        sections: shown before the curves, e.g. what a sweep found.
        self_contained: embed the plotting script; otherwise link the copy in `assets/` of the
            runs' reports folder.
    """
    shared = runs[0].dir.parent.parent / "assets"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "" if self_contained else _href(shared / "plotly.min.js", path)
    write_atomic(path, render_comparison(runs, path, source, title=title, sections=sections))
    if not self_contained:
        write_shared_plotly(shared)
    return path


def render_comparison(
    runs: Sequence[RunData],
    path: Path,
    plotly_src: str,
    *,
    title: str = "",
    sections: Sequence[Section] = (),
) -> str:
    """Return the page of several runs as HTML text, with links relative to its path."""
    curves = Section(
        "curves",
        "Curves",
        "One metric of all runs on one axis; a run keeps its place in the legend, its colour and "
        "dash differ from its neighbours'.",
        "",
        overlay_blocks(runs),
    )
    rows = number_rows(runs)
    parameters, environment = parameter_differences(runs), environment_differences(runs)
    return render(
        "compare.html.j2",
        page=drawing_parts(plotly_src),
        title=title or " · ".join(column_names(runs)),
        index=_href(runs[0].dir.parent.parent / "index.html", path),
        names=column_names(runs),
        runs=[_shown_run(run, path) for run in runs],
        reading=_reading(runs, rows, parameters, environment),
        rows=rows,
        marks=MARKS,
        level=LEVEL,
        differences=[
            ("parameters", "Parameters that differ", readable(parameters)),
            ("environment", "Environment that differs", readable(environment)),
        ],
        contents=[
            ("summary", "Summary", []),
            *((one.anchor, one.title, one.blocks) for one in sections),
            ("runs", "Runs", []),
            ("numbers", "What came out", []),
            ("parameters", "Parameters", []),
            ("environment", "Environment", []),
            (curves.anchor, curves.title, curves.blocks),
        ],
        first=list(sections),
        sections=[curves],
    )


def numbers_frame(runs: Sequence[RunData]) -> pl.DataFrame:
    """Return the numbers of runs as text, best ones marked, for a notebook."""
    names = column_names(runs)
    rows = [
        {"number": row.label}
        | {name: _cell_text(cell, mark) for name, cell, mark in zip(names, row.cells, row.marks,
                                                                    strict=True)}
        for row in number_rows(runs)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=dict.fromkeys(("number", *names), pl.String))


def comparison_json(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return everything the page tells, for scripts."""
    names = column_names(runs)
    return {
        "runs": [{"run_id": run.run_id, "status": run.status, **asdict(run.notes)} for run in runs],
        "numbers": [
            {
                "number": row.label,
                "better": {1: "more", -1: "less", 0: ""}[row.sense],
                "runs": {
                    name: asdict(cell) | {"mark": mark}
                    for name, cell, mark in zip(names, row.cells, row.marks, strict=True)
                    if cell
                },
            }
            for row in number_rows(runs)
        ],
        "parameters": parameter_differences(runs).to_dicts(),
        "environment": environment_differences(runs).to_dicts(),
    }


def readable(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table of differences with runs as rows when there are more runs than settings."""
    if frame.width - 1 <= frame.height or frame.is_empty():
        return frame
    first = frame.columns[0]
    return frame.drop(first).transpose(
        include_header=True, header_name="run", column_names=frame[first]
    )


def _reading(
    runs: Sequence[RunData],
    rows: Sequence[NumberRow],
    parameters: pl.DataFrame,
    environment: pl.DataFrame,
) -> str:
    """Say in two sentences what was compared and who was best in what."""
    names = column_names(runs)
    wins = Counter(
        n for row in rows for n, mark in zip(names, row.marks, strict=True) if mark == BEST
    )
    told = "; ".join(f"“{name}” in {n}" for name, n in wins.most_common(3))
    judged = sum(any(row.marks) for row in rows)
    text = f"{len(runs)} runs that differ in {parameters.height} parameters and "
    text += f"{environment.height} facts of their environment. "
    if not judged:
        return text + "No number tells them apart."
    return text + f"Best of {judged} numbers where more or less is better: {told}."


def _cell_text(cell: Number | None, mark: str) -> str:
    if cell is None:
        return "-"
    span = f" [{cell.span[0]:.1%}, {cell.span[1]:.1%}]" if cell.span else ""
    return f"{cell.text}{span} {MARKS[mark]}".strip()


def _shown_run(run: RunData, path: Path) -> dict[str, Any]:
    report = run.dir / "report.html"
    return {
        "run_id": run.run_id,
        "label": run.label,
        "href": _href(report, path) if report.exists() else "",
        "status": run.status,
        "profile": run.state.get("profile", ""),
        "created": when(run.state.get("created", "")),
        "machine": run.machine,
        "notes": run.notes,
        "error": "; ".join(s["error"] for s in run.state.get("stages", {}).values()
                           if s.get("error")),
    }  # fmt: skip


def _href(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target.resolve(), page.parent.resolve())).as_posix()
