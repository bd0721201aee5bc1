"""Optimisers: Muon against torch's, the schedule by hand, the state through a round trip."""

from __future__ import annotations

import copy

import pytest
import torch

from nanochat_lib.config import ModelConfig, PretrainConfig
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train.optim import Muon, Optimizers, lr_at, orthogonalize

TINY = ModelConfig(
    vocab_size=300, d_model=32, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=48,
    max_seq_len=16,
)  # fmt: skip
PLAN = PretrainConfig(total_steps=10, warmup_steps=2, decay_steps=4)


def test_schedule_by_hand():
    rates = [lr_at(s, 1.0, warmup_steps=2, decay_steps=4, total_steps=10) for s in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert lr_at(5, 2.0, warmup_steps=0, decay_steps=0, total_steps=10) == 2.0


@pytest.mark.parametrize("shape", [(1, 24, 40), (1, 40, 24), (3, 16, 40)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(1)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_muon_makes_the_steps_of_torchs_muon():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s)) for s in ((24, 16), (16, 24), (24, 16))]
    theirs = copy.deepcopy(ours)
    optimizers = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    )
    start = [p.detach().clone() for p in ours]
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, first in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - first).norm()  # theirs iterates in bfloat16


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_trained_once(name):
    model = LoopLM(TINY)
    plan = PLAN.model_copy(update={"optimizer": name})
    groups = [g for m in Optimizers(model, plan).members for g in m.param_groups]
    trained = [id(p) for g in groups for p in g["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    muon = [m for m in Optimizers(model, plan).members if isinstance(m, Muon)]
    assert bool(muon) == (name == "muon")


def test_weight_decay_ends_at_half_time_and_rates_follow_the_schedule():
    model = LoopLM(TINY)
    optimizers = Optimizers(model, PLAN)
    seen = {}
    for step in (0, 4, 5, 9):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        rate = optimizers.step(step)
        muon, tables = optimizers.members[0].param_groups[0], optimizers.members[1].param_groups[0]
        seen[step] = (rate, muon["lr"], muon["weight_decay"], tables["weight_decay"])
    assert seen[0] == (0.0015, 0.004, 0.1, 0.1)
    assert seen[4] == (0.003, 0.008, 0.1, 0.1)
    assert seen[5] == (0.003, 0.008, 0.0, 0.0)
    assert seen[9] == (0.003 / 4, 0.002, 0.0, 0.0)


def test_norms_and_gate_never_decay():
    optimizers = Optimizers(LoopLM(TINY), PLAN)
    vectors = [g for g in optimizers.members[1].param_groups if g["base_decay"] == 0]
    assert all(p.ndim == 1 for g in vectors for p in g["params"])
    assert len(vectors[0]["params"]) == 4  # three norms, one bias of the gate


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_round_trip_continues_exactly(name):
    plan = PLAN.model_copy(update={"optimizer": name})
    model = LoopLM(TINY)
    optimizers = Optimizers(model, plan)

    def update(model, optimizers, step):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizers.step(step)

    for step in range(3):
        update(model, optimizers, step)
    twin = copy.deepcopy(model)
    restored = Optimizers(twin, plan)
    restored.load_state_tensors(
        {k: v.clone() for k, v in optimizers.state_tensors().items()} | {"rng": torch.zeros(1)}
    )
    for step in (3, 4):
        update(model, optimizers, step)
        update(twin, restored, step)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
