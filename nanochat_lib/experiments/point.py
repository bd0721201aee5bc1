"""One point of a sweep, in a process of its own: make or open its run and do its stages.

Input: a JSON object on standard input (run_id, runs_dir, profile, overrides, stages, parent). It
ends with 0, 1 (the error is on standard error) or 130 (stopped; the run can be resumed). On Linux
it is asked to stop when the process of the sweep dies, so that nothing goes on unseen.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from nanochat_lib import pipeline
from nanochat_lib.config import load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.pipeline import PipelineInterrupted
from nanochat_lib.runs import Run, create_run, open_run

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read the request and do it."""
    request = json.load(sys.stdin)
    _stop_with_parent(request["parent"])
    try:
        run_point(request)
    except WorkbenchError as error:
        sys.exit(str(error))
    except PipelineInterrupted:
        sys.exit(130)


def run_point(request: dict[str, Any]) -> None:
    """Do the stages of a request that are not done yet; raises what `run_pipeline` raises."""
    overrides = request["overrides"]
    config = load_profile(request["profile"], overrides)
    run = open_or_create(request["run_id"], Path(request["runs_dir"]), config)
    stages = pipeline.choose_stages(request["stages"], config)
    parameters = pipeline.notebook_parameters(request["profile"], overrides, config.seed)
    pipeline.run_pipeline(run, stages, parameters, on_progress=lambda _: None)


def open_or_create(run_id: str, runs_dir: Path, config: Any) -> Run:
    """Return the run, made where it does not exist yet."""
    if (runs_dir / run_id / "run.json").exists():
        return open_run(run_id, runs_dir, config)
    return create_run(config, run_id, runs_dir)


def _stop_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(130)


if __name__ == "__main__":
    main()
