"""The decode program: one jitted pass over the loops, and generation with it.

In: `Weights` and `State` (packed.py) and the rows of a pass, each a token at a position of a
sequence's slot. A pass is the same for prompts (many positions of a sequence) and for decoding
(one position of many sequences): every row writes its keys and values, then reads those of its
past. A row's result does not depend on the rows beside it.

Leaving early: after loop r the exit gate adds to the row's exit_cdf; a row that reaches
`exit_threshold` is taken out of the pass, so the later loops cost it nothing. Its keys and values
of the last loop it ran are copied to the caches of the loops it skipped, for later tokens that go
deeper (Ouro, arXiv 2510.25741, section on KV sharing: sharing the last computed loop costs at
most 0.1 points). Prompt tokens run all loops, except the last one, which is the first decode row.

Letters as in packed.py. Functions are jitted; they check and allocate nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels import cpu
from kernels.compile import jit
from nanochat_lib.model.sampling import exp32, sample, token_entropy, uniform

ALL_LOOPS = 2.0  # an exit_threshold that no exit_cdf reaches


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
    interrupt: np.ndarray  # bool (1,): set from outside to stop at the next token
    temperature: float
    top_k: int
    top_p: float
    exit_threshold: float
    max_seq_len: int


@jit
def generate(level, shape, weights, state, job, first, last):
    """Generate for sequences [first, last), which take the slots from 0 on.

    Passes over the prompts come first, rows of all prompts together; then one pass per token.
    """
    cursor, end = job.starts[first], job.starts[last]
    while not job.interrupt[0]:
        reading = cursor < end
        if reading:
            n_rows, cursor = _prompt_rows(state, job, first, cursor, end)
            threshold = ALL_LOOPS
        else:
            n_rows = _decode_rows(state, job, first, last)
            threshold = job.exit_threshold
            if n_rows == 0:
                return
        forward(level, shape, weights, state, n_rows, threshold)
        if not reading:
            cpu.dense(weights.head, state.final, n_rows, shape.d_model, state.logits)
            for row in range(n_rows):
                _append_token(shape, state, job, row, first + state.slot[row])


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
def _append_token(shape, state, job, row, sequence):
    logits = state.logits[row, : shape.vocab_size]
    done = job.lengths[sequence]
    job.entropy[sequence, done] = token_entropy(logits, state.probability)
    chance = uniform(job.seeds[sequence], done)
    job.tokens[sequence, done] = sample(
        logits, job.temperature, job.top_k, job.top_p, chance, state.probability, state.candidate
    )
    job.exit_loops[sequence, done] = state.exit_loop[row]
    job.lengths[sequence] = done + 1


@jit
def forward(level, shape, weights, state, n_rows, exit_threshold):
    """Run the loops for the rows in state.token/slot/position; results in state.final."""
    for row in range(n_rows):
        _copy(weights.embed[state.token[row]], shape.d_model, state.hidden[row])
        state.active[row] = row
        state.survival[row] = 1
    n_active = n_rows
    for loop in range(shape.n_loops):
        for layer in range(shape.n_layers):
            _attention_block(level, shape, weights, state, loop, layer, n_active)
            _feed_forward_block(level, shape, weights, state, layer, n_active)
        _norm(state.hidden, weights.final_norm, shape.norm_eps, n_active, state.hidden)
        if loop + 1 < shape.n_loops and exit_threshold <= 1:
            n_active = _leave(shape, weights, state, loop, n_active, exit_threshold)
        if n_active == 0:
            return
    for i in range(n_active):
        row = state.active[i]
        _copy(state.hidden[i], shape.d_model, state.final[row])
        state.exit_loop[row] = shape.n_loops


@jit
def _leave(shape, weights, state, loop, n_active, exit_threshold):
    """Take out the rows whose exit_cdf reaches the threshold; return how many stay."""
    n_staying = np.int64(0)
    for i in range(n_active):
        row, hidden = state.active[i], state.hidden[i]
        gate = weights.gate_bias[0]
        for k in range(shape.d_model):
            gate += hidden[k] * weights.gate_weight[k]
        state.survival[row] *= np.float32(1) - np.float32(1) / (np.float32(1) + exp32(-gate))
        if np.float32(1) - state.survival[row] >= exit_threshold:
            _copy(hidden, shape.d_model, state.final[row])
            state.exit_loop[row] = loop + 1
            _share_cache(shape, state, state.slot[row], state.position[row], loop)
        else:
            if n_staying < i:
                _copy(hidden, shape.d_model, state.hidden[n_staying])
            state.active[n_staying] = row
            n_staying += 1
    return n_staying


@jit
def _share_cache(shape, state, slot, position, loop):
    """Copy a position's keys and values of `loop` to the caches of all later loops."""
    group, lane = position // 16, position % 16
    for later in range(loop + 1, shape.n_loops):
        source_k, target_k = state.k_cache[slot, loop], state.k_cache[slot, later]
        source_v, target_v = state.v_cache[slot, loop], state.v_cache[slot, later]
        for layer in range(shape.n_layers):
            for head in range(shape.n_kv_heads):
                for d in range(shape.head_size):
                    target_k[layer, head, group, d, lane] = source_k[layer, head, group, d, lane]
                    value = source_v[layer, head, d // 16, position, d % 16]
                    target_v[layer, head, d // 16, position, d % 16] = value


@jit
def _attention_block(level, shape, weights, state, loop, layer, n_active):
    """hidden += o(attention(qkv(norm(hidden)))), keys and values going to the cache first."""
    D = shape.d_model
    _norm(state.hidden, weights.attn_norm[layer], shape.norm_eps, n_active, state.normed)
    _linear(level, shape, weights.qkv, layer, state, state.normed, n_active)
    for i in range(n_active):
        row = state.active[i]
        slot, position = state.slot[row], state.position[row]
        k_cache, v_cache = state.k_cache[slot, loop, layer], state.v_cache[slot, loop, layer]
        _rotate(shape, weights.rope, position, state.wide[i], state.heads[i])
        _store(shape, position, state.wide[i], state.heads[i], k_cache, v_cache)
    for i in range(n_active):
        row = state.active[i]
        slot, position = state.slot[row], state.position[row]
        k_cache, v_cache = state.k_cache[slot, loop, layer], state.v_cache[slot, loop, layer]
        _attend(shape, state, state.heads[i], position + 1, k_cache, v_cache, state.attended[i])
    _linear(level, shape, weights.o, layer, state, state.attended, n_active)
    _add(state.wide, n_active, D, state.hidden)


@jit
def _feed_forward_block(level, shape, weights, state, layer, n_active):
    """hidden += down(silu(gate) * up) of norm(hidden)."""
    D, F = shape.d_model, shape.d_ff
    _norm(state.hidden, weights.ffn_norm[layer], shape.norm_eps, n_active, state.normed)
    _linear(level, shape, weights.gate_up, layer, state, state.normed, n_active)
    for i in range(n_active):
        gate, up, gated = state.wide[i, :F], state.wide[i, F : 2 * F], state.gated[i]
        for k in range(F):
            gated[k] = gate[k] / (np.float32(1) + exp32(-gate[k])) * up[k]
    _linear(level, shape, weights.down, layer, state, state.gated, n_active)
    _add(state.wide, n_active, D, state.hidden)


@jit
def _linear(level, shape, matrix, layer, state, x, n_rows):
    """Write rows of x times one matrix of a layer to state.wide."""
    if shape.ternary:
        scratch = (state.x_q, state.act_scale, state.x_sum, state.sums)
        packed, groups = matrix.packed[layer], (np.int64(0), matrix.packed.shape[1])
        fused = ((packed,), matrix.scale[layer])
        cpu.linear(level, fused, x, n_rows, groups, scratch, state.wide)
    else:
        cpu.dense(matrix.dense[layer], x, n_rows, x.shape[1], state.wide)


@jit
def _rotate(shape, rope, position, qkv, heads):
    """Turn the interleaved pairs of every query and key by the row's position, into heads."""
    cos, sin = rope[0, position], rope[1, position]
    for head in range(shape.n_heads + shape.n_kv_heads):
        source = qkv[head * shape.head_size :]
        for i in range(shape.head_size // 2):
            even, odd = source[2 * i], source[2 * i + 1]
            heads[head, 2 * i] = even * cos[i] - odd * sin[i]
            heads[head, 2 * i + 1] = even * sin[i] + odd * cos[i]


@jit
def _store(shape, position, qkv, heads, k_cache, v_cache):
    group, lane = position // 16, position % 16
    for head in range(shape.n_kv_heads):
        k = heads[shape.n_heads + head]
        v = qkv[(shape.n_heads + shape.n_kv_heads + head) * shape.head_size :]
        for d in range(shape.head_size):
            k_cache[head, group, d, lane] = k[d]
            v_cache[head, d // 16, position, d % 16] = v[d]


@jit
def _attend(shape, state, heads, n_positions, k_cache, v_cache, out):
    """Softmax attention of one row over its first `n_positions` positions; out (D,).

    Both products are `cpu.dense` on the caches: positions are the lanes of k_cache, head
    dimensions those of v_cache. Heads that share keys are the rows of one product.
    """
    K = shape.head_size
    per_kv = shape.n_heads // shape.n_kv_heads
    scale = np.float32(1 / np.sqrt(K))
    groups = (n_positions + 15) // 16
    for kv_head in range(shape.n_kv_heads):
        first = kv_head * per_kv
        scores, weighted = state.scores[:per_kv], state.attention[:per_kv]
        cpu.dense(k_cache[kv_head, :groups], heads[first:], per_kv, K, scores)
        for head in range(per_kv):
            row = scores[head, :n_positions]
            largest = row[0]
            for t in range(n_positions):
                largest = max(largest, row[t])
            for t in range(n_positions):
                row[t] = exp32((row[t] - largest) * scale)
        cpu.dense(v_cache[kv_head], scores, per_kv, n_positions, weighted)
        for head in range(per_kv):
            total = np.float32(0)
            for t in range(n_positions):
                total += scores[head, t]
            start = (first + head) * K
            for d in range(K):
                out[start + d] = weighted[head, d] / total


@jit
def _norm(x, weight, eps, n_rows, out):
    """RMSNorm of each row; the squares are summed in float64, in four sums for speed."""
    n = len(weight)
    for row in range(n_rows):
        source, target = x[row], out[row]
        sum_0, sum_1, sum_2, sum_3 = 0.0, 0.0, 0.0, 0.0
        for k in range(0, n - 3, 4):
            sum_0 += np.float64(source[k]) * source[k]
            sum_1 += np.float64(source[k + 1]) * source[k + 1]
            sum_2 += np.float64(source[k + 2]) * source[k + 2]
            sum_3 += np.float64(source[k + 3]) * source[k + 3]
        for k in range(n - n % 4, n):
            sum_0 += np.float64(source[k]) * source[k]
        inverse = np.float32(1 / np.sqrt((sum_0 + sum_1 + sum_2 + sum_3) / n + eps))
        for k in range(n):
            target[k] = source[k] * inverse * weight[k]


@jit
def _copy(source, n, target):
    """Copy n values; unlike a slice assignment, this compiles without an allocator."""
    for k in range(n):
        target[k] = source[k]


@jit
def _add(x, n_rows, n, out):
    for row in range(n_rows):
        source, target = x[row], out[row]
        for k in range(n):
            target[k] += source[k]
