"""The benchmark of pages measures what it says; long runs are thinned before they are drawn."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report import bench
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.run_data import MAX_POINTS
from nanochat_lib.runs import read_metrics


def test_it_measures_both_pages(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr("shutil.which", lambda _: None)
    rows = {row["what"]: row for row in bench.measure(tmp_path / "reports", n_runs=3, n_rows=2000)}
    assert set(rows) == {name for name in bench.TARGETS if "opened" not in name}
    page = tmp_path / "reports" / "runs" / "big" / "report.html"
    assert rows["report of 1 M rows, size"]["value"] == page.stat().st_size / 1e6
    text = (tmp_path / "reports" / "index.html").read_text()
    assert text.count('class="id"') == 3


def _numbers(written: list | dict) -> list[float]:
    """Return the numbers of a figure, written out or packed."""
    if isinstance(written, list):
        return written
    return np.frombuffer(base64.b64decode(written["bdata"]), written["dtype"]).tolist()


def test_curves_of_a_long_run_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    run = bench.make_big_run(tmp_path / "reports", 200_000)
    text = write_run_report(run.dir, self_contained=False).read_text()
    spec = re.search(r'id="data-loss">(.*?)</script>', text, re.DOTALL)[1]
    traces = json.loads(spec)["data"]
    values = [_numbers(trace["y"]) for trace in traces]
    assert 1000 < max(map(len, values)) <= MAX_POINTS
    rows = read_metrics(run.dir).filter(pl.col("name") == Metric.LOSS)
    assert rows.height == 20_000
    drawn = next(v for trace, v in zip(traces, values, strict=True) if "total" in trace["name"])
    assert (min(drawn), max(drawn)) == (rows["value"].min(), rows["value"].max())
    assert "20,000 measurements" in text
    assert len(text) < 1_000_000
