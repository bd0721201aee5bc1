"""The kernels of a decode step, run on the CPU: attention, leaving loops, the next token."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from cuda_shim import Shim, compiled

from kernels.cuda.structs import (
    Address,
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


LEFT = ("hidden", "final", "survival", "active", "n_active", "arrived", "exit_loop", "depth")


def before_leaving(n: int = 30, n_active: int = 14, D: int = 600) -> dict[str, np.ndarray]:
    """Return the arrays of `leave` by name, of which 14 rows are in the loops."""
    rng, floats = np.random.default_rng(1), np.float32
    return {
        "hidden": rng.standard_normal((n, D)).astype(floats), "final": np.zeros((n, D), floats),
        "norm_weight": rng.random(D, floats), "gate_bias": np.zeros(1, floats),
        "gate_weight": (rng.standard_normal(D) * 0.12).astype(floats),
        "survival": rng.random(n, floats),
        "active": np.array([*range(3, 30, 2), *[0] * (n - n_active)], np.int32),
        "n_active": np.array([n_active], np.int32), "arrived": np.zeros(1, np.uint32),
        "exit_loop": np.zeros(n, np.int32), "depth": np.zeros((n, T), np.uint8),
        "slot": np.arange(n, dtype=np.int32), "position": rng.integers(0, T, n).astype(np.int32),
    }  # fmt: skip


def leave(here: dict[str, np.ndarray], loop: int, threshold: float, sizes=(1, 256), seed=1) -> None:
    names = [name for name, kind in LeaveArgs._fields_ if kind is Address]
    arrays = (address(here[name]) for name in names)
    args = LeaveArgs(*arrays, here["hidden"].shape[1], T, loop, 3, 1e-5, threshold)
    runner = shim(64, 32)
    runner.seed = seed
    runner.launch("leave", args, *sizes)


@pytest.mark.parametrize("threshold", [0.5, 2.0])
@pytest.mark.parametrize("loop", [0, 2])
def test_rows_leave_when_their_exit_cdf_reaches_the_threshold(threshold, loop):
    here = before_leaving()
    rows, hidden, survival = here["active"][:14].copy(), here["hidden"], here["survival"]
    normed = hidden[rows].astype(np.float64)
    normed /= np.sqrt((normed**2).mean(1, keepdims=True) + 1e-5)
    normed *= here["norm_weight"]
    left = survival[rows] * (1 - 1 / (1 + np.exp(-(normed @ here["gate_weight"]))))
    leaves = (1 - left >= threshold) | (loop == 2)
    leave(here, loop, threshold)
    assert here["n_active"][0] == (~leaves).sum()
    assert here["active"][: here["n_active"][0]].tolist() == rows[~leaves].tolist()
    np.testing.assert_allclose(hidden[rows], normed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(survival[rows], left, rtol=1e-5)
    assert np.array_equal(here["final"][rows[leaves]], hidden[rows[leaves]])
    assert not here["final"][rows[~leaves]].any()
    ran = np.where(leaves, loop + 1, 0)
    assert (here["exit_loop"][rows] == ran).all()
    assert (here["depth"][here["slot"][rows], here["position"][rows]] == ran).all()


def test_how_rows_are_spread_over_blocks_changes_no_bit_of_leaving():
    """Some rows leave; blocks without a row, with one and with several, in any order of threads."""
    wanted = before_leaving()
    leave(wanted, 0, 0.5)
    assert 0 < wanted["n_active"][0] < 14
    for sizes, seed in (((30, 256), 2), ((3, 512), 3), ((14, 256), 4)):
        found = before_leaving()
        leave(found, 0, 0.5, sizes, seed)
        assert all(np.array_equal(found[name], wanted[name]) for name in LEFT), sizes
        assert found["arrived"][0] == 0


def test_the_sums_of_leaving_are_in_the_order_that_is_documented():
    """Columns of 256, halves of a warp, warps in order: bit by bit in NumPy."""
    here, D = before_leaving(1, 1), 600
    here["active"][0], row = 0, here["hidden"][0].copy()
    leave(here, 0, 2.0)

    def added(terms: np.ndarray) -> np.float32:
        """`terms` are fused products: exact in float64, rounded when added."""
        columns = np.zeros(256, np.float32)
        for k in range(0, D, 256):
            part = terms[k : k + 256]
            columns[: len(part)] = (columns[: len(part)].astype(np.float64) + part).astype("f4")
        warps = columns.reshape(8, 32)
        for half in (16, 8, 4, 2, 1):
            warps = warps[:, :half] + warps[:, half : 2 * half]
        total = np.float32(0)
        for one in warps[:, 0]:
            total += one
        return total

    squares = added(row.astype(np.float64) ** 2)
    inverse = np.float32(1) / np.sqrt(squares / np.float32(D) + np.float32(1e-5))
    normed = row * inverse * here["norm_weight"]
    assert np.array_equal(here["hidden"][0], normed)
    gate = added(normed.astype(np.float64) * here["gate_weight"].astype(np.float64))
    kept = np.float32(1) - np.float32(1) / (np.float32(1) + sampling.exp32(-gate))
    start = before_leaving(1, 1)["survival"][0]
    assert here["survival"][0] == start * np.float32(kept)


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
