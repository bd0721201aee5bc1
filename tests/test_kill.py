"""kill -9 at twenty moments and resume: metrics and weights of the uninterrupted run, bit-equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch

from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.records import Metric
from nanochat_lib.runs import read_metrics
from nanochat_lib.train.safety.kept import training_checkpoints

TIMED = [
    str(name) for name in (Metric.TOKENS_PER_S, Metric.MODEL_TFLOPS, Metric.PEAK_SHARE,
                           Metric.PEAK_RSS_MIB)
]  # fmt: skip
WATCHED = ("value", "first_step", "last_step")


def metrics_of(folder):
    rows = read_metrics(folder).filter(~pl.col("name").is_in(TIMED))
    return rows.select("stage", "step", "name", "value")


def weights_of(folder):
    return load_checkpoint(folder / "artifacts/pretrain/final").model.state_dict()


def warnings_of(folder):
    rows = json.loads((folder / "artifacts/pretrain/warnings.json").read_text())
    timed = ("matmul_peak_share", "memory share")
    return {r["quantity"]: [r[k] for k in WATCHED] for r in rows if r["quantity"] not in timed}


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    seed = int(os.environ.get("NANOCHAT_KILL_SEED", "0"))
    driver = Path(__file__).with_name("kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(seed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"seed {seed}")
    print(done.stdout)
    assert len(trials) == 20
    whole = tmp_path / "whole"
    (spike,) = json.loads((whole / "artifacts/pretrain/spikes.json").read_text())
    assert spike["step"] == 27  # so that kills also fall around a rollback
    for trial in trials:
        folder = tmp_path / trial["place"]
        assert trial["status"] == 0, trial
        assert metrics_of(folder).equals(metrics_of(whole)), trial
        expected = weights_of(whole)
        found = weights_of(folder)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), trial
        assert warnings_of(folder) == warnings_of(whole), trial
        stage = folder / "artifacts/pretrain"
        assert len(training_checkpoints(stage / "checkpoints")) == 2, trial
        assert not [*stage.glob(".*"), *(stage / "checkpoints").glob(".*")], trial
    killed = Counter(trial["moment"][0] for trial in trials if trial["killed"])
    assert killed["writing"] == 7
    assert killed["gate"] == 3
    assert killed["time"] >= 7  # one that falls behind the end kills nothing
