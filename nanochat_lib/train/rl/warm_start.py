"""A warm start for stage 3: learn first, as text, what passes anyway (rejection sampling).

In: a policy's sampler and training tasks. Out: the same model, trained on its own programs that
rustc and the tests passed, and on nothing else ("only train on verified examples", the project
brief). Equal programs of one task count once.

Source: rejection-sampling fine-tuning as in STaR (arXiv 2203.14465), without its rationales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from nanochat_lib.config import MaxRLConfig
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Task
from nanochat_lib.train.rl.attempts import Attempts
from nanochat_lib.train.rl.policy import Policy
from nanochat_lib.train.rl.rollouts import Rollout, stable_seed


def warm_start(
    model: LoopLM,
    tasks: Sequence[Task],
    attempts: Attempts,
    plan: MaxRLConfig,
    *,
    seed: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Sample `tasks`, train `model` on what passed, and return the counts and seconds.

    Raises:
        Abandoned: a stop was wanted; the model is of no use then.
    """
    seconds: Counter = Counter()
    rollouts = attempts.all(
        tasks,
        plan.rollouts_per_prompt,
        plan,
        seed=stable_seed(seed, "warm start"),
        seconds=seconds,
    )
    kept = distinct_passed(rollouts)
    policy = Policy(
        model, plan.model_copy(update={"inner_steps": 1, "kl_weight": 0.0}), None, dtype
    )
    batch_size, n_steps = plan.prompts_per_step * plan.rollouts_per_prompt, 0
    for epoch in range(plan.warm_start_epochs):
        order = Random(f"{seed} warm start {epoch}").sample(kept, len(kept))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scale = float(len(batch) * plan.max_new_tokens)
            policy.begin()
            policy.learn(batch, np.ones(len(batch)), scale=scale)
            policy.step(scale=scale)
            n_steps += 1
    return {
        "n_tasks": len(tasks),
        "n_judged": sum(r.is_judged for r in rollouts),
        "n_passed": sum(r.has_passed for r in rollouts),
        "n_used": len(kept),
        "n_steps": n_steps,
        "seconds": dict(seconds),
    }


def distinct_passed(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts that passed, one of those with equal bodies for the same task."""
    found = {(r.task.task_id, r.body): r for r in reversed(rollouts) if r.has_passed}
    return list(reversed(found.values()))
