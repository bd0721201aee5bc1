"""A LoopLM as the arrays that the decode program reads, and the buffers that it writes.

In: a torch `LoopLM`. Out: `Weights`, with ternary matrices packed and matrices that share an input
fused (q,k,v and gate,up), and `State`, everything one thread needs to decode its sequences, so
that nothing is allocated per token. The head is read whole for every token, so it is stored in 16
bits, integers with a power of two per row: half the time of float32. Finished training has rounded
it to such numbers, and loses nothing; another model's stays within 1e-4 of the largest logit.
float16 is 8 times and bfloat16 60 times less exact, and int8, faster still, is 200 times, which
would break the agreement with the trained model.

`L` layers, `R` loops, `S` slots (sequences decoded together), `C` rows (tokens in one pass),
`T` positions, `H` heads, `K` head size, `D` d_model, `F` d_ff, `V` vocabulary. Groups of 16 rows or
positions are written /16 and rounded up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import kernels
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.attention import rope_table
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.ternary import quantize_weight, row_steps

PREFILL_ROWS = 64  # prompt tokens per pass: 5 % more of them a second than with 32 or 128
_FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


class Shape(NamedTuple):
    """The numbers of a model that the decode program needs."""

    n_layers: int
    n_loops: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    d_model: int
    d_ff: int
    vocab_size: int
    norm_eps: float
    ternary: bool
    packing: tuple[int, ...]  # its length tells the compiler: 1 for "2bit", 2 for "base3"


class Matrix(NamedTuple):
    """One weight of all layers; `packed` and `scale`, or `dense`, is used (the other is empty)."""

    packed: np.ndarray  # uint8 (L, N/16, K/16 or K/20, 64)
    scale: np.ndarray  # float32 (L, N)
    dense: np.ndarray  # float32 (L, N/16, K, 16)


class Weights(NamedTuple):
    """All parameters of a model."""

    embed: np.ndarray  # float32 (V, D)
    attn_norm: np.ndarray  # float32 (L, D)
    ffn_norm: np.ndarray  # float32 (L, D)
    final_norm: np.ndarray  # float32 (D,)
    gate_weight: np.ndarray  # float32 (D,)
    gate_bias: np.ndarray  # float32 (1,)
    head: np.ndarray  # int16 (V/16, D, 16)
    head_scale: np.ndarray  # float32 (V padded,)
    rope: np.ndarray  # float32 (2, T, K/2)
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix


class State(NamedTuple):
    """Caches and scratch of a thread, or of a team: then the first arrays are shared.

    Rows of a pass come first in every (C, ...) array.
    """

    k_cache: np.ndarray  # float32 (S, R, L, H_kv, T/16, K, 16): positions are lanes
    v_cache: np.ndarray  # float32 (S, R, L, H_kv, K/16, T, 16): head dimensions are lanes
    wide: np.ndarray  # float32 (C, widest product): products take turns between two
    wide_2: np.ndarray  # float32 (C, widest product)
    attended: np.ndarray  # float32 (C, D)
    logits: np.ndarray  # float32 (C, V padded)
    draft_token: np.ndarray  # int64 (S, drafts)
    stop: np.ndarray  # bool (1,)
    # each thread's own, from here on
    token: np.ndarray  # int64 (C,) what each row reads, and where
    slot: np.ndarray  # int64 (C,)
    position: np.ndarray  # int64 (C,)
    active: np.ndarray  # int64 (C,) rows still in the loops
    survival: np.ndarray  # float32 (C,)
    exit_loop: np.ndarray  # int64 (C,) loops run, from 1
    hidden: np.ndarray  # float32 (C, D) of the active rows
    final: np.ndarray  # float32 (C, D) of every row, once it has left
    normed: np.ndarray  # float32 (C, D)
    heads: np.ndarray  # float32 (C, H + H_kv, K): queries and keys, turned
    gated: np.ndarray  # float32 (C, F)
    scores: np.ndarray  # float32 (H, T padded)
    attention: np.ndarray  # float32 (H, K padded)
    x_q: np.ndarray  # int8 (C, D or F in whole cache lines)
    act_scale: np.ndarray  # float32 (C,)
    x_sum: np.ndarray  # int32 (C,)
    sums: np.ndarray  # int32 (C, widest product)
    slab: np.ndarray  # uint8 (8, D/16, 64): base 3 repacked
    slab_ff: np.ndarray  # uint8 (8, F/16, 64)
    slab_sums: np.ndarray  # int32 (C, 128)
    probability: np.ndarray  # float32 (V,)
    candidate: np.ndarray  # float32 (V,)
    draft_hidden: np.ndarray  # float32 (S, drafts, D)
    draft_probability: np.ndarray  # float32 (S, drafts, V)


_SHARED = ("k_cache", "v_cache", "wide", "wide_2", "attended", "logits", "draft_token", "stop")


def shape_of(config: ModelConfig, packing: str) -> Shape:
    """Return the numbers of `config` that the decode program needs."""
    values = {name: getattr(config, name) for name in Shape._fields if name != "packing"}
    return Shape(**values, packing=(0,) * (1 + list(kernels.PACKINGS).index(packing)))


def new_weights(config: ModelConfig, max_seq_len: int, packing: str) -> Weights:
    """Allocate the arrays of a model; `load_weights` fills them."""
    L, D = config.n_layers, config.d_model
    qkv_rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_size
    rope = rope_table(max_seq_len, config.head_size, config.rope_base)[:, :, 0].contiguous().numpy()
    kind = packing if config.ternary else None
    return Weights(
        embed=_zeros(config.vocab_size, D),
        attn_norm=_zeros(L, D),
        ffn_norm=_zeros(L, D),
        final_norm=_zeros(D),
        gate_weight=_zeros(D),
        gate_bias=_zeros(1),
        head=np.zeros((_up(config.vocab_size) // 16, D, 16), np.int16),
        head_scale=_zeros(_up(config.vocab_size)),
        rope=rope,
        qkv=_new_matrix(L, qkv_rows, D, kind),
        o=_new_matrix(L, D, D, kind),
        gate_up=_new_matrix(L, 2 * config.d_ff, D, kind),
        down=_new_matrix(L, D, config.d_ff, kind),
    )


def load_weights(weights: Weights, model: LoopLM, packing: str) -> None:
    """Copy and pack the parameters of `model` into `weights`, in place.

    Raises:
        WorkbenchError: a parameter holds NaN or infinity.
    """
    tensors = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WorkbenchError(
                f"Parameter {name} holds NaN or infinity, so the model cannot generate. "
                "Training has diverged: go back to an earlier checkpoint or lower the rate."
            )
    weights.embed[:] = tensors["embed.weight"].numpy()
    weights.final_norm[:] = tensors["final_norm.weight"].numpy()
    weights.gate_weight[:] = tensors["exit_gate.weight"][0].numpy()
    weights.gate_bias[:] = tensors["exit_gate.bias"].numpy()
    _load_head(weights, tensors["head.weight"].numpy())
    for layer in range(len(weights.attn_norm)):
        weights.attn_norm[layer] = tensors[f"layers.{layer}.attn_norm.weight"].numpy()
        weights.ffn_norm[layer] = tensors[f"layers.{layer}.ffn_norm.weight"].numpy()
        for fused, names in _FUSED.items():
            parts = [tensors[_key(layer, name)] for name in names]
            _load_matrix(getattr(weights, fused), layer, parts, packing)


def stored_model(weights: Weights, model: LoopLM, packing: str) -> LoopLM:
    """Return a LoopLM whose matrices are those that `weights`, loaded from `model`, hold.

    They are used as they stand: ternary ones are not quantised anew.
    """
    config, tensors = model.config, dict(model.state_dict())
    head = weights.head * weights.head_scale.reshape(-1, 1, 16)
    tensors["head.weight"] = head.transpose(0, 2, 1).reshape(-1, config.d_model)[
        : config.vocab_size
    ]
    tensors["embed.weight"] = weights.embed
    for layer in range(config.n_layers):
        for fused, names in _FUSED.items():
            matrix, widths = getattr(weights, fused), [len(tensors[_key(layer, n)]) for n in names]
            k = tensors[_key(layer, names[0])].shape[1]
            codes = kernels.unpack(matrix.packed[layer], sum(widths), k, packing)
            whole = codes * matrix.scale[layer][:, None]
            parts = np.split(whole, np.cumsum(widths)[:-1])
            tensors |= {_key(layer, name): part for name, part in zip(names, parts, strict=True)}
    stored = LoopLM(config)
    stored.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    stored.use_weights_as_they_are()
    return stored


def _key(layer: int, name: str) -> str:
    return f"layers.{layer}.{name}.weight"


def new_state(
    config: ModelConfig, max_seq_len: int, n_slots: int, *, n_drafts: int = 0, packing: str = "2bit"
) -> State:
    """Allocate what one thread needs for `n_slots` sequences of up to `max_seq_len` tokens."""
    C, D, F = max(n_slots * max(1, n_drafts), PREFILL_ROWS), config.d_model, config.d_ff
    K, T, V = config.head_size, _up(max_seq_len), config.vocab_size
    cache = (n_slots, config.n_loops, config.n_layers, config.n_kv_heads)
    qkv_rows = (config.n_heads + 2 * config.n_kv_heads) * K
    widest = _up(max(qkv_rows, 2 * F, D))
    slab_rows = 8 if packing == "base3" else 0
    return State(
        k_cache=_zeros(*cache, T // 16, K, 16),
        v_cache=_zeros(*cache, _up(K) // 16, T, 16),
        wide=_zeros(C, widest),
        wide_2=_zeros(C, widest),
        attended=_zeros(C, D),
        logits=_zeros(C, _up(V)),
        draft_token=np.zeros((n_slots, n_drafts), np.int64),
        stop=np.zeros(1, np.bool_),
        token=np.zeros(C, np.int64),
        slot=np.zeros(C, np.int64),
        position=np.zeros(C, np.int64),
        active=np.zeros(C, np.int64),
        survival=_zeros(C),
        exit_loop=np.zeros(C, np.int64),
        hidden=_zeros(C, D),
        final=_zeros(C, D),
        normed=_zeros(C, D),
        heads=_zeros(C, config.n_heads + config.n_kv_heads, K),
        gated=_zeros(C, F),
        scores=_zeros(config.n_heads, T),
        attention=_zeros(config.n_heads, _up(K)),
        x_q=np.zeros((C, kernels.activation_width(max(D, F))), np.int8),
        act_scale=_zeros(C),
        x_sum=np.zeros(C, np.int32),
        sums=np.zeros((C, widest), np.int32),
        slab=np.zeros((slab_rows, *kernels.packed_shape(1, D)[1:]), np.uint8),
        slab_ff=np.zeros((slab_rows, *kernels.packed_shape(1, F)[1:]), np.uint8),
        slab_sums=np.zeros((C, slab_rows * 16), np.int32),
        probability=_zeros(V),
        candidate=_zeros(V),
        draft_hidden=_zeros(n_slots, n_drafts, D),
        draft_probability=_zeros(n_slots, n_drafts, V),
    )


def team_states(state: State, size: int) -> list[State]:
    """Return a state for each thread of a team: caches and products shared, the rest its own."""
    own = {name: array for name, array in state._asdict().items() if name not in _SHARED}
    others = [
        state._replace(**{name: np.zeros_like(array) for name, array in own.items()})
        for _ in range(size - 1)
    ]
    return [state, *others]


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def _up(n: int) -> int:
    return -(-n // 16) * 16


def _new_matrix(n_layers: int, n: int, k: int, packing: str | None) -> Matrix:
    if packing:
        packed = np.zeros((n_layers, *kernels.packed_shape(n, k, packing)), np.uint8)
        return Matrix(packed, _zeros(n_layers, n), _zeros(n_layers, 0, 0, 16))
    packed = np.zeros((n_layers, 0, 0, 64), np.uint8)
    return Matrix(packed, _zeros(n_layers, 0), _zeros(n_layers, _up(n) // 16, k, 16))


def _load_matrix(matrix: Matrix, layer: int, parts: list[torch.Tensor], packing: str) -> None:
    if matrix.scale.size == 0:
        matrix.dense[layer] = _tiles(torch.cat(parts).numpy())
        return
    quantized = [quantize_weight(part) for part in parts]
    codes = torch.cat([codes for codes, _ in quantized]).numpy()
    matrix.packed[layer] = kernels.pack(codes, packing)
    matrix.scale[layer] = np.concatenate(
        [np.full(len(codes), scale, np.float32) for codes, scale in quantized]
    )


def _load_head(weights: Weights, head: np.ndarray) -> None:
    """Round each row to int16 codes; a trained model's are exact (`LoopLM.round_tables`)."""
    scale = row_steps(torch.from_numpy(head)).numpy()
    weights.head[:] = np.rint(_tiles(head / scale))
    weights.head_scale[: len(scale)] = scale[:, 0]


def _tiles(weight: np.ndarray) -> np.ndarray:
    """Return (N, K) as (N/16, K, 16): sixteen output rows become the lanes of a vector."""
    n, k = weight.shape
    padded = np.zeros((_up(n), k), np.float32)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, 16, k).transpose(0, 2, 1))
