"""Time calls on a GPU: replayed as CUDA graphs, taking turns, medians.

In: for each name the calls that take turns over their weights; out: microseconds a call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.bench_gpu.start import Row

N_REPLAYS = 9
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
    """Return the median time of one call of each graph; replays of all graphs take turns."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(N_REPLAYS + 2):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1e3 / graph.n_calls)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def time_eager_us(call: Callable[[], object]) -> float:
    """Return the median time of a call that a graph cannot hold as it is."""
    from triton.testing import do_bench

    return do_bench(call, warmup=200, rep=500, return_mode="median") * 1e3


def row_of(kernel: str, shape: tuple[int, int, int], us: float, n_bytes: float) -> Row:
    """Return one measurement; shape is outputs, inputs, batch."""
    n, k, batch = shape
    rates = {"gb_per_s": n_bytes / us / 1e3, "tflops": 2 * n * k * batch / us / 1e6}
    return {"kernel": kernel, "n": n, "k": k, "batch": batch, "us": us, **rates}
