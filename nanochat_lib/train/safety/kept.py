"""The resumable checkpoints of a training stage: which there are, and the newest that is sound."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from nanochat_lib.config import ModelConfig, PretrainConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the resumable checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def newest_sound_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest resumable checkpoint; a damaged one is passed over, with its reason logged.

    Training is deterministic, so an older checkpoint leads to the same weights, only later.

    Raises:
        WorkbenchError: there are checkpoints, and every one is refused.
    """
    refused: list[WorkbenchError] = []
    for path in reversed(training_checkpoints(folder)):
        try:
            return load_checkpoint(path, with_state=True)
        except WorkbenchError as error:
            logger.warning("%s An older one is tried.", error)
            refused.append(error)
    if refused:
        raise refused[0]
    return None


def require_same(
    checkpoint: Checkpoint, config: ModelConfig, plan: PretrainConfig, folder: Path
) -> None:
    """Refuse a checkpoint of another model or optimiser; say which other settings changed.

    Raises:
        WorkbenchError: the model's shape or the optimiser is another one.
    """
    if checkpoint.config != config:
        raise WorkbenchError(
            f"The checkpoints in {folder} belong to another model ({checkpoint.config}) than the "
            f"one configured ({config}). Use another run_id, or remove that folder."
        )
    before, now = checkpoint.state.values.get("plan", {}), plan.model_dump(mode="json")
    if before.get("optimizer") != now["optimizer"]:
        raise WorkbenchError(
            f"The checkpoints in {folder} were trained with pretrain.optimizer = "
            f"{before.get('optimizer')}, now it is {now['optimizer']}, whose state is another one. "
            "Keep it, or use another run_id."
        )
    changed = [f"{name} {old} -> {now[name]}" for name, old in before.items()
               if now.get(name, old) != old]  # fmt: skip
    if changed:
        logger.warning("resuming with other settings: %s", ", ".join(sorted(changed)))


def drop_oldest(folder: Path, n_kept: int) -> None:
    """Remove all but the newest `n_kept` resumable checkpoints."""
    for old in training_checkpoints(folder)[:-n_kept]:
        shutil.rmtree(old, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half written: checkpoints and single files."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
