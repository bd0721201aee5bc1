"""All stages in order, headless: papermill runs the notebooks, this module keeps the status.

papermill runs in a worker thread, so that the main thread can answer Ctrl-C and SIGTERM: it sends
SIGINT to the stage's kernel (whose process id is in run.json), waits until the stage has written
its checkpoint, and records `interrupted`. A second signal kills the kernel.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.runs import Run
from nanochat_lib.stages import STAGES, Stage, stage_marker

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
# Seconds of each stage on the laptop profile, for the first estimate of the time left; the times of
# the stages done so far then scale the rest.
TYPICAL_SECONDS = {
    "preprocess": 90, "pretrain": 270, "maxrl": 90, "long_context": 40,
    "evaluate": 60, "publish": 15, "kernels": 30, "report": 15,
}  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageProgress:
    """What the command line shows: stage n of N, its own progress, and the seconds left."""

    stage: str
    number: int
    n_stages: int
    done: int
    total: int
    text: str
    eta_s: float
    status: str  # "running" | "completed" | "skipped"


OnProgress = Callable[[StageProgress], None]


class PipelineInterrupted(Exception):
    """The user stopped the run; its folder says `interrupted` and can be resumed."""


def choose_stages(names: Iterable[str], config: RunConfig) -> list[Stage]:
    """Return the named stages in pipeline order; all that the profile asks for when none is named.

    A profile whose long context is no longer than its pre-training length has no stage 4.
    """
    wanted = list(names)
    for name in wanted:
        if name not in STAGES:
            raise WorkbenchError(f"There is no stage {name!r}.{nearest(name, STAGES)}")
    extends = config.long_context.seq_len > config.model.max_seq_len
    asked = wanted or [name for name in STAGES if name != "long_context" or extends]
    return [stage for stage in STAGES.values() if stage.name in asked]


def run_pipeline(
    run: Run, stages: list[Stage], parameters: dict[str, Any], *, on_progress: OnProgress
) -> None:
    """Run stages one after another, skipping those whose marker says they are done.

    Args:
        run: an open run.
        stages: from `choose_stages`.
        parameters: notebook parameters (`profile`, `overrides`, ...), the same for every stage.

    Raises:
        PipelineInterrupted: Ctrl-C or SIGTERM, after the stage has saved its state.
        WorkbenchError: a stage failed; the text is the stage's own error.
    """
    (run.dir / "notebooks").mkdir(exist_ok=True)
    clock = _Clock(stages, on_progress)
    with _signals_as_event() as interrupted:
        for number, stage in enumerate(stages, 1):
            if is_done(run, stage):
                clock.tell(stage, number, status="skipped")
                continue
            _forget_outdated(run, stage)
            clock.tell(stage, number, status="running")
            _run_stage(run, stage, parameters, interrupted, partial(clock.poll, run, stage, number))
            clock.tell(stage, number, status="completed")


def is_done(run: Run, stage: Stage) -> bool:
    """Return whether a stage completed with the parameters, inputs and code of today."""
    state = run.stage_state(stage.name)
    return state.get("status") == "completed" and state["marker"] == stage_marker(run, stage)[0]


def _forget_outdated(run: Run, stage: Stage) -> None:
    """Drop a completed stage whose inputs or code changed; keep an interrupted one to resume."""
    if run.stage_state(stage.name).get("status") == "completed":
        log.info("stage %s: parameters, inputs or code changed; done anew", stage.name)
        run.clear_stage(stage.name)


def _run_stage(
    run: Run,
    stage: Stage,
    parameters: dict[str, Any],
    interrupted: threading.Event,
    on_poll: Callable[[], None],
) -> None:
    (run.dir / "progress.json").unlink(missing_ok=True)
    failure: list[BaseException] = []
    began = time.time()
    worker = threading.Thread(
        target=_execute, args=(run, stage, parameters, failure), name=f"stage-{stage.name}"
    )
    worker.start()
    signalled = 0.0
    while worker.is_alive():
        worker.join(0.3)
        on_poll()
        if interrupted.is_set() and worker.is_alive():
            kernel = _kernel_pid(run, stage, began)
            if kernel and not signalled:
                os.kill(kernel, signal.SIGINT)
                signalled = time.monotonic()
                interrupted.clear()
            elif kernel:
                os.kill(kernel, signal.SIGKILL)
    _settle(run, stage, failure, was_interrupted=bool(signalled) or interrupted.is_set())


def _execute(
    run: Run, stage: Stage, parameters: dict[str, Any], failure: list[BaseException]
) -> None:
    """Run a stage's notebook; what it raises is handed to the main thread."""
    try:
        execute_notebook(
            NOTEBOOK_DIR / stage.notebook,
            run.dir / "notebooks" / stage.notebook,
            {**parameters, "run_id": run.run_id, "runs_dir": str(run.dir.parent)},
        )
    except BaseException as error:  # the outermost loop of a stage: recorded, raised by _settle
        failure.append(error)


