"""Run folders: where a run keeps its configuration, environment, status, metrics and artifacts.

`reports/runs/<run_id>/` holds `run.json` (status, provenance), `metrics.jsonl` while a stage runs
and `metrics.parquet` afterwards, `artifacts/<stage>/`, executed `notebooks/` and HTML. Reports read
these files and nothing else. The status is written here, never taken from notebook metadata, which
says `completed` after a timeout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nanochat_lib import provenance
from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.control import forget_requests
from nanochat_lib.errors import WorkbenchError

if TYPE_CHECKING:  # training writes files with this module, and needs no data frames for it
    import polars as pl

REPORTS_DIR = PROJECT_ROOT / "reports"
RUN_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MIN_FREE_BYTES = 200 * 2**20
METRIC_SCHEMA = {
    "run_id": str,
    "stage": str,
    "step": int,
    "name": str,
    "value": float,
    "wall_s": float,
}


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never half of it."""
    write_binary(path, lambda file: file.write(text.encode("utf-8")))


def write_binary(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file so that a reader sees the old content or the new, never half of it.

    Args:
        write: gets the open file, e.g. a data frame's `write_parquet`.
    """
    with whole_file(path) as file:
        write(file)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to fill, which takes its place only when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """One run folder with the configuration it was opened with."""

    run_id: str
    dir: Path
    config: RunConfig

    def artifacts(self, stage: str) -> Path:
        """Return the artifact folder of a stage, made if need be."""
        folder = self.dir / "artifacts" / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def cache_dir(self) -> Path:
        """Return the folder of caches that all runs share (verdicts of the compiler)."""
        return self.dir.parent.parent / ".cache"

    def state(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return read_run_json(self.dir)

    def stage_state(self, stage: str) -> dict[str, Any]:
        """Return what run.json says of a stage; empty when it never started."""
        return self.state()["stages"].get(stage, {})

    def begin_stage(self, stage: str, *, marker: str, parameters: dict[str, Any]) -> None:
        """Mark a stage as running, with what identifies its inputs.

        Raises:
            WorkbenchError: another living process is running it, or the disk is nearly full.
        """
        require_free_space(self.dir)
        now = self.stage_state(stage)
        if now.get("status") == "running" and _is_other_living_process(now.get("pid", 0)):
            raise WorkbenchError(
                f"Stage {stage} of run {self.run_id} is being run by process {now['pid']}. "
                "Wait for it, stop it, or choose another run_id."
            )
        forget_requests(self.dir / "artifacts" / stage)
        self._update(
            stage,
            replace=True,
            status="running",
            started=_now(),
            pid=os.getpid(),
            marker=marker,
            parameters=parameters,
            seconds_before=now.get("seconds", 0.0) if now.get("marker") == marker else 0.0,
        )

    def end_stage(self, stage: str, status: str, error: str = "") -> None:
        """Record how a stage ended: `completed`, `failed` or `interrupted`; compact its metrics."""
        started = datetime.fromisoformat(self.stage_state(stage)["started"])
        seconds = (datetime.now(UTC) - started).total_seconds()
        total = round(seconds + self.stage_state(stage).get("seconds_before", 0.0), 1)
        self._update(stage, status=status, finished=_now(), seconds=total, error=error)
        self.compact_metrics()

    def clear_stage(self, stage: str) -> None:
        """Remove a stage's artifacts, metrics and status, before it is done anew."""
        shutil.rmtree(self.dir / "artifacts" / stage, ignore_errors=True)
        metrics = self.metrics()
        self._write_metrics(metrics.filter(metrics["stage"] != stage))
        state = self.state()
        state["stages"].pop(stage, None)
        write_atomic(self.dir / "run.json", json.dumps(state, indent=1))

    def logger(self, stage: str) -> Callable[[int, dict[str, float]], None]:
        """Return a function that appends metrics of a stage, one line per call, flushed at once.

        A step that is logged again (after a resume from an earlier checkpoint) replaces the first.
        """
        path = self.dir / "metrics.jsonl"
        started = time.monotonic()

        def log(step: int, values: dict[str, float]) -> None:
            row = {
                "stage": stage,
                "step": int(step),
                "wall_s": round(time.monotonic() - started, 3),
                "values": {str(name): float(value) for name, value in values.items()},
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

        _end_torn_line(path)
        return log

    def progress(self, stage: str) -> Callable[[int, int, str], None]:
        """Return a callback (done, total, text) that writes progress.json for the pipeline."""
        path, last = self.dir / "progress.json", [0.0]

        def report(done: int, total: int, text: str = "") -> None:
            if done < total and time.monotonic() - last[0] < 0.3:
                return
            last[0] = time.monotonic()
            path.write_text(
                json.dumps({"stage": stage, "done": done, "total": total, "text": text}),
                encoding="utf-8",
            )

        return report

    def metrics(self) -> pl.DataFrame:
        """Return all metric rows, the latest value of each (stage, step, name)."""
        return read_metrics(self.dir)

    def compact_metrics(self) -> None:
        """Move the lines of metrics.jsonl into metrics.parquet."""
        self._write_metrics(self.metrics())

    def _write_metrics(self, frame: pl.DataFrame) -> None:
        write_binary(self.dir / "metrics.parquet", frame.write_parquet)
        (self.dir / "metrics.jsonl").unlink(missing_ok=True)

    def _update(self, stage: str, *, replace: bool = False, **values: Any) -> None:
        state = self.state()
        before = {} if replace else state["stages"].get(stage, {})
        state["stages"][stage] = {**before, **values}
        if replace:
            state["config"] = self.config.model_dump(mode="json")
        write_atomic(self.dir / "run.json", json.dumps(state, indent=1))


def create_run(config: RunConfig, run_id: str, runs_dir: Path) -> Run:
    """Make a run folder and write its configuration and environment first.

    Raises:
        WorkbenchError: the id is taken or not usable as a folder name, or the disk is nearly full.
    """
    check_run_id(run_id)
    folder = runs_dir / run_id
    if folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise WorkbenchError(
            f"Run {run_id!r} exists already. Continue it with --resume, or choose another run id."
        )
    runs_dir.mkdir(parents=True, exist_ok=True)
    require_free_space(runs_dir)
    state = {
        "run_id": run_id,
        "created": _now(),
        "profile": config.profile,
        "config": config.model_dump(mode="json"),
        **provenance.environment(),
        "stages": {},
    }
    folder.mkdir(exist_ok=True)  # one without run.json was left by a kill at this very line
    write_atomic(folder / "run.json", json.dumps(state, indent=1))
    return Run(run_id, folder, config)


def open_run(run_id: str, runs_dir: Path, config: RunConfig | None = None) -> Run:
    """Open an existing run, with its own configuration unless another is given."""
    check_run_id(run_id)
    folder = runs_dir / run_id
    state = read_run_json(folder)
    return Run(run_id, folder, config or RunConfig.model_validate(state["config"]))


def check_run_id(run_id: str) -> None:
    """Refuse ids that are not plain folder names."""
    if not RUN_ID_PATTERN.fullmatch(run_id):
        raise WorkbenchError(
            f"Run id {run_id!r} is not usable: letters, digits, '.', '_' and '-', at most 64, "
            "beginning with a letter or digit."
        )


def require_free_space(folder: Path, n_bytes: int = MIN_FREE_BYTES) -> None:
    """Raise before work starts when the disk has no room for its results."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise WorkbenchError(
            f"No space left: {free / 2**20:.0f} MiB free at {folder}, a stage wants at least "
            f"{n_bytes / 2**20:.0f} MiB. Free some, or choose another runs_dir."
        )


def read_run_json(folder: Path) -> dict[str, Any]:
    """Return a run's state, or say what is wrong with the folder."""
    path = folder / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(p.parent.name for p in folder.parent.glob("*/run.json"))
        known = ", ".join(names[-8:]) or "none yet"
        raise WorkbenchError(
            f"There is no run {folder.name!r} in {folder.parent}. Runs there: {known}."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path} is damaged ({error}); the run cannot be opened.") from error


def read_metrics(folder: Path) -> pl.DataFrame:
    """Return the metric rows of a run folder; the last value of a (stage, step, name) wins."""
    import polars as pl

    frames = [pl.DataFrame(schema=METRIC_SCHEMA)]
    if (folder / "metrics.parquet").exists():
        frames.append(pl.read_parquet(folder / "metrics.parquet"))
    rows = _jsonl_rows(folder / "metrics.jsonl", folder.name)
    frames.append(pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row"))
    keys = ["stage", "step", "name"]
    return pl.concat(frames).unique(keys, keep="last", maintain_order=True).sort(keys)


def _jsonl_rows(path: Path, run_id: str) -> list[tuple]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the one line a SIGKILL tore; its step is logged again on resume
        rows += [
            (run_id, record["stage"], record["step"], name, value, record["wall_s"])
            for name, value in record["values"].items()
        ]
    return rows


def _end_torn_line(path: Path) -> None:
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def status_of(state: dict[str, Any]) -> str:
    """Return the status of a run from its stages; `interrupted` when its process is gone."""
    stages = state.get("stages", {}).values()
    found = [
        "interrupted"
        if stage["status"] == "running" and not _is_living(stage.get("pid", 0))
        else stage["status"]
        for stage in stages
    ]
    for status in ("running", "failed", "interrupted"):
        if status in found:
            return status
    return "completed" if found else "new"


def _is_living(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0


def _is_other_living_process(pid: int) -> bool:
    return pid != os.getpid() and _is_living(pid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
