"""The policy of stage 3: a LoopLM with AdamW that learns from judged rollouts.

In: rollouts and their advantages. Out: changed weights. Only tokens that the policy sampled count,
and only the last loop's logits, at the temperature of the sampling, so that each update is exactly
on-policy up to the rounding of the packed kernels. All loops run and the exit gate is frozen: no
rollout left early, so rewards say nothing about where to leave. Run the gate's own training
(stage II of pre-training) again if early exit matters after this stage.

B rollouts, T positions, D d_model, V vocabulary, M completion tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat_lib.config import MaxRLConfig
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train.rl.advantage import policy_loss
from nanochat_lib.train.rl.rollouts import Rollout

GRAD_CLIP = 1.0
MICRO_BATCH = 16  # rollouts per forward pass; sorted by length, so that little is padding
BETAS = (0.9, 0.95)


class Policy:
    """A model and its optimiser; the exit gate is left out of both gradient and state."""

    def __init__(self, model: LoopLM, learning_rate: float) -> None:
        self.model = model
        model.exit_gate.requires_grad_(False)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.named.values(), lr=learning_rate, betas=BETAS, weight_decay=0.0
        )

    def update(
        self, rollouts: Sequence[Rollout], advantage: np.ndarray, config: MaxRLConfig
    ) -> float:
        """Take one step along the estimated gradient; return its norm before clipping.

        Args:
            rollouts: what was sampled from this very policy.
            advantage: one number per rollout, 0 where it has nothing to say.
            config: temperature and longest completion.

        When every advantage is 0 (all prompts solved, or none) nothing changes.
        """
        n_judged = sum(r.is_judged for r in rollouts)
        used = [
            (r, float(a)) for r, a in zip(rollouts, advantage, strict=True) if a != 0 and r.tokens
        ]
        if not used:
            return 0.0
        used.sort(key=lambda pair: len(pair[0].prompt_ids) + len(pair[0].tokens))
        self.optimizer.zero_grad(set_to_none=True)
        scale = float(n_judged * config.max_new_tokens)
        for start in range(0, len(used), MICRO_BATCH):
            part = used[start : start + MICRO_BATCH]
            log_prob, mask = completion_log_prob(
                self.model, [r for r, _ in part], config.temperature
            )
            weight = torch.tensor([a for _, a in part], dtype=log_prob.dtype)
            policy_loss(log_prob, weight, mask, scale=scale).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), GRAD_CLIP)
        self.optimizer.step()
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


def completion_log_prob(
    model: LoopLM, rollouts: Sequence[Rollout], temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (B, T) of the sampled tokens, and the mask (B, T) of where they are.

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
    hidden = model(tokens[:, :-1]).hidden[-1][mask]  # (M, D)
    logits = model.logits(hidden).float() / temperature  # (M, V)
    picked = logits.log_softmax(-1).gather(1, tokens[:, 1:][mask][:, None])[:, 0]
    log_prob = torch.zeros(mask.shape, dtype=picked.dtype)
    return log_prob.masked_scatter(mask, picked), mask
