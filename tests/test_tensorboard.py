"""Event files hold what the run measured, as TensorBoard's own reader sees it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from run_factory import make_run
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.publish.tensorboard import write_tensorboard
from nanochat_lib.runs import read_metrics, read_run_json

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="tensorboard is in the extra of that name",
)


def read_back(folder: Path):
    """Return TensorBoard's view of a folder, with every event kept."""
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    return found.Reload()


def test_every_value_is_there_at_its_step_and_time(runs_dir: Path, tmp_path: Path) -> None:
    run_dir = make_run(runs_dir, "a", steps=40)
    n = write_tensorboard(run_dir, tmp_path / "tb")
    metrics, seen = read_metrics(run_dir), read_back(tmp_path / "tb")
    assert n == metrics.height
    tags = {f"{s}/{name}" for s, name in metrics.select("stage", "name").unique().iter_rows()}
    assert set(seen.Tags()["scalars"]) == tags
    rows = metrics.filter(pl.col("stage") == "pretrain", pl.col("name") == "loss").sort("step")
    events = seen.Scalars("pretrain/loss")
    assert [event.step for event in events] == rows["step"].to_list()
    assert [event.value for event in events] == pytest.approx(rows["value"].to_list(), rel=1e-6)
    began = read_run_json(run_dir)["stages"]["pretrain"]["started"]
    first = datetime.fromisoformat(began).timestamp() + rows["wall_s"][0]
    assert events[0].wall_time == pytest.approx(first)
    (text,) = seen.Tensors("configuration/text_summary") if (
        "configuration/text_summary" in seen.Tags()["tensors"]
    ) else seen.Tensors("configuration")  # fmt: skip
    assert b'"n_loops": 4' in text.tensor_proto.string_val[0]


def test_what_cannot_be_written_is_said(runs_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="measured nothing"):
        write_tensorboard(make_run(runs_dir, "empty", stages=()), tmp_path / "tb")
    run_dir = make_run(runs_dir, "a", stages=("maxrl",))
    write_tensorboard(run_dir, tmp_path / "tb")
    with pytest.raises(WorkbenchError, match="holds event files already"):
        write_tensorboard(run_dir, tmp_path / "tb")


def test_without_tensorboard_the_extra_is_named(runs_dir: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary.writer.event_file_writer",
                        None)  # fmt: skip
    with pytest.raises(WorkbenchError, match=r"pip install '\.\[tensorboard\]'"):
        write_tensorboard(make_run(runs_dir, "a"), runs_dir / "tb")


def test_the_command_tells_how_to_look(runs_dir: Path) -> None:
    make_run(runs_dir, "a", stages=("maxrl",))
    done = CliRunner().invoke(app, ["tensorboard", "a", "--runs-dir", str(runs_dir)])
    assert done.exit_code == 0
    assert f"tensorboard --logdir {runs_dir.parent / 'tensorboard'}" in done.output
