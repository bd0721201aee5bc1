"""The exported model is the trained one: its held-out loss, by every way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanochat_lib.config import ModelConfig
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.model.checkpoint import load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.ternary import exact_in_16_bits, row_steps
from nanochat_lib.publish.equality import TOLERANCE, export_losses, read_gguf
from nanochat_lib.publish.gguf_file import write_gguf

TEXTS = ["fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n", 'let naïve = "é"; // ok\n'] * 20
CONFIG = ModelConfig(
    vocab_size=320, d_model=256, n_layers=2, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=256,
    max_seq_len=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model whose loss depends on every weight, with all its files."""
    folder = tmp_path_factory.mktemp("export")
    train_tokenizer(TEXTS, CONFIG.vocab_size).save(str(folder / "tokenizer.json"))
    model = LoopLM(CONFIG, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.head.weight.normal_(std=0.1, generator=generator)
    model.round_tables()  # as training ends
    save_checkpoint(
        folder / "safetensors", model, step=1, tokens_seen=1, stage="pretrain",
        tokenizer_json=folder / "tokenizer.json",
    )  # fmt: skip
    checkpoint = load_checkpoint(folder / "safetensors")
    for precision in ("f32", "tq2_0"):
        write_gguf(checkpoint, folder / f"m-{precision}.gguf", precision, "m")
    return folder, checkpoint


@pytest.fixture(scope="module")
def rows(exported):
    folder, checkpoint = exported
    windows = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (6, 65))
    return {row["what"]: row for row in export_losses(checkpoint, folder, windows, 3.0)}


def test_every_way_back_is_there(rows):
    assert list(rows) == [
        "the trained model", "safetensors", "packed, 2bit", "packed, base3", "m-f32.gguf",
        "m-tq2_0.gguf", "decode engine",
    ]  # fmt: skip
    assert rows["the trained model"]["bits_per_byte"] > 1


@pytest.mark.parametrize(
    "what", ["safetensors", "packed, 2bit", "packed, base3", "m-f32.gguf", "m-tq2_0.gguf"]
)
def test_the_loss_is_that_of_the_trained_model(rows, what):
    assert abs(rows[what]["difference"]) <= TOLERANCE, rows[what]
    assert rows[what]["is_equal"]


def test_other_sums_over_the_same_weights_stay_close(rows):
    """Some activations fall on the neighbouring int8 code."""
    assert 0 < abs(rows["decode engine"]["difference"]) <= 3e-4
    assert rows["decode engine"]["is_equal"]


@pytest.mark.parametrize("magnitude", [1e-9, 1e-4, 0.02, 0.7, 40.0])
def test_rounded_tables_are_exact_in_float16_and_in_int16(magnitude):
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(64, 96, generator=generator) * magnitude
    table[0], table[1] = 0, 2.0**-7  # a row of nothing, a row of one power of two
    table[2] = torch.linspace(-1, 1, 96) * 32767 * 2.0**-12
    rounded = exact_in_16_bits(table)
    assert torch.equal(rounded.half().float(), rounded)
    codes = rounded / row_steps(rounded)
    assert torch.equal(codes.round(), codes)
    assert codes.abs().max() <= 32767
    assert torch.equal(exact_in_16_bits(rounded), rounded)
    error = (rounded - table).abs().amax(1)
    assert (error <= table.abs().amax(1) * 2.0**-11 + 2.0**-25).all()


def test_one_code_more_or_less_would_be_seen(exported):
    folder, checkpoint = exported
    windows = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (6, 65))
    other = read_gguf(folder / "m-f32.gguf", checkpoint)
    with torch.no_grad():
        other.layers[0].q.weight[:8].neg_()
    from nanochat_lib.publish import equality

    wrong = equality._nats_per_token(equality._torch_logits(other), windows)
    right = equality._nats_per_token(equality._torch_logits(checkpoint.model), windows)
    assert abs(wrong - right) > 10 * TOLERANCE
