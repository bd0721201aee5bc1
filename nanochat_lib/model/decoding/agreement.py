"""How far an engine's texts are from what the CPU engine computes of the same packed weights.

In: an engine, and the CPU engine that judges it; out: an `Agreement`, which names the largest
distances, so that limits can be held against them, and what is beyond its limit. The GPU engine is
compared before anybody gets it (backend.py).

Greedy tokens must have the best logits of plain decoding with all loops, sampled ones be among the
best `top_k`, entropies agree, and with early exit most first tokens leave at the same loop. A
drafting engine promises the tokens of plain decoding, so it is held to the same; it verifies with
all loops, so early exit is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanochat_lib.model.request import Decoder, Generation, Sampling

if TYPE_CHECKING:
    from nanochat_lib.model.engine import Engine

N_TOKENS = 4  # of each text that is compared; where drafts are made, enough for two passes
LENGTHS = (1, 3, 8)  # of the prompts, in turn; the first is long, so that attention is shared out
LONG = 150
# A token may fall behind the best by this share of the logits' spread. Keys and values in float16,
# and codes that fall on the other side of a half, move logits by up to 0.01 of it.
LOGIT_LIMIT = 0.2
EXIT_THRESHOLD = 0.55  # a fresh gate reaches 0.5, or k/R, where rounding would decide
ENTROPY_LIMIT = 0.1  # nats; by the same causes up to 0.005 on trained models
ELSEWHERE_LIMIT = 0.25  # of the texts may leave at another loop, as a gate may stand at the border


@dataclass(frozen=True)
class Agreement:
    """What a comparison found: the largest distances, and what is beyond its limit."""

    logit_lag: float = 0.0  # of a token behind the best k, in standard deviations of its logits
    entropy_gap: float = 0.0  # nats
    n_elsewhere: int = 0  # texts whose first token leaves early, but at another loop
    n_texts: int = 0  # with early exit; 0 where an engine drafts
    fault: str = ""  # empty: within all limits

    def __str__(self) -> str:
        """Return the distances beside their limits."""
        said = (
            f"logits lag by at most {self.logit_lag:.2g} of {LOGIT_LIMIT} standard deviations, "
            f"entropies are at most {self.entropy_gap:.2g} of {ENTROPY_LIMIT} nats off"
        )
        if self.n_texts:
            said += f", {self.n_elsewhere} of {self.n_texts} tokens leave at another loop"
        return said


def n_tokens_compared(n_drafts: int) -> int:
    """Return how long the texts are when `n_drafts` tokens are drafted at a time; 0: none."""
    return max(N_TOKENS, 2 * n_drafts + 1 if n_drafts else 0)


def compare(engine: Decoder, judge: Engine, n_texts: int, n_drafts: int = 0) -> Agreement:
    """Hold an engine's tokens against what the CPU engine computes.

    Args:
        engine: what is judged.
        judge: the CPU engine over the same weights, without drafts.
        n_texts: written at once: as many as the engine has rows, so that every row is looked at.
        n_drafts: tokens that the engine drafts at a time; 0: it does not.
    """
    rng, n_tokens = np.random.default_rng(0), n_tokens_compared(n_drafts)
    lengths = [LENGTHS[i % len(LENGTHS)] if i else LONG for i in range(n_texts)]
    room = max(judge.max_seq_len + 1 - n_tokens, 1)
    prompts = [rng.integers(0, judge.config.vocab_size, min(n, room)).tolist() for n in lengths]
    lag = gap = 0.0
    for name, sampling in {
        "greedy": Sampling(n_tokens, temperature=0, top_k=1),
        "sampled": Sampling(n_tokens, top_k=4),
    }.items():
        for prompt, one in zip(prompts, engine.generate(prompts, sampling), strict=True):
            if fault := _malformed(judge, prompt, one, n_tokens):
                return Agreement(lag, gap, fault=fault.format(name))
            logits = judge.logits([*prompt, *one.tokens[:-1]])[len(prompt) - 1 :]
            behind, apart = _distances(logits, one.tokens, one.token_entropy, sampling.top_k)
            lag, gap = np.maximum((lag, gap), (behind, apart)).tolist()  # NaN stays
            if fault := _beyond(behind, apart):
                return Agreement(lag, gap, fault=fault.format(name))
    if n_drafts:
        return Agreement(lag, gap)
    return _leaving(engine, judge, prompts, (lag, gap))


def _leaving(
    engine: Decoder, judge: Engine, prompts: list[list[int]], distances: tuple[float, float]
) -> Agreement:
    """Compare where first tokens leave the loops."""
    leaving, n = Sampling(1, temperature=0, exit_threshold=EXIT_THRESHOLD), len(prompts)
    pairs = zip(engine.generate(prompts, leaving), judge.generate(prompts, leaving), strict=True)
    n_elsewhere = sum(one.exit_loops != other.exit_loops for one, other in pairs)
    is_beyond = n_elsewhere > ELSEWHERE_LIMIT * n
    fault = f"{n_elsewhere} of {n} tokens leave at another loop" if is_beyond else ""
    return Agreement(*distances, n_elsewhere, n, fault)


def _malformed(judge: Engine, prompt: list[int], one: Generation, n_tokens: int) -> str:
    """Return what no text can be, with a place for its kind; empty when it can be judged."""
    wanted = min(n_tokens, judge.max_seq_len - len(prompt) + 1)
    if len(one.tokens) != wanted:
        return f"{len(one.tokens)} {{}} tokens, not {wanted}"
    if not all(0 <= token < judge.config.vocab_size for token in one.tokens):
        return "a {} token is none of the vocabulary"
    if set(one.exit_loops) != {judge.config.n_loops}:
        return "a {} token left at another loop than the last"
    if not 1 <= one.passes <= wanted:
        return f"{wanted} {{}} tokens came of {one.passes} passes"
    return ""


def _beyond(behind: float, apart: float) -> str:
    if not behind <= LOGIT_LIMIT:
        return f"a {{}} token's logit is {behind:.2f} standard deviations too low"
    if not apart <= ENTROPY_LIMIT:
        return f"the entropy of a {{}} token is {apart:.2f} nats off"
    return ""


def _distances(
    logits: np.ndarray, tokens: list[int], entropy: list[float], top_k: int
) -> tuple[float, float]:
    """Return how far tokens fall behind the best k, in spreads, and entropies (nats) are off."""
    rows = logits.astype(np.float64)
    kth = np.sort(rows, axis=1)[:, -min(top_k, rows.shape[1])]
    behind = (kth - rows[np.arange(len(rows)), tokens]) / rows.std(axis=1)
    log_p = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    apart = np.abs(-(np.exp(log_p) * log_p).sum(axis=1) - entropy)
    return float(behind.max()), float(apart.max())
