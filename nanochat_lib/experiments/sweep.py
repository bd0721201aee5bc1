"""Run the points of a sweep, several at a time, each in a process of its own.

Every point is an ordinary run folder. What is done is read from those folders, so a sweep that was
killed goes on with the same call, finished points are skipped, and a point that fails is recorded
while the others go on. `reports/sweeps/<name>/sweep.json` holds the sweep and its points.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.notes import TAG, write_notes
from nanochat_lib.experiments.point import open_or_create
from nanochat_lib.experiments.sharing import adopt_stage, shared_stages, stage_keys
from nanochat_lib.experiments.sweep_spec import (
    Point,
    SweepSpec,
    make_spec,
    point_stages,
    sweep_points,
)
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.pipeline import PipelineInterrupted, is_done
from nanochat_lib.runs import Run, read_run_json, status_of, write_atomic
from nanochat_lib.stages import STAGES

JOB_GB = 1.5  # memory that a point of the laptop profile needs, with its notebook's kernel
WORKER = (sys.executable, "-m", "nanochat_lib.experiments.point")
_THREAD_LIMITS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class PointResult:
    """How a point ended: completed, failed or interrupted, with the reason."""

    point: Point
    status: str
    error: str = ""
    seconds: float = 0.0
    was_done: bool = False  # before this call


@dataclass(frozen=True)
class Crew:
    """How the machine is divided: points at a time, CPU threads of each, one GPU each."""

    jobs: int
    threads: int
    gpus: int = 0


OnPoint = Callable[[PointResult, int, int], None]  # result, how many ended, of how many


def divide_machine(spec: SweepSpec, n_points: int) -> Crew:
    """Return how many points run at a time: by GPUs where points use them, else cores and memory.

    Threads that share cores wait for each other, so jobs x threads never exceeds the cores.
    """
    machine = detect_machine()
    wants_gpu = load_profile(spec.profile, spec.base).hardware.n_gpus > 0
    gpus = len(machine.gpus) if wants_gpu else 0
    threads = min(spec.threads or max(1, machine.cores // max(n_points, 1)), machine.cores)
    fit = min(machine.cores // threads, int(machine.memory_available_gb / JOB_GB) or 1)
    return Crew(max(1, min(n_points, spec.jobs or gpus or fit)), threads, gpus)


def run_sweep(
    spec: SweepSpec,
    runs_dir: Path,
    *,
    on_point: OnPoint = lambda *_: None,
    worker: Sequence[str] = WORKER,
) -> list[PointResult]:
    """Run what is not done yet of a sweep and return how every point ended, in its order.

    Args:
        spec: from `read_sweep` or `make_spec`.
        runs_dir: folder of the run folders.
        on_point: called as points end, from the thread that ran one; one call at a time.
        worker: command that runs one point; see `point.py` for what it is told.

    Raises:
        WorkbenchError: a point that cannot be, or the sweep is being run elsewhere.
        PipelineInterrupted: Ctrl-C; running points have saved their state, the call can be
            repeated.
    """
    points = sweep_points(spec)
    folder = sweep_folder(spec.name, runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(folder, spec.name):
        write_atomic(folder / "sweep.json", json.dumps(_described(spec, points), indent=1))
        crew = divide_machine(spec, len(points))
        return _Sweep(spec, points, runs_dir, crew, tuple(worker), on_point).run()


def point_tags(spec: SweepSpec, point: Point) -> list[str]:
    """Return a point's tags: its sweep, and its settings as far as they make tags."""
    settings = (f"{key.split('.')[-1]}:{value}" for key, value in point.swept.items())
    return [f"sweep:{spec.name}"[:40], *(tag for tag in settings if TAG.fullmatch(tag))]


