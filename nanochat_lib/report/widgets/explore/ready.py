"""A run to look at: the one that a notebook's parameters name, or a tiny one made in its place.

In: a notebook's parameters. Out: a `Found`. Explorers are opened before anything was trained, too;
then the real stages make a tiny run (`explore-tiny`, under a minute, once), and a sentence says so
and what to run for a real one.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.config import load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.pipeline import StageProgress, choose_stages, notebook_parameters, run_pipeline
from nanochat_lib.report.widgets.look import shown
from nanochat_lib.runs import REPORTS_DIR, Run, create_run, open_run
from nanochat_lib.stages import finished_checkpoints, latest_checkpoint

TINY_RUN = "explore-tiny"
TINY = {
    "model.vocab_size": 512, "model.n_layers": 1, "model.n_loops": 4, "model.d_ff": 512,
    "data.max_examples": 60, "data.tinyrust_examples": 600, "data.tinyrust_levels": [1, 2],
    "data.augment_per_example": 0, "pretrain.total_steps": 200, "pretrain.batch_size": 8,
    "pretrain.micro_batch_size": 8, "pretrain.seq_len": 64, "pretrain.gate_steps": 10,
    "pretrain.eval_every": 100, "pretrain.checkpoint_every": 200, "pretrain.compile": "off",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A run with a model."""

    run: Run
    stage: str  # that wrote the newest model
    checkpoint: Path
    note: str  # empty, or why this is not the run that was asked for

    def _repr_html_(self) -> str:
        note = f'<p class="nano-warn">{html.escape(self.note)}</p>' if self.note else ""
        text = f"Run <b>{html.escape(self.run.run_id)}</b>, model of stage {self.stage}."
        return shown(f"<p>{text}</p>{note}")

    def artifact(self, stage: str, name: str) -> Path:
        """Return the path of a file of a stage, which may not exist."""
        return self.run.dir / "artifacts" / stage / name


def find_model(parameters: Mapping[str, Any]) -> Found:
    """Return the run that `profile`, `run_id` and `runs_dir` name, or the tiny one.

    Args:
        parameters: a notebook's `globals()`.
    """
    runs_dir = Path(parameters.get("runs_dir") or REPORTS_DIR / "runs")
    wanted = str(parameters.get("run_id", "dev"))
    if (runs_dir / wanted / "run.json").is_file():
        run = open_run(wanted, runs_dir)
        if finished_checkpoints(run):
            return Found(run, *latest_checkpoint(run), "")
        why = f"Run {wanted!r} has no finished model yet"
    else:
        why = f"There is no run {wanted!r} yet"
    run = _tiny_run(str(parameters.get("profile", "laptop")), runs_dir)
    note = (
        f"{why}: run notebooks/02_pretrain.ipynb with run_id = {wanted!r}, or `make demo`. Until "
        "then this is a tiny model that was trained for some seconds: it shows how things work, "
        "not how good they get."
    )
    return Found(run, *latest_checkpoint(run), note)


def _tiny_run(profile: str, runs_dir: Path) -> Run:
    """Return the tiny run, made by the stages' own notebooks when it is not there."""
    config = load_profile(profile, TINY)
    exists = (runs_dir / TINY_RUN / "run.json").is_file()
    run = open_run(TINY_RUN, runs_dir, config) if exists else create_run(config, TINY_RUN, runs_dir)
    if finished_checkpoints(run):
        return open_run(TINY_RUN, runs_dir)
    stages = choose_stages(["preprocess", "pretrain"], config)
    parameters = notebook_parameters(profile, TINY, config.seed)
    run_pipeline(run, stages, parameters, on_progress=_progress())
    return run


def _progress() -> Any:
    """Return a callback that shows one line, updated in place."""
    from IPython.display import display

    text = "making a tiny run to look at"
    handle = display({"text/plain": text}, raw=True, display_id=True)

    def report(now: StageProgress) -> None:
        if handle is not None:
            step = f"{now.stage} {now.done} of {now.total} {now.text} {now.status}"
            handle.update({"text/plain": f"{text}: {step}"}, raw=True)

    return report


def first_tasks(found: Found, load_tasks: Any, n: int = 12) -> list[Any]:
    """Return a few TinyRust tasks of a run that training held out, one of each family.

    Args:
        load_tasks: `evals.tasks.load_tasks`.

    Raises:
        WorkbenchError: the run's stage 1 left no tasks.
    """
    path = found.artifact("preprocess", "tasks.jsonl")
    if not path.is_file():
        raise WorkbenchError(f"{path} is missing: run 01_preprocess.ipynb for this run again.")
    by_family = {task.family: task for task in load_tasks(path) if task.split != "train"}
    return list(by_family.values())[:n]
