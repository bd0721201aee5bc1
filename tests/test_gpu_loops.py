"""The persistent kernel, run on the CPU, against the launches that it stands for: bit by bit."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest
import torch
from cuda_shim import Shim, compiled
from test_gpu_step import CONFIG, HereMemory

from kernels.cuda.products import Device
from nanochat_lib.model.decoding.gpu import Step
from nanochat_lib.model.decoding.gpu_arguments import Sizes
from nanochat_lib.model.decoding.packed import load_weights, new_weights, shape_of
from nanochat_lib.model.looplm import LoopLM

PROMPT = 2  # tokens of every sequence before the step
LEFT = ("hidden", "final", "survival", "logits", "active", "n_active", "exit_loop", "depth", "k",
        "v", "tokens", "exit_loops", "entropies", "position", "finished")  # fmt: skip


@functools.cache
def library(head_size: int = 8) -> ctypes.CDLL:
    return compiled(defines=(f"HEAD_SIZE={head_size}",))


def new_step(loops: str, n_sequences: int, config=CONFIG) -> Step:
    model = LoopLM(config, seed=3)
    model.exit_gate.weight.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    runner = Shim(library(config.head_size))
    weights = new_weights(config, 40, "2bit")
    load_weights(weights, model, "2bit")
    gpu = Device(n_multiprocessors=3, max_shared=99 << 10)
    sizes = Sizes(n_sequences, 40, 4)
    step = Step(shape_of(config, "2bit"), weights, sizes, runner, gpu, HereMemory())
    runner.allow(*(packed for packed, _ in step.arguments.matrices.values()))
    step.loops = loops
    return step


def after(step: Step, threshold: float) -> dict[str, np.ndarray]:
    """Return what a step leaves behind a prompt; the second of three sequences is finished."""
    n, rng = step.n_rows, np.random.default_rng(0)
    finished = [int(row % 3 == 1) for row in range(n)]
    for position in range(PROMPT):
        step.put(
            token=rng.integers(0, 300, n), slot=range(n), position=[position] * n, finished=[0] * n
        )
        step.read_prompt()
    step.put(position=[PROMPT] * n, finished=finished, seed=range(n), limit=[4], place=[0] * n)
    step.next_token(0.8, (0, 1.0), threshold)
    return {name: step.fetch(name) for name in LEFT}


@pytest.mark.parametrize(
    ("n_sequences", "threshold"), [(1, 1.0), (1, 0.6), (4, 1.0), (5, 0.6), (9, 0.6), (17, 0.6)]
)
def test_one_launch_leaves_the_bits_of_many(n_sequences, threshold):
    """One row and two are quantised by every block, more by some; three kernels by batch."""
    wanted = after(new_step("graph", n_sequences), threshold)
    step = new_step("persistent", n_sequences)
    found = after(step, threshold)
    for name in LEFT:
        assert np.array_equal(found[name], wanted[name], equal_nan=True), name
    assert set(step.launcher.launched) <= {
        "head", "sample", "append", "loops_1", "loops_2", "loops_4",
    }  # fmt: skip
    if threshold < 1 and n_sequences > 1:
        assert len(np.unique(wanted["exit_loops"][:, 0])) > 1


@pytest.mark.parametrize("seed", range(2, 5))
def test_no_order_of_threads_and_blocks_changes_a_bit(seed):
    wanted = after(new_step("graph", 3), 0.6)
    step = new_step("persistent", 3)
    step.launcher.seed = seed
    found = after(step, 0.6)
    assert all(np.array_equal(found[name], wanted[name]) for name in LEFT)


@pytest.mark.parametrize("seed", range(1, 4))
def test_rows_of_one_sequence_see_each_other(seed):
    """A prompt read in one pass leaves the cache that reading token by token leaves."""
    tokens, caches = [7, 3, 250, 7, 9], []
    for rows in (1, 5):
        step = new_step("persistent", 5)
        step.launcher.seed = seed
        for first in range(0, 5, rows):
            part = range(first, first + rows)
            step.put(token=[tokens[i] for i in part], slot=[0] * rows, position=part,
                     finished=[0] * rows + [1] * (5 - rows))  # fmt: skip
            step.read_prompt()
        caches.append((step.fetch("k")[0], step.fetch("v")[0]))
    assert np.array_equal(caches[0][0], caches[1][0])
    assert np.array_equal(caches[0][1], caches[1][1])
    assert np.abs(caches[0][0][..., :5, :]).min(-1).max() > 0


def test_when_all_rows_have_left_the_grid_ends():
    """Nothing of later loops is computed: their keys are never written."""
    step = new_step("persistent", 3)
    after(step, 0.0)  # everybody leaves after the first loop
    assert (step.fetch("exit_loops")[::2, 0] == 1).all()
    assert (step.fetch("k")[:, 0, :, :, PROMPT] != 0).any()
    assert not step.fetch("k")[:, 1:, :, :, PROMPT].any()


BARRIER = """
struct TurnArgs { unsigned* barrier; int* turns; int* seen; int n, misses; };
extern "C" __global__ void __launch_bounds__(32) turns(const TurnArgs args) {
    for (int turn = 0; turn < args.n; ++turn) {
        if (threadIdx.x == 0) args.turns[blockIdx.x] = turn;
        grid_barrier(args.barrier);
        int least = args.n;
        for (int i = 0; i < gridDim.x; ++i) least = min(least, args.turns[i]);
        if (threadIdx.x == 0) args.seen[turn * gridDim.x + blockIdx.x] = least;
        if (blockIdx.x == args.misses) return;
        grid_barrier(args.barrier);
    }
}
extern "C" const char* run_turns(const TurnArgs* args, const int* sizes) {
    return shim_run([](const void* p) { turns(*(const TurnArgs*)p); }, args, sizes);
}
"""


class TurnArgs(ctypes.Structure):
    _fields_ = (("barrier", ctypes.c_void_p), ("turns", ctypes.c_void_p),
                ("seen", ctypes.c_void_p), ("n", ctypes.c_int), ("misses", ctypes.c_int)
    )  # fmt: skip


def turned(start: int, misses: int = -1, n: int = 6, grid: int = 3) -> tuple[np.ndarray, int]:
    """Return the oldest turn that each block saw after the barrier of every turn.

    The block `misses` leaves in between, before a second barrier.
    """
    barrier, turns = np.array([start], np.uint32), np.zeros(grid, np.int32)
    seen = np.full((n, grid), -1, np.int32)
    args = TurnArgs(*(a.ctypes.data for a in (barrier, turns, seen)), n, misses)
    Shim(compiled(BARRIER)).launch("turns", args, grid, 32, together=True)
    return seen, int(barrier[0])


@pytest.mark.parametrize("start", [0, 1 << 31])
def test_the_barrier_lets_nobody_ahead_and_comes_round(start):
    seen, counter = turned(start)
    assert (seen == np.arange(6)[:, None]).all()
    assert counter == start  # twelve halves of what it holds


def test_a_barrier_that_a_block_misses_is_found_by_the_shim():
    with pytest.raises(AssertionError, match="a barrier of the grid is missed"):
        turned(0, misses=1)
