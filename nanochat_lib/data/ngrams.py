"""Hashes of lexemes and of runs of them: what near-duplicates and contamination are found by.

Input: a text. Output: arrays of uint64. A lexeme is a word, a number or one other character; white
space does not count. The hash of a run is a polynomial in the hashes of its lexemes, modulo 2^64,
so that all runs of a text cost `width` vector operations. Equal in every process.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np

_LEXEME = re.compile(r"\w+|[^\w\s]")
_BASE = 0x9E3779B97F4A7C15  # odd, so that no power of it loses bits


def lexeme_hashes(text: str) -> np.ndarray:
    """Return the hash of each lexeme in order, shape (N,), uint64."""
    return np.array([_hash(lexeme) for lexeme in _LEXEME.findall(text)], dtype=np.uint64)


def run_hashes(lexemes: np.ndarray, width: int) -> np.ndarray:
    """Return the hash of every `width` lexemes in a row, uint64.

    A text of fewer lexemes gives one hash, of the whole; an empty one gives none. Runs of different
    length have different hashes.
    """
    width = min(width, len(lexemes))
    n_runs = len(lexemes) - width + 1 if width else 0
    total = np.full(n_runs, width, dtype=np.uint64)
    for offset in range(width):
        total = total * np.uint64(_BASE) + lexemes[offset : offset + n_runs]
    return total


@lru_cache(maxsize=1 << 15)
def _hash(lexeme: str) -> int:
    return int.from_bytes(hashlib.blake2b(lexeme.encode(), digest_size=8).digest(), "little")
