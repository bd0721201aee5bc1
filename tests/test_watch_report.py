"""Warnings and monitors in the report: said in words, drawn where recorded, always escaped."""

from __future__ import annotations

import json

import pytest
from run_factory import make_run

from nanochat_lib.config import ModelConfig, TargetsConfig
from nanochat_lib.report.content.watch import warning_facts, watch_blocks
from nanochat_lib.report.run_data import load_run
from nanochat_lib.train.watch.alerts import FILE, Alerts


@pytest.fixture
def run_dir(tmp_path):
    folder = make_run(tmp_path)
    stage = folder / "artifacts" / "pretrain"
    alerts = Alerts(stage, ModelConfig(), TargetsConfig())
    alerts.look(140, {"exit_entropy_nats": 0.001, "token_entropy_nats": 2.5})
    alerts.look(280, {"exit_entropy_nats": 0.002})
    return folder


def test_warnings_name_value_band_and_advice(run_dir):
    (warning, text), (note, brief) = warning_facts(load_run(run_dir))
    assert warning == "Warning: exit_entropy / ln R"
    assert "0.00289 at steps 140 to 280; healthy: at least 0.1." in text
    assert "docs/troubleshooting.md#the-exit-gate-collapsed" in text
    assert note == "Note: token_entropy_nats"
    assert "the brief's band: 6 to 8" in brief


def test_a_run_without_warnings_has_none(run_dir):
    (run_dir / "artifacts/pretrain" / FILE).unlink()
    assert warning_facts(load_run(run_dir)) == []


def test_only_what_was_recorded_is_drawn(run_dir):
    before = {block.anchor for block in watch_blocks(load_run(run_dir))}
    rows = [{"stage": "pretrain", "step": s, "wall_s": 1.0,
             "values": {"pass_at_1": s / 20, "compile_rate": 0.5, "distinct_2": 0.7}}
            for s in (0, 10, 20)]  # fmt: skip
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    blocks = {block.anchor: block for block in watch_blocks(load_run(run_dir))}
    assert set(blocks) - before == {"task-evaluation", "free-text"}
    assert {trace.name for trace in blocks["task-evaluation"].figure.data} == {
        "compile rate", "pass@1",
    }  # fmt: skip
    assert not blocks["free-text"].missing
