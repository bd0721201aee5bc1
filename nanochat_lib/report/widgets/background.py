"""Run stages in a thread of this kernel, so that the kernel stays free and a button can stop them.

In: what each stage does, as plain callables (a notebook passes them: this package never imports
training), and a notebook's parameters. Out: the same run folder, status and metrics as the stage's
own notebook leaves. One thread at a time; it shares nothing with its watchers but the run folder.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import Run
from nanochat_lib.stages import STAGES, open_for, start_stage

# (run, config, log=..., stop=..., progress=...) -> anything
Work = Callable[..., object]
GOODBYE_S = 20  # a stage may take this long to write its checkpoint when the kernel ends


class Background:
    """The stages that one dashboard has started."""

    def __init__(self, works: Mapping[str, Work], on_end: Callable[[], None]) -> None:
        self.works, self._on_end = works, on_end
        self.stop = threading.Event()
        self.run_id = self.stage = self.error = ""
        self._thread: threading.Thread | None = None
        atexit.register(self.end)

    @property
    def is_alive(self) -> bool:
        """Return whether a stage is at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, stage: str, parameters: dict[str, Any]) -> None:
        """Begin a stage, and before it the stages it reads that this run has not completed.

        Args:
            stage: a key of `works`.
            parameters: as a notebook's: profile, run_id, runs_dir, overrides, seed, if_exists.

        Raises:
            WorkbenchError: a stage is at work already.
        """
        if self.is_alive:
            raise WorkbenchError(
                f"Stage {self.stage} of run {self.run_id!r} is at work: stop it, or wait for it."
            )
        self.stop.clear()
        self.run_id, self.stage, self.error = parameters["run_id"], stage, ""
        self._thread = threading.Thread(
            target=self._work, args=(stage, parameters), name=f"stage-{stage}", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Ask for a stop and wait for the checkpoint."""
        if self._thread is not None:
            self.stop.set()
            self._thread.join(GOODBYE_S)

    def _work(self, stage: str, parameters: dict[str, Any]) -> None:
        try:
            run, _ = open_for(parameters)
            for name in (*missing_stages(run, stage, self.works), stage):
                asked = parameters if name == stage else {**parameters, "if_exists": "resume"}
                self.stage = name
                self._one_stage(name, asked)
        except KeyboardInterrupt:
            pass  # asked for; the run folder says `interrupted`
        except WorkbenchError as error:
            self.error = str(error)
        except BaseException as error:  # the outermost loop of a stage: recorded, raised again
            self.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._on_end()

    def _one_stage(self, stage: str, parameters: dict[str, Any]) -> None:
        run, config = start_stage(stage, parameters)
        hooks = {"log": run.logger(stage), "progress": run.progress(stage), "stop": self.stop}
        status, error = "failed", ""
        try:
            self.works[stage](run, config, **hooks)
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            run.end_stage(stage, status, error=error)


def missing_stages(run: Run, stage: str, works: Mapping[str, Work]) -> Sequence[str]:
    """Return the stages to do first, in order: needed, not completed, and known how to do."""
    return [
        name
        for name in STAGES[stage].needs
        if name in works and run.stage_state(name).get("status") != "completed"
    ]
