"""The arrays of the decode step on a GPU, and the arguments of every kernel that works on them.

In: `Weights` (packed.py), `Sizes` and a `Memory`; out: ctypes structs (kernels/cuda/structs.py),
which gpu.py launches. One function per kernel, so what a launch and a phase of the persistent
kernel are given cannot differ.

`S` sequences, `N` rows (sequences times drafts), `R` loops, `L` layers, `T` positions, `D` d_model,
`F` d_ff, `V` vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import numpy as np

from kernels.cuda import structs
from kernels.cuda.products import FUSED_TOKENS, Device, Plan, codes_width, plan_product
from kernels.cuda.structs import Codes, Matrix, ProductArgs, QuantizeArgs, Result, Rows, address
from nanochat_lib.model.decoding.packed import Shape, Weights

MATRICES = ("qkv", "o", "gate_up", "down")
KINDS = ("norm_quantize", "quantize", "norm_quantize", "swiglu_quantize")  # of what they multiply
NEVER = 2.0  # an exit threshold that no exit_cdf reaches


class Memory(Protocol):
    """Where arrays of a step live."""

    def place(self, array: np.ndarray) -> Any:
        """Return a copy there."""

    def put(self, target: Any, array: np.ndarray) -> None:
        """Write into the first elements of an array there."""

    def fetch(self, array: Any) -> np.ndarray:
        """Return a copy here."""


class Sizes(NamedTuple):
    """How much a step holds."""

    n_sequences: int  # times the drafts of each, at least 1: at most 32
    max_len: int  # positions of a sequence
    width: int  # tokens that are kept of each
    draft_loops: int = 0  # loops that draft; 0: no drafting
    draft_tokens: int = 1  # drafted before they are verified


class Pass(NamedTuple):
    """Rows that go through loops together."""

    n_rows: int
    loops: tuple[int, int]  # the first, and one past the last
    threshold: float = NEVER
    stores_first: bool = False  # rows may be of one sequence: keys are written before any is read
    rows: str = ""  # "verify_": rows that go on from drafts, else from tokens


class Arguments:
    """Weights, caches and buffers on a GPU, and the arguments of the kernels over them."""

    def __init__(
        self, shape: Shape, weights: Weights, sizes: Sizes, device: Device, memory: Memory
    ) -> None:
        """Copy the weights there, and allocate."""
        self.shape, self.sizes, self.device, self.memory = shape, sizes, device, memory
        names = [name for name in weights._fields if name not in MATRICES]
        self.weights = {name: memory.place(getattr(weights, name)) for name in names}
        self.matrices = {}
        for name in MATRICES:
            matrix = getattr(weights, name)
            self.matrices[name] = (memory.place(matrix.packed), memory.place(matrix.scale))
        self.n_rows = sizes.n_sequences * sizes.draft_tokens
        self.n_splits = max(1, min(16, device.n_multiprocessors // (self.n_rows * shape.n_heads)))
        self.arrays = {name: memory.place(a) for name, a in self._new_arrays().items()}

    def reload(self, weights: Weights) -> None:
        """Copy other weights of the same shapes over those there."""
        for name, target in self.weights.items():
            self.memory.put(target, getattr(weights, name))
        for name, (packed, scale) in self.matrices.items():
            self.memory.put(packed, getattr(weights, name).packed)
            self.memory.put(scale, getattr(weights, name).scale)

    def _new_arrays(self) -> dict[str, np.ndarray]:
        (S, T, width), N, shape = self.sizes[:3], self.n_rows, self.shape
        D, F, V = shape.d_model, shape.d_ff, shape.vocab_size
        qkv_rows = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_size
        cache = (S, shape.n_loops, shape.n_layers, shape.n_kv_heads, T, shape.head_size)
        units, floats, ints = N * shape.n_heads, np.float32, np.int32
        kinds = {
            floats: {
                "hidden": (N, D), "final": (N, D), "survival": (N,), "attended": (N, D),
                "wide": (N, max(qkv_rows, 2 * F)), "act_scale": (N,), "entropy": (N,),
                "logits": (N, len(self.weights["head_scale"])), "probability": (N, V),
                "partial": (units, self.n_splits, 4 * (shape.head_size + 2)),
                "entropies": (S, width), "drafted": (N, D), "kept": (N, V),
            },
            ints: {
                "active": (N,), "n_active": (1,), "token": (N,), "slot": (N,), "position": (N,),
                "exit_loop": (N,), "x_sum": (N,), "arrived": (units,), "place": (N,), "left": (1,),
                "tokens": (S, width), "exit_loops": (S, width), "limit": (1,), "barrier": (1,),
                "passes": (S,), "drafted_token": (N,), "verify_token": (N,), "verify_slot": (N,),
                "verify_position": (N,),
            },
            np.uint8: {"depth": (S, T), "finished": (N,), "is_stop": (V,), "verify_finished": (N,)},
            np.int8: {"x_q": (N, codes_width(max(D, F)))},
            np.float16: {"k": cache, "v": cache},
            np.int64: {"seed": (S,)},  # the bits of unsigned numbers
        }  # fmt: skip
        arrays = {
            name: np.zeros(size, kind)
            for kind, sizes in kinds.items()
            for name, size in sizes.items()
        }
        arrays["verify_token"][:] = range(N)  # the place of each in `drafted`
        return arrays

    @functools.cached_property
    def _addresses(self) -> dict[str, int | None]:
        return {name: address(array) for name, array in self.arrays.items()}

    def _of(self, *names: str) -> list[int | None]:
        return [self._addresses[name] for name in names]

    def plans(self, n_rows: int) -> list[Plan]:
        """Return the plans of a layer's four products; they agree on the kernel and its block."""
        F, D, tokens = self.shape.d_ff, self.shape.d_model, max(n_rows, FUSED_TOKENS + 1)
        inputs = (D, D, D, F)
        return [
            plan_product(self.matrices[name][1].shape[1], k, tokens, self.device)
            for name, k in zip(MATRICES, inputs, strict=True)
        ]

    def begin(self, one: Pass) -> structs.BeginArgs:
        """Tokens become rows."""
        rows = (one.rows + name for name in ("token", "slot", "position", "finished"))
        arrays = self._of("hidden", "survival", "active", "n_active", *rows, "depth")
        sizes = (one.n_rows, self.shape.d_model, self.sizes.max_len, self.shape.n_loops)
        begins = address(self.arrays["drafted"] if one.rows else self.weights["embed"])
        return structs.BeginArgs(begins, *arrays, *sizes)

    def product(self, one: Pass, which: int, layer: int) -> ProductArgs:
        """Return one of a layer's four products, with the rows that are quantised for it."""
        D, F, eps = self.shape.d_model, self.shape.d_ff, self.shape.norm_eps
        wide, hidden, active, attended = self._of("wide", "hidden", "active", "attended")
        stride, norm = self.arrays["wide"].shape[1], ("attn_norm", "", "ffn_norm", "")[which]
        weight = address(self.weights[norm][layer]) if norm else None
        rows = (
            Rows(hidden, weight, active, D, D, eps),
            Rows(attended, None, None, D, D, 0),
            Rows(hidden, weight, active, D, D, eps),
            Rows(wide, None, None, F, stride, 0),
        )[which]
        adds = which % 2
        result = Result(hidden, active, None, D, 1) if adds else Result(wide, None, None, stride, 0)
        packed, scale = self.matrices[MATRICES[which]]
        matrix = Matrix(address(packed[layer]), address(scale[layer]), scale.shape[1], rows.n)
        codes, count = Codes(*self._of("x_q", "act_scale", "x_sum")), self._addresses["n_active"]
        slots = self.plans(one.n_rows)[which].slots
        width = codes_width(rows.n)
        return ProductArgs(matrix, codes, rows, result, count, one.n_rows, width, slots)

    def quantize(self, product: ProductArgs) -> QuantizeArgs:
        """Return what quantises the rows of a product before it."""
        codes = product.codes
        outs = (codes.x_q, codes.act_scale, codes.x_sum)
        sizes = (product.width, product.n_tokens)
        return QuantizeArgs(product.rows, *outs, product.n_active, *sizes)

    def attention(self, one: Pass, loop: int, layer: int) -> structs.AttentionArgs:
        """Return what attends, and what stores keys and values before."""
        shape, rope = self.shape, self.weights["rope"]
        rows = (one.rows + name for name in ("slot", "position"))
        arrays = self._of("attended", "partial", "arrived", "active", *rows)
        sizes = (self.arrays["wide"].shape[1], shape.n_heads, rope.shape[1], self.n_splits)
        wide, count = self._of("wide", "n_active")
        attention = structs.Attention(wide, address(rope), *arrays, *sizes)
        counts = (shape.n_loops, shape.n_layers, shape.n_kv_heads, self.sizes.max_len)
        cache = structs.Cache(*self._of("k", "v", "depth"), *counts)
        return structs.AttentionArgs(attention, cache, count, loop, layer, one.n_rows)

    def leave(self, one: Pass, loop: int) -> structs.LeaveArgs:
        """Return what ends a loop; `one.loops` says which is the last."""
        shape = self.shape
        fixed = [address(self.weights[n]) for n in ("final_norm", "gate_weight", "gate_bias")]
        rows = (one.rows + name for name in ("slot", "position"))
        names = ("survival", "active", "n_active", "left", "exit_loop", "depth")
        arrays = self._of(*names, *rows)
        sizes = (shape.d_model, self.sizes.max_len, loop, one.loops[1], shape.norm_eps)
        states = self._of("hidden", "final")
        return structs.LeaveArgs(*states, *fixed, *arrays, *sizes, one.threshold)

    def loops(self, one: Pass) -> structs.LoopsArgs:
        """Return what the persistent kernel takes for a whole pass."""
        products = [self.product(one, which, 0) for which in range(len(MATRICES))]
        steps = [self.matrices[name][0][0].nbytes // 16 for name in MATRICES]
        first = one.loops[0]
        return structs.LoopsArgs(
            self.begin(one), (ProductArgs * 4)(*products), (structs.Long * 4)(*steps),
            self.attention(one, first, 0), self.leave(one, first), self._addresses["barrier"],
            first, self.shape.n_layers, one.stores_first,
        )  # fmt: skip

    def head(self, n_rows: int) -> structs.HeadArgs:
        """Hidden states of rows that left become logits."""
        weight = self.weights["head"]
        place = (address(weight), address(self.weights["head_scale"]))
        sizes = (len(weight), self.shape.d_model, n_rows)
        return structs.HeadArgs(*place, *self._of("final", "logits"), *sizes)

    def sample(self, temperature: float, top: tuple[int, float]) -> structs.SampleArgs:
        """Logits become the next token of every sequence."""
        arrays = self._of("logits", "probability", "seed", "place", "token", "entropy")
        sizes = (self.sizes.n_sequences, self.shape.vocab_size, len(self.weights["head_scale"]))
        return structs.SampleArgs(*arrays, *sizes, top[0], temperature, top[1])

    def append(self) -> structs.AppendArgs:
        """Keep what was drawn."""
        kinds = structs.AppendArgs._fields_
        arrays = self._of(*(name for name, kind in kinds if kind is structs.Address))
        return structs.AppendArgs(*arrays, self.sizes.n_sequences, self.sizes.width,
                                  self.sizes.max_len)  # fmt: skip

    def draft(
        self, temperature: float, top: tuple[int, float], index: int = 0
    ) -> structs.DraftArgs:
        """Return what draws draft `index` of every sequence, and what verifies all."""
        fields = structs.DraftArgs._fields_
        arrays = self._of(*(name for name, kind in fields if kind is structs.Address))
        sizes = (self.sizes.draft_tokens, self.shape.d_model, self.sizes.max_len, self.sizes.width)
        sample = self.sample(temperature, top)
        return structs.DraftArgs(sample, *arrays, index, *sizes, self.shape.n_loops)
