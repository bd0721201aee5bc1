"""The benchmark's rows: complete, and its kernels compute what they are timed for."""

import json

import numpy as np

import kernels
from kernels import bench, reference

COLUMNS = {
    "kernel", "backend", "n", "k", "batch", "threads", "us_median", "gb_per_s", "gops",
    "ratio_to_numpy_f32", "n_repeats",
}  # fmt: skip


def test_every_usable_backend_and_the_read_ceiling_are_measured():
    rows = bench.run_bench([(32, 48)], batches=(1, 4), n_repeats=2)
    assert all(set(row) == COLUMNS for row in rows)
    assert all(row["us_median"] > 0 for row in rows)
    measured = {(row["kernel"], row["backend"], row["batch"]) for row in rows}
    for batch in (1, 4):
        for backend in set(kernels.backends()) - {"reference"}:
            assert ("ternary", backend, batch) in measured
        assert ("dense_f32", "numpy", batch) in measured
    assert ("read", "numba", 0) in measured
    assert "ternary" in bench.format_table(rows)


def test_timed_cases_agree_with_numpy():
    """The dense cases return or write the same product; the ternary one is the reference's."""
    rng = np.random.default_rng(0)
    cases = {(c.kernel, c.backend): c for c in bench._cases(40, 50, 3, rng)}
    numpy_product = cases["dense_f32", "numpy"].run()
    if ("dense_f32", "torch") in cases:
        torch_product = cases["dense_f32", "torch"].run().numpy()
        np.testing.assert_allclose(torch_product, numpy_product, rtol=1e-4, atol=1e-4)
    codes = np.eye(40, 50, dtype=np.int8)
    x = rng.standard_normal((3, 50)).astype(np.float32)
    product = kernels.ternary_matmul(kernels.pack(codes), 1.0, x, n_rows=40)
    x_q, act_scale = reference.quantize_activations(x)
    assert np.array_equal(product, (x_q * act_scale[:, None])[:, :40])


def test_the_table_is_written_as_json(tmp_path, monkeypatch, capsys):
    row = dict.fromkeys(COLUMNS, 1) | {"kernel": "ternary", "backend": "avx2"}
    monkeypatch.setattr(bench, "run_bench", lambda shapes: [row])
    target = tmp_path / "folder" / "bench.json"
    assert bench.main(["--json", str(target)]) == 0
    assert json.loads(target.read_text()) == [row]
    assert [path.name for path in target.parent.iterdir()] == ["bench.json"]
    assert "ternary" in capsys.readouterr().out
