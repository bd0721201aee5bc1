"""The decode step on a GPU: a LoopLM's packed weights, and the launches that make one token a row.

In: `Weights` (packed.py), a `Launcher` and a `Memory`; out: tokens in the arrays of the step. Every
launch has fixed sizes, and the rows still in the loops are counted on the GPU, so a step is one
CUDA graph: rows that leave early cost later kernels nothing but their launch. Keys and values are
float16. The tests run the same launches on a CPU.

`S` sequences (one row each), `R` loops, `L` layers, `T` positions, `D` d_model, `F` d_ff.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from kernels.cuda import structs
from kernels.cuda.products import (
    FUSED_TOKENS,
    MAX_TOKENS,
    Device,
    Launcher,
    codes_width,
    plan_product,
    run_product,
)
from kernels.cuda.structs import Codes, Matrix, ProductArgs, QuantizeArgs, Result, Rows, address
from nanochat_lib.model.decoding.packed import Shape, Weights

_MATRICES = ("qkv", "o", "gate_up", "down")
_NEVER = 2.0  # an exit threshold that no exit_cdf reaches
_WARPS = 8  # of a block of attention


class Memory(Protocol):
    """Where arrays of a step live."""

    def place(self, array: np.ndarray) -> Any:
        """Return a copy there."""

    def put(self, target: Any, array: np.ndarray) -> None:
        """Write into the first elements of an array there."""

    def fetch(self, array: Any) -> np.ndarray:
        """Return a copy here."""


class Step:
    """Weights, caches and buffers on a GPU for up to `n_rows` rows, and the launches over them."""

    def __init__(
        self, shape: Shape, weights: Weights, sizes: tuple[int, int, int], launcher: Launcher,
        device: Device, memory: Memory,
    ) -> None:  # fmt: skip
        """Allocate; `sizes` are rows (at most 32), positions of a sequence, and tokens it keeps."""
        self.shape, self.launcher, self.device, self.memory = shape, launcher, device, memory
        self.n_rows, self.max_len, self.width = sizes
        names = [name for name in weights._fields if name not in _MATRICES]
        self.weights = {name: memory.place(getattr(weights, name)) for name in names}
        self.matrices = {}
        for name in _MATRICES:
            matrix = getattr(weights, name)
            self.matrices[name] = (memory.place(matrix.packed), memory.place(matrix.scale))
        self.arrays = {name: memory.place(a) for name, a in self._new_arrays().items()}

    def _new_arrays(self) -> dict[str, np.ndarray]:
        S, T, shape = self.n_rows, self.max_len, self.shape
        D, F, V = shape.d_model, shape.d_ff, shape.vocab_size
        qkv_rows = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_size
        cache = (S, shape.n_loops, shape.n_layers, shape.n_kv_heads, T, shape.head_size)
        units, floats, ints = S * shape.n_heads, np.float32, np.int32
        self.n_splits = max(1, min(16, self.device.n_multiprocessors // units))
        kinds = {
            floats: {
                "hidden": (S, D), "final": (S, D), "survival": (S,), "attended": (S, D),
                "wide": (S, max(qkv_rows, 2 * F)), "act_scale": (S,), "entropy": (S,),
                "logits": (S, len(self.weights["head_scale"])), "probability": (S, V),
                "partial": (units, self.n_splits, 4 * (shape.head_size + 2)),
                "entropies": (S, self.width),
            },
            ints: {
                "active": (S,), "n_active": (1,), "token": (S,), "slot": (S,), "position": (S,),
                "exit_loop": (S,), "x_sum": (S,), "arrived": (units,), "place": (S,),
                "tokens": (S, self.width), "exit_loops": (S, self.width), "limit": (1,),
            },
            np.uint8: {"depth": (S, T), "finished": (S,), "is_stop": (V,)},
            np.int8: {"x_q": (S, codes_width(max(D, F)))},
            np.float16: {"k": cache, "v": cache},
            np.int64: {"seed": (S,)},  # the bits of unsigned numbers
        }  # fmt: skip
        return {
            name: np.zeros(size, kind)
            for kind, sizes in kinds.items()
            for name, size in sizes.items()
        }

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
        self._begin()
        self._loops(_NEVER, stores_first=True)

    def next_token(self, temperature: float, top: tuple[int, float], threshold: float) -> None:
        """Run one step: the row of every sequence that goes on, to its next token."""
        self._begin()
        self._loops(threshold if threshold < 1 else _NEVER, stores_first=False)
        self.head()
        arrays, shape = self._addresses(), self.shape
        sizes = (self.n_rows, shape.vocab_size, len(self.weights["head_scale"]))
        names = ("logits", "probability", "seed", "place", "token", "entropy")
        sample = structs.SampleArgs(
            *(arrays[n] for n in names), *sizes, top[0], temperature, top[1]
        )
        self.launcher.launch("sample", sample, self.n_rows, 512, shared=4 * 512)
        names = [name for name, kind in structs.AppendArgs._fields_ if kind is structs.Address]
        append = structs.AppendArgs(
            *(arrays[name] for name in names), self.n_rows, self.width, self.max_len
        )
        self.launcher.launch("append", append, 1, 32)

    def head(self) -> None:
        """Write the logits of all rows of `final`."""
        weight, arrays = self.weights["head"], self._addresses()
        place = (address(weight), address(self.weights["head_scale"]))
        sizes = (len(weight), self.shape.d_model, self.n_rows)
        args = structs.HeadArgs(*place, arrays["final"], arrays["logits"], *sizes)
        grid = min(-(-len(weight) // 8), 4 * self.device.n_multiprocessors)
        self.launcher.launch("head", args, grid, 256)

    def _addresses(self) -> dict[str, int | None]:
        return {name: address(array) for name, array in self.arrays.items()}

    def _begin(self) -> None:
        arrays, shape = self._addresses(), self.shape
        names = ("hidden", "survival", "active", "n_active", "token", "slot", "position",
                 "finished", "depth")  # fmt: skip
        sizes = (self.n_rows, shape.d_model, self.max_len, shape.n_loops)
        embed = address(self.weights["embed"])
        args = structs.BeginArgs(embed, *(arrays[name] for name in names), *sizes)
        self.launcher.launch("begin", args, self.n_rows, 256)

    def _loops(self, threshold: float, *, stores_first: bool) -> None:
        for loop in range(self.shape.n_loops):
            for layer in range(self.shape.n_layers):
                self._layer(loop, layer, stores_first)
            self._leave(loop, threshold)

    def _layer(self, loop: int, layer: int, stores_first: bool) -> None:
        D, F, arrays = self.shape.d_model, self.shape.d_ff, self._addresses()
        wide, hidden, active = arrays["wide"], arrays["hidden"], arrays["active"]
        stride = self.arrays["wide"].shape[1]
        eps = self.shape.norm_eps
        for_qkv = Rows(hidden, address(self.weights["attn_norm"][layer]), active, D, D, eps)
        self._product("qkv", layer, "norm_quantize", for_qkv, Result(wide, None, None, stride, 0))
        self._attention(loop, layer, stride, stores_first)
        to_hidden = Result(hidden, active, None, D, 1)
        self._product(
            "o", layer, "quantize", Rows(arrays["attended"], None, None, D, D, 0), to_hidden
        )
        for_ffn = Rows(hidden, address(self.weights["ffn_norm"][layer]), active, D, D, eps)
        to_wide = Result(wide, None, None, stride, 0)
        self._product("gate_up", layer, "norm_quantize", for_ffn, to_wide)
        gated = Rows(wide, None, None, F, stride, 0)
        self._product("down", layer, "swiglu_quantize", gated, to_hidden)

    def _product(self, name: str, layer: int, kernel: str, rows: Rows, result: Result) -> None:
        packed, scale = self.matrices[name]
        n, width, arrays = scale.shape[1], codes_width(rows.n), self._addresses()
        codes = Codes(arrays["x_q"], arrays["act_scale"], arrays["x_sum"])
        outs, count, S = (codes.x_q, codes.act_scale, codes.x_sum), arrays["n_active"], self.n_rows
        self.launcher.launch(kernel, QuantizeArgs(rows, *outs, count, width, S), S, 256)
        plan = plan_product(n, rows.n, max(S, FUSED_TOKENS + 1), self.device)
        matrix = Matrix(address(packed[layer]), address(scale[layer]), n, rows.n)
        args = ProductArgs(matrix, codes, Rows(), result, count, S, width, plan.slots)
        run_product(self.launcher, plan, args)

    def _attention(self, loop: int, layer: int, stride: int, stores_first: bool) -> None:
        arrays, shape = self._addresses(), self.shape
        names = ("attended", "partial", "arrived", "active", "slot", "position")
        sizes = (stride, shape.n_heads, self.weights["rope"].shape[1], self.n_splits)
        rope = address(self.weights["rope"])
        attention = structs.Attention(arrays["wide"], rope, *(arrays[n] for n in names), *sizes)
        counts = (shape.n_loops, shape.n_layers, shape.n_kv_heads, self.max_len)
        cache = structs.Cache(*(arrays[name] for name in ("k", "v", "depth")), *counts)
        place = (arrays["n_active"], loop, layer, self.n_rows)
        args = structs.AttentionArgs(attention, cache, *place)
        if stores_first:
            self.launcher.launch("store", args, self.n_rows * shape.n_kv_heads, 128)
        shared = _WARPS * 4 * (shape.head_size + 2) * 4
        grid = self.n_rows * shape.n_heads * self.n_splits
        self.launcher.launch("attention", args, grid, 32 * _WARPS, shared=shared)

    def _leave(self, loop: int, threshold: float) -> None:
        arrays, shape, weights = self._addresses(), self.shape, self.weights
        fixed = (address(weights[name]) for name in ("final_norm", "gate_weight", "gate_bias"))
        names = ("survival", "active", "n_active", "exit_loop", "depth", "slot", "position")
        sizes = (shape.d_model, self.max_len, loop, shape.n_loops, shape.norm_eps, threshold)
        args = structs.LeaveArgs(
            arrays["hidden"], arrays["final"], *fixed, *(arrays[name] for name in names), *sizes
        )
        self.launcher.launch("leave", args, 1, 512)


def generate(
    step: Step, prompts: Sequence[Sequence[int]], seeds: np.ndarray, limit: int,
    sampling: tuple[float, tuple[int, float], float], repeat: Callable[[Callable], Callable],
) -> np.ndarray:  # fmt: skip
    """Generate for up to `step.n_rows` prompts; results are in the step's arrays.

    Args:
        step: the arrays and launches.
        prompts: token ids, each shorter than the step's sequences.
        seeds: uint64, one per prompt.
        limit: most tokens of each, at most the step's width.
        sampling: temperature, (top_k, top_p), exit_threshold.
        repeat: makes of a step what can be called again and again: on a GPU, its graph.

    Returns:
        how many tokens each prompt got.
    """
    n, S = len(prompts), step.n_rows
    _read(step, prompts)
    padding = [0] * (S - n)
    step.put(
        token=[*(p[-1] for p in prompts), *padding],
        slot=range(S),
        position=[*(len(p) - 1 for p in prompts), *padding],
        finished=[0] * n + [1] * (S - n),
        place=[0] * S,
        limit=[limit],
        seed=np.concatenate([seeds, np.zeros(S - n, np.uint64)]).view(np.int64),
    )
    once = repeat(lambda: step.next_token(*sampling))
    for done in range(limit):
        once()
        if done % 16 == 15 and step.fetch("finished").all():
            break
    return step.fetch("place")[:n]


def _read(step: Step, prompts: Sequence[Sequence[int]]) -> None:
    """Pass over all prompt tokens but the last of each, as many a pass as there are rows."""
    rows = [(t, slot, i) for slot, p in enumerate(prompts) for i, t in enumerate(p[:-1])]
    S = min(step.n_rows, MAX_TOKENS)
    for first in range(0, len(rows), S):
        part = rows[first : first + S]
        part, n = part + [(0, 0, 0)] * (S - len(part)), len(part)
        token, slot, position = (list(values) for values in zip(*part, strict=True))
        finished = [0] * n + [1] * (S - n)
        step.put(token=token, slot=slot, position=position, finished=finished)
        step.read_prompt()
