"""Exit rules compared: a static depth, the trained gate, and a threshold on the change of h.

In: a trained looped model, held-out windows and tasks; out: loss and compile rate over mean depth.
Losses are teacher-forced with the states of all loops at hand, so they show the choice of the rule
alone; programs are written by recomputing the whole prefix at each token, which needs no cache and
so no sharing of one. Slow and exact: the engine is what leaves early fast.

Source: gate and threshold, Ouro (arXiv 2510.25741), section 3; the change of h is its baseline.

R loops, M positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat_lib.data.tokenizer import END_OF_TEXT_ID
from nanochat_lib.model.looplm import LoopLM, exit_pdf
from nanochat_lib.train.objective import token_statistics

MICRO_BATCH = 16
GATE_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
CHANGE_QUANTILES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)

# hidden (R, M, D), exit_prob (R, M), level -> loop of each position, (M,) from 0
Rule = Callable[[Tensor, Tensor, float], Tensor]


def static_depth(hidden: Tensor, exit_prob: Tensor, level: float) -> Tensor:
    """Leave after loop `level` (from 1), whatever the token."""
    return torch.full(exit_prob.shape[1:], int(level) - 1)


def trained_gate(hidden: Tensor, exit_prob: Tensor, level: float) -> Tensor:
    """Leave at the first loop whose exit_cdf reaches `level`."""
    cdf = exit_pdf(exit_prob).cumsum(0)
    cdf[-1] = 2.0  # the last loop takes what is left, whatever rounding says
    return (cdf >= level).int().argmax(0)


def hidden_change(hidden: Tensor, exit_prob: Tensor, level: float) -> Tensor:
    """Leave at the first loop that changed h by less than `level`, relative to its length."""
    is_settled = relative_change(hidden) < level  # (R - 1, M), of loops 2 .. R
    is_settled[-1] = True  # there is no loop after the last
    return is_settled.int().argmax(0) + 1


def relative_change(hidden: Tensor) -> Tensor:
    """Return |h_r - h_(r-1)| / |h_r| for r = 2 .. R, (R - 1, M)."""
    return (hidden[1:] - hidden[:-1]).norm(dim=-1) / hidden[1:].norm(dim=-1)


RULES: dict[str, Rule] = {
    "static depth": static_depth,
    "trained gate": trained_gate,
    "change of h": hidden_change,
}


@torch.no_grad()
def loss_curves(model: LoopLM, windows: np.ndarray) -> list[dict[str, Any]]:
    """Return loss in nats over mean depth for levels of every rule.

    Args:
        windows: (W, T + 1) held-out tokens.
    """
    parts = []
    for start in range(0, len(windows), MICRO_BATCH):
        tokens = torch.from_numpy(windows[start : start + MICRO_BATCH])
        output = model(tokens[:, :-1])
        hidden = torch.stack([h.flatten(0, 1) for h in output.hidden])  # (R, M, D)
        targets, head = tokens[:, 1:].flatten(), model.head.weight
        loss = torch.stack([token_statistics(h, head, targets)[0] for h in hidden])
        parts.append((hidden, output.exit_prob.flatten(1), loss))
    hidden, exit_prob, loss = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    rows = []
    for name, level in levels_of(hidden, exit_prob):
        loops = RULES[name](hidden, exit_prob, level)
        nats = loss.gather(0, loops[None].long()).mean()
        rows.append(_row(name, level, loops) | {"loss": float(nats)})
    return rows


def levels_of(hidden: Tensor, exit_prob: Tensor) -> list[tuple[str, float]]:
    """Return (rule, level) pairs that cover all depths of a model."""
    depths = [("static depth", float(r)) for r in range(1, len(hidden) + 1)]
    gates = [("trained gate", level) for level in GATE_THRESHOLDS]
    change = relative_change(hidden).flatten()
    steps = torch.quantile(change[:: max(1, len(change) // 10_000)], torch.tensor(CHANGE_QUANTILES))
    return [*depths, *gates, *(("change of h", float(level)) for level in steps)]


@torch.no_grad()
def write_greedily(
    model: LoopLM, prompts: Sequence[Sequence[int]], rule: str, level: float, max_new_tokens: int
) -> tuple[list[list[int]], float]:
    """Return the greedy continuation of each prompt under an exit rule, and the mean depth.

    A continuation ends at end-of-text, after `max_new_tokens`, or when the context is full.
    """
    texts = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(texts)))
    n_loops = n_tokens = 0
    for _ in range(max_new_tokens):
        if not open_rows:
            break
        chosen, loops = _next_tokens(model, [texts[i] for i in open_rows], RULES[rule], level)
        n_loops, n_tokens = n_loops + int((loops + 1).sum()), n_tokens + len(loops)
        for i, token in zip(open_rows, chosen, strict=True):
            texts[i].append(token)
        limit = model.config.max_seq_len
        open_rows = [
            i for i in open_rows if texts[i][-1] != END_OF_TEXT_ID and len(texts[i]) < limit
        ]
    new = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    return new, n_loops / max(n_tokens, 1)


def _next_tokens(
    model: LoopLM, texts: list[list[int]], rule: Rule, level: float
) -> tuple[list[int], Tensor]:
    longest = max(map(len, texts))
    tokens = torch.tensor([text + [END_OF_TEXT_ID] * (longest - len(text)) for text in texts])
    output = model(tokens)  # causal: padding on the right changes nothing before it
    rows = torch.arange(len(texts))
    last = torch.tensor([len(text) - 1 for text in texts])
    hidden = torch.stack([h[rows, last] for h in output.hidden])  # (R, M, D)
    loops = rule(hidden, output.exit_prob[:, rows, last], level)
    chosen = hidden[loops.long(), rows]
    return model.logits(chosen).argmax(-1).tolist(), loops


def _row(name: str, level: float, loops: Tensor) -> dict[str, Any]:
    return {"rule": name, "level": level, "mean_depth": float(loops.float().mean()) + 1}
