"""Measurements on the trained points of a study that need more than their `result.json`.

In: finished points; out: one JSON file beside each, made once. `exits` compares rules for leaving
the loops, `kv_sharing` what the cache of one loop is worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from nanochat_lib.config import RunConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, encode_prompt, load_tokenizer
from nanochat_lib.evals.generation import Completion
from nanochat_lib.evals.judging import judge_attempts, make_attempt
from nanochat_lib.evals.results import count_problem
from nanochat_lib.evals.suite import choose_tasks
from nanochat_lib.evals.tasks import load_tasks
from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.runs import write_atomic
from nanochat_lib.studies.exits import loss_curves, write_greedily
from nanochat_lib.studies.kv_sharing import SHARINGS, decoded_loss
from nanochat_lib.studies.points import Point
from nanochat_lib.train.watch.held_out import held_out

EXIT_WINDOWS = 128
EXIT_TASKS = 40
LEVELS_WRITTEN = {"static depth": 1, "trained gate": 3, "change of h": 2}  # every n-th level
KV_WINDOWS = 64

Progress = Callable[[int, int, str], None]


def measure_exits(
    points: Sequence[Point], data: Path, progress: Progress | None = None
) -> pl.DataFrame:
    """Return loss, and compile rate and pass@1 of greedy text, over mean depth for every rule."""
    return _measure(points, data, "exits", _exits_of, progress)


def measure_kv_sharing(
    points: Sequence[Point], data: Path, progress: Progress | None = None
) -> pl.DataFrame:
    """Return the loss of token-by-token decoding with each way of sharing the cache."""
    return _measure(points, data, "kv_sharing", _kv_sharing_of, progress)


def _measure(
    points: Sequence[Point],
    data: Path,
    name: str,
    measure: Callable[[LoopLM, RunConfig, Path], list[dict[str, Any]]],
    progress: Progress | None,
) -> pl.DataFrame:
    rows = []
    for i, point in enumerate(points):
        path = point.folder / f"{name}.json"
        if not path.is_file():
            torch.set_num_threads(1)
            model = load_checkpoint(point.folder / "final").model
            write_atomic(path, json.dumps(measure(model, point.config, Path(data)), indent=1))
        found = json.loads(path.read_text(encoding="utf-8"))
        rows += [{"arm": point.arm, "seed": point.seed, **row} for row in found]
        if progress is not None:
            progress(i + 1, len(points), f"{name}: {point.arm}, seed {point.seed}")
    return pl.DataFrame(rows, infer_schema_length=None)


def _kv_sharing_of(model: LoopLM, config: RunConfig, data: Path) -> list[dict[str, Any]]:
    windows = held_out(TokenData.open(data), config.pretrain.seq_len, KV_WINDOWS)["real"].windows
    return [{"kept": kept, "loss": decoded_loss(model, windows, kept)} for kept in SHARINGS]


def _exits_of(model: LoopLM, config: RunConfig, data: Path) -> list[dict[str, Any]]:
    windows = held_out(TokenData.open(data), config.pretrain.seq_len, EXIT_WINDOWS)["real"].windows
    rows = loss_curves(model, windows)
    for rule, every in LEVELS_WRITTEN.items():
        for row in [row for row in rows if row["rule"] == rule][::every]:
            row |= _judged(model, config, data, row)
    return rows


def _judged(model: LoopLM, config: RunConfig, data: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return rates of the programs that the model writes under one rule and level."""
    tokenizer = load_tokenizer(data / "tokenizer.json")
    tasks = [task for task in load_tasks(data / "tasks.jsonl") if task.split != "held_family"]
    tasks = choose_tasks(tasks, EXIT_TASKS)
    prompts = [encode_prompt(tokenizer, task.prompt) for task in tasks]
    limit = config.eval.max_new_tokens
    written, depth = write_greedily(model, prompts, row["rule"], row["level"], limit)
    attempts = []
    for task, tokens in zip(tasks, written, strict=True):
        text = "\n" + tokenizer.decode([token for token in tokens if token != END_OF_TEXT_ID])
        attempts.append(make_attempt(task, Completion(text, len(tokens), depth, False)))
    counts = count_problem(judge_attempts(attempts, config))
    return {
        "written_depth": depth,
        "n_judged": counts.n_judged,
        "n_compiled": counts.n_compiled,
        "n_passed": counts.n_passed,
    }
