"""Miri, where it is installed: does a program with unsafe code run without undefined behaviour?

Input: programs that pass their tests. Output: a `Verified` for each: PASSED when Miri interpreted
it to its end, RUN_ERROR where Miri found undefined behaviour, TIMEOUT, or
UNJUDGED where Miri cannot tell. Miri is a component of nightly toolchains; it needs a
standard library of its own, which `cargo miri setup` builds. Source: the Miri README, "Miri
environment variables" (MIRI_SYSROOT).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, SandboxError, run_sandboxed
from nanochat_lib.rust.syntax import tokens
from nanochat_lib.rust.toolchain import Toolchain

SLOWDOWN = 50  # an interpreted program gets this much more CPU time than a compiled one


@dataclass(frozen=True)
class Miri:
    """An interpreter and the standard library it needs."""

    binary: Path
    sysroot: Path


def find_miri(toolchain: Toolchain) -> Miri | None:
    """Return the toolchain's Miri; None when it or its standard library is missing."""
    binary = toolchain.sysroot / "bin" / "miri"
    sysroot = Path(os.environ.get("MIRI_SYSROOT", Path.home() / ".cache" / "miri"))
    is_ready = binary.is_file() and (sysroot / "lib" / "rustlib").is_dir()
    return Miri(binary, sysroot) if is_ready else None


def interpret(
    programs: Sequence[Program],
    miri: Miri,
    *,
    config: VerifyConfig | None = None,
    workers: int | None = None,
) -> list[Verified]:
    """Run programs in Miri, one process each, and return what it found, in their order."""
    run = partial(_interpret_one, miri=miri, config=config or VerifyConfig())
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        return list(pool.map(run, programs))


def _interpret_one(program: Program, miri: Miri, config: VerifyConfig) -> Verified:
    if any(token.text.removeprefix("r#") == "miri" for token in tokens(program.source)):
        # `cfg(miri)` would show Miri another program than the one that was tested.
        return _judged(program, Verdict.UNJUDGED, "the program can tell whether Miri runs it")
    try:
        with tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as folder:
            done = _run(program, Path(folder), miri, config)
    except (SandboxError, OSError) as error:
        return _judged(program, Verdict.UNJUDGED, str(error))
    verdict, detail = _read(done)
    return replace(_judged(program, verdict, detail), sandbox=done.sandbox, cpu_ms=done.cpu_s * 1e3)


def _run(program: Program, folder: Path, miri: Miri, config: VerifyConfig) -> Completed:
    (folder / "program.rs").write_bytes(program.source.encode())
    kind = ["--test"] if policy_of(program.source).kind == "test" else ["--crate-type=bin"]
    command = [str(miri.binary), "--sysroot", str(miri.sysroot), f"--edition={program.edition}"]
    cpu_s = SLOWDOWN * config.run_cpu_s
    return run_sandboxed(
        [*command, "-Awarnings", *kind, "program.rs"],
        work_dir=folder,
        profile="compile",
        limits=replace(COMPILE_LIMITS, cpu_s=cpu_s, wall_s=2 * cpu_s + 10),
        allow_unsandboxed=config.allow_unsandboxed,
        readable=(miri.sysroot,),
    )


def _read(done: Completed) -> tuple[Verdict, str]:
    """Return what Miri's end means; only its own report of undefined behaviour blames a program."""
    if done.ended in ("cpu_limit", "wall_limit"):
        return Verdict.TIMEOUT, f"Miri passed its {done.ended.replace('_', ' ')}"
    if done.ended == "exit" and done.returncode == 0:
        return Verdict.PASSED, ""
    errors = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line]
    reason = errors[0].strip() if errors else f"{done.ended} {done.returncode}"
    is_undefined = b"Undefined Behavior" in done.stderr
    return (Verdict.RUN_ERROR if is_undefined else Verdict.UNJUDGED), reason


def _judged(program: Program, verdict: Verdict, detail: str) -> Verified:
    return Verified(program.program_id, verdict, Level.TEST, detail=detail)
