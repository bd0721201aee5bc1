"""Activation checkpointing: the same gradients for less memory, counted tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from test_pretrain import TINY, Recorder, ToyData, configured

from nanochat_lib.config import ModelConfig, PretrainConfig, RunConfig
from nanochat_lib.hardware.memory import activation_bytes, training_memory_gb
from nanochat_lib.hardware.planner import count_parameters, make_plan, train_flops_per_token
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety.memory import LiveBytes, recomputed

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = ("none", "layer", "loop")
SHAPES = {
    "wide": {"n_layers": 3, "n_loops": 4, "d_model": 64, "d_ff": 192},
    "deep": {"n_layers": 6, "n_loops": 3, "d_model": 64, "d_ff": 128},
    "loops": {"n_layers": 1, "n_loops": 6, "d_model": 96, "d_ff": 256},
}


def shaped(name):
    heads = {"n_heads": 4, "n_kv_heads": 4, "vocab_size": 300, "max_seq_len": 64}
    return ModelConfig(**SHAPES[name], **heads)


def step(model, tokens, mode, dtype=torch.float32, *, is_int8=False):
    """Return (peak bytes, gradients) of a forward and backward pass over all exits."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    live = LiveBytes()
    int8 = execution.int8_products(model, is_int8)
    cast = execution.autocast(torch.device("cpu"), dtype)
    with live, int8, recomputed(model, mode), cast:
        hidden = model(tokens).hidden
        sum(h.float().square().mean() * (r + 1) for r, h in enumerate(hidden)).backward()
    return live.peak, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_equal_and_memory_falls_as_the_planner_says(shape, dtype):
    config = shaped(shape)
    model, tokens = LoopLM(config, seed=1), torch.randint(0, 300, (32, 64))
    with torch.no_grad():
        model.final_norm.weight.uniform_(0.5, 1.5)  # else the norm's square is constant
    weights = sum(p.numel() for p in model.layers.parameters()) * (4 + 2 * (dtype != torch.float32))
    peaks, gradients = {}, {}
    for mode in MODES:
        peaks[mode], gradients[mode] = step(model, tokens, mode, dtype)
        plan = PretrainConfig(
            micro_batch_size=32, batch_size=32, seq_len=64, activation_checkpointing=mode,
            dtype=str(dtype).removeprefix("torch."),
        )  # fmt: skip
        estimate = sum(activation_bytes(RunConfig(model=config, pretrain=plan)))
        assert 0.65 < (peaks[mode] - weights) / estimate < 1.5, (mode, peaks[mode], estimate)
    assert peaks["none"] > 1.8 * peaks["layer"]
    if config.n_layers > 1:
        assert peaks["layer"] > peaks["loop"]
    assert max(float(g.abs().max()) for g in gradients["none"].values()) > 0
    for mode in ("layer", "loop"):
        for name, gradient in gradients["none"].items():
            assert torch.equal(gradient, gradients[mode][name]), (mode, name)


@pytest.mark.parametrize("products", ["float", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_the_planner_knows_what_products_need(mode, dtype, products):
    """A model with few positions shows what weights take, one with many what activations do."""
    big = ModelConfig(
        n_layers=6, n_loops=3, d_model=256, d_ff=768, n_heads=4, n_kv_heads=4, vocab_size=300,
        max_seq_len=64,
    )  # fmt: skip
    for config, n_rows, n_positions in ((big, 1, 8), (shaped("wide"), 32, 64)):
        plan = PretrainConfig(
            micro_batch_size=n_rows, batch_size=n_rows, seq_len=n_positions, dtype=dtype,
            activation_checkpointing=mode, products=products,
        )  # fmt: skip
        run = RunConfig(model=config, pretrain=plan)
        parts = training_memory_gb(run, count_parameters(config))
        tokens = torch.randint(0, 300, (n_rows, n_positions))
        peak, _ = step(
            LoopLM(config, seed=1), tokens, mode, getattr(torch, dtype), is_int8=products == "int8"
        )
        estimate = 1e9 * (parts["products"] + parts["activations"])
        assert 0.65 < peak / estimate < 1.5, (n_positions, peak, estimate)


@pytest.mark.parametrize("mode", ["layer", "loop"])
def test_training_with_checkpoints_is_training(tmp_path, mode):
    losses = {}
    for each, exits in (("none", "auto"), (mode, "kept"), (mode, "auto")):
        recorder = Recorder()
        config = configured(
            total_steps=6, gate_steps=0, activation_checkpointing=each, exit_gradients=exits
        )
        pretrain(config, ToyData(), tmp_path / each / exits, log=recorder)
        losses[each, exits] = [loss for _, loss in recorder.series(Metric.LOSS)]
    assert losses[mode, "kept"] == losses["none", "auto"]
    # Remade gradients add the same terms in another order, and a ternary code may flip by that.
    assert losses[mode, "auto"] == pytest.approx(losses["none", "auto"], rel=0.01)


def test_the_model_is_left_as_it_was():
    model = LoopLM(TINY)
    before = model.run_layer, model.run_layers
    with recomputed(model, "loop"):
        assert model.run_layer is not before[0]
        assert model.run_layers is not before[1]
    assert (model.run_layer, model.run_layers) == before


@pytest.mark.parametrize(("mode", "factor"), [("none", 1), ("layer", 8 / 6), ("loop", 10 / 6)])
def test_recomputing_costs_flops_that_the_plan_counts(mode, factor):
    config = RunConfig.model_validate(
        {"pretrain": {"activation_checkpointing": mode}, "targets": {"tokens_per_s": 1e6}}
    )
    models_own = train_flops_per_token(config.model, config.pretrain.seq_len)
    assert make_plan(config).required_tflops == pytest.approx(factor * models_own * 1e6 / 1e12)


@pytest.mark.slow
@pytest.mark.skipif(not execution.find_cxx(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("mode", ["layer", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_are_recomputed_too(mode, dtype):
    model, tokens = LoopLM(shaped("wide"), seed=1), torch.randint(0, 300, (4, 32))
    found = {}
    for each in ("none", mode):
        model.zero_grad(set_to_none=True)
        compiled = execution.compiled_layers(model, True)
        with compiled, recomputed(model, each), execution.autocast(torch.device("cpu"), dtype):
            sum(h.float().pow(4).mean() for h in model(tokens).hidden).backward()
        found[each] = {name: p.grad.clone() for name, p in model.named_parameters()
                       if p.grad is not None}  # fmt: skip
    for name, gradient in found["none"].items():
        torch.testing.assert_close(found[mode][name], gradient, rtol=1e-5, atol=1e-7)
