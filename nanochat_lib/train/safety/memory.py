"""When memory does not suffice: recognise it, take smaller micro-batches, recompute activations.

`LiveBytes` counts what a piece of training needs, tensor by tensor, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from nanochat_lib.model.looplm import LoopLM


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory did not suffice, on a GPU or in main memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is at most `at_most` (at least 1)."""
    return next(d for d in range(max(1, at_most), 0, -1) if number % d == 0)


@contextmanager
def recomputed(model: LoopLM, mode: Literal["none", "layer", "loop"]) -> Iterator[None]:
    """Let backward passes inside the block recompute activations instead of keeping them.

    "layer" keeps the input of every layer in every loop and recomputes one layer at a time: 8 FLOPs
    for each weight that runs and token instead of 6. "loop" nests that in checkpoints of whole
    loops, keeps their inputs alone and recomputes twice: 10 FLOPs, and memory for layers + loops
    inputs instead of layers x loops.
    """
    run_layer, run_layers = model.run_layer, model.run_layers
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # no dropout
    if mode != "none":
        model.run_layer = partial(again, run_layer)
    if mode == "loop":
        model.run_layers = partial(again, run_layers)
    try:
        yield
    finally:
        model.run_layer, model.run_layers = run_layer, run_layers


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations inside the block made and that are still alive.

    `peak` is the largest sum after any operation; what an operation frees before it returns is not
    seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        given = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs or {}))}
        for storage in map(_storage, _tensors(out)):
            if storage._cdata not in given:  # a view of what was there is nothing new
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Return the bytes that are alive."""
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        return sum(n_bytes for _, n_bytes in self.storages.values())


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
