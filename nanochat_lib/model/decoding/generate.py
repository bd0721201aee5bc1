"""Generation: prompts through the loops, then a token at a time, or a few drafted and verified.

In: `Weights`, `State` (packed.py) and a `Job`; out: the tokens in the job. Prompt tokens run all
loops, except the last one of each prompt, which is the first decode row.

Drafting (speculative decoding, arXiv 2211.17192) needs no second model here: the first loops draft,
and the hidden states they leave are where the remaining loops go on when they verify, all drafted
tokens in one pass. A drafted token x is kept with chance min(1, p(x) / q(x)), and at the first
refusal a token is drawn from max(p - q, 0) instead: the text has the distribution of full depth
exactly, and at temperature 0 it is the same text.

Every thread of a team runs this program; thread 0 alone writes tokens. Functions are jitted; they
check and allocate nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.compile import jit
from kernels.team import wait
from nanochat_lib.model.decoding.forward import ALL_LOOPS, forward, head
from nanochat_lib.model.decoding.sampling import (
    distribution,
    draw,
    draw_difference,
    most_likely,
    token_entropy,
    uniform,
)

# Streams of random numbers of a sequence, beside that of ordinary decoding.
_DRAFT, _ACCEPT, _REPLACE = np.uint64(1 << 61), np.uint64(2 << 61), np.uint64(3 << 61)


class Job(NamedTuple):
    """A list of prompts and what becomes of them; shared by all threads, which own ranges of it."""

    prompts: np.ndarray  # int64, all prompts one after another
    starts: np.ndarray  # int64 (n + 1,) where each begins
    owners: np.ndarray  # int64, the sequence of every prompt token
    seeds: np.ndarray  # uint64 (n,)
    is_stop: np.ndarray  # bool (V,)
    tokens: np.ndarray  # int64 (n, max_new_tokens), out
    exit_loops: np.ndarray  # int64 (n, max_new_tokens), out
    entropy: np.ndarray  # float32 (n, max_new_tokens), out
    lengths: np.ndarray  # int64 (n,), out; 0 at the start
    passes: np.ndarray  # int64 (n,), out: passes over all loops that each sequence took part in
    interrupt: np.ndarray  # bool (1,): set from outside to stop at the next token
    temperature: float
    top_k: int
    top_p: float
    exit_threshold: float
    max_seq_len: int
    draft_loops: int  # loops that draft; 0: no drafting
    draft_tokens: int  # drafted before they are verified


@jit
def generate(level, team, shape, weights, state, job, sequences):
    """Generate for the sequences [first, last), which take the slots from 0 on.

    Passes over the prompts come first, rows of all prompts together; then one pass per token.
    """
    first, last = sequences
    cursor, end = job.starts[first], job.starts[last]
    while True:
        if team.rank == 0:
            state.stop[0] = job.interrupt[0]
        wait(team)
        if state.stop[0]:
            return
        if cursor < end:
            n_rows, cursor = _prompt_rows(state, job, first, cursor, end)
            loops = (0, shape.n_loops)
            forward(level, team, shape, weights, state, n_rows, loops, ALL_LOOPS)
            continue
        n_rows = _decode_rows(state, job, first, last)
        if n_rows == 0:
            return
        if job.draft_loops > 0:
            _draft_and_verify(level, team, shape, weights, state, job, (first, n_rows))
            continue
        loops = (0, shape.n_loops)
        forward(level, team, shape, weights, state, n_rows, loops, job.exit_threshold)
        head(team, shape, weights, state, n_rows)
        if team.rank == 0:
            for row in range(n_rows):
                _sample_token(shape, state, job, row, first + state.slot[row])


@jit
def _prompt_rows(state, job, first, cursor, end):
    """Fill a pass with prompt tokens, all but the last of each; return its size and the cursor."""
    n_rows = np.int64(0)  # a plain 0 is a literal type, and numba compiles everything below twice
    while cursor < end and n_rows < len(state.token):
        sequence = job.owners[cursor]
        if cursor + 1 < job.starts[sequence + 1]:
            state.token[n_rows] = job.prompts[cursor]
            state.slot[n_rows] = sequence - first
            state.position[n_rows] = cursor - job.starts[sequence]
            n_rows += 1
        cursor += 1
    return n_rows, cursor


@jit
def _decode_rows(state, job, first, last):
    """Fill a pass with the latest token of every sequence that goes on; return its size."""
    n_rows = np.int64(0)
    for sequence in range(first, last):
        done, end = job.lengths[sequence], job.starts[sequence + 1]
        position = end - job.starts[sequence] - 1 + done
        token = job.prompts[end - 1] if done == 0 else job.tokens[sequence, done - 1]
        stopped = done > 0 and job.is_stop[token]
        if stopped or done == job.tokens.shape[1] or position >= job.max_seq_len:
            continue
        state.token[n_rows] = token
        state.slot[n_rows] = sequence - first
        state.position[n_rows] = position
        n_rows += 1
    return n_rows


@jit
def _sample_token(shape, state, job, row, sequence):
    """Draw the next token of a sequence from the logits of a row."""
    logits, done = state.logits[row, : shape.vocab_size], job.lengths[sequence]
    job.entropy[sequence, done] = token_entropy(logits, state.probability)
    if job.temperature <= 0:
        token = most_likely(logits)
    else:
        top = (job.top_k, job.top_p)
        distribution(logits, job.temperature, top, state.probability, state.candidate)
        token = draw(state.probability, uniform(job.seeds[sequence], done))
    job.passes[sequence] += 1
    _append_token(job, sequence, token, state.exit_loop[row])


@jit
def _append_token(job, sequence, token, exit_loop):
    done = job.lengths[sequence]
    job.tokens[sequence, done] = token
    job.exit_loops[sequence, done] = exit_loop
    job.lengths[sequence] = done + 1


@jit
def _draft_and_verify(level, team, shape, weights, state, job, rows):
    """Draft a few tokens of each row's sequence, verify them together, and append what holds."""
    first, n_rows = rows
    n_drafts = job.draft_tokens
    for row in range(n_rows):
        done = job.lengths[first + state.slot[row]]
        left = min(job.tokens.shape[1] - done, job.max_seq_len - state.position[row])
        n_drafts = min(n_drafts, left)
    draft_loops, rest = (0, job.draft_loops), (job.draft_loops, shape.n_loops)
    for i in range(n_drafts):
        forward(level, team, shape, weights, state, n_rows, draft_loops, ALL_LOOPS)
        head(team, shape, weights, state, n_rows)
        for row in range(n_rows):
            _keep_draft_state(shape, state, row, i)
            if team.rank == 0:
                _draft_token(shape, state, job, (row, i), first + state.slot[row])
        wait(team)
        for row in range(n_rows):
            state.token[row] = state.draft_token[row, i]
            state.position[row] += 1
    _verify_rows(shape, state, n_rows, n_drafts)
    forward(level, team, shape, weights, state, n_rows * n_drafts, rest, ALL_LOOPS)
    head(team, shape, weights, state, n_rows * n_drafts)
    if team.rank == 0:
        for row in range(n_rows):
            sequence = first + state.slot[row * n_drafts]
            _append_verified(shape, state, job, (row, n_drafts), sequence)


