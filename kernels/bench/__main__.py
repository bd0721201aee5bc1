"""Measure the kernels on this machine: `python -m kernels.bench [--only cold,gemm] [--json FILE]`.

Prints one line for each target: what was measured, the target, and whether it was met; with --rows
also every timing. Take a quiet machine: one thread is timed by its CPU time and ratios come from
interleaved rounds, but memory is shared with whatever else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import kernels
from kernels.bench.run import SECTIONS, run_bench
from kernels.bench.targets import Check, checks
from kernels.bench.timing import Row


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and write rows and checks as JSON when asked to."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="file that rows and checks are written to")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    parser.add_argument("--rows", action="store_true", help="print every timing too")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    try:
        rows = run_bench({name: {} for name in names})
    except ValueError as error:
        parser.error(str(error))
    found = checks(rows)
    if options.rows:
        sys.stdout.write(format_rows(rows) + "\n")
    sys.stdout.write(f"{machine()}\n{format_checks(found)}\n")
    if options.json:
        write_json(options.json, rows, found)
    return 0


def machine() -> str:
    """Return what the numbers were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} CPUs, kernels up to {kernels.backends()[-1]}"


def format_checks(found: list[Check]) -> str:
    """Return the checks as aligned text."""
    lines = [f"{'what':40} {'N x K':>13} {'tokens':>6} {'measured':>12} {'target':>12}"]
    for check in found:
        sign = ">=" if check.at_least else "<="
        lines.append(
            f"{check.what:40} {check.n:>6} x {check.k:>4} {check.batch:>6} "
            f"{check.value:12.3f} {sign} {check.target:9.2f} {check.unit.partition(' ')[0]:4} "
            f"{'met' if check.met else 'NOT MET'}"
        )
    n_met = sum(check.met for check in found)
    return "\n".join([*lines, f"{n_met} of {len(found)} targets met"])


def format_rows(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'section':11} {'kernel':10} {'backend':12} {'packing':7} {'N x K':>13} {'B':>3} "
             f"{'thr':>3} {'us':>10} {'GB/s':>7} {'GOPS':>7}"]  # fmt: skip
    for row in rows:
        lines.append(
            f"{row['section']:11} {row['kernel']:10} {row['backend']:12} {row['packing']:7} "
            f"{row['n']:>6} x {row['k']:>4} {row['batch']:>3} {row['threads']:>3} "
            f"{row['us_median']:10.1f} {row['gb_per_s']:7.1f} {row['gops']:7.1f}"
        )
    return "\n".join(lines)


def write_json(path: Path, rows: list[Row], found: list[Check]) -> None:
    """Write rows and checks with machine and date, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    report = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "checks": [asdict(check) | {"met": check.met} for check in found],
        "rows": rows,
    }
    with draft.open("w") as file:
        json.dump(report, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


if __name__ == "__main__":
    raise SystemExit(main())
