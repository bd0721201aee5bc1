"""Measure how fast verified TinyRust examples are made: `confirm.py` against the engine.

Both sides generate and judge the same examples, in turns of one slice each, so that a busy machine
disturbs both alike; medians over slices. CPU time is that of this process and all it starts, wall
time that of one crate for each CPU at a time. Nothing is cached.
`python -m nanochat_lib.data.tinyrust.bench --json FILE` prints a table and writes the rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat_lib.data.tinyrust.confirm import confirm, program_of
from nanochat_lib.data.tinyrust.generate import FAMILIES, generate
from nanochat_lib.hardware.clocks import cpu_s
from nanochat_lib.hardware.detect import detect_machine, usable_cores
from nanochat_lib.provenance import git_state
from nanochat_lib.records import Level, Verdict, Verified
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

SLICE = 2048  # two full batches for each of two workers
LEVELS = tuple(sorted({family.level for family in FAMILIES}))


@dataclass(frozen=True)
class Row:
    """What one side cost: medians over slices."""

    side: str
    n_examples: int
    n_passed: int
    n_slices: int
    cpu_ms: float  # per example
    wall_ms: float
    per_s: float  # examples a second
    per_s_by_cpu: float  # examples a second if all cores were ours: cores / CPU time


def run_bench(n: int, seed: int) -> dict[str, Any]:
    """Return machine, commit and a row for each side; `n` examples are judged by both."""
    sides: dict[str, Callable[[Any], list[Verified]]] = {
        "confirm": confirm,
        "engine": lambda examples: verify(map(program_of, examples), Level.TEST),
        "generate only": lambda examples: [None for _ in examples],
    }
    slices = -(-n // SLICE)
    streams = {side: generate(LEVELS, slices * SLICE, seed) for side in sides}
    for judge in sides.values():  # launchers are started before the clock
        judge(generate((1,), 1, seed))
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    passed = dict.fromkeys(sides, 0)
    for _ in range(slices):
        for side, judge in sides.items():
            began, started = cpu_s(), time.perf_counter()
            found = judge(islice(streams[side], SLICE))
            wall = time.perf_counter() - started
            spent[side].append((cpu_s() - began, wall))
            passed[side] += sum(v is not None and v.verdict is Verdict.PASSED for v in found)
    return {
        "machine": detect_machine().as_dict(),
        "cores": usable_cores(),
        "git": git_state(),
        "rustc": find_toolchain().version,
        "levels": LEVELS,
        "n_families": len(FAMILIES),
        "slice": SLICE,
        "rows": [asdict(_row(side, spent[side], passed[side])) for side in sides],
    }


def _row(side: str, spent: list[tuple[float, float]], n_passed: int) -> Row:
    cpu = statistics.median(cpu for cpu, _ in spent) / SLICE
    wall = statistics.median(wall for _, wall in spent) / SLICE
    return Row(
        side=side,
        n_examples=len(spent) * SLICE,
        n_passed=n_passed,
        n_slices=len(spent),
        cpu_ms=cpu * 1e3,
        wall_ms=wall * 1e3,
        per_s=1 / wall,
        per_s_by_cpu=usable_cores() / cpu,
    )


def format_table(found: dict[str, Any]) -> str:
    """Return the rows as aligned text."""
    lines = [
        f"{found['machine']['cpu']}, {found['cores']} cores, rustc {found['rustc']}, "
        f"{found['n_families']} families, levels {', '.join(map(str, found['levels']))}",
        f"{'side':14} {'passed':>13} {'CPU ms':>7} {'wall ms':>8} {'per s':>7} {'by CPU':>7}",
    ]
    for row in found["rows"]:
        passed = f"{row['n_passed']}/{row['n_examples']}"
        lines.append(
            f"{row['side']:14} {passed:>13} {row['cpu_ms']:7.2f} {row['wall_ms']:8.2f} "
            f"{row['per_s']:7.0f} {row['per_s_by_cpu']:7.0f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=6144, help="examples each side judges")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file the result is written to")
    options = parser.parse_args(arguments)
    found = run_bench(options.n, options.seed)
    if options.json:
        write_atomic(options.json, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(format_table(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
