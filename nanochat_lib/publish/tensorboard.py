"""A run's metrics as TensorBoard event files, for people who look at their runs there.

Input: a run folder. Output: a folder that `tensorboard --logdir` shows: a scalar per metric, named
`stage/metric`, at the step and the time when it was measured, and the settings as text. Needs the
extra `tensorboard`; nothing of the project reads these files.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import read_metrics, read_run_json


def write_tensorboard(run_dir: Path, folder: Path) -> int:
    """Write a run's metrics into an empty or new folder and return how many values there are.

    Raises:
        WorkbenchError: TensorBoard is not installed, no such run, nothing measured yet, or a
            folder that holds event files already (two copies would be drawn over each other).
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise WorkbenchError(
            "TensorBoard is not installed. Install the extra: pip install '.[tensorboard]'."
        ) from None
    state, metrics = read_run_json(run_dir), read_metrics(run_dir)
    if metrics.is_empty():
        raise WorkbenchError(f"Run {run_dir.name} has measured nothing yet.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("events.out.tfevents.*")):
        raise WorkbenchError(f"{folder} holds event files already: remove it, or choose another.")
    writer = EventFileWriter(str(folder), max_queue_size=10_000)
    try:
        _write_text(writer, "configuration", json.dumps(state.get("config", {}), indent=1))
        for (stage,), rows in metrics.group_by("stage", maintain_order=True):
            _write_stage(writer, str(stage), rows, _began(state, str(stage)))
    finally:
        writer.close()
    return metrics.height


def _write_stage(writer: Any, stage: str, rows: pl.DataFrame, began: float) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for (step,), values in rows.sort("step").group_by("step", maintain_order=True):
        scalars = [
            Summary.Value(tag=f"{stage}/{name}", simple_value=value)
            for name, value in values.select("name", "value").iter_rows()
        ]
        time = began + float(values["wall_s"].max() or 0.0)
        writer.add_event(Event(wall_time=time, step=step, summary=Summary(value=scalars)))


def _write_text(writer: Any, tag: str, text: str) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shown = "\n".join(f"    {line}" for line in text.splitlines())  # markdown: as it is
    tensor = TensorProto(dtype=DT_STRING, string_val=[shown.encode()])
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag=tag, tensor=tensor, metadata=plugin)
    writer.add_event(Event(step=0, summary=Summary(value=[value])))


def _began(state: dict[str, Any], stage: str) -> float:
    """Return when a stage was started, or the run was made, in seconds since 1970."""
    started = state.get("stages", {}).get(stage, {}).get("started") or state.get("created", "")
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return 0.0
