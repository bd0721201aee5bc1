"""Whoever judges, the verdicts are those of this machine; a worker that dies costs time only."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sample_programs import sample_programs

from nanochat_lib.config import RunConfig, VerifyConfig, load_profile
from nanochat_lib.data import corpus
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.judging import Attempt, judge_attempts
from nanochat_lib.records import Level, Program, Task, Verdict, Verified
from nanochat_lib.rust.judging.batch import Unit
from nanochat_lib.rust.judging.desk import IN_FLIGHT_PER_WORKER, MAX_TRIES
from nanochat_lib.rust.judging.jobs import Job, judge_job, surroundings_here
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify, verify_stream
from nanochat_lib.stages import STAGES, stage_parameters
from nanochat_lib.train.rl import rollouts
from nanochat_lib.train.rl.rollouts import Draft

pytestmark = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
SMALL = VerifyConfig(batch_size=16)
TASK = Task("t/1", "fn f(x: u8) -> u8 {", "", "#[test] fn t() { assert_eq!(f(1), 1) }", "t")
FAKE_RUSTC = """#!/bin/sh
if [ "$1" = --print ]; then echo /nowhere; else
printf 'host: x86_64-unknown-linux-gnu\\nrelease: 1.99.0\\n'; fi
"""


@cache
def programs() -> list[Program]:
    return sample_programs(80, seed=11)


def _judged(found: list[Verified]) -> list[tuple]:
    return sorted((int(v.program_id), v.verdict, v.codes, v.n_tests) for v in found)


@cache
def here() -> list[tuple]:
    return _judged(verify(programs(), "test", config=SMALL))


def _processes(**options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"), **options)


def _with_one_killed(pids: list[int], **how: Any) -> list[Verified]:
    """Judge; when the first verdict is there and the rest is not, kill a worker by SIGKILL."""
    stream = verify_stream(programs(), "test", config=how.pop("config", SMALL), **how)
    found = [next(stream)]
    os.kill(pids[0], signal.SIGKILL)
    return found + list(stream)


def test_a_pool_of_threads_gives_the_same_verdicts() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert _judged(verify(programs(), "test", config=SMALL, executor=pool)) == here()
        assert pool.submit(int, "1").result() == 1, "the pool stays open for its owner"


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_verdicts() -> None:
    with _processes() as pool:
        assert _judged(verify(programs(), "test", config=SMALL, executor=pool)) == here()


def test_a_killed_process_of_a_pool_costs_no_verdict() -> None:
    with _processes() as pool:
        pool.submit(int).result()
        found = _with_one_killed(list(pool._processes), executor=pool)
    assert _judged(found) == here()
    assert not any(one.verdict is Verdict.UNJUDGED for one in found)


class Watched(Executor):
    """Threads that count how many jobs are in flight."""

    def __init__(self) -> None:
        self.pool, self.futures, self.most = ThreadPoolExecutor(1), [], 0
        self._max_workers = 1

    def submit(self, function, /, *arguments):
        future = self.pool.submit(function, *arguments)
        self.futures = [one for one in self.futures if not one.done()] + [future]
        self.most = max(self.most, len(self.futures))
        return future


def test_only_a_few_batches_per_worker_are_in_flight() -> None:
    watched = Watched()
    many = [Program(str(i), f"fn f() -> u8 {{ {i} % 7 }}") for i in range(160)]
    verify(many, "check", config=VerifyConfig(batch_size=8), executor=watched)
    watched.pool.shutdown()
    assert 1 < watched.most <= IN_FLIGHT_PER_WORKER + 1


def test_leaving_ends_what_runs_and_keeps_what_is_judged(tmp_path: Path) -> None:
    endless = Program("endless", "fn main() { loop {} }")
    config = VerifyConfig(run_cpu_s=300, batch_size=16)
    quick, loop = programs()[:17], [endless]
    stream = verify_stream([*quick, *loop], "test", config=config, workers=2, cache_dir=tmp_path)
    found = [next(stream)]
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 20
    again = verify(quick, "test", config=config, workers=2, cache_dir=tmp_path)
    assert sum(one.cached for one in again) >= len(found)
    assert all(one.verdict is not Verdict.UNJUDGED for one in again)


class Dying(Executor):
    """An executor that takes jobs and always loses the worker."""

    n_taken = 0

    def submit(self, *_):
        self.n_taken += 1
        future: Future = Future()
        future.set_exception(BrokenExecutor("killed by signal 9"))
        return future


def test_a_batch_whose_worker_always_dies_is_unjudged_with_the_cause(tmp_path: Path) -> None:
    dying = Dying()
    found = verify(programs()[:10], "check", executor=dying, cache_dir=tmp_path)
    assert dying.n_taken == MAX_TRIES
    assert {one.verdict for one in found} == {Verdict.UNJUDGED}
    assert "worker died, 3 times: killed by signal 9" in found[0].detail
    assert not any(one.cached for one in verify(programs()[:10], "check", cache_dir=tmp_path))


def test_a_job_carries_no_path_of_this_machine() -> None:
    unit = Unit(0, Program("p", "fn main() {}"), policy_of("fn main() {}"))
    job = Job((unit,), Level.TEST, VerifyConfig(), surroundings_here())
    sent, toolchain = pickle.dumps(job), find_toolchain()
    for path in (toolchain.sysroot, toolchain.rustc, Path.home(), Path.cwd()):
        assert str(path).encode() not in sent
    answer = pickle.loads(pickle.dumps(judge_job(pickle.loads(sent))))
    assert answer.verdicts[0].verdict is Verdict.PASSED


def _find_another_rustc(folder: str) -> None:
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def fake_rustc(tmp_path: Path) -> str:
    """Return a folder with a compiler that claims to be another version."""
    script = tmp_path / "rustc"
    script.write_text(FAKE_RUSTC)
    script.chmod(0o755)
    return str(tmp_path)


def test_a_worker_with_another_compiler_is_refused(fake_rustc: str) -> None:
    with (
        _processes(initializer=_find_another_rustc, initargs=(fake_rustc,)) as pool,
        pytest.raises(WorkbenchError, match=r"expected rustc .* found rustc 1\.99\.0"),
    ):
        verify(programs(), "test", executor=pool)


def _judge_corpus(config: RunConfig) -> object:
    return corpus._judge(corpus.Work(config, Path()), programs(), [Level.CHECK] * 80, "text")


def _judge_rollouts(config: RunConfig) -> object:
    draft = Draft(TASK, 0, (), (), "\n    x\n}", 0.0)
    return rollouts.judge([draft], config.maxrl, config.verify, cache_dir=None)


@pytest.mark.parametrize(
    "judge",
    [
        _judge_corpus,
        _judge_rollouts,
        lambda config: judge_attempts([Attempt(TASK, "\n    x\n}")], config),
    ],
    ids=["preprocess", "maxrl", "evaluate"],
)
def test_every_stage_judges_on_the_configured_cluster(
    judge: Callable[[RunConfig], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Client:
        """A cluster of threads."""

        status, scheduler = "running", None

        def get_executor(self, **_):
            asked.append("executor")
            pool = ThreadPoolExecutor(2)
            pool._client = self
            return pool

        def nthreads(self):
            return {"tcp://a": 1, "tcp://b": 1}

    monkeypatch.setattr("nanochat_lib.rust.judging.crew.cluster_client", lambda _: Client())
    assert judge(load_profile("laptop", {"verify.cluster": "tcp://head:8786"}))
    assert asked == ["executor"]


def test_the_cluster_decides_where_and_never_what() -> None:
    near, far = (load_profile("laptop", {"verify.cluster": one}) for one in ("", "tcp://a:8786"))
    for stage in STAGES.values():
        assert stage_parameters(near, stage) == stage_parameters(far, stage)


# --- Dask ---------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Return a Dask cluster of two worker processes."""
    with _local_cluster() as running:
        yield running


