"""Confirm generated examples: build and run several hundred of them as one program.

Input: `TinyExample`s. Output: a `Verified` for each, as the verification engine would give it. The
engine trusts no program, so it links libtest, reads the text for ways out of a batch, and unwinds
every panic. These texts are our own, made from templates that the tests of this module check
against the engine's policy. So they share one crate without libtest: a table of their test
functions, which are called one after the other after the place of each was told.

A place that was told and not followed by the next one names the example that failed, crashed or
hung; the program is started again behind it. Only PASSED is decided here. Whatever did not get
through, and every batch that does not compile, goes to the engine, which says what is wrong.
"""

from __future__ import annotations

import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.tinyrust.generate import TEST_NAME, TESTS_HEAD, TinyExample
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.batch import FLAGS, Settings
from nanochat_lib.rust.judging.cache import VerdictCache, cache_key
from nanochat_lib.rust.judging.jobs import settings_here, surroundings_here
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, Limits, run_sandboxed
from nanochat_lib.rust.verify import verify

BATCH_SIZE = 1024  # 512 to a crate cost 8 % more CPU (3.55 and 3.28 ms an example, rustc alone)
_MOST_RESTARTS = 8  # of one batch; what is left then goes to the engine
_CALLABLE_HEAD = f"pub mod tests {{\n    use super::*;\n\n    pub fn {TEST_NAME}() {{\n"
_MAIN = """
fn main() {
    let mut arguments = std::env::args().skip(1);
    let nonce = arguments.next().unwrap();
    let first: usize = arguments.next().unwrap().parse().unwrap();
    let tests: [fn(); %d] = [%s];
    for (place, test) in tests.iter().enumerate().skip(first) {
        println!("\\n{nonce} {place}");
        test();
    }
    println!("\\n{nonce} end");
}
"""
OnProgress = Callable[[int], None]