@jit
def _keep_draft_state(shape, state, row, i):
    """Put aside what the remaining loops begin with."""
    for k in range(shape.d_model):
        state.draft_hidden[row, i, k] = state.final[row, k]


@jit
def _draft_token(shape, state, job, place, sequence):
    """Draw draft i of a row from the distribution after the drafting loops, and keep both."""
    row, i = place
    logits = state.logits[row, : shape.vocab_size]
    if job.temperature <= 0:
        state.draft_token[row, i] = most_likely(logits)
        return
    top = (job.top_k, job.top_p)
    kept = state.draft_probability[row, i]
    distribution(logits, job.temperature, top, kept, state.candidate)
    chance = uniform(job.seeds[sequence] ^ _DRAFT, job.lengths[sequence] + i)
    state.draft_token[row, i] = draw(kept, chance)


@jit
def _verify_rows(shape, state, n_rows, n_drafts):
    """Fill a pass with the rows that the drafts were drawn from, where their loops left off."""
    for row in range(n_rows - 1, -1, -1):  # each row moves to a later place
        slot, position = state.slot[row], state.position[row] - n_drafts
        for i in range(n_drafts):
            target = row * n_drafts + i
            state.slot[target], state.position[target] = slot, position + i
            for k in range(shape.d_model):
                state.hidden[target, k] = state.draft_hidden[row, i, k]


@jit
def _append_verified(shape, state, job, place, sequence):
    """Append drafted tokens until one is refused, and then the one that takes its place."""
    row, n_drafts = place
    job.passes[sequence] += 1
    for i in range(n_drafts):
        logits = state.logits[row * n_drafts + i, : shape.vocab_size]
        drafted, done = state.draft_token[row, i], job.lengths[sequence]
        job.entropy[sequence, done] = token_entropy(logits, state.probability)
        if job.temperature <= 0:
            token = most_likely(logits)
        else:
            top, wanted = (job.top_k, job.top_p), state.probability
            distribution(logits, job.temperature, top, wanted, state.candidate)
            kept, seed = state.draft_probability[row, i], job.seeds[sequence]
            token = drafted
            if uniform(seed ^ _ACCEPT, done) * kept[drafted] >= wanted[drafted]:
                token = draw_difference(wanted, kept, uniform(seed ^ _REPLACE, done))
        _append_token(job, sequence, token, shape.n_loops)
        if token != drafted or job.is_stop[token]:
            return
