"""Train and measure the points of a study: one per arm and seed, each in a process of one thread.

In: configurations and the artifacts of a finished stage 1; out: a folder per point with its
checkpoint, `metrics.jsonl` and `result.json`. A point is named by a hash of what decides it, so
equal points of several studies are one, a finished one is never computed again, and an interrupted
one continues from its checkpoint. One thread for each process: sums do not depend on who else
uses the machine, and two processes on two cores lose nothing to barriers.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.config import RunConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.suite import evaluate as evaluate_tasks
from nanochat_lib.evals.tasks import load_tasks
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.hardware.planner import count_parameters, train_flops_per_token
from nanochat_lib.runs import write_atomic
from nanochat_lib.studies.plan import Study, arm_config

RESULT = "result.json"
DECIDING = ("seed", "model", "pretrain", "eval")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Point:
    """One arm with one seed, and where it lies."""

    arm: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def is_done(self) -> bool:
        """Return whether the point has been measured."""
        return (self.folder / RESULT).is_file()

    def result(self) -> dict[str, Any]:
        """Return what was measured, with the arm's name and the seed."""
        found = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        return {"arm": self.arm, "seed": self.seed, **found}


def study_points(
    study: Study,
    data: Path,
    folder: Path,
    *,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
) -> list[Point]:
    """Return the points of a study.

    Args:
        data: `artifacts/preprocess` of a finished stage 1.
        folder: where points lie; shared by all studies.
        overrides: dotted settings of every arm, e.g. a vocabulary size.

    Raises:
        WorkbenchError: stage 1 is not there, or a setting is wrong.
    """
    index = Path(data) / "shards" / "index.json"
    if not index.is_file():
        raise WorkbenchError(
            f"A study reads the tokens of a finished stage 1, and {data} has none. Run "
            "01_preprocess.ipynb first, and give its artifacts/preprocess."
        )
    points = []
    for arm in study.arms:
        for seed in seeds:
            config = arm_config(arm, seed, overrides)
            points.append(Point(arm.name, seed, config, folder / _name(config, index)))
    return points


def _name(config: RunConfig, index: Path) -> str:
    """Return a hash of what decides a point: settings and tokens.

    Settings at their default are left out, so that a setting that is new does not give finished
    points other names. Code is left out too: to measure new code, use another folder.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True)
    content = {key: settings.get(key) for key in DECIDING}
    text = json.dumps([content, index.read_text()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_points(
    points: Sequence[Point],
    data: Path,
    measure: Callable[[Point, Path], None],
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train and measure what is not done yet, `workers` points at a time (0: one for each core).

    Args:
        measure: trains and measures one point, in a process of its own.

    Raises:
        WorkbenchError: points failed; the others are done, and the same call tries those again.
        KeyboardInterrupt: the same call continues.
    """
    todo = {point.folder: point for point in points if not point.is_done}
    n_done, n_points, failures = len(points) - len(todo), len(points), []
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    n_workers = max(1, min(workers or usable_cores(), len(todo)))
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        futures = {pool.submit(measure, point, data): point for point in todo.values()}
        try:
            for future in as_completed(futures):
                point = futures[future]
                error = future.exception()
                if isinstance(error, Exception):
                    failures.append(f"{point.arm}, seed {point.seed}: {error!r}")
                n_done += 1
                if progress is not None:
                    progress(n_done, n_points, f"{point.arm}, seed {point.seed}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        raise WorkbenchError(
            f"{len(failures)} of {n_points} points failed; the same call tries them again:\n"
            + "\n".join(failures[:8])
        )


@contextmanager
def begun(point: Point) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Let the process compute on one thread, keep a point's configuration, and yield its log."""
    import torch

    torch.set_num_threads(1)
    point.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(point.folder / "config.json", point.config.model_dump_json(indent=1))
    with (point.folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8") as lines:

        def log(step: int, values: dict[str, float]) -> None:
            lines.write(json.dumps({"step": step, **values}) + "\n")

        yield log


def run_point(point: Point, data: Path) -> None:
    """Train one point, let rustc judge what it writes, and write `result.json`."""
    import torch

    from nanochat_lib.train.pretrain import pretrain

    torch.compiler.reset()  # shapes of an earlier point would count as recompilations
    began = time.process_time()
    with begun(point) as log:
        summary = pretrain(point.config, TokenData.open(data), point.folder, log=log)
    checkpoint = _with_tokenizer(point.folder / "final", Path(data) / "tokenizer.json")
    tasks = [task for task in load_tasks(Path(data) / "tasks.jsonl") if task.split != "train"]
    tasks = [task for task in tasks if task.split != "held_family"]
    evaluate_tasks({"model": checkpoint}, {"tinyrust": tasks}, point.config, point.folder / "tasks")
    result = {
        **_costs(point.config),
        "tokens_seen": summary["tokens_seen"],
        "cpu_s": round(time.process_time() - began, 1),
        "dtype": summary["dtype"],
        "compiled": summary["compiled"],
        "final": summary["final"],
        "tasks": _rates(point.folder / "tasks" / "results.parquet"),
    }
    write_atomic(point.folder / RESULT, json.dumps(result, indent=1) + "\n")


def _costs(config: RunConfig) -> dict[str, float]:
    count = count_parameters(config.model)
    per_token = train_flops_per_token(config.model, config.pretrain.seq_len)
    n_tokens = config.pretrain.total_steps * config.pretrain.batch_size * config.pretrain.seq_len
    return {
        "parameters_stored": count.stored,
        "parameters_executed": count.executed,
        "train_flops": per_token * n_tokens,
    }


def _rates(path: Path) -> list[dict[str, Any]]:
    """Return compile rate and pass@1 of the whole set, each level and each split."""
    table = pl.read_parquet(path).filter(pl.col("metric").is_in(["compile_rate", "pass@1"]))
    return table.select("task_set", "metric", "rate", "n_samples", "n_unjudged").to_dicts()


def _with_tokenizer(checkpoint: Path, tokenizer: Path) -> Path:
    """Give a checkpoint made outside of a run folder the tokenizer it was trained with."""
    from nanochat_lib.model.checkpoint import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    if loaded.tokenizer_path is None:
        save_checkpoint(
            checkpoint,
            loaded.model,
            step=loaded.step,
            tokens_seen=loaded.tokens_seen,
            stage=loaded.stage,
            tokenizer_json=tokenizer,
        )
    return checkpoint
