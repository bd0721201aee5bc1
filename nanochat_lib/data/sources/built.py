"""What stage 1 takes from a corpus that `nanochat corpus` built: rows, and tasks for stage 3.

Input: the folder of a corpus. Output: `Candidate`s, a sample that the seed decides. They are judged
once more, by the compiler of this machine and its cache, so that stage 1 trusts no file. And
`corpus_tasks.jsonl`, split by package as the rows of this run are: the sample, and so the packages
held out, differ from those of the corpus. Tasks are not judged again; stage 3 judges what it
samples for them.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.data.rows import Judged
from nanochat_lib.data.select import HELD_PACKAGE, TRAIN, known_tasks
from nanochat_lib.data.sources.candidates import Candidate, seeded_order, task_of
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, RustSource, Task, as_row
from nanochat_lib.runs import write_atomic

CORPUS_TASKS = "corpus_tasks.jsonl"
_REBUILD = "delete the corpus and build it again for tasks (the downloads can stay)"

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


def carry_tasks(corpus: str, kept: Sequence[Judged], folder: Path) -> dict[str, Any]:
    """Write the tasks of a corpus into a stage's folder, split as the stage's rows are.

    A task is trained on when a row of its package is, held out when rows of its package are, and
    otherwise as the corpus says. A held-out one whose function a training row or task knows is
    dropped.

    Args:
        corpus: folder of the corpus; empty: there is none, and no file is written.
        kept: the rows of the stage, with their split.
        folder: of the stage.

    Returns: {n, by_kind, by_split, n_known} of what was written, and a `note` when nothing was;
        nothing at all without a corpus.

    Raises:
        WorkbenchError: a line of the corpus's tasks that is no task.
    """
    path = folder / CORPUS_TASKS
    path.unlink(missing_ok=True)
    if not corpus:
        return {}
    tasks, note = _built_tasks(Path(corpus).expanduser() / "tasks.jsonl")
    trained = {j.row.package for j in kept if j.split == TRAIN}
    splits = {j.row.package: HELD_PACKAGE for j in kept} | dict.fromkeys(trained, TRAIN)
    placed = [replace(task, split=splits.get(task.family, task.split)) for task in tasks]
    held = [task for task in placed if task.split == HELD_PACKAGE]
    texts = [j.row.text for j in kept if j.split == TRAIN]
    texts += [t.prompt + t.canonical_solution for t in placed if t.split == TRAIN]
    known = known_tasks(held, texts)
    placed = [task for task in placed if task.task_id not in known]
    if not note:
        lines = (json.dumps(as_row(task), ensure_ascii=False) + "\n" for task in placed)
        write_atomic(path, "".join(lines))
    return {
        "n": len(placed),
        "by_kind": dict(sorted(Counter(task.flags[0] for task in placed).items())),
        "by_split": dict(sorted(Counter(task.split for task in placed).items())),
        "n_known": len(known),
        "note": note,
    }


def _built_tasks(path: Path) -> tuple[list[Task], str]:
    """Return the tasks of a corpus, and why there are none that can be used."""
    if not path.is_file():
        return [], f"the corpus has no {path.name}: {_REBUILD}"
    tasks: list[Task] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            tasks.append(task_of(json.loads(line)))
        except (AttributeError, TypeError, ValueError) as error:
            raise WorkbenchError(f"{path}, line {number}: not a task ({error}).") from error
    if any(not (task.flags and task.split and task.family) for task in tasks):
        return [], f"tasks of an older version have no split and were not tried out: {_REBUILD}"
    return tasks, ""
