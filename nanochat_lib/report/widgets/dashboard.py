"""The live dashboard: one layout over one figure, for a run that works here, elsewhere or no more.

In: a notebook's parameters and what each stage does (`background.Work`). Everything shown comes
from the run folder: `metrics.*` as they grow, `run.json`, `progress.json`; so a run that another
process does looks the same, and stop, pause and checkpoint reach it through `control.py`. A watcher
thread redraws what changed, and rests from drawing eighty times as long as that took: with its
looks at the status between, at most 2 % of one core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import polars as pl

from nanochat_lib import control
from nanochat_lib.config import load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.registry import list_runs
from nanochat_lib.report.results import COLUMNS, results_table
from nanochat_lib.report.run_data import read_json
from nanochat_lib.report.widgets import status
from nanochat_lib.report.widgets.background import Background, Work
from nanochat_lib.report.widgets.form import SettingsForm
from nanochat_lib.report.widgets.look import framed, row
from nanochat_lib.report.widgets.panels import Panels
from nanochat_lib.report.widgets.status import Situation
from nanochat_lib.report.widgets.tail import MetricTail
from nanochat_lib.runs import REPORTS_DIR, check_run_id
from nanochat_lib.stages import STAGES

LOOK_S = 0.25  # at most four times a second
REST = 80  # times as long as a redraw took, until the next
IDLE_S = 1.0  # between looks at a run that nobody works on


class Dashboard:
    """Watches one run folder at a time and drives the stages it was given."""

    def __init__(self, parameters: Mapping[str, Any], works: Mapping[str, Work]) -> None:
        """Make the widgets.

        Args:
            parameters: a notebook's `globals()`; profile, run_id, runs_dir, overrides and seed.
            works: stage -> what it does, called with (run, config, log=, stop=, progress=).
        """
        self.profile = parameters.get("profile", "laptop")
        self.given = dict(parameters.get("overrides") or {})
        self.given.setdefault("seed", parameters.get("seed", 0))
        self.runs_dir = Path(parameters.get("runs_dir") or REPORTS_DIR / "runs")
        self.background = Background(works, on_end=self._look_now)
        self.panels: Panels | None = None
        self._wake, self._closed, self._is_dark = threading.Event(), threading.Event(), False
        self._lock, self._was_running = threading.RLock(), ""
        self.run_dir = self.runs_dir  # of the chosen run, which may not exist yet: see _attach
        self._make_controls(str(parameters.get("run_id", "dev")), list(works))
        self._attach()
        self._watcher = threading.Thread(target=self._watch, name="dashboard", daemon=True)
        self._watcher.start()

    # --- What is on the screen ------------------------------------------------------------------

    def _make_controls(self, run_id: str, stages: list[str]) -> None:
        narrow = {"width": "130px"}
        self.run_id = widgets.Combobox(
            value=run_id, description="run", continuous_update=False, layout={"width": "230px"},
            style={"description_width": "36px"}, placeholder="a run, or a new name",
        )  # fmt: skip
        self.stage = widgets.Dropdown(
            options=stages, value="pretrain" if "pretrain" in stages else stages[0],
            description="stage", layout={"width": "190px"}, style={"description_width": "42px"},
        )  # fmt: skip
        self.start = widgets.Button(
            description="Start", icon="play", button_style="primary", layout=narrow
        )
        self.pause = widgets.Button(description="Pause", icon="pause", layout=narrow)
        self.stop = widgets.Button(description="Stop", icon="stop", layout=narrow)
        self.checkpoint = widgets.Button(
            description="Checkpoint now", icon="save", layout={"width": "150px"}
        )
        self.anew = widgets.Checkbox(description="start anew", indent=False, layout=narrow)
        self.anew.tooltip = "throw away what this run has of the stage, instead of continuing it"
        self.head, self.said = widgets.HTML(), widgets.HTML()
        self.form = widgets.VBox()
        self.figure = widgets.VBox(layout={"width": "100%"})
        settings = widgets.Accordion([self.form], titles=("settings of the stage",))
        buttons = row(self.start, self.pause, self.stop, self.checkpoint, self.anew)
        self.widget = framed(
            row(self.run_id, self.stage), self.head, buttons, self.said, settings, self.figure,
            on_theme=self._set_dark,
        )  # fmt: skip
        for choice in (self.run_id, self.stage):
            choice.observe(lambda _: self._do(self._attach), "value")
        self.start.on_click(lambda _: self._do(self._start))
        self.stop.on_click(lambda _: self._do(self._stop))
        self.pause.on_click(lambda _: self._do(self._pause))
        self.checkpoint.on_click(lambda _: self._do(self._checkpoint))

    def _attach(self) -> str:
        """Follow the run and the stage that are chosen now."""
        check_run_id(self.run_id.value)
        with self._lock:
            self.run_dir = self.runs_dir / self.run_id.value
            self.run_id.options = tuple(list_runs(self.runs_dir)["run_id"].head(30))
            self.tail = MetricTail(self.run_dir)
            sections = STAGES[self.stage.value].sections
            self.settings = SettingsForm(self.profile, self.given, sections, self._wake.set)
            self.form.children = [self.settings.widget]
            self._draw_anew()
        self.refresh()
        return ""

    def _draw_anew(self) -> None:
        """Make a figure for the loops of this model, unless the one on the screen fits."""
        shape = Panels.shape_of(self.situation().config or self.settings.base.model_dump())
        if self.panels is None or self.panels.shape != shape:
            self.panels = Panels(*shape)
            self.panels.set_dark(self._is_dark)
            self.figure.children = [self.panels.figure]
        self.panels.forget()

    def _set_dark(self, is_dark: bool) -> None:
        with self._lock:
            self._is_dark = is_dark
            self.panels.set_dark(is_dark)

    # --- What the buttons do --------------------------------------------------------------------

    def _do(self, action: Any) -> None:
        """Do what a button asks; a problem the user can mend is shown, not raised."""
        try:
            self.said.value = status.told(action() or "")
        except WorkbenchError as error:
            self.said.value = status.told(str(error), is_problem=True)
        self._wake.set()

    def _start(self) -> str:
        check_run_id(self.run_id.value)
        if not self.settings.is_valid:
            raise WorkbenchError(f"Nothing was started: {self.settings.error}")
        parameters = {
            "profile": self.profile,
            "run_id": self.run_id.value,
            "runs_dir": str(self.runs_dir),
            "overrides": self.settings.overrides,
            "if_exists": "replace" if self.anew.value else "resume",
        }
        load_profile(self.profile, parameters["overrides"])
        self.background.start(self.stage.value, parameters)
        return f"Started {self.stage.value}; the kernel stays free."

    def _stop(self) -> str:
        if self.is_ours:
            self.background.stop.set()
        else:
            control.ask(self.stage_dir, control.STOP)
        return "Stopping: a checkpoint is written after this step."

    def _pause(self) -> str:
        if not control.take_back(self.stage_dir, control.PAUSE):
            control.ask(self.stage_dir, control.PAUSE)
        return ""

    def _checkpoint(self) -> str:
        control.ask(self.stage_dir, control.CHECKPOINT)
        return "A checkpoint will be written after this step."

    # --- Watching -------------------------------------------------------------------------------

    @property
    def stage_dir(self) -> Path:
        """Return the artifact folder of the stage at work, else of the chosen one."""
        return self.run_dir / "artifacts" / (self.situation().running or self.stage.value)

    @property
    def is_ours(self) -> bool:
        """Return whether this dashboard's own thread works on the chosen run."""
        return self.background.is_alive and self.background.run_id == self.run_dir.name

    def situation(self) -> Situation:
        """Return what the run folder says now."""
        return status.look(self.run_dir, self.stage.value, is_ours=self.is_ours)

    def refresh(self, *, with_figure: bool = True) -> Situation:
        """Bring what is on the screen up to date with the run folder, and return what it says."""
        with self._lock:
            self.tail.read()
            now = self.situation()
            if now.config and self.panels.shape != Panels.shape_of(now.config):
                self._draw_anew()
            if with_figure:
                self.panels.draw(self.tail, self.stage.value)
            _set(self.head, "value", status.head_html(now, self.tail))
            if self._was_running and not now.running:
                self.said.value = ""  # what was asked for has happened
            self._was_running = now.running
            self._enable(now)
            if self.background.error:
                self.said.value = status.told(self.background.error, is_problem=True)
                self.background.error = ""
            return now

    def _enable(self, now: Situation) -> None:
        listens = now.running in status.LISTENS
        busy = bool(now.running) or self.background.is_alive
        _set(self.start, "disabled", busy or not self.settings.is_valid)
        _set(self.start, "description", "Continue" if now.can_continue else "Start")
        _set(self.stop, "disabled", not (now.running and (listens or self.is_ours)))
        _set(self.pause, "disabled", not listens)
        _set(self.checkpoint, "disabled", not listens)
        _set(self.pause, "description", "Go on" if now.pause else "Pause")
        _set(self.pause, "icon", "play" if now.pause else "pause")

    def _watch(self) -> None:
        draw_at, rest = 0.0, LOOK_S
        while not self._closed.is_set() and self.widget.comm is not None:
            self._wake.wait(rest)
            self._wake.clear()
            is_due, began = time.monotonic() >= draw_at, time.thread_time()
            now = self.refresh(with_figure=is_due)
            if is_due:
                draw_at = time.monotonic() + REST * (time.thread_time() - began)
            rest = LOOK_S if now.running or self.background.is_alive else IDLE_S

    def _look_now(self) -> None:
        self._wake.set()

    def results(self) -> pl.DataFrame:
        """Return the result rows of the stages that the chosen run has completed."""
        stages = (read_json(self.run_dir / "run.json") or {"stages": {}})["stages"]
        done = [name for name, stage in stages.items() if stage["status"] == "completed"]
        schema = dict.fromkeys(COLUMNS, pl.String)
        return pl.concat(
            [pl.DataFrame(schema=schema), *(results_table(self.run_dir, name) for name in done)]
        )

    def close(self) -> None:
        """Stop watching, and the stage that was started here."""
        self._closed.set()
        self._wake.set()
        self.background.end()


def _set(widget: widgets.Widget, name: str, value: Any) -> None:
    """Set a trait only when it changes, so that nothing is sent to the page for nothing."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)
