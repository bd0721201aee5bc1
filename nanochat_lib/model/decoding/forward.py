"""One jitted pass over the loops: rows of tokens in, hidden states out.

In: `Weights` and `State` (packed.py) and the rows of a pass, each a token at a position of a
sequence's slot. A pass is the same for prompts (many positions of a sequence) and for decoding
(one position of many sequences): every row writes its keys and values, then reads those of its
past. A row's result does not depend on the rows beside it.

Leaving early: after loop r the exit gate adds to the row's exit_cdf; a row that reaches
`exit_threshold` is taken out of the pass, so the later loops cost it nothing. Its keys and values
of the last loop it ran are copied to the caches of the loops it skipped, for later tokens that go
deeper (Ouro, arXiv 2510.25741, section on KV sharing: sharing the last computed loop costs at
most 0.1 points).

A team of threads (kernels/team.py) runs a pass together: each computes a share of the rows of every
matrix and of the heads, and all of what is small. Two buffers take turns for the products, so that
one wait per product is enough.

Letters as in packed.py. Functions are jitted; they check and allocate nothing.
"""

from __future__ import annotations

import numpy as np

from kernels import cpu
from kernels.compile import inline, jit
from kernels.team import share, wait
from nanochat_lib.model.decoding.sampling import exp32

ALL_LOOPS = 2.0  # an exit_threshold that no exit_cdf reaches


@jit
def forward(level, team, shape, weights, state, n_rows, loops, exit_threshold):
    """Run the loops from loops[0] to before loops[1] for the rows in state.token/slot/position.

    Rows begin as their tokens' embeddings, or after the first loop as what state.hidden holds.
    Results are in state.final.
    """
    for row in range(n_rows):
        if loops[0] == 0:
            _copy(weights.embed[state.token[row]], shape.d_model, state.hidden[row])
        state.active[row] = row
        state.survival[row] = 1
    n_active = n_rows
    for loop in range(loops[0], loops[1]):
        for layer in range(shape.n_layers):
            _attention_block(level, team, shape, weights, state, (loop, layer), n_active)
            _feed_forward_block(level, team, shape, weights, state, layer, n_active)
        _norm(state.hidden, weights.final_norm, shape.norm_eps, n_active, state.hidden)
        if loop + 1 < shape.n_loops and exit_threshold <= 1:
            n_active = _leave(team, shape, weights, state, loop, n_active, exit_threshold)
        if n_active == 0:
            return
    for i in range(n_active):
        row = state.active[i]
        _copy(state.hidden[i], shape.d_model, state.final[row])
        state.exit_loop[row] = loops[1]


@jit
def head(team, shape, weights, state, n_rows):
    """Write the logits of n_rows rows of state.final; all threads may read them on return."""
    first, last = share(team, len(weights.head))
    cpu.dense(weights.head, state.final, n_rows, shape.d_model, (first, last), state.logits)
    for row in range(n_rows):
        logits = state.logits[row]
        for token in range(first * 16, last * 16):
            logits[token] *= weights.head_scale[token]
    wait(team)


@jit
def _leave(team, shape, weights, state, loop, n_active, exit_threshold):
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
            _share_cache(team, shape, state, row, loop)
        else:
            if n_staying < i:
                _copy(hidden, shape.d_model, state.hidden[n_staying])
            state.active[n_staying] = row
            n_staying += 1
    return n_staying


