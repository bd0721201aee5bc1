"""Time calls on a GPU: replayed as CUDA graphs, taking turns, medians.

In: for each name the calls that take turns over their weights; out: microseconds a call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.bench_gpu.start import Row

if TYPE_CHECKING:
    from torch import Tensor

N_REPLAYS = 9
WARM_SECONDS = 0.05
LAUNCHES = 40  # in a graph, at least
Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Graph:
    """Calls, one after another, as one CUDA graph."""

    replay: Callable[[], None]
    n_calls: int


def graph_of(calls: Calls, launches: int = LAUNCHES) -> Graph:
    """Capture the calls in turn, `launches` times or each once if they are more."""
    import torch

    n, stream = max(launches, len(calls)), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # what the calls read was made there
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()  # compiles, and tunes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(n):
            calls[i % len(calls)]()
    return Graph(graph.replay, n)


def times_us(graphs: dict[str, Graph]) -> dict[str, float]:
    """Return the median time of one call of each graph; replays of all graphs take turns.

    An untimed replay goes before each timed one, so that the GPU is at work while the host launches
    what is timed, and all are replayed for a while before, so that its clocks have risen.
    """
    import torch

    _warm_up(graphs)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(N_REPLAYS):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1e3 / graph.n_calls)
    return {name: statistics.median(values) for name, values in times.items()}


def _warm_up(graphs: dict[str, Graph]) -> None:
    import torch

    until = time.monotonic() + WARM_SECONDS
    while time.monotonic() < until:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()


def time_eager_us(call: Callable[[], object], leaves: Sequence[Tensor]) -> float:
    """Return the median time of a call that a graph cannot hold as it is.

    Gradients of `leaves` are dropped between calls, outside the time: adding to those of the call
    before would cost one side more than the other.
    """
    from triton.testing import do_bench

    options = {"grad_to_none": leaves, "return_mode": "median"}
    return do_bench(call, warmup=200, rep=500, **options) * 1e3


def row_of(kernel: str, shape: tuple[int, int, int], us: float, n_bytes: float) -> Row:
    """Return one measurement; shape is outputs, inputs, batch."""
    n, k, batch = shape
    rates = {"gb_per_s": n_bytes / us / 1e3, "tflops": 2 * n * k * batch / us / 1e6}
    return {"kernel": kernel, "n": n, "k": k, "batch": batch, "us": us, **rates}
