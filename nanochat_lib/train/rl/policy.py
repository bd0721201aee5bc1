"""The policy of stage 3: a LoopLM with AdamW that learns from judged rollouts.

In: rollouts and their advantages, part by part as they are judged. Out: changed weights. Only
tokens that the policy sampled count, and only the last loop's logits, at the temperature of the
sampling, so that an update is exactly on-policy up to the rounding of the packed kernels; further
steps on the same rollouts clip the ratio to the policy that sampled them. All loops run and the
exit gate is frozen: no rollout left early, so rewards say nothing about where to leave. Run the
gate's own training (stage II of pre-training) again if early exit matters after this stage.

What a judge rewards first is to be surer, because programs sampled at temperature 1 fail by
single unlucky tokens. In the weights that direction is spread over the whole head, where a small
rate takes thousands of steps; so the head's scale is a parameter of its own while training, with a
rate of its own, and is folded into the head after every step.

Source: clipped ratio of PPO (arXiv 1707.06347) with a wider upper side, as in DAPO (arXiv
2503.14476). The KL term is exact over the vocabulary at every sampled position, not an estimate
from the sampled token.

It trains on the device of the model, in floating point there too: rollouts were sampled from the
very codes of the weights, and int8 products round gradients.

B rollouts, T positions, D d_model, V vocabulary, M completion tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanochat_lib.config import MaxRLConfig
from nanochat_lib.model.looplm import BIT_LINEARS, LoopLM, exit_pdf, expected_loops
from nanochat_lib.train.execution import autocast
from nanochat_lib.train.rl.advantage import policy_loss
from nanochat_lib.train.rl.rollouts import Rollout

GRAD_CLIP = 1.0
MICRO_BATCH = 16  # rollouts per forward pass; sorted by length, so that little is padding
BETAS = (0.9, 0.95)
GAIN = "head.log_gain"  # its name among the states


class Scored(NamedTuple):
    """What a pass over rollouts gives at their completion tokens."""

    log_prob: Tensor  # (B, T), 0 outside of `mask`
    mask: Tensor  # (B, T) bool
    log_probs: Tensor  # (M, V), of all tokens at the positions of `mask`
    exit_prob: Tensor  # (R, M)


@dataclass
class _Batch:
    """One micro-batch of an update; `old` (B, T) is filled by the first step over it."""

    rollouts: list[Rollout]
    advantage: Tensor  # (B,)
    old: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What an update came to."""

    grad_norm: float = 0.0  # of the first step, before clipping
    clipped_share: float = 0.0  # of the tokens of further steps
    kl_nats: float = 0.0  # per token, from the base; 0 where nobody asked


