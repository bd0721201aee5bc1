"""The benchmark of a training step: both sides are what they say they are."""

from __future__ import annotations

import sys

import pytest
import torch

from kernels.bench_gpu import start
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.model import products
from nanochat_lib.train import bench
from nanochat_lib.train.bench import GPU_SHAPES, GPU_SIDES, Plain, _configs, step_rows

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (128, 2, 3, 192, 512, 16, 2)


def test_the_plain_side_runs_as_many_weights_without_rounding():
    config, _ = _configs(SHAPE)
    plain = Plain(config)
    plain.run_layer = lambda layer, x, rope: layer(x, rope)
    n_plain = sum(p.numel() for p in plain.parameters())
    executed = count_parameters(config).executed
    gate, extra_norms = config.d_model + 1, 0
    assert n_plain == executed - gate - extra_norms
    logits = plain(torch.randint(0, 512, (2, 16)))
    assert logits.shape == (2, 16, 512)
    logits[:, 7].sum().backward()  # causal and differentiable
    assert all(p.grad is not None for p in plain.parameters())


def test_a_row_has_int8_beside_bfloat16_and_shares_of_the_same_peak(monkeypatch):
    """With compilation left out; the third side alone quantises to codes, once in each step."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench, "matmul_peak", lambda *_: 1e9)
    loss = bench.stage_one_loss
    monkeypatch.setattr(bench, "stage_one_loss", lambda *a, is_compiled, **o: loss(*a, **o))
    calls, original = [], products.ternary
    monkeypatch.setattr(products, "ternary", lambda w: calls.append(1) or original(w))
    (row,) = step_rows({"tiny": (*SHAPE[:-1], 4, 2)}, 1, sides=GPU_SIDES)
    assert len(calls) == 7 * 2 * 3  # matrices, layers, steps: two before the one that counts
    assert row["tokens"] == 4 * 16
    assert row["int8_gain"] == pytest.approx(row["step_ms"] / row["int8_ms"], rel=0.1)
    assert row["of_plain"] == pytest.approx(row["plain_ms"] / row["step_ms"], rel=0.1)
    flops = row["of_peak"] * row["step_ms"]  # the same for both
    assert row["int8_of_peak"] * row["int8_ms"] == pytest.approx(flops, rel=0.05)


def test_shapes_for_a_gpu_are_as_wide_as_the_target_says():
    for shape in GPU_SHAPES.values():
        config, plan = _configs(shape)
        assert config.d_model >= 2048
        assert plan.grad_accum_steps > 1


def test_without_a_gpu_it_says_why_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "why_unavailable", lambda: "no GPU: here")
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu", "--json", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    assert "Nothing was measured: no GPU: here." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
