"""Stages that several points of a sweep have in common are done once.

Two points share a stage when they agree in its settings and in those of every stage before it. The
first one does it; the others take its artifacts (as hard links), metrics and state. Whether that is
valid is decided where it always is: the pipeline compares the stage's marker, and does the stage
anew where it differs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from nanochat_lib.config import RunConfig
from nanochat_lib.runs import Run, read_run_json, write_atomic, write_binary
from nanochat_lib.stages import STAGES, stage_parameters

SHAREABLE = ("preprocess", "pretrain", "maxrl", "long_context", "evaluate")


def stage_keys(config: RunConfig, stages: Sequence[str]) -> dict[str, str]:
    """Return what decides each stage: its settings and those of all stages before it."""
    keys: dict[str, str] = {}
    chain = ""
    for name in stages:
        if name not in SHAREABLE:
            break
        chain += json.dumps([name, stage_parameters(config, STAGES[name])], sort_keys=True)
        keys[name] = chain
    return keys


def shared_stages(all_keys: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return, for each point, those of its stages that another point has too."""
    counts = Counter(key for keys in all_keys for key in keys.values())
    return [{name: key for name, key in keys.items() if counts[key] > 1} for keys in all_keys]


def adopt_stage(donor: Path, run: Run, stage: str) -> None:
    """Give a run a stage that another run has completed.

    Args:
        donor: folder of the run that has it.
        run: the run that gets it.
        stage: its name.
    """
    target = run.dir / "artifacts" / stage
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(donor / "artifacts" / stage, target, copy_function=_link)
    notebook = donor / "notebooks" / STAGES[stage].notebook
    if notebook.is_file():
        (run.dir / "notebooks").mkdir(exist_ok=True)
        shutil.copy2(notebook, run.dir / "notebooks" / notebook.name)
    _adopt_metrics(donor, run, stage)
    state = run.state()
    theirs = read_run_json(donor)["stages"][stage]
    state["stages"][stage] = {"shared_with": donor.name, **theirs}
    write_atomic(run.dir / "run.json", json.dumps(state, indent=1))


def _adopt_metrics(donor: Path, run: Run, stage: str) -> None:
    theirs = Run(donor.name, donor, run.config).metrics().filter(pl.col("stage") == stage)
    theirs = theirs.with_columns(pl.lit(run.run_id).alias("run_id"))
    ours = run.metrics().filter(pl.col("stage") != stage)
    write_binary(run.dir / "metrics.parquet", pl.concat([ours, theirs]).write_parquet)
    (run.dir / "metrics.jsonl").unlink(missing_ok=True)


def _link(source: str, target: str) -> None:
    """Link a file; copy it where the disk knows no links. A finished stage rewrites no file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
