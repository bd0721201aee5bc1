"""Plan and launch quantisation and ternary products on a GPU.

In: shapes and arrays (torch tensors, or NumPy arrays where the sources run on a CPU) and a
`Launcher`; out: written into the arrays given. Nothing is checked here: kernels/torch_op.py does.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kernels.cuda.structs import (
    Codes,
    Matrix,
    ProductArgs,
    QuantizeArgs,
    Result,
    Rows,
    address,
)

KINDS = ("quantize", "norm_quantize", "swiglu_quantize")
FUSED_TOKENS = 2  # up to here every block quantises for itself, which saves a launch
MAX_TOKENS = 32


class Launcher(Protocol):
    """What runs kernels: a GPU's driver, or the sources on a CPU."""

    def launch(
        self, name: str, args: ctypes.Structure, grid: int, block: int, *, shared: int = 0,
        together: bool = False,
    ) -> None:  # fmt: skip
        """Run the kernel `name`; `together`: its blocks wait for each other."""

    def resident(self, name: str, block: int, shared: int) -> int:
        """Return how many blocks of the kernel `name` can run together."""


@dataclass(frozen=True)
class Device:
    """The numbers of a GPU that plans depend on; shared memory of a block in bytes."""

    n_multiprocessors: int
    max_shared: int


@dataclass(frozen=True)
class Plan:
    """How a product is launched for up to `n_tokens` tokens at a time."""

    kernel: str
    n_tokens: int
    grid: int
    block: int
    slots: int
    shared: int


def codes_width(k: int) -> int:
    """Return the bytes of a row of k codes on a GPU: whole groups of 128, and 64 more.

    With an odd number of half lines neighbouring rows lie in different banks of shared memory.
    """
    return -(-k // 128) * 128 + 64


def places(k: int) -> np.ndarray:
    """Return where each of k inputs lies in a row of codes, as source/quantize.cu draws it."""
    inputs = np.arange(k)
    block, field, j = inputs % 128 // 16, inputs % 16 // 4, inputs % 4
    inside = 64 * (field // 2) + 16 * (block % 4) + 8 * (field % 2) + 4 * (block // 4) + j
    return inputs // 128 * 128 + inside


def plan_product(n: int, k: int, n_tokens: int, device: Device) -> Plan:
    """Choose kernel and launch sizes for an (n, k) weight and `n_tokens` tokens.

    Raises:
        ValueError: one token's activations exceed the GPU's shared memory.
    """
    tokens = min(n_tokens, MAX_TOKENS)
    while True:
        plan = _plan(n, k, tokens, device)
        if plan.shared <= device.max_shared:
            return plan
        if tokens == 1:
            raise ValueError(
                f"a row of {k} inputs needs {plan.shared} bytes of shared memory, "
                f"this GPU has {device.max_shared}"
            )
        tokens = min(tokens - 1, tokens // 16 * 8) or tokens // 2


def _plan(n: int, k: int, tokens: int, device: Device) -> Plan:
    n_units, width = -(-n // 16), codes_width(k)
    grid = min(n_units, device.n_multiprocessors)
    per_block = -(-n_units // grid)
    eights = 1 if tokens <= 8 else 2 if tokens <= 16 else 4
    block = 256 if eights == 4 else 512
    kernel = f"w2a8_mma_{eights}" if tokens > FUSED_TOKENS else "w2a8_mma_fused"
    rows = tokens if eights == 1 else eights * 8
    # A block's warps share its units evenly: each goes far along few units rather than the reverse.
    slots = 1
    while slots * 2 <= min(per_block, block // 32):
        slots *= 2
    shared = rows * width + 8 * tokens + 64 * per_block * tokens
    return Plan(kernel, tokens, grid, block, slots, shared)


def quantize_args(rows: Rows, codes: Codes, width: int, n_rows: int) -> QuantizeArgs:
    """Return the arguments that quantise `n_rows` rows into `codes`."""
    return QuantizeArgs(rows, codes.x_q, codes.act_scale, codes.x_sum, None, width, n_rows)


def multiply(
    launcher: Launcher, device: Device, matrix: Matrix, x: Any, out: Any, scratch: Any
) -> None:
    """Multiply float32 x (B, K) by a packed weight into float32 out (B, N).

    Args:
        launcher: what runs kernels.
        device: what plans depend on.
        matrix: the weight.
        x: float32 (B, K), contiguous.
        out: float32 (B, N), contiguous.
        scratch: int8 (at least B, codes_width(K)), float32 (B,) and int32 (B,) for the codes.
    """
    width = codes_width(matrix.k)
    plan = plan_product(matrix.n, matrix.k, len(x), device)
    for first in range(0, len(x), plan.n_tokens):
        part, n = x[first : first + plan.n_tokens], min(plan.n_tokens, len(x) - first)
        rows = Rows(address(part), None, None, matrix.k, matrix.k, 0.0)
        codes = Codes(*(address(array[first:]) for array in scratch))
        if plan.kernel != "w2a8_mma_fused":
            launcher.launch("quantize", quantize_args(rows, codes, width, n), n, 256)
        result = Result(address(out[first:]), None, None, matrix.n, 0)
        args = ProductArgs(matrix, codes, rows, result, None, n, width, plan.slots)
        run_product(launcher, plan, args)


def run_product(launcher: Launcher, plan: Plan, args: ProductArgs) -> None:
    """Launch a planned product."""
    launcher.launch(plan.kernel, args, plan.grid, plan.block, shared=plan.shared)
