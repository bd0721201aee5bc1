"""Stage 2: pre-training of a LoopLM, then of its exit gate.

In: the token shards of stage 1; out: `checkpoints/`, `final/` and `summary.json` in the stage's
folder. Starting again in the same folder continues from the newest checkpoint.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

from nanochat_lib.config import RunConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.runs import write_atomic
from nanochat_lib.train import execution
from nanochat_lib.train.gate import train_gate
from nanochat_lib.train.parallel.step import Progress
from nanochat_lib.train.trainer import Hooks, Job, Log, Trainer
from nanochat_lib.train.watch.held_out import EVAL_WINDOWS, evaluate, held_out
from nanochat_lib.train.watch.speed import peak_rss_mib


def pretrain(
    config: RunConfig,
    data: TokenData,
    folder: Path,
    *,
    log: Log,
    stop: threading.Event | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    on_eval: Callable[[int, LoopLM], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train a model from its seed, or continue, and return the content of `summary.json`.

    Args:
        folder: the stage's folder.
        log: called with a step and metrics by name.
        stop: polled once per step; when set, a checkpoint is written and KeyboardInterrupt raised.
            SIGINT and SIGTERM do the same.
        progress: called with (done, total, text).
        on_eval: called every `eval_every` steps with the step and the model; returns more metrics.

    Raises:
        KeyboardInterrupt: stopped; the same call continues.
        WorkbenchError: the data do not fit the model, or training diverged.
    """
    plan = config.pretrain
    job = Job(
        stage="pretrain",
        plan=plan,
        data=data,
        folder=Path(folder),
        held_out=held_out(data, plan.seq_len, EVAL_WINDOWS),
        seed=config.seed,
        tinyrust_share=config.pretrain.tinyrust_share,
        tokenizer_json=find_tokenizer(Path(folder)),
        hardware=config.hardware,
        targets=config.targets,
    )
    hooks = Hooks(log, stop or threading.Event(), progress, on_eval)
    with execution.cpu_threads(config.hardware.cpu_threads, job.folder) as n_threads:
        model = LoopLM(config.model, seed=config.seed).to(execution.choose_device(config.hardware))
        done = Trainer(model, job, hooks).run()
        train_gate(model, job, hooks, done)
        model.round_tables()
        n_windows = ceil(1024 * plan.held_out_kib / (data.bytes_per_token("real") * plan.seq_len))
        sets = held_out(data, plan.seq_len, n_windows)
        final = evaluate(model, sets)
    log(done.step + plan.gate_steps, final)
    return finish(model, job, done, final=done.last | final, n_threads=n_threads)


def finish(
    model: LoopLM, job: Job, done: Progress, *, final: dict[str, float], n_threads: int
) -> dict[str, Any]:
    """Write `final/` and `summary.json`; return the summary."""
    save_checkpoint(
        job.folder / "final",
        model,
        step=done.step,
        tokens_seen=done.tokens_seen,
        stage=job.stage,
        tokenizer_json=job.tokenizer_json,
    )
    count = count_parameters(model.config)
    summary = {
        "parameters_stored": count.stored,
        "parameters_executed": count.executed,
        "tokens_seen": done.tokens_seen,
        "seconds": round(done.seconds, 2),
        "tokens_per_s": done.tokens_seen / max(done.seconds, 1e-9),
        "dtype": done.dtype,
        "compiled": done.compiled,
        "products": done.products,
        "threads": n_threads,
        "processes": done.processes,
        "peak_rss_mib": peak_rss_mib(),
        "bits_per_byte_first": done.first_bits_per_byte,
        "steps": done.step,
        "stopped_early": done.is_stopped_early,
        "final": final,
    }
    write_summary(job.folder, summary)
    return summary


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` of a stage."""
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def find_tokenizer(folder: Path) -> Path | None:
    """Return the tokenizer of the run that a stage's folder belongs to, or None."""
    path = folder.parent / "preprocess" / "tokenizer.json"
    return path if path.is_file() else None
