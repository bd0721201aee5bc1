"""Measure on a GPU: ceilings, products of packed weights beside others', and a training layer.

Out: rows (timing.py). Weights rotate over four times the L2 cache, so that they come from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.bench_gpu import peers as others
from kernels.bench_gpu.start import Row
from kernels.bench_gpu.timing import graph_of, row_of, time_eager_us, times_us

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((2048, 2048), (4096, 4096), (8192, 2048), (8192, 8192), (4096, 14336))
PEER_SHAPES = ((4096, 4096), (8192, 8192), (4096, 14336))
BATCHES = (1, 2, 4, 8, 16, 32)
COPY_BYTES, SQUARE = 2 << 30, 8192  # of the ceilings
TRAINING = ((16384, 2048, 2048), (16384, 2048, 5632), (16384, 4096, 4096))  # tokens, K, N


def ceilings() -> list[Row]:
    """Measure a large copy and a large bf16 product of random numbers."""
    import torch

    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = times_us({"copy": graph_of([lambda: target.copy_(source)], 4)})["copy"]
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = times_us({"product": graph_of([lambda: a @ b], 8)})["product"]
    return [
        row_of("copy", (0, 0, 0), us, 2 * source.numel()),
        row_of("bf16_peak", (SQUARE, SQUARE, SQUARE), product, 3 * 2 * SQUARE**2),
    ]


def products() -> list[Row]:
    """Measure products of every shape and batch: ours, cuBLAS in bf16, and the peers'."""
    peers = others.find_peers()
    return [row for shape in SHAPES for row in _of_shape(*shape, peers)]


def _of_shape(n: int, k: int, peers: others.Peers) -> list[Row]:
    import torch

    from kernels.torch_op import ternary_linear

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    n_sets = max(2, 4 * cache // (n * k // 4) + 1)
    packed, scale = _random_packed(n, k, n_sets), torch.rand(n, device="cuda")
    dense_sets = max(2, 4 * cache // (2 * n * k) + 1)
    dense = torch.randn(dense_sets, n, k, device="cuda", dtype=torch.bfloat16)
    theirs, rows = _peer_graphs(n, k, n_sets, peers)
    for batch in BATCHES:
        x = torch.randn(batch, k, device="cuda")
        x_bf16 = x.bfloat16()
        ours = [lambda w=w, x=x: ternary_linear(x, w, scale) for w in packed]
        plain = [lambda w=w, x=x_bf16: torch.nn.functional.linear(x, w) for w in dense]
        graphs = {"ternary": graph_of(ours), "cublas_bf16": graph_of(plain)}
        graphs |= {name: found[batch] for name, found in theirs.items() if batch in found}
        for name, us in times_us(graphs).items():
            n_bytes = 2 * n * k if name == "cublas_bf16" else n * k / 4
            rows.append(row_of(name, (n, k, batch), us, n_bytes))
    return rows


def _random_packed(n: int, k: int, n_sets: int) -> Tensor:
    """Return random weights as bytes: fields of 0 to 2 are valid codes, and four make a byte."""
    import torch

    shape = (4, n_sets, -(-n // 16), -(-k // 16), 64)
    fields = torch.randint(0, 3, shape, dtype=torch.uint8, device="cuda")
    return fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6


def _peer_graphs(n: int, k: int, n_sets: int, peers: others.Peers) -> tuple[dict, list[Row]]:
    """Return each peer's graphs by batch, and a row with the reason for each that has none."""
    import torch

    if (n, k) not in PEER_SHAPES:
        return {}, []
    codes = torch.randint(-1, 2, (n, k), dtype=torch.int8, device="cuda")
    theirs, rows = {}, []
    for name in others.NAMES:
        theirs[name], reasons = others.prepare(peers, name, codes, k**-0.5, n_sets)
        for batch, why in reasons.items():
            rows.append({"kernel": name, "n": n, "k": k, "batch": batch, "note": why})
    return theirs, rows


def training() -> list[Row]:
    """Measure a layer with its quantiser, forward and backward: int8, and bf16 compiled."""
    import torch
    import torch.nn.functional as F

    from kernels.training.linear import linear, ternary

    rows = []
    for tokens, k, n in TRAINING:
        x = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(n, k, device="cuda", requires_grad=True)
        plain = weight.detach().bfloat16().requires_grad_()
        grad = torch.randn(tokens, n, device="cuda", dtype=torch.bfloat16)
        dense = torch.compile(F.linear)
        once = ternary(weight)
        layers = {
            "int8_layer": lambda x=x, once=once: linear(x, [once])[0],
            "bf16_layer": lambda x=x, plain=plain, dense=dense: dense(x, plain),
        }
        for name, layer in layers.items():
            step, leaves = lambda layer=layer, grad=grad: layer().backward(grad), (x, weight, plain)
            us = time_eager_us(step, leaves)
            rows.append(row_of(name, (n, k, tokens), us, 0))
    return rows
