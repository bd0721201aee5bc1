"""The specification of ternary arithmetic in plain NumPy: obviously right, and slow.

Every fast kernel returns exactly these int32 accumulators; scales are applied outside the integer
part, in float32, in the one order written here. Source: BitNet b1.58 (arXiv 2402.17764).

`B` tokens, `N` output rows, `K` inputs.
"""

from __future__ import annotations

import numpy as np

from kernels.packing import unpack

MIN_ABSMAX = np.float32(1e-5)  # an all-zero token keeps a finite scale


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise each token to int8 by its largest magnitude.

    Args:
        x: float32 (B, K).

    Returns:
        int8 (B, K), and act_scale float32 (B,), with x close to x_q * act_scale.

    [[1.0, -0.5, 0.0]] -> [[127, -64, 0]], [1 / 127]: halves round to even.
    """
    absmax = np.abs(x).max(axis=1)
    act_scale = np.maximum(absmax, MIN_ABSMAX) / np.float32(127)
    x_q = np.clip(np.rint(x / act_scale[:, None]), -128, 127).astype(np.int8)
    return x_q, act_scale


def accumulate(codes: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    """Return the int32 (B, N) dot products of int8 (B, K) activations with int8 (N, K) codes."""
    return x_q.astype(np.int32) @ codes.astype(np.int32).T


def apply_scales(
    accumulators: np.ndarray, act_scale: np.ndarray, weight_scale: np.ndarray
) -> np.ndarray:
    """Return float32 (B, N): accumulator * (act_scale * weight_scale), each step in float32."""
    scales = act_scale[:, None] * np.asarray(weight_scale, dtype=np.float32)[None, :]
    return accumulators.astype(np.float32) * scales


def ternary_matmul(
    packed: np.ndarray, weight_scale: np.ndarray, x: np.ndarray, n: int, packing: str = "2bit"
) -> np.ndarray:
    """Return float32 (B, n) = quantised x (B, K) times the transposed packed weight (n, K).

    `weight_scale` is float32 (1,) for the whole tensor or (n,) for one scale per row.
    """
    x_q, act_scale = quantize_activations(x)
    codes = unpack(packed, n, x.shape[1], packing)
    return apply_scales(accumulate(codes, x_q), act_scale, weight_scale)
