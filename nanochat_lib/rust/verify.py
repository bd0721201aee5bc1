"""Judge Rust programs: the one door to the verification engine.

Input: `Program`s and a level. Output: a `Verified` for each. Programs are read as they come, looked
up in the cache, sorted by `policy.py` into those that may share a crate and those that may not
(`judging/desk.py`), and compiled and run in sandboxed processes (`batch.py`, `harness.py`) by
threads here or by workers anywhere (`crew.py`, `jobs.py`). rustc judges; tree-sitter only keeps
text that does not parse out of batches.

Levels: `syntax` (tree-sitter; rustc confirms an error), `check` (all of rustc's analysis), `build`
(code generation and linking too), `test` (runs the `#[test]` functions, or else `fn main`; PASSED
needs a completion proof). Equal programs are judged once. TIMEOUT and UNJUDGED are never cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Executor
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.records import Level, Program, Verified
from nanochat_lib.rust.judging.cache import VerdictCache
from nanochat_lib.rust.judging.crew import crew_for
from nanochat_lib.rust.judging.desk import SMALLEST_BATCH, Desk, Placed
from nanochat_lib.rust.judging.jobs import surroundings_here

OnProgress = Callable[[int, int], None]


def verify(
    programs: Iterable[Program],
    level: Level | str,
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> list[Verified]:
    """Judge programs and return their verdicts in the order of the input.

    Args:
        programs: complete programs; ids need not be unique.
        level: syntax, check, build or test.
        config: limits, batch size, and the cluster that judges where there is one.
        cache_dir: folder of the verdict cache, which stays here; None: no cache.
        workers: jobs at a time; None: one per CPU, or as many as the executor has workers. A
            cluster has a number of its own.
        executor: any executor of `concurrent.futures`; None: the cluster of `config`, or else
            threads here. Verdicts are the same everywhere.
        on_progress: called with (judged, known so far) as verdicts come.

    Raises:
        WorkbenchError: no toolchain, no linker, no sandbox (and no opt-out), unknown level, a
            cluster that cannot be reached, or a worker with another compiler or sandbox.
    """
    options = (config or VerifyConfig(), cache_dir, workers, executor, on_progress)
    results = _results(programs, _level(level), *options)
    return [verified for _, verified in sorted(results, key=lambda pair: pair[0])]


def verify_stream(
    programs: Iterable[Program],
    level: Level | str,
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Verified]:
    """Judge programs and yield verdicts as they come, in any order; arguments as for `verify`."""
    options = (config or VerifyConfig(), cache_dir, workers, executor, on_progress)
    return (verified for _, verified in _results(programs, _level(level), *options))


def _level(level: Level | str) -> Level:
    if level not in list(Level):
        raise WorkbenchError(f"Unknown level {level!r}.{nearest(str(level), list(Level))}")
    return Level(level)


def _results(
    programs: Iterable[Program],
    level: Level,
    config: VerifyConfig,
    cache_dir: Path | None,
    workers: int | None,
    executor: Executor | None,
    on_progress: OnProgress | None,
) -> Iterator[Placed]:
    """Yield (place in the input, verdict) as they come."""
    surroundings = surroundings_here()
    cache = VerdictCache(cache_dir) if cache_dir else None
    n_total = len(programs) if isinstance(programs, Sized) else 0
    n_done = 0
    with crew_for(executor, config, workers) as crew:
        size = config.batch_size
        if n_total:
            size = min(size, max(SMALLEST_BATCH, -(-n_total // crew.n_workers)))
        desk = Desk(level, config, surroundings, crew, cache, size)
        try:
            for ready in _feed(desk, programs):
                n_done += 1
                if on_progress:
                    on_progress(n_done, max(n_total, desk.n_taken))
                yield ready
        finally:
            desk.leave()


def _feed(desk: Desk, programs: Iterable[Program]) -> Iterator[Placed]:
    for program in programs:
        yield from desk.take(program)
    desk.send_all()
    yield from desk.collect(most_in_flight=0)
