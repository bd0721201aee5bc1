"""Context extension: what changes, what does not, and what is measured by position."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from test_pretrain import PLAN, TINY, Recorder, ToyData, same_weights

from nanochat_lib.config import HardwareConfig, LongContextConfig, RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.attention import rope_table
from nanochat_lib.model.checkpoint import load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train.long_context import _short_context_loss, extend_context
from nanochat_lib.train.watch.held_out import loss_by_position

CONFIG = RunConfig(
    model=TINY,
    pretrain=PLAN,
    long_context=LongContextConfig(
        seq_len=64, rope_base=80_000.0, total_steps=4, batch_size=4, learning_rate=0.01
    ),
    hardware=HardwareConfig(cpu_threads=1),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "final"
    return save_checkpoint(
        folder, LoopLM(TINY, seed=3), step=1, tokens_seen=0, stage="pretrain", tokenizer_json=None
    )


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory):
    folder, recorder = tmp_path_factory.mktemp("long"), Recorder()
    summary = extend_context(CONFIG, base, ToyData(), folder, log=recorder)
    return folder, recorder, summary


def test_the_new_model_is_longer_and_turns_slower(extended):
    config = load_checkpoint(extended[0] / "final").config
    assert (config.max_seq_len, config.rope_base) == (64, 80_000.0)
    assert config.model_copy(update={"max_seq_len": 16, "rope_base": 10_000.0}) == TINY


def test_it_trains_on_the_long_sequences(extended):
    _, recorder, summary = extended
    assert summary["tokens_seen"] == 4 * 4 * 64
    losses = [value for _, value in recorder.series(Metric.LOSS)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    rates = [value for _, value in recorder.series(Metric.LEARNING_RATE)]
    assert max(rates) == 0.01
    assert rates[-1] < rates[1]


def test_loss_by_position_covers_the_new_length(extended):
    folder, _, summary = extended
    rows = summary["loss_by_position"]
    assert [row["position"] for row in rows] == [0, 8, 16, 24, 32, 40, 48, 56]
    assert all(row["after"] < row["before"] for row in rows)
    assert rows[0]["short_context"] == pytest.approx(rows[0]["after"], abs=1e-4)  # same context
    assert "short documents" in summary["note"]
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_short_context_loss_gives_each_position_only_recent_tokens():
    model = LoopLM(TINY.model_copy(update={"max_seq_len": 64}), seed=3)
    windows = ToyData().validation_windows("real", 64, 2)
    loss = _short_context_loss(model, windows, 16)
    assert not np.isnan(loss).any()
    last = loss_by_position(model, windows[:, 48:])  # positions 48 to 63 seen alone
    assert np.allclose(loss[56:], last[8:], atol=1e-5)


def test_stopping_and_continuing_equals_not_stopping(base, extended, tmp_path):
    stop = threading.Event()
    log = Recorder(2, stop.set)
    with pytest.raises(KeyboardInterrupt):
        extend_context(CONFIG, base, ToyData(), tmp_path, log=log, stop=stop)
    summary = extend_context(CONFIG, base, ToyData(), tmp_path, log=Recorder())
    a, b = (load_checkpoint(f / "final").model.state_dict() for f in (extended[0], tmp_path))
    assert same_weights(a, b)
    assert summary["loss_by_position"] == extended[2]["loss_by_position"]


def test_the_base_checkpoint_is_left_alone(base, extended):
    expected = LoopLM(TINY, seed=3).state_dict()
    assert same_weights(load_checkpoint(base).model.state_dict(), expected)


def test_a_length_that_is_not_longer_is_refused(base, tmp_path):
    stage = CONFIG.long_context.model_copy(update={"seq_len": 16})
    config = CONFIG.model_copy(update={"long_context": stage})
    with pytest.raises(WorkbenchError, match="does not exceed the 16 tokens"):
        extend_context(config, base, ToyData(), tmp_path, log=Recorder())


def test_raising_the_base_slows_every_pair_but_the_first():
    slow, fast = (rope_table(2, TINY.head_size, base)[1, 1, 0] for base in (80_000.0, 10_000.0))
    assert slow[0] == fast[0]
    assert torch.all(slow[1:] < fast[1:])
