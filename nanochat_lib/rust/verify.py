"""Judge Rust programs: the one door to the verification engine.

Input: `Program`s and a level. Output: a `Verified` for each. Programs are read as they come, looked
up in the cache, sorted by `policy.py` into those that may share a crate and those that may not, and
compiled and run by threads that wait for sandboxed processes (`batch.py`, `harness.py`).
rustc judges; tree-sitter only keeps text that does not parse out of batches.

Levels: `syntax` (tree-sitter; rustc confirms an error), `check` (all of rustc's analysis), `build`
(code generation and linking too), `test` (runs the `#[test]` functions, or else `fn main`; PASSED
needs a completion proof). Equal programs are judged once. TIMEOUT and UNJUDGED are never cached.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.judging import batch, harness, lexing
from nanochat_lib.rust.judging.batch import Outcome, Settings, Unit
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.sandbox import SandboxError, sandbox_level
from nanochat_lib.rust.syntax import parses
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain

ENGINE_VERSION = 1  # part of every cache key: raise it when a verdict can change
MAX_SOURCE_BYTES = 1_000_000
SMALLEST_BATCH = 16  # below this, sharing rustc's start saves too little to wait for
_NEVER_CACHED = frozenset((Verdict.UNJUDGED, Verdict.TIMEOUT))
_IN_FLIGHT_PER_WORKER = 2


def verify(
    programs: Iterable[Program],
    level: Level | str,
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Verified]:
    """Judge programs and return their verdicts in the order of the input.

    Args:
        programs: complete programs; ids need not be unique.
        level: syntax, check, build or test.
        config: limits and batch size.
        cache_dir: folder of the verdict cache; None: no cache.
        workers: threads that compile and run; None: one per CPU.
        on_progress: called with (judged, known so far) as verdicts come.

    Raises:
        WorkbenchError: no toolchain, no linker, no sandbox (and no opt-out), unknown level.
    """
    settings = _settings(level, config)
    results = _results(programs, settings, cache_dir, workers, on_progress)
    return [verified for _, verified in sorted(results, key=lambda pair: pair[0])]


def verify_stream(
    programs: Iterable[Program],
    level: Level | str,
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Verified]:
    """Judge programs and yield verdicts as they come, in any order; arguments as for `verify`."""
    settings = _settings(level, config)
    return (v for _, v in _results(programs, settings, cache_dir, workers, on_progress))


def _settings(level: Level | str, config: VerifyConfig | None) -> Settings:
    if level not in list(Level):
        raise WorkbenchError(f"Unknown level {level!r}.{nearest(str(level), list(Level))}")
    toolchain = find_toolchain()
    settings = Settings(Level(level), config or VerifyConfig(), toolchain, _lld(toolchain))
    if settings.level is not Level.TEST:
        return settings
    arguments, proof = harness.completion_proof(toolchain)
    return replace(settings, link_args=settings.link_args + arguments, readable=(proof,))


def _lld(toolchain: Toolchain) -> tuple[str, ...]:
    """Return arguments for the toolchain's own linker: half the CPU time of GNU ld."""
    folder = toolchain.sysroot / "lib" / "rustlib" / toolchain.host / "bin" / "gcc-ld"
    if "linux" not in toolchain.host or not (folder / "ld.lld").is_file():
        return ()
    return ("-Clink-arg=-fuse-ld=lld", f"-Clink-arg=-B{folder}")


