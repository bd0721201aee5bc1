"""What the notebooks of `notebooks/experiments` call, and how one is run headless.

A notebook opens its study with its parameters, runs it and shows tables and figures; `run_notebook`
executes it by papermill and writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.config import PROJECT_ROOT
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.pipeline import execute_notebook
from nanochat_lib.report.pages.notebook import export_notebook
from nanochat_lib.runs import REPORTS_DIR
from nanochat_lib.studies.plan import STUDIES
from nanochat_lib.studies.points import Point, Progress, run_point, run_points, study_points
from nanochat_lib.studies.policies import policy_points, run_policy

NOTEBOOKS = PROJECT_ROOT / "notebooks" / "experiments"
STUDIES_DIR = REPORTS_DIR / "studies"


@dataclass(frozen=True)
class Opened:
    """The points of a study, some of which may be done, and what trains and measures one."""

    points: list[Point]
    data: Path
    measure: Callable[[Point, Path], None] = run_point

    def run(self, workers: int = 0, progress: Progress | None = None) -> None:
        """Train and measure what is not done yet; see `points.run_points`."""
        run_points(self.points, self.data, self.measure, workers=workers, progress=progress)


def open_study(
    name: str,
    data_run: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    folder: str = "",
    overrides: dict[str, Any] | None = None,
) -> Opened:
    """Return a study over the tokens of a run.

    Args:
        name: a key of `STUDIES`.
        data_run: folder of a run with a finished stage 1, or a run's name under reports/runs.
        folder: where points are kept; empty: reports/studies/points.
        overrides: dotted settings of every arm.

    Raises:
        WorkbenchError: no such study, run or setting.
    """
    if name not in STUDIES:
        raise WorkbenchError(f"There is no study {name!r}.{nearest(name, STUDIES)}")
    data, kept = _run_folder(data_run) / "artifacts" / "preprocess", _points_folder(folder)
    points = study_points(STUDIES[name], data, kept, seeds=seeds, overrides=overrides)
    return Opened(points, data)


def open_policies(
    data_run: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    folder: str = "",
    overrides: dict[str, Any] | None = None,
) -> Opened:
    """Return the study of stage 3's estimators over the model of a run.

    Args:
        data_run: folder of a run with finished stages 1 and 2, or its name under reports/runs.
        folder: where points are kept; empty: reports/studies/points.
        overrides: dotted settings of every point.

    Raises:
        WorkbenchError: no such run, or a setting is wrong.
    """
    place, kept = _run_folder(data_run), _points_folder(folder)
    points = policy_points(place, kept, seeds=seeds, overrides=overrides)
    return Opened(points, place / "artifacts" / "preprocess", run_policy)


def _run_folder(data_run: str) -> Path:
    place = Path(data_run).expanduser()
    return place if place.is_dir() else REPORTS_DIR / "runs" / data_run


def _points_folder(folder: str) -> Path:
    return Path(folder).expanduser() if folder else STUDIES_DIR / "points"


def notebook_progress() -> Progress:
    """Return a callback that shows one line in a notebook, updated in place."""
    from IPython.display import display

    handle = display({"text/plain": "starting"}, raw=True, display_id=True)

    def report(done: int, total: int, text: str) -> None:
        if handle is not None:
            handle.update({"text/plain": f"{done} of {total} points, last {text}"}, raw=True)

    return report


def run_notebook(name: str, parameters: dict[str, Any]) -> Path:
    """Execute the notebook of a study and return its HTML page in reports/studies.

    Raises:
        WorkbenchError: no such study; what the notebook raised.
    """
    from papermill.exceptions import PapermillExecutionError

    source = NOTEBOOKS / f"{name}.ipynb"
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    if name not in known:
        raise WorkbenchError(f"There is no notebook of a study {name!r}.{nearest(name, known)}")
    STUDIES_DIR.mkdir(parents=True, exist_ok=True)
    executed, page = STUDIES_DIR / f"{name}.ipynb", STUDIES_DIR / f"{name}.html"
    try:
        execute_notebook(source, executed, parameters)
    except PapermillExecutionError as error:
        raise WorkbenchError(f"{error.ename}: {error.evalue}") from error
    return export_notebook(executed, page)