@jit
def _share_cache(team, shape, state, row, loop):
    """Copy a row's keys and values of `loop` to the caches of all later loops."""
    slot, position = state.slot[row], state.position[row]
    group, lane = position // 16, position % 16
    first, last = share(team, shape.n_kv_heads)
    for later in range(loop + 1, shape.n_loops):
        source_k, target_k = state.k_cache[slot, loop], state.k_cache[slot, later]
        source_v, target_v = state.v_cache[slot, loop], state.v_cache[slot, later]
        for layer in range(shape.n_layers):
            for head in range(first, last):
                for d in range(shape.head_size):
                    target_k[layer, head, group, d, lane] = source_k[layer, head, group, d, lane]
                    value = source_v[layer, head, d // 16, position, d % 16]
                    target_v[layer, head, d // 16, position, d % 16] = value


@jit
def _attention_block(level, team, shape, weights, state, place, n_active):
    """hidden += o(attention(qkv(norm(hidden)))), keys and values going to the cache first."""
    layer = place[1]
    _norm(state.hidden, weights.attn_norm[layer], shape.norm_eps, n_active, state.normed)
    _linear(level, team, (shape, weights.qkv, layer), state, state.normed, n_active, state.wide_2)
    attention(team, shape, weights, state, place, n_active)
    _linear(level, team, (shape, weights.o, layer), state, state.attended, n_active, state.wide)
    _add(state.wide, n_active, shape.d_model, state.hidden)


@jit
def attention(team, shape, weights, state, place, n_active):
    """Write to attended what the active rows' heads find; place is the loop and the layer."""
    loop, layer = place
    kv_heads = share(team, shape.n_kv_heads)
    for i in range(n_active):
        row = state.active[i]
        slot, position = state.slot[row], state.position[row]
        caches = state.k_cache[slot, loop, layer], state.v_cache[slot, loop, layer]
        _rotate(shape, weights.rope, position, state.wide_2[i], state.heads[i])
        _store(shape, position, state.wide_2[i], state.heads[i], kv_heads, caches)
    for i in range(n_active):
        row = state.active[i]
        slot, position = state.slot[row], state.position[row]
        caches = state.k_cache[slot, loop, layer], state.v_cache[slot, loop, layer]
        _attend(shape, state, i, position + 1, kv_heads, caches)
    wait(team)


@jit
def _feed_forward_block(level, team, shape, weights, state, layer, n_active):
    """hidden += down(silu(gate) * up) of norm(hidden)."""
    F = shape.d_ff
    _norm(state.hidden, weights.ffn_norm[layer], shape.norm_eps, n_active, state.normed)
    gate_up = (shape, weights.gate_up, layer)
    _linear(level, team, gate_up, state, state.normed, n_active, state.wide_2)
    for i in range(n_active):
        gate, up, gated = state.wide_2[i, :F], state.wide_2[i, F : 2 * F], state.gated[i]
        for k in range(F):
            gated[k] = gate[k] / (np.float32(1) + exp32(-gate[k])) * up[k]
    _linear(level, team, (shape, weights.down, layer), state, state.gated, n_active, state.wide)
    _add(state.wide, n_active, shape.d_model, state.hidden)


@jit
def linear_products(level, team, shape, weights, state, layer):
    """Do one row's products of a layer and nothing else, for measuring them."""
    qkv, gate_up = (shape, weights.qkv, layer), (shape, weights.gate_up, layer)
    _linear(level, team, qkv, state, state.normed, 1, state.wide_2)
    _linear(level, team, (shape, weights.o, layer), state, state.attended, 1, state.wide)
    _linear(level, team, gate_up, state, state.normed, 1, state.wide_2)
    _linear(level, team, (shape, weights.down, layer), state, state.gated, 1, state.wide)


@jit
def _linear(level, team, place, state, x, n_rows, out):
    """Write rows of x times one matrix of a layer to out, for all threads to read on return.

    `place` is the model's shape, the matrix of all layers and the layer. The length of
    shape.packing tells the compiler how the matrix is packed.
    """
    shape, matrix, layer = place
    if shape.ternary:
        scratch = (state.x_q, state.act_scale, state.x_sum, state.sums)
        groups = share(team, matrix.packed.shape[1])
        packed, scale = matrix.packed[layer], matrix.scale[layer]
        if len(shape.packing) == 1:
            cpu.linear(level, ((packed,), scale), x, n_rows, groups, scratch, out)
        else:
            slab = state.slab if x.shape[1] == shape.d_model else state.slab_ff
            weights = (packed, slab, state.slab_sums)
            cpu.linear(level, (weights, scale), x, n_rows, groups, scratch, out)
    else:
        groups = share(team, matrix.dense.shape[1])
        cpu.dense(matrix.dense[layer], x, n_rows, x.shape[1], groups, out)
    wait(team)


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
def _store(shape, position, qkv, heads, kv_heads, caches):
    k_cache, v_cache = caches
    group, lane = position // 16, position % 16
    for head in range(kv_heads[0], kv_heads[1]):
        k = heads[shape.n_heads + head]
        v = qkv[(shape.n_heads + shape.n_kv_heads + head) * shape.head_size :]
        for d in range(shape.head_size):
            k_cache[head, group, d, lane] = k[d]
            v_cache[head, d // 16, position, d % 16] = v[d]


@jit
def _attend(shape, state, i, n_positions, kv_heads, caches):
    """Softmax attention of active row i over its first `n_positions` positions, into attended.

    Both products are `cpu.dense` on the caches: positions are the lanes of k_cache, head
    dimensions those of v_cache. Heads that share keys are the rows of one product.
    """
    K, heads, out = shape.head_size, state.heads[i], state.attended[i]
    k_cache, v_cache = caches
    per_kv = shape.n_heads // shape.n_kv_heads
    scale = np.float32(1 / np.sqrt(K))
    groups = (0, (n_positions + 15) // 16)
    for kv_head in range(kv_heads[0], kv_heads[1]):
        first = kv_head * per_kv
        scores, weighted = state.scores[:per_kv], state.attention[:per_kv]
        cpu.dense(k_cache[kv_head], heads[first:], per_kv, K, groups, scores)
        for head in range(per_kv):
            row = scores[head, :n_positions]
            largest = _largest(row)
            for t in range(n_positions):
                row[t] = exp32((row[t] - largest) * scale)
        values = (0, v_cache.shape[1])
        cpu.dense(v_cache[kv_head], scores, per_kv, n_positions, values, weighted)
        for head in range(per_kv):
            inverse, start = np.float32(1) / _sum(scores[head, :n_positions]), (first + head) * K
            for d in range(K):
                out[start + d] = weighted[head, d] * inverse


@inline
def _largest(row):
    """Return the maximum, of four at a time: one at a time each waits for the one before."""
    a = b = c = d = row[0]
    for t in range(0, len(row) - 3, 4):
        a, b = max(a, row[t]), max(b, row[t + 1])
        c, d = max(c, row[t + 2]), max(d, row[t + 3])
    for t in range(len(row) - len(row) % 4, len(row)):
        a = max(a, row[t])
    return max(max(a, b), max(c, d))


@inline
def _sum(row):
    """Return the sum, in four parts for the same reason."""
    a = b = c = d = np.float32(0)
    for t in range(0, len(row) - 3, 4):
        a, b = a + row[t], b + row[t + 1]
        c, d = c + row[t + 2], d + row[t + 3]
    for t in range(len(row) - len(row) % 4, len(row)):
        a += row[t]
    return (a + b) + (c + d)


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
