"""The decode step on a GPU: the launches that make one token a row.

In: `Weights` (packed.py), a `Launcher` and a `Memory`; out: tokens in the arrays of the step. Every
launch has fixed sizes, and the rows still in the loops are counted on the GPU, so a step is one
CUDA graph. Its loops are a launch for each phase, where rows that leave early cost later kernels
nothing but their launch, or one persistent kernel that has the phases in it and ends when nobody is
left (kernels/cuda/source/loops.cu). Both give the same bits: the same functions run on blocks of
the same size. Keys and values are float16. The tests run the same launches on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.cuda.products import Device, Launcher, run_product
from nanochat_lib.model.decoding.gpu_arguments import (
    KINDS,
    NEVER,
    Arguments,
    Memory,
    Pass,
    Sizes,
)
from nanochat_lib.model.decoding.packed import Shape, Weights

LOOPS = ("graph", "persistent")


class Step:
    """Weights, caches and buffers on a GPU for some sequences, and the launches over them."""

    def __init__(
        self, shape: Shape, weights: Weights, sizes: Sizes, launcher: Launcher,
        device: Device, memory: Memory,
    ) -> None:  # fmt: skip
        """Allocate."""
        self.shape, self.launcher, self.device, self.memory = shape, launcher, device, memory
        self.sizes, self.loops = sizes, "graph"
        self.arguments = Arguments(shape, weights, sizes, device, memory)
        self.arrays, self.n_rows = self.arguments.arrays, self.arguments.n_rows

    def put(self, **values: Sequence[int] | np.ndarray) -> None:
        """Write values into the first elements of the arrays of these names."""
        for name, value in values.items():
            self.memory.put(self.arrays[name], np.asarray(value))

    def fetch(self, name: str) -> np.ndarray:
        """Return an array of the step."""
        return self.memory.fetch(self.arrays[name])

    def read_prompt(self) -> None:
        """Run all loops over the rows in token, slot and position, for what they leave in caches.

        Rows may be of one sequence, in order; rows that are `finished` take no part.
        """
        self.run(Pass(self.n_rows, (0, self.shape.n_loops), stores_first=True))

    def copy_keys(self, slot: int, source: int, n: int) -> None:
        """Give a slot the first n positions of another."""
        for name in ("k", "v"):
            array = self.arrays[name]
            array[slot, :, :, :, :n] = array[source, :, :, :, :n]
        depth = self.arrays["depth"]
        depth[slot, :n] = depth[source, :n]

    def next_token(self, temperature: float, top: tuple[int, float], threshold: float) -> None:
        """Run one step: the row of every sequence that goes on, to its next token."""
        n, level = self.sizes.n_sequences, threshold if threshold < 1 else NEVER
        self.run(Pass(n, (0, self.shape.n_loops), level))
        self.head(n)
        sample = self.arguments.sample(temperature, top)
        self.launcher.launch("sample", sample, n, 512, shared=4 * 512)
        self.launcher.launch("append", self.arguments.append(), 1, 32)

    def draft_and_verify(self, temperature: float, top: tuple[int, float]) -> None:
        """Let the first loops draft tokens of every sequence that goes on, and all loops judge."""
        n, (n_loops, n_drafts) = self.sizes.n_sequences, self.sizes[3:]
        for i in range(n_drafts):
            self.run(Pass(n, (0, n_loops)))
            self.head(n)
            args = self.arguments.draft(temperature, top, i)
            self.launcher.launch("draft", args, n, 512, shared=4 * 512)
        rest = (n_loops, self.shape.n_loops)
        self.run(Pass(self.n_rows, rest, stores_first=True, rows="verify_"))
        self.head(self.n_rows)
        args = self.arguments.draft(temperature, top)
        self.launcher.launch("verify", args, n, 512, shared=4 * 512)

    def head(self, n_rows: int) -> None:
        """Write the logits of the first rows of `final`."""
        args = self.arguments.head(n_rows)
        grid = min(-(-args.n_groups // 8), 4 * self.device.n_multiprocessors)
        self.launcher.launch("head", args, grid, 256)

    def run(self, one: Pass) -> None:
        """Take rows through loops."""
        if self.loops == "persistent":
            self._persistent(one)
            return
        self.launcher.launch("begin", self.arguments.begin(one), one.n_rows, 256)
        for loop in range(*one.loops):
            for layer in range(self.shape.n_layers):
                self._layer(one, loop, layer)
            self.launcher.launch("leave", self.arguments.leave(one, loop), one.n_rows, 256)

    def _layer(self, one: Pass, loop: int, layer: int) -> None:
        plans = self.arguments.plans(one.n_rows)
        for which, (plan, kind) in enumerate(zip(plans, KINDS, strict=True)):
            if which == 1:
                self._attention(one, loop, layer, plan.block)
            product = self.arguments.product(one, which, layer)
            quantize = self.arguments.quantize(product)
            self.launcher.launch(kind, quantize, one.n_rows, plan.block)
            run_product(self.launcher, plan, product)

    def _attention(self, one: Pass, loop: int, layer: int, block: int) -> None:
        args = self.arguments.attention(one, loop, layer)
        if one.stores_first:
            self.launcher.launch("store", args, one.n_rows * self.shape.n_kv_heads, 128)
        grid = one.n_rows * self.shape.n_heads * self.arguments.n_splits
        self.launcher.launch("attention", args, grid, block, shared=self._states(block))

    def _states(self, block: int) -> int:
        """Return the bytes in which the warps of a block of attention meet."""
        return block // 32 * 4 * (self.shape.head_size + 2) * 4

    def _persistent(self, one: Pass) -> None:
        plans = self.arguments.plans(one.n_rows)
        name, block = plans[0].kernel.replace("w2a8_mma", "loops"), plans[0].block
        shared = max(self._states(block), *(plan.shared for plan in plans))
        grid = min(self.device.n_multiprocessors, self.launcher.resident(name, block, shared))
        args = self.arguments.loops(one)
        self.launcher.launch(name, args, grid, block, shared=shared, together=True)
