"""How long pages take: the index of 200 runs, and the report of a run with a million metric rows.

`python -m nanochat_lib.report.bench [--json FILE]` makes run folders with made-up numbers in a
scratch folder, writes their pages, opens them in a headless Chromium where there is one, and prints
a line per quantity beside its target. Medians; measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl

from nanochat_lib.config import RunConfig
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.records import Metric
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.runs import METRIC_SCHEMA, Run, create_run, write_binary

N_RUNS, N_ROWS, ROUNDS = 200, 1_000_000, 5
NAMES = (
    Metric.LOSS, Metric.TASK_LOSS, Metric.GRAD_NORM, Metric.TOKENS_PER_S, Metric.LEARNING_RATE,
    Metric.TOKEN_ENTROPY, Metric.EXIT_ENTROPY, Metric.EXPECTED_LOOPS, Metric.BITS_PER_BYTE,
    Metric.VAL_LOSS,
)  # fmt: skip
# quantity -> (target, unit): the numbers
TARGETS = {
    "index of 200 runs, size": (5.0, "MB"),
    "index of 200 runs, opened": (2.0, "s"),
    "report of 1 M rows, written": (3.0, "s"),
    "report of 1 M rows, size": (1.0, "MB"),
    "report of 1 M rows, opened and drawn": (3.0, "s"),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch) / "reports")
    for row in rows:
        mark = "within" if row["value"] < row["target"] else "BEYOND"
        line = f"{row['what']:42} {row['value']:8.2f} {row['unit']:3} {mark} {row['target']:g}"
        sys.stdout.write(line + "\n")
    if arguments.json:
        found = {"created": datetime.now(UTC).isoformat(), "rows": rows}
        machine = detect_machine().as_dict()
        arguments.json.write_text(json.dumps(found | {"machine": machine}, indent=1))


def measure(reports_dir: Path, *, n_runs: int = N_RUNS, n_rows: int = N_ROWS) -> list[dict]:
    """Return the rows of the benchmark: what, value, unit, target, repeats."""
    big = make_big_run(reports_dir, n_rows)
    write = lambda: write_run_report(big.dir, self_contained=False)  # noqa: E731
    written = _seconds(write)
    for i in range(n_runs - 1):
        make_small_run(reports_dir, f"run-{i:03}")
    index, report = write_index(reports_dir), write()
    found = {
        "index of 200 runs, size": index.stat().st_size / 1e6,
        "report of 1 M rows, written": written,
        "report of 1 M rows, size": report.stat().st_size / 1e6,
    }
    with _opened() as open_page:
        if open_page:
            found["index of 200 runs, opened"] = _seconds(lambda: open_page(index))
            found["report of 1 M rows, opened and drawn"] = _seconds(lambda: open_page(report))
    return [
        {"what": name, "value": found[name], "unit": unit, "target": target, "n_repeats": ROUNDS}
        for name, (target, unit) in TARGETS.items()
        if name in found
    ]


def make_big_run(reports_dir: Path, n_rows: int) -> Run:
    """Make a run of one stage with this many metric rows."""
    return _make(reports_dir, "big", n_rows // len(NAMES))


def make_small_run(reports_dir: Path, run_id: str) -> Run:
    """Make a run with as many rows as a demo."""
    return _make(reports_dir, run_id, 100)


def _make(reports_dir: Path, run_id: str, n_steps: int) -> Run:
    run = create_run(RunConfig(), run_id, reports_dir / "runs")
    run.begin_stage("pretrain", marker="made up", parameters={})
    noise = np.random.default_rng(0)
    steps = np.arange(n_steps)
    curve = 3 + 5 * np.exp(-6 * steps / n_steps)
    frames = [
        pl.DataFrame({"run_id": run_id, "stage": "pretrain", "step": steps, "name": str(name),
                      "value": curve + noise.normal(0, 0.1, n_steps), "wall_s": steps * 0.1})
        for name in NAMES
    ]  # fmt: skip
    rows = pl.concat(frames).cast(METRIC_SCHEMA)
    write_binary(run.dir / "metrics.parquet", rows.write_parquet)
    run.end_stage("pretrain", "completed")
    return run


def _seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return median(took)


@contextmanager
def _opened() -> Iterator[Callable[[Path], None] | None]:
    """Yield a function that opens a page and waits until it is drawn; None without a browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])

        def open_page(path: Path) -> None:
            page = browser.new_page()
            page.goto(path.as_uri())
            if page.locator(".plot").count():
                page.wait_for_selector("html[data-drawn]", state="attached")
            page.close()

        yield open_page
        browser.close()


if __name__ == "__main__":
    main()
