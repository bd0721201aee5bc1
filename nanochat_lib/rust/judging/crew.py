"""Who does the work: threads on this machine, any executor that is passed in, or a Dask cluster.

A thread is enough here: it waits for sandboxed processes. An executor of `concurrent.futures` runs
`jobs.judge_job` wherever it likes. A cluster is Dask's, by the address of its scheduler (extra
`cluster`); the connection is made once per process and checked at once: every worker must judge by
the same compiler and sandbox as this machine, or verdicts would depend on who gave them.

Workers may die. A pool of processes that breaks is replaced by threads here; Dask gives the batch
to another worker by itself. The desk counts the tries.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from functools import cache
from typing import Any

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.rust.judging.jobs import Answer, Job, judge_job, surroundings_here
from nanochat_lib.rust.sandbox import end_programs

_LOG = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 10
_GRACE_S = 2.0  # for jobs that run when nobody waits for them any more
_RETRIES = 2  # Dask's own, of a batch whose worker died


@contextmanager
def crew_for(
    executor: Executor | None, config: VerifyConfig, workers: int | None
) -> Iterator[Crew]:
    """Yield the executor that was passed in, else the configured cluster, else threads.

    Args:
        executor: used and left open.
        config: `cluster` is used.
        workers: jobs at a time; None: what the executor says, or one per CPU. A cluster has a
            number of its own.

    Raises:
        WorkbenchError: the cluster cannot be reached or has other means than this machine.
    """
    if executor is None and config.cluster:
        executor = cluster_client(config.cluster).get_executor(retries=_RETRIES, pure=False)
    crew = Crew(executor, workers)
    try:
        yield crew
    finally:
        crew.close()


class Crew:
    """An executor, how many jobs it does at once, and what to do when it breaks."""

    def __init__(self, executor: Executor | None, workers: int | None) -> None:
        self.threads: ThreadPoolExecutor | None = None  # ours, to be closed
        self.thread_ids: list[int] = []
        self.client = getattr(executor, "_client", None)  # Dask's executor names its client so
        self.require_workers()
        self.n_workers = self._n_workers(executor, workers)
        self.executor = executor or self._open_threads()

    def _n_workers(self, executor: Executor | None, wanted: int | None) -> int:
        if self.client is not None:
            return sum(self.client.nthreads().values())
        return wanted or getattr(executor, "_max_workers", None) or usable_cores()

    def _open_threads(self) -> ThreadPoolExecutor:
        self.threads = ThreadPoolExecutor(
            self.n_workers,
            thread_name_prefix="verify",
            initializer=lambda: self.thread_ids.append(threading.get_ident()),
        )
        return self.threads

    def submit(self, job: Job) -> Future[Answer]:
        """Hand a job over; when the pool of processes is broken, to threads here."""
        try:
            return self.executor.submit(judge_job, job)
        except BrokenExecutor as error:
            _LOG.warning("Judging goes on in threads: the pool of workers broke: %s", error)
            self.executor = self._open_threads()
            return self.executor.submit(judge_job, job)

    def require_workers(self) -> None:
        """Raise a WorkbenchError when a cluster has nobody left to wait for."""
        if self.client is None:
            return
        address = self.client.scheduler.address if self.client.scheduler else "it"
        if self.client.status != "running":
            raise WorkbenchError(
                f"The connection to the cluster at {address} was lost. What was judged is in the "
                "cache: start the scheduler again and repeat the command."
            )
        if not self.client.nthreads():
            raise WorkbenchError(
                f"The cluster at {address} has no workers: expected at least one. Start some with "
                f"'dask worker {address}' where this project is installed."
            )

    def leave(self, futures: Iterable[Future[Answer]]) -> list[Answer]:
        """Give jobs up: drop what waits, grant what runs a moment, then end it if it runs here.

        Returns:
            what had been judged by then.
        """
        running = [future for future in futures if not future.cancel()]
        finished, late = wait(running, timeout=_GRACE_S)
        while late and self.threads is not None:
            end_programs(self.thread_ids)
            more, late = wait(late, timeout=0.1)
            finished |= more
        return [future.result() for future in finished if future.exception() is None]

    def close(self) -> None:
        """End our own threads."""
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)


def lost_worker_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions by which executors say that a worker died with its job."""
    dask = sys.modules.get("distributed")
    return (BrokenExecutor, CancelledError, OSError, *((dask.KilledWorker,) if dask else ()))


# --- Dask ---------------------------------------------------------------------------------------


def cluster_client(address: str) -> Any:
    """Return the connection to a Dask cluster, made once per process and made again when lost.

    Raises:
        WorkbenchError: Dask is not installed, nobody answers at the address, the cluster has no
            workers, or one of them has another compiler or sandbox than this machine.
    """
    if _connect(address).status != "running":
        _connect.cache_clear()
    return _connect(address)


@cache
def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise WorkbenchError(
            f"verify.cluster = {address!r} needs Dask: install the extra with "
            "'pip install .[cluster]'."
        ) from error
    for noisy in ("tornado.application", "distributed.client"):
        # A traceback for each batch that is given up; what matters is said in one sentence here.
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkbenchError(
            f"The cluster at {address} cannot be reached: nobody answered as a Dask scheduler in "
            f"{_CONNECT_TIMEOUT_S} s ({str(error).splitlines()[0]}). Start one with 'dask "
            "scheduler', or judge on this machine by leaving verify.cluster empty."
        ) from error
    try:
        _require_same_surroundings(client)
    except BaseException:
        client.close()
        raise
    return client


def _require_same_surroundings(client: Any) -> None:
    here = surroundings_here()
    found = client.run(surroundings_here, on_error="return")
    others = [f"{worker} says {there}" for worker, there in found.items() if there != here]
    if others:
        raise WorkbenchError(
            f"Verdicts depend on compiler and sandbox, and {len(others)} of {len(found)} workers "
            f"of the cluster differ from this machine, which has {here}: {'; '.join(others[:3])}. "
            "Install the same there, or leave them out."
        )
