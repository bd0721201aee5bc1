"""Run what was built, and believe it only with a completion proof.

Input: `Built` groups from `batch.py`. Output: verdicts. The program under test is not trusted to
report about itself: `exit(0)`, an `.init_array` entry or a printed "test result: ok" would all look
like success. So every binary is linked with a small object of ours whose `main` wraps the
program's: it takes a fresh nonce out of the environment before the program starts, calls the real
`main`, and prints nonce and status once that has *returned*. libtest's `main` returns only when
every selected test passed. PASSED needs the proof, and exit status 0 from the kernel.

A batch is one libtest process. Failing tests leave and the rest runs again until there is a proof;
a crash or a timeout is charged to nobody: the program whose test was running is run by itself.
Programs that could write raw output, exit or reach memory (`policy.own_process`) never share a
process: each has one of its own, in a folder of its own, from the same binary.

What remains: the nonce lies in the memory of the process, so code with `unsafe` (or unsafe
attributes) that searches its own stack for it could forge the proof. Safe code cannot: the
environment is wiped before it runs, and the sandbox denies /proc. `semantics.semantic_ok` therefore
accepts no unsafe code.
"""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Verdict, Verified
from nanochat_lib.rust.judging.batch import Built, Settings, Unit, verified_as
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, Limits, run_sandboxed
from nanochat_lib.rust.toolchain import Toolchain

_NONCE_NAME = "COMPLETION_NONCE"
# `--wrap=main` makes the C runtime call `__wrap_main`, and `__real_main` the program's own.
_PROOF_SOURCE = r"""
#![no_std]
use core::ffi::{c_char, c_int};

extern "C" {
    fn __real_main(argc: c_int, argv: *const *const c_char) -> c_int;
    fn write(fd: c_int, data: *const u8, n: usize) -> isize;
}

const NAME: &[u8; 17] = b"COMPLETION_NONCE=";

/// Copies the nonce out of the environment, wipes it there and unlinks the entry.
unsafe fn take_nonce(environment: *mut *mut u8, proof: *mut u8) {
    let mut entry = environment;
    while !(*entry).is_null() {
        let mut at = 0;
        while at < 17 && *(*entry).add(at) == *NAME.as_ptr().add(at) {
            at += 1;
        }
        if at == 17 {
            let mut i = 0;
            while *(*entry).add(i) != 0 {
                if i >= 17 && i < 17 + 32 {
                    *proof.add(i - 17) = *(*entry).add(i);
                }
                core::ptr::write_volatile((*entry).add(i), 0);
                i += 1;
            }
            while !(*entry).is_null() {
                *entry = *entry.add(1);
                entry = entry.add(1);
            }
            return;
        }
        entry = entry.add(1);
    }
}

#[no_mangle]
pub unsafe extern "C" fn __wrap_main(
    argc: c_int,
    argv: *const *const c_char,
    environment: *mut *mut u8,
) -> c_int {
    let mut proof = [b'-'; 35];
    take_nonce(environment, proof.as_mut_ptr());
    let status = __real_main(argc, argv);
    *proof.as_mut_ptr().add(33) = if status == 0 { b'0' } else { b'1' };
    *proof.as_mut_ptr().add(34) = b'\n';
    write(2, b"\n".as_ptr(), 1);
    write(2, proof.as_ptr(), 35);
    status
}
"""
_RESULT = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)\b.*$")
_STARTED = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. ")
_ANNOUNCED = re.compile(r"^running (\d+) tests?$", re.MULTILINE)
_FAILURE = re.compile(r"^---- (\S+) stdout ----$", re.MULTILINE)
_PANIC = re.compile(r"^thread '.*' (?:\(\d+\) )?panicked at .*$", re.MULTILINE)
_LISTED = re.compile(r"^\S.*: test$", re.MULTILINE)
_MAX_DETAIL = 400
_BATCH_CPU_S = 1.0  # a batch of healthy tests needs far less


@dataclass(frozen=True)
class _Report:
    """What libtest's output says; only believed for programs that cannot write it themselves."""

    results: dict[str, str]  # test path -> "ok" | "FAILED" | "ignored"
    running: str  # the test whose result is missing, or empty
    is_complete: bool  # every announced test has its result
    failures: dict[str, str]  # test path -> panic message


