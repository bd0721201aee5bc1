"""Ranks 1 and up of a training: processes that do what rank 0 orders, and end when it ends.

Each holds a model, optimisers and a loader of its rows. Orders come through a pipe, one after the
other; answers go back through it, also the reason when it cannot go on. Between orders it waits
without computing, however long rank 0 evaluates or pauses. It ends by order, and within a second
when rank 0 was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lib.config import HardwareConfig, ModelConfig, PretrainConfig
from nanochat_lib.data.batches import Recipe, TokenData
from nanochat_lib.data.loader import Loader
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.train import execution
from nanochat_lib.train.parallel import group
from nanochat_lib.train.parallel.step import Progress, Step

LOOK_S = 0.5  # between two looks whether rank 0 lives
END = ("end",)  # the last order
Layout = list[tuple[str, torch.Size, torch.dtype, str]]  # of tensors: name, shape, type, device


@dataclass(frozen=True)
class Share:
    """What a worker needs to know before the first order."""

    n_ranks: int
    model: ModelConfig
    plan: PretrainConfig
    data: TokenData
    recipe: Recipe
    hardware: HardwareConfig


def work(rank: int, share: Share, store: Path, n_threads: int, orders: Connection) -> None:
    """Obey until the last order.

    A failure ends the process; instead of an answer it sends what happened and the traceback.

    Args:
        store: of the process group, alone in a folder.
        n_threads: of this process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_rank_0, args=(store.parent,), daemon=True).start()
    try:
        torch.set_num_threads(n_threads)
        worker = _Worker(rank, share, store)
        orders.send("ready")
        with closing(worker.loader):
            while (order := orders.recv()) != END:
                name, *values = order
                answer = getattr(worker, name)(*values)
                if answer is not None:
                    orders.send(answer)
        group.leave(is_sound=True)
    except EOFError:  # rank 0 has died
        _end_with_rank_0(store.parent)
    except Exception as error:
        is_ours = isinstance(error, WorkbenchError)
        what = str(error) if is_ours else f"{type(error).__name__}: {error}"
        with suppress(OSError):
            orders.send((what, traceback.format_exc()))
        raise SystemExit(1) from error


class _Worker:
    """The orders, one method for each."""

    def __init__(self, rank: int, share: Share, store: Path) -> None:
        self.rank, self.share, self.store = rank, share, store
        self.device = execution.choose_device(share.hardware, rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.step = Step(LoopLM(share.model).to(self.device), share.plan)
        self.loader = Loader(
            share.data, share.recipe, share.hardware, rank=rank, n_ranks=share.n_ranks
        )

    def join(self) -> None:
        """Enter the process group."""
        group.join(self.store, self.rank, self.share.n_ranks, self.device)

    def load(self, progress: Progress, layout: Layout) -> str:
        """Take over rank 0's weights and optimisers."""
        model, state = self.step.model, _empty(layout, self.device)
        group.broadcast([*model.state_dict().values(), *state.values()], _nothing)
        self.step.begin(progress, state)
        return "loaded"

    def accumulate(self, batch: int, size: int) -> list[float]:
        """Add up gradients of this rank's rows of a batch."""
        rows = self.loader.batch(batch).to(self.device, non_blocking=True)
        return self.step.accumulate(rows, size)

    def forget(self) -> None:
        """Drop the gradients: another rank lacked memory, or the step is not taken."""
        self.step.optimizers.zero_grad()

    def sum(self) -> None:
        """Add up the gradients of all ranks."""
        group.sum_gradients(gradients_of(self.step.model), _nothing)

    def update(self, step: int) -> None:
        """Take the step that rank 0 takes."""
        self.step.clip()
        self.step.update(step)

    def checksum(self) -> int:
        """Return the checksum of the weights."""
        return self.step.checksum()


def gradients_of(model: LoopLM) -> list[Tensor]:
    """Return the gradients there are, in the order of the parameters: the same in every rank."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def layout_of(state: dict[str, Tensor]) -> Layout:
    """Return what `load` needs to make room for tensors."""
    return [(name, t.shape, t.dtype, t.device.type) for name, t in state.items()]


def _empty(layout: Layout, device: torch.device) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=dtype, device=device if kind == device.type else kind)
        for name, shape, dtype, kind in layout
    }


def _nothing() -> None:
    """Rank 0 watches for all: it ends the others when one is lost."""


def _end_with_rank_0(folder: Path) -> None:
    """End this process, whatever it waits for, when its parent has died."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(LOOK_S)
    shutil.rmtree(folder, ignore_errors=True)  # nobody else is left to do it
    os._exit(1)
