"""Shards and batches: what is read is what was written, in an order that only the step decides."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from nanochat_lib.data.batches import TokenData
from nanochat_lib.data.shards import open_shard, read_index, write_index, write_shard
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, train_tokenizer
from nanochat_lib.errors import WorkbenchError

T = 16
TEXTS = {
    "real_train": [f"fn real_{i}() -> u32 {{ {'1 + ' * (i % 7)}{i} }}" for i in range(60)],
    "real_validation": [f"fn held_{i}() {{ assert!(é{i} > {i}); }}" for i in range(20)],
    "tinyrust_train": [f"fn tiny_{i}(x: i32) -> i32 {{ x + {i} }}" for i in range(40)],
    "tinyrust_validation": [f"fn other_{i}(x: i32) -> i32 {{ x * {i} }}" for i in range(10)],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([t for texts in TEXTS.values() for t in texts], 320)


def write_all(folder, tokenizer, texts):
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    infos = {n: write_shard(shards / f"{n}.bin", t, tokenizer) for n, t in texts.items()}
    write_index(shards, infos)
    return folder


@pytest.fixture
def folder(tmp_path, tokenizer):
    return write_all(tmp_path, tokenizer, TEXTS)


def decoded(tokenizer, tokens):
    """Return the documents of a run of tokens, without the separators."""
    parts = np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT_ID))
    return [tokenizer.decode([t for t in part if t != END_OF_TEXT_ID]) for part in parts][:-1]


def test_a_shard_holds_the_texts_in_order_and_counts_them(folder, tokenizer):
    info = read_index(folder / "shards")["real_validation"]
    tokens = open_shard(folder / "shards", "real_validation", info)
    assert decoded(tokenizer, tokens) == TEXTS["real_validation"]
    assert info.n_tokens == len(tokens)
    assert info.n_documents == 20
    assert info.n_bytes == len("\n".join(TEXTS["real_validation"]).encode()) + 1


def test_tokens_on_disk_are_sixteen_bits_little_endian(folder, tokenizer):
    raw = (folder / "shards" / "tinyrust_train.bin").read_bytes()
    first = tokenizer.encode(TEXTS["tinyrust_train"][0]).ids
    assert [raw[2 * i] + 256 * raw[2 * i + 1] for i in range(len(first) + 1)] == [*first, 0]


def test_targets_are_the_inputs_one_position_later(folder):
    rows = TokenData.open(folder).batch(3, batch_size=4, seq_len=T, seed=1, tinyrust_share=0)
    assert rows.shape == (4, T + 1)
    assert rows.dtype == np.int64
    assert (rows[1:, 0] == rows[:-1, -1]).all()  # windows follow each other by T tokens


def test_an_epoch_holds_every_document_once_in_a_new_order(folder, tokenizer):
    data = TokenData.open(folder)
    n_tokens = data.infos["real_train"].n_tokens
    per_epoch = -(-n_tokens // T)
    epochs = []
    for epoch in range(2):
        rows = [
            data.batch(epoch * per_epoch + w, batch_size=1, seq_len=T, seed=5, tinyrust_share=0)
            for w in range(per_epoch)
        ]
        tokens = np.concatenate(rows)[:, :-1].ravel()[:n_tokens]
        epochs.append(decoded(tokenizer, tokens))
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(TEXTS["real_train"])
    assert epochs[0] != epochs[1] != TEXTS["real_train"]


def test_a_batch_depends_on_its_arguments_and_on_no_earlier_call(folder):
    def ask(data, step, seed=3):
        return data.batch(step, batch_size=6, seq_len=T, seed=seed, tinyrust_share=0.4)

    running, resumed = TokenData.open(folder), TokenData.open(folder)
    rows = [ask(running, step) for step in range(60)]
    assert (ask(resumed, 41) == rows[41]).all()
    assert (ask(resumed, 7) == rows[7]).all()
    assert (ask(resumed, 7, seed=4) != rows[7]).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_tinyrust_holds_over_steps(folder, tokenizer, share):
    data = TokenData.open(folder)
    n_tiny = 0
    for step in range(20):
        rows = data.batch(step, batch_size=5, seq_len=T, seed=0, tinyrust_share=share)
        assert len(rows) == 5
        # Every window of a TinyRust function holds its argument x, which no other text has.
        n_tiny += sum("x" in tokenizer.decode(row) for row in rows)
    assert n_tiny == 100 * share


def test_the_last_window_of_an_epoch_wraps_and_short_shards_repeat(tmp_path, tokenizer):
    texts = {**TEXTS, "real_train": ["fn a() {}"]}
    data = TokenData.open(write_all(tmp_path, tokenizer, texts))
    (row,) = data.batch(0, batch_size=1, seq_len=T, seed=0, tinyrust_share=0)
    document = [*tokenizer.encode("fn a() {}").ids, END_OF_TEXT_ID]
    assert row.tolist() == (document * (T + 1))[: T + 1]


def test_a_kind_without_tokens_leaves_its_rows_to_the_other(tmp_path, tokenizer):
    data = TokenData.open(write_all(tmp_path, tokenizer, {**TEXTS, "tinyrust_train": []}))
    rows = data.batch(0, batch_size=4, seq_len=T, seed=0, tinyrust_share=0.5)
    assert rows.shape == (4, T + 1)
    empty = {**TEXTS, "tinyrust_train": [], "real_train": []}
    data = TokenData.open(write_all(tmp_path, tokenizer, empty))
    with pytest.raises(WorkbenchError, match="train shards are empty"):
        data.batch(0, batch_size=4, seq_len=T, seed=0, tinyrust_share=0.5)


def test_validation_windows_are_held_out_text_in_order(folder, tokenizer):
    data = TokenData.open(folder)
    windows = data.validation_windows("real", T, 10_000)
    info = data.infos["real_validation"]
    stored = open_shard(folder / "shards", "real_validation", info)
    assert len(windows) == (info.n_tokens - 1) // T
    assert (windows[:, 1:].ravel() == stored[1 : len(windows) * T + 1]).all()
    few = data.validation_windows("real", T, 3)
    assert len(few) == 3
    assert (few[0] == windows[0]).all()
    assert (few[-1] == windows[-1]).all()
    with pytest.raises(WorkbenchError, match="fewer than one window"):
        data.validation_windows("tinyrust", 10_000, 4)


def test_bytes_per_token_turn_nats_per_token_into_bits_per_byte(folder):
    data = TokenData.open(folder)
    text_bytes = len("\n".join(TEXTS["tinyrust_validation"]).encode()) + 1
    n_tokens = (folder / "shards" / "tinyrust_validation.bin").stat().st_size / 2
    assert data.bytes_per_token("tinyrust") == pytest.approx(text_bytes / n_tokens)


def test_a_damaged_shard_is_refused(folder):
    path = folder / "shards" / "real_train.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"real_train.bin is damaged"):
        TokenData.open(folder)
    path.write_bytes(content[:-2])
    with pytest.raises(WorkbenchError, match="damaged"):
        TokenData.open(folder)
    path.unlink()
    with pytest.raises(WorkbenchError, match="cannot be read"):
        TokenData.open(folder)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"real_train": {"n_tokens": 1}})])
def test_a_damaged_index_is_refused(folder, content):
    (folder / "shards" / "index.json").write_text(content)
    with pytest.raises(WorkbenchError, match="index of token shards"):
        TokenData.open(folder)
