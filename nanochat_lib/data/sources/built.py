"""Rows of a corpus that `nanochat corpus` built, as candidates of stage 1.

Input: the folder of a corpus. Output: `Candidate`s, a sample that the seed decides. They are judged
once more, by the compiler of this machine and its cache, so that stage 1 trusts no file.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from nanochat_lib.data.sources.candidates import Candidate, seeded_order
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, RustSource

_ROW = (
    "source_id", "text", "kind", "source", "package", "version", "path", "licence", "group",
)  # fmt: skip


def built_candidates(folder: Path, *, seed: int, most: int) -> Iterator[Candidate]:
    """Yield at most `most` verified rows of a corpus in their order.

    Raises:
        WorkbenchError: the folder holds no finished corpus.
    """
    path = folder / "verified.parquet"
    if not path.is_file():
        raise WorkbenchError(
            f"{folder} holds no verified.parquet. Build one with 'nanochat corpus --out {folder}', "
            "or set data.corpus_dir to a corpus that is finished."
        )
    table = pl.scan_parquet(path)
    try:
        ids = table.select("source_id").collect()["source_id"]
        chosen = heapq.nsmallest(most, ids, key=lambda name: seeded_order(seed, name))
        rows = table.filter(pl.col("source_id").is_in(chosen)).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise WorkbenchError(f"{path} cannot be read as a corpus: {error}") from error
    for row in rows.iter_rows(named=True):
        source = RustSource(
            **{name: row[name] for name in _ROW}, runnable=row["level"] == Level.TEST
        )
        yield Candidate(source, row["program"], row["edition"])
