"""Drafting on a GPU, run on the CPU: the texts are those of all loops, and of the CPU engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_shim import Shim
from test_gpu_loops import library
from test_gpu_step import CONFIG, HereMemory

from kernels.cuda.products import Device
from kernels.cuda.structs import DraftArgs, SampleArgs, address
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.decoding.gpu import Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.gpu_batch import generate
from nanochat_lib.model.decoding.packed import load_weights, new_weights, shape_of
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.engine_gpu import sizes_of
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Draft, Generation, Sampling, seeds_of

# The last is cut off by the end of its sequence, in the middle of what is drafted.
PROMPTS = [[1, 2, 3, 4], [9], [*range(2, 38)]]


@pytest.fixture(scope="module")
def model() -> LoopLM:
    model = LoopLM(CONFIG, seed=3)
    model.head.weight.data *= 20  # clear choices
    torch.manual_seed(0)
    for one in (model.layers[0], model.layers[1]):  # loops that change little: drafts that hold
        for name, parameter in one.named_parameters():
            if "norm" in name:
                parameter.data *= 0.3
    return model


def texts(model: LoopLM, sizes: Sizes, temperature: float, loops="graph", stop=300):
    weights, memory = new_weights(CONFIG, 40, "2bit"), HereMemory()
    load_weights(weights, model, "2bit")
    runner, gpu = Shim(library()), Device(n_multiprocessors=2, max_shared=99 << 10)
    step = Step(shape_of(CONFIG, "2bit"), weights, sizes, runner, gpu, memory)
    runner.allow(*(packed for packed, _ in step.arguments.matrices.values()))
    step.loops = loops
    step.put(is_stop=(np.arange(300) == stop).astype(np.uint8))
    sampling = (temperature, (0, 1.0), 1.0)
    return generate(step, PROMPTS, seeds_of(5, 3), 6, sampling, lambda once: once)


def tokens_of(found: list[Generation]) -> list[list[int]]:
    return [one.tokens for one in found]


@pytest.mark.parametrize("loops", ["graph", "persistent"])
def test_the_most_likely_text_is_that_without_drafts(model, loops):
    wanted = texts(model, Sizes(2, 40, 6), 0.0)
    found = texts(model, Sizes(2, 40, 6, 1, 3), 0.0, loops)
    assert tokens_of(found) == tokens_of(wanted)
    assert [len(one.tokens) for one in found] == [6, 6, 5]
    for one, other in zip(found, wanted, strict=True):
        assert one.exit_loops == [3] * len(one.tokens)
        np.testing.assert_allclose(one.token_entropy, other.token_entropy, atol=1e-3)
    assert sum(one.passes for one in found) < sum(len(one.tokens) for one in found)


def test_drawn_texts_are_those_of_the_cpu_engine_that_drafts(model):
    """The same drafts, refusals and replacements; keys in float16 may turn one draw in a text."""
    engine = Engine.from_model(model, threads=1, max_batch=3, max_seq_len=40, draft=Draft(1, 3))
    stop = engine.generate(PROMPTS, Sampling(6, 0.9), seed=5)[0].tokens[4]
    sampling = Sampling(6, 0.9, stop_ids=frozenset([stop]))
    wanted = engine.generate(PROMPTS, sampling, seed=5)
    found = texts(model, Sizes(3, 40, 6, 1, 3), 0.9, stop=stop)
    equal = [a == b for a, b in zip(tokens_of(found), tokens_of(wanted), strict=True)]
    assert sum(equal) >= 2
    assert found[0].tokens[-1] == stop
    free = texts(model, Sizes(3, 40, 6), 0.9, stop=stop)
    assert tokens_of(free) != tokens_of(found)  # other draws of one distribution


def test_what_is_accepted_has_the_distribution_of_all_loops():
    """4,000 sequences of one token: what they draft is drawn from quite another distribution."""
    rng, n, V = np.random.default_rng(0), 4000, 8
    wanted, kept = rng.dirichlet(np.ones(V)), rng.dirichlet(np.ones(V))
    temperature = 0.7
    logits = np.tile((np.log(wanted) * temperature).astype(np.float32), (n, 1))
    drafted = rng.choice(V, n, p=kept).astype(np.int32)
    ints, bytes_ = {}, {name: np.zeros(n, np.uint8) for name in ("finished", "verify_finished")}
    for name in ("token", "slot", "position", "verify_slot", "verify_position", "tokens",
                 "exit_loops", "place", "passes"):  # fmt: skip
        ints[name] = np.zeros(n, np.int32)
    arrays = {
        **ints, **bytes_, "final": None, "drafted": None, "drafted_token": drafted,
        "kept": np.tile(kept.astype(np.float32), (n, 1)), "is_stop": np.zeros(V, np.uint8),
        "entropies": np.zeros(n, np.float32), "limit": np.array([1], np.int32),
    }  # fmt: skip
    probability, entropy = np.zeros((n, V), np.float32), np.zeros(n, np.float32)
    drawn = (logits, probability, seeds_of(1, n), arrays["place"], arrays["token"], entropy)
    sample = SampleArgs(*map(address, drawn), n, V, V, 0, temperature, 1.0)
    names = [name for name, _ in DraftArgs._fields_[1:18]]
    args = DraftArgs(sample, *(address(arrays[name]) for name in names), 0, 1, 4, 40, 1, 3)
    Shim(library()).launch("verify", args, n, 32, shared=4 * 32)
    shares = np.bincount(arrays["tokens"], minlength=V) / n
    np.testing.assert_allclose(shares, wanted, atol=4 * np.sqrt(0.25 / n))
    held = np.minimum(wanted, kept).sum()  # a refused draft is never drawn again
    assert abs((arrays["tokens"] == drafted).mean() - held) < 4 * np.sqrt(0.25 / n)
    assert np.abs(wanted - kept).max() > 0.1
    assert arrays["finished"].all()
    assert (arrays["passes"] == 1).all()


def test_drafts_that_find_no_room_are_refused():
    assert sizes_of(CONFIG, 64, 40, 32, Draft(1, 4)) == Sizes(8, 40, 40, 1, 4)
    assert sizes_of(CONFIG, 5, 40, 32, None) == Sizes(5, 40, 40)
    for draft in (Draft(3, 4), Draft(1, 33), Draft(0, 4), Draft(1, 0)):
        with pytest.raises(WorkbenchError, match="1 to 2 of this model's 3 loops and 1 to 32"):
            sizes_of(CONFIG, 64, 40, 32, draft)