@cache
def completion_proof(toolchain: Toolchain) -> tuple[tuple[str, ...], Path]:
    """Return rustc arguments that link the completion proof, and its object, built once.

    The sandbox must be allowed to read the object when it links.
    """
    folder = Path(tempfile.mkdtemp(prefix="nanochat-proof-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "proof.rs").write_text(_PROOF_SOURCE)
    command = [toolchain.rustc, "--edition=2021", "--crate-type=lib", "--emit=obj"]
    command += ["-Copt-level=2", "-Cpanic=abort", "-o", "proof.o", "proof.rs"]
    done = run_sandboxed(
        command,
        work_dir=folder, profile="compile", limits=COMPILE_LIMITS, allow_unsandboxed=True,
    )  # fmt: skip
    if done.returncode:
        raise WorkbenchError(
            f"rustc {toolchain.version} could not build the completion proof: expected an object "
            f"file, found: {done.stderr.decode(errors='replace')[:_MAX_DETAIL]}"
        )
    proof = folder / "proof.o"
    return ("-Clink-arg=-Wl,--wrap=main", f"-Clink-arg={proof}"), proof


# --- One process ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One process that ended, and whether its `main` returned 0 with proof."""

    done: Completed
    is_proven: bool

    @property
    def stdout(self) -> str:
        """Return what the process wrote, as text."""
        return self.done.stdout.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Return its messages, as text."""
        return self.done.stderr.decode("utf-8", "replace")


def _run(built: Built, arguments: Sequence[str], settings: Settings, limits: Limits) -> _Run:
    nonce = secrets.token_hex(16)
    done = run_sandboxed(
        [str(built.binary), *arguments],
        work_dir=_run_folder(built),
        profile="run",
        limits=limits,
        allow_unsandboxed=settings.config.allow_unsandboxed,
        env={_NONCE_NAME: nonce, "RUST_BACKTRACE": "0"},
    )
    proof = f"\n{nonce}-0\n".encode()
    is_proven = done.ended == "exit" and done.returncode == 0 and proof in done.stderr
    return _Run(done, is_proven)


def _run_folder(built: Built) -> Path:
    """Return an empty folder to run in: the sources hold the names that a batch keeps secret."""
    return Path(tempfile.mkdtemp(prefix="run", dir=built.folder))


def _limits(settings: Settings) -> Limits:
    """Return the limits of one program that runs by itself."""
    config = settings.config
    return Limits(
        cpu_s=config.run_cpu_s,
        wall_s=4 * config.run_cpu_s + 2,
        memory_mib=config.memory_mib,
        output_kib=config.max_output_kib,
    )


def built_only(unit: Unit, built: Built, settings: Settings) -> Verified:
    """Return the verdict on a unit that was only to be built or checked."""
    return _judged(unit, Verdict.PASSED, settings, built, "")


# --- One program ------------------------------------------------------------------------------


def run_alone(built: Built, settings: Settings) -> Verified:
    """Judge the one program of a binary of its own."""
    (unit,) = built.units
    if unit.policy.kind == "lib":
        return _judged(unit, Verdict.UNJUDGED, settings, built, "nothing to run: no test, no main")
    if unit.policy.kind == "main":
        run = _run(built, [], settings, _limits(settings))
        unit.cpu_ms += run.done.cpu_s * 1e3
        return _judge_process(unit, run, settings, n_tests=0)
    return _run_listed_tests(built, unit, [], settings)


def _run_listed_tests(
    built: Built, unit: Unit, chosen: Sequence[str], settings: Settings
) -> Verified:
    """Run the chosen tests of a program whose own output is not believed, after listing them.

    The list is proven too: a program that runs code before `main` cannot shorten it unseen.
    """
    listing = _run(built, ["--list", *chosen], settings, _limits(settings))
    unit.cpu_ms += listing.done.cpu_s * 1e3
    if not listing.is_proven:
        return _judge_process(unit, listing, settings, n_tests=0)
    return _run_tests(built, unit, chosen, len(_LISTED.findall(listing.stdout)), settings)


def _run_tests(
    built: Built, unit: Unit, chosen: Sequence[str], n_listed: int | None, settings: Settings
) -> Verified:
    run = _run(built, ["--test-threads=1", *chosen], settings, _limits(settings))
    unit.cpu_ms += run.done.cpu_s * 1e3
    results = _read_report(run.stdout).results.values()
    n_ignored = sum(result == "ignored" for result in results)
    n_tests = len(results) if n_listed is None else n_listed
    if run.is_proven:
        reason = _missing_tests(unit, n_tests, n_ignored)
        if reason:
            return _judged(unit, Verdict.TEST_FAILED, settings, built, reason)
    return _judge_process(unit, run, settings, n_tests=max(0, n_tests - n_ignored))


def _missing_tests(unit: Unit, n_tests: int, n_ignored: int) -> str:
    """Return why a run without failures proves nothing: a program may hide its tests by `cfg`."""
    if n_tests < unit.policy.n_tests:
        return f"{unit.policy.n_tests - n_tests} of {unit.policy.n_tests} tests were left out"
    return "" if n_tests > n_ignored else "no test ran"


def _judge_process(unit: Unit, run: _Run, settings: Settings, *, n_tests: int) -> Verified:
    """Return the verdict on a process that ran one program."""
    done = run.done
    if run.is_proven:
        verdict, detail = Verdict.PASSED, ""
    elif done.ended in ("cpu_limit", "wall_limit"):
        verdict, detail = Verdict.TIMEOUT, f"the program passed its {_words(done.ended)}"
    elif done.ended not in ("exit", "signal"):
        verdict, detail = Verdict.RESOURCE_LIMIT, f"the program passed its {_words(done.ended)}"
    elif done.returncode < 0 and b"memory allocation of" in done.stderr:
        verdict, detail = Verdict.RESOURCE_LIMIT, "the program ran out of memory"
    elif done.returncode == 101 and (failures := _read_report(run.stdout).failures):
        is_main = unit.policy.kind == "main"
        verdict = Verdict.RUN_ERROR if is_main else Verdict.TEST_FAILED
        detail = next(iter(failures.values()))
    else:
        verdict, detail = Verdict.RUN_ERROR, _how_it_ended(run)
    return replace(verified_as(unit, verdict, settings, done, (), detail), n_tests=n_tests)


def _words(ended: str) -> str:
    return {"cpu_limit": "limit of CPU time", "wall_limit": "limit of time"}.get(
        ended, ended.replace("_", " ")
    )


def _how_it_ended(run: _Run) -> str:
    code = run.done.returncode
    if code < 0:
        is_overflow = "has overflowed its stack" in run.stderr
        return "stack overflow" if is_overflow else f"killed by signal {-code}"
    if code == 0:
        return "left with status 0 before the end: no completion proof"
    return _panic_text(run.stderr) or f"left with status {code}"


def _judged(unit: Unit, verdict: Verdict, settings: Settings, built: Built, why: str) -> Verified:
    return Verified(
        program_id=unit.program.program_id,
        verdict=verdict,
        level=settings.level,
        detail=why,
        sandbox=built.sandbox,
        cpu_ms=unit.cpu_ms,
    )


# --- A batch ----------------------------------------------------------------------------------


def run_batch(built: Built, settings: Settings) -> tuple[dict[int, Verified], list[Unit]]:
    """Judge the programs of one test binary.

    Returns:
        the verdicts by unit key, and the units that must be compiled alone to be judged: a `main`
        that crashed as a test (its stack is smaller there), or output nobody can vouch for.
    """
    if built.units[0].policy.kind == "lib":
        why = "nothing to run: no test, no main"
        return {u.key: _judged(u, Verdict.UNJUDGED, settings, built, why) for u in built.units}, []
    verdicts: dict[int, Verified] = {}
    doubtful: list[Unit] = []
    waiting = [unit for unit in built.units if not unit.policy.own_process]
    for unit in built.units:
        if unit.policy.own_process:
            _keep(unit, _run_by_itself(built, unit, settings), verdicts, doubtful)
    limits = _limits(settings)
    limits = replace(limits, cpu_s=min(limits.cpu_s, _BATCH_CPU_S), wall_s=limits.wall_s / 2)
    while waiting:
        gone = [unit for unit in built.units if unit not in waiting]
        arguments = ["--test-threads=1", *(f"--skip={unit.module}::" for unit in gone)]
        run = _run(built, arguments, settings, limits)
        for unit in waiting:
            unit.cpu_ms += run.done.cpu_s * 1e3 / len(waiting)
        report = _read_report(run.stdout)
        if run.is_proven and report.is_complete:
            verdicts |= {unit.key: _pass(unit, report, run, settings) for unit in waiting}
            break
        left = list(_leaving(waiting, report, run))
        for unit in left or waiting:
            verdict = _fail(unit, report, run, settings) if left else None
            _keep(unit, verdict or _run_by_itself(built, unit, settings), verdicts, doubtful)
        waiting = [unit for unit in waiting if left and unit not in left]
    return verdicts, doubtful


def _keep(
    unit: Unit, verdict: Verified | None, verdicts: dict[int, Verified], doubtful: list[Unit]
) -> None:
    if verdict is None:
        doubtful.append(unit)
    else:
        verdicts[unit.key] = verdict


def _leaving(waiting: Sequence[Unit], report: _Report, run: _Run) -> Iterator[Unit]:
    """Yield the units that are judged by this run or cannot stay in the process."""
    has_finished = run.done.ended == "exit" and run.done.returncode == 101 and report.is_complete
    for unit in waiting:
        prefix = f"{unit.module}::"
        if has_finished:
            if any(r == "FAILED" for n, r in report.results.items() if n.startswith(prefix)):
                yield unit
        elif report.running.startswith(prefix):
            yield unit


def _pass(unit: Unit, report: _Report, run: _Run, settings: Settings) -> Verified:
    results = [r for name, r in report.results.items() if name.startswith(f"{unit.module}::")]
    n_ignored = sum(result == "ignored" for result in results)
    is_main = unit.policy.kind == "main"
    reason = "" if is_main and results else _missing_tests(unit, len(results), n_ignored)
    verdict = Verdict.TEST_FAILED if reason else Verdict.PASSED
    n_tests = 0 if is_main else len(results) - n_ignored
    return replace(verified_as(unit, verdict, settings, run.done, (), reason), n_tests=n_tests)


def _fail(unit: Unit, report: _Report, run: _Run, settings: Settings) -> Verified | None:
    """Return the verdict of a unit whose tests failed in a run that came to its end."""
    own = {n: r for n, r in report.results.items() if n.startswith(f"{unit.module}::")}
    failed = [name for name, result in own.items() if result == "FAILED"]
    if not report.is_complete or run.done.ended != "exit" or not failed:
        return None
    is_main = unit.policy.kind == "main"
    verdict = Verdict.RUN_ERROR if is_main else Verdict.TEST_FAILED
    detail = report.failures.get(failed[0], "").replace(f"{unit.module}.rs", "program.rs")
    judged = verified_as(unit, verdict, settings, run.done, (), detail)
    return replace(judged, n_tests=0 if is_main else len(own))


def _run_by_itself(built: Built, unit: Unit, settings: Settings) -> Verified | None:
    """Run one program of a batch in a process of its own; None: it must be compiled alone too."""
    chosen = [f"{unit.module}::"]
    if unit.policy.kind == "test" and unit.policy.own_process:
        return _run_listed_tests(built, unit, chosen, settings)
    if unit.policy.kind == "test":
        return _run_tests(built, unit, chosen, None, settings)
    run = _run(built, ["--test-threads=1", *chosen], settings, _limits(settings))
    unit.cpu_ms += run.done.cpu_s * 1e3
    if run.done.ended == "signal":  # a thread's stack is smaller than that of a real `main`
        return None
    return _judge_process(unit, run, settings, n_tests=0)


# --- libtest's output -------------------------------------------------------------------------


def _read_report(stdout: str) -> _Report:
    """Read libtest's output for one thread: it names a test before it runs it."""
    head, _, tail = stdout.partition("\nfailures:\n")
    results: dict[str, str] = {}
    running, n_repeated = "", 0
    for line in head.splitlines():
        result, started = _RESULT.match(line), _STARTED.match(line)
        if result:
            n_repeated += result.group(1) in results
            results[result.group(1)] = result.group(2)
            running = ""
        elif started:  # what follows on this line or below comes from a dying process
            running = started.group(1)
    announced = _ANNOUNCED.search(head)
    n_announced = int(announced.group(1)) if announced else -1
    is_complete = len(results) == n_announced and not n_repeated and "\ntest result: " in stdout
    return _Report(results, running, is_complete, _read_failures(tail))


def _read_failures(text: str) -> dict[str, str]:
    places = list(_FAILURE.finditer(text))
    ends = [*(place.start() for place in places), len(text)][1:]
    return {
        place.group(1): _panic_text(text[place.end() : end])
        for place, end in zip(places, ends, strict=True)
    }


def _panic_text(text: str) -> str:
    """Return the message of the last panic in a captured output, without its place."""
    panics = list(_PANIC.finditer(text))
    message = text[panics[-1].end() :] if panics else text
    return re.split(r"\nnote: run with|\n\n", message.strip())[0].strip()[:_MAX_DETAIL]