def _results(
    programs: Iterable[Program],
    settings: Settings,
    cache_dir: Path | None,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, Verified]]:
    """Yield (place in the input, verdict) as they come."""
    n_workers = workers or usable_cores()
    n_total = len(programs) if isinstance(programs, Sized) else 0
    batch_size = settings.config.batch_size
    if n_total:
        batch_size = min(batch_size, max(SMALLEST_BATCH, -(-n_total // n_workers)))
    cache = VerdictCache(cache_dir) if cache_dir else None
    n_seen = n_done = 0
    with (
        tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as scratch,
        ThreadPoolExecutor(n_workers, thread_name_prefix="verify") as pool,
    ):
        desk = _Desk(settings, cache, pool, Path(scratch), batch_size, n_workers)
        try:
            for ready in _feed(desk, programs):
                n_seen, n_done = desk.n_taken, n_done + 1
                if on_progress:
                    on_progress(n_done, max(n_total, n_seen))
                yield ready
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _feed(desk: _Desk, programs: Iterable[Program]) -> Iterator[tuple[int, Verified]]:
    for program in programs:
        yield from desk.take(program)
    desk.send_all()
    yield from desk.collect(most_in_flight=0)


class VerdictCache:
    """An append-only file of verdicts, one JSON line each, keyed by everything they depend on.

    A line is written with one call under a file lock, so processes may share the file; a line cut
    by a crash is skipped when the file is read.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "verdicts.jsonl"
        self.entries: dict[str, bytes] = {}
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                if line.startswith(b'{"key":"') and line.endswith(b"}"):
                    self.entries[line[8:72].decode("ascii", "replace")] = line

    def get(self, key: str, program: Program, level: Level) -> Verified | None:
        """Return a stored verdict under the program's own id."""
        line = self.entries.get(key)
        try:
            row = json.loads(line) if line else None
        except ValueError:
            row = None
        if not isinstance(row, dict) or row.get("key") != key:
            return None
        return Verified(
            program_id=program.program_id,
            verdict=Verdict(row["verdict"]),
            level=level,
            diagnostics=tuple(Diagnostic(**entry) for entry in row["diagnostics"]),
            detail=row["detail"],
            sandbox=row["sandbox"],
            cpu_ms=row["cpu_ms"],
            cached=True,
            n_tests=row["n_tests"],
        )

    def put(self, key: str, verified: Verified) -> None:
        """Append a verdict, unless another run could decide it otherwise."""
        if verified.verdict in _NEVER_CACHED or key in self.entries:
            return
        row = {"key": key} | {
            name: value
            for name, value in asdict(verified).items()
            if name not in ("program_id", "level", "cached")
        }
        line = json.dumps(row, separators=(",", ":")).encode()
        self.entries[key] = line
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_torn = file.tell() > 0 and not _ends_with_newline(self.path)
            file.write((b"\n" if is_torn else b"") + line + b"\n")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@dataclass
class _Desk:
    """Where programs are sorted: known, waiting for a batch, in flight."""

    settings: Settings
    cache: VerdictCache | None
    pool: ThreadPoolExecutor
    scratch: Path
    batch_size: int
    n_workers: int
    n_taken: int = 0
    buckets: dict[tuple[str, bool], list[Unit]] = field(default_factory=dict)
    in_flight: set[Future[dict[int, Verified]]] = field(default_factory=set)
    askers: dict[str, list[tuple[int, Program]]] = field(default_factory=dict)  # by cache key
    known: dict[str, Verified] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)  # unit key -> cache key

    def take(self, program: Program) -> Iterator[tuple[int, Verified]]:
        """Answer for a program, or put it in line; yield whatever is ready."""
        place, key = self.n_taken, cache_key(program, self.settings)
        self.n_taken += 1
        known = self._look_up(key, program)
        if known is not None:
            yield place, known
        elif key in self.askers:
            self.askers[key].append((place, program))
        else:
            self.askers[key] = [(place, program)]
            self.keys[place] = key
            self._put_in_line(Unit(place, program, policy_of(program.source, program.edition)))
        yield from self.collect(most_in_flight=_IN_FLIGHT_PER_WORKER * self.n_workers)

    def _look_up(self, key: str, program: Program) -> Verified | None:
        if key in self.known:
            return replace(self.known[key], program_id=program.program_id)
        cached = self.cache.get(key, program, self.settings.level) if self.cache else None
        return cached or _without_rustc(program, self.settings)

    def _put_in_line(self, unit: Unit) -> None:
        level, policy = self.settings.level, unit.policy
        reason = policy.run_alone if level is Level.TEST else policy.compile_alone
        unit.is_alone = bool(reason)
        if unit.is_alone:
            self._send([unit])
            return
        is_library = policy.kind == "lib" and level is not Level.CHECK
        waiting = self.buckets.setdefault((unit.program.edition, is_library), [])
        waiting.append(unit)
        if len(waiting) >= self.batch_size:
            self._send(waiting[:])
            waiting.clear()

    def _send(self, units: list[Unit]) -> None:
        folder = self.scratch / f"job{units[0].key}"
        self.in_flight.add(self.pool.submit(judge_units, units, folder, self.settings))

    def send_all(self) -> None:
        """Send the batches that are not full: no more programs will come."""
        for waiting in self.buckets.values():
            size = max(SMALLEST_BATCH, -(-len(waiting) // self.n_workers))
            for start in range(0, len(waiting), size):
                self._send(waiting[start : start + size])
        self.buckets.clear()

    def collect(self, *, most_in_flight: int) -> Iterator[tuple[int, Verified]]:
        """Yield verdicts of finished jobs; wait while more than this many are in flight."""
        while len(self.in_flight) > most_in_flight:
            finished, self.in_flight = wait(self.in_flight, return_when=FIRST_COMPLETED)
            for future in finished:
                for unit_key, verified in future.result().items():
                    yield from self._answer(self.keys.pop(unit_key), verified)

    def _answer(self, key: str, verified: Verified) -> Iterator[tuple[int, Verified]]:
        self.known[key] = verified
        if self.cache:
            self.cache.put(key, verified)
        for place, program in self.askers.pop(key):
            yield place, replace(verified, program_id=program.program_id)


def cache_key(program: Program, settings: Settings) -> str:
    """Return the SHA-256 of everything that a verdict depends on."""
    config = settings.config.model_dump(exclude={"batch_size", "allow_unsandboxed"})
    parts = (ENGINE_VERSION, program.source, program.edition, settings.level, config)
    parts += (settings.toolchain.version, settings.toolchain.host, batch.FLAGS, sandbox_level())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _without_rustc(program: Program, settings: Settings) -> Verified | None:
    """Return the verdict on text that rustc need not or cannot be asked about."""
    verdict, detail = None, ""
    if len(program.source) > MAX_SOURCE_BYTES:
        verdict = Verdict.RESOURCE_LIMIT
        detail = f"rustc was not asked: {len(program.source):,} characters, at most 1,000,000"
    elif "\0" in program.source:
        verdict, detail = Verdict.PARSE_ERROR, "the text holds a NUL character"
    elif any("\ud800" <= char <= "\udfff" for char in _not_ascii(program.source)):
        verdict, detail = Verdict.PARSE_ERROR, "the text is not valid UTF-8"
    elif settings.level is Level.SYNTAX and parses(program.source):
        verdict = Verdict.PASSED
    if verdict is None:
        return None
    return Verified(program.program_id, verdict, settings.level, detail=detail)


def _not_ascii(text: str) -> str:
    return "" if text.isascii() else text


# --- One job ------------------------------------------------------------------------------------


def judge_units(units: list[Unit], folder: Path, settings: Settings) -> dict[int, Verified]:
    """Compile and run some units that may share a crate; never fails because of a program.

    Returns:
        a verdict for every unit by its key; UNJUDGED with the cause where the machine failed.
    """
    verdicts: dict[int, Verified] = {}
    try:
        _judge(units, folder, settings, verdicts)
    except (SandboxError, OSError) as error:
        for unit in units:
            if unit.key not in verdicts:
                name, level = unit.program.program_id, settings.level
                verdicts[unit.key] = Verified(name, Verdict.UNJUDGED, level, detail=str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return verdicts


def _judge(
    units: list[Unit], folder: Path, settings: Settings, verdicts: dict[int, Verified]
) -> None:
    by_key = {unit.key: unit for unit in units}
    unbalanced = [unit for unit in units if not unit.policy.is_balanced]
    verdicts |= lexing.judge_unbalanced(unbalanced, folder / "lexing", settings)
    alone = [unit for unit in units if unit.is_alone or unit in unbalanced]
    outcome = Outcome()
    for unit in alone:
        if unit.key not in verdicts:
            outcome.add(batch.compile_alone(unit, folder / f"alone{unit.key}", settings))
    shared = [unit for unit in units if unit not in alone]
    if shared:
        outcome.add(batch.compile_batch(shared, folder / "batch", settings))
    for key, verified in outcome.judged.items():
        verdicts[key] = _name_parse_error(by_key[key], verified)
    for built in outcome.built:
        if settings.level is not Level.TEST:
            verdicts |= {
                unit.key: harness.built_only(unit, built, settings) for unit in built.units
            }
        elif built.is_alone:
            verdicts[built.units[0].key] = harness.run_alone(built, settings)
        else:
            judged, doubtful = harness.run_batch(built, settings)
            verdicts |= judged
            for unit in doubtful:
                unit.is_alone = True
                _judge([unit], built.folder / "again", settings, verdicts)


def _name_parse_error(unit: Unit, verified: Verified) -> Verified:
    """Return the verdict as PARSE_ERROR where tree-sitter and rustc both say so."""
    if verified.verdict is not Verdict.COMPILE_ERROR:
        return verified
    is_grammar = batch.is_parse_error(verified.diagnostics)
    if is_grammar and not parses(unit.program.source):
        return replace(verified, verdict=Verdict.PARSE_ERROR)
    # Below `check` nothing but the grammar counts, and rustc read this text to its end.
    is_syntax = verified.level is Level.SYNTAX
    return replace(verified, verdict=Verdict.PASSED) if is_syntax else verified
