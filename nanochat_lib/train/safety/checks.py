"""What is said before the first step: data that do not fit the model, shards without a token."""

from __future__ import annotations

import logging
from pathlib import Path

from nanochat_lib.config import ModelConfig, PretrainConfig
from nanochat_lib.data.batches import TokenData
from nanochat_lib.data.tokenizer import load_tokenizer
from nanochat_lib.errors import WorkbenchError

logger = logging.getLogger(__name__)


def check_fit(
    model: ModelConfig, plan: PretrainConfig, data: TokenData, tokenizer_json: Path | None
) -> None:
    """Compare model, plan, shards and tokenizer; every token of the shards is looked at.

    Raises:
        WorkbenchError: the sequence is longer than the model, a token id or the tokenizer larger
            than its vocabulary, or there is nothing to train on.
    """
    if plan.seq_len > model.max_seq_len:
        raise WorkbenchError(
            f"pretrain.seq_len is {plan.seq_len}, but the model reads at most {model.max_seq_len} "
            "tokens (model.max_seq_len). Shorten the one or raise the other."
        )
    largest = data.largest_id()
    if largest >= model.vocab_size:
        raise WorkbenchError(
            f"The shards hold token id {largest}, but the model knows {model.vocab_size} tokens "
            "(model.vocab_size). Run 01_preprocess again with this profile."
        )
    if tokenizer_json is not None:
        _check_tokenizer(model, tokenizer_json)
    _check_shards(plan, data.empty_shards())


def _check_tokenizer(model: ModelConfig, path: Path) -> None:
    n_tokens = load_tokenizer(path).get_vocab_size()
    if n_tokens > model.vocab_size:
        raise WorkbenchError(
            f"The tokenizer {path} has {n_tokens} tokens, but the model knows {model.vocab_size} "
            "(model.vocab_size). Set model.vocab_size to the tokenizer's, or run 01_preprocess "
            "again with this profile."
        )


def _check_shards(plan: PretrainConfig, empty: list[str]) -> None:
    wanted = {"real_train": plan.tinyrust_share < 1, "tinyrust_train": plan.tinyrust_share > 0}
    missing = [name for name, is_wanted in wanted.items() if is_wanted and name in empty]
    if len(missing) == sum(wanted.values()):
        raise WorkbenchError(
            f"There is nothing to train on: {' and '.join(missing)} hold no token, and "
            f"pretrain.tinyrust_share is {plan.tinyrust_share:g}. Run 01_preprocess with more "
            "examples (data.max_examples, data.tinyrust_examples), or change the share."
        )
    if missing:
        logger.warning(
            "The shard %s is empty, so training reads the other kind alone, not the share of "
            "pretrain.tinyrust_share = %g.",
            missing[0],
            plan.tinyrust_share,
        )
