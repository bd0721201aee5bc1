"""What is said before the first step, and that nothing was done by then."""

from __future__ import annotations

import pytest
from test_pretrain import Recorder, ToyData, configured

from nanochat_lib.config import PretrainConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.data.shards import write_index, write_shard
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety.checks import check_fit

TEXTS = [f"fn f{i}(x: u32) -> u32 {{ x + {i} }}" for i in range(60)]
MODEL = configured().model
PLAN = configured().pretrain


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(TEXTS, vocab_size=320).save(str(path))
    return path


def shards(folder, tokenizer_path, **texts):
    from nanochat_lib.data.tokenizer import load_tokenizer

    names = ("real_train", "real_validation", "tinyrust_train", "tinyrust_validation")
    tokenizer = load_tokenizer(tokenizer_path)
    (folder / "shards").mkdir(parents=True)
    infos = {
        name: write_shard(folder / "shards" / f"{name}.bin", texts.get(name, TEXTS), tokenizer)
        for name in names
    }
    write_index(folder / "shards", infos)
    return TokenData.open(folder)


def plan(**changes):
    return PretrainConfig(**(PLAN.model_dump() | changes))


def test_a_token_id_that_appears_once_anywhere_is_found(tmp_path, tokenizer):
    data = shards(tmp_path, tokenizer)
    every = [tokens for d in data.documents.values() for tokens in [d.tokens] if len(tokens)]
    largest = max(int(tokens.max()) for tokens in every)
    assert data.largest_id() == largest
    fits = MODEL.model_copy(update={"vocab_size": largest + 1})
    check_fit(fits, PLAN, data, None)
    with pytest.raises(WorkbenchError, match=f"token id {largest}, but the model knows {largest}"):
        check_fit(fits.model_copy(update={"vocab_size": largest}), PLAN, data, None)


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    with pytest.raises(WorkbenchError, match=r"has 3\d\d tokens, but the model knows 300"):
        check_fit(MODEL, PLAN, ToyData(), tokenizer)


def test_a_sequence_longer_than_the_model_is_refused_before_the_first_step(tmp_path):
    config = configured().model_copy(update={"model": MODEL.model_copy(update={"max_seq_len": 12})})
    recorder = Recorder()
    with pytest.raises(WorkbenchError, match=r"seq_len is 16, but the model reads at most 12"):
        pretrain(config, ToyData(), tmp_path, log=recorder)
    assert not recorder.rows


def test_empty_shards_are_said(tmp_path, tokenizer, caplog):
    model = MODEL.model_copy(update={"vocab_size": 512})
    data = shards(tmp_path / "a", tokenizer, tinyrust_train=[])
    check_fit(model, plan(tinyrust_share=0.0), data, None)
    assert not caplog.records
    check_fit(model, plan(tinyrust_share=0.5), data, None)
    assert "The shard tinyrust_train is empty" in caplog.text
    with pytest.raises(WorkbenchError, match="nothing to train on: tinyrust_train hold no token"):
        check_fit(model, plan(tinyrust_share=1.0), data, None)
    nothing = shards(tmp_path / "b", tokenizer, tinyrust_train=[], real_train=[])
    with pytest.raises(WorkbenchError, match="real_train and tinyrust_train hold no token"):
        check_fit(model, plan(tinyrust_share=0.5), nothing, None)


def test_a_validation_shard_shorter_than_a_window_is_said_before_the_first_step(
    tmp_path, tokenizer
):
    data = shards(tmp_path, tokenizer, real_validation=[])
    config = configured().model_copy(update={"model": MODEL.model_copy(update={"vocab_size": 512})})
    recorder = Recorder()
    with pytest.raises(WorkbenchError, match="held-out real shard has 0 tokens"):
        pretrain(config, data, tmp_path / "pretrain", log=recorder)
    assert not recorder.rows