def load_sweep(folder: Path) -> tuple[SweepSpec, list[Point]]:
    """Return a sweep and its points as they were last run.

    Raises:
        WorkbenchError: there is no such sweep, or its file is damaged.
    """
    path = folder / "sweep.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return make_spec(found["spec"], str(path)), [Point(**one) for one in found["points"]]
    except FileNotFoundError:
        known = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/sweep.json")))
        raise WorkbenchError(
            f"There is no sweep {folder.name!r} in {folder.parent}. Known: {known or 'none'}."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path} is damaged ({error}); run the sweep again.") from error


def sweep_folder(name: str, runs_dir: Path) -> Path:
    """Return the folder of a sweep, which may not exist yet."""
    return runs_dir.parent / "sweeps" / name


@dataclass
class _Sweep:
    """The state of one call of `run_sweep`."""

    spec: SweepSpec
    points: list[Point]
    runs_dir: Path
    crew: Crew
    worker: tuple[str, ...]
    on_point: OnPoint
    configs: dict[str, RunConfig] = field(default_factory=dict)  # by run id, as the next two
    stages: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[str, dict[str, str]] = field(default_factory=dict)  # stage -> key
    stopping: threading.Event = field(default_factory=threading.Event)
    children: set[subprocess.Popen] = field(default_factory=set)
    guard: threading.Lock = field(default_factory=threading.Lock)
    locks: dict[str, threading.Lock] = field(default_factory=dict)  # of shared stages, by key
    donors: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    slots: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    n_ended: int = 0

    def prepare(self) -> None:
        """Work out every point's configuration, stages, and which of them it shares."""
        for point in self.points:
            config = load_profile(self.spec.profile, self._settings(point))
            self.configs[point.run_id] = config
            self.stages[point.run_id] = point_stages(self.spec, config)
        keys = [stage_keys(self.configs[i], stages) for i, stages in self.stages.items()]
        self.shared = dict(zip(self.stages, shared_stages(keys), strict=True))
        self.locks = {key: threading.Lock() for s in self.shared.values() for key in s.values()}
        for slot in range(self.crew.jobs):
            self.slots.put(slot)
        for point in self.points:
            self._offer(point)

    def run(self) -> list[PointResult]:
        """Run the points in a pool of threads, each waiting for a process."""
        self.prepare()
        with ThreadPoolExecutor(self.crew.jobs) as pool:
            futures = {p.run_id: pool.submit(self._one, p) for p in self._in_turn()}
            try:
                results = {run_id: future.result() for run_id, future in futures.items()}
            except KeyboardInterrupt:
                self._stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise PipelineInterrupted(
                    f"Sweep {self.spec.name} stopped; the same call goes on."
                ) from None
        return [results[point.run_id] for point in self.points]

    def _settings(self, point: Point) -> dict[str, Any]:
        """Return a point's settings with its share of the cores, unless the sweep varies that."""
        return {"hardware.cpu_threads": self.crew.threads, **point.overrides}

    def _in_turn(self) -> list[Point]:
        """Return the points so that those with different first stages come first.

        Points that share one would only wait for each other.
        """
        seen: dict[str, int] = {}
        turns = []
        for point in self.points:
            first = next(iter(self.shared[point.run_id].values()), point.run_id)
            seen[first] = seen.get(first, -1) + 1
            turns.append(seen[first])
        return [p for _, p in sorted(zip(turns, self.points, strict=True), key=lambda one: one[0])]

    def _one(self, point: Point) -> PointResult:
        """Run one point; what goes wrong with it is its result."""
        began, slot = time.monotonic(), self.slots.get()
        try:
            if self._is_complete(point):
                result = PointResult(point, "completed", was_done=True)
            else:
                status, error = self._stages_of(point, slot)
                result = PointResult(point, status, error, time.monotonic() - began)
        except (WorkbenchError, OSError) as error:
            result = PointResult(point, "failed", str(error), time.monotonic() - began)
        finally:
            self.slots.put(slot)
        with self.guard:
            self.n_ended += 1
            self.on_point(result, self.n_ended, len(self.points))
        return result

    def _stages_of(self, point: Point, slot: int) -> tuple[str, str]:
        self._wait_for_another(point)
        run = open_or_create(point.run_id, self.runs_dir, self.configs[point.run_id])
        write_notes(run.dir, add_tags=point_tags(self.spec, point))
        names = self.stages[point.run_id]
        for stage, key in self.shared[point.run_id].items():
            with self.locks[key]:
                if is_done(run, STAGES[stage]):
                    continue
                if key in self.donors:
                    adopt_stage(self.donors[key], run, stage)
                    continue
                if key in self.failures:
                    return "failed", self.failures[key]
                status, error = self._work(point, names[: names.index(stage) + 1], slot)
                if status == "failed":
                    self.failures[key] = f"as {point.run_id}, which shares stage {stage}: {error}"
                if status != "completed":
                    return status, error
                self.donors[key] = run.dir
        return self._work(point, names, slot)

    def _work(self, point: Point, stages: list[str], slot: int) -> tuple[str, str]:
        """Let a process do these stages of a point, and return how it ended."""
        request = {"run_id": point.run_id, "runs_dir": str(self.runs_dir), "parent": os.getpid(),
                   "profile": self.spec.profile, "overrides": self._settings(point),
                   "stages": stages}  # fmt: skip
        with (self.runs_dir / point.run_id / "sweep.log").open("ab") as log:
            with self.guard:
                if self.stopping.is_set():
                    return "interrupted", ""
                child = subprocess.Popen(
                    self.worker, stdin=subprocess.PIPE, stdout=log, stderr=log,
                    env=self._environment(slot), start_new_session=True,
                )  # fmt: skip
                self.children.add(child)
            child.communicate(json.dumps(request).encode())
            self.children.discard(child)
        if child.returncode == 0:
            return "completed", ""
        if child.returncode == 130:
            return "interrupted", ""
        return "failed", self._why(point, child.returncode)

    def _why(self, point: Point, code: int) -> str:
        """Return the stage's own error, or the last line the process wrote."""
        stages = read_run_json(self.runs_dir / point.run_id)["stages"].values()
        told = [stage["error"] for stage in stages if stage.get("error")]
        log = self.runs_dir / point.run_id / "sweep.log"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "no message")
        ended = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return told[-1] if told else f"its process was {ended}: {said}"

    def _environment(self, slot: int) -> dict[str, str]:
        found = os.environ | dict.fromkeys(_THREAD_LIMITS, str(self.crew.threads))
        if self.crew.gpus:
            found["CUDA_VISIBLE_DEVICES"] = str(slot % self.crew.gpus)
        return found

    def _is_complete(self, point: Point) -> bool:
        run = self._run_of(point)
        return run is not None and all(is_done(run, STAGES[s]) for s in self.stages[point.run_id])

    def _offer(self, point: Point) -> None:
        """Note which shared stages a point has from an earlier call."""
        run = self._run_of(point)
        for stage, key in self.shared[point.run_id].items():
            if run is not None and is_done(run, STAGES[stage]):
                self.donors.setdefault(key, run.dir)

    def _run_of(self, point: Point) -> Run | None:
        folder = self.runs_dir / point.run_id
        known = (folder / "run.json").exists()
        return Run(point.run_id, folder, self.configs[point.run_id]) if known else None

    def _wait_for_another(self, point: Point) -> None:
        """Wait while a process of a sweep that was killed still ends its stage."""
        folder = self.runs_dir / point.run_id
        while (folder / "run.json").exists() and not self.stopping.is_set():
            if status_of(read_run_json(folder)) != "running":
                return
            time.sleep(0.2)

    def _stop(self) -> None:
        with self.guard:
            self.stopping.set()
            for child in self.children:
                child.send_signal(signal.SIGTERM)


def _described(spec: SweepSpec, points: list[Point]) -> dict[str, Any]:
    return {"spec": spec.model_dump(mode="json"), "points": [asdict(point) for point in points]}


@contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold the sweep's lock, which its owner's death frees."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkbenchError(
                f"Sweep {name!r} is being run by another process. Wait for it, or stop it."
            ) from None
        yield
