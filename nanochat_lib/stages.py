"""The stages (notebooks, parameters, needs) and `start_stage`, every notebook's first call.

A notebook calls `start_stage(name, globals())` in its third cell. Parameters are checked there even
when the notebook was started by plain papermill, which merely warns about an unknown one.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from nanochat_lib import provenance
from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.runs import REPORTS_DIR, Run, create_run, open_run

NOTEBOOK_PARAMETERS = ("profile", "run_id", "runs_dir", "overrides", "seed", "if_exists")
IF_EXISTS = ("resume", "replace", "error")


@dataclass(frozen=True)
class Stage:
    """One stage: its notebook, the config sections that decide it, and what it reads."""

    name: str
    notebook: str
    sections: tuple[str, ...]
    code: tuple[str, ...]  # folders whose source decides the result
    needs: tuple[str, ...] = ()  # stages whose artifacts must be there
    may_use: tuple[str, ...] = ()  # stages whose artifacts are used when there


_ONLY_WHERE = {"verify.cluster"}  # where work is done does not change what comes out
_MODEL_CODE = ("nanochat_lib/model", "nanochat_lib/train", "kernels")
_REPORTED = (
    "preprocess", "pretrain", "maxrl", "long_context", "evaluate", "publish", "kernels",
)  # fmt: skip
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "preprocess",
            "01_preprocess.ipynb",
            ("data", "verify", "model.vocab_size"),
            ("nanochat_lib/data", "nanochat_lib/rust"),
        ),
        Stage("pretrain", "02_pretrain.ipynb", ("model", "pretrain"), _MODEL_CODE, ("preprocess",)),
        Stage(
            "maxrl",
            "03_maxrl.ipynb",
            ("maxrl", "verify"),
            (*_MODEL_CODE, "nanochat_lib/rust"),
            ("preprocess", "pretrain"),
        ),
        Stage(
            "long_context",
            "04_long_context.ipynb",
            ("long_context",),
            _MODEL_CODE,
            ("preprocess", "pretrain"),
            ("maxrl",),
        ),
        Stage(
            "evaluate",
            "05_evaluate.ipynb",
            ("eval", "verify"),
            ("nanochat_lib/evals", "nanochat_lib/model", "nanochat_lib/rust", "kernels"),
            ("preprocess", "pretrain"),
            ("maxrl", "long_context"),
        ),
        Stage(
            "publish",
            "06_publish.ipynb",
            ("publish",),
            ("nanochat_lib/publish", "nanochat_lib/model"),
            ("pretrain",),
            ("maxrl", "long_context", "evaluate"),
        ),
        Stage("kernels", "07_kernels.ipynb", ("hardware",), ("kernels",)),
        Stage(
            "report",
            "08_report.ipynb",
            ("targets",),
            ("nanochat_lib/report",),
            (),
            _REPORTED,
        ),
    )
}


def start_stage(name: str, namespace: dict[str, Any]) -> tuple[Run, RunConfig]:
    """Check a notebook's parameters, open its run folder and mark the stage as running.

    Args:
        name: a key of `STAGES`.
        namespace: the notebook's `globals()`, from which the tagged parameters are read.

    Raises:
        WorkbenchError: an unknown parameter or key, a missing earlier stage, other parameters
            than those the stage was begun with, or a stage that is running elsewhere.
    """
    _reject_unknown_parameters(namespace)
    run, config = open_for(namespace)
    stage = STAGES[name]
    _require_inputs(run, stage)
    marker, parameters = stage_marker(run, stage)
    _settle_earlier_attempt(run, stage, parameters, namespace.get("if_exists", "resume"))
    run.begin_stage(name, marker=marker, parameters=parameters)
    return run, config


def open_for(namespace: dict[str, Any]) -> tuple[Run, RunConfig]:
    """Open (or make) the run that a notebook's parameters name, with their configuration."""
    given = {name: namespace[name] for name in NOTEBOOK_PARAMETERS if name in namespace}
    if given.get("if_exists", "resume") not in IF_EXISTS:
        raise WorkbenchError(f"if_exists is one of {IF_EXISTS}, found {given['if_exists']!r}.")
    overrides = dict(given.get("overrides") or {})
    if "seed" in given:
        overrides.setdefault("seed", given["seed"])
    config = load_profile(given.get("profile", "laptop"), overrides)
    runs_dir = Path(given.get("runs_dir") or REPORTS_DIR / "runs")
    run_id = given.get("run_id", "dev")
    if (runs_dir / str(run_id)).exists():
        return open_run(run_id, runs_dir, config), config
    return create_run(config, run_id, runs_dir), config


