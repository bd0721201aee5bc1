"""The ternary weights of a model, and what each layer changes in each loop.

In: a LoopLM. Out: plain frames and arrays, for figures. Codes and scales are those that the packed
kernels multiply with.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import BIT_LINEARS, LoopLM
from nanochat_lib.model.ternary import quantize_weight


def weight_rows(model: LoopLM) -> pl.DataFrame:
    """Return one row per ternary matrix: layer, matrix, shape, scale, shares of the codes.

    Raises:
        WorkbenchError: the model is not ternary.
    """
    rows = []
    for layer in range(model.config.n_layers):
        for matrix in BIT_LINEARS:
            codes, scale = codes_of(model, layer, matrix)
            rows.append(
                {
                    "layer": layer + 1,
                    "matrix": matrix,
                    "rows": codes.shape[0],
                    "columns": codes.shape[1],
                    "scale": scale,
                    "minus": float((codes == -1).mean()),
                    "zero": float((codes == 0).mean()),
                    "plus": float((codes == 1).mean()),
                }
            )
    return pl.DataFrame(rows)


def codes_of(model: LoopLM, layer: int, matrix: str) -> tuple[np.ndarray, float]:
    """Return the int8 codes (N, K) and the scale of a matrix; layers count from 0."""
    if not model.config.ternary:
        raise WorkbenchError("This model has no ternary weights (model.ternary is false).")
    codes, scale = quantize_weight(getattr(model.layers[layer], matrix).weight)
    return codes.numpy(), scale


@torch.no_grad()
def loop_changes(model: LoopLM, tokenizer: Tokenizer, text: str) -> pl.DataFrame:
    """Return how much each layer changes the residual stream in each loop, on one text.

    Returns: rows {loop, layer, change}; change is |out - in| / |in|, averaged over the tokens. A
        layer is the same in every loop, so differences between loops are due to what it is given.
    """
    ids = tokenizer.encode(text).ids[: model.config.max_seq_len]
    if not ids:
        raise WorkbenchError("There is no token in an empty text.")
    seen: list[float] = []

    def look(module: torch.nn.Module, given: tuple, made: torch.Tensor) -> None:
        before = given[0]
        change = (made - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-9)
        seen.append(float(change.mean()))

    hooks = [layer.register_forward_hook(look) for layer in model.layers]
    try:
        model(torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    n = len(model.layers)
    return pl.DataFrame(
        [{"loop": i // n + 1, "layer": i % n + 1, "change": c} for i, c in enumerate(seen)]
    )
