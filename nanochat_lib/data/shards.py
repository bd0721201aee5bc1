"""Token shards: files of uint16 token ids with an index of sizes and checksums.

Input: texts and a tokenizer. Output: `<kind>_<split>.bin`, little-endian ids where every document
ends in `<|endoftext|>`, and `index.json`. `open_shard` maps a file into memory after comparing its
checksum, so that a damaged shard is found before training and not by a strange loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from nanochat_lib.data.tokenizer import END_OF_TEXT_ID
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import write_atomic, write_binary

INDEX_NAME = "index.json"
MAX_VOCAB_SIZE = 2**16
_TOKEN_DTYPE = np.dtype("<u2")
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class ShardInfo:
    """Sizes of one shard. `n_bytes` counts UTF-8 bytes and one separator for each document."""

    n_tokens: int
    n_bytes: int
    n_documents: int
    sha256: str


def write_shard(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> ShardInfo:
    """Encode documents into one shard, a few hundred at a time.

    Raises:
        WorkbenchError: the vocabulary does not fit into 16 bits.
    """
    if tokenizer.get_vocab_size() > MAX_VOCAB_SIZE:
        raise WorkbenchError(
            f"Token shards hold 16-bit ids: model.vocab_size must be at most {MAX_VOCAB_SIZE}, "
            f"found {tokenizer.get_vocab_size()}."
        )
    totals = {"n_tokens": 0, "n_bytes": 0, "n_documents": 0}
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for ids, n_bytes in _encoded(texts, tokenizer):
            block = np.array([*ids, END_OF_TEXT_ID], dtype=_TOKEN_DTYPE).tobytes()
            file.write(block)
            digest.update(block)
            totals["n_tokens"] += len(ids) + 1
            totals["n_bytes"] += n_bytes + 1
            totals["n_documents"] += 1

    write_binary(path, write)
    return ShardInfo(**totals, sha256=digest.hexdigest())


def write_index(folder: Path, shards: dict[str, ShardInfo]) -> None:
    """Write the index of a folder of shards; keys are file stems such as `real_train`."""
    content = {name: asdict(info) for name, info in shards.items()}
    write_atomic(folder / INDEX_NAME, json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, ShardInfo]:
    """Read the index of a folder of shards.

    Raises:
        WorkbenchError: the index is missing or unreadable.
    """
    try:
        content = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        return {name: ShardInfo(**values) for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            f"Cannot read the index of token shards in {folder} ({error}). "
            "Run 01_preprocess.ipynb of this run again."
        ) from error


def open_shard(folder: Path, name: str, info: ShardInfo) -> np.ndarray:
    """Return a shard's tokens, uint16 (n_tokens,), read-only and mapped into memory.

    Raises:
        WorkbenchError: the file is missing, or differs from its checksum.
    """
    path = folder / f"{name}.bin"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WorkbenchError(f"Token shard {path} cannot be read: {error.strerror}.") from error
    if found != info.sha256:
        raise WorkbenchError(
            f"Token shard {path} is damaged: its sha256 is {found[:12]}..., the index says "
            f"{info.sha256[:12]}.... Run 01_preprocess.ipynb of this run again."
        )
    if not info.n_tokens:
        return np.zeros(0, dtype=_TOKEN_DTYPE)  # an empty file cannot be mapped
    return np.memmap(path, dtype=_TOKEN_DTYPE, mode="r")


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Yield (ids, UTF-8 bytes) of each text; only one group of texts is in memory at a time."""
    waiting = iter(texts)
    while group := list(islice(waiting, _TEXTS_AT_ONCE)):
        for text, encoding in zip(group, tokenizer.encode_batch_fast(group), strict=True):
            yield encoding.ids, len(text.encode())
