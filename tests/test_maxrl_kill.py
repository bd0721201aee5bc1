"""kill -9 in stage 3 and resume: metrics, summary and weights of the uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.records import Metric
from nanochat_lib.runs import read_metrics

TIMED = [
    str(name) for name in (Metric.GENERATE_S, Metric.VERIFY_S, Metric.WAIT_S, Metric.UPDATE_S,
                           Metric.COMPLETION_TOKENS_S, Metric.PROGRAMS_S)
]  # fmt: skip


def metrics_of(folder):
    rows = read_metrics(folder).filter(~pl.col("name").is_in(TIMED))
    return rows.select("step", "name", "value").sort("step", "name")


def summary_of(folder):
    found = json.loads((folder / "artifacts/maxrl/summary.json").read_text())
    found["warm_start"].pop("seconds")
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.mark.slow
def test_twelve_kills_change_nothing(tmp_path):
    seed = int(os.environ.get("NANOCHAT_KILL_SEED", "0"))
    driver = Path(__file__).with_name("maxrl_kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(seed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    assert len(trials) == 12
    assert sum(trial["killed"] for trial in trials) >= 8
    whole = tmp_path / "whole"
    weights = load_checkpoint(whole / "artifacts/maxrl/final").model.state_dict()
    for trial in trials:
        folder = tmp_path / trial["place"]
        assert trial["status"] == 0, trial
        assert metrics_of(folder).equals(metrics_of(whole)), trial
        assert summary_of(folder) == summary_of(whole), trial
        found = load_checkpoint(folder / "artifacts/maxrl/final").model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items()), trial
