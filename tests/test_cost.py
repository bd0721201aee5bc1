"""The cost of watching is measured: slower monitors show in it, and shares follow from parts."""

from __future__ import annotations

import time

import pytest
from test_pretrain import configured

from nanochat_lib.train.watch.cost import MonitorCost, monitor_cost
from nanochat_lib.train.watch.looks import Watch


def test_shares_by_hand():
    cost = MonitorCost(step_s=0.1, every_step_s=0.001, look_s=0.2, validation_s=0.4, eval_every=100)
    assert cost.share == pytest.approx(0.03)
    assert cost.validation_share == pytest.approx(0.04)


def test_a_slower_look_is_seen(monkeypatch):
    config = configured(total_steps=60, eval_every=10)
    cost = monitor_cost(config, n_rounds=2, steps_per_round=2)
    assert cost.step_s > 0
    assert cost.validation_s > 0
    watched = Watch.watched
    monkeypatch.setattr(Watch, "watched", lambda *a: (time.sleep(0.3), watched(*a))[1])
    slow = monitor_cost(config, n_rounds=2, steps_per_round=2)
    assert slow.look_s > max(0.3, cost.look_s)
