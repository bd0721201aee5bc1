"""Measure the verification engine against one rustc per program and against cargo.

Every side judges the same programs (`corpus.py`: more than a third does not compile), in turns of
one slice each, so that a busy machine disturbs all alike; medians over slices and repeats. CPU time
is that of all processes a side starts, wall time that of two workers (cargo: one at a time, as it
locks its folder). Programs that run into a limit of time are left out: they cost what the limit is.
`python -m nanochat_lib.evals.verification.bench --json FILE` prints a table and writes the rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_lib.evals.verification.corpus import mixed_corpus
from nanochat_lib.evals.verification.oracle import judge_by_cargo, judge_plainly, outcome_of
from nanochat_lib.hardware.clocks import cpu_s
from nanochat_lib.hardware.detect import detect_machine, usable_cores
from nanochat_lib.provenance import git_state
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.sandbox import RUN_LIMITS, run_sandboxed
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

SLICE = 512  # programs a side judges at a time: full batches for both workers
_STARTS = 200
Judge = Callable[[Sequence[Program]], list[bool]]


@dataclass(frozen=True)
class Row:
    """What one side cost per program: medians over slices."""

    level: str
    side: str
    n_programs: int
    n_passed: int
    n_slices: int
    cpu_ms: float
    wall_ms: float
    cpu_ratio: float  # this side's CPU time over the engine's, median of the slices' own ratios
    n_different: int  # programs judged otherwise than by the engine


def measure(programs: Sequence[Program], level: Level, folder: Path, repeats: int) -> list[Row]:
    """Judge programs by all sides in turns, and return a row per side, the engine first."""
    sides = _sides(level, folder)
    slices = [programs[i : i + SLICE] for i in range(0, len(programs) - SLICE + 1, SLICE)]
    slices = slices or [programs]
    verify(programs[:1], level)  # a launcher is started before the clock
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    passed: dict[str, list[bool]] = {side: [] for side in sides}
    for part in [part for _ in range(repeats) for part in slices]:
        for side, judge in sides.items():
            began, started = cpu_s(), time.perf_counter()
            passed[side] += judge(part)
            wall = time.perf_counter() - started
            spent[side].append(((cpu_s() - began) * 1e3 / len(part), wall * 1e3 / len(part)))
    return [_row(level, side, spent, passed, sum(map(len, slices))) for side in sides]


def _sides(level: Level, folder: Path) -> dict[str, Judge]:
    toolchain = find_toolchain()
    own_cargo = ["env", f"RUSTC={toolchain.rustc}", toolchain.sysroot / "bin" / "cargo"]
    return {
        "engine": lambda part: [one.verdict is Verdict.PASSED for one in verify(part, level)],
        "one rustc each": partial(_plainly, level, folder),
        "cargo": partial(_by_cargo, level, folder / "cargo", ["cargo"]),
        "cargo without rustup": partial(_by_cargo, level, folder / "own", own_cargo),
    }


def _plainly(level: Level, folder: Path, part: Sequence[Program]) -> list[bool]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [one == "passed" for one in pool.map(partial(judge_plainly, folder, level), part)]


def _by_cargo(
    level: Level, folder: Path, cargo: list[str | Path], part: Sequence[Program]
) -> list[bool]:
    return [judge_by_cargo(folder, level, program, cargo) for program in part]


def _row(
    level: Level, side: str, spent: dict[str, list[tuple[float, float]]],
    passed: dict[str, list[bool]], n: int,
) -> Row:  # fmt: skip
    ratios = [a[0] / b[0] for a, b in zip(spent[side], spent["engine"], strict=True)]
    return Row(
        level=str(level),
        side=side,
        n_programs=n,
        n_passed=sum(passed[side][:n]),
        n_slices=len(ratios),
        cpu_ms=statistics.median(cpu for cpu, _ in spent[side]),
        wall_ms=statistics.median(wall for _, wall in spent[side]),
        cpu_ratio=statistics.median(ratios),
        n_different=sum(a != b for a, b in zip(passed[side], passed["engine"], strict=True)),
    )


def measure_start() -> dict[str, float]:
    """Return the median wall milliseconds of starting /bin/true bare and in the sandbox."""
    bare, inside = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(_STARTS):
            started = time.perf_counter()
            subprocess.run(["/bin/true"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
            bare.append(time.perf_counter() - started)
            started = time.perf_counter()
            run_sandboxed(
                ["/bin/true"], work_dir=Path(folder), profile="run", limits=RUN_LIMITS,
                allow_unsandboxed=True,
            )  # fmt: skip
            inside.append(time.perf_counter() - started)
    bare_ms, inside_ms = (statistics.median(times) * 1e3 for times in (bare, inside))
    return {"bare_ms": bare_ms, "sandboxed_ms": inside_ms, "more_ms": inside_ms - bare_ms}


def run_bench(n: int, *, seed: int, repeats: int, task_files: Sequence[Path]) -> dict[str, Any]:
    """Return machine, commit, sandbox start and the rows of both levels as a plain dictionary."""
    programs = mixed_corpus(n, seed=seed, task_files=task_files)
    stopped = [outcome_of(one) == "stopped" for one in verify(programs, Level.TEST)]
    programs = [p for p, is_stopped in zip(programs, stopped, strict=True) if not is_stopped]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            asdict(row)
            for level in (Level.CHECK, Level.TEST)
            for row in measure(programs, level, Path(folder), repeats)
        ]
    return {
        "machine": detect_machine().as_dict(),
        "git": git_state(),
        "rustc": find_toolchain().version,
        "sandbox_start": measure_start(),
        "n_stopped_left_out": sum(stopped),
        "rows": rows,
    }


def format_table(found: dict[str, Any]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{found['machine']['cpu']}, {usable_cores()} cores, rustc {found['rustc']}"]
    lines.append(
        f"{'level':6} {'side':22} {'CPU ms':>8} {'wall ms':>8} {'x engine':>9} {'differ':>6}"
    )
    for row in found["rows"]:
        lines.append(
            f"{row['level']:6} {row['side']:22} {row['cpu_ms']:8.2f} {row['wall_ms']:8.2f} "
            f"{row['cpu_ratio']:9.1f} {row['n_different']:6}"
        )
    start = found["sandbox_start"]
    lines.append(
        f"starting a program in the sandbox costs {start['more_ms']:.1f} ms more than bare"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=512, help="programs per level")
    parser.add_argument("--repeats", type=int, default=2, help="times every slice is judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=Path, action="append", default=[], help="task file")
    parser.add_argument("--json", type=Path, help="file the result is written to")
    options = parser.parse_args(arguments)
    found = run_bench(
        options.n, seed=options.seed, repeats=options.repeats, task_files=options.tasks
    )
    if options.json:
        write_atomic(options.json, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(format_table(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
