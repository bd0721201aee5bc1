"""What a report knows of a run: everything read from its folder, nothing from live objects.

Input: a run folder (`reports/runs/<run_id>`). Output: a `RunData` whose parts may be empty when a
stage was not run; nothing here fails because a file is absent. Figures take its frames and rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.config import ModelConfig
from nanochat_lib.experiments.notes import Notes, read_notes
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.runs import read_metrics, read_run_json, status_of

MAX_POINTS = 2000  # most points of one line in a figure
TRAINING_STAGES = ("pretrain", "maxrl", "long_context")


@dataclass(frozen=True)
class RunData:
    """A run as read from disk."""

    dir: Path
    state: dict[str, Any]
    metrics: pl.DataFrame  # METRIC_SCHEMA of runs.py
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> summary.json
    notes: Notes = field(default_factory=Notes)
    label: str = ""  # what a comparison calls it, where its id says little

    @property
    def run_id(self) -> str:
        """Return the run's name."""
        return str(self.state.get("run_id", self.dir.name))

    @property
    def status(self) -> str:
        """Return completed, running, failed, interrupted or new."""
        return status_of(self.state)

    @property
    def config(self) -> dict[str, Any]:
        """Return the resolved configuration as nested dictionaries."""
        return self.state.get("config", {})

    @property
    def targets(self) -> dict[str, float]:
        """Return the profile's targets that are set."""
        return {k: v for k, v in self.config.get("targets", {}).items() if v is not None}

    @property
    def n_loops(self) -> int:
        """Return the loops of the model."""
        return int(self.config.get("model", {}).get("n_loops", 1))

    @property
    def n_parameters(self) -> int:
        """Return stored parameters of the model: as trained, or counted from its shape."""
        found = self.summary("pretrain").get("parameters_stored")
        shape = self.config.get("model")
        if found or not shape:
            return int(found or 0)
        return count_parameters(ModelConfig.model_validate(shape)).stored

    @property
    def machine(self) -> str:
        """Return the machine in words: processor, cores, memory, GPUs."""
        return machine_text(self.state.get("machine", {}))

    @property
    def sandbox(self) -> str:
        """Return the sandbox level programs ran under, or an empty text."""
        found = self.state.get("sandbox") or self.summary("preprocess").get("sandbox")
        return str(found or "")

    def decoded_on(self, stage: str) -> str:
        """Return what generated the texts of a stage: processor or GPU, and which kernels."""
        return str(self.summary(stage).get("decoding") or "not recorded")

    @property
    def rustc(self) -> str:
        """Return the compiler's version line, or an empty text."""
        found = self.state.get("rustc") or self.summary("preprocess").get("rustc")
        return str(found or "")

    @cached_property
    def results(self) -> pl.DataFrame:
        """Return the rows of evaluate/results.parquet; empty when there are none."""
        return _read_parquet(self.artifact("evaluate", "results.parquet"))

    @cached_property
    def episodes(self) -> pl.DataFrame:
        """Return the rows of evaluate/episodes.parquet; empty when there are none."""
        return _read_parquet(self.artifact("evaluate", "episodes.parquet"))

    def artifact(self, stage: str, name: str) -> Path:
        """Return the path of a file of a stage, which may not exist."""
        return self.dir / "artifacts" / stage / name

    def summary(self, stage: str) -> dict[str, Any]:
        """Return a stage's summary.json, or an empty dictionary."""
        return self.summaries.get(stage, {})

    def stage(self, name: str) -> dict[str, Any]:
        """Return what run.json says of a stage: status, seconds, error."""
        return self.state.get("stages", {}).get(name, {})

    def samples(self, stage: str) -> list[dict[str, str]]:
        """Return free-running samples of a stage as {prompt, completion, note}."""
        return [
            {
                "prompt": str(row.get("prompt", "")),
                "completion": str(row.get("completion", row.get("text", ""))),
                "note": str(row.get("note", row.get("verdict", ""))),
            }
            for row in self.summary(stage).get("samples", [])
        ]

    def last(self, stage: str, metric: str) -> float | None:
        """Return the last value of a metric, or None when it was not recorded."""
        rows = series(self.metrics, stage, metric)
        return float(rows["value"][-1]) if rows.height else None


def load_run(run_dir: Path) -> RunData:
    """Read a run folder.

    Raises:
        WorkbenchError: the folder holds no run, or run.json is damaged.
    """
    state = read_run_json(run_dir)
    artifacts = run_dir / "artifacts"
    summaries = {path.parent.name: read_json(path) for path in artifacts.glob("*/summary.json")}
    bench = read_json(artifacts / "kernels" / "bench.json")
    rows = bench.get("rows", []) if isinstance(bench, dict) else bench
    summaries["kernels"] = {**summaries.get("kernels", {}), "bench": rows}
    return RunData(run_dir, state, read_metrics(run_dir), summaries, read_notes(run_dir))


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or an empty dictionary when it is absent or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}


def series(metrics: pl.DataFrame, stage: str, name: str) -> pl.DataFrame:
    """Return the rows of one metric in order of steps, without values that are not finite."""
    wanted = (pl.col("stage") == stage) & (pl.col("name") == name) & pl.col("value").is_finite()
    return metrics.filter(wanted).sort("step")


def downsample(rows: pl.DataFrame, *, limit: int = MAX_POINTS) -> pl.DataFrame:
    """Return at most `limit` rows of (step, value), keeping every bucket's lowest and highest.

    A plain every-nth choice would hide a loss spike of one step.
    """
    if rows.height <= limit:
        return rows
    bucket = (pl.int_range(pl.len()) * (limit // 2) // rows.height).alias("bucket")
    column = pl.col("value")
    found = (
        rows.with_columns(bucket)
        .group_by("bucket")
        .agg(
            pl.col("step").gather(pl.concat_list(column.arg_min(), column.arg_max()).explode()),
            column.gather(pl.concat_list(column.arg_min(), column.arg_max()).explode()),
        )
    )
    return found.explode("step", "value").select("step", "value").unique().sort("step")


def machine_text(machine: dict[str, Any]) -> str:
    """Return one line that names the machine."""
    if not machine:
        return "machine not recorded"
    parts = [str(machine.get("cpu") or "unknown processor")]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("memory_gb"):
        parts.append(f"{machine['memory_gb']:.0f} GB")
    gpus = [g if isinstance(g, str) else str(g.get("name", g)) for g in machine.get("gpus", [])]
    return ", ".join([*parts, ", ".join(gpus) if gpus else "no GPU"])


def _read_parquet(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame()
