"""The best ternary peer that pip installs: GemLite's Triton kernels for weights of two bits.

In: ternary codes and one scale; out: graphs to be timed beside ours. `pip install .[gpu-peers]`.
GemLite 0.6 has ternary layers with int8 activations, quantised for each token in the call as ours
are, and with float16 ones; it tunes itself at the first call of a shape and batch, about 20
settings. A layer is timed only after its products were those of the dense weight.

Looked at and not taken: BitBLAS brings a TVM of its own and wants nvcc, and torchao has no kernels
for weights of two bits on a GPU.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kernels.bench_gpu.timing import Calls, Graph, graph_of

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {"gemlite_a8": "A8W158_INT_dynamic", "gemlite_a16": "A16W158_INT"}
BATCHES = (1, 8, 32)  # each is tuned for every shape
MAX_SECONDS = 120.0  # of packing, tuning and timing; what is left then is said to be not measured
# Rounding of int8 activations moves a product by 0.9 % of its size; anything wrong by far more.
MAX_ERROR = 0.03


@dataclass
class Peers:
    """GemLite, or why it cannot be measured; and what each of its kernels said no to."""

    helper: Any
    why_not: str = ""
    device: str = "cuda:0"
    make_graph: Callable[[Calls], Graph] = graph_of
    began: float = field(default_factory=time.monotonic)

    def is_late(self) -> bool:
        """Return whether the time for peers is used up."""
        return time.monotonic() - self.began > MAX_SECONDS

    def layers(self, name: str, codes: Tensor, scale: float, n_sets: int) -> list[Callable]:
        """Return `n_sets` layers of one ternary weight, each with its own copy of it.

        Args:
            name: of `NAMES`.
            codes: int8 (N, K) of -1, 0 and 1.
            scale: of the whole weight.
            n_sets: copies, to be read in turn.
        """
        import torch

        maker = getattr(self.helper, NAMES[name])(device=self.device, dtype=torch.float16)
        weight, factor = codes.to(torch.float16), torch.tensor(scale)
        return [maker.from_weights(weight, factor) for _ in range(n_sets)]


def find_peers() -> Peers:
    """Return GemLite, ready, or the reason why it is not measured."""
    try:
        return Peers(importlib.import_module("gemlite.helper"))
    except Exception as error:  # a stranger's code, which another Triton may break in any way
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "gemlite":
            return Peers(None, "not installed: pip install '.[gpu-peers]'")
        text = f"cannot be imported: {type(error).__name__}: {error}"
        return Peers(None, text.splitlines()[0])


def error_of(layer: Callable, codes: Tensor, scale: float, x: Tensor) -> float:
    """Return how far a layer's products are from those of the dense weight, relative, by size."""
    wanted = x.float() @ codes.float().T * scale
    found = layer(x)
    if found.shape != wanted.shape:
        return float("inf")
    return float((found.float() - wanted).norm() / wanted.norm())


def prepare(
    peers: Peers, name: str, codes: Tensor, scale: float, n_sets: int
) -> tuple[dict[int, Graph], dict[int, str]]:
    """Return by batch the graph to be timed, and by batch why there is none.

    Args:
        peers: from `find_peers`.
        name: of `NAMES`.
        codes: int8 (N, K) of -1, 0 and 1.
        scale: of the whole weight.
        n_sets: copies of the weight, read in turn.
    """
    import torch

    if peers.why_not or peers.is_late():
        reason = peers.why_not or f"the {MAX_SECONDS:.0f} s for peers were used up"
        return {}, dict.fromkeys(BATCHES, reason)
    graphs, reasons = {}, {}
    try:
        layers = peers.layers(name, codes, scale, n_sets)
        for batch in BATCHES:
            x = torch.randn(batch, codes.shape[1], device=codes.device, dtype=torch.float16)
            error = error_of(layers[0], codes, scale, x)
            if not error <= MAX_ERROR:
                reasons[batch] = f"wrong: its products are {error:.1%} off"
            elif peers.is_late():
                reasons[batch] = f"the {MAX_SECONDS:.0f} s for peers were used up"
            else:
                calls = [lambda layer=layer, x=x: layer(x) for layer in layers]
                graphs[batch] = peers.make_graph(calls)
    except Exception as error:  # a stranger's code may raise anything; its rows say what it was
        text = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        reasons |= {batch: text for batch in BATCHES if batch not in graphs}
    return graphs, reasons
