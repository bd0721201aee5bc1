"""The kernels of a decode step, run on the CPU: attention, leaving loops, the next token."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from cuda_shim import Shim, compiled

from kernels.cuda.structs import (
    Attention,
    AttentionArgs,
    Cache,
    LeaveArgs,
    SampleArgs,
    address,
)
from nanochat_lib.model.decoding import sampling

R, L, T = 3, 2, 200  # loops, layers, positions


@functools.cache
def shim(head_size: int, bits: int) -> Shim:
    return Shim(compiled(defines=(f"HEAD_SIZE={head_size}", f"CACHE_BITS={bits}")))


class Setting:
    """Random sequences in the cache, and the rows of one step at their ends."""

    def __init__(self, n_heads: int, n_kv: int, head_size: int, bits: int, positions: list[int]):
        rng, S, K = np.random.default_rng(0), len(positions), head_size
        dtype = np.float32 if bits == 32 else np.float16
        self.n_heads, self.n_kv, self.K = n_heads, n_kv, K
        self.k = rng.standard_normal((S, R, L, n_kv, T, K)).astype(dtype)
        self.v = rng.standard_normal(self.k.shape).astype(dtype)
        self.depth = rng.integers(1, R + 1, (S, T)).astype(np.uint8)
        self.qkv = rng.standard_normal((S, (n_heads + 2 * n_kv) * K + 8)).astype(np.float32)
        angle = np.outer(np.arange(T), 100.0 ** (-np.arange(K // 2) / K))
        self.rope = np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
        self.position = np.array(positions, np.int32)
        self.slot = np.arange(S, dtype=np.int32)[::-1].copy()
        self.active = np.array([i for i in range(S) if i != 1], np.int32)
        self.attended = np.full((len(self.active), n_heads * K), np.nan, np.float32)

    def args(self, loop: int, layer: int, n_splits: int) -> AttentionArgs:
        n_units = len(self.active) * self.n_heads
        self.partial = np.full((n_units, n_splits, 4 * (self.K + 2)), np.nan, np.float32)
        self.arrived = np.zeros(n_units, np.uint32)
        arrays = (self.qkv, self.rope, self.attended, self.partial, self.arrived, self.active,
                  self.slot, self.position)  # fmt: skip
        sizes = (self.qkv.shape[1], self.n_heads, T, n_splits)
        cache = Cache(*map(address, (self.k, self.v, self.depth)), R, L, self.n_kv, T)
        attention = Attention(*map(address, arrays), *sizes)
        return AttentionArgs(attention, cache, None, loop, layer, len(self.active))

    def turned(self, head: np.ndarray, position: int) -> np.ndarray:
        cos, sin = self.rope[:, position].astype(np.float64)
        even, odd = head[0::2], head[1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], 1).ravel()

    def wanted(self, loop: int, layer: int) -> np.ndarray:
        """Plain softmax attention in float64, position by position."""
        K, rows = self.K, []
        for i, row in enumerate(self.active):
            slot, position = self.slot[row], self.position[row]
            heads = self.qkv[i, : (self.n_heads + 2 * self.n_kv) * K].astype(np.float64)
            heads = heads.reshape(-1, K)
            for h in range(self.n_heads):
                kv = h // (self.n_heads // self.n_kv)
                from_loop = [min(loop, d - 1) for d in self.depth[slot, :position]]
                past = [(slot, r, layer, kv, t) for t, r in enumerate(from_loop)]
                keys = [self.k[at].astype(np.float64) for at in past]
                values = [self.v[at].astype(np.float64) for at in past]
                keys.append(self.turned(heads[self.n_heads + kv], position))
                values.append(heads[self.n_heads + self.n_kv + kv])
                scores = np.array(keys) @ self.turned(heads[h], position) / np.sqrt(K)
                weight = np.exp(scores - scores.max())
                rows.append(weight / weight.sum() @ np.array(values))
        return np.array(rows).reshape(len(self.active), -1)


@pytest.mark.parametrize("n_splits", [1, 3])
@pytest.mark.parametrize(
    ("n_heads", "n_kv", "head_size", "bits"),
    [(4, 2, 64, 32), (5, 1, 64, 16), (6, 2, 128, 16), (2, 2, 8, 32)],
)
def test_attention_is_that_of_float64(n_heads, n_kv, head_size, bits, n_splits):
    """Several stretches of the past, grouped heads, all depths, a row that has left."""
    here = Setting(n_heads, n_kv, head_size, bits, [150, 7, 0, 65, 63])
    runner, args = shim(head_size, bits), here.args(2, 1, n_splits)
    wanted = here.wanted(2, 1)
    for seed in (1, 2):
        runner.seed = seed
        runner.launch("attention", args, 5, 128, shared=4 * 4 * (head_size + 2) * 4)
        np.testing.assert_allclose(here.attended, wanted, rtol=0, atol=2e-5 if bits == 32 else 2e-3)
        assert not here.arrived.any()


def test_store_writes_turned_keys_and_values_of_every_row():
    here = Setting(4, 2, 64, 32, [150, 7, 0, 65, 63])
    before = here.k.copy()
    shim(64, 32).launch("store", here.args(1, 0, 1), 3, 64)
    for i, row in enumerate(here.active):
        at = (here.slot[row], 1, 0, 1, here.position[row])
        head = here.qkv[i].astype(np.float64)[5 * 64 : 6 * 64]
        np.testing.assert_allclose(here.k[at], here.turned(head, here.position[row]), atol=1e-5)
        assert np.array_equal(here.v[at], here.qkv[i, 7 * 64 : 8 * 64])
    assert (here.k != before).any(-1).sum() == 2 * len(here.active)


@pytest.mark.parametrize("threshold", [0.5, 2.0])
@pytest.mark.parametrize("loop", [0, 2])
def test_rows_leave_when_their_exit_cdf_reaches_the_threshold(threshold, loop):
    rng, n, D = np.random.default_rng(1), 30, 96
    hidden, norm = rng.standard_normal((n, D)).astype(np.float32), rng.random(D, np.float32)
    gate, bias = (rng.standard_normal(D) * 0.3).astype(np.float32), np.zeros(1, np.float32)
    survival = rng.random(n, np.float32)
    final, exit_loop = np.zeros((n, D), np.float32), np.zeros(n, np.int32)
    active, depth = np.array([*range(3, 30, 2), *[0] * 16], np.int32), np.zeros((n, T), np.uint8)
    slot, position = np.arange(n, dtype=np.int32), rng.integers(0, T, n).astype(np.int32)
    n_active, rows = np.array([14], np.int32), active[:14].copy()
    normed = hidden[rows].astype(np.float64)
    normed /= np.sqrt((normed**2).mean(1, keepdims=True) + 1e-5)
    normed *= norm
    left = survival[rows] * (1 - 1 / (1 + np.exp(-(normed @ gate))))
    leaves = (1 - left >= threshold) | (loop == 2)
    arrays = (hidden, final, norm, gate, bias, survival, active, n_active, exit_loop, depth, slot,
              position)  # fmt: skip
    args = LeaveArgs(*map(address, arrays), D, T, loop, 3, 1e-5, threshold)
    shim(64, 32).launch("leave", args, 1, 128)
    assert n_active[0] == (~leaves).sum()
    assert active[: n_active[0]].tolist() == rows[~leaves].tolist()
    np.testing.assert_allclose(hidden[rows], normed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(survival[rows], left, rtol=1e-5)
    assert np.array_equal(final[rows[leaves]], hidden[rows[leaves]])
    assert not final[rows[~leaves]].any()
    assert (exit_loop[rows] == np.where(leaves, loop + 1, 0)).all()
    assert (depth[slot[rows], position[rows]] == np.where(leaves, loop + 1, 0)).all()


def sampled(logits, temperature, top_k, top_p, seeds, place):
    n, V = logits.shape
    probability, entropy = np.zeros((n, V), np.float32), np.zeros(n, np.float32)
    token, place = np.full(n, -1, np.int32), np.full(n, place, np.int32)
    arrays = (logits, probability, seeds, place, token, entropy)
    args = SampleArgs(*map(address, arrays), n, V, V, top_k, temperature, top_p)
    shim(64, 32).launch("sample", args, n, 64, shared=4 * 64)
    return token, entropy


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0, 0, 1.0), (1, 0, 1.0), (0.7, 5, 1.0), (1.3, 40, 0.8)]
)
def test_tokens_and_entropies_are_those_of_the_cpu(temperature, top_k, top_p):
    rng, n, V = np.random.default_rng(2), 40, 500
    logits = (rng.standard_normal((n, V)) * 2).astype(np.float32)
    logits[3, 7] = logits[3, 9] = 99  # equals: the first of them
    seeds = rng.integers(0, 2**63, n).astype(np.uint64)
    token, entropy = sampled(logits, temperature, top_k, top_p, seeds, 5)
    kept, scratch, wanted = np.zeros(V, np.float32), np.zeros(V, np.float32), []
    for row, seed in zip(logits, seeds, strict=True):
        if temperature:
            sampling.distribution(row, temperature, (top_k, top_p), kept, scratch)
            wanted.append(sampling.draw(kept, sampling.uniform(seed, 5)))
        else:
            wanted.append(sampling.most_likely(row))
    assert token.tolist() == wanted
    found = [sampling.token_entropy(row, scratch) for row in logits]
    np.testing.assert_allclose(entropy, found, atol=1e-5)
