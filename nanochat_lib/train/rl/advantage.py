"""From rewards of sampled programs to a policy gradient: advantages, and the loss they weigh.

In: rewards (P, S) of P prompts with S rollouts each, and which of them could be judged. Out:
advantages of the same shape; with the log-probabilities of the sampled tokens they give the loss
whose gradient is the estimate `mean_i advantage_i * d log p(rollout_i)`.

Source: MaxRL (arXiv 2602.02710); GRPO (arXiv 2402.03300); RLOO (arXiv 2402.14740). For a Bernoulli
policy with success probability p and S rollouts the expected gradient of the logit is
    maxrl      (1 - p) - (1 - p)^S    (near the gradient of log p: rare successes count fully)
    rloo       p (1 - p)              (the gradient of p)
    reinforce  p (1 - p)
    grpo       sum_K C(S, K) p^K (1 - p)^(S - K) sqrt(K (S - K)) / S
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

AdvantageKind = Literal["maxrl", "grpo", "rloo", "reinforce"]
_EPSILON = 1e-6


def advantages(rewards: np.ndarray, judged: np.ndarray, kind: AdvantageKind) -> np.ndarray:
    """Return advantages (P, S) float64; 0 where a rollout could not be judged.

    Args:
        rewards: (P, S), 0 or 1; values of unjudged rollouts are ignored.
        judged: (P, S) bool; only judged rollouts enter a prompt's mean.
        kind: maxrl divides the centred reward by the prompt's mean, grpo by its standard
            deviation, rloo and reinforce by nothing; reinforce has no baseline either.

    Example: rewards [[1, 0, 0, 0]] give maxrl [[3, -1, -1, -1]], rloo [[1, -1/3, -1/3, -1/3]].
    """
    rewards = np.where(judged, rewards, 0.0).astype(np.float64)
    n = judged.sum(axis=1, keepdims=True)
    mean = rewards.sum(axis=1, keepdims=True) / np.maximum(n, 1)
    centred = rewards - mean
    if kind == "maxrl":
        result = centred / (mean + _EPSILON)
    elif kind == "grpo":
        variance = np.where(judged, centred**2, 0.0).sum(axis=1, keepdims=True) / np.maximum(n, 1)
        result = centred / (np.sqrt(variance) + _EPSILON)
    elif kind == "rloo":  # the mean of the others as baseline; one rollout alone has none
        result = centred * n / np.maximum(n - 1, 1)
    else:
        result = rewards
    return np.where(judged, result, 0.0)


def policy_loss(
    log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    scale: float,
    old: Tensor | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
) -> Tensor:
    """Return minus the sum of advantage times log-probability, divided by `scale`.

    Args:
        log_prob: (B, T) of the sampled tokens under the current policy.
        advantage: (B,), constant.
        mask: (B, T) bool, True on completion tokens.
        scale: a constant for the whole update, so that it neither depends on how the update is cut
            into micro-batches nor on the lengths that were sampled (which would bias it).
        old: (B, T) log-probabilities when the tokens were sampled, for further steps: then every
            token counts with min(ratio A, clipped ratio A), whose slope at ratio 1 is the same.
        clip: how far the ratio may fall below and rise above 1 before it has no slope.
    """
    weight = advantage[:, None].expand_as(log_prob)
    if old is None:
        gain = weight * log_prob
    else:
        ratio = torch.where(mask, log_prob - old, 0.0).exp()
        gain = torch.minimum(ratio * weight, ratio.clamp(1 - clip[0], 1 + clip[1]) * weight)
    return -torch.where(mask, gain, 0.0).sum() / scale
