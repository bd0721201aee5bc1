"""What the rows of a GPU are held against, and how they are shown.

In: rows of kernels/bench_gpu/products.py; out: checks (what, value, target, met) and a table.
"""

from __future__ import annotations

from kernels.bench_gpu.peers import NAMES
from kernels.bench_gpu.start import Row


def checks(rows: list[Row]) -> list[Row]:
    """Return the targets that the rows allow to judge: what, value, target, met."""
    found = []
    us = {(r["kernel"], r["n"], r["k"], r["batch"]): r["us"] for r in rows if "us" in r}
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
        peers = [us[name, n, k, batch] for name in NAMES if (name, n, k, batch) in us]
        if peers:
            judge(f"{n}x{k}, batch {batch}, of the peer", min(peers) / row["us"], 1.0)
    return found


def format_report(report: Row) -> str:
    """Return rows and checks as aligned text."""
    lines = [f"{report['gpu']}, torch {report['torch']}, {report['date']}"]
    for row in report["rows"]:
        text = f"{row['kernel']:12} {row['n']:>6} x {row['k']:>6} batch {row['batch']:>6} "
        if "us" in row:
            text += f"{row['us']:10.2f} us {row['gb_per_s']:8.0f} GB/s {row['tflops']:8.1f} TFLOP/s"
        else:
            text += row["note"]
        lines.append(text)
    for check in report["checks"]:
        met = "met" if check["met"] else "NOT MET"
        lines.append(f"{check['what']:36} {check['value']:7.3f} target {check['target']} {met}")
    return "\n".join([*lines, *(f"not measured: {what}" for what in report["not_measured"])])
