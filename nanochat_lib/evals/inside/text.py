"""What a model makes of one text, loop by loop: loss, bits per byte, share of tokens that leave.

Used by the tour to follow one Rust file; pipelines measure held-out shards instead.
"""

from __future__ import annotations

import math

import polars as pl
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM, exit_pdf


def token_table(tokenizer: Tokenizer, text: str, n: int = 20) -> pl.DataFrame:
    """Return the first n tokens of a text: id, and the text it stands for."""
    ids = tokenizer.encode(text).ids[:n]
    shown = [repr(tokenizer.decode([i])) for i in ids]
    return pl.DataFrame({"id": ids, "text": shown}, schema={"id": pl.Int64, "text": pl.String})


@torch.no_grad()
def loss_by_loop(model: LoopLM, tokenizer: Tokenizer, text: str) -> pl.DataFrame:
    """Return one row per loop: mean cross-entropy in nats, bits per byte, mean exit probability.

    Only the first `max_seq_len` tokens are read; bits per byte counts their bytes.

    Raises:
        WorkbenchError: the text has fewer than two tokens.
    """
    ids = tokenizer.encode(text).ids[: model.config.max_seq_len]
    if len(ids) < 2:
        raise WorkbenchError("A loss needs at least two tokens; the text is shorter.")
    tokens = torch.tensor([ids])
    n_bytes = len(tokenizer.decode(ids[1:]).encode())
    out = model(tokens[:, :-1])
    leaving = exit_pdf(out.exit_prob).mean((1, 2)).tolist()
    rows = []
    for loop, (hidden, share) in enumerate(zip(out.hidden, leaving, strict=True), 1):
        total = F.cross_entropy(model.logits(hidden)[0].float(), tokens[0, 1:], reduction="sum")
        rows.append(
            {
                "loop": loop,
                "loss_nats": total.item() / (len(ids) - 1),
                "bits_per_byte": total.item() / math.log(2) / n_bytes,
                "exit_share": share,
            }
        )
    return pl.DataFrame(rows)