def execute_notebook(source: Path, executed: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook by papermill and write it, with its outputs, to `executed`.

    Raises:
        papermill.PapermillExecutionError: what a cell raised.
    """
    import papermill
    from traitlets.config import Config

    # ipc sockets in a folder of their own: no port is opened, and parallel runs cannot take each
    # other's (by default they are all called kernel-ipc-1 in the current folder)
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        ipc = {"transport": "ipc", "ip": f"{sockets}/s"}
        papermill.execute_notebook(
            source,
            executed,
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            store_widget_state=False,
            config=Config({"KernelManager": ipc, "AsyncKernelManager": ipc}),
        )


def _settle(run: Run, stage: Stage, failure: list[BaseException], *, was_interrupted: bool) -> None:
    """Write the status a stage deserves and raise what the user must see."""
    began = bool(run.stage_state(stage.name))
    if was_interrupted or (failure and _is_stop(failure[0])):
        if began and run.stage_state(stage.name)["status"] != "completed":
            run.end_stage(stage.name, "interrupted")
        raise PipelineInterrupted(
            f"Stopped in stage {stage.name}. Continue with: nanochat run --resume "
            f"--run-id {run.run_id}"
        )
    if failure:
        text = _error_text(failure[0])
        if began:
            run.end_stage(stage.name, "failed", error=text)
        notebook = run.dir / "notebooks" / stage.notebook
        raise WorkbenchError(
            f"Stage {stage.name} failed: {text}\nThe executed notebook shows where: {notebook}"
        ) from failure[0]
    if run.stage_state(stage.name).get("status") != "completed":
        run.end_stage(stage.name, "failed", error="the notebook ended without completing the stage")
        raise WorkbenchError(f"Notebook {stage.notebook} ended without completing its stage.")


def _is_stop(error: BaseException) -> bool:
    """Return whether the stage ended because somebody asked it to (see control.py)."""
    return getattr(error, "ename", "") == "KeyboardInterrupt"


def _error_text(error: BaseException) -> str:
    """Return the kernel's own message, without traceback and colours, when papermill knows it."""
    name, value = getattr(error, "ename", ""), getattr(error, "evalue", "")
    if name == "WorkbenchError":
        return value
    return f"{name}: {value}" if name else f"{type(error).__name__}: {error}"


def _kernel_pid(run: Run, stage: Stage, began: float) -> int:
    """Return the process id of the kernel that runs the stage now, 0 while it has not begun."""
    state = run.stage_state(stage.name)
    if state.get("status") != "running" or state.get("pid") == os.getpid():
        return 0
    started = datetime.fromisoformat(state["started"]).timestamp()
    return state["pid"] if started >= began - 1 else 0


class _signals_as_event:
    """Within the block, SIGINT and SIGTERM set an event instead of raising anywhere."""

    def __enter__(self) -> threading.Event:
        self.event = threading.Event()
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, lambda *_: self.event.set())
        return self.event

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Clock:
    """Estimate the time left from typical stage times, scaled by the stages done so far."""

    def __init__(self, stages: list[Stage], on_progress: OnProgress) -> None:
        self.stages = stages
        self.on_progress = on_progress
        self.took: dict[str, float] = {}
        self.began = time.monotonic()

    def tell(self, stage: Stage, number: int, *, status: str) -> None:
        if status == "running":
            self.began = time.monotonic()
        elif status == "completed":
            self.took[stage.name] = time.monotonic() - self.began
        fraction = 0.0 if status == "running" else 1.0
        self._send(stage, number, (0, 0, ""), fraction, status)

    def poll(self, run: Run, stage: Stage, number: int) -> None:
        try:
            found = json.loads((run.dir / "progress.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return
        done, total = found["done"], found["total"]
        self._send(stage, number, (done, total, found["text"]), done / max(total, 1), "running")

    def _send(
        self, stage: Stage, number: int, state: tuple[int, int, str], fraction: float, status: str
    ) -> None:
        done = sum(TYPICAL_SECONDS[name] for name in self.took)
        scale = sum(self.took.values()) / done if done else 1.0
        rest = sum(TYPICAL_SECONDS[s.name] for s in self.stages[number:])
        eta = scale * (rest + (1 - fraction) * TYPICAL_SECONDS[stage.name])
        self.on_progress(StageProgress(stage.name, number, len(self.stages), *state, eta, status))


def notebook_parameters(profile: str, overrides: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the parameters every stage notebook takes, for `run_pipeline`."""
    return {"profile": profile, "overrides": overrides, "seed": seed, "if_exists": "resume"}
