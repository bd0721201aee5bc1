"""Choose rows: drop repeats, spread over groups, keep benchmarks out, split, balance.

Every choice is a function of the rows and the seed, never of the order they came in or of the
clock, so that the same sources give the same corpus byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nanochat_lib.data.ngrams import lexeme_hashes, run_hashes
from nanochat_lib.data.sources.candidates import Candidate, seeded_order
from nanochat_lib.records import Task

# Shares of the kinds when the sources offer more than is wanted; a kind that runs short leaves its
# places to the others. Examples come first because nearly all of them compile, slices do in a third
# of cases.
KIND_SHARES = {"doc_example": 0.75, "function": 0.25, "test": 0.25, "file": 0.25}
# Shared tokens in a row that count as contamination. Idioms such as
# `for (i, x) in xs.iter().enumerate() {` are 17 tokens long and no one's property.
NGRAM_TOKENS = 30
TRAIN = "train"
HELD_PACKAGE = "held_package"  # split of a corpus's task: nothing of its package is trained on

_NUMBER_TYPE = re.compile(r"\b(?:[iu](?:8|16|32|64|128|size)|f(?:16|32|64|128))\b")
_NUMBER = re.compile(r"\b\d[\w.]*")
Row = TypeVar("Row")


@dataclass
class Distinct:
    """Candidates without repeats, and how many were dropped by which rule."""

    kept: list[Candidate] = field(default_factory=list)
    n_exact: int = 0
    n_near: int = 0


def content_hash(text: str) -> str:
    """Return the sha256 of a text with every run of white space as one space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def drop_repeats(candidates: Iterable[Candidate]) -> Distinct:
    """Drop texts that are equal, or equal but for number types and number literals.

    The standard library documents every method of its twelve integer types with the same example.
    """
    result, exact, near = Distinct(), set(), set()
    for candidate in candidates:
        text = candidate.row.text
        whole, shape = content_hash(text), content_hash(without_numbers(text))
        if whole in exact:
            result.n_exact += 1
        elif shape in near:
            result.n_near += 1
        else:
            result.kept.append(candidate)
        exact.add(whole)
        near.add(shape)
    return result


def needs_nightly(candidate: Candidate) -> bool:
    """Return whether a program asks for an unstable feature, which a stable rustc refuses."""
    return "#![feature(" in candidate.program


def take_spread(candidates: Sequence[Candidate], n: int, seed: int) -> list[Candidate]:
    """Return at most `n` candidates by `KIND_SHARES`, groups in turn, in the order of their ids."""
    by_kind: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_kind.setdefault(candidate.row.kind, []).append(candidate)
    total = sum(KIND_SHARES[kind] for kind in by_kind)
    queues = {kind: _groups_in_turn(rows, seed) for kind, rows in sorted(by_kind.items())}
    chosen = [
        candidate
        for kind, queue in queues.items()
        for candidate in queue[: round(n * KIND_SHARES[kind] / total)]
    ]
    left_over = [
        candidate
        for kind, queue in queues.items()
        for candidate in queue[round(n * KIND_SHARES[kind] / total) :]
    ]
    chosen = (chosen + left_over)[:n]
    return sorted(chosen, key=lambda candidate: candidate.row.source_id)


def _groups_in_turn(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Order candidates so that every prefix takes from all groups as evenly as it can."""
    order = sorted(candidates, key=lambda c: seeded_order(seed, c.row.source_id))
    n_seen: Counter[str] = Counter()
    turns = []
    for place, candidate in enumerate(order):
        turns.append((n_seen[candidate.row.group], place))
        n_seen[candidate.row.group] += 1
    return [order[place] for _, place in sorted(turns)]


class Benchmarks:
    """The n-grams of benchmark texts, to keep them out of the training set."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.runs = [run_hashes(lexeme_hashes(text), NGRAM_TOKENS) for text in texts]  # by text
        self._ngrams = np.unique(np.concatenate([np.empty(0, np.uint64), *self.runs]))

    def overlap(self, text: str) -> bool:
        """Return whether a text shares `NGRAM_TOKENS` tokens in a row with a benchmark.

        A benchmark text shorter than that counts when it occurs as a whole in an equally short one.
        """
        return self.has_any(lexeme_hashes(text))

    def has_any(self, lexemes: np.ndarray) -> bool:
        """Return the same for a text whose lexemes are hashed already."""
        return bool(len(self.shared(run_hashes(lexemes, NGRAM_TOKENS))))

    def shared(self, runs: np.ndarray) -> np.ndarray:
        """Return those of some hashes of runs that benchmarks have, too."""
        if not len(self._ngrams):
            return self._ngrams
        places = np.searchsorted(self._ngrams, runs)
        places[places == len(self._ngrams)] = 0
        return runs[self._ngrams[places] == runs]


def known_places(held: Sequence[str], texts: Iterable[str]) -> frozenset[int]:
    """Return the places of held-out texts that share `NGRAM_TOKENS` tokens in a row with a text.

    Args:
        held: held-out texts.
        texts: what is trained on; read once, one at a time.
    """
    wanted = Benchmarks(held)
    seen: set[int] = set()
    for text in texts:
        seen.update(wanted.shared(run_hashes(lexeme_hashes(text), NGRAM_TOKENS)).tolist())
    return frozenset(
        i for i, found in enumerate(wanted.runs) if not seen.isdisjoint(found.tolist())
    )


def known_tasks(tasks: Sequence[Task], texts: Iterable[str]) -> frozenset[str]:
    """Return the ids of tasks whose function is one of `known_places`."""
    known = known_places([task.prompt + task.canonical_solution for task in tasks], texts)
    return frozenset(tasks[place].task_id for place in known)


def held_out_groups(sizes: Mapping[str, int], fraction: float, seed: int) -> frozenset[str]:
    """Return the groups held out for validation: about `fraction` of the bytes, at least one.

    Args:
        sizes: bytes of text by group; with a single group nothing can be held out.

    Groups come in an order that the seed decides. One that is larger than half of what is wanted
    is passed over, so that the held-out text comes from several places; when only such groups
    exist, the smallest one is taken.
    """
    if len(sizes) < 2:
        return frozenset()
    wanted = fraction * sum(sizes.values())
    held: set[str] = set()
    total = 0
    for group in sorted(sizes, key=lambda name: seeded_order(seed, name)):
        if total >= wanted:
            break
        if sizes[group] <= wanted / 2:
            held.add(group)
            total += sizes[group]
    return frozenset(held or {min(sizes, key=lambda name: (sizes[name], name))})


def keep_quota(
    rows: Sequence[Row], names: Sequence[str], shares: Mapping[str, float]
) -> tuple[list[Row], dict[str, int]]:
    """Keep of each class at most its share of all rows, and say how many are missing.

    Args:
        rows: in the order in which they are preferred.
        names: the class of each row.
        shares: wanted share of each class; they sum to 1.

    Returns: the rows kept, in their order, and by class how many rows its quota lacks.

    With 10 rows of which 8 are easy and shares 0.3/0.5/0.2: 3 easy ones stay, medium lacks some.
    """
    quota = {name: round(share * len(rows)) for name, share in shares.items()}
    taken: Counter[str] = Counter()
    kept = []
    for row, name in zip(rows, names, strict=True):
        if taken[name] < quota[name]:
            kept.append(row)
            taken[name] += 1
    return kept, {name: quota[name] - taken[name] for name in shares}


def without_numbers(text: str) -> str:
    """Return a text with all number types as one and all number literals as 0."""
    return _NUMBER.sub("0", _NUMBER_TYPE.sub("int", text))
