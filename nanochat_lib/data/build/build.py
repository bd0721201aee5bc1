"""Build a corpus: `nanochat corpus`, from archives and folders to verified rows.

Input: a `RunConfig` and a folder. Output there: `verified.parquet`, `rejected.parquet`,
`tasks.jsonl` (functions with their tests), `summary.json` and `DATASET_CARD.md`; also `downloads/`
and `state.sqlite`, by which a build that was stopped or killed goes on where it was. The same
sources, settings and toolchain give the same tables byte for byte, however often the build was
killed, and whether it ran here or on a cluster.

The order of work is the one of `build_corpus`: plan, then read the next files while rustc judges
the rows of those before, then split and write. Reading runs in one thread beside the judge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nanochat_lib.config import RunConfig
from nanochat_lib.data import corpus
from nanochat_lib.data.build import finish
from nanochat_lib.data.build.plan import benchmark_texts, plan_units
from nanochat_lib.data.build.prepare import Prepared, Reader
from nanochat_lib.data.build.state import State
from nanochat_lib.data.select import Benchmarks
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Verified
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

LOT_ROWS = 4096  # judged together, and read ahead; memory grows with it, not with the corpus
_FILES_AT_ONCE = 64
_PROGRAMS_BETWEEN_LOOKS = 64


@dataclass
class Work:
    """What every step needs."""

    config: RunConfig
    state: State
    progress: Callable[[str], None] | None = None
    stop: threading.Event | None = None

    def tell(self, text: str) -> None:
        """Report progress, or end the build when a stop was asked for."""
        if self.stop is not None and self.stop.is_set():
            raise KeyboardInterrupt
        if self.progress is not None:
            self.progress(text)


def build_corpus(
    config: RunConfig,
    folder: Path,
    *,
    progress: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> dict:
    """Build a corpus in a folder, or go on with one that was begun there; return its summary.

    Args:
        config: `corpus`, `data`, `verify` and `seed` are used.
        folder: one corpus and its downloads.
        progress: called with what is being done.
        stop: when set, the build ends with KeyboardInterrupt and can go on later.

    Raises:
        WorkbenchError: no source, nothing that passes, a compile rate below
            `data.min_compile_rate`, or a folder with a corpus of other settings.
        KeyboardInterrupt: `stop` was set.
    """
    began = time.perf_counter()
    work = Work(config, State(folder, config.corpus.near_duplicate), progress, stop)
    toolchain = find_toolchain()
    shipped, given = corpus.benchmark_texts(), benchmark_texts(config.corpus.benchmark_files)
    benchmarks = Benchmarks([*shipped, *given])
    _begin(work, folder, toolchain)
    seconds = {"plan": time.perf_counter() - began}
    _read_and_judge(work, folder, benchmarks)
    seconds["read and judge"] = time.perf_counter() - began - sum(seconds.values())
    work.tell("writing")
    summary = finish.write(config, work.state, folder, toolchain.version)
    seconds["write"] = time.perf_counter() - began - sum(seconds.values())
    return finish.write_summary(folder, summary, seconds)


def _begin(work: Work, folder: Path, toolchain: object) -> None:
    """Store the plan, or check that the one in the folder is of the same settings."""
    state, settings = work.state, _settings(work.config, str(toolchain.version))
    before = state.get("settings")
    if before and before != settings:
        raise WorkbenchError(
            f"{folder} holds a corpus that was begun with other settings or another compiler: give "
            "another folder, or delete this one."
        )
    if not before:
        units, problems = plan_units(work.config.corpus, toolchain, folder / "downloads", work.tell)
        state.plan(units, problems, settings)


def _settings(config: RunConfig, version: str) -> str:
    """Return everything that the tables depend on, as text."""
    data = config.data
    judging = config.verify.model_dump(exclude={"batch_size", "cluster"})
    parts = (config.corpus, config.seed, judging, version)
    rest = (data.validation_fraction, data.use_semantic_verification)
    return repr((*parts, *rest))


def _read_and_judge(work: Work, folder: Path, benchmarks: Benchmarks) -> None:
    state, config = work.state, work.config
    units = state.units()
    reader = Reader(
        folder / "unpacked",
        benchmarks,
        config.corpus.licences == "any",
        config.data.use_semantic_verification,
    )
    files = reader.files(units, state.position())
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        ahead = thread.submit(_next_files, files)
        while True:
            ahead = _take_in(work, ahead, files, thread, len(units))
            lot = state.next_lot(LOT_ROWS)
            if not lot:
                return
            state.judge(_judge(work, lot))


def _take_in(
    work: Work,
    ahead: Future[list[Prepared]],
    files: Iterator[Prepared],
    thread: ThreadPoolExecutor,
    n_units: int,
) -> Future[list[Prepared]]:
    """Store what was read until a lot is full; leave the next read under way."""
    while work.state.n_pending() < LOT_ROWS:
        found = ahead.result()
        if not found:
            return ahead
        ahead = thread.submit(_next_files, files)
        work.state.add(found)
        work.tell(f"read {found[-1].unit + 1} of {n_units} packages")
    return ahead


def _next_files(files: Iterator[Prepared]) -> list[Prepared]:
    """Return the next files: half a lot of rows, or `_FILES_AT_ONCE` files; empty at the end."""
    found: list[Prepared] = []
    for file in islice(files, _FILES_AT_ONCE):
        found.append(file)
        if sum(len(f.rows) for f in found) >= LOT_ROWS // 2:
            break
    return found


def _judge(work: Work, lot: list) -> list[tuple[int, Verified]]:
    """Return the verdicts of a lot, by row."""
    judged: list[tuple[int, Verified]] = []

    def on_progress(n_done: int, _: int) -> None:
        if n_done % _PROGRAMS_BETWEEN_LOOKS == 0:
            work.tell(f"judging row {lot[0][0] + len(judged) + n_done}")

    for level in (Level.BUILD, Level.TEST):
        chosen = [(row, candidate) for row, candidate, wanted in lot if wanted is level]
        programs = [Program(str(row), c.program, c.edition) for row, c in chosen]
        verdicts = verify(programs, level, config=work.config.verify, on_progress=on_progress)
        judged += zip((row for row, _ in chosen), verdicts, strict=True)
    return judged
