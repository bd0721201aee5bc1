"""One job: a batch of programs, judged by whoever takes it, here or on another machine.

Input: units, level, limits, and the surroundings that the submitter expects. Output: an `Answer`.
A job carries no path: the worker finds its own toolchain, makes its own scratch folder and its own
completion proof. Verdicts depend on compiler and sandbox, so a worker that has others refuses.

A verdict is only given when the ground held still meanwhile: the compiler's files are the same, the
scratch folder is still there, and its disk has room. Else the job is done once more, and then the
programs are UNJUDGED with the cause: a machine's trouble is never a program's failure.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Verdict, Verified
from nanochat_lib.rust.judging import batch, harness, lexing
from nanochat_lib.rust.judging.batch import Outcome, Settings, Unit
from nanochat_lib.rust.sandbox import SandboxError, sandbox_level
from nanochat_lib.rust.syntax import parses
from nanochat_lib.rust.toolchain import Toolchain, current_toolchain

ENGINE_VERSION = 2  # part of every cache key: raise it when a verdict can change
MIN_FREE_MIB = 128  # a batch of 64 test binaries takes about a tenth of it
_MIN_FREE_FILES = 1000
_ATTEMPTS = 2


@dataclass(frozen=True)
class Surroundings:
    """What verdicts depend on besides the program, the level and the limits."""

    rustc: str  # "1.95.0"
    commit: str  # of the compiler's source: nightlies of one release differ
    host: str
    sandbox: str
    engine: int = ENGINE_VERSION

    def __str__(self) -> str:
        return (
            f"rustc {self.rustc} ({self.commit[:9]}, {self.host}), sandbox {self.sandbox}, "
            f"engine {self.engine}"
        )


@dataclass(frozen=True)
class Job:
    """What travels to a worker."""

    units: tuple[Unit, ...]
    level: Level
    config: VerifyConfig
    expected: Surroundings


@dataclass(frozen=True)
class Answer:
    """What comes back: verdicts by unit key, or why the worker judges nothing."""

    verdicts: dict[int, Verified] = field(default_factory=dict)
    refusal: WorkbenchError | None = None


def surroundings_here() -> Surroundings:
    """Return what this machine judges with.

    Raises:
        WorkbenchError: there is no toolchain.
    """
    toolchain = current_toolchain()
    return Surroundings(toolchain.version, toolchain.commit, toolchain.host, sandbox_level())


def judge_job(job: Job) -> Answer:
    """Judge a job on this machine; what the user must mend comes back as a refusal."""
    cause = ""
    try:
        for _ in range(_ATTEMPTS):
            _refuse_other_surroundings(job.expected)
            verdicts, cause = _attempt(job)
            if not cause:
                return Answer(verdicts)
    except WorkbenchError as error:
        return Answer(refusal=error)
    return Answer(unjudged(job, cause))


def unjudged(job: Job, cause: str) -> dict[int, Verified]:
    """Return UNJUDGED with its cause for every unit of a job."""
    return {
        unit.key: Verified(unit.program.program_id, Verdict.UNJUDGED, job.level, detail=cause)
        for unit in job.units
    }


def _refuse_other_surroundings(expected: Surroundings) -> None:
    here = surroundings_here()
    if here != expected:
        raise WorkbenchError(
            f"A worker on {socket.gethostname()} judges by other means than those of this run, and "
            f"verdicts depend on them: expected {expected}; found {here}. Install the same "
            "toolchain and sandbox there, or leave that worker out."
        )


def _attempt(job: Job) -> tuple[dict[int, Verified], str]:
    """Return verdicts, and the cause for which they must not be believed (empty: none)."""
    try:
        with tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as scratch:
            ground = _Ground(Path(scratch))
            cause = ground.trouble()
            if cause:
                return {}, cause
            settings = settings_here(job.level, job.config)
            units = [replace(unit) for unit in job.units]  # judging writes into them
            verdicts = judge_units(units, ground.folder / "batch", settings)
            return verdicts, ground.trouble() or _lost_tools(settings)
    except OSError as error:
        return {}, f"the work folder cannot be used: {error}"


class _Ground:
    """The scratch folder under a job, which somebody may remove or fill."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.inode = scratch, scratch.stat().st_ino
        self.folder = scratch / "job"
        self.folder.mkdir()

    def trouble(self) -> str:
        """Return what is wrong with the folder now, or nothing."""
        is_same = self.scratch.is_dir() and self.scratch.stat().st_ino == self.inode
        if not is_same or not self.folder.is_dir():
            return f"the work folder {self.scratch} was removed meanwhile"
        disk = os.statvfs(self.scratch)
        free_mib = disk.f_bavail * disk.f_frsize >> 20
        has_files = not disk.f_files or disk.f_favail >= _MIN_FREE_FILES
        if free_mib < MIN_FREE_MIB or not has_files:
            return (
                f"the disk of the work folder {self.scratch} is full: {free_mib} MiB and "
                f"{disk.f_favail} files free, at least {MIN_FREE_MIB} MiB and {_MIN_FREE_FILES} "
                "are needed; set TMPDIR to a folder with more room"
            )
        return ""


def _lost_tools(settings: Settings) -> str:
    """Return which tool was taken away or replaced while it was used, or nothing."""
    if not settings.toolchain.is_unchanged():
        return f"the compiler {settings.toolchain.rustc} was replaced meanwhile"
    if not all(path.is_file() for path in settings.readable):
        harness.completion_proof.cache_clear()
        return "the completion proof was removed meanwhile"
    return ""


def settings_here(level: Level, config: VerifyConfig) -> Settings:
    """Return what compilations on this machine have in common: its toolchain, linker and proof."""
    toolchain = current_toolchain()
    settings = Settings(level, config, toolchain, _lld(toolchain))
    if level is not Level.TEST:
        return settings
    arguments, proof = harness.completion_proof(toolchain)
    return replace(settings, link_args=settings.link_args + arguments, readable=(proof,))


def _lld(toolchain: Toolchain) -> tuple[str, ...]:
    """Return arguments for the toolchain's own linker: half the CPU time of GNU ld."""
    folder = toolchain.sysroot / "lib" / "rustlib" / toolchain.host / "bin" / "gcc-ld"
    if "linux" not in toolchain.host or not (folder / "ld.lld").is_file():
        return ()
    return ("-Clink-arg=-fuse-ld=lld", f"-Clink-arg=-B{folder}")


# --- The unit of work ---------------------------------------------------------------------------


def judge_units(units: Sequence[Unit], folder: Path, settings: Settings) -> dict[int, Verified]:
    """Compile and run some units that may share a crate; never fails because of a program.

    Args:
        units: one unit, or several that `policy.py` lets compile together.
        folder: scratch folder that does not exist yet; the caller removes it.
        settings: level, limits and toolchain.

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
    return verdicts


def _judge(
    units: Sequence[Unit], folder: Path, settings: Settings, verdicts: dict[int, Verified]
) -> None:
    folder.mkdir()  # not its parents: a scratch folder that was removed must not come back
    by_key = {unit.key: unit for unit in units}
    unbalanced = [unit for unit in units if not unit.policy.is_balanced]
    verdicts |= lexing.judge_unbalanced(unbalanced, folder / "lexing", settings)
    outcome, shared = Outcome(), []
    for unit in units:
        if unit.policy.is_balanced and not unit.is_alone:
            shared.append(unit)
        elif unit.key not in verdicts:
            outcome.add(batch.compile_alone(unit, folder / f"alone{unit.key}", settings))
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
                _judge([unit], built.folder / f"again{unit.key}", settings, verdicts)


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
