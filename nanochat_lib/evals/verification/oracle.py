"""One plain rustc per program, and plain cargo: the judges that the engine must agree with.

Nothing of the engine is used here but the kind of a program (tests, `fn main`, library): no batch,
no sandbox, no proof, no cache. Programs run as they are, in a scratch folder, under limits of time:
only for programs whose origin is known. `python -m nanochat_lib.evals.verification.oracle` judges
a mixed corpus, mutants of whole programs and the adversarial fixtures on both sides and prints the
programs that differ; those whose own outcome changes from run to run are declared apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from nanochat_lib.evals.verification.corpus import mixed_corpus, mutants_of
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

# What an outsider sees of a verdict: did it compile, did what was built end well.
Outcome = Literal["not built", "failed", "passed", "stopped"]
_OUTCOMES: dict[Verdict, Outcome] = {
    Verdict.PARSE_ERROR: "not built",
    Verdict.COMPILE_ERROR: "not built",
    Verdict.BUILD_ERROR: "not built",
    Verdict.RUN_ERROR: "failed",
    Verdict.TEST_FAILED: "failed",
    Verdict.TIMEOUT: "stopped",
    Verdict.RESOURCE_LIMIT: "stopped",
    Verdict.PASSED: "passed",
}
_KINDS = {"test": "--test", "main": "--crate-type=bin", "lib": "--crate-type=lib"}
_RUN_CPU_S, _RUN_WALL_S, _RUN_KIB = 2, 10, 1 << 20
# The limits are set by a shell: a fork of this process is larger than they allow, and dies of them.
_LIMITS = f"ulimit -St {_RUN_CPU_S} && ulimit -Ht {_RUN_CPU_S + 1} && ulimit -v {_RUN_KIB}"
_LIMITED = ["/bin/sh", "-c", f'{_LIMITS} && ulimit -c 0 && exec "$@"', "sh"]
_REPEATS = 3  # of what differs, to tell chance from a wrong verdict


def outcome_of(verified: Verified) -> Outcome | None:
    """Return what an outsider sees of a verdict; None: the engine did not judge it."""
    return _OUTCOMES.get(verified.verdict)


def judge_plainly(folder: Path, level: Level, program: Program) -> Outcome:
    """Judge one program by rustc, and by running what it built, in a new folder below `folder`.

    A library has nothing to run; at level `test` it counts as passed when it builds.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        (work / "program.rs").write_bytes(program.source.encode())
        kind = policy_of(program.source, program.edition).kind
        emit = ["--emit=metadata"] if level is Level.CHECK else []
        command = [str(find_toolchain().rustc), *emit, f"--edition={program.edition}", "-Awarnings"]
        command += [_KINDS[kind], "-o", "program", "program.rs"]
        if _run(command, work).returncode:
            return "not built"
        if level is not Level.TEST or kind == "lib":
            return "passed"
        return _outcome_of_run(work, kind)


def _outcome_of_run(work: Path, kind: str) -> Outcome:
    arguments = ["--test-threads=1"] if kind == "test" else []
    try:
        done = _run(["./program", *arguments], work, limited=True)
    except subprocess.TimeoutExpired:
        return "stopped"
    if done.returncode == -24 or (done.returncode < 0 and b"memory allocation" in done.stderr):
        return "stopped"  # SIGXCPU; out of memory
    return "failed" if done.returncode else "passed"


def _run(command: list[str], work: Path, *, limited: bool = False) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*_LIMITED, *command] if limited else command,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_RUN_WALL_S if limited else None,
        check=False,
    )


def judge_by_cargo(
    folder: Path, level: Level, program: Program, cargo: Sequence[str | Path] = ("cargo",)
) -> bool:
    """Return whether cargo is content with one program: `check`, or `test` (`run` for a main).

    Args:
        folder: a package folder of this caller's own, used again for every program, so that only
            the program is compiled.
        level: check or test.
        program: what to judge.
        cargo: the command; with `cargo` on the PATH this is usually rustup's proxy.
    """
    kind = policy_of(program.source, program.edition).kind
    sources = folder / "src"
    sources.mkdir(parents=True, exist_ok=True)
    for file in sources.iterdir():
        file.unlink()
    (sources / ("main.rs" if kind == "main" else "lib.rs")).write_bytes(program.source.encode())
    (folder / "Cargo.toml").write_text(
        f'[package]\nname = "p{abs(hash(program.program_id))}"\nversion = "0.1.0"\n'
        f'edition = "{program.edition}"\n'
    )
    if level is Level.CHECK:
        chosen = ["check", *(["--profile=test", "--lib"] if kind == "test" else [])]
    else:
        chosen = {"test": ["test", "--lib"], "main": ["run"], "lib": ["build"]}[kind]
    command = [*map(str, cargo), *chosen, "--offline", "--quiet"]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env=os.environ | {"RUST_TEST_THREADS": "1"},
    )  # fmt: skip
    return done.returncode == 0


def differences(programs: Sequence[Program], level: Level) -> dict[str, object]:
    """Judge programs by the engine and plainly, and return counts and what differs.

    Returns:
        n, counts by plain outcome, n_unjudged, `different` (program id, plain, engine), and
        `by_chance`: ids of programs whose plain outcome changed when they were judged again.
    """
    found = verify(programs, level)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(usable_cores()) as pool:
        plainly = partial(judge_plainly, Path(scratch), level)
        plain = list(pool.map(plainly, programs))
        different, by_chance = [], []
        for program, one, wanted in zip(programs, found, plain, strict=True):
            if outcome_of(one) in (wanted, None):
                continue
            again = {wanted, *(plainly(program) for _ in range(_REPEATS))}
            if len(again) > 1:
                by_chance.append(program.program_id)
            else:
                different.append(
                    {"program": program.program_id, "plain": wanted, "engine": one.verdict,
                     "detail": one.detail, "source": program.source}
                )  # fmt: skip
    return {
        "level": str(level),
        "n": len(programs),
        "plain": dict(Counter(plain)),
        "n_unjudged": sum(outcome_of(one) is None for one in found),
        "different": different,
        "by_chance": by_chance,
    }


def main() -> int:
    """Compare both sides on a corpus and on mutants; exit status 1 when a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=800, help="programs, and as many mutants of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=Path, action="append", default=[], help="task file")
    options = parser.parse_args()
    programs = mixed_corpus(options.n, seed=options.seed, task_files=options.tasks)
    programs += mutants_of(programs, options.n, seed=options.seed)
    has_differed = False
    for level in (Level.CHECK, Level.TEST):
        result = differences(programs, level)
        has_differed |= bool(result["different"])
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return int(has_differed)


if __name__ == "__main__":
    raise SystemExit(main())
