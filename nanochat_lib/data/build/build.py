"""Build a corpus: `nanochat corpus`, from archives and folders to verified rows.

Input: a `RunConfig` and a folder. Output there: `verified.parquet`, `rejected.parquet`,
`tasks.jsonl` (prompts with hidden tests), `summary.json` and `DATASET_CARD.md`; also `downloads/`
and `state.sqlite`, by which a build that was stopped or killed goes on where it was. The same
sources, settings and toolchain give the same tables byte for byte, however often the build was
killed, and whether it ran here or on a cluster.

The order of work is the one of `build_corpus`: plan, then read the next files while rustc judges
the rows of those before, then try wrong bodies on the tasks, then split and write. Reading runs in
one thread beside the judge.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nanochat_lib.config import RunConfig
from nanochat_lib.data import corpus
from nanochat_lib.data.build import finish
from nanochat_lib.data.build.plan import benchmark_texts, plan_units
from nanochat_lib.data.build.prepare import Prepared, Reader
from nanochat_lib.data.build.state import State
from nanochat_lib.data.build.tasks import try_tasks
from nanochat_lib.data.select import Benchmarks
from nanochat_lib.data.sources.candidates import Candidate
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.provenance import code_hash
from nanochat_lib.records import Level, Program, Verified
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain
from nanochat_lib.rust.verify import verify

LOT_ROWS = 1024  # of one level, judged together; memory grows with it, not with the corpus
_FILES_AT_ONCE = 64
_PORTIONS_AHEAD = 16  # that make up a lot together
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
    try_tasks(work.state, config.verify, work.tell)
    seconds["read and judge"] = time.perf_counter() - began - sum(seconds.values())
    work.tell("writing")
    summary = finish.write(config, work.state, folder, toolchain.version)
    seconds["write"] = time.perf_counter() - began - sum(seconds.values())
    return finish.write_summary(folder, summary, seconds)


def _begin(work: Work, folder: Path, toolchain: Toolchain) -> None:
    """Store the plan, or check that the one in the folder is of the same settings."""
    state, settings = work.state, _settings(work.config, toolchain.version)
    before = state.get("settings")
    if before and before != settings:
        raise WorkbenchError(
            f"{folder} holds a corpus that was begun with other settings, another compiler or "
            "another version of this project: give another folder, or delete this one."
        )
    if not before:
        config = work.config.corpus
        downloads = (
            Path(config.downloads).expanduser() if config.downloads else folder / "downloads"
        )
        units, problems = plan_units(config, toolchain, downloads, work.tell)
        state.plan(units, problems, settings)


def _settings(config: RunConfig, version: str) -> str:
    """Return everything that the tables depend on, as text."""
    data = config.data
    judging = config.verify.model_dump(exclude={"batch_size", "cluster"})
    sources = config.corpus.model_dump(exclude={"downloads"})
    parts = (sources, config.seed, judging, version)
    code = code_hash(("nanochat_lib/data", "nanochat_lib/rust"))
    rest = (data.validation_fraction, data.use_semantic_verification, code)
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
    ahead = _Ahead(reader.files(units, state.position()))
    try:
        while True:
            _fill_lot(work, ahead, len(units))
            n_waiting, level = state.waiting()
            if n_waiting:
                state.judge(_judge(work, state.next_lot(level, LOT_ROWS), level))
            elif not state.try_again():
                return
    finally:
        ahead.close()


def _fill_lot(work: Work, ahead: _Ahead, n_units: int) -> None:
    """Store what was read until a lot is full, or nothing is left to read."""
    while work.state.waiting()[0] < LOT_ROWS and (found := ahead.next_files()):
        work.state.add(found)
        work.tell(f"read {found[-1].unit + 1} of {n_units} packages")


class _Ahead:
    """A thread that reads files before they are asked for, a bounded number of them."""

    def __init__(self, files: Generator[Prepared, None, None]) -> None:
        self.files = files
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self.waiting = deque(self.thread.submit(self._read) for _ in range(_PORTIONS_AHEAD))

    def next_files(self) -> list[Prepared]:
        """Return the next files, none at the end."""
        found = self.waiting.popleft().result()
        self.waiting.append(self.thread.submit(self._read))
        return found

    def _read(self) -> list[Prepared]:
        """Return a portion: as many files as have their share of a lot, or `_FILES_AT_ONCE`."""
        found: list[Prepared] = []
        n_rows = 0
        for file in islice(self.files, _FILES_AT_ONCE):
            found.append(file)
            n_rows += len(file.rows)
            if n_rows >= LOT_ROWS // _PORTIONS_AHEAD:
                break
        return found

    def close(self) -> None:
        """End the thread when its current portion is read."""
        self.thread.shutdown(cancel_futures=True)
        self.files.close()


def _judge(
    work: Work, lot: list[tuple[int, Candidate]], level: Level
) -> list[tuple[int, Verified]]:
    """Return the verdicts of a lot, by row."""

    def on_progress(n_done: int, _: int) -> None:
        if n_done % _PROGRAMS_BETWEEN_LOOKS == 0:
            work.tell(f"judging row {lot[n_done - 1][0]}")

    programs = [Program(str(row), c.program, c.edition) for row, c in lot]
    verdicts = verify(programs, level, config=work.config.verify, on_progress=on_progress)
    return list(zip((row for row, _ in lot), verdicts, strict=True))
