"""On a GPU: the engine gives the texts of the CPU engine, with its step replayed as a graph."""

from __future__ import annotations

import pytest

from kernels.cuda.driver import why_unavailable
from nanochat_lib.config import HardwareConfig, ModelConfig
from nanochat_lib.model.backend import PROBE, open_engine
from nanochat_lib.model.decoding.agreement import ENTROPY_LIMIT, LOGIT_LIMIT
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.engine_gpu import GpuEngine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Draft, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "a GPU is there"),
]


@pytest.mark.parametrize("draft", [None, Draft(1, 4)])
@pytest.mark.parametrize("max_batch", [1, 32])
def test_the_front_hands_out_a_gpu_far_within_its_limits(max_batch, draft, record_property, capsys):
    """Half the limits: what is found here says whether they should be moved."""
    engine = open_engine(
        LoopLM(PROBE, seed=1),
        HardwareConfig(decode_device="cuda"),
        max_batch=max_batch,
        draft=draft,
    )
    found = engine.agreement
    record_property("agreement", str(found))
    with capsys.disabled():
        print(f"\n{max_batch} sequences, {draft}: {found}")
    assert found.logit_lag < LOGIT_LIMIT / 2
    assert found.entropy_gap < ENTROPY_LIMIT / 2


@pytest.mark.parametrize("loops", ["graph", "persistent"])
@pytest.mark.parametrize("threshold", [1.0, 0.75])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_are_those_of_the_cpu_engine(threshold, temperature, loops):
    """Nearly all: keys and values in float16 may turn a choice between two equals."""
    config = ModelConfig(n_loops=3, n_layers=2)
    model = LoopLM(config, seed=3)
    model.head.weight.data *= 20
    model.exit_gate.weight.data.normal_(std=0.3)
    prompts = [[i, 5, 7 * i % 300, 2, i * i % 500] for i in range(1, 50)]
    sampling = Sampling(20, temperature, exit_threshold=threshold)
    wanted = Engine.from_model(model).generate(prompts, sampling)
    found = GpuEngine.from_model(model, loops=loops).generate(prompts, sampling)
    equal = sum(a.tokens == b.tokens for a, b in zip(found, wanted, strict=True))
    assert equal >= 0.9 * len(prompts)


@pytest.mark.parametrize("n_prompts", [1, 3, 12, 30])
def test_the_persistent_kernel_gives_the_bits_of_the_graph(n_prompts):
    """Twice each: a barrier that lets a block ahead shows as a run that differs."""
    model = LoopLM(ModelConfig(n_loops=3, n_layers=2), seed=3)
    prompts = [[i + 1, 5, 2] for i in range(n_prompts)]
    sampling = Sampling(100, 1.0, exit_threshold=0.75)
    found = []
    for loops in ("graph", "persistent"):
        engine = GpuEngine.from_model(model, max_batch=n_prompts, loops=loops)
        found += [engine.generate(prompts, sampling) for _ in range(2)]
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafted_texts_are_those_of_the_cpu_engine_that_drafts(temperature):
    model = LoopLM(ModelConfig(n_loops=3, n_layers=2), seed=3)
    model.head.weight.data *= 20
    prompts, draft = [[i, 5, 7 * i % 300, 2] for i in range(1, 30)], Draft(1, 4)
    sampling = Sampling(20, temperature)
    wanted = Engine.from_model(model, draft=draft).generate(prompts, sampling)
    found = GpuEngine.from_model(model, draft=draft).generate(prompts, sampling)
    equal = sum(a.tokens == b.tokens for a, b in zip(found, wanted, strict=True))
    assert equal >= 0.9 * len(prompts)


@pytest.mark.parametrize("draft", [None, Draft(1, 3)])
@pytest.mark.parametrize("n_prompts", [1, 9])
def test_sanitizer_every_kernel_of_a_step(n_prompts, draft):
    """Both ways to run the loops give the same bits, with prompts that are read and copied."""
    config = ModelConfig(n_loops=2, n_layers=1)
    engine = GpuEngine.from_model(LoopLM(config, seed=3), max_batch=n_prompts, draft=draft)
    prompts = [[1, 2, 3, i // 2] for i in range(2 * n_prompts)]
    samplings = [Sampling(6, 0.0), Sampling(6, 0.9, top_k=20, top_p=0.9)]
    if draft is None:
        samplings.append(Sampling(6, 0.9, exit_threshold=0.55))
    found = []
    for loops in ("graph", "persistent"):
        engine.use(loops)
        found.append([engine.generate(prompts, sampling) for sampling in samplings])
    assert found[0] == found[1]
    assert all(len(text.tokens) == 6 for texts in found[0] for text in texts)
