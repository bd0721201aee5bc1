"""The GPU engine's launches, run on the CPU, against the CPU engine on the same model."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_shim import Shim, compiled

from kernels.cuda.driver import why_unavailable
from kernels.cuda.products import Device
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.decoding.gpu import Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.gpu_batch import generate
from nanochat_lib.model.decoding.packed import load_weights, new_weights, shape_of
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.engine_gpu import GpuEngine, generations
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Sampling, seeds_of

CONFIG = ModelConfig(
    vocab_size=300, d_model=32, n_layers=2, n_loops=3, n_heads=4, n_kv_heads=2, d_ff=48,
    max_seq_len=40,
)  # fmt: skip
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [250, 3, 3, 17]]


class HereMemory:
    """NumPy arrays that begin at multiples of 128 bytes."""

    def place(self, array):
        raw = np.zeros(array.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 128
        copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def put(self, target, array):
        target.reshape(-1)[: array.size] = array.reshape(-1)

    def fetch(self, array):
        return array.copy()


@pytest.fixture(scope="module")
def model() -> LoopLM:
    model = LoopLM(CONFIG, seed=3)
    model.head.weight.data *= 20  # clear choices
    model.exit_gate.weight.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def step(model) -> Step:
    runner = Shim(compiled(defines=("HEAD_SIZE=8",)))
    weights = new_weights(CONFIG, 40, "2bit")
    load_weights(weights, model, "2bit")
    memory, gpu = HereMemory(), Device(n_multiprocessors=2, max_shared=99 << 10)
    step = Step(shape_of(CONFIG, "2bit"), weights, Sizes(4, 40, 12), runner, gpu, memory)
    runner.allow(*(packed for packed, _ in step.arguments.matrices.values()))
    return step


def run(step, threshold=1.0, temperature=0.0, stop=()):
    step.put(is_stop=np.isin(np.arange(300), stop).astype(np.uint8))
    sampling = (temperature, (0, 1.0), threshold)
    lengths = generate(step, PROMPTS, seeds_of(5, 3), 6, sampling, lambda once: once)
    return generations(step, lengths)


def test_greedy_tokens_are_the_best_of_the_cpu_engine(model, step):
    """Keys and values in float16 move logits a little; the token taken is the best within that."""
    engine = Engine.from_model(model, threads=1, max_batch=1)
    for prompt, found in zip(PROMPTS, run(step), strict=True):
        assert len(found.tokens) == 6
        assert found.exit_loops == [3] * 6
        logits = engine.logits([*prompt, *found.tokens])[len(prompt) - 1 : -1]
        for row, token in zip(logits, found.tokens, strict=True):
            assert row[token] >= row.max() - 0.02
        chance = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
        chance /= chance.sum(1, keepdims=True)
        entropy = -(chance * np.log(np.maximum(chance, 1e-30))).sum(1)
        np.testing.assert_allclose(found.token_entropy, entropy, atol=0.02)


def test_leaving_early_is_that_of_the_cpu_engine(model, step):
    engine = Engine.from_model(model, threads=1, max_batch=3)
    sampling = Sampling(6, temperature=0, exit_threshold=0.75)
    wanted, found = engine.generate(PROMPTS, sampling, seed=5), run(step, threshold=0.75)
    assert {loops for one in wanted for loops in one.exit_loops} >= {2, 3}
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.exit_loops for one in found] == [one.exit_loops for one in wanted]


def test_sampling_and_stop_tokens_are_those_of_the_cpu_engine(model, step):
    engine = Engine.from_model(model, threads=1, max_batch=3)
    free = engine.generate(PROMPTS, Sampling(6, 0.8), seed=5)
    stop = free[0].tokens[2]
    wanted = engine.generate(PROMPTS, Sampling(6, 0.8, stop_ids=frozenset([stop])), seed=5)
    found = run(step, temperature=0.8, stop=(stop,))
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert found[0].tokens[-1] == stop


def test_without_a_gpu_or_for_another_shape_the_engine_says_why(model):
    if why_unavailable():
        with pytest.raises(WorkbenchError, match="GPU engine cannot run: no GPU"):
            GpuEngine.from_model(model)
    odd = LoopLM(CONFIG.model_copy(update={"n_heads": 8}))
    with pytest.raises(WorkbenchError, match="heads of 4"):
        GpuEngine.from_model(odd)
