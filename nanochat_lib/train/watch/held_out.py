"""Held-out text: loss and bits per byte of every loop, calibration, exits.

In: a model and held-out windows; out: dictionaries from metric names (`records.Metric`) to floats.
Everything runs without gradients, on a small fixed sample, so that it costs a few per cent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat_lib.data.batches import TokenData
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM, exit_entropy_nats, exit_pdf, expected_loops
from nanochat_lib.records import Metric
from nanochat_lib.train.objective import token_statistics

# Positions that go through the model at once, in windows of any length: of 8192 and a width of 4096
# the widest activations take 0.4 GB. More at a time is no faster.
EVAL_POSITIONS = 8192
MAX_WINDOWS = 16
EVAL_WINDOWS = 32  # real windows of each validation during training


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows (W, T + 1) of one kind, and how many bytes a token stands for."""

    windows: np.ndarray
    bytes_per_token: float


def held_out(data: TokenData, seq_len: int, max_windows: int) -> dict[str, HeldOut]:
    """Return held-out real Rust, and TinyRust where the run has any.

    Raises:
        WorkbenchError: the held-out real shard is shorter than one window.
    """
    kinds = {
        "real": HeldOut(
            data.validation_windows("real", seq_len, max_windows), data.bytes_per_token("real")
        )
    }
    try:
        windows = data.validation_windows("tinyrust", seq_len, max(1, max_windows // 2))
    except WorkbenchError:  # a run without TinyRust
        return kinds
    return kinds | {"tinyrust": HeldOut(windows, data.bytes_per_token("tinyrust"))}


@torch.no_grad()
def evaluate(model: LoopLM, sets: dict[str, HeldOut]) -> dict[str, float]:
    """Return loss, bits per byte for each loop, calibration and exit statistics."""
    real = sets["real"]
    cross_entropy, token_entropy, pdf = _statistics(model, real.windows)
    bits = [_bits_per_byte(ce, real) for ce in cross_entropy.mean(1).tolist()]
    val_loss, mean_entropy = float(cross_entropy[-1].mean()), float(token_entropy.mean())
    values = {
        Metric.VAL_LOSS: val_loss,
        Metric.BITS_PER_BYTE: bits[-1],
        Metric.TOKEN_ENTROPY: mean_entropy,
        Metric.TOKEN_ENTROPY_SHARE: mean_entropy / math.log(model.config.vocab_size),
        Metric.CALIBRATION_GAP: mean_entropy - val_loss,
        **{f"{Metric.BITS_PER_BYTE_LOOP}{r}": value for r, value in enumerate(bits, 1)},
        **exit_metrics(pdf),
    }
    if "tinyrust" in sets:
        tiny = sets["tinyrust"]
        tiny_ce, _, _ = _statistics(model, tiny.windows)
        values[Metric.BITS_PER_BYTE_TINYRUST] = _bits_per_byte(float(tiny_ce[-1].mean()), tiny)
    return {str(name): value for name, value in values.items()}


def exit_metrics(pdf: Tensor) -> dict[str, float]:
    """Return the mean exit distribution of an exit_pdf (R, M), its mean depth and entropy.

    The entropy is that of each token's own distribution, averaged; that of the mean distribution
    would also be high when every token is certain of its depth.
    """
    values = {f"{Metric.EXIT_PDF}{r}": p for r, p in enumerate(pdf.mean(1).tolist(), 1)}
    values[Metric.EXPECTED_LOOPS] = float(expected_loops(pdf).mean())
    values[Metric.EXIT_ENTROPY] = float(exit_entropy_nats(pdf).mean())
    return {str(name): value for name, value in values.items()}


def loss_by_position(model: LoopLM, windows: np.ndarray) -> np.ndarray:
    """Return the last loop's mean cross-entropy (T,) in nats at each position of the windows."""
    with torch.no_grad():
        cross_entropy, _, _ = _statistics(model, windows)
    return cross_entropy[-1].view(len(windows), -1).mean(0).numpy()


def _statistics(model: LoopLM, windows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy (R, M), the last loop's token entropy (M,) and exit_pdf (R, M)."""
    device = model.head.weight.device
    cross_entropy, entropy, pdf = [], [], []
    at_once = min(max(1, EVAL_POSITIONS // windows.shape[1]), MAX_WINDOWS)
    for start in range(0, len(windows), at_once):
        tokens = torch.from_numpy(windows[start : start + at_once]).to(device)
        output = model(tokens[:, :-1])
        targets = tokens[:, 1:].flatten()
        statistics = [
            token_statistics(h.flatten(0, 1), model.head.weight, targets) for h in output.hidden
        ]
        cross_entropy.append(torch.stack([ce for ce, _ in statistics]).cpu())
        entropy.append(statistics[-1][1].cpu())
        pdf.append(exit_pdf(output.exit_prob).flatten(1).cpu())
    return torch.cat(cross_entropy, 1), torch.cat(entropy), torch.cat(pdf, 1)


def _bits_per_byte(nats_per_token: float, held: HeldOut) -> float:
    return nats_per_token / math.log(2) / held.bytes_per_token
