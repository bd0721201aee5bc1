"""Checkpoints: a folder of safetensors and JSON, written atomically, read with suspicion.

A checkpoint folder holds `model.safetensors` (float32 master weights under the names of
`LoopLM.state_dict()`), `config.json`, optionally `tokenizer.json`, for training also
`state.safetensors` and `state.json`, and `manifest.json` with the SHA-256 of every file. Nothing is
ever pickled. Loading checks everything and refuses with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM

FORMAT = 1
MODEL, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # names under which others save pickles
STATE_TENSORS, STATE_VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class TrainState:
    """What resuming needs besides the weights: flat tensors and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; `state` only where training wrote one and it was asked for."""

    model: LoopLM
    config: ModelConfig
    step: int
    tokens_seen: int
    stage: str
    tokenizer_path: Path | None
    state: TrainState | None = None


def save_checkpoint(
    folder: Path,
    model: LoopLM,
    *,
    step: int,
    tokens_seen: int,
    stage: str,
    tokenizer_json: Path | None,
    state: TrainState | None = None,
) -> Path:
    """Write a checkpoint so that `folder` is complete or absent, never half written.

    All files are written and synced in a neighbouring folder, which then takes the name; an older
    checkpoint of that name steps aside only then.

    Raises:
        WorkbenchError: it could not be written, e.g. because the disk is full; nothing of it stays,
            and what was there before is still there.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _make_folders(folder.parent)
        draft.mkdir()
        weights = {k: v.detach().float().cpu().contiguous() for k, v in _state_dict(model).items()}
        save_file(weights, draft / MODEL)
        if state is not None:
            tensors = {k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}
            save_file(tensors, draft / STATE_TENSORS)
            _write_json(draft / STATE_VALUES, state.values)
        if tokenizer_json is not None:
            shutil.copyfile(tokenizer_json, draft / TOKENIZER)
        description = {"format": FORMAT, "model": model.config.model_dump(mode="json")}
        description |= {"step": step, "tokens_seen": tokens_seen, "stage": stage}
        _write_json(draft / CONFIG, description)
        _write_json(draft / MANIFEST, {p.name: _sha256(p) for p in sorted(draft.iterdir())})
        for path in (*draft.iterdir(), draft):
            _sync(path)
        _replace_folder(draft, folder)
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(_unwritten(folder, error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, *, with_state: bool = False) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        WorkbenchError: no checkpoint there, or it is damaged (checksum, truncated file), of
            another format, its tensors do not fit its configuration, or it holds a NaN.
    """
    folder = Path(folder)
    _refuse_pickles(folder)
    _check_manifest(folder)
    description = _read_json(folder / CONFIG)
    if description.get("format") != FORMAT:
        found = description.get("format")
        raise _refusal(folder, f"its format is {found!r}, this version reads {FORMAT}")
    try:
        config = ModelConfig.model_validate(description["model"])
        step, tokens_seen = int(description["step"]), int(description["tokens_seen"])
        stage = str(description["stage"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise _refusal(folder, f"{CONFIG} does not describe a LoopLM: {error}") from error
    model = LoopLM(config)
    weights = _read_tensors(folder / MODEL)
    _check_weights(folder, weights, _state_dict(model))
    model.load_state_dict(weights)
    tokenizer = folder / TOKENIZER
    tokenizer_path = tokenizer if tokenizer.is_file() else None
    state = _read_state(folder) if with_state else None
    return Checkpoint(model, config, step, tokens_seen, stage, tokenizer_path, state)


def _state_dict(model: LoopLM) -> dict[str, Tensor]:
    """Return the weights under their plain names, also when blocks were wrapped for speed."""
    return {k.replace("_orig_mod.", ""): v for k, v in model.state_dict().items()}


def _read_state(folder: Path) -> TrainState:
    if not (folder / STATE_VALUES).is_file() or not (folder / STATE_TENSORS).is_file():
        raise _refusal(folder, "it holds a model but no training state, so it cannot be resumed")
    return TrainState(_read_tensors(folder / STATE_TENSORS), _read_json(folder / STATE_VALUES))


def _refuse_pickles(folder: Path) -> None:
    """Say of a file that is not ours what it is, and that a pickle is never read."""
    if not folder.is_file():
        return
    if folder.suffix in PICKLED or _is_pickle(folder):
        raise WorkbenchError(
            f"{folder} is refused: it is a pickle ({', '.join(PICKLED)} are), and reading one can "
            "run any code in it. Only safetensors are read, never a pickle. Convert it where you "
            "trust it, or name a checkpoint folder of this workbench."
        )
    raise WorkbenchError(
        f"{folder} is a file; a checkpoint is the folder that holds {MODEL}, {CONFIG} and "
        f"{MANIFEST}. Name that folder."
    )


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as torch.save or pickle.dump let one begin."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start == b"PK\3\4"


def _check_manifest(folder: Path) -> None:
    if not folder.is_dir():
        raise WorkbenchError(f"There is no checkpoint folder {folder}.")
    if not (folder / MANIFEST).is_file():
        raise _refusal(folder, f"{MANIFEST} is missing, so it was not written by this workbench")
    manifest = _read_json(folder / MANIFEST)
    for required in (MODEL, CONFIG):
        if required not in manifest:
            raise _refusal(folder, f"{MANIFEST} does not list {required}")
    for name, digest in manifest.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise _refusal(folder, f"{name} is missing")
        if _sha256(path) != digest:
            raise _refusal(folder, f"{name} differs from its checksum (truncated or altered)")


def _check_weights(folder: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        raise _refusal(
            folder, f"tensors missing: {missing or 'none'}, unknown: {surplus or 'none'}"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise _refusal(
                folder,
                f"{name} has shape {tuple(tensor.shape)}, {CONFIG} asks for "
                f"{tuple(wanted[name].shape)}",
            )
        if not torch.isfinite(tensor).all():
            raise _refusal(folder, f"{name} holds NaN or infinite values")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if _is_pickle(path):
        raise _refusal(
            path.parent, f"{path.name} is a pickle, which is never read: it can run code"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _refusal(path.parent, f"{path.name} is not readable safetensors: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(path.parent, f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise _refusal(path.parent, f"{path.name} must hold an object")
    return value


def _refusal(folder: Path, reason: str) -> WorkbenchError:
    return WorkbenchError(
        f"The checkpoint {folder} is refused: {reason}. Use another checkpoint, or run the stage "
        "that wrote it again."
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folders(folder: Path) -> None:
    """Make a folder whose entry in its parent survives a crash."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)


def _unwritten(folder: Path, error: Exception) -> str:
    found = sorted(p.name for p in folder.parent.glob("[!.]*") if (p / MANIFEST).is_file())
    where = next(p for p in (folder.parent, *folder.parents) if p.exists())
    free = shutil.disk_usage(where).free / 2**20
    return (
        f"The checkpoint {folder} could not be written: {error}. {free:,.0f} MiB are free there. "
        f"What was there before is kept ({', '.join(found) or 'no checkpoint yet'}). Free some "
        "space and run the same command again: it goes on from the newest checkpoint."
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(draft: Path, folder: Path) -> None:
    """Give `draft` the name `folder`; an old folder steps aside first and is then removed."""
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(draft, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
