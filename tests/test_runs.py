"""Run folders: ids, status, metrics that survive a kill, clear errors, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_lib import runs
from nanochat_lib.config import RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.registry import list_runs
from nanochat_lib.runs import create_run, open_run, read_metrics, status_of


def test_a_new_run_writes_configuration_and_environment_first(
    tiny_config: RunConfig, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "first", runs_dir)
    state = json.loads((run.dir / "run.json").read_text())
    assert RunConfig.model_validate(state["config"]) == tiny_config
    assert state["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert set(state) >= {"git", "versions", "rustc", "lock_hash", "created"}


def test_an_existing_run_id_is_refused(tiny_config: RunConfig, runs_dir: Path) -> None:
    create_run(tiny_config, "same", runs_dir)
    with pytest.raises(WorkbenchError, match=r"exists already.*--resume"):
        create_run(tiny_config, "same", runs_dir)


@pytest.mark.parametrize("run_id", ["", "../up", "a/b", ".hidden", "x" * 65, "sp ace"])
def test_unusable_run_ids_are_refused(run_id: str, tiny_config: RunConfig, runs_dir: Path) -> None:
    with pytest.raises(WorkbenchError, match="not usable"):
        create_run(tiny_config, run_id, runs_dir)
    assert not runs_dir.exists()


def test_an_unknown_run_names_the_known_ones(tiny_config: RunConfig, runs_dir: Path) -> None:
    create_run(tiny_config, "known", runs_dir)
    with pytest.raises(WorkbenchError, match="Runs there: known"):
        open_run("unknown", runs_dir)


def test_a_damaged_run_json_is_named(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "bad", runs_dir)
    (run.dir / "run.json").write_text("{")
    with pytest.raises(WorkbenchError, match="damaged"):
        open_run("bad", runs_dir)


def test_full_disk_is_said_before_work_starts(
    tiny_config: RunConfig, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tiny_config, "full", runs_dir)
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WorkbenchError, match="No space left: 5 MiB free"):
        run.begin_stage("pretrain", marker="m", parameters={})
    assert run.stage_state("pretrain") == {}


def test_failed_atomic_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    runs.write_atomic(path, "old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        runs.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_metrics_are_on_disk_after_sigkill(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "killed", runs_dir)
    program = (
        "import os, signal, sys; from pathlib import Path; from nanochat_lib.runs import open_run\n"
        "log = open_run('killed', Path(sys.argv[1])).logger('pretrain')\n"
        "[log(step, {'loss': 1.0 / (step + 1)}) for step in range(5)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(runs_dir)], check=False)
    assert run.metrics()["value"].to_list() == [1.0 / (s + 1) for s in range(5)]


def test_a_torn_line_is_skipped_and_relogged_steps_replace(
    tiny_config: RunConfig, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "torn", runs_dir)
    log = run.logger("pretrain")
    log(1, {"loss": 5.0})
    log(2, {"loss": 4.0})
    with (run.dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')
    log = run.logger("pretrain")
    log(2, {"loss": 3.5})
    log(3, {"loss": 3.0})
    run.compact_metrics()
    assert not (run.dir / "metrics.jsonl").exists()
    assert read_metrics(run.dir)["value"].to_list() == [5.0, 3.5, 3.0]


def test_status_follows_the_stages(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "status", runs_dir)
    assert status_of(run.state()) == "new"
    run.begin_stage("pretrain", marker="m", parameters={"a": 1})
    assert status_of(run.state()) == "running"
    run.end_stage("pretrain", "completed")
    assert status_of(run.state()) == "completed"
    assert list_runs(runs_dir)["status"].to_list() == ["completed"]


def test_a_stage_whose_process_died_counts_as_interrupted(
    tiny_config: RunConfig, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "died", runs_dir)
    run.begin_stage("pretrain", marker="m", parameters={})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    run._update("pretrain", pid=dead.pid)
    assert status_of(run.state()) == "interrupted"


def test_a_stage_that_runs_elsewhere_is_refused(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "busy", runs_dir)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.begin_stage("pretrain", marker="m", parameters={})
        run._update("pretrain", pid=other.pid)
        with pytest.raises(WorkbenchError, match=f"being run by process {other.pid}"):
            run.begin_stage("pretrain", marker="m", parameters={})
    finally:
        other.kill()
        other.wait()


def test_clearing_a_stage_leaves_the_others(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "clear", runs_dir)
    for stage in ("pretrain", "maxrl"):
        run.begin_stage(stage, marker="m", parameters={})
        (run.artifacts(stage) / "x").write_text("x")
        run.logger(stage)(0, {"loss": 1.0})
        run.end_stage(stage, "completed")
    run.clear_stage("pretrain")
    assert run.metrics()["stage"].to_list() == ["maxrl"]
    assert not (run.dir / "artifacts" / "pretrain").exists()
    assert run.stage_state("pretrain") == {}
    assert run.stage_state("maxrl")["status"] == "completed"


def test_progress_is_readable_by_another_process(tiny_config: RunConfig, runs_dir: Path) -> None:
    run = create_run(tiny_config, "progress", runs_dir)
    report = run.progress("pretrain")
    report(1, 10, "step")
    report(2, 10, "throttled")
    time.sleep(0.31)
    report(3, 10, "later")
    found = json.loads((run.dir / "progress.json").read_text())
    assert (found["done"], found["text"]) == (3, "later")
