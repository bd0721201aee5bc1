"""What the CUDA kernels cost on this machine's GPU: `python -m kernels.bench_gpu --out DIR`.

Under five minutes. Ceilings come first (a large copy, a large bf16 product of random numbers), then
products of packed weights beside bf16 ones of cuBLAS, then a training layer, forward and backward.
Weights rotate over four times the L2 cache, launches are replayed as one CUDA graph, and a time is
the median of nine replays. Writes DIR/gpu.json: machine, date, commit, rows, and each target with
what was reached. Without a GPU it says why, and ends with 1.

The day a GPU is at hand, from a checkout with a CUDA build of torch:

    pip install -c constraints.txt -e '.[dev,cuda-check]'
    python -m pytest -m gpu tests/gpu                # equal to the reference, in graphs too
    compute-sanitizer python -m pytest -m gpu tests/gpu -k sanitizer    # and --tool racecheck
    python -m kernels.bench_gpu --out reports/gpu    # then commit reports/gpu/gpu.json
    python -m nanochat_lib.publish.decode_gpu --out reports/gpu/decode.json
    python -m nanochat_lib.train.bench --gpu --json reports/gpu/training.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kernels.cuda.driver import why_unavailable

SHAPES = ((2048, 2048), (4096, 4096), (8192, 2048), (8192, 8192), (4096, 14336))
BATCHES = (1, 2, 4, 8, 16, 32)
TRAINING = ((16384, 2048, 2048), (16384, 2048, 5632), (16384, 4096, 4096))  # tokens, K, N
N_REPLAYS = 9
LAUNCHES = 40  # in a graph, at least
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write DIR/gpu.json and print a table; 1 when there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    out = parser.parse_args(arguments).out
    if reason := why_unavailable():
        print(f"Nothing was measured: {reason}.", file=sys.stderr)
        return 1
    import torch

    rows = [*_ceilings(), *_products(), *_training()]
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "rows": rows,
        "checks": checks(rows),
        "not_measured": [
            "decode (nanochat_lib.publish.decode_gpu does)",
            "whole training steps (nanochat_lib.train.bench --gpu does)",
            "ternary peers",
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(report, indent=1))
    print(format_report(report))
    return 0


def checks(rows: list[Row]) -> list[Row]:
    """Return the targets that the rows allow to judge: what, value, target, met."""
    found = []
    us = {(r["kernel"], r["n"], r["k"], r["batch"]): r["us"] for r in rows}
    copy = next((r["gb_per_s"] for r in rows if r["kernel"] == "copy"), None)

    def judge(what: str, value: float, target: float, at_least: bool = True) -> None:
        met = value >= target if at_least else value <= target
        found.append({"what": what, "value": value, "target": target, "met": met})

    for row in rows:
        n, k, batch = row["n"], row["k"], row["batch"]
        if row["kernel"] == "int8_layer":
            judge(f"layer {n}x{k}, of bf16", us["bf16_layer", n, k, batch] / row["us"], 1.35)
        if row["kernel"] != "ternary":
            continue
        if batch == 1 and copy and (n * k / 4 >= 16e6 or (n, k) == (4096, 4096)):
            share = row["gb_per_s"] / copy
            judge(f"{n}x{k}, of copying", share, 0.85 if n * k / 4 >= 16e6 else 0.6)
        if batch == 1 and (n, k) == (8192, 8192):
            judge("8192x8192, of cuBLAS bf16", us["cublas_bf16", n, k, 1] / row["us"], 6.5)
        if batch in (8, 16) and n * k / 4 >= 16e6:
            ratio = row["us"] / us["ternary", n, k, 1]
            judge(f"{n}x{k}, batch {batch} of 1", ratio, 1.05 if batch == 8 else 1.15, False)
    return found


def format_report(report: Row) -> str:
    """Return rows and checks as aligned text."""
    lines = [f"{report['gpu']}, torch {report['torch']}, {report['date']}"]
    for row in report["rows"]:
        lines.append(
            f"{row['kernel']:12} {row['n']:>6} x {row['k']:>6} batch {row['batch']:>6} "
            f"{row['us']:10.2f} us {row['gb_per_s']:8.0f} GB/s {row['tflops']:8.1f} TFLOP/s"
        )
    for check in report["checks"]:
        met = "met" if check["met"] else "NOT MET"
        lines.append(f"{check['what']:36} {check['value']:7.3f} target {check['target']} {met}")
    return "\n".join([*lines, *(f"not measured: {what}" for what in report["not_measured"])])


def row_of(kernel: str, shape: tuple[int, int, int], us: float, n_bytes: float) -> Row:
    """Return one measurement; shape is outputs, inputs, batch."""
    n, k, batch = shape
    rates = {"gb_per_s": n_bytes / us / 1e3, "tflops": 2 * n * k * batch / us / 1e6}
    return {"kernel": kernel, "n": n, "k": k, "batch": batch, "us": us, **rates}


def _time_us(calls: list[Callable[[], object]], launches: int = LAUNCHES) -> float:
    """Return the median time of one call, replaying all of them in turn as one graph."""
    import torch

    launches = max(launches, len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            calls[i % len(calls)]()
    times = []
    for _ in range(N_REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times[2:])


def _ceilings() -> list[Row]:
    import torch

    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = _time_us([lambda: target.copy_(source)], 4)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = _time_us([lambda: a @ b], 8)
    return [
        row_of("copy", (0, 0, 0), us, 2 * source.numel()),
        row_of("bf16_peak", (8192, 8192, 8192), product, 3 * 2 * 8192**2),
    ]


def _products() -> list[Row]:
    import torch

    from kernels.torch_op import ternary_linear

    rows, cache = [], torch.cuda.get_device_properties(0).L2_cache_size
    for n, k in SHAPES:
        n_sets = max(2, 4 * cache // (n * k // 4) + 1)
        shape = (n_sets, -(-n // 16), -(-k // 16), 64)
        # Random fields of 0 to 2 are valid codes; four of them make a byte.
        fields = torch.randint(0, 3, (4, *shape), dtype=torch.uint8, device="cuda")
        packed = fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6
        scale = torch.rand(n, device="cuda")
        dense_sets = max(2, 4 * cache // (2 * n * k) + 1)
        dense = torch.randn(dense_sets, n, k, device="cuda", dtype=torch.bfloat16)
        for batch in BATCHES:
            x = torch.randn(batch, k, device="cuda")
            x_bf16, place = x.bfloat16(), (n, k, batch)
            ours = [lambda w=w, x=x, scale=scale: ternary_linear(x, w, scale) for w in packed]
            theirs = [lambda w=w, x=x_bf16: torch.nn.functional.linear(x, w) for w in dense]
            rows.append(row_of("ternary", place, _time_us(ours), n * k / 4))
            rows.append(row_of("cublas_bf16", place, _time_us(theirs), 2 * n * k))
    return rows


def _training() -> list[Row]:
    """A layer with its quantiser, forward and backward: int8 products, and bf16 compiled."""
    import torch
    import torch.nn.functional as F

    from kernels.training.linear import linear, ternary

    rows = []
    for tokens, k, n in TRAINING:
        x = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(n, k, device="cuda", requires_grad=True)
        plain = weight.detach().bfloat16().requires_grad_()
        grad = torch.randn(tokens, n, device="cuda", dtype=torch.bfloat16)
        dense = torch.compile(F.linear)
        once = ternary(weight)
        layers = {
            "int8_layer": lambda x=x, once=once: linear(x, [once])[0],
            "bf16_layer": lambda x=x, plain=plain, dense=dense: dense(x, plain),
        }
        for name, layer in layers.items():
            us = _time_eager_us(lambda layer=layer, grad=grad: layer().backward(grad))
            rows.append(row_of(name, (n, k, tokens), us, 0))
    return rows


def _time_eager_us(call: Callable[[], object]) -> float:
    """Return the median time of a call that a graph cannot hold as it is."""
    from triton.testing import do_bench

    return do_bench(call, warmup=200, rep=500, return_mode="median") * 1e3


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
