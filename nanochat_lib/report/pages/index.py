"""The list of all runs: `reports/index.html`, one row per run folder, the newest first.

Input: `reports/` with its `runs/`. Output: a small page without plots, with links to each report
and executed notebook. A damaged run folder is a row that says so; it never hides the others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.notes import Notes
from nanochat_lib.report.content.summary import key_numbers
from nanochat_lib.report.pages.html import asset, content_policy, render
from nanochat_lib.report.pages.run import notebook_links, when
from nanochat_lib.report.run_data import load_run
from nanochat_lib.runs import write_atomic


def write_index(reports_dir: Path) -> Path:
    """Write the page that lists every run below `reports_dir/runs` and return its path."""
    folders = [path.parent for path in (reports_dir / "runs").glob("*/run.json")]
    rows = sorted((_row(folder) for folder in folders), key=lambda r: r["created"], reverse=True)
    labels = list(dict.fromkeys(label for row in rows for label in row["numbers"]))
    script = asset("index.js")
    page = render(
        "index.html.j2",
        runs=rows,
        pages=_pages(reports_dir),
        labels=labels,
        written=when(datetime.now(UTC).isoformat()),
        style=asset("style.css"),
        script=script,
        policy=content_policy(script),
    )
    reports_dir.mkdir(parents=True, exist_ok=True)
    path = reports_dir / "index.html"
    write_atomic(path, page)
    return path


def _pages(reports_dir: Path) -> list[tuple[str, str]]:
    """Return (name, relative link) of the comparisons and sweeps."""
    found = [(path.stem, path) for path in sorted(reports_dir.glob("compare/*.html"))]
    found += [
        (f"{path.parent.name} (sweep)", path)
        for path in sorted(reports_dir.glob("sweeps/*/compare.html"))
    ]
    return [(name, path.relative_to(reports_dir).as_posix()) for name, path in found]


def _row(folder: Path) -> dict[str, Any]:
    href = f"runs/{folder.name}/"
    row = {"run_id": folder.name, "report": "", "status": "damaged", "profile": "", "created": "",
           "created_text": "", "seconds": 0.0, "seconds_text": "", "numbers": {}, "machine": "",
           "notebooks": [], "notes": Notes(), "error": ""}  # fmt: skip
    try:
        run = load_run(folder)
    except WorkbenchError as error:
        return row | {"error": str(error)}
    stages = run.state.get("stages", {}).values()
    seconds = sum(stage.get("seconds", 0.0) for stage in stages)
    return row | {
        "run_id": run.run_id,
        "report": f"{href}report.html" if (folder / "report.html").exists() else "",
        "status": run.status,
        "profile": run.state.get("profile", ""),
        "created": run.state.get("created", ""),
        "created_text": when(run.state.get("created", "")),
        "seconds": seconds,
        "seconds_text": f"{seconds / 60:,.1f} min" if seconds else "",
        "numbers": {key.label: key for key in key_numbers(run)},
        "machine": run.machine,
        "notebooks": notebook_links(folder, href),
        "notes": run.notes,
        "error": "; ".join(stage["error"] for stage in stages if stage.get("error")),
    }
