"""Generate text on a GPU: the decode engine's twin for packed ternary weights (decoding/gpu.py).

In: prompts as token ids; out: what `Engine.generate` returns. A step is captured as a CUDA graph
when it is first wanted, kept, and replayed for every token. `backend.open_engine` chooses it, after
comparing a few tokens with `Engine`: no GPU has run it yet. Its launches are tested on a CPU
(tests/test_gpu_step.py), and by tests/gpu on the day one is there. It drafts where asked to, and
has no 1.6-bit packing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from kernels.cuda.driver import device, program, why_unavailable
from kernels.cuda.products import MAX_TOKENS, plan_product
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.decoding.agreement import Agreement
from nanochat_lib.model.decoding.gpu import LOOPS, Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.gpu_batch import generate
from nanochat_lib.model.decoding.packed import Weights, load_weights, new_weights, shape_of
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import (
    Draft,
    Generation,
    Sampling,
    check_limits,
    check_prompts,
    check_same_shape,
    seeds_of,
)

MAX_GRAPHS = 8  # kept, those last used; each takes a few MB on the GPU


class TorchMemory:
    """Arrays as tensors on the first GPU, whichever is the current one."""

    def place(self, array: np.ndarray) -> torch.Tensor:
        """Return a copy on the GPU."""
        return torch.from_numpy(array).to("cuda:0")

    def put(self, target: torch.Tensor, array: np.ndarray) -> None:
        """Write into the first elements of a tensor."""
        target.view(-1)[: array.size].copy_(torch.from_numpy(array).view(-1))

    def fetch(self, array: torch.Tensor) -> np.ndarray:
        """Return a copy in memory; waits for the GPU."""
        return array.cpu().numpy()


class GpuEngine:
    """Packed weights of one model on the first GPU, with caches for `n_rows` sequences."""

    runs_on = "cuda"

    def __init__(self, config: ModelConfig, weights: Weights, step: Step) -> None:
        self.config, self.max_seq_len = config, step.sizes.max_len
        self.n_rows = step.sizes.n_sequences
        self.weights, self._step = weights, step  # in memory, for the next `reload`; on the GPU
        self.agreement: Agreement | None = None  # with the CPU engine, when it was compared
        self._graphs: dict[tuple, Callable[[], None]] = {}

    @classmethod
    def from_model(
        cls,
        model: LoopLM,
        *,
        max_batch: int = MAX_TOKENS,
        max_seq_len: int | None = None,
        loops: str = "graph",
        draft: Draft | None = None,
    ) -> GpuEngine:
        """Pack `model` and allocate caches on the first GPU.

        Args:
            max_batch: sequences decoded at the same time, at most 32.
            max_seq_len: longest prompt plus completion; by default the model's.
            loops: "graph", a launch for every phase, or "persistent", one for all loops; the same
                bits. "graph" is the default until a GPU has timed both (publish/decode_gpu.py).
            draft: draft with fewer loops and verify with all; by default off. The rows of a pass
                are then shared by the drafts of a sequence.

        Raises:
            WorkbenchError: there is no GPU, the model has variants or a shape that the kernels
                lack, a limit makes no sense for it, or the GPU has no room for drafts.
        """
        _check_machine_and_shape(model.config)
        length = model.config.max_seq_len if max_seq_len is None else max_seq_len
        check_limits(model.config, max_batch, length)
        weights = new_weights(model.config, length, "2bit")
        load_weights(weights, model, "2bit")
        engine = cls.from_weights(model.config, weights, max_batch, draft)
        engine.use(loops)
        return engine

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: Weights, max_batch: int, draft: Draft | None = None
    ) -> GpuEngine:
        """Copy weights that somebody has packed, for sequences as long as their table of angles."""
        _check_machine_and_shape(config)
        launcher, length = program(0, (f"HEAD_SIZE={config.head_size}",)), weights.rope.shape[1]
        sizes = sizes_of(config, max_batch, length, rows_that_fit(config, device(0)), draft)
        shape = shape_of(config, "2bit")
        return cls(config, weights, Step(shape, weights, sizes, launcher, device(0), TorchMemory()))

    def use(self, loops: str) -> None:
        """Run the loops as a "graph" of launches or as one "persistent" kernel from now on."""
        if loops not in LOOPS:
            raise WorkbenchError(f"loops must be one of {', '.join(LOOPS)}; found {loops!r}.")
        self._step.loops = loops

    def reload(self, model: LoopLM) -> None:
        """Pack the current parameters of a model of the same shape again, in place.

        Raises:
            WorkbenchError: the model has another shape, or a parameter is not finite.
        """
        check_same_shape(model, self.config)
        load_weights(self.weights, model, "2bit")
        self._step.arguments.reload(self.weights)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int | Sequence[int] = 0,
    ) -> list[Generation]:
        """Continue every prompt; arguments and results as `Engine.generate` has them."""
        step, vocab_size = self._step, self._step.shape.vocab_size
        check_prompts(prompts, vocab_size, step.sizes.max_len)
        if sampling.exit_threshold < 1 and step.sizes.draft_loops:
            raise WorkbenchError(
                f"exit_threshold {sampling.exit_threshold} leaves loops early, but this engine "
                "drafts and verifies with all loops: take one or the other."
            )
        seeds = seeds_of(seed, len(prompts))
        step.put(is_stop=sampling.is_stop(vocab_size).astype(np.uint8))
        limit, top = (
            min(sampling.max_new_tokens, step.sizes.width),
            (sampling.top_k, sampling.top_p),
        )
        choice = (float(sampling.temperature), top, sampling.exit_threshold)
        return generate(step, prompts, seeds, limit, choice, functools.partial(self._kept, choice))

    def _kept(self, choice: tuple, once: Callable[[], None]) -> Callable[[], None]:
        """Return the graph of a step, which is captured at the first text that wants it.

        Weights, prompts and lengths are in arrays; how tokens are chosen is in the graph.
        """
        key = (self._step.loops, None if once == self._step.read_prompt else choice)
        found = self._graphs.pop(key, None) or _as_graph(once)
        while len(self._graphs) >= MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = found  # the last used is the last to go
        return found


def rows_that_fit(config: ModelConfig, gpu: Any) -> int:
    """Return how many rows of this model one launch of every product takes.

    Raises:
        WorkbenchError: not one, because a row exceeds the GPU's shared memory.
    """
    D, F = config.d_model, config.d_ff
    qkv_rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_size
    shapes = ((qkv_rows, D), (D, D), (2 * F, D), (D, F))
    try:
        return min(plan_product(n, k, MAX_TOKENS, gpu).n_tokens for n, k in shapes)
    except ValueError as error:
        raise WorkbenchError(f"The GPU engine cannot take this model: {error}.") from error


def sizes_of(
    config: ModelConfig, max_batch: int, length: int, n_fit: int, draft: Draft | None
) -> Sizes:
    """Return how much a step holds whose passes take `n_fit` rows.

    Raises:
        WorkbenchError: drafts that the model or a pass has no room for.
    """
    if draft is None:
        return Sizes(min(max_batch, n_fit), length, length)
    if not (1 <= draft.loops < config.n_loops and 1 <= draft.tokens <= n_fit):
        raise WorkbenchError(
            f"Drafting takes 1 to {config.n_loops - 1} of this model's {config.n_loops} loops "
            f"and 1 to {n_fit} tokens, found {draft}."
        )
    n_sequences = min(max_batch, n_fit // draft.tokens)
    return Sizes(n_sequences, length, length, draft.loops, draft.tokens)


def _check_machine_and_shape(config: ModelConfig) -> None:
    config.require_stock("The GPU engine")
    if not config.ternary or config.head_size % 8 or config.head_size > 128:
        raise WorkbenchError(
            "The GPU engine takes ternary models with heads of 8 to 128 in steps of 8; this one "
            f"has ternary={config.ternary} and heads of {config.head_size}."
        )
    if reason := why_unavailable():
        raise WorkbenchError(f"The GPU engine cannot run: {reason}.")


def _as_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph; launches are recorded, and nothing runs."""
    graph = torch.cuda.CUDAGraph()
    # What other threads ask of the GPU meanwhile (training's loader pins memory) is none of it.
    with torch.cuda.device(0), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay
