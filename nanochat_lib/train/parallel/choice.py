"""How many processes train a batch together: one for each GPU, or as many as somebody asks for."""

from __future__ import annotations

import logging

import torch

from nanochat_lib.config import HardwareConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.train.safety.memory import largest_divisor

logger = logging.getLogger(__name__)

ADVICE = "See docs/troubleshooting.md#training-on-several-gpus."


def choose_processes(hardware: HardwareConfig, batch_size: int, device: torch.device) -> int:
    """Return how many processes train a batch together.

    `hardware.train_processes` of 0 takes one for each GPU that profile and machine both have, or as
    many fewer as share the batch evenly, and one on a CPU.

    Raises:
        WorkbenchError: more processes than GPUs are asked for, or they cannot share a batch.
    """
    wanted = hardware.train_processes
    if wanted and batch_size % wanted:
        raise WorkbenchError(
            f"A batch of {batch_size} sequences cannot be shared by {wanted} processes: choose "
            "batch_size as a multiple of hardware.train_processes, or fewer processes."
        )
    if device.type != "cuda":
        return wanted or 1
    n_gpus = min(hardware.n_gpus, torch.cuda.device_count())
    if wanted > n_gpus:
        raise WorkbenchError(
            f"hardware.train_processes is {wanted}, but there are {n_gpus} GPUs to train on (the "
            f"profile names {hardware.n_gpus}, this machine has {torch.cuda.device_count()}). Each "
            f"process needs one of its own: set it to {n_gpus} at most, or to 0. {ADVICE}"
        )
    return wanted or _one_for_each_gpu(n_gpus, batch_size)


def _one_for_each_gpu(n_gpus: int, batch_size: int) -> int:
    names = {torch.cuda.get_device_name(i) for i in range(n_gpus)}
    if len(names) > 1:
        logger.warning(
            "The GPUs differ (%s) and round differently, so the first one trains alone. %s",
            ", ".join(sorted(names)), ADVICE,
        )  # fmt: skip
        return 1
    n = largest_divisor(batch_size, n_gpus)
    if n < n_gpus:
        logger.warning(
            "%d of %d GPUs train: a batch of %d sequences cannot be shared evenly by more. %s",
            n, n_gpus, batch_size, ADVICE,
        )  # fmt: skip
    return n
