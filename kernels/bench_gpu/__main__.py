"""What the CUDA kernels cost on this machine's GPU: `python -m kernels.bench_gpu --out DIR`.

Under five minutes: about 20 s of products, 40 s of training layers (their compilation), and at most
120 s of the peer, which tunes itself (peers.py; what did not fit is said). Ceilings come first (a
large copy, a large bf16 product of random numbers), then products of packed weights beside bf16
ones of cuBLAS and GemLite's ternary ones, then a training layer, forward and backward. Launches
are replayed as CUDA graphs that take turns, and a time is the median of nine replays. Writes
DIR/gpu.json: machine, date, commit, rows, and each target with what was reached. Without a GPU it
says why, and ends with 1.

The day a GPU is at hand: `make gpu` in a checkout, then commit reports/gpu. It asks the doctor,
runs the tests that take a GPU (equal to the reference, in graphs too), this benchmark, those of
decoding and of training, and compute-sanitizer over the tests (it comes with CUDA's toolkit).

Blocks of the persistent kernel wait for each other: if one never comes, nothing ends the wait, so
every step has a time limit; `--loops graph` of decode_gpu and `-k 'not persistent and not
sanitizer'` of pytest leave that kernel alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kernels.bench_gpu import products
from kernels.bench_gpu.start import Row, facts, is_refused, parser_of, write
from kernels.bench_gpu.targets import checks, format_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write DIR/gpu.json and print a table; 1 when there is no GPU."""
    out = parser_of(__doc__, "folder for gpu.json").parse_args(arguments).out
    if is_refused():
        return 1
    began = time.monotonic()
    rows, faults = _measured()
    report = facts() | {
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
        "checks": checks(rows),
        "not_measured": [
            *(f"{name}: {type(error).__name__}: {error}" for name, error in faults.items()),
            "decode (nanochat_lib.publish.decode_gpu does)",
            "whole training steps (nanochat_lib.train.bench --gpu does)",
        ],
    }
    write(out / "gpu.json", report)
    print(format_report(report))
    for error in faults.values():
        raise error
    return 0


def _measured() -> tuple[list[Row], dict[str, Exception]]:
    """Return the rows of all parts, and what ended a part: the others are measured all the same."""
    rows, faults = [], {}
    parts = (products.ceilings, products.products, products.training)
    for part in parts:
        try:
            rows += part()
        except Exception as error:  # kept until the file is written, then raised
            faults[part.__name__] = error
    return rows, faults


if __name__ == "__main__":
    raise SystemExit(main())
