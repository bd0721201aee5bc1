"""Exported files in stock llama.cpp: the same logits at every depth, the same greedy tokens."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model import looplm
from nanochat_lib.model.engine import Engine
from nanochat_lib.publish import decode_bench
from nanochat_lib.publish.decode_bench import random_checkpoint
from nanochat_lib.publish.gguf_file import write_gguf
from nanochat_lib.publish.stock import StockModel

CONFIG = ModelConfig(
    vocab_size=300, d_model=256, n_layers=2, n_loops=4, n_heads=4, n_kv_heads=2, d_ff=512,
    max_seq_len=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A random model with logits that spread, as a checkpoint and as both files."""
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = random_checkpoint(CONFIG, folder)
    paths = {p: write_gguf(checkpoint, folder / f"{p}.gguf", p, "m") for p in ("f32", "tq2_0")}
    return checkpoint, paths


@pytest.fixture
def needs_llama_cpp():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: .[peers]")


TOKENS = np.random.default_rng(0).integers(0, 300, 64).tolist()


@pytest.mark.peers
@pytest.mark.parametrize("n_loops", [1, 2, 3, 4])
def test_f32_export_has_the_logits_of_the_model_at_every_depth(
    needs_llama_cpp, exported, n_loops, monkeypatch
):
    """A float32 file holds the ternary weights exactly; its runtime does not round activations."""
    checkpoint, paths = exported
    monkeypatch.setattr(looplm, "quantize_activations", lambda x: x)
    monkeypatch.setattr("nanochat_lib.model.ternary.quantize_activations", lambda x: x)
    with torch.no_grad():
        output = checkpoint.model(torch.tensor([TOKENS]), n_loops)
        wanted = checkpoint.model.logits(output.hidden[-1])[0].numpy()
    with StockModel(paths["f32"], n_loops=n_loops, exact=True) as stock:
        found = stock.logits(TOKENS)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5, error


@pytest.mark.peers
def test_ternary_export_chooses_the_engines_tokens(needs_llama_cpp, exported):
    """ggml rounds activations by blocks, we by tokens: the best token differs only when it is tied.

    The bound on the distance of the two best is that of the largest difference seen.
    """
    checkpoint, paths = exported
    ours = Engine.from_model(checkpoint.model, max_batch=1, threads=1).logits(TOKENS)
    with StockModel(paths["tq2_0"], exact=True) as stock:
        found = stock.logits(TOKENS)
        text = stock.greedy(TOKENS[:8], 5)
    apart = np.abs(found - ours).max()
    best_two = np.sort(ours, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > 2 * apart
    assert clear.any()
    same = found.argmax(axis=1) == ours.argmax(axis=1)
    assert same[clear].all()
    assert same.mean() > 0.9
    assert len(text) == 5


@pytest.mark.peers
def test_a_file_that_is_no_model_is_refused(needs_llama_cpp, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(WorkbenchError, match="cannot load"):
        StockModel(tmp_path / "bad.gguf")


def test_without_llama_cpp_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(WorkbenchError, match="peers"):
        StockModel(Path("m.gguf"))


def test_decode_benchmark_measures_what_it_says(monkeypatch, tmp_path, capsys):
    """Small models: every section has its rows; parts add up to the token; depth follows exits."""
    monkeypatch.setattr(decode_bench, "MODELS", {"small": CONFIG})
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    limits = decode_bench.Limits(n_tokens=4, n_repeats=1)
    monkeypatch.setattr(decode_bench, "Limits", lambda: limits)
    random_checkpoint(CONFIG, tmp_path)
    target = tmp_path / "decode.json"
    arguments = ["--json", str(target), "--checkpoint", str(tmp_path / "checkpoint")]
    assert decode_bench.main(arguments) == 0
    rows = json.loads(target.read_text())["rows"]
    sections = {section: [r for r in rows if r["section"] == section] for section in
                ("speed", "exit", "part", "draft")}  # fmt: skip
    assert [row["threads"] for row in sections["speed"]] == [1, 2]
    parts = {row["what"]: row["us"] for row in sections["part"]}
    assert parts["token"] == pytest.approx(sum(v for k, v in parts.items() if k != "token"))
    depths = {row["exit_threshold"]: row["mean_loops"] for row in sections["exit"]}
    assert depths[1.0] == 4
    assert min(depths.values()) < 4
    assert sections["draft"][0]["tokens_per_pass"] == 1
    assert "times its kernels" in capsys.readouterr().out
