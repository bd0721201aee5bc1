"""Generate text on a GPU: the decode engine's twin for packed ternary weights (decoding/gpu.py).

In: prompts as token ids; out: what `Engine.generate` returns. A step is captured once as a CUDA
graph and replayed for every token. It is used by name and never chosen by itself, because no GPU
has run it yet: its launches are tested on a CPU (tests/test_gpu_step.py), and tests/gpu compares
it with `Engine` on the day one is there. It has no drafting and no 1.6-bit packing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from kernels.cuda.driver import device, program, why_unavailable
from kernels.cuda.products import MAX_TOKENS, plan_product
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.decoding.gpu import LOOPS, Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.gpu_batch import generate
from nanochat_lib.model.decoding.packed import load_weights, new_weights, shape_of
from nanochat_lib.model.engine import Engine, Generation, seeds_of
from nanochat_lib.model.looplm import LoopLM


class TorchMemory:
    """Arrays as tensors on the current GPU."""

    def place(self, array: np.ndarray) -> torch.Tensor:
        """Return a copy on the GPU."""
        return torch.from_numpy(array).cuda()

    def put(self, target: torch.Tensor, array: np.ndarray) -> None:
        """Write into the first elements of a tensor."""
        target.view(-1)[: array.size].copy_(torch.from_numpy(array).view(-1))

    def fetch(self, array: torch.Tensor) -> np.ndarray:
        """Return a copy in memory; waits for the GPU."""
        return array.cpu().numpy()


class GpuEngine:
    """Packed weights of one model on the first GPU, with caches for `n_rows` sequences."""

    def __init__(self, checker: Engine, step: Step) -> None:
        self._checker, self._step = checker, step

    @classmethod
    def from_model(
        cls,
        model: LoopLM,
        *,
        max_batch: int = MAX_TOKENS,
        max_seq_len: int | None = None,
        loops: str = "graph",
    ) -> GpuEngine:
        """Pack `model` and allocate caches on the first GPU.

        Args:
            max_batch: sequences decoded at the same time, at most 32.
            max_seq_len: longest prompt plus completion; by default the model's.
            loops: "graph", a launch for every phase, or "persistent", one for all loops; the same
                bits. "graph" is the default until a GPU has timed both (publish/decode_gpu.py).

        Raises:
            WorkbenchError: there is no GPU, or the model has a shape that the kernels lack.
        """
        config = model.config
        if loops not in LOOPS:
            raise WorkbenchError(f"loops must be one of {', '.join(LOOPS)}; found {loops!r}.")
        _check_shape(config)
        if reason := why_unavailable():
            raise WorkbenchError(f"The GPU engine cannot run: {reason}.")
        length = max_seq_len or config.max_seq_len
        checker = Engine.from_model(model, max_batch=1, max_seq_len=length, threads=1)
        weights = new_weights(config, length, "2bit")
        load_weights(weights, model, "2bit")
        launcher = program(0, (f"HEAD_SIZE={config.head_size}",))
        n_rows = min(max_batch, rows_that_fit(config, device(0)))
        sizes = Sizes(n_rows, length, length)
        shape = shape_of(config, "2bit")
        step = Step(shape, weights, sizes, launcher, device(0), TorchMemory())
        step.loops = loops
        return cls(checker, step)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop_ids: frozenset[int] = frozenset(),
        exit_threshold: float = 1.0,
    ) -> list[Generation]:
        """Continue every prompt; arguments and results as `Engine.generate` has them."""
        top, step = (top_k, top_p), self._step
        self._checker.check(prompts, max_new_tokens, temperature, top, exit_threshold)
        seeds, found = seeds_of(seed, len(prompts)), []
        step.put(is_stop=np.isin(np.arange(step.shape.vocab_size), list(stop_ids)).astype(np.uint8))
        sampling, limit = (
            (float(temperature), top, exit_threshold),
            min(max_new_tokens, step.sizes.width),
        )
        for first in range(0, len(prompts), step.n_rows):
            part = slice(first, first + step.n_rows)
            lengths = generate(step, prompts[part], seeds[part], limit, sampling, _as_graph)
            found += generations(step, lengths)
        return found


def generations(step: Step, lengths: np.ndarray) -> list[Generation]:
    """Return what the step's arrays hold for each sequence."""
    arrays = [step.fetch(name) for name in ("tokens", "exit_loops", "entropies")]
    return [
        Generation(*(array[row, :n].tolist() for array in arrays), passes=n)
        for row, n in enumerate(lengths.tolist())
    ]


def rows_that_fit(config: ModelConfig, gpu: Any) -> int:
    """Return how many rows of this model one launch of every product takes."""
    D, F = config.d_model, config.d_ff
    qkv_rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_size
    shapes = ((qkv_rows, D), (D, D), (2 * F, D), (D, F))
    return min(plan_product(n, k, MAX_TOKENS, gpu).n_tokens for n, k in shapes)


def _check_shape(config: ModelConfig) -> None:
    if not config.ternary or config.head_size % 8 or config.head_size > 128:
        raise WorkbenchError(
            "The GPU engine takes ternary models with heads of 8 to 128 in steps of 8; this one "
            f"has ternary={config.ternary} and heads of {config.head_size}. Use Engine."
        )


def _as_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph; launches are recorded, and nothing runs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
