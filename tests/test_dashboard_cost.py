"""What the dashboard costs real training, and how fast a stop is with the laptop's profile.

Slow, and only to be believed on a quiet machine; `pytest -m slow tests/test_dashboard_cost.py -s`
prints the numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat_lib.records import Metric
from nanochat_lib.report.widgets.dashboard import Dashboard
from nanochat_lib.runs import open_run
from nanochat_lib.train.pretrain import pretrain

pytestmark = pytest.mark.slow
ROUNDS, STEPS = 4, 40
SETTINGS = {"pretrain.total_steps": STEPS, "pretrain.gate_steps": 0, "pretrain.compile": "off",
            "pretrain.eval_every": 1000, "pretrain.checkpoint_every": 1000}  # fmt: skip


class MadeUp:
    """Random tokens in the laptop profile's shapes: only time matters here."""

    def rows(self, batch: int, recipe: Any, chosen: Any) -> np.ndarray:
        """Return random rows."""
        rng = np.random.default_rng(batch)
        return rng.integers(0, 2048, (recipe.batch_size, recipe.seq_len + 1))[list(chosen)]

    def validation_windows(self, kind: str, seq_len: int, max_windows: int) -> np.ndarray:
        """Return random windows."""
        return np.random.default_rng(1).integers(0, 2048, (max_windows, seq_len + 1))

    def largest_id(self) -> int:
        """Return the largest token there is."""
        return 2047

    def empty_shards(self) -> list[str]:
        """Return that there are none."""
        return []

    def bytes_per_token(self, kind: str) -> float:
        """Return a made-up number."""
        return 2.5


def _train(run: Any, config: Any, **hooks: Any) -> None:
    pretrain(config, MadeUp(), run.artifacts("kernels"), **hooks)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Dashboard]:
    """Return a dashboard whose one stage (one that needs no other) trains by the laptop profile."""
    found = Dashboard(
        {"profile": "laptop", "runs_dir": str(tmp_path / "runs"), "overrides": SETTINGS},
        {"kernels": _train},
    )
    yield found
    found.close()


def _median_speed(board: Dashboard, name: str) -> float:
    board.run_id.value = name
    board.start.click()
    while board.background.is_alive:
        time.sleep(0.05)
    assert "error" not in board.said.value, board.said.value
    metrics = open_run(name, board.runs_dir).metrics()
    speeds = metrics.filter(metrics["name"] == str(Metric.TOKENS_PER_S)).sort("step")["value"]
    return statistics.median(speeds.to_list()[5:])


def test_watching_costs_training_at_most_two_percent(board: Dashboard) -> None:
    """Interleaved: with the watcher drawing, and with it asleep."""
    watched, alone, look = [], [], board.refresh
    for i in range(ROUNDS):
        board.refresh = look
        watched.append(_median_speed(board, f"watched{i}"))
        board.refresh = lambda **_: board.situation()
        alone.append(_median_speed(board, f"alone{i}"))
    ratio = statistics.median(a / b for a, b in zip(watched, alone, strict=True))
    print(f"\ntokens/s watched {watched}, alone {alone}: ratio {ratio:.4f}")
    assert ratio > 0.98


def test_a_stop_is_done_within_a_second(board: Dashboard) -> None:
    board.given["pretrain.total_steps"] = 100_000
    took = []
    for i in range(5):
        board.run_id.value = f"stopped{i}"
        board.start.click()
        while board.tail.last("kernels", Metric.LOSS) is None:
            assert board.background.is_alive, board.said.value
            time.sleep(0.02)
        time.sleep(0.5 + 0.1 * i)
        began = time.monotonic()
        board.stop.click()
        while board.background.is_alive:
            time.sleep(0.005)
        took.append(time.monotonic() - began)
    print(f"\nseconds from click to stopped: {[round(s, 2) for s in took]}")
    assert statistics.median(took) < 1
