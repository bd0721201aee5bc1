"""Training batches: windows over shuffled documents, a pure function of the step.

Input: the folder of stage 1. Output: int64 arrays (B, T + 1) whose first T columns are the inputs
and last T the targets. In every epoch the documents of a shard are permuted by the seed and laid
end to end; window w takes the tokens from w * T on. No state is kept between calls, so training
that resumes at a step sees exactly the batches it would have seen.

Letters: B batch, T positions, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nanochat_lib.data.shards import ShardInfo, open_shard, read_index
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID
from nanochat_lib.errors import WorkbenchError

Kind = Literal["real", "tinyrust"]
Split = Literal["train", "validation"]


@dataclass(frozen=True, eq=False)
class _Documents:
    """One shard with the borders of its documents."""

    name: str
    tokens: np.ndarray  # uint16 (n_tokens,)
    starts: np.ndarray = field(init=False, repr=False)  # int64 (n_documents,)
    lengths: np.ndarray = field(init=False, repr=False)  # int64 (n_documents,), separator included

    def __post_init__(self) -> None:
        ends = np.flatnonzero(self.tokens == END_OF_TEXT_ID).astype(np.int64) + 1
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "lengths", ends - starts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process map the file, too, instead of being sent a copy of it."""
        if isinstance(self.tokens, np.memmap):
            return _mapped, (self.name, self.tokens.filename, self.tokens.dtype)
        return _Documents, (self.name, self.tokens)


@dataclass(frozen=True)
class Recipe:
    """What decides the batch of a step, besides the tokens."""

    batch_size: int
    seq_len: int
    seed: int = 0
    tinyrust_share: float = 0.0
    split: Split = "train"


@dataclass(frozen=True, eq=False)
class TokenData:
    """The four token shards of a run."""

    documents: dict[str, _Documents]
    infos: dict[str, ShardInfo]

    @classmethod
    def open(cls, preprocess_folder: Path) -> TokenData:
        """Open the shards of `artifacts/preprocess`, comparing every checksum.

        Raises:
            WorkbenchError: the index or a shard is missing or damaged.
        """
        folder = Path(preprocess_folder) / "shards"
        infos = read_index(folder)
        documents = {n: _Documents(n, open_shard(folder, n, info)) for n, info in infos.items()}
        return cls(documents, infos)

    def batch(
        self,
        step: int,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        tinyrust_share: float,
        split: Split = "train",
    ) -> np.ndarray:
        """Return the batch of a step, int64 (B, T + 1); rows of TinyRust come first.

        Of the rows up to any step, `tinyrust_share` (rounded down) come from TinyRust; a kind
        without tokens leaves its rows to the other.

        Raises:
            WorkbenchError: the split has no tokens at all.
        """
        return self.rows(
            step, Recipe(batch_size, seq_len, seed, tinyrust_share, split), range(batch_size)
        )

    def rows(self, step: int, recipe: Recipe, chosen: Sequence[int]) -> np.ndarray:
        """Return some rows of the batch of a step, in the order asked for; no others are read.

        Raises:
            WorkbenchError: the split has no tokens at all.
        """
        share = self._possible_share(recipe.tinyrust_share, recipe.split)
        before = step * recipe.batch_size
        tiny_before, tiny_after = floor(before * share), floor((before + recipe.batch_size) * share)
        n_tiny = tiny_after - tiny_before
        tiny = [tiny_before + row for row in chosen if row < n_tiny]
        real = [before - tiny_before + row - n_tiny for row in chosen if row >= n_tiny]
        parts = [
            _windows(self.documents[f"{kind}_{recipe.split}"], numbers, recipe.seq_len, recipe.seed)
            for kind, numbers in (("tinyrust", tiny), ("real", real))
        ]
        return np.concatenate(parts)  # (rows, T + 1)

    def validation_windows(self, kind: Kind, seq_len: int, max_windows: int) -> np.ndarray:
        """Return held-out windows in file order, int64 (W, T + 1), W at most `max_windows`.

        Windows do not overlap in their targets; with more than asked for, they are spread evenly.

        Raises:
            WorkbenchError: the shard is shorter than one window.
        """
        tokens = self.documents[f"{kind}_validation"].tokens
        n_windows = (len(tokens) - 1) // seq_len
        if n_windows < 1:
            raise WorkbenchError(
                f"The held-out {kind} shard has {len(tokens)} tokens, fewer than one window of "
                f"{seq_len} + 1. Take more examples (data.max_examples, data.tinyrust_examples), "
                "hold out more (data.validation_fraction), or shorten pretrain.seq_len."
            )
        chosen = np.unique(np.linspace(0, n_windows - 1, min(max_windows, n_windows)).astype(int))
        places = chosen[:, None] * seq_len + np.arange(seq_len + 1)  # (W, T + 1)
        return tokens[places].astype(np.int64)

    def largest_id(self) -> int:
        """Return the largest token id of all shards; -1 when all are empty."""
        shards = (found.tokens for found in self.documents.values() if len(found.tokens))
        return max((int(tokens.max()) for tokens in shards), default=-1)

    def empty_shards(self) -> list[str]:
        """Return the names of the shards without a token, such as `tinyrust_train`."""
        return sorted(name for name, info in self.infos.items() if not info.n_tokens)

    def bytes_per_token(self, kind: Kind) -> float:
        """Return UTF-8 bytes per token of the held-out shard; separators count as one byte."""
        info = self.infos[f"{kind}_validation"]
        return info.n_bytes / max(info.n_tokens, 1)

    def _possible_share(self, tinyrust_share: float, split: Split) -> float:
        n_real, n_tiny = (self.infos[f"{kind}_{split}"].n_tokens for kind in ("real", "tinyrust"))
        if not n_real and not n_tiny:
            raise WorkbenchError(
                f"The {split} shards are empty. Run 01_preprocess.ipynb with more data."
            )
        if not n_tiny:
            return 0.0
        return tinyrust_share if n_real else 1.0


def _mapped(name: str, path: Path, dtype: np.dtype) -> _Documents:
    return _Documents(name, np.memmap(path, dtype=dtype, mode="r"))


def _windows(documents: _Documents, numbers: Sequence[int], seq_len: int, seed: int) -> np.ndarray:
    """Return windows of the endless run over epochs by their numbers, int64 (W, T + 1)."""
    if not numbers:
        return np.zeros((0, seq_len + 1), dtype=np.int64)
    n_per_epoch = ceil(len(documents.tokens) / seq_len)
    rows = [_window(documents, seed, *divmod(n, n_per_epoch), seq_len) for n in numbers]
    return np.stack(rows)


def _window(documents: _Documents, seed: int, epoch: int, index: int, seq_len: int) -> np.ndarray:
    """Return window `index` of an epoch, int64 (T + 1,); the last one wraps to the beginning."""
    order, ends = _epoch_order(documents, seed, epoch)
    places = (index * seq_len + np.arange(seq_len + 1)) % ends[-1]
    slot = np.searchsorted(ends, places, side="right")
    document = order[slot]
    before = ends[slot] - documents.lengths[document]
    return documents.tokens[documents.starts[document] + places - before].astype(np.int64)


@lru_cache(maxsize=8)
def _epoch_order(documents: _Documents, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents of an epoch in order, and where each ends: both int64 (n_documents,)."""
    name_key = int.from_bytes(documents.name.encode()[:8], "little")
    order = np.random.default_rng([seed, epoch, name_key]).permutation(len(documents.lengths))
    return order, np.cumsum(documents.lengths[order])
