"""Sample programs and have them judged at the same time.

In: tasks; out: judged rollouts, part by part in the order of the tasks. While rustc judges one part
in a thread of its own, the next is sampled, and whoever takes a judged part (the policy, for its
gradient) works while later ones are judged. At most `MOST_WAITING` parts wait to be judged: beyond
that sampling waits, so that memory does not grow where judging is the slower half.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_lib.config import MaxRLConfig, VerifyConfig
from nanochat_lib.records import Metric, Task
from nanochat_lib.train.execution import result_unless_stopped
from nanochat_lib.train.rl.rollouts import Draft, Rollout, Sampler, judge

MOST_WAITING = 3


@dataclass(frozen=True)
class Attempts:
    """A sampler and its judge."""

    sampler: Sampler
    verify: VerifyConfig
    cache_dir: Path | None
    workers: int | None  # of the judge
    is_stopping: Callable[[], bool]
    _sampling: ThreadPoolExecutor = field(default_factory=lambda: _thread("sampling"))
    _judging: ThreadPoolExecutor = field(default_factory=lambda: _thread("judging"))

    def stream(
        self, tasks: Sequence[Task], n_samples: int, plan: MaxRLConfig, *, seed: int,
        seconds: Counter,
    ) -> Iterator[list[Rollout]]:  # fmt: skip
        """Yield the judged rollouts of parts of the tasks, in order.

        Args:
            n_samples: rollouts per task.
            plan: `prompts_per_part` says how many tasks are judged together.
            seed: of the sampling; how tasks are cut into parts does not change what is sampled.
            seconds: takes the times, added to: sampling, judging (beside other work), and waiting
                for the judge.

        Raises:
            Abandoned: a stop was wanted. Whatever still runs ends by itself within seconds, and
                nobody looks at it.
        """
        size = plan.prompts_per_part
        waiting: deque[Future[list[Rollout]]] = deque()
        for start in range(0, len(tasks), size):
            while len(waiting) >= MOST_WAITING:
                yield self._next(waiting, seconds)
            part = tasks[start : start + size]
            began = time.perf_counter()
            sampled = self._sampling.submit(
                self.sampler.sample, part, n_samples, plan, seed=seed, first=start
            )
            drafts = result_unless_stopped(sampled, self.is_stopping)
            seconds[Metric.GENERATE_S] += time.perf_counter() - began
            waiting.append(self._judging.submit(self._judge, drafts, plan, seconds))
        while waiting:
            yield self._next(waiting, seconds)

    def all(
        self, tasks: Sequence[Task], n_samples: int, plan: MaxRLConfig, *, seed: int,
        seconds: Counter,
    ) -> list[Rollout]:  # fmt: skip
        """Return what `stream` yields as one list."""
        parts = self.stream(tasks, n_samples, plan, seed=seed, seconds=seconds)
        return [rollout for part in parts for rollout in part]

    def close(self) -> None:
        """Let the two threads end, after what they are at."""
        for pool in (self._sampling, self._judging):
            pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, drafts: list[Draft], plan: MaxRLConfig, seconds: Counter) -> list[Rollout]:
        began = time.perf_counter()
        found = judge(drafts, plan, self.verify, cache_dir=self.cache_dir, workers=self.workers)
        seconds[Metric.VERIFY_S] += time.perf_counter() - began
        return found

    def _next(self, waiting: deque[Future[list[Rollout]]], seconds: Counter) -> list[Rollout]:
        began = time.perf_counter()
        found = result_unless_stopped(waiting.popleft(), self.is_stopping)
        seconds[Metric.WAIT_S] += time.perf_counter() - began
        return found


def _thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=name)
