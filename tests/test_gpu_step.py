"""The GPU engine's launches, run on the CPU, against the CPU engine on the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_shim import Shim, compiled

from kernels.cuda.driver import why_unavailable
from kernels.cuda.products import Device
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.decoding import gpu_batch
from nanochat_lib.model.decoding.gpu import Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.gpu_batch import generate
from nanochat_lib.model.decoding.packed import load_weights, new_weights, shape_of
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.engine_gpu import GpuEngine
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
    generator = torch.Generator().manual_seed(1)
    model.exit_gate.weight.data.normal_(std=0.3, generator=generator)
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
    return generate(step, PROMPTS, seeds_of(5, 3), 6, sampling, lambda once: once)


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


MANY = [*PROMPTS, PROMPTS[0], [250, 3, 3], [9, 1], PROMPTS[0], [4]]


def batched(step, prompts, seeds):
    sampling = (0.8, (0, 1.0), 0.8)
    return generate(step, prompts, seeds, 9, sampling, lambda once: once)


@pytest.mark.parametrize("loops", ["graph", "persistent"])
def test_sequences_take_free_slots_and_write_what_they_write_alone(step, monkeypatch, loops):
    """Eight prompts of which three are equal, four slots, ends at different lengths."""
    monkeypatch.setattr(gpu_batch, "LOOK_EVERY", 2)
    monkeypatch.setattr(step, "loops", loops)
    step.put(is_stop=(np.arange(300) % 4 == 1).astype(np.uint8))
    seeds = seeds_of(2, len(MANY))
    alone = [batched(step, [p], seeds[i : i + 1])[0] for i, p in enumerate(MANY)]
    kept = len(step.launcher.launched)
    assert batched(step, MANY, seeds) == alone
    names = step.launcher.launched[kept:]
    lengths = sorted(len(one.tokens) for one in alone)
    assert lengths[0] < 4
    assert lengths[-1] == 9
    # Waiting for whole groups of four would take the longest of each.
    groups = sum(max(len(one.tokens) for one in alone[i : i + 4]) for i in (0, 4))
    assert names.count("append") < groups + groups % 2
    passes = names.count("begin") + names.count("loops_1") - names.count("append")
    # 6 + 0 + 3 tokens at first, four a pass, then [250, 3] and [9]: nothing is read twice.
    assert passes <= 3 + 1 + 1


def test_a_prompt_is_read_once_for_all_its_samples(step):
    step.put(is_stop=np.zeros(300, np.uint8))
    kept = len(step.launcher.launched)
    texts = batched(step, [PROMPTS[0]] * 6, seeds_of(1, 6))
    names = step.launcher.launched[kept:]
    assert names.count("begin") - names.count("append") == 2  # six tokens, four a pass
    assert len({tuple(one.tokens) for one in texts}) > 1
    assert batched(step, [PROMPTS[0]], seeds_of(1, 6)[5:]) == texts[5:]


def test_without_a_gpu_or_for_another_shape_the_engine_says_why(model):
    if why_unavailable():
        with pytest.raises(WorkbenchError, match="GPU engine cannot run: no GPU"):
            GpuEngine.from_model(model)
    odd = LoopLM(CONFIG.model_copy(update={"n_heads": 8}))
    with pytest.raises(WorkbenchError, match="heads of 4"):
        GpuEngine.from_model(odd)
