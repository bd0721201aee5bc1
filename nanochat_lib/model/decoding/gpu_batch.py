"""Sequences through the decode step on a GPU (gpu.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernels.cuda.products import MAX_TOKENS
from nanochat_lib.model.decoding.gpu import Step


def generate(
    step: Step, prompts: Sequence[Sequence[int]], seeds: np.ndarray, limit: int,
    sampling: tuple[float, tuple[int, float], float], repeat: Callable[[Callable], Callable],
) -> np.ndarray:  # fmt: skip
    """Generate for up to `step.n_rows` prompts; results are in the step's arrays.

    Args:
        step: the arrays and launches.
        prompts: token ids, each shorter than the step's sequences.
        seeds: uint64, one per prompt.
        limit: most tokens of each, at most the step's width.
        sampling: temperature, (top_k, top_p), exit_threshold.
        repeat: makes of a step what can be called again and again: on a GPU, its graph.

    Returns:
        how many tokens each prompt got.
    """
    n, S = len(prompts), step.sizes.n_sequences
    _read(step, prompts)
    padding = [0] * (S - n)
    step.put(
        token=[*(p[-1] for p in prompts), *padding],
        slot=range(S),
        position=[*(len(p) - 1 for p in prompts), *padding],
        finished=[0] * n + [1] * (S - n),
        place=[0] * S,
        limit=[limit],
        seed=np.concatenate([seeds, np.zeros(S - n, np.uint64)]).view(np.int64),
    )
    once = repeat(lambda: step.next_token(*sampling))
    for done in range(limit):
        once()
        if done % 16 == 15 and step.fetch("finished").all():
            break
    return step.fetch("place")[:n]


def _read(step: Step, prompts: Sequence[Sequence[int]]) -> None:
    """Pass over all prompt tokens but the last of each, as many a pass as there are rows."""
    rows = [(t, slot, i) for slot, p in enumerate(prompts) for i, t in enumerate(p[:-1])]
    S = min(step.n_rows, MAX_TOKENS)
    for first in range(0, len(rows), S):
        part = rows[first : first + S]
        part, n = part + [(0, 0, 0)] * (S - len(part)), len(part)
        token, slot, position = (list(values) for values in zip(*part, strict=True))
        finished = [0] * n + [1] * (S - n)
        step.put(token=token, slot=slot, position=position, finished=finished)
        step.read_prompt()
