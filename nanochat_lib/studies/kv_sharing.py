"""Which loop's keys and values may stand for all loops: decoding with a shared cache, measured.

In: a trained looped model and held-out windows; out: the loss when every earlier token is seen
through the cache of all loops, of the last loop alone, or of the first alone. Decoding is token by
token, as a generator would, because with a shared cache the states of a token depend on what was
kept of the tokens before it. A token's own key and value are always those of the loop at hand.

Source: Ouro (arXiv 2510.25741), section 5.4: sharing the last loop's costs 0.07 points of GSM8K
(78.92 to 78.85), sharing the first loop's leaves 18.73.

W windows, T positions, H heads, J key/value heads, K head size, R loops.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lib.model.attention import rope_table
from nanochat_lib.model.looplm import Layer, LoopLM
from nanochat_lib.model.products import LayerWeights

Sharing = Literal["full", "last", "first"]
SHARINGS: tuple[Sharing, ...] = ("full", "last", "first")


@torch.no_grad()
def decoded_loss(model: LoopLM, windows: np.ndarray, sharing: Sharing) -> float:
    """Return the mean loss in nats of the last loop over held-out windows (W, T + 1)."""
    tokens = torch.from_numpy(windows)
    config, n_windows, n_positions = model.config, len(tokens), tokens.shape[1] - 1
    rope = rope_table(n_positions, config.head_size, config.rope_base)
    weights = [LayerWeights.of(layer) for layer in model.layers]
    shape = (config.n_loops, config.n_layers, 2, n_windows, n_positions)
    cache = torch.zeros(*shape, config.n_kv_heads, config.head_size)
    nats = torch.zeros(n_windows)
    for t in range(n_positions):
        h = model.embed(tokens[:, t : t + 1])  # (W, 1, D)
        for loop_idx in range(config.n_loops):
            for i, layer in enumerate(model.layers):
                kept = cache[_read_from(sharing, loop_idx, config.n_loops), i, :, :, :t]
                h, own = _decode_layer(layer, h, weights[i], rope[:, t : t + 1], kept)
                cache[loop_idx, i, :, :, t : t + 1] = own
            h = model.final_norm(h)
        nats += F.cross_entropy(model.logits(h)[:, 0], tokens[:, t + 1], reduction="none")
    return float(nats.mean()) / n_positions


def _read_from(sharing: Sharing, loop_idx: int, n_loops: int) -> int:
    return {"full": loop_idx, "last": n_loops - 1, "first": 0}[sharing]


def _decode_layer(
    layer: Layer, h: Tensor, weights: LayerWeights, rope: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the layer's output (W, 1, D) and its own key and value (2, W, 1, J, K).

    Args:
        kept: (2, W, t, J, K), keys and values of the tokens before.
    """
    q, k, v = weights.heads(layer, h, rope)
    own = torch.stack((k, v))
    keys, values = torch.cat((kept, own), 2)
    q, keys, values = (heads.transpose(1, 2) for heads in (q, keys, values))
    out = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
    h = h + weights.output(layer, out.transpose(1, 2).flatten(2))
    return h + weights.feed_forward(layer, h), own
