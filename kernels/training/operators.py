"""The int8 operators of training: rows to int8, and the product of int8 rows with codes.

In and out: torch tensors. On a GPU with triton they launch `triton_kernels.py`, elsewhere they do
the same arithmetic in torch. They are registered with torch (`nanochat::rows_to_int8`,
`nanochat::int8_product`), so that torch.compile takes them as they are and compiles what stands
around them. They have no gradient of their own: `linear.py` gives one.

`M` tokens, `N` outputs, `K` inputs.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SCALE = 1e-5
PLAIN, NORM, SWIGLU = range(3)
_BLOCK = 4096  # numbers of a weight that one program quantises

_LIBRARY = torch.library.Library("nanochat", "FRAGMENT")
_LIBRARY.define(
    "rows_to_int8(Tensor x, Tensor? other, int kind, float eps) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_LIBRARY.define(
    "int8_product(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def rows_to_int8(x: Tensor, other: Tensor | None, kind: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return int8 codes (M, K) and float32 act_scale (M,) of what `kind` makes of the rows of x.

    Args:
        x: (M, K).
        other: of NORM its weight (K,), of SWIGLU what multiplies silu(x) (M, K), else None.
        kind: PLAIN, NORM or SWIGLU.
        eps: of the norm.
    """
    return torch.ops.nanochat.rows_to_int8.default(x, other, kind, eps)


def product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int8 a (M, K) times int8 b (N, K), scaled per row of a and by one number for b.

    In torch as float32: sums of ternary codes times int8 are exact there up to 132,000 inputs.
    """
    return torch.ops.nanochat.int8_product.default(a, b, a_scale, b_scale, dtype)


def sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the int32 sums of int8 a (M, K) times int8 b (N, K) by the Triton kernel."""
    out = a.new_empty(len(a), len(b), dtype=torch.int32)
    _launch_product(a, b, None, None, out)
    return out


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the absmean scale, rounded to float16 (0-d float32), and int8 codes of a weight."""
    weight = weight.detach().contiguous()
    if has_kernels(weight):
        return _ternary_by_triton(weight)
    scale = _rounded(weight.abs().mean(dtype=torch.float64))
    return scale, (weight.float() / scale).round().clamp(-1, 1).to(torch.int8)


@functools.cache
def has_triton() -> bool:
    """Return whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


def has_kernels(tensor: Tensor) -> bool:
    """Return whether Triton runs on this tensor; its interpreter does on any."""
    if not has_triton():
        return False
    import triton

    return tensor.is_cuda or triton.knobs.runtime.interpret


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what a kernel may raise that does not compile or fit on this GPU."""
    if not has_triton():
        return (RuntimeError,)
    from triton.errors import TritonError

    return (RuntimeError, TritonError)


def _rows(x: Tensor, other: Tensor | None, kind: int, eps: float) -> tuple[Tensor, Tensor]:
    x, other = x.contiguous(), None if other is None else other.contiguous()
    if has_kernels(x):
        return _rows_by_triton(x, other, kind, eps)
    values = x.float()
    if kind == NORM:
        inverse = 1 / torch.sqrt((values * values).mean(-1, keepdim=True) + eps)
        values = values * inverse * other.float()
    if kind == SWIGLU:
        values = F.silu(values) * other.float()
    scale = values.abs().amax(-1).clamp(min=MIN_SCALE) / 127.0
    return (values / scale[:, None]).round().to(torch.int8), scale


def _fake_rows(x: Tensor, other: Tensor | None, kind: int, eps: float) -> tuple[Tensor, Tensor]:
    M, K = x.shape
    return x.new_empty(M, K, dtype=torch.int8), x.new_empty(M, dtype=torch.float32)


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    if has_kernels(a):
        out = a.new_empty(len(a), len(b), dtype=dtype)
        _launch_product(a, b, a_scale, b_scale, out)
        return out
    with torch.autocast(a.device.type, enabled=False):  # else the sums would be rounded
        return ((a.float() @ b.float().T) * (a_scale * b_scale)[:, None]).to(dtype)


def _fake_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    return a.new_empty(len(a), len(b), dtype=dtype)


def _rounded(mean: Tensor) -> Tensor:
    return mean.clamp(min=MIN_SCALE).half().float()


def _ternary_by_triton(weight: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.training import triton_kernels

    n = weight.numel()
    grid, partial = (-(-n // _BLOCK),), weight.new_empty(-(-n // _BLOCK), dtype=torch.float64)
    triton_kernels.sum_magnitudes[grid](weight, partial, n, BLOCK=_BLOCK)
    scale = _rounded(partial.sum() / n)
    codes = torch.empty_like(weight, dtype=torch.int8)
    triton_kernels.ternary_codes[grid](weight, scale, codes, n, BLOCK=_BLOCK)
    return scale, codes


def _rows_by_triton(
    x: Tensor, other: Tensor | None, kind: int, eps: float
) -> tuple[Tensor, Tensor]:
    from kernels.training import triton_kernels

    (M, K), block = x.shape, 1 << (x.shape[1] - 1).bit_length()
    codes = torch.empty_like(x, dtype=torch.int8)
    act_scale = x.new_empty(M, dtype=torch.float32)
    triton_kernels.rows_to_int8[(M,)](
        x, x if other is None else other, codes, act_scale, K, K, eps,
        KIND=kind, BLOCK=block, num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip
    return codes, act_scale


def _launch_product(
    a: Tensor, b: Tensor, a_scale: Tensor | None, b_scale: Tensor | None, out: Tensor
) -> None:
    from kernels.training import triton_kernels

    (M, K), N = a.shape, len(b)
    sizes = tile_sizes(M, N, _capability(a.device))
    grid = (-(-M // sizes["BLOCK_M"]) * -(-N // sizes["BLOCK_N"]),)
    scales = (a if a_scale is None else a_scale, a if b_scale is None else b_scale)
    triton_kernels.int8_product[grid](
        a, b, *scales, out, M, N, K, **sizes, SCALED=a_scale is not None
    )


def tile_sizes(m: int, n: int, capability: int) -> dict[str, int]:
    """Return how a product is cut into programs; fixed, so that no run tunes and none differs.

    Three stages of the large tiles take 144 KB of shared memory, which data-centre GPUs have (from
    compute capability 8.0 163 KB, 9.0 and 10.0 227 KB), and 72 KB for the 99 KB of the others.
    """
    if min(m, n) < 1024:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
    depth = 128 if capability in (80, 90, 100) else 64
    return {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": depth, "num_warps": 8, "num_stages": 3}


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


_LIBRARY.impl("rows_to_int8", _rows, "CompositeExplicitAutograd")
_LIBRARY.impl("int8_product", _product, "CompositeExplicitAutograd")
torch.library.register_fake("nanochat::rows_to_int8", _fake_rows, lib=_LIBRARY)
torch.library.register_fake("nanochat::int8_product", _fake_product, lib=_LIBRARY)
