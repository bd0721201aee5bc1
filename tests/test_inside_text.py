"""One text through a model: an untrained model is near a uniform guess, exits sum to one."""

from __future__ import annotations

import math

import pytest

from nanochat_lib.config import RunConfig
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.inside.text import loss_by_loop, token_table
from nanochat_lib.model.looplm import LoopLM

TEXT = "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n"


def test_loss_by_loop_of_an_untrained_model_is_near_ln_v(tiny_config: RunConfig) -> None:
    tokenizer = train_tokenizer([TEXT] * 5, tiny_config.model.vocab_size)
    rows = loss_by_loop(LoopLM(tiny_config.model), tokenizer, TEXT)
    assert rows["loop"].to_list() == [1, 2]
    assert rows["loss_nats"].to_list() == pytest.approx(
        [math.log(tiny_config.model.vocab_size)] * 2, rel=0.15
    )
    assert rows["exit_share"].sum() == pytest.approx(1)
    ids = tokenizer.encode(TEXT).ids
    n_bytes = len(TEXT.encode()) - len(tokenizer.decode(ids[:1]).encode())
    expected = rows["loss_nats"][0] * (len(ids) - 1) / math.log(2) / n_bytes
    assert rows["bits_per_byte"][0] == pytest.approx(expected)


def test_tokens_spell_the_text(tiny_config: RunConfig) -> None:
    tokenizer = train_tokenizer([TEXT] * 5, tiny_config.model.vocab_size)
    table = token_table(tokenizer, TEXT, n=100)
    assert "".join(eval(text) for text in table["text"]) == TEXT
    with pytest.raises(WorkbenchError, match="at least two tokens"):
        loss_by_loop(LoopLM(tiny_config.model), tokenizer, "")
