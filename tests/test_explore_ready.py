"""Explorers before anything was trained: a tiny run is made by the real stages, once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest

from nanochat_lib.config import PROJECT_ROOT
from nanochat_lib.report.widgets.explore.ready import TINY_RUN, find_model
from nanochat_lib.runs import read_run_json

EXPLORERS = sorted((PROJECT_ROOT / "notebooks").glob("explore_*.ipynb"))


@pytest.mark.slow
def test_every_explorer_runs_headless_without_any_run(tmp_path: Path) -> None:
    runs_dir = tmp_path / "reports" / "runs"
    books = tmp_path / "notebooks"
    books.mkdir()
    for path in EXPLORERS:
        papermill.execute_notebook(
            path, books / path.name, {"runs_dir": str(runs_dir), "run_id": "nobody"},
            prepare_only=True, progress_bar=False,
        )  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--nbval-current-env", "--nbval-cell-timeout=300", str(books)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=books)
    assert done.returncode == 0, done.stdout[-4000:]
    assert [path.parent.name for path in runs_dir.glob("*/run.json")] == [TINY_RUN]
    began = time.monotonic()
    found = find_model({"runs_dir": str(runs_dir), "run_id": "nobody"})
    assert time.monotonic() - began < 5  # made once
    assert "There is no run 'nobody' yet" in found.note
    assert "02_pretrain.ipynb" in found.note
    stages = read_run_json(runs_dir / TINY_RUN)["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "preprocess": "completed",
        "pretrain": "completed",
    }
