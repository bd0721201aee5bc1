"""Export: GGUF read back by the gguf package equals the model; card and checklist are honest."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import polars as pl
import pytest
import torch

from nanochat_lib.config import ModelConfig, RunConfig
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.ternary import quantize_weight
from nanochat_lib.publish.export import publish
from nanochat_lib.publish.gguf_file import check_exportable, tensor_name, write_gguf
from nanochat_lib.records import EvalResult, as_row
from nanochat_lib.runs import create_run

TEXTS = ["fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n", 'let naïve = "é"; // ok\n'] * 20


@pytest.fixture
def checkpoint(tiny_config: RunConfig, tmp_path: Path) -> Checkpoint:
    """Return a random ternary model saved with a tokenizer that has a few spare ids."""
    tokenizer = train_tokenizer(TEXTS, tiny_config.model.vocab_size)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    folder = tmp_path / "final"
    model = LoopLM(tiny_config.model, seed=3)
    save_checkpoint(folder, model, step=1, tokens_seen=1, stage="pretrain", tokenizer_json=path)
    return load_checkpoint(folder)


def _values(reader: gguf.GGUFReader) -> dict[str, object]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("precision", ["f32", "tq2_0"])
def test_weights_read_back_are_the_models_own(
    checkpoint: Checkpoint, precision: str, tmp_path: Path
) -> None:
    path = write_gguf(checkpoint, tmp_path / "m.gguf", precision, "m")
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    state = checkpoint.model.state_dict()
    assert len(tensors) == len([n for n in state if not n.startswith("exit_gate")])
    for name, tensor in state.items():
        if name.startswith("exit_gate"):
            continue
        found = tensors[tensor_name(name)]
        read = gguf.quants.dequantize(found.data, found.tensor_type).reshape(tensor.shape)
        if name.startswith("layers.") and tensor.ndim == 2:
            codes, scale = quantize_weight(tensor)
            # Bit-exact, since the scale is a float16 value; -0.0 equals 0.0.
            assert np.array_equal(read, codes.numpy().astype(np.float32) * np.float32(scale)), name
        else:
            tolerance = 1e-3 if precision == "tq2_0" else 0
            assert np.allclose(read, tensor.numpy(), rtol=tolerance, atol=tolerance), name


def test_keys_are_those_that_the_looped_architecture_asks_for(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = _values(gguf.GGUFReader(write_gguf(checkpoint, tmp_path / "m.gguf", "tq2_0", "m")))
    model = checkpoint.config
    assert found["general.architecture"] == "nanbeige"
    assert found["general.file_type"] == 37
    assert found["nanbeige.num_loops"] == model.n_loops
    assert found["nanbeige.skip_loop_final_norm"] is False
    assert found["nanbeige.block_count"] == model.n_layers
    assert found["nanbeige.attention.head_count_kv"] == model.n_kv_heads
    assert found["nanbeige.rope.dimension_count"] == model.head_size
    assert found["nanbeige.rope.freq_base"] == pytest.approx(model.rope_base)
    assert found["nanbeige.attention.layer_norm_rms_epsilon"] == pytest.approx(model.norm_eps)


def test_tokenizer_in_the_file_holds_the_same_vocabulary_and_merges(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = _values(gguf.GGUFReader(write_gguf(checkpoint, tmp_path / "m.gguf", "f32", "m")))
    content = json.loads(checkpoint.tokenizer_path.read_text())
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == checkpoint.config.vocab_size
    assert all(tokens[index] == token for token, index in content["model"]["vocab"].items())
    assert tokens[found["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    assert found["tokenizer.ggml.merges"] == merges
    assert found["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_ff": 320}, "model.d_ff must be a multiple of 256, found 320"),
        ({"d_model": 128}, "model.d_model must be"),
        ({"ternary": False}, "Only a ternary model"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tiny_config: RunConfig, changes: dict, said: str
) -> None:
    config = ModelConfig(**{**tiny_config.model.model_dump(), **changes})
    with pytest.raises(WorkbenchError, match=said):
        check_exportable(config, "tq2_0")


def test_nothing_is_left_when_writing_fails(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", no_space)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_gguf(checkpoint, target / "m.gguf", "f32", "m")
    assert list(target.iterdir()) == []


def test_publish_writes_card_manifest_and_an_honest_checklist(
    tiny_config: RunConfig, checkpoint: Checkpoint, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "p", runs_dir)
    final = run.artifacts("pretrain") / "final"
    save_checkpoint(
        final, checkpoint.model, step=1, tokens_seen=1, stage="pretrain",
        tokenizer_json=checkpoint.tokenizer_path,
    )  # fmt: skip
    folder = run.artifacts("publish")
    manifest = publish(run.dir, tiny_config, folder)
    done = {row["item"]: row["done"] for row in manifest["checklist"]}
    assert done["Model files (GGUF format)"]
    assert not done["Model card with benchmarks"]  # no evaluation in this run
    assert "Not measured in this run." in (folder / "README.md").read_text()

    result = EvalResult("pretrain", "builtin", "pass@1", 0.25, 0.1, 0.4, 1, 4, 2)
    pl.DataFrame([as_row(result)]).write_parquet(run.artifacts("evaluate") / "results.parquet")
    manifest = publish(run.dir, tiny_config, folder)
    card = (folder / "README.md").read_text()
    assert "| builtin | pass@1 | 25.0% | 10.0% to 40.0% | 4 samples, 2 problems |" in card
    assert card.startswith("---\nlanguage: en\n")
    assert all(row["done"] for row in manifest["checklist"])
    names = {row["name"] for row in manifest["files"]}
    assert {"safetensors/model.safetensors", "safetensors/tokenizer.json"} <= names
    reloaded = load_checkpoint(folder / "safetensors").model
    tokens = torch.arange(12).reshape(1, 12)
    expected = checkpoint.model(tokens).hidden[-1]
    assert torch.equal(reloaded(tokens).hidden[-1], expected)


@pytest.mark.parametrize(
    ("passed", "chosen"),
    [
        ({"pretrain": (3, 0), "maxrl": (6, 1), "long_context": (2, 0)}, "maxrl"),
        ({"pretrain": (3, 1), "maxrl": (2, 2), "long_context": (2, 2)}, "long_context"),  # a tie
        ({"pretrain": (3, 1), "maxrl": (6, 1)}, "long_context"),  # evaluated before stage 4
        ({}, "long_context"),
    ],
)
def test_auto_publishes_the_model_that_passed_most(
    tiny_config: RunConfig, checkpoint: Checkpoint, runs_dir: Path, passed: dict, chosen: str
) -> None:
    run = create_run(tiny_config, "p", runs_dir)
    for stage in ("pretrain", "maxrl", "long_context"):
        save_checkpoint(
            run.artifacts(stage) / "final", checkpoint.model, step=1, tokens_seen=1, stage=stage,
            tokenizer_json=checkpoint.tokenizer_path,
        )  # fmt: skip
    rows = [
        EvalResult(stage, task_set, "pass@1", n / 8, 0, 1, n, 8, 8)
        for stage, counts in passed.items()
        for task_set, n in zip(("tinyrust", "builtin"), counts, strict=True)
    ]
    rows += [EvalResult(s, "tinyrust/level 1", "pass@1", 1, 1, 1, 8, 8, 8) for s in passed]
    if rows:
        table = pl.DataFrame([as_row(row) for row in rows])
        table.write_parquet(run.artifacts("evaluate") / "results.parquet")
    folder = run.artifacts("publish")
    assert publish(run.dir, tiny_config, folder)["stage"] == chosen
    if chosen in passed:
        assert "by the model of each stage: pretrain" in (folder / "README.md").read_text()


def test_publishing_a_run_without_a_model_says_what_to_run(
    tiny_config: RunConfig, runs_dir: Path
) -> None:
    run = create_run(tiny_config, "empty", runs_dir)
    with pytest.raises(WorkbenchError, match=r"Run 02_pretrain.ipynb"):
        publish(run.dir, tiny_config, run.artifacts("publish"))
    named = tiny_config.model_copy(
        update={"publish": tiny_config.publish.model_copy(update={"checkpoint": "maxrl"})}
    )
    with pytest.raises(WorkbenchError, match="asks for the model of stage maxrl"):
        publish(run.dir, named, run.artifacts("publish"))
