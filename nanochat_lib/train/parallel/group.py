"""The process group of a training: sums of gradients, and rank 0's tensors for all.

On GPUs NCCL does the work, on a CPU gloo; both talk over the loopback interface alone. Every
process calls the same functions in the same order, which rank 0 sees to (`ranks`).

Why not DistributedDataParallel or FSDP: both hook into the backward pass to send a layer's gradient
as soon as it is complete. The layers of a LoopLM are shared by all loops and, with checkpoints,
recomputed in the middle of it, so that theirs are complete at its very end and there is nothing to
overlap; and a step that runs out of memory half-way and begins again with smaller micro-batches
would leave the hooks of some processes waiting for others. Gradients are summed once a step, when
every process has its own.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=5)  # of one exchange, which begins when every process is ready
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}
BUCKET_BYTES = 2**26  # sent at once
POLL_S = 1e-4
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

Check = Callable[[], None]  # raises when waiting is of no use any more


def join(store: Path, rank: int, n_ranks: int, device: torch.device) -> None:
    """Enter the group; returns when everybody has.

    Args:
        store: a file that does not exist yet, the same for all.
        rank, n_ranks: which process this is, and of how many.
        device: where its model lies.
    """
    backend = BACKENDS[device.type]
    with _loopback():
        dist.init_process_group(
            backend,
            store=dist.FileStore(str(store), n_ranks),
            rank=rank,
            world_size=n_ranks,
            timeout=TIMEOUT,
            device_id=device if "nccl" in backend else None,
        )


def leave(*, is_sound: bool) -> None:
    """Leave the group; where it is not sound, without waiting for exchanges that cannot end."""
    if not dist.is_initialized():
        return
    if not is_sound:
        dist.group.WORLD.abort()
    dist.destroy_process_group()


def sum_gradients(gradients: Sequence[Tensor], check: Check) -> None:
    """Replace gradients by their sums over all processes, in buckets; all get the same bits."""
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        _wait(dist.all_reduce(flat, async_op=True), check)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(parts, bucket, strict=True)])


def broadcast(tensors: Sequence[Tensor], check: Check) -> None:
    """Fill tensors with those of rank 0."""
    for tensor in tensors:
        _wait(dist.broadcast(tensor, 0, async_op=True), check)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        is_full = sum(g.nbytes for g in bucket) + gradient.nbytes > BUCKET_BYTES
        if bucket and (is_full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _wait(work: dist.Work, check: Check) -> None:
    """Wait for an exchange, looking meanwhile whether it can still end: NCCL would not notice."""
    while not work.is_completed():
        check()
        time.sleep(POLL_S)
    work.wait()


@contextmanager
def _loopback() -> Iterator[None]:
    """Let gloo and NCCL listen on the loopback interface, unless the environment says where."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    ours = [variable for variable in INTERFACES if name and variable not in os.environ]
    os.environ.update(dict.fromkeys(ours, name or ""))
    try:
        yield
    finally:
        for variable in ours:
            del os.environ[variable]