def stage_marker(run: Run, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Return the hash that decides whether a finished stage is still valid, and its parameters.

    The hash covers the stage's parameters, the markers of the stages it reads, and the source
    code that computes it.
    """
    parameters = stage_parameters(run.config, stage)
    used = [name for name in (*stage.needs, *stage.may_use) if run.stage_state(name)]
    inputs = {name: run.stage_state(name).get("marker", "") for name in used}
    content = json.dumps(
        [stage.name, parameters, inputs, provenance.code_hash(stage.code)], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest(), parameters


def stage_parameters(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """Return the resolved settings that decide a stage, with dotted names."""
    values: dict[str, Any] = {"seed": config.seed}
    for section in stage.sections:
        found: Any = config
        for part in section.split("."):
            found = getattr(found, part)
        if isinstance(found, BaseModel):
            values |= {f"{section}.{k}": v for k, v in found.model_dump(mode="json").items()}
        else:
            values[section] = found
    return {name: value for name, value in values.items() if name not in _ONLY_WHERE}


def parameter_table(config: RunConfig, stage: str) -> pl.DataFrame:
    """Return a stage's resolved parameters with their descriptions, for display."""
    rows = []
    for key, value in stage_parameters(config, STAGES[stage]).items():
        field = RunConfig.model_fields
        *sections, name = key.split(".")
        for section in sections:
            field = field[section].annotation.model_fields
        rows.append(
            {"parameter": key, "value": str(value), "meaning": field[name].description or ""}
        )
    return pl.DataFrame(rows, schema=dict.fromkeys(("parameter", "value", "meaning"), pl.String))


def latest_checkpoint(run: Run, *, before: str = "") -> tuple[str, Path]:
    """Return (stage, folder) of the run's latest finished model, from stages before `before`.

    Raises:
        WorkbenchError: the run has no finished model yet.
    """
    order = ["pretrain", "maxrl", "long_context"]
    candidates = order[: order.index(before)] if before else order
    for stage in reversed(candidates):
        folder = run.dir / "artifacts" / stage / "final"
        if folder.is_dir():
            return stage, folder
    raise WorkbenchError(
        f"Run {run.run_id} has no finished model. Run 02_pretrain.ipynb with this run_id first."
    )


def finished_checkpoints(run: Run) -> dict[str, Path]:
    """Return the finished models of a run by stage, in training order."""
    folders = {
        s: run.dir / "artifacts" / s / "final" for s in ("pretrain", "maxrl", "long_context")
    }
    return {stage: folder for stage, folder in folders.items() if folder.is_dir()}


def notebook_progress(run: Run, stage: str) -> Callable[[int, int, str], None]:
    """Return a progress callback for a notebook: one line that updates in place, and the file."""
    from IPython.display import display

    to_file = run.progress(stage)
    handle = display({"text/plain": f"{stage}: starting"}, raw=True, display_id=True)

    def report(done: int, total: int, text: str = "") -> None:
        to_file(done, total, text)
        if handle is not None:
            handle.update({"text/plain": f"{stage}: {done} of {total} {text}"}, raw=True)

    return report


def _reject_unknown_parameters(namespace: dict[str, Any]) -> None:
    """Compare the names papermill injected (its cell begins with `# Parameters`) with ours."""
    for source in namespace.get("In", ()):
        if not source.startswith("# Parameters"):
            continue
        assigned = [
            target.id
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        check_notebook_parameters(assigned)


def check_notebook_parameters(names: list[str]) -> None:
    """Refuse a parameter that no notebook has, naming the nearest valid one."""
    for name in names:
        if name not in NOTEBOOK_PARAMETERS:
            raise WorkbenchError(
                f"Notebooks have no parameter {name!r}.{nearest(name, NOTEBOOK_PARAMETERS)} "
                "Settings of a stage go into overrides, e.g. {'pretrain.total_steps': 20}."
            )


def _require_inputs(run: Run, stage: Stage) -> None:
    for name in stage.needs:
        if run.stage_state(name).get("status") != "completed":
            raise WorkbenchError(
                f"Stage {stage.name} reads what stage {name} makes, and run {run.run_id!r} has "
                f"not completed it. Run notebooks/{STAGES[name].notebook} with the same run_id "
                "first, or all stages with `nanochat run`."
            )


def _settle_earlier_attempt(
    run: Run, stage: Stage, parameters: dict[str, Any], if_exists: str
) -> None:
    """Continue, replace or refuse a stage that this run already has."""
    earlier = run.stage_state(stage.name)
    if not earlier:
        return
    if if_exists == "replace":
        run.clear_stage(stage.name)
        return
    if if_exists == "error":
        raise WorkbenchError(
            f"Run {run.run_id!r} already has stage {stage.name} ({earlier['status']}). Use "
            "another run_id, or if_exists='resume' or 'replace'."
        )
    before = earlier.get("parameters", {})
    changed = [k for k in {**before, **parameters} if before.get(k) != parameters.get(k)]
    if changed:
        listed = ", ".join(f"{k}: {before.get(k)} -> {parameters.get(k)}" for k in changed[:6])
        raise WorkbenchError(
            f"Stage {stage.name} of run {run.run_id!r} was begun with other parameters "
            f"({listed}). Use another run_id, or if_exists='replace' to do it anew."
        )
