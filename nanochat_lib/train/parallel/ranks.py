"""How rank 0, the calling process, starts, leads and ends the other processes of a training.

Every decision is rank 0's: it orders, through a pipe to each worker, what to do next, and waits for
answers before the processes exchange gradients. So a worker that lacks memory, fails or is killed
is noticed within a second, by an answer or by its end, and nobody waits for it in an exchange.
Alone, rank 0 has nobody to order and the same calls do nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.train.parallel import group
from nanochat_lib.train.parallel.choice import ADVICE
from nanochat_lib.train.parallel.step import Step
from nanochat_lib.train.parallel.worker import END, Share, gradients_of, layout_of, work

logger = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks whether the workers live
END_S = 10.0  # a worker may take to end by itself


class _Worker:
    """A started process and the pipe to it."""

    def __init__(self, rank: int, share: Share, store: Path) -> None:
        self.rank = rank
        spawn = multiprocessing.get_context("spawn")  # a forked copy of CUDA would not work
        self.pipe, theirs = spawn.Pipe()
        task = (rank, share, store, torch.get_num_threads(), theirs)
        self.process = spawn.Process(target=work, args=task, name=f"training rank {rank}")
        with _signals_held():
            self.process.start()
        theirs.close()

    def last_word(self) -> tuple[str, ...] | None:
        """Return why the process failed, where it could still say so."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                word = self.pipe.recv()
                if isinstance(word, tuple):
                    return word
        return None


class Ranks:
    """The workers of a training, within a `with` block."""

    def __init__(self, share: Share, device: torch.device) -> None:
        """Start nothing yet; `share.n_ranks` counts this process, too."""
        self.share, self.device = share, device
        self.workers: list[_Worker] = []
        self.has_joined = False

    @property
    def n(self) -> int:
        """Return the number of processes, this one included."""
        return self.share.n_ranks

    def __enter__(self) -> Self:
        """Start the workers and go on while they prepare; threads are shared out evenly."""
        if self.n == 1:
            return self
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(max(1, self.threads_before // self.n))
        self.folder = tempfile.TemporaryDirectory(prefix="nanochat_ranks_")
        self.store = Path(self.folder.name) / "store"
        try:
            for rank in range(1, self.n):
                self.workers.append(_Worker(rank, self.share, self.store))
        except BaseException:
            self._end(is_sound=False)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the workers: by a last order, or at once when something went wrong."""
        self._end(is_sound=kind is None or issubclass(kind, KeyboardInterrupt))

    def load(self, step: Step) -> None:
        """Give every worker the weights, optimisers and progress of this process."""
        if self.n == 1:
            return
        if not self.has_joined:
            self._join()
        state = {name: t.contiguous() for name, t in step.optimizers.state_tensors().items()}
        self.order("load", step.progress, layout_of(state))
        weights = [tensor.contiguous() for tensor in step.model.state_dict().values()]
        with self._exchange():
            group.broadcast([*weights, *state.values()], self._require_alive)
        self.answers()

    def order(self, name: str, *values: Any) -> None:
        """Tell every worker what to do next, a method of `worker._Worker` by name."""
        for worker in self.workers:
            try:
                worker.pipe.send((name, *values))
            except OSError:
                self._lose(worker)

    def answers(self) -> list[Any]:
        """Wait for an answer of every worker.

        Raises:
            WorkbenchError: one failed or died.
        """
        found: dict[int, Any] = {}
        while len(found) < len(self.workers):
            waiting = {w.pipe: w for w in self.workers if w.rank not in found}
            for pipe in connection.wait(list(waiting), LOOK_S):
                found[waiting[pipe].rank] = self._receive(waiting[pipe])
            self._require_alive()
        return [found[rank] for rank in sorted(found)]

    def sum_gradients(self, step: Step) -> None:
        """Replace the gradients of every process by their sum."""
        if self.n == 1:
            return
        self.order("sum")
        with self._exchange():
            group.sum_gradients(gradients_of(step.model), self._require_alive)

    def require_equal(self, step: Step) -> None:
        """Compare the weights of all processes, bit by bit, once they have been given out.

        Raises:
            WorkbenchError: they differ.
        """
        if not self.has_joined:
            return
        self.order("checksum")
        ours = step.checksum()
        differing = [i for i, theirs in enumerate(self.answers(), 1) if theirs != ours]
        if differing:
            raise WorkbenchError(
                f"The weights of process {differing[0]} of {self.n} differ from those of process "
                "0, so its GPU or processor computes something else; the newest checkpoint was "
                f"written when they were equal. Train with hardware.train_processes=1. {ADVICE}"
            )

    def _join(self) -> None:
        self.answers()  # each says that it is ready
        self.order("join")
        group.join(self.store, 0, self.n, self.device)
        self.has_joined = True

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._lose(worker)
        if isinstance(answer, tuple):
            self._explain(worker, answer)
        return answer

    def _require_alive(self) -> None:
        for worker in self.workers:
            if not worker.process.is_alive():
                self._lose(worker)

    def _lose(self, worker: _Worker) -> NoReturn:
        """Say how a worker ended: by its own last word where it left one."""
        worker.process.join(END_S)
        word, code = worker.last_word(), worker.process.exitcode
        if word is not None:
            self._explain(worker, word)
        how = "does not answer" if code is None else f"ended with status {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        raise WorkbenchError(
            f"Process {worker.rank} of {self.n} that trains with this one {how}. The same command "
            f"goes on from the newest checkpoint. {ADVICE}"
        )

    def _explain(self, worker: _Worker, word: tuple[str, ...]) -> NoReturn:
        what, trace = word
        logger.error("process %d of %d failed:\n%s", worker.rank, self.n, trace)
        raise WorkbenchError(f"Process {worker.rank} of {self.n} failed: {what}")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Let an exchange that fails inside the block end with the reason that a worker gives."""
        try:
            yield
        except RuntimeError:
            deadline = time.monotonic() + END_S
            while time.monotonic() < deadline:
                for worker in self.workers:
                    if worker.pipe.poll() or not worker.process.is_alive():
                        self._lose(worker)
                time.sleep(LOOK_S)
            raise

    def _end(self, *, is_sound: bool) -> None:
        if self.n == 1:
            return
        for worker in self.workers:
            with suppress(OSError):
                worker.pipe.send(END)
            if not is_sound:
                worker.process.kill()
        group.leave(is_sound=is_sound)
        for worker in self.workers:
            worker.process.join(END_S)
            worker.process.kill()  # where it did not end by itself
            worker.process.join()
            worker.pipe.close()
        self.workers, self.has_joined = [], False
        self.folder.cleanup()
        torch.set_num_threads(self.threads_before)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that no Ctrl-C ends before they can decide to ignore it."""
    resource_tracker.ensure_running()  # its own start would release them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
