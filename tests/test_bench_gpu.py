"""The GPU benchmark without a GPU: what it judges, prints and refuses, and its peer, made up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from kernels.bench_gpu import __main__ as bench_gpu
from kernels.bench_gpu import peers, products, start, timing
from kernels.bench_gpu.targets import checks, format_report
from kernels.bench_gpu.timing import Graph, row_of
from nanochat_lib.config import PROJECT_ROOT
from nanochat_lib.publish import decode_gpu


@pytest.mark.parametrize("program", [bench_gpu, decode_gpu])
def test_without_a_gpu_it_says_why_and_writes_nothing(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "why_unavailable", lambda: "no GPU: here")
    assert program.main(["--out", str(tmp_path / "gpu")]) == 1
    assert "Nothing was measured: no GPU: here." in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_targets_are_judged_from_the_rows():
    """By hand: 16.8 MB in 5 us are 3355 GB/s, 0.84 of a copy at 4000 GB/s."""
    n = 8192
    rows = [
        row_of("copy", (0, 0, 0), 1000.0, 4e9),
        row_of("ternary", (n, n, 1), 5.0, n * n / 4),
        row_of("cublas_bf16", (n, n, 1), 40.0, 2 * n * n),
        row_of("gemlite_a8", (n, n, 1), 8.0, n * n / 4),
        row_of("gemlite_a16", (n, n, 1), 7.0, n * n / 4),
        row_of("ternary", (n, n, 8), 5.2, n * n / 4),
        {"kernel": "gemlite_a8", "n": n, "k": n, "batch": 8, "note": "wrong: 12.0% off"},
        row_of("gemlite_a16", (n, n, 8), 4.16, n * n / 4),
        row_of("ternary", (n, n, 16), 6.0, n * n / 4),
        row_of("ternary", (4096, 4096, 1), 1.7, 4096 * 4096 / 4),
        row_of("int8_layer", (n, n, 64), 100.0, 0),
        row_of("bf16_layer", (n, n, 64), 140.0, 0),
    ]
    found = {check["what"]: (round(check["value"], 3), check["met"]) for check in checks(rows)}
    assert found == {
        "8192x8192, of copying": (0.839, False),
        "8192x8192, of cuBLAS bf16": (8.0, True),
        "8192x8192, batch 1, of the peer": (1.4, True),
        "8192x8192, batch 8 of 1": (1.04, True),
        "8192x8192, batch 8, of the peer": (0.8, False),
        "8192x8192, batch 16 of 1": (1.2, False),
        "4096x4096, of copying": (0.617, True),
        "layer 8192x8192, of bf16": (1.4, True),
    }
    report = {"gpu": "G", "torch": "T", "date": "D", "rows": rows, "checks": checks(rows)}
    text = format_report(report | {"not_measured": ["decode"]})
    assert "NOT MET" in text
    assert "batch      8 wrong: 12.0% off" in text
    assert "not measured: decode" in text


def test_a_report_is_written_whole_and_names_the_commit(tmp_path):
    path = tmp_path / "gpu" / "gpu.json"
    start.write(path, {"rows": [1]})
    start.write(path, {"rows": [2]})
    assert json.loads(path.read_text()) == {"rows": [2]}
    assert [one.name for one in path.parent.iterdir()] == ["gpu.json"]
    command = ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert start.commit() in (head, f"{head} + changes")


class MadeUpLayer:
    """A layer as GemLite's helpers make it: float16 in, float16 out, int8 activations or not."""

    def __init__(self, weight, scale, wrong: float, has_int8: bool) -> None:
        self.weight, self.scale = weight.float(), scale.item() * (1 + wrong)
        self.has_int8 = has_int8

    def __call__(self, x):
        x = x.float()
        if self.has_int8:
            step = x.abs().amax(1, keepdim=True) / 127
            x = (x / step).round() * step
        return (x @ self.weight.T * self.scale).half()


def with_gemlite(monkeypatch, *, wrong: float = 0.0, error: Exception | None = None) -> peers.Peers:
    """Let a package stand for GemLite that has the two ternary helpers."""

    def maker(has_int8: bool):
        def from_weights(weight, weight_scale):
            if error is not None:
                raise error
            assert weight.dtype == torch.float16
            return MadeUpLayer(weight, weight_scale, wrong, has_int8)

        return lambda device, dtype: SimpleNamespace(from_weights=from_weights)

    helper = ModuleType("gemlite.helper")
    helper.A8W158_INT_dynamic, helper.A16W158_INT = maker(True), maker(False)
    monkeypatch.setitem(sys.modules, "gemlite", ModuleType("gemlite"))
    monkeypatch.setitem(sys.modules, "gemlite.helper", helper)
    found = peers.find_peers()
    found.make_graph = list  # the calls themselves
    return found


CODES = torch.randint(-1, 2, (96, 512), dtype=torch.int8, generator=torch.manual_seed(0))


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_that_is_right_is_to_be_timed_over_its_copies(monkeypatch, name):
    calls, reasons = peers.prepare(with_gemlite(monkeypatch), name, CODES, 0.05, 3)
    assert reasons == {}
    assert {batch: len(found) for batch, found in calls.items()} == {1: 3, 8: 3, 32: 3}
    assert calls[8][2]().shape == (8, 96)


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_that_is_wrong_is_told_and_not_timed(monkeypatch, name):
    found = with_gemlite(monkeypatch, wrong=0.1)
    calls, reasons = peers.prepare(found, name, CODES, 0.05, 3)
    assert calls == {}
    assert set(reasons) == set(peers.BATCHES)
    for text in reasons.values():
        assert 9 < float(re.fullmatch(r"wrong: its products are ([\d.]+)% off", text)[1]) < 11


