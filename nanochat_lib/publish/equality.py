"""Is the exported model the trained one? Its held-out loss, by every way back.

In: a checkpoint, the files written from it and held-out windows; out: bits per byte of the trained
model, of the reloaded safetensors, of the packed weights in both packings, and of each GGUF file
read by the `gguf` package, with the difference from the trained model: none, because training ends
by rounding embedding and head to numbers that all of them hold. The decode engine sums the same
numbers in another order, which moves some activations to the neighbouring int8 code: about 1e-4
bits per byte, on a row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F

from kernels import PACKINGS
from nanochat_lib.data.batches import TokenData
from nanochat_lib.model.checkpoint import Checkpoint, load_checkpoint
from nanochat_lib.model.decoding.packed import load_weights, new_weights, stored_model
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.publish.gguf_file import tensor_name

TOLERANCE = 1e-6  # bits per byte
ENGINE = "decode engine"
ENGINE_TOLERANCE = 3e-4  # of other sums over the same weights
N_WINDOWS = 8
Logits = Callable[[list[int]], torch.Tensor]


def export_losses(
    checkpoint: Checkpoint, folder: Path, windows: np.ndarray, bytes_per_token: float
) -> list[dict[str, Any]]:
    """Return one row for each way back: what, bits_per_byte, difference, tolerance, is_equal.

    Args:
        folder: holds `safetensors/` and the GGUF files.
        windows: held-out tokens (W, T + 1).
    """
    ways: dict[str, Logits] = {
        "the trained model": _torch_logits(checkpoint.model),
        "safetensors": _torch_logits(load_checkpoint(folder / "safetensors").model),
    }
    if checkpoint.config.ternary:
        ways |= {
            f"packed, {packing}": _torch_logits(read_packed(checkpoint.model, packing))
            for packing in PACKINGS
        }
    for path in sorted(folder.glob("*.gguf")):
        ways[path.name] = _torch_logits(read_gguf(path, checkpoint))
    ways[ENGINE] = _engine_logits(checkpoint.model)
    rows: list[dict[str, Any]] = []
    for what, logits in ways.items():
        bits = _nats_per_token(logits, windows) / math.log(2) / bytes_per_token
        gap = bits - rows[0]["bits_per_byte"] if rows else 0.0
        row = {"what": what, "bits_per_byte": bits, "difference": gap}
        tolerance = ENGINE_TOLERANCE if what == ENGINE else TOLERANCE
        rows.append(row | {"tolerance": tolerance, "is_equal": abs(gap) <= tolerance})
    return rows


def held_out_losses(checkpoint: Checkpoint, folder: Path, preprocess: Path) -> list[dict[str, Any]]:
    """Return `export_losses` on held-out real Rust of a run; no rows where it has no shards."""
    if not (preprocess / "shards").is_dir():
        return []
    data = TokenData.open(preprocess)
    length = min(checkpoint.config.max_seq_len, 256)
    windows = data.validation_windows("real", length, N_WINDOWS)
    return export_losses(checkpoint, folder, windows, data.bytes_per_token("real"))


def read_packed(model: LoopLM, packing: str) -> LoopLM:
    """Return a LoopLM with the weights that the decode engine holds for `model`."""
    weights = new_weights(model.config, model.config.max_seq_len, packing)
    load_weights(weights, model, packing)
    return stored_model(weights, model, packing)


def read_gguf(path: Path, checkpoint: Checkpoint) -> LoopLM:
    """Return a LoopLM whose matrices are those of a GGUF file, used as they stand there.

    Ternary matrices are not quantised anew: their scale would be taken from codes times scale.
    """
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = LoopLM(checkpoint.config)
    weights = dict(checkpoint.model.state_dict())
    for name, wanted in weights.items():
        if not name.startswith("exit_gate"):  # which the format has no slot for
            tensor = found[tensor_name(name)]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[name] = torch.from_numpy(values.astype(np.float32)).reshape(wanted.shape)
    model.load_state_dict(weights)
    model.use_weights_as_they_are()
    return model


def _torch_logits(model: LoopLM) -> Logits:
    def logits(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model.logits(model(torch.tensor([tokens])).hidden[-1])[0].float()

    return logits


def _engine_logits(model: LoopLM) -> Logits:
    engine = Engine.from_model(model, max_batch=1, threads=1)
    return lambda tokens: torch.from_numpy(engine.logits(tokens))


def _nats_per_token(logits: Logits, windows: np.ndarray) -> float:
    losses = [
        float(F.cross_entropy(logits(row[:-1].tolist()).double(), torch.from_numpy(row[1:])))
        for row in windows.astype(np.int64)
    ]
    return sum(losses) / len(losses)
