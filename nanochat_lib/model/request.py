"""What a decode engine is asked and what it answers: sampling settings, seeds, generations.

The CPU engine (engine.py) and the GPU engine (engine_gpu.py) take and return the same, so whoever
samples (evaluation, rollouts, looks at a training run) need not know which of them runs
(backend.py chooses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nanochat_lib.errors import WorkbenchError

if TYPE_CHECKING:  # torch takes three seconds to import
    from nanochat_lib.config import ModelConfig
    from nanochat_lib.model.looplm import LoopLM

# Spreads (seed, sequence) over 64 bits. Not splitmix64's own step, by which the numbers of a
# sequence move on: with that, sequence i drew at token t what sequence i + 1 drew at token t - 1.
_SPREAD = 0xD1342543DE82EF95


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and when a text ends; a value out of range is a WorkbenchError."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # tokens kept, 0 for all
    top_p: float = 1.0  # probability mass kept of those
    exit_threshold: float = 1.0  # leave the loops when exit_cdf reaches it; 1 runs all loops
    stop_ids: frozenset[int] = frozenset()  # each ends a text, and is kept as its last token

    def __post_init__(self) -> None:
        """Refuse values that no engine can take."""
        ranges = {
            "max_new_tokens": (1, float("inf")),
            "temperature": (0, float("inf")),
            "top_k": (0, float("inf")),
            "top_p": (1e-9, 1),
            "exit_threshold": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise WorkbenchError(f"{name} must lie between {low} and {high}, found {value}.")

    def is_stop(self, vocab_size: int) -> np.ndarray:
        """Return for every token whether it ends a text, bool (V,)."""
        return np.isin(np.arange(vocab_size), list(self.stop_ids))


@dataclass(frozen=True)
class Generation:
    """What one prompt led to; a stop token, when reached, is the last of `tokens`."""

    tokens: list[int]
    exit_loops: list[int]  # loops run for each token, from 1
    token_entropy: list[float]  # nats, of the model's own distribution (temperature 1)
    passes: int  # passes over all loops that the tokens took: fewer than tokens when drafts held


@dataclass(frozen=True)
class Draft:
    """Let the first loops draft tokens that all loops then verify together; the text is the same.

    `tokens` are drafted by `loops` of the model's loops, at least one less than all.
    """

    loops: int = 1
    tokens: int = 4


class Decoder(Protocol):
    """An engine that `model.backend.open_engine` returns."""

    max_seq_len: int
    runs_on: str  # "cuda", or "cpu" with its kernels; and why not on a GPU that is there

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int | Sequence[int] = 0,
    ) -> list[Generation]:
        """Continue every prompt (see `Engine.generate`)."""
        ...

    def reload(self, model: LoopLM) -> None:
        """Pack the current parameters of a model of the same shape again, in place."""
        ...


def check_same_shape(model: LoopLM, config: ModelConfig) -> None:
    """Raise WorkbenchError unless an engine that was made for `config` can take the model."""
    if model.config != config:
        raise WorkbenchError(
            f"The engine was made for {config!r} and cannot take {model.config!r}. Open a new one."
        )


def check_limits(config: ModelConfig, max_batch: int, max_seq_len: int, threads: int = 1) -> None:
    """Raise WorkbenchError unless an engine can be this large for the model."""
    if max_seq_len > config.max_seq_len:
        raise WorkbenchError(
            f"max_seq_len {max_seq_len} exceeds the model's {config.max_seq_len}. "
            "Extend the context first (stage 4)."
        )
    if min(max_batch, max_seq_len, threads) < 1:
        raise WorkbenchError(
            f"max_batch {max_batch}, max_seq_len {max_seq_len} and threads {threads} "
            "must all be at least 1."
        )


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, max_seq_len: int) -> None:
    """Raise WorkbenchError unless every prompt fits, and holds tokens of the vocabulary."""
    for number, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= max_seq_len:
            raise WorkbenchError(
                f"Prompt {number} has {len(prompt)} tokens; this engine takes 1 to {max_seq_len}. "
                "Shorten it, or open the engine with a larger max_seq_len."
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise WorkbenchError(
                f"Prompt {number} holds a token outside 0 to {vocab_size - 1}: "
                "it was encoded with another tokenizer than the model's."
            )


def seeds_of(seed: int | Sequence[int], n: int) -> np.ndarray:
    """Return one 64-bit seed per prompt; the hash keeps neighbouring seeds apart."""
    if isinstance(seed, Sequence | np.ndarray):
        seeds = [int(value) + 1 for value in seed]
    else:
        seeds = [(int(seed) << 32) + i + 1 for i in range(n)]
    if len(seeds) != n:
        raise WorkbenchError(f"{len(seeds)} seeds were given for {n} prompts: give one per prompt.")
    return np.array([value * _SPREAD % (1 << 64) for value in seeds], dtype=np.uint64)