@dataclass
class Policy:
    """A model and its optimiser; the exit gate is left out of both gradient and state.

    `learn` takes the parts of an update as they come, `step` ends it. `base` is needed for the KL
    term only.
    """

    model: LoopLM
    plan: MaxRLConfig
    base: LoopLM | None = None
    dtype: torch.dtype = torch.float32
    _batches: list[_Batch] = field(default_factory=list)
    _sums: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.exit_gate.requires_grad_(False)
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        is_matrix = {n: n.split(".")[-2] in BIT_LINEARS for n in trained}
        device = self.model.head.weight.device
        # of the head; 0 between two steps
        self.log_gain = torch.nn.Parameter(torch.zeros((), device=device))
        parts = [
            ({n: p for n, p in trained.items() if not is_matrix[n]}, self.plan.learning_rate),
            ({n: p for n, p in trained.items() if is_matrix[n]}, self.plan.matrix_learning_rate),
            ({GAIN: self.log_gain}, self.plan.gain_learning_rate),
        ]
        self.named = {n: p for part, _ in parts for n, p in part.items()}  # the optimiser's order
        groups = [{"params": list(part.values()), "lr": r, "full": r} for part, r in parts]
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)

    def set_rate(self, share: float) -> None:
        """Let the next steps use this share of the configured rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["full"]

    def begin(self) -> None:
        """Forget the gradient and the rollouts of an update that was not ended."""
        self.optimizer.zero_grad(set_to_none=True)
        self._batches, self._sums = [], {"kl": 0.0, "kl_tokens": 0, "clipped": 0, "tokens": 0}

    def learn(self, rollouts: Sequence[Rollout], advantage: np.ndarray, *, scale: float) -> None:
        """Add the gradient of a part of an update.

        Args:
            rollouts: what was sampled from this very policy.
            advantage: one number per rollout, 0 where it has nothing to say.
            scale: constant of the whole update that sums are divided by (see `policy_loss`).
        """
        for batch in self._cut(rollouts, advantage):
            self._pass_over(batch, scale)
            if self.plan.inner_steps > 1:
                self._batches.append(batch)

    def step(self, *, scale: float) -> Step:
        """Take the step of what was learned, and `inner_steps` - 1 more over the same rollouts.

        When every advantage is 0 (all prompts solved, or none) nothing changes.
        """
        if all(p.grad is None for p in self.named.values()):
            return Step()
        norm = self._descend()
        for _ in range(self.plan.inner_steps - 1):
            for batch in self._batches:
                self._pass_over(batch, scale)
            self._descend()
        sums = self._sums
        return Step(
            norm,
            sums["clipped"] / max(sums["tokens"], 1),
            sums["kl"] / max(sums["kl_tokens"], 1),
        )

    def _cut(self, rollouts: Sequence[Rollout], advantage: np.ndarray) -> Iterator[_Batch]:
        """Yield micro-batches of rollouts of about equal length.

        Without a KL term rollouts without an advantage have no gradient and are left out.
        """
        pairs = [
            (r, float(a))
            for r, a in zip(rollouts, advantage, strict=True)
            if r.tokens and (a != 0 or self.plan.kl_weight)
        ]
        pairs.sort(key=lambda pair: len(pair[0].prompt_ids) + len(pair[0].tokens))
        for start in range(0, len(pairs), MICRO_BATCH):
            part = pairs[start : start + MICRO_BATCH]
            advantages = torch.tensor([a for _, a in part]).to(self.log_gain.device)
            yield _Batch([r for r, _ in part], advantages)

    def _pass_over(self, batch: _Batch, scale: float) -> None:
        gain = self.log_gain.exp()
        scored = score(self.model, batch.rollouts, self.plan.temperature / gain, dtype=self.dtype)
        clip = (self.plan.clip_low, self.plan.clip_high)
        loss = policy_loss(
            scored.log_prob, batch.advantage, scored.mask, scale=scale, old=batch.old, clip=clip
        )
        if batch.old is not None:
            ratio = (scored.log_prob - batch.old).detach().exp()[scored.mask]
            is_clipped = (ratio < 1 - clip[0]) | (ratio > 1 + clip[1])
            self._sums["clipped"] += int(is_clipped.sum())
            self._sums["tokens"] += len(ratio)
        elif self.plan.inner_steps > 1:
            batch.old = scored.log_prob.detach()
        if self.plan.kl_weight:
            kl = token_kl(scored, self._base_log_probs(batch.rollouts))
            self._sums["kl"] += float(kl.detach().sum())
            self._sums["kl_tokens"] += len(kl)
            loss = loss + self.plan.kl_weight * kl.sum() / scale
        loss.backward()

    def _base_log_probs(self, rollouts: Sequence[Rollout]) -> Tensor:
        if self.base is None:
            raise ValueError("maxrl.kl_weight needs the base model, and this policy has none")
        with torch.no_grad():
            return score(self.base, rollouts, self.plan.temperature, dtype=self.dtype).log_probs

    def _descend(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.head.weight.mul_(self.log_gain.exp())
            self.log_gain.zero_()
        return float(norm)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state as flat tensors."""
        names = dict(enumerate(self.named))
        return {
            f"{names[i]}|{key}": torch.as_tensor(value).clone()
            for i, entry in self.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        places = {name: i for i, name in enumerate(self.named)}
        state: dict[int, dict[str, Any]] = {}
        for joined, value in tensors.items():
            name, key = joined.split("|")
            state.setdefault(places[name], {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def score(
    model: LoopLM,
    rollouts: Sequence[Rollout],
    temperature: float | Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> Scored:
    """Return log-probabilities at the sampled tokens of rollouts, with their positions.

    Position t predicts token t + 1, so a prompt's last position is the first that counts. Logits
    are made for completion tokens only.
    """
    rows = [[*r.prompt_ids, *r.tokens] for r in rollouts]
    T = max(map(len, rows)) - 1
    tokens = torch.zeros(len(rows), T + 1, dtype=torch.long)
    mask = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, len(rollout.prompt_ids) - 1 : len(row) - 1] = True
    device = model.head.weight.device
    tokens, mask = tokens.to(device), mask.to(device)
    with autocast(device, dtype):
        output = model(tokens[:, :-1])
        logits = model.logits(output.hidden[-1][mask])  # (M, V)
    log_probs = (logits.float() / temperature).log_softmax(-1)
    picked = log_probs.gather(1, tokens[:, 1:][mask][:, None])[:, 0]
    log_prob = picked.new_zeros(mask.shape).masked_scatter(mask, picked)
    return Scored(log_prob, mask, log_probs, output.exit_prob[:, mask])


def token_kl(scored: Scored, base_log_probs: Tensor) -> Tensor:
    """Return the exact KL divergence (M,) of policy from base at every completion token, nats."""
    return (scored.log_probs.exp() * (scored.log_probs - base_log_probs)).sum(-1)


@torch.no_grad()
def compare(
    model: LoopLM, base: LoopLM, rollouts: Sequence[Rollout], temperature: float
) -> dict[str, float]:
    """Return how far a policy went from its base, and how deep its gate would think.

    Returns: `kl_nats` per token, exact over the vocabulary, on texts that the policy sampled;
    `expected_loops` of the exit distribution there, though all loops ran.
    """
    rollouts = sorted((r for r in rollouts if r.tokens), key=lambda r: len(r.tokens))
    kl = loops = n = 0.0
    for start in range(0, len(rollouts), MICRO_BATCH):
        part = rollouts[start : start + MICRO_BATCH]
        scored = score(model, part, temperature)
        kl += float(token_kl(scored, score(base, part, temperature).log_probs).sum())
        loops += float(expected_loops(exit_pdf(scored.exit_prob)).sum())
        n += scored.log_probs.shape[0]
    return {"kl_nats": max(0.0, kl / n), "expected_loops": loops / n} if n else {}
