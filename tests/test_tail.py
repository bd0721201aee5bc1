"""Following metrics: what the tail has must be what `read_metrics` reads at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from run_factory import make_run

from nanochat_lib.config import RunConfig
from nanochat_lib.report.widgets import tail as tail_module
from nanochat_lib.report.widgets.tail import Curve, MetricTail
from nanochat_lib.runs import Run, create_run, read_metrics


@pytest.fixture
def run(tiny_config: RunConfig, runs_dir: Path) -> Run:
    """Return an empty run whose stage pretrain has begun."""
    made = create_run(tiny_config, "followed", runs_dir)
    made.begin_stage("pretrain", marker="m", parameters={})
    return made


def _agrees(tail: MetricTail, folder: Path) -> bool:
    """Return whether the tail holds every row that the folder holds, and no other."""
    frame = read_metrics(folder)
    wanted = {key: part.sort("step") for key, part in frame.partition_by(
        "stage", "name", as_dict=True).items()}  # fmt: skip
    found = {key: curve for key, curve in tail.curves.items() if curve.steps}
    return wanted.keys() == found.keys() and all(
        part["step"].to_list() == list(found[key].steps)
        and part["value"].to_list() == list(found[key].values)
        for key, part in wanted.items()
    )


def test_lines_are_taken_as_they_come(run: Run) -> None:
    log, tail = run.logger("pretrain"), MetricTail(run.dir)
    assert not tail.read()
    for step in range(1, 30):
        log(step, {"loss": 3 / step})
        if step % 10 == 0:
            log(step, {"val_loss": 4 / step})
        assert tail.read()
        assert _agrees(tail, run.dir)
    assert not tail.read()


def test_a_half_written_line_waits_for_its_end(run: Run) -> None:
    run.logger("pretrain")(1, {"loss": 1.0})
    path, tail = run.dir / "metrics.jsonl", MetricTail(run.dir)
    tail.read()
    line = json.dumps({"stage": "pretrain", "step": 2, "wall_s": 9.0, "values": {"loss": 0.5}})
    with path.open("a") as file:
        file.write(line[:20])
        file.flush()
        assert not tail.read()
        file.write(line[20:] + "\n")
    assert tail.read()
    assert list(tail.curve("pretrain", "loss").values) == [1.0, 0.5]


def test_the_end_of_a_stage_moves_lines_into_the_table_and_loses_nothing(run: Run) -> None:
    log, tail = run.logger("pretrain"), MetricTail(run.dir)
    for step in range(1, 9):
        log(step, {"loss": float(step)})
    tail.read()
    run.end_stage("pretrain", "completed")
    assert tail.read()
    assert _agrees(tail, run.dir)
    run.clear_stage("pretrain")
    tail.read()
    assert tail.curve("pretrain", "loss").steps.tolist() == []


def test_a_resumed_stage_shows_what_it_computed_again(run: Run) -> None:
    log, tail = run.logger("pretrain"), MetricTail(run.dir)
    for step in range(1, 9):
        log(step, {"loss": 1.0, "val_loss": 1.0})
    tail.read()
    log(5, {"loss": 2.0})
    tail.read()
    assert tail.curve("pretrain", "loss").steps.tolist() == [1, 2, 3, 4, 5]
    assert tail.curve("pretrain", "val_loss").steps.tolist() == [1, 2, 3, 4]


def test_a_long_file_is_read_in_chunks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "CHUNK_BYTES", 300)
    log, tail = run.logger("pretrain"), MetricTail(run.dir)
    for step in range(1, 50):
        log(step, {"loss": float(step)})
    n_reads = 0
    while tail.read():
        n_reads += 1
    assert n_reads > 10
    assert _agrees(tail, run.dir)


def test_the_time_per_step_is_that_of_late(run: Run) -> None:
    path, tail = run.dir / "metrics.jsonl", MetricTail(run.dir)
    assert tail.seconds_per_step("pretrain") is None
    rows = [(step, 0.5 * step + (100 if step > 5 else 0)) for step in range(1, 12)]  # one pause
    with path.open("a") as file:
        for step, wall in rows:
            row = {"stage": "pretrain", "step": step, "wall_s": wall, "values": {"loss": 1.0}}
            file.write(json.dumps(row) + "\n")
    tail.read()
    assert tail.seconds_per_step("pretrain") == pytest.approx(0.5)


def test_points_are_few_finite_and_keep_the_extremes() -> None:
    curve = Curve()
    for step in range(10_000):
        curve.put(step, math.nan if step == 7 else math.sin(step / 500))
    curve.put(10_000, 99.0)
    steps, values = curve.points(400)
    assert len(steps) <= 400
    assert max(values) == 99.0
    assert all(math.isfinite(value) for value in values)
    assert list(steps) == sorted(steps)


def test_a_finished_run_is_read_from_its_table(runs_dir: Path) -> None:
    folder = make_run(runs_dir)
    tail = MetricTail(folder)
    assert tail.read()
    frame = read_metrics(folder).filter(pl.col("stage") == "maxrl")
    assert (
        tail.last("maxrl", "pass_rate") == frame.filter(pl.col("name") == "pass_rate")["value"][-1]
    )
    assert _agrees(tail, folder)
