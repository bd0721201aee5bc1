"""Run sections of the benchmark in a child process, whose BLAS has one thread.

BLAS takes its number of threads from the environment alone, at import; hence the child. In: the
names of sections and their arguments; out: rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from kernels.bench import memory, peers, products, warm
from kernels.bench.timing import Row

SECTIONS: dict[str, Callable[..., list[Row]]] = {
    "cold": memory.cold_rows,
    "l3": memory.l3_rows,
    "threads": memory.thread_rows,
    "working_set": memory.working_set_rows,
    "gemm": products.gemm_rows,
    "overhead": products.overhead_rows,
    "peer": peers.peer_rows,
    "warm": warm.warm_rows,
}


def run_bench(sections: dict[str, dict[str, Any]]) -> list[Row]:
    """Run the named sections, each with its keyword arguments, and return their rows.

    Rows hold section, kernel, backend, packing, n, k, batch, threads, set_mb, us_median, gb_per_s
    (of weights), gops and n_repeats; those of "warm" also ratio_to_numpy_f32.

    Raises:
        ValueError: there is no such section.
        subprocess.CalledProcessError: a section failed; its error was printed.
    """
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    child = [sys.executable, "-m", "kernels.bench.run", json.dumps(sections)]
    done = subprocess.run(
        child, env=os.environ | dict.fromkeys(names, "1"), stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    json.dump(
        [row for name, given in json.loads(sys.argv[1]).items() for row in SECTIONS[name](**given)],
        sys.stdout,
    )
