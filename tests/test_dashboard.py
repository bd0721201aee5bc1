"""The dashboard without a browser: it starts, pauses, stops and watches a run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PROFILE
from run_factory import make_run

from nanochat_lib import control
from nanochat_lib.report.widgets import status
from nanochat_lib.report.widgets.dashboard import Dashboard
from nanochat_lib.report.widgets.status import duration
from nanochat_lib.runs import open_run, read_run_json

STEPS = 100_000
# What a stage does as far as a dashboard can see: logs steps, and looks at its control files.
FOREIGN = """
import sys, threading, time
from pathlib import Path
from nanochat_lib.config import load_profile
from nanochat_lib.control import must_stop
from nanochat_lib.runs import create_run
run = create_run(load_profile(sys.argv[1]), "elsewhere", Path(sys.argv[2]))
run.begin_stage("pretrain", marker="m", parameters={})
log, step = run.logger("pretrain"), 0
while not must_stop(run.artifacts("pretrain"), threading.Event(), lambda: log(step, {"saved": 1})):
    step += 1
    log(step, {"loss": 1 / step})
    time.sleep(0.02)
run.end_stage("pretrain", "interrupted")
"""


def _wait(holds: Callable[[], Any], seconds: float = 10) -> float:
    """Wait until something holds, and return how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.01)
    return time.monotonic() - began


def _steps(run: Any, config: Any, *, log: Any, stop: threading.Event, progress: Any) -> None:
    """Do what a stage does, as far as a dashboard can see."""
    saved: list[int] = []
    for step in range(1, STEPS):
        if control.must_stop(run.artifacts("kernels"), stop, lambda s=step: saved.append(s)):
            log(step, {"saved": float(len(saved))})
            raise KeyboardInterrupt
        log(step, {"loss": 1 / step, "tokens_per_s": 100.0})
        progress(step, STEPS, "at it")
        time.sleep(0.01)


@pytest.fixture
def make(runs_dir: Path) -> Iterator[Callable[..., Dashboard]]:
    """Return a function that makes a dashboard over `runs_dir`; closes what it made."""
    made: list[Dashboard] = []

    def build(works: dict[str, Any], run_id: str = "mine") -> Dashboard:
        parameters = {"profile": str(TINY_PROFILE), "run_id": run_id, "runs_dir": str(runs_dir)}
        made.append(Dashboard(parameters, works))
        return made[-1]

    yield build
    for dashboard in made:
        dashboard.close()


def _figure(dashboard: Dashboard) -> dict[str, int]:
    return {
        trace.name: len(trace.x) for trace in dashboard.panels.figure.data if trace.x is not None
    }


def test_start_pause_go_on_checkpoint_and_stop(make, runs_dir: Path) -> None:
    board = make({"kernels": _steps})  # a stage that needs no other
    assert not board.start.disabled
    assert board.stop.disabled
    board.start.click()
    _wait(lambda: board.tail.last("kernels", "loss"))
    _wait(lambda: not board.stop.disabled)
    assert board.start.disabled
    assert "running" in board.head.value
    control.ask(board.stage_dir, control.PAUSE)
    _wait(lambda: control.is_asked(board.stage_dir, control.PAUSED))
    held = board.tail.last("kernels", "loss")
    time.sleep(0.4)
    assert board.tail.last("kernels", "loss") == pytest.approx(held, rel=0.1)
    _wait(lambda: "paused" in board.head.value)
    control.take_back(board.stage_dir, control.PAUSE)
    board.checkpoint.click()
    _wait(lambda: board.tail.last("kernels", "loss") < held / 2)
    board.stop.click()
    took = _wait(lambda: not board.background.is_alive)
    assert took < 1
    assert _wait(lambda: "interrupted" in board.head.value) < 1
    run = open_run("mine", runs_dir)
    assert run.stage_state("kernels")["status"] == "interrupted"
    metrics = run.metrics()
    assert metrics.filter(metrics["name"] == "saved")["value"].to_list() == [1.0]
    _wait(lambda: board.start.description == "Continue")


def test_a_run_in_another_process_is_watched_paused_and_stopped(make, runs_dir: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FOREIGN, str(TINY_PROFILE), str(runs_dir)])
    try:
        _wait(lambda: (runs_dir / "elsewhere" / "metrics.jsonl").exists(), 30)
        board = make({"pretrain": _steps}, "elsewhere")
        _wait(lambda: f"process {process.pid}" in board.head.value)
        assert board.start.disabled
        assert not board.is_ours
        board.pause.click()
        _wait(lambda: control.is_asked(board.stage_dir, control.PAUSED))
        _wait(lambda: board.pause.description == "Go on")
        n_before = len(board.tail.curve("pretrain", "loss").steps)
        time.sleep(0.3)
        assert len(board.tail.curve("pretrain", "loss").steps) - n_before <= 1
        board.checkpoint.click()
        _wait(lambda: board.tail.last("pretrain", "saved") == 1)
        board.pause.click()
        _wait(lambda: len(board.tail.curve("pretrain", "loss").steps) > n_before + 3)
        _wait(lambda: _figure(board).get("total", 0) > 3)
        began = time.monotonic()
        board.stop.click()
        assert process.wait(5) == 0
        assert time.monotonic() - began < 1.5  # the process's own end is part of it
        _wait(lambda: "interrupted" in board.head.value)
    finally:
        process.kill()


