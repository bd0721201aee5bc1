"""The resumable checkpoints of a training stage: which there are, which is newest."""

from __future__ import annotations

import shutil
from pathlib import Path


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the resumable checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest resumable checkpoint, or None."""
    found = training_checkpoints(folder)
    return found[-1] if found else None
