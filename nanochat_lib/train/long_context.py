"""Stage 4: longer sequences from a checkpoint, with a raised base of the rotary frequencies.

In: a checkpoint and the token shards; out: `final/` with the new length, and the held-out loss by
position before and after. Raising the base slows all rotations, so that distances beyond the old
length turn the pairs by angles the model has met; a few steps let it adapt.

Source: base-frequency change, arXiv 2309.16039 (section 2), without its long training.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_lib.config import PretrainConfig, RunConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint, load_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train import execution
from nanochat_lib.train.pretrain import find_tokenizer, finish, write_summary
from nanochat_lib.train.trainer import Hooks, Job, Log, Trainer
from nanochat_lib.train.watch.held_out import evaluate, held_out, loss_by_position

HELD_OUT_WINDOWS = 16
N_BUCKETS = 8
NOTE = (
    "Held-out windows are short documents laid end to end, so late positions mostly repeat the "
    "task of early ones: little gain with position is expected. 'before' is the base model run at "
    "the new length as it was; 'short_context' is the extended model given only the last "
    "{n} tokens before each position's bucket ends."
)


def extend_context(
    config: RunConfig,
    base_checkpoint: Path,
    data: TokenData,
    folder: Path,
    *,
    log: Log,
    stop: threading.Event | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Continue a checkpoint on longer sequences; return the content of `summary.json`.

    The arguments are those of `pretrain`. The summary also has "loss_by_position": for each bucket
    of positions its first position and the held-out loss in nats `before`, `after`, and with
    `short_context`, so that the use of a longer context shows as the difference of the last two.

    Raises:
        KeyboardInterrupt: stopped; the same call continues.
        WorkbenchError: the checkpoint is refused, or the new length is not longer.
    """
    base = load_checkpoint(base_checkpoint)
    seq_len = config.long_context.seq_len
    if seq_len <= base.config.max_seq_len:
        raise WorkbenchError(
            f"long_context.seq_len {seq_len} does not exceed the {base.config.max_seq_len} tokens "
            f"that the checkpoint {base_checkpoint} already has. Raise it."
        )
    job = Job(
        stage="long_context",
        plan=_plan(config),
        data=data,
        folder=Path(folder),
        held_out=held_out(data, seq_len, HELD_OUT_WINDOWS),
        seed=config.seed + 1,  # other windows than pre-training drew
        tinyrust_share=config.pretrain.tinyrust_share,
        tokenizer_json=base.tokenizer_path or find_tokenizer(Path(folder)),
        hardware=config.hardware,
        targets=config.targets,
    )
    with execution.cpu_threads(config.hardware.cpu_threads, job.folder) as n_threads:
        windows = job.held_out["real"].windows
        device = execution.choose_device(config.hardware)
        before = loss_by_position(
            _resized(base, seq_len, base.config.rope_base).to(device), windows
        )
        model = _resized(base, seq_len, config.long_context.rope_base).to(device)
        done = Trainer(model, job, Hooks(log, stop, progress)).run()
        model.round_tables()
        after = loss_by_position(model, windows)
        short = _short_context_loss(model, windows, base.config.max_seq_len)
        final = evaluate(model, job.held_out)
    summary = finish(model, job, done, final=done.last | final, n_threads=n_threads)
    summary["loss_by_position"] = _buckets(before, after, short)
    summary["note"] = NOTE.format(n=base.config.max_seq_len)
    summary["seq_len"] = {"before": base.config.max_seq_len, "after": seq_len}
    summary["rope_base"] = {"before": base.config.rope_base, "after": model.config.rope_base}
    write_summary(job.folder, summary)
    return summary


def _plan(config: RunConfig) -> PretrainConfig:
    """Return a plan of the trainer with the lengths and rates of this stage."""
    stage = config.long_context
    pretrain = config.pretrain
    longer = max(1, stage.seq_len // pretrain.seq_len)
    wanted = max(1, pretrain.micro_batch_size // longer)  # as many tokens at once as before
    micro = next(
        d for d in range(min(wanted, stage.batch_size), 0, -1) if stage.batch_size % d == 0
    )
    warmup = min(2, stage.total_steps // 2)
    return pretrain.model_copy(
        update={
            "total_steps": stage.total_steps,
            "batch_size": stage.batch_size,
            "micro_batch_size": micro,
            "seq_len": stage.seq_len,
            "learning_rate": stage.learning_rate,
            "muon_learning_rate": stage.learning_rate
            * (pretrain.muon_learning_rate / pretrain.learning_rate),
            "weight_decay": 0.0,
            "warmup_steps": warmup,
            "decay_steps": stage.total_steps - warmup,
            "eval_every": max(1, stage.total_steps // 2),
            "checkpoint_every": max(1, stage.total_steps // 2),
            "gate_steps": 0,
        }
    )


def _resized(base: Checkpoint, seq_len: int, rope_base: float) -> LoopLM:
    """Return a copy of the model for another length and rotary base; the weights do not change."""
    model = LoopLM(base.config.model_copy(update={"max_seq_len": seq_len, "rope_base": rope_base}))
    model.load_state_dict(base.model.state_dict())
    return model


def _short_context_loss(model: LoopLM, windows: np.ndarray, context: int) -> np.ndarray:
    """Return the loss (T,) of the second half of each short window slid over the long ones.

    Window starts advance by context / 2 and only the second half is scored, so that every position
    beyond the first half sees between context / 2 and context earlier tokens.
    """
    n_positions = windows.shape[1] - 1
    half = context // 2
    loss = np.full(n_positions, np.nan, dtype=np.float32)
    for start in range(0, max(1, n_positions - half), half):
        end = min(start + context, n_positions)
        part = loss_by_position(model, windows[:, start : end + 1])
        skip = half if start else 0
        loss[start + skip : end] = part[skip:]
    return loss


def _buckets(before: np.ndarray, after: np.ndarray, short: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for places in np.array_split(np.arange(len(before)), N_BUCKETS):
        means = (float(np.mean(values[places])) for values in (before, after, short))
        rows.append(dict(zip(("before", "after", "short_context"), means, strict=True)))
        rows[-1] = {"position": int(places[0])} | rows[-1]
    return rows
