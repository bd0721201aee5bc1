"""The arguments of the CUDA kernels: ctypes mirrors of the structs in source/*.cu.

Every kernel takes one struct by value. A test compares sizes and offsets with those that a C++
compiler gives the sources, so the two cannot drift apart. Arrays are addresses: of torch tensors on
a GPU, of NumPy arrays where the sources run on a CPU (tests/cuda_shim).
"""

from __future__ import annotations

import ctypes
from typing import Any

Address, Int, Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
Long = ctypes.c_longlong


def address(array: Any) -> int | None:
    """Return where a tensor or an array begins; None for None."""
    if array is None:
        return None
    return array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data


class Rows(ctypes.Structure):
    """Rows of float32 to quantise, after a norm or a SwiGLU or as they are (quantize.cu)."""

    _fields_ = (
        ("x", Address), ("weight", Address), ("index", Address),
        ("n", Int), ("stride", Int), ("eps", Float),
    )  # fmt: skip


class QuantizeArgs(ctypes.Structure):
    """Arguments of quantize, norm_quantize and swiglu_quantize."""

    _fields_ = (
        ("rows", Rows), ("codes", Address), ("act_scale", Address), ("x_sum", Address),
        ("n_active", Address), ("width", Int), ("n_rows", Int),
    )  # fmt: skip


class Matrix(ctypes.Structure):
    """A packed weight of n rows and k inputs (product.cu)."""

    _fields_ = (("packed", Address), ("weight_scale", Address), ("n", Int), ("k", Int))


class Codes(ctypes.Structure):
    """What a quantise kernel has written."""

    _fields_ = (("x_q", Address), ("act_scale", Address), ("x_sum", Address))


class Result(ctypes.Structure):
    """Where a product goes."""

    _fields_ = (
        ("out", Address), ("index", Address), ("accumulators", Address),
        ("stride", Int), ("adds", Int),
    )  # fmt: skip


class ProductArgs(ctypes.Structure):
    """Arguments of the w2a8_mma kernels."""

    _fields_ = (
        ("matrix", Matrix), ("codes", Codes), ("rows", Rows), ("result", Result),
        ("n_active", Address), ("n_tokens", Int), ("width", Int), ("slots", Int),
    )  # fmt: skip


class Cache(ctypes.Structure):
    """Keys and values of all sequences, and how many loops each position ran (attention.cu)."""

    _fields_ = (
        ("k", Address), ("v", Address), ("depth", Address),
        ("n_loops", Int), ("n_layers", Int), ("n_kv_heads", Int), ("max_len", Int),
    )  # fmt: skip


class Attention(ctypes.Structure):
    """What one layer's attention reads and writes besides the cache."""

    _fields_ = (
        ("qkv", Address), ("rope", Address), ("attended", Address), ("partial", Address),
        ("arrived", Address), ("active", Address), ("slot", Address), ("position", Address),
        ("stride", Int), ("n_heads", Int), ("rope_len", Int), ("n_splits", Int),
    )  # fmt: skip


class AttentionArgs(ctypes.Structure):
    """Arguments of attention and store."""

    _fields_ = (
        ("attention", Attention), ("cache", Cache), ("n_active", Address),
        ("loop", Int), ("layer", Int), ("n_rows", Int),
    )  # fmt: skip


class SampleArgs(ctypes.Structure):
    """Arguments of sample (sampling.cu)."""

    _fields_ = (
        ("logits", Address), ("probability", Address), ("seed", Address), ("place", Address),
        ("token", Address), ("entropy", Address),
        ("n_rows", Int), ("vocab", Int), ("stride", Int), ("top_k", Int),
        ("temperature", Float), ("top_p", Float),
    )  # fmt: skip


class LeaveArgs(ctypes.Structure):
    """Arguments of leave: the end of a loop."""

    _fields_ = (
        ("hidden", Address), ("final", Address), ("norm_weight", Address),
        ("gate_weight", Address), ("gate_bias", Address), ("survival", Address),
        ("active", Address), ("n_active", Address), ("arrived", Address), ("exit_loop", Address),
        ("depth", Address), ("slot", Address), ("position", Address),
        ("d_model", Int), ("max_len", Int), ("loop", Int), ("n_loops", Int),
        ("eps", Float), ("threshold", Float),
    )  # fmt: skip


class BeginArgs(ctypes.Structure):
    """Arguments of begin: tokens to rows (step.cu)."""

    _fields_ = (
        ("embed", Address), ("hidden", Address), ("survival", Address), ("active", Address),
        ("n_active", Address), ("token", Address), ("slot", Address), ("position", Address),
        ("finished", Address), ("depth", Address),
        ("n_rows", Int), ("d_model", Int), ("max_len", Int), ("n_loops", Int),
    )  # fmt: skip


class HeadArgs(ctypes.Structure):
    """Arguments of head: hidden states to logits."""

    _fields_ = (
        ("weight", Address), ("scale", Address), ("hidden", Address), ("logits", Address),
        ("n_groups", Int), ("d_model", Int), ("n_rows", Int),
    )  # fmt: skip


class AppendArgs(ctypes.Structure):
    """Arguments of append: what was drawn goes to its sequence."""

    _fields_ = (
        ("token", Address), ("entropy", Address), ("exit_loop", Address), ("is_stop", Address),
        ("tokens", Address), ("entropies", Address), ("exit_loops", Address), ("place", Address),
        ("position", Address), ("finished", Address), ("limit", Address),
        ("n_rows", Int), ("width", Int), ("max_len", Int),
    )  # fmt: skip


class LoopsArgs(ctypes.Structure):
    """Arguments of the loops kernels: those of all launches that they stand for (loops.cu)."""

    _fields_ = (
        ("begin", BeginArgs), ("products", ProductArgs * 4), ("steps", Long * 4),
        ("attention", AttentionArgs), ("leave", LeaveArgs), ("barrier", Address),
        ("first_loop", Int), ("n_layers", Int), ("stores_first", Int),
    )  # fmt: skip


class DraftArgs(ctypes.Structure):
    """Arguments of draft and verify (draft.cu)."""

    _fields_ = (
        ("sample", SampleArgs), ("final", Address), ("drafted", Address), ("kept", Address),
        ("drafted_token", Address), ("slot", Address), ("position", Address),
        ("finished", Address), ("verify_slot", Address), ("verify_position", Address),
        ("verify_finished", Address), ("is_stop", Address), ("tokens", Address),
        ("exit_loops", Address), ("entropies", Address), ("place", Address), ("passes", Address),
        ("limit", Address), ("index", Int), ("n_drafts", Int), ("d_model", Int),
        ("max_len", Int), ("width", Int), ("n_loops", Int),
    )  # fmt: skip
