"""The GPU benchmark without a GPU: what it judges, what it prints, and how it refuses."""

from __future__ import annotations

from kernels import bench_gpu
from kernels.bench_gpu import checks, format_report, row_of


def test_without_a_gpu_it_says_why_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_gpu, "why_unavailable", lambda: "no GPU: here")
    assert bench_gpu.main(["--out", str(tmp_path / "gpu")]) == 1
    assert "Nothing was measured: no GPU: here." in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_targets_are_judged_from_the_rows():
    """By hand: 16.8 MB in 5 us are 3355 GB/s, 0.84 of a copy at 4000 GB/s."""
    n = 8192
    rows = [
        row_of("copy", (0, 0, 0), 1000.0, 4e9),
        row_of("ternary", (n, n, 1), 5.0, n * n / 4),
        row_of("cublas_bf16", (n, n, 1), 40.0, 2 * n * n),
        row_of("ternary", (n, n, 8), 5.2, n * n / 4),
        row_of("ternary", (n, n, 16), 6.0, n * n / 4),
        row_of("ternary", (4096, 4096, 1), 1.7, 4096 * 4096 / 4),
        row_of("int8_layer", (n, n, 64), 100.0, 0),
        row_of("bf16_layer", (n, n, 64), 140.0, 0),
    ]
    found = {check["what"]: (round(check["value"], 3), check["met"]) for check in checks(rows)}
    assert found == {
        "8192x8192, of copying": (0.839, False),
        "8192x8192, of cuBLAS bf16": (8.0, True),
        "8192x8192, batch 8 of 1": (1.04, True),
        "8192x8192, batch 16 of 1": (1.2, False),
        "4096x4096, of copying": (0.617, True),
        "layer 8192x8192, of bf16": (1.4, True),
    }
    report = {"gpu": "G", "torch": "T", "date": "D", "rows": rows, "checks": checks(rows)}
    text = format_report(report | {"not_measured": ["peers"]})
    assert "NOT MET" in text
    assert "not measured: peers" in text