def _local_cluster(**options: Any) -> Any:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL",
        **options,
    )  # fmt: skip


def _on(cluster: Any) -> VerifyConfig:
    return VerifyConfig(cluster=cluster.scheduler_address, batch_size=16)


def test_a_cluster_gives_the_same_verdicts_when_a_worker_is_killed(cluster: Any) -> None:
    verify(programs()[:1], "check", config=_on(cluster))  # connects
    pids = [worker.pid for worker in cluster.workers.values()]
    found = _with_one_killed(pids, config=_on(cluster))
    assert _judged(found) == here()


def test_the_cache_stays_here_and_serves_every_executor(cluster: Any, tmp_path: Path) -> None:
    far = verify(programs(), "test", config=_on(cluster), cache_dir=tmp_path)
    near = verify(programs(), "test", config=SMALL, cache_dir=tmp_path)
    assert _judged(far) == _judged(near) == here()
    assert not any(one.cached for one in far)
    assert all(one.cached for one in near)


def test_a_cluster_that_loses_its_workers_is_an_error_not_a_hang(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat_lib.rust.judging.desk._LOOK_AT_WORKERS_S", 0.5)
    stream = verify_stream(programs(), "test", config=_on(cluster))
    next(stream)
    cluster.scale(0)
    with pytest.raises(WorkbenchError, match="has no workers"):
        list(stream)
    with pytest.raises(WorkbenchError, match="has no workers"):
        verify(programs(), "test", config=_on(cluster))


def test_a_lost_scheduler_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_lib.rust.judging.crew._CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr("nanochat_lib.rust.judging.desk._LOOK_AT_WORKERS_S", 0.5)
    with _local_cluster() as cluster:
        stream = verify_stream(programs(), "test", config=_on(cluster))
        next(stream)
    with pytest.raises(WorkbenchError, match="connection to the cluster at .* was lost"):
        list(stream)


def test_a_cluster_with_another_compiler_is_refused_at_once(fake_rustc: str) -> None:
    path = {"PATH": f"{fake_rustc}:{os.environ['PATH']}"}
    with (
        _local_cluster(env=path) as other,
        pytest.raises(WorkbenchError, match=r"2 of 2 workers .* rustc 1\.99\.0"),
    ):
        verify(programs(), "test", config=_on(other))


def test_an_unreachable_cluster_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    monkeypatch.setattr("nanochat_lib.rust.judging.crew._CONNECT_TIMEOUT_S", 1)
    with pytest.raises(WorkbenchError, match=r"127\.0\.0\.1:1 cannot be reached"):
        verify(programs(), "test", config=VerifyConfig(cluster="tcp://127.0.0.1:1"))


def test_without_dask_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(WorkbenchError, match=r"pip install \.\[cluster\]"):
        verify(programs(), "test", config=VerifyConfig(cluster="tcp://127.0.0.1:2"))


def test_an_address_is_checked_before_anything_starts() -> None:
    with pytest.raises(WorkbenchError, match=r"verify\.cluster.*tcp://10\.0\.0\.5:8786"):
        load_profile("laptop", {"verify.cluster": "my cluster"})
    assert load_profile("laptop", {"verify.cluster": "node7:8786"}).verify.cluster == "node7:8786"
