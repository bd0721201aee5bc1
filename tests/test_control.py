"""Pause, stop and checkpoint of a stage, asked for from the same process and from another one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanochat_lib import control
from nanochat_lib.config import RunConfig
from nanochat_lib.runs import create_run


def _nothing() -> None:
    raise AssertionError("no checkpoint was asked for")


def test_nobody_asks_for_anything(tmp_path: Path) -> None:
    assert not control.must_stop(tmp_path, threading.Event(), _nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_obeyed_once(tmp_path: Path) -> None:
    control.ask(tmp_path, control.STOP)
    assert control.must_stop(tmp_path, threading.Event(), _nothing)
    assert not control.must_stop(tmp_path, threading.Event(), _nothing)


def test_an_event_stops_too_and_leaves_no_request_behind(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    control.ask(tmp_path, control.PAUSE)
    assert control.must_stop(tmp_path, stop, _nothing)
    assert not control.is_asked(tmp_path, control.PAUSE)


def test_a_checkpoint_is_written_once_and_work_goes_on(tmp_path: Path) -> None:
    written = []
    control.ask(tmp_path, control.CHECKPOINT)
    for _ in range(2):
        assert not control.must_stop(tmp_path, threading.Event(), lambda: written.append(1))
    assert written == [1]


def _paused_worker(folder: Path, written: list[int]) -> tuple[threading.Thread, list[bool]]:
    control.ask(folder, control.PAUSE)
    answers: list[bool] = []
    worker = threading.Thread(
        target=lambda: answers.append(
            control.must_stop(folder, threading.Event(), lambda: written.append(1))
        )
    )
    worker.start()
    while not control.is_asked(folder, control.PAUSED):
        time.sleep(0.01)
    return worker, answers


def test_a_pause_holds_until_it_is_taken_back(tmp_path: Path) -> None:
    worker, answers = _paused_worker(tmp_path, [])
    time.sleep(3 * control.LOOK_S)
    assert worker.is_alive()
    assert control.take_back(tmp_path, control.PAUSE)
    worker.join(2)
    assert answers == [False]
    assert not control.is_asked(tmp_path, control.PAUSED)


def test_a_paused_stage_still_writes_checkpoints_and_stops(tmp_path: Path) -> None:
    written: list[int] = []
    worker, answers = _paused_worker(tmp_path, written)
    control.ask(tmp_path, control.CHECKPOINT)
    time.sleep(3 * control.LOOK_S)
    assert written == [1]
    control.ask(tmp_path, control.STOP)
    worker.join(2)
    assert answers == [True]


def test_a_stage_that_begins_forgets_what_a_killed_one_was_asked(
    tiny_config: RunConfig, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "killed", runs_dir)
    for request in (control.STOP, control.PAUSE, control.PAUSED):
        control.ask(run.artifacts("pretrain"), request)
    run.begin_stage("pretrain", marker="m", parameters={})
    assert not control.must_stop(run.artifacts("pretrain"), threading.Event(), _nothing)


WORKER = """
import sys, threading, time
from pathlib import Path
from nanochat_lib.control import must_stop
steps = 0
while not must_stop(Path(sys.argv[1]), threading.Event(), lambda: None):
    steps += 1
    print(steps, flush=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("how", ["library", "touch"])
def test_another_process_stops_within_a_second(tmp_path: Path, how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "1\n"
    if how == "library":
        control.ask(tmp_path, control.STOP)
    else:
        (tmp_path / "control").mkdir()
        subprocess.run(["touch", str(tmp_path / "control" / "stop")], check=True)
    assert process.wait(timeout=1) == 0
