"""The benchmark: complete rows, timed cases that compute what they say, and honest checks."""

import json

import numpy as np
import pytest

import kernels
from kernels import reference, team
from kernels.bench import __main__ as command
from kernels.bench import memory, peers, products, run, targets, warm

COLUMNS = {
    "section", "kernel", "backend", "packing", "n", "k", "batch", "threads", "set_mb", "us_median",
    "gb_per_s", "gops", "n_repeats",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Two small shapes and rings of 1 MB: seconds instead of minutes."""
    shapes = ((256, 512), (320, 256))
    for module in (memory, products):
        monkeypatch.setattr(module, "SHAPES", shapes)
    monkeypatch.setattr(memory, "COLD_MB", 1)
    monkeypatch.setattr(memory, "L3_MB", 0.5)
    monkeypatch.setattr(products, "BATCHES", (32,))
    return shapes


def test_every_usable_backend_is_measured_beside_numpy():
    rows = run.run_bench({"warm": {"shapes": [(32, 48)], "batches": (1, 4), "n_repeats": 2}})
    assert all(set(row) == COLUMNS | {"ratio_to_numpy_f32"} for row in rows)
    assert all(row["us_median"] > 0 for row in rows)
    measured = {(row["kernel"], row["backend"], row["batch"]) for row in rows}
    for batch in (1, 4):
        for backend in set(kernels.backends()) - {"reference"}:
            assert ("ternary", backend, batch) in measured
        assert ("dense_f32", "numpy", batch) in measured
    assert "dense_f32" in command.format_rows(rows)


def test_timed_warm_cases_are_the_product():
    """Dense cases return codes times x; the ternary ones the product of quantised activations."""
    cases = list(warm.warm_cases(40, 50, 3, np.random.default_rng(0)))
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (40, 50)).astype(np.int8)
    x = rng.standard_normal((3, 50)).astype(np.float32)
    x_q, act_scale = reference.quantize_activations(x)
    ternary = reference.apply_scales(
        reference.accumulate(codes, x_q), act_scale, np.ones(1, np.float32)
    )
    for case in cases:
        found = case.run(1)
        if case.kernel == "ternary":
            assert np.array_equal(found, ternary), case.backend
        elif case.backend != "numba":  # which writes, and returns nothing
            loose = 0.1 if "bf16" in case.kernel else 1e-4
            np.testing.assert_allclose(np.array(found.tolist()), x @ codes.T, atol=loose)


def test_memory_sections_hold_both_packings_and_two_ways_of_reading(small):
    for rows in (memory.cold_rows(2), memory.l3_rows(2), memory.working_set_rows((0.25, 2), 2)):
        assert all(set(row) == COLUMNS and row["us_median"] > 0 for row in rows)
        for n, k in {(row["n"], row["k"]) for row in rows}:
            part = [row for row in rows if (row["n"], row["k"]) == (n, k)]
            assert {row["packing"] for row in part if row["kernel"] == "ternary"} == {
                "2bit", "base3",
            }  # fmt: skip
            assert {row["backend"] for row in part if row["kernel"] == "read"} == {
                "one stream", "four streams",
            }  # fmt: skip
    threads = memory.thread_rows(2)
    assert {(row["kernel"], row["threads"]) for row in threads} == {
        (kernel, size) for kernel in ("ternary", "read") for size in (1, 2)
    }


@pytest.mark.parametrize("packing", list(kernels.PACKINGS))
@pytest.mark.parametrize("size", [1, 3])
def test_a_ring_is_gone_through_in_turn_and_a_team_computes_the_product(packing, size):
    ring = memory.Ring(90, 70, packing, 0.02)
    codes = np.random.default_rng(0).integers(-1, 2, (90, 70)).astype(np.int8)
    assert len(ring.stack) > 2
    assert ring.take(2) == (0, 2)
    assert ring.take(len(ring.stack)) == (2, len(ring.stack))
    assert ring.take(1) == (2, 1)
    x = np.random.default_rng(1).standard_normal((1, 70)).astype(np.float32)
    out = np.zeros((1, 96), np.float32)
    level = kernels.compile.LEVELS[kernels.choose_backend()]

    def work(member):
        extra, scratch = memory._own_arrays(ring, 96)
        weights = (ring.stack, extra, np.full(90, 0.5, np.float32))
        memory._multiply_ring(level, member, weights, x, (0, 5), scratch, out)

    with memory.ThreadPoolExecutor(size) as pool:
        memory._together(work, pool, team.new_team(size))
    assert np.array_equal(
        out[:, :90], kernels.ternary_matmul(kernels.pack(codes), np.float32(0.5), x, n_rows=90)
    )


def test_many_tokens_and_overheads_are_measured(small):
    rows = products.gemm_rows(2)
    tiles = {"tiles_alone"} if "amx" in kernels.backends() else set()
    assert {"ternary", "int_mm"} | tiles == {row["kernel"] for row in rows}
    overhead = {row["kernel"]: row for row in products.overhead_rows(2)}
    assert set(overhead) == {"ternary", "quantize", "torch_op", "first_call"}
    assert all(row["us_median"] > 0 for row in overhead.values())


def rows_of(section: str, times: dict[tuple[str, str, str], float], **place) -> list[dict]:
    base = dict.fromkeys(COLUMNS, 1) | {"section": section, "n": 4096, "k": 4096} | place
    return [
        base | {"kernel": kernel, "backend": backend, "packing": packing, "us_median": time}
        for (kernel, backend, packing), time in times.items()
    ]


def test_checks_compare_with_the_better_pattern_and_can_fail():
    times = {
        ("ternary", "amx", "2bit"): 100.0, ("ternary", "amx", "base3"): 80.0,
        ("read", "one stream", ""): 120.0, ("read", "four streams", ""): 96.0,
    }  # fmt: skip
    share, ratio = targets.checks(rows_of("cold", times))
    assert (share.value, share.target, share.met) == (0.96, 0.95, True)
    assert (ratio.value, ratio.target, ratio.met) == (1.25, 1.20, True)
    times[("read", "four streams", "")] = 90.0
    share, _ = targets.checks(rows_of("cold", times))
    assert (share.value, share.met) == (0.9, False)
    small = targets.checks(rows_of("cold", times, n=2560, k=2560))[0]
    assert (small.target, small.met) == (0.92, False)
    slow = targets.checks(rows_of("overhead", {("quantize", "amx", ""): 1.5}))[0]
    assert (slow.at_least, slow.met) == (False, False)
    assert "NOT MET" in command.format_checks([slow])


def test_the_command_writes_rows_and_checks_with_the_machine(tmp_path, monkeypatch, capsys):
    rows = rows_of("cold", {
        ("ternary", "amx", "2bit"): 100.0, ("ternary", "amx", "base3"): 80.0,
        ("read", "one stream", ""): 99.0,
    })  # fmt: skip
    monkeypatch.setattr(command, "run_bench", lambda sections: rows)
    target = tmp_path / "folder" / "bench.json"
    assert command.main(["--only", "cold", "--rows", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["rows"] == rows
    assert [check["met"] for check in report["checks"]] == [True, True]
    assert report["machine"] == command.machine()
    assert [path.name for path in target.parent.iterdir()] == ["bench.json"]
    assert "2 of 2 targets met" in capsys.readouterr().out


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "cold,warmth"])
    assert "no section 'warmth'; known: cold" in capsys.readouterr().err


@pytest.mark.peers
@pytest.mark.parametrize("name", list(peers.FORMATS))
def test_ggml_computes_the_same_product(name):
    """Weights written by ggml's own encoder: within its float16 scale and its rounding of x."""
    if peers.ggml() is None:
        pytest.skip("ggml: llama-cpp-python is not installed (pip install .[peers])")
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (32, 512)).astype(np.int8)
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    stack = gguf.quants.quantize(codes.astype(np.float32), kind)[None]
    x, out = rng.standard_normal(512).astype(np.float32), np.zeros(32, np.float32)
    peers.ggml_product(name)(np.ascontiguousarray(stack), x, np.array([0, 1]), out)
    np.testing.assert_allclose(out, codes @ x, atol=0.3)
    assert np.corrcoef(out, codes @ x)[0, 1] > 0.9995
