"""Checkpoints: exact round trips, and every kind of damage refused with its reason."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model import checkpoint as module
from nanochat_lib.model.checkpoint import TrainState, load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM

TINY = ModelConfig(
    vocab_size=300, d_model=32, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=48,
    max_seq_len=16,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    return save_checkpoint(
        tmp_path / "final", LoopLM(TINY, seed=1), step=7, tokens_seen=99, stage="pretrain",
        tokenizer_json=tokenizer,
    )  # fmt: skip


def seal(folder: Path) -> None:
    """Make the manifest agree with the files, so that the check behind it is reached."""
    manifest = {p.name: module._sha256(p) for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_config(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["model"] |= changes.pop("model", {})
    (folder / "config.json").write_text(json.dumps(content | changes))
    seal(folder)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    seal(folder)


def test_round_trip_is_exact(saved):
    loaded = load_checkpoint(saved)
    expected = LoopLM(TINY, seed=1).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())
    assert (loaded.config, loaded.step, loaded.tokens_seen) == (TINY, 7, 99)
    assert loaded.stage == "pretrain"
    assert loaded.tokenizer_path == saved / "tokenizer.json"


def test_training_state_comes_back_when_asked_for(tmp_path):
    state = TrainState({"optim.0.0.exp_avg": torch.arange(3.0)}, {"progress": {"step": 2}})
    folder = save_checkpoint(
        tmp_path / "c", LoopLM(TINY), step=2, tokens_seen=0, stage="pretrain",
        tokenizer_json=None, state=state,
    )  # fmt: skip
    loaded = load_checkpoint(folder, with_state=True).state
    assert loaded.values == state.values
    assert torch.equal(loaded.tensors["optim.0.0.exp_avg"], torch.arange(3.0))


def test_saving_again_replaces_and_leaves_no_draft(saved):
    save_checkpoint(saved, LoopLM(TINY), step=8, tokens_seen=0, stage="maxrl", tokenizer_json=None)
    assert load_checkpoint(saved).step == 8
    assert {p.name for p in saved.parent.iterdir()} == {"final", "tokenizer.json"}


def test_a_failed_save_keeps_the_old_checkpoint(saved, monkeypatch):
    def full_disk(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_sync", full_disk)
    with pytest.raises(WorkbenchError, match="No space left.*is kept \\(final\\)"):
        save_checkpoint(
            saved, LoopLM(TINY), step=8, tokens_seen=0, stage="pretrain", tokenizer_json=None
        )
    assert load_checkpoint(saved).step == 7
    assert not list(saved.parent.glob(".*"))


def truncate(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def truncate_and_seal(folder):
    truncate(folder)
    seal(folder)


def smuggle_pickle(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    seal(folder)


def poison(folder):
    change_weights(folder, lambda w: w["head.weight"][0].fill_(float("nan")))


DAMAGE = {
    "truncated or altered": truncate,
    "not readable safetensors": truncate_and_seal,
    "is a pickle, which is never read": smuggle_pickle,
    "NaN or infinite": poison,
    "tensors missing: .*final_norm": lambda f: change_weights(
        f, lambda w: w.pop("final_norm.weight")
    ),
    "unknown: .*extra": lambda f: change_weights(f, lambda w: w.update(extra=torch.zeros(1))),
    r"embed.weight has shape \(300, 32\), .* \(400, 32\)": lambda f: change_config(
        f, model={"vocab_size": 400}
    ),
    "format is 0": lambda f: change_config(f, format=0),
    "does not describe a LoopLM": lambda f: change_config(f, model={"n_heads": 5}),
    "manifest.json is missing": lambda f: (f / "manifest.json").unlink(),
    "model.safetensors is missing": lambda f: (f / "model.safetensors").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("reason", DAMAGE)
def test_damage_is_refused_with_its_reason(saved, reason):
    DAMAGE[reason](saved)
    with pytest.raises(WorkbenchError, match=reason):
        load_checkpoint(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WorkbenchError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "nothing")


def test_a_published_model_cannot_be_resumed(saved):
    with pytest.raises(WorkbenchError, match="no training state"):
        load_checkpoint(saved, with_state=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights"])
def test_a_pickle_given_by_name_is_never_read(tmp_path, name):
    path = tmp_path / name
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(WorkbenchError, match="Only safetensors are read, never a pickle"):
        load_checkpoint(path)


def test_a_file_of_a_checkpoint_names_its_folder(saved):
    with pytest.raises(WorkbenchError, match="is a file; a checkpoint is the folder"):
        load_checkpoint(saved / "model.safetensors")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import load_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
model = load_checkpoint(folder).model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # less than the weights take
try:
    save_checkpoint(folder, model, step=8, tokens_seen=0, stage="s", tokenizer_json=None)
except WorkbenchError as error:
    print(error)
"""


def test_a_file_that_the_system_refuses_to_grow_keeps_the_old_checkpoint(saved):
    """The kernel's own refusal in the middle of a file, as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(saved)], capture_output=True, text=True, check=True
    )
    assert "could not be written: " in done.stdout
    assert "is kept (final)" in done.stdout
    assert load_checkpoint(saved).step == 7
    assert not list(saved.parent.glob(".*"))


def test_files_and_folders_are_synced_before_the_name_is_given(tmp_path, monkeypatch):
    events = []
    sync, replace = module._sync, module.os.replace
    monkeypatch.setattr(module, "_sync", lambda p: (events.append(Path(p).name), sync(p)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    save_checkpoint(
        tmp_path / "new" / "c", LoopLM(TINY), step=0, tokens_seen=0, stage="s", tokenizer_json=None
    )
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {"model.safetensors", "config.json", "manifest.json"} <= set(before)
    assert before[-1].startswith(".c.")  # the folder itself, after its files
    assert tmp_path.name in before  # in which `new` was made
    assert after == ["new"]
