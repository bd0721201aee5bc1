"""The batches of one rank in order, prepared ahead by worker processes.

Input: token shards, a recipe and a step. Output: tensors (B / ranks, T + 1). torch's DataLoader
does the work: its sampler counts steps, so that starting at any step, also in the middle of an
epoch, gives bit for bit what an uninterrupted run would have got there. Rank r of n takes the r-th
of n equal blocks of a batch: together the ranks see the batch that one process would see, in the
same micro-batches, whatever their number.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nanochat_lib.config import HardwareConfig
from nanochat_lib.data.batches import Recipe, TokenData
from nanochat_lib.errors import WorkbenchError


class _Steps(Dataset):
    """Batches by step, one rank's rows of each."""

    def __init__(self, data: TokenData, recipe: Recipe, rows: range) -> None:
        self.data, self.recipe, self.rows = data, recipe, rows

    def __getitem__(self, step: int) -> Tensor:
        return torch.from_numpy(self.data.rows(step, self.recipe, self.rows))


class _From(Sampler):
    """All steps from one on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __iter__(self) -> Iterator[int]:
        return count(self.step)


class Loader:
    """Serves the batch of a step; steps asked for in order were prepared meanwhile."""

    def __init__(
        self,
        data: TokenData,
        recipe: Recipe,
        hardware: HardwareConfig,
        *,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        """Start nothing yet.

        Args:
            hardware: `loader_workers`, `prefetch_factor` and `pin_memory` are used.
            rank, n_ranks: which share of each batch to serve.

        Raises:
            WorkbenchError: the ranks cannot share a batch evenly.
        """
        if recipe.batch_size % n_ranks or not 0 <= rank < n_ranks:
            raise WorkbenchError(
                f"A batch of {recipe.batch_size} sequences cannot be shared by {n_ranks} ranks "
                f"(this is rank {rank}): choose pretrain.batch_size as a multiple of the ranks."
            )
        n_rows = recipe.batch_size // n_ranks
        self.steps = _Steps(data, recipe, range(rank * n_rows, (rank + 1) * n_rows))
        self.hardware = hardware
        self._next_step = -1
        self._batches: Iterator[Tensor] = iter(())

    def batch(self, step: int) -> Tensor:
        """Return this rank's rows of the batch of a step, int64 (B / ranks, T + 1)."""
        if step != self._next_step:
            self._batches = iter(self._loader(step))
        self._next_step = step + 1
        return next(self._batches)

    def close(self) -> None:
        """End the workers."""
        self._batches, self._next_step = iter(()), -1

    def _loader(self, step: int) -> DataLoader:
        n_workers = self.hardware.loader_workers
        has_fork = "fork" in multiprocessing.get_all_start_methods()
        return DataLoader(
            self.steps,
            batch_size=None,  # an item is a batch already
            sampler=_From(step),
            num_workers=n_workers,
            prefetch_factor=self.hardware.prefetch_factor if n_workers else None,
            pin_memory=self.hardware.pin_memory and torch.cuda.is_available(),
            # Forked workers share the mapped shards; spawned ones would be sent a copy.
            multiprocessing_context="fork" if n_workers and has_fork else None,
            generator=torch.Generator(),  # the global one decides the training alone
        )