def confirm(
    examples: Iterable[TinyExample],
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[Verified]:
    """Judge examples at level `test`; the verdicts are in the order of the examples.

    Args:
        examples: read as they are judged, so that generating them costs no time of its own.
        config: limits of the engine; with a cluster, the engine judges everything there.
        cache_dir: folder of the verdict cache; None: no cache.
        workers: crates compiled at a time; None: one for each CPU.
        on_progress: called with the number of examples judged since the last call.

    Raises:
        WorkbenchError: no toolchain, no linker, or no sandbox and no opt-out.
    """
    config = config or VerifyConfig()
    if config.cluster:
        return verify(map(program_of, examples), Level.TEST, config=config, cache_dir=cache_dir)
    settings = settings_here(Level.TEST, config)
    found: list[Verified | None] = []
    rest: dict[int, Program] = {}
    memory = _Memory(config, cache_dir)
    for batch, verdicts in _in_batches(examples, settings, memory, workers or usable_cores()):
        for example, verified in zip(batch, verdicts, strict=True):
            if verified is None:
                rest[len(found)] = program_of(example)
            found.append(verified)
        if on_progress:
            on_progress(len(batch))
    judged = verify(
        list(rest.values()), Level.TEST, config=config, cache_dir=cache_dir, workers=workers
    )
    doubtful = dict(zip(rest, judged, strict=True))
    return [verified or doubtful[place] for place, verified in enumerate(found)]


def program_of(example: TinyExample) -> Program:
    """Return an example with its tests as a program of its own."""
    return Program(example.task.task_id, f"{example.text}\n{example.task.tests}")


class _Memory:
    """The verdict cache, under the engine's own keys: the program and the verdict are the same."""

    def __init__(self, config: VerifyConfig, folder: Path | None) -> None:
        self.config, self.surroundings = config, surroundings_here()
        self.cache = VerdictCache(folder) if folder else None

    def _key(self, program: Program) -> str:
        return cache_key(program, Level.TEST, self.config, self.surroundings)

    def get(self, example: TinyExample) -> Verified | None:
        """Return what is known of an example."""
        if self.cache is None:
            return None
        program = program_of(example)
        return self.cache.get(self._key(program), program, Level.TEST)

    def put(self, example: TinyExample, verified: Verified | None) -> None:
        """Keep a verdict."""
        if self.cache is not None and verified is not None and not verified.cached:
            self.cache.put(self._key(program_of(example)), verified)


_Verdicts = list[Verified | None]


def _in_batches(
    examples: Iterable[TinyExample], settings: Settings, memory: _Memory, workers: int
) -> Iterator[tuple[list[TinyExample], _Verdicts]]:
    """Yield batches in order with their verdicts; the next ones are built meanwhile."""
    waiting = iter(examples)
    in_flight: deque[tuple[list[TinyExample], _Verdicts, Future]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while batch := list(islice(waiting, BATCH_SIZE)):
            known = [memory.get(example) for example in batch]
            new = [example for example, one in zip(batch, known, strict=True) if one is None]
            in_flight.append((batch, known, pool.submit(confirm_batch, new, settings)))
            if len(in_flight) > 2 * workers:
                yield _finished(*in_flight.popleft(), memory)
        while in_flight:
            yield _finished(*in_flight.popleft(), memory)
    finally:  # somebody may stop listening: what has not begun is not begun any more
        pool.shutdown(cancel_futures=True)


def _finished(
    batch: list[TinyExample], known: _Verdicts, future: Future, memory: _Memory
) -> tuple[list[TinyExample], _Verdicts]:
    fresh = iter(future.result())
    verdicts = [one or next(fresh) for one in known]
    for example, verified in zip(batch, verdicts, strict=True):
        memory.put(example, verified)
    return batch, verdicts


def confirm_batch(examples: Sequence[TinyExample], settings: Settings) -> _Verdicts:
    """Build and run examples as one program; None for each that did not get through."""
    if not examples or not all(e.task.tests.startswith(TESTS_HEAD) for e in examples):
        return [None] * len(examples)
    with tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "crate"
        folder.mkdir()
        built = _compile(examples, folder, settings)
        if built.ended != "exit" or built.returncode:
            return [None] * len(examples)
        passed, run_cpu_s = _run(folder, len(examples), settings)
    cpu_ms = (built.cpu_s + run_cpu_s) * 1e3 / len(examples)
    return [
        _passed(example, built.sandbox, cpu_ms) if place in passed else None
        for place, example in enumerate(examples)
    ]


def _passed(example: TinyExample, sandbox: str, cpu_ms: float) -> Verified:
    return Verified(
        example.task.task_id,
        Verdict.PASSED,
        Level.TEST,
        sandbox=sandbox,
        cpu_ms=cpu_ms,
        n_tests=1,
    )


def _compile(examples: Sequence[TinyExample], folder: Path, settings: Settings) -> Completed:
    modules = [
        f"mod m{place} {{\n{example.text}\n"
        f"{example.task.tests.replace(TESTS_HEAD, _CALLABLE_HEAD, 1)}}}\n"
        for place, example in enumerate(examples)
    ]
    calls = ", ".join(f"m{place}::tests::{TEST_NAME}" for place in range(len(examples)))
    (folder / "crate.rs").write_text("".join(modules) + _MAIN % (len(examples), calls))
    # A panic ends the program anyway; without landing pads rustc writes a tenth less code.
    linking = [argument for argument in settings.link_args if "lld" in argument]
    command = [settings.toolchain.rustc, "--edition=2021", *FLAGS, "-Cpanic=abort", *linking]
    cpu_s = 2.0 + 0.06 * len(examples)
    return run_sandboxed(
        [*command, "-o", "crate", "crate.rs"],
        work_dir=folder,
        profile="compile",
        limits=replace(COMPILE_LIMITS, cpu_s=cpu_s, wall_s=5 * cpu_s + 10),
        allow_unsandboxed=settings.config.allow_unsandboxed,
    )


def _run(folder: Path, n: int, settings: Settings) -> tuple[set[int], float]:
    """Return the places of the examples that passed, and the CPU seconds of all runs."""
    config = settings.config
    limits = Limits(
        config.run_cpu_s, 4 * config.run_cpu_s + 2, config.memory_mib, config.max_output_kib
    )
    passed: set[int] = set()
    first, cpu_s = 0, 0.0
    for _ in range(_MOST_RESTARTS):
        nonce = secrets.token_hex(8)
        done = run_sandboxed(
            [folder / "crate", nonce, str(first)],
            work_dir=folder,
            profile="run",
            limits=limits,
            allow_unsandboxed=config.allow_unsandboxed,
            env={"RUST_BACKTRACE": "0"},
        )
        cpu_s += done.cpu_s
        told = _told(done.stdout, nonce)
        if told[-1:] == ["end"] and done.ended == "exit" and done.returncode == 0:
            return passed | set(range(first, n)), cpu_s
        places = [int(word) for word in told if word != "end"]
        if not places:
            break
        passed |= set(range(first, places[-1]))  # each of them came back, or there were no next
        first = places[-1] + 1
        if first >= n:
            break
    return passed, cpu_s


def _told(stdout: bytes, nonce: str) -> list[str]:
    """Return what the program told: places in order, and "end" when it came to its end."""
    lines = (line.split() for line in stdout.decode("utf-8", "replace").splitlines())
    return [words[1] for words in lines if len(words) == 2 and words[0] == nonce]
