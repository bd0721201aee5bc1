"""The policy's step: clipped ratios, KL to the base, and what a warm start learns from."""

from __future__ import annotations

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_maxrl import PLAN, TASKS, rollout, small_model

from nanochat_lib.records import Verdict
from nanochat_lib.train.maxrl import rate_share
from nanochat_lib.train.rl.advantage import policy_loss
from nanochat_lib.train.rl.policy import Policy, compare, score, token_kl
from nanochat_lib.train.rl.warm_start import distinct_passed, warm_start

MADE = [
    rollout(tokens=(5, 6, 7)),
    rollout(tokens=(40, 41), verdict=Verdict.TEST_FAILED, prompt_ids=(9, 8)),
    rollout(tokens=(100, 3, 44, 5), prompt_ids=(1, 2, 3, 4)),
]
ADVANTAGE = np.array([1.0, -1.0, 0.5])


def float_model():
    """Without int8 rounding of activations, so that tiny steps have tiny effects."""
    return small_model(ternary=False)


def policy_of(model, base=None, **changes) -> Policy:
    """One rate for all weights, unless another is given for the matrices."""
    rate = changes.get("learning_rate", PLAN.learning_rate)
    changes = {"matrix_learning_rate": rate, **changes}
    return Policy(model, PLAN.model_copy(update=changes), base)


def whole_update(policy: Policy, scale: float = 24.0):
    policy.begin()
    policy.learn(MADE, ADVANTAGE, scale=scale)
    return policy.step(scale=scale)


@torch.no_grad()
def chance_of_first(model) -> float:
    return float(score(model, MADE[:1], 1.0).log_prob.sum())


def test_clipped_loss_is_ppos_by_hand() -> None:
    ratio = torch.tensor([[0.5, 0.9, 1.1, 1.5]], dtype=torch.float64)
    old = torch.full_like(ratio, -1.3)
    mask = torch.tensor([[True, True, True, True]])
    for advantage, expected in ((1.0, [0.5, 0.9, 1.1, 1.3]), (-2.0, [-1.6, -1.8, -2.2, -3.0])):
        loss = policy_loss(
            old + ratio.log(), torch.tensor([advantage], dtype=torch.float64), mask,
            scale=4, old=old, clip=(0.2, 0.3),
        )  # fmt: skip
        assert float(loss) == pytest.approx(-sum(expected) / 4)


def test_at_ratio_one_the_clipped_loss_has_the_gradient_of_the_plain_one() -> None:
    log_prob = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [4]])
    advantage = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    gradients = [
        torch.autograd.grad(policy_loss(log_prob, advantage, mask, scale=7, old=old), log_prob)[0]
        for old in (None, log_prob.detach())
    ]
    torch.testing.assert_close(*gradients)


def test_tokens_beyond_the_clip_have_no_slope() -> None:
    old = torch.zeros(1, 2)
    log_prob = torch.tensor([[0.5, -0.5]], requires_grad=True)  # ratios 1.65 and 0.61
    mask = torch.ones(1, 2, dtype=torch.bool)
    for advantage, slopes in ((1.0, [False, True]), (-1.0, [True, False])):
        loss = policy_loss(log_prob, torch.tensor([advantage]), mask, scale=1, old=old)
        found = torch.autograd.grad(loss, log_prob)[0][0]
        assert [bool(g) for g in found] == slopes


def test_further_steps_go_further_and_say_what_they_clipped() -> None:
    gaps = []
    for inner_steps in (1, 4):
        model = float_model()
        start = chance_of_first(model)
        policy = policy_of(model, inner_steps=inner_steps, learning_rate=0.002, clip_low=0.01)
        step = whole_update(policy)
        gaps.append(chance_of_first(model) - start)
        assert (step.clipped_share > 0) == (inner_steps > 1)
    assert 0 < gaps[0] < gaps[1]


