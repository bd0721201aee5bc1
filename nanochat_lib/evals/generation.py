"""Completions of a checkpoint: prompts in, sampled Rust text out, by the packed decode engine.

A prompt is cut at the token boundary that training text has (`encode_prompt`), so a completion
begins with the newline after the opening brace. Sits between `model/engine.py` and `suite.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from nanochat_lib.config import EvalConfig, HardwareConfig
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, STOP_IDS, encode_prompt, load_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.request import Decoder, Generation, Sampling

if TYPE_CHECKING:  # torch takes three seconds to import: only who opens a model pays for it
    from tokenizers import Tokenizer

    from nanochat_lib.model.checkpoint import Checkpoint
    from nanochat_lib.model.looplm import LoopLM

MAX_BATCH = 64
# At least this share of the context stays free for the completion; longer prompts lose their start.
MIN_FREE_SHARE = 0.25


@dataclass(frozen=True)
class Completion:
    """Raw text a model wrote after a prompt, with what it cost."""

    text: str
    n_tokens: int
    expected_loops: float  # mean loops per generated token
    is_prompt_cut: bool  # the prompt's start did not fit the context


@dataclass(frozen=True)
class Writer:
    """A model ready to complete prompts."""

    engine: Decoder
    tokenizer: Tokenizer

    def complete(
        self, prompts: list[str], settings: EvalConfig, *, n_samples: int = 1, seed: int = 0
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield (index of the prompt, completion) in batches, `n_samples` per prompt, in order.

        Args:
            prompts: texts that end in the opening brace of a function.
            settings: temperature, length and exit threshold.
            n_samples: completions per prompt.
            seed: of the sampling. A completion depends on it, its prompt (without white space
                at the end) and its number only.
        """
        sampling = Sampling(
            settings.max_new_tokens,
            settings.temperature,
            exit_threshold=settings.exit_threshold,
            stop_ids=STOP_IDS,
        )
        longest = max(int(self.engine.max_seq_len * (1 - MIN_FREE_SHARE)), 1)
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        jobs = [(i, sample) for i in range(len(prompts)) for sample in range(n_samples)]
        for start in range(0, len(jobs), MAX_BATCH):
            batch = jobs[start : start + MAX_BATCH]
            generations = self.engine.generate(
                [encoded[i][-longest:] for i, _ in batch],
                sampling,
                seed=[crc32(f"{seed} {s} {prompts[i].rstrip()}".encode()) for i, s in batch],
            )
            yield [
                (i, self._completion(found, len(encoded[i]) > longest))
                for (i, _), found in zip(batch, generations, strict=True)
            ]

    def _completion(self, found: Generation, is_prompt_cut: bool) -> Completion:
        tokens = [token for token in found.tokens if token != END_OF_TEXT_ID]
        loops = found.exit_loops
        return Completion(
            text="\n" + self.tokenizer.decode(tokens),
            n_tokens=len(found.tokens),
            expected_loops=sum(loops) / len(loops) if loops else 0.0,
            is_prompt_cut=is_prompt_cut,
        )


def open_writer(checkpoint: Path, hardware: HardwareConfig) -> Writer:
    """Load a checkpoint folder and pack it for decoding; errors as in `load_with_tokenizer`."""
    loaded = load_with_tokenizer(checkpoint)
    return make_writer(loaded.model, loaded.tokenizer_path, hardware)


def load_with_tokenizer(checkpoint: Path) -> Checkpoint:
    """Load a checkpoint folder whose `tokenizer_path` is there.

    Raises:
        WorkbenchError: the checkpoint is damaged, or holds no tokenizer.
    """
    from nanochat_lib.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    if loaded.tokenizer_path is None:
        raise WorkbenchError(
            f"The checkpoint {checkpoint} holds no tokenizer.json, so its tokens have no meaning: "
            "evaluate a folder that a training stage wrote."
        )
    return loaded


def make_writer(model: LoopLM, tokenizer_path: Path, hardware: HardwareConfig) -> Writer:
    """Pack a model in memory for decoding."""
    from nanochat_lib.model.backend import open_engine

    engine = open_engine(model, hardware, max_batch=MAX_BATCH)
    return Writer(engine, load_tokenizer(tokenizer_path))
