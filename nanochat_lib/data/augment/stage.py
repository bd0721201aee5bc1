"""Augmentation as a step of stage 1: more training rows of the same meaning.

Input: the chosen rows of real Rust. Output: rows to add, and what became of every rewrite. Only
training rows are rewritten, and a variant takes over package, licence, group and split from its
parent, so that nothing crosses into the held-out text and no rate is measured on copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat_lib.config import RunConfig
from nanochat_lib.data.augment.variants import Parent, Variant, augment
from nanochat_lib.data.rows import Judged
from nanochat_lib.data.select import TRAIN
from nanochat_lib.records import Verified


@dataclass(frozen=True)
class MoreRows:
    """Rows that were added, and a line of counts for each rewrite."""

    added: list[Judged]
    table: list[dict[str, Any]]


def more_rows(kept: Sequence[Judged], config: RunConfig, cache_dir: Path | None) -> MoreRows:
    """Return rewritten training rows that passed as their parents did.

    Args:
        kept: verified rows with their splits.
        config: `data.augment_per_example`, `verify` and `seed` are used.
        cache_dir: folder of the verdict cache.
    """
    is_wanted = config.data.augment_per_example > 0  # reading all parents for nothing takes long
    rows = [judged for judged in kept if is_wanted and judged.split == TRAIN]
    parents = [
        Parent(j.row.source_id, j.row.text, j.candidate.program, j.verified, j.candidate.edition)
        for j in rows
    ]
    found = augment(
        parents,
        config.data.augment_per_example,
        config.seed,
        config=config.verify,
        cache_dir=cache_dir,
    )
    added = [_row(rows[variant.place], variant, verified) for variant, verified in found.kept]
    return MoreRows(added, found.table())


def _row(parent: Judged, variant: Variant, verified: Verified) -> Judged:
    source_id = f"{parent.row.source_id}~{variant.rewrite}"
    row = replace(parent.row, source_id=source_id, text=variant.text)
    candidate = replace(parent.candidate, row=row, program=variant.program)
    return Judged(candidate, verified, parent.split)