def test_the_first_of_several_steps_is_the_on_policy_one() -> None:
    norms = []
    for inner_steps in (1, 3):
        norms.append(whole_update(policy_of(float_model(), inner_steps=inner_steps)).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_parts_of_an_update_add_up_to_the_whole() -> None:
    whole, parts = float_model(), float_model()
    whole_update(policy_of(whole))
    policy = policy_of(parts)
    policy.begin()
    for i in range(3):
        policy.learn(MADE[i : i + 1], ADVANTAGE[i : i + 1], scale=24.0)
    policy.step(scale=24.0)
    for (name, a), (_, b) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_an_abandoned_update_leaves_nothing_behind() -> None:
    clean, disturbed = float_model(), float_model()
    whole_update(policy_of(clean))
    policy = policy_of(disturbed)
    policy.begin()
    policy.learn(MADE[:1], np.array([9.0]), scale=1.0)  # never ended
    whole_update(policy)
    for a, b in zip(clean.parameters(), disturbed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_kl_is_that_of_torch_over_the_whole_vocabulary() -> None:
    one, other = float_model(), float_model()
    with torch.no_grad():
        other.head.weight.add_(torch.randn(other.head.weight.shape) * 0.05)
    with torch.no_grad():
        scored, base = score(one, MADE, 0.8), score(other, MADE, 0.8).log_probs
    expected = torch.nn.functional.kl_div(
        base, scored.log_probs, reduction="none", log_target=True
    ).sum(-1)
    found = token_kl(scored, base)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()
    assert float(token_kl(scored, scored.log_probs).abs().max()) == 0
    told = compare(one, other, MADE, 0.8)
    assert told["kl_nats"] == pytest.approx(float(found.mean()), rel=1e-4)
    assert 1 <= told["expected_loops"] <= 2
    assert compare(one, one, MADE, 0.8)["kl_nats"] == pytest.approx(0, abs=1e-6)


def test_a_kl_term_keeps_the_policy_near_its_base() -> None:
    far = []
    for kl_weight in (0.0, 30.0):
        model = float_model()
        base = copy.deepcopy(model)
        policy = policy_of(model, base, kl_weight=kl_weight, learning_rate=0.003)
        for _ in range(6):
            step = whole_update(policy)
        far.append(compare(model, base, MADE, 1.0)["kl_nats"])
        assert (step.kl_nats > 0) == bool(kl_weight)
    assert far[1] < far[0] / 2


def test_a_kl_term_also_counts_rollouts_without_advantage() -> None:
    model = float_model()
    policy = policy_of(model, float_model(), kl_weight=1.0, learning_rate=1e-4)
    with torch.no_grad():
        model.head.weight.mul_(4)
    before = compare(model, policy.base, MADE, 1.0)["kl_nats"]
    policy.begin()
    policy.learn(MADE, np.zeros(3), scale=24.0)
    assert policy.step(scale=24.0).grad_norm > 0
    assert compare(model, policy.base, MADE, 1.0)["kl_nats"] < before


def test_a_kl_term_without_base_is_refused() -> None:
    with pytest.raises(ValueError, match="base model"):
        whole_update(policy_of(float_model(), kl_weight=1.0))


def test_only_distinct_programs_that_passed_are_learned_from() -> None:
    same = rollout(completion="\n    n  +  1\n}")
    made = [
        rollout(), same, rollout(completion="\n    1 + n\n}"), rollout(task=TASKS[1]),
        rollout(completion="\n    n - 9\n}", verdict=Verdict.TEST_FAILED),
        rollout(completion="\n    n - 8\n}", verdict=Verdict.UNJUDGED),
    ]  # fmt: skip
    assert distinct_passed(made) == [made[0], made[2], made[3]]


def test_a_warm_start_makes_what_passed_likelier() -> None:
    model = float_model()
    attempts = SimpleNamespace(all=lambda *args, **settings: MADE)
    before = score(model, MADE, 1.0).log_prob.sum(1).detach()
    plan = PLAN.model_copy(update={"warm_start_epochs": 3, "learning_rate": 0.003})
    found = warm_start(model, TASKS[:3], attempts, plan, seed=0, dtype=torch.float32)
    after = score(model, MADE, 1.0).log_prob.sum(1)
    assert (after > before)[[0, 2]].all()
    assert (found["n_judged"], found["n_passed"], found["n_used"]) == (3, 2, 1)
    assert found["n_steps"] == 3
    assert isinstance(Counter(found["seconds"]), Counter)


def test_the_heads_scale_is_learned_by_itself_and_folded_in() -> None:
    """One step of Adam moves the scale by its own rate, and nothing else by its size."""
    for good, sign in ((1.0, 1), (-1.0, -1)):
        model = float_model()
        policy = policy_of(model, learning_rate=1e-9, gain_learning_rate=0.05)
        before = model.head.weight.detach().clone()
        sure = [rollout(tokens=tuple(most_likely(model, 4)), prompt_ids=(9, 8, 7))]
        policy.begin()
        policy.learn(sure, np.array([good]), scale=1.0)
        policy.step(scale=1.0)
        expected = before * float(np.exp(sign * 0.05))
        torch.testing.assert_close(model.head.weight.detach(), expected, rtol=1e-4, atol=1e-6)
        assert float(policy.log_gain) == 0


@torch.no_grad()
def most_likely(model, n: int) -> list[int]:
    ids = [9, 8, 7]
    for _ in range(n):
        ids.append(int(model.logits(model(torch.tensor([ids])).hidden[-1])[0, -1].argmax()))
    return ids[3:]


def test_no_rate_no_scale() -> None:
    model = float_model()
    policy = policy_of(model, learning_rate=1e-9, gain_learning_rate=0.0)
    before = model.head.weight.detach().clone()
    whole_update(policy)
    torch.testing.assert_close(model.head.weight.detach(), before, rtol=0, atol=1e-6)


def test_rates_stay_and_then_fall_to_nothing() -> None:
    shares = [rate_share(step, 8) for step in range(8)]
    assert shares == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    policy = policy_of(float_model(), learning_rate=0.01)
    policy.set_rate(0.25)
    assert policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)
    policy.set_rate(1.0)
    assert policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_ternary_matrices_have_a_rate_of_their_own() -> None:
    model = float_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    whole_update(policy_of(model, matrix_learning_rate=0.0))
    moved = {n.split(".")[-2] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"embed", "head", "final_norm"} <= moved
    assert moved.isdisjoint({"q", "k", "v", "o", "gate", "up", "down"})


def test_the_optimisers_state_survives_a_checkpoint() -> None:
    """Groups of rates have another order than the model's parameters."""
    straight, resumed = float_model(), float_model()
    policy, first = policy_of(straight), policy_of(resumed)
    whole_update(policy)
    whole_update(first)
    second = policy_of(resumed)
    second.load_state_tensors(first.state_tensors())
    whole_update(policy)
    whole_update(second)
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
