"""What a source gives: rows to be, each with the program the compiler will judge.

Input: a file of Rust and what is known of its package. Output: `Candidate`s in a fixed order: a
`RustSource` row (text, origin, licence, group) and the program that decides about it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nanochat_lib.data.extraction.pages import DEFAULT_EDITION
from nanochat_lib.records import RustSource

MAX_TEXT_BYTES = 16_000  # of an example or a slice
MIN_TEXT_BYTES = 24


@dataclass(frozen=True)
class Candidate:
    """A row to be, and the program that decides about it."""

    row: RustSource
    program: str
    edition: str = DEFAULT_EDITION


def seeded_order(seed: int, key: str) -> bytes:
    """Return a sort key that shuffles keys by seed, whatever order they come in."""
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