def test_a_killed_run_is_interrupted_not_running(make, runs_dir: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FOREIGN, str(TINY_PROFILE), str(runs_dir)])
    _wait(lambda: (runs_dir / "elsewhere" / "metrics.jsonl").exists(), 30)
    process.kill()
    process.wait()
    board = make({"pretrain": _steps}, "elsewhere")
    assert "interrupted" in board.head.value
    assert board.stop.disabled
    assert board.start.description == "Continue"


def test_a_finished_run_is_drawn_whole(make, runs_dir: Path) -> None:
    make_run(runs_dir, "finished", steps=300)
    board = make({"pretrain": _steps, "maxrl": _steps}, "finished")
    assert "completed" in board.head.value
    drawn = _figure(board)
    assert drawn["total"] == 300
    assert drawn["compiles"] == 12
    assert {f"loop {i}" for i in (1, 2, 3, 4)} <= drawn.keys()
    board.stage.value = "maxrl"
    _wait(lambda: "total" not in {n for n, k in _figure(board).items() if k})
    assert _figure(board)["compiles"] == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_fails_is_said_on_the_screen_and_in_the_folder(make, runs_dir: Path) -> None:
    def fails(run: Any, config: Any, **hooks: Any) -> None:
        raise ValueError("<b>no such thing</b>")

    board = make({"kernels": fails})
    board.start.click()
    _wait(lambda: "failed" in board.head.value)
    board.background._thread.join()
    assert "<b>" not in board.head.value + board.said.value
    assert "no such thing" in read_run_json(runs_dir / "mine")["stages"]["kernels"]["error"]


def test_a_stage_whose_needs_nobody_can_do_says_which_to_run(make) -> None:
    board = make({"pretrain": _steps})
    board.start.click()
    _wait(lambda: "01_preprocess.ipynb" in board.said.value)


def test_needed_stages_are_done_first(make, runs_dir: Path) -> None:
    done = []
    works = {
        name: lambda run, config, name=name, **hooks: done.append(name)
        for name in ("preprocess", "pretrain", "maxrl")
    }
    board = make(works)
    board.stage.value = "maxrl"
    board.start.click()
    _wait(lambda: len(done) == 3)
    assert done == ["preprocess", "pretrain", "maxrl"]


def test_a_wrong_setting_disables_start(make) -> None:
    board = make({"pretrain": _steps})
    board.settings.set("pretrain.total_steps", "-1")
    _wait(lambda: board.start.disabled)
    board.settings.set("pretrain.total_steps", "5")
    _wait(lambda: not board.start.disabled)


@pytest.mark.parametrize("name", ["../outside", "", "a/b"])
def test_a_run_id_that_is_no_folder_name_is_refused(make, runs_dir: Path, name: str) -> None:
    board = make({"pretrain": _steps})
    board.run_id.value = name
    assert "is not usable" in board.said.value
    assert board.run_dir == runs_dir / "mine"


def test_settings_reach_the_stage(make) -> None:
    seen = []
    board = make({"kernels": lambda run, config, **hooks: seen.append(config)})
    board.settings.set("hardware.prefetch_factor", "7")
    board.start.click()
    _wait(lambda: seen)
    assert seen[0].hardware.prefetch_factor == 7


def test_the_watcher_costs_little(make, runs_dir: Path) -> None:
    """While a run writes 50 steps a second; by CPU time, which other work does not change much."""
    board = make({"kernels": _steps})
    spent: list[float] = []
    real = board.refresh

    def timed(**settings: Any) -> Any:
        began = time.thread_time()
        found = real(**settings)
        spent.append(time.thread_time() - began)
        return found

    board.refresh = timed
    board.start.click()
    _wait(lambda: "running" in board.head.value)
    spent.clear()
    time.sleep(4)
    assert sum(spent) / 4 < 0.05


def test_durations_read_well() -> None:
    assert [duration(s) for s in (4.6, 130, 11_100)] == ["5 s", "2 min 10 s", "3 h 05 min"]


def test_the_head_escapes_what_the_folder_says(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "odd")
    state = json.loads((folder / "run.json").read_text())
    state["stages"]["pretrain"] |= {"status": "failed", "error": "<img src=x onerror=alert(1)>"}
    (folder / "run.json").write_text(json.dumps(state))
    board_head = status.head_html(
        status.look(folder, "pretrain", is_ours=False), _empty_tail(folder)
    )
    assert "<img" not in board_head


def _empty_tail(folder: Path) -> Any:
    from nanochat_lib.report.widgets.tail import MetricTail

    return MetricTail(folder)


def test_this_kernel_counts_as_running_only_with_a_thread_of_ours(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "left")
    state = json.loads((folder / "run.json").read_text())
    state["stages"]["pretrain"] |= {"status": "running", "pid": os.getpid()}
    (folder / "run.json").write_text(json.dumps(state))
    assert status.look(folder, "pretrain", is_ours=False).status == "interrupted"
    assert status.look(folder, "pretrain", is_ours=True).status == "running"
