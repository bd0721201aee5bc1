"""Advantages against closed forms by exact enumeration, and the estimator on a tiny vocabulary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from nanochat_lib.train.rl.advantage import advantages, policy_loss

KINDS = ("maxrl", "grpo", "rloo", "reinforce")


def expected_gradient(kind: str, p: float, n_rollouts: int) -> float:
    """Enumerate all 2^S outcomes of a Bernoulli policy; the score of its logit is reward - p."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=n_rollouts):
        rewards = np.array([outcome], dtype=float)
        chance = math.prod(p if r else 1 - p for r in outcome)
        weight = advantages(rewards, np.ones_like(rewards, bool), kind)
        total += chance * float((weight * (rewards - p)).mean())
    return total


def closed_form(kind: str, p: float, n: int) -> float:
    if kind == "maxrl":
        return (1 - p) - (1 - p) ** n
    if kind == "grpo":
        return sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k) * math.sqrt(k * (n - k)) / n
            for k in range(n + 1)
        )
    return p * (1 - p)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n_rollouts", [2, 4, 9])
def test_expected_gradient_has_its_closed_form(kind: str, p: float, n_rollouts: int) -> None:
    expected = closed_form(kind, p, n_rollouts)
    assert expected_gradient(kind, p, n_rollouts) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.6])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_maxrl_without_its_baseline_has_the_other_closed_form(p: float, n: int) -> None:
    """(1/K) sum r_i S_i: the advantage plus 1 wherever the prompt was solved at all."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=n):
        rewards = np.array([outcome], dtype=float)
        chance = math.prod(p if r else 1 - p for r in outcome)
        centred = advantages(rewards, np.ones_like(rewards, bool), "maxrl")
        raw = centred + 1 if any(outcome) else centred
        total += chance * float((raw * (rewards - p)).mean())
    assert total == pytest.approx((1 - p) * (1 - (1 - p) ** n), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_unjudged_rollouts_change_nothing(kind: str) -> None:
    rewards = np.array([[1.0, 0.0, 1.0, 0.0]])
    padded = np.array([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    judged = np.array([[True, False, True, True, True, False]])
    found = advantages(padded, judged, kind)
    assert (found[~judged] == 0).all()
    np.testing.assert_allclose(
        found[judged], advantages(rewards, np.ones_like(rewards, bool), kind)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_judged", [0, 1, 6])
def test_hopeless_and_unjudged_prompts_give_no_gradient(kind: str, n_judged: int) -> None:
    judged = np.arange(6)[None] < n_judged
    assert (advantages(np.zeros((1, 6)), judged, kind) == 0).all()


@pytest.mark.parametrize("kind", ["maxrl", "grpo", "rloo"])
def test_solved_prompts_give_no_gradient(kind: str) -> None:
    np.testing.assert_allclose(advantages(np.ones((2, 5)), np.ones((2, 5), bool), kind), 0)


def test_rare_successes_weigh_more_with_maxrl() -> None:
    rare, common = np.array([[1, 0, 0, 0.0]]), np.array([[1, 1, 1, 0.0]])
    judged = np.ones((1, 4), bool)
    np.testing.assert_allclose(advantages(rare, judged, "maxrl"), [[3, -1, -1, -1]], rtol=1e-4)
    assert advantages(rare, judged, "maxrl")[0, 0] > advantages(common, judged, "maxrl")[0, 0]


# A policy over two tokens of a vocabulary of three: the second token's logits depend on the first.
REWARD = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def tiny_policy(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)


def pair_log_prob(logits: torch.Tensor) -> torch.Tensor:
    first, second = logits[0].log_softmax(-1), logits[1:].log_softmax(-1)
    return first[:, None] + second  # (3, 3)


def exact_maxrl_gradient(logits: torch.Tensor, n: int) -> torch.Tensor:
    """Return the slope of MaxRL times the gradient of the pass rate p, with q = 1 - p.

    Without its baseline the estimator ascends sum_{k=1..n} (1 - q^k) / k, of slope (1 - q^n) / p.
    The baseline is missing where all n fail (chance q^n), where the mean score is -grad(p) / q.
    """
    p = (pair_log_prob(logits).exp() * REWARD).sum()
    q = 1 - p.item()
    slope = (1 - q**n) / p.item() - q ** (n - 1)
    return torch.autograd.grad(p, logits)[0] * slope


def test_estimator_agrees_with_the_exact_gradient_on_a_tiny_vocabulary() -> None:
    n_rollouts, n_groups = 5, 40_000
    logits = tiny_policy(3)
    prob = pair_log_prob(logits.detach()).exp().flatten()
    generator = torch.Generator().manual_seed(0)
    picks = torch.multinomial(
        prob, n_groups * n_rollouts, replacement=True, generator=generator
    ).view(n_groups, n_rollouts)
    rewards = REWARD.flatten()[picks].numpy()
    weight = advantages(rewards, np.ones_like(rewards, bool), "maxrl")
    first, second = picks // 3, picks % 3

    def score(rows: slice) -> torch.Tensor:
        """The estimate of some groups, through the loss that training uses."""
        log_prob = torch.stack(
            (
                logits[0].log_softmax(-1)[first[rows]].flatten(),
                logits[1:].log_softmax(-1)[first[rows], second[rows]].flatten(),
            ),
            dim=1,
        )
        advantage = torch.from_numpy(weight[rows]).flatten()
        mask = torch.ones_like(log_prob, dtype=torch.bool)
        loss = policy_loss(log_prob, advantage, mask, scale=len(advantage))
        return -torch.autograd.grad(loss, logits)[0]

    parts = torch.stack([score(slice(i, i + 400)) for i in range(0, n_groups, 400)])  # (100, 4, 3)
    mean, error = parts.mean(0), parts.std(0) / math.sqrt(len(parts))
    z = (mean - exact_maxrl_gradient(logits, n_rollouts)) / error.clamp(min=1e-12)
    assert z.abs().max() < 4, z
    assert error.max() < 0.02  # precise enough to tell it from the gradient of p
    plain = torch.autograd.grad((pair_log_prob(logits).exp() * REWARD).sum(), logits)[0]
    assert ((mean - plain) / error).abs().max() > 10


def test_policy_loss_ignores_masked_tokens_and_splits_into_micro_batches() -> None:
    log_prob = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(6)[None] < torch.tensor([[6], [3], [1], [4]])
    advantage = torch.tensor([1.5, -0.5, 2.0, -1.0], dtype=torch.float64)
    whole = torch.autograd.grad(policy_loss(log_prob, advantage, mask, scale=4), log_prob)[0]
    assert (whole[~mask] == 0).all()
    torch.testing.assert_close(whole[mask], (-advantage[:, None] / 4).expand(4, 6)[mask])
    halves = [
        policy_loss(log_prob[rows], advantage[rows], mask[rows], scale=4)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.autograd.grad(sum(halves), log_prob)[0], whole)