def test_a_peer_that_raises_is_told(monkeypatch):
    found = with_gemlite(monkeypatch, error=RuntimeError("out of resources\nand more"))
    calls, reasons = peers.prepare(found, "gemlite_a8", CODES, 0.05, 3)
    assert calls == {}
    assert set(reasons.values()) == {"failed: RuntimeError: out of resources"}


def test_a_missing_peer_and_one_that_takes_too_long_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemlite", None)
    missing = peers.find_peers()
    wanted = dict.fromkeys(peers.BATCHES, "not installed: pip install '.[gpu-peers]'")
    assert peers.prepare(missing, "gemlite_a8", CODES, 0.05, 3) == ({}, wanted)
    late = with_gemlite(monkeypatch)
    late.began -= peers.MAX_SECONDS + 1
    calls, reasons = peers.prepare(late, "gemlite_a8", CODES, 0.05, 3)
    assert calls == {}
    assert "used up" in reasons[1]


def test_a_peer_that_breaks_when_it_is_imported_is_told(monkeypatch):
    def fail(name):
        raise AttributeError("module 'triton' has no attribute 'knobs'\nand more")

    monkeypatch.setattr(peers.importlib, "import_module", fail)
    text = "cannot be imported: AttributeError: module 'triton' has no attribute 'knobs'"
    assert peers.find_peers().why_not == text


def test_a_time_is_that_of_one_replay_after_another_has_begun(monkeypatch):
    """A made-up GPU: a replay of "a" takes 0.1 ms, of "b" 0.4 ms; each holds 40 calls."""
    done = {"a": 0, "b": 0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.ms = 0.1 * done["a"] + 0.4 * done["b"]

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.ms - self.ms

    def replay(name):
        done[name] += 1

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.0)
    graphs = {name: Graph(lambda name=name: replay(name), 40) for name in done}
    assert timing.times_us(graphs) == pytest.approx({"a": 2.5, "b": 10.0})
    assert done == {"a": 2 * timing.N_REPLAYS, "b": 2 * timing.N_REPLAYS}
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.02)
    timing.times_us(graphs)
    assert min(done.values()) > 4 * timing.N_REPLAYS


def test_a_part_that_fails_is_written_raised_and_costs_no_other(tmp_path, monkeypatch, capsys):
    def fail():
        raise RuntimeError("out of resources")

    fail.__name__ = "products"
    monkeypatch.setattr(products, "ceilings", lambda: [row_of("copy", (0, 0, 0), 1.0, 1.0)])
    monkeypatch.setattr(products, "products", fail)
    monkeypatch.setattr(products, "training", list)
    monkeypatch.setattr(start, "why_unavailable", lambda: "")
    monkeypatch.setattr(bench_gpu, "facts", lambda: {"gpu": "G", "torch": "T", "date": "D"})
    with pytest.raises(RuntimeError, match="out of resources"):
        bench_gpu.main(["--out", str(tmp_path)])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["kernel"] for row in report["rows"]] == ["copy"]
    assert report["not_measured"][0] == "products: RuntimeError: out of resources"
    assert "not measured: products" in capsys.readouterr().out


class OnCpu(TorchFunctionMode):
    """Makes every tensor that is asked for on a GPU in memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def test_the_whole_program_runs_with_a_made_up_clock(tmp_path, monkeypatch, capsys):
    """Every call that a GPU would run is run once, on the CPU; times are 2 us each."""

    def run_once(calls, launches=0):
        calls[0]()
        return Graph(lambda: None, len(calls))

    def clock(call, leaves):
        call()
        assert [leaf.grad is not None for leaf in leaves] in ([True, True, False], [True] * 3)
        return 2.0

    found = with_gemlite(monkeypatch)
    found.make_graph, found.device = run_once, "cpu"
    changes = {
        "graph_of": run_once, "times_us": lambda graphs: dict.fromkeys(graphs, 2.0),
        "time_eager_us": clock, "SHAPES": ((64, 128), (32, 64)), "PEER_SHAPES": ((64, 128),),
        "TRAINING": ((8, 32, 16),), "COPY_BYTES": 1 << 10, "SQUARE": 8,
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(products, name, value)
    monkeypatch.setattr(peers, "find_peers", lambda: found)
    gpu = SimpleNamespace(L2_cache_size=4096, major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Made-up GPU")
    monkeypatch.setattr("torch.compile", lambda function: function)
    monkeypatch.setattr(start, "why_unavailable", lambda: "")
    with OnCpu():
        assert bench_gpu.main(["--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    counts = Counter(row["kernel"] for row in report["rows"])
    assert counts == {
        "copy": 1, "bf16_peak": 1, "ternary": 12, "cublas_bf16": 12, "gemlite_a8": 3,
        "gemlite_a16": 3, "int8_layer": 1, "bf16_layer": 1,
    }  # fmt: skip
    assert all(row["us"] == 2.0 for row in report["rows"])
    assert report["gpu"] == "Made-up GPU"
    assert report["compute_capability"] == "9.0"
    assert "of the peer" in capsys.readouterr().out
