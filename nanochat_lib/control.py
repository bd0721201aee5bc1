"""Ask a running stage to pause, to stop or to write a checkpoint: empty files in its folder.

A stage looks into `artifacts/<stage>/control/` between two steps. `stop` and `checkpoint` are
removed when they are obeyed; `pause` holds until somebody removes it, and `paused` lies beside it
while the stage waits. Whoever can write the folder can ask: a dashboard in another process, or
`touch` in a shell on that machine. An empty file is there or not, never half written, and whatever
a killed process leaves behind is forgotten when the stage begins again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

CHECKPOINT, PAUSE, STOP = "checkpoint", "pause", "stop"
PAUSED = "paused"  # the stage's answer to `pause`
LOOK_S = 0.1  # between two looks while paused


def ask(stage_folder: Path, request: str) -> None:
    """Ask for `CHECKPOINT`, `PAUSE` or `STOP`; asking twice is asking once."""
    folder = stage_folder / "control"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / request).touch()


def take_back(stage_folder: Path, request: str) -> bool:
    """Remove a request, and return whether it was there."""
    try:
        (stage_folder / "control" / request).unlink()
    except FileNotFoundError:
        return False
    return True


def is_asked(stage_folder: Path, request: str) -> bool:
    """Return whether a request (or the answer `PAUSED`) is there; a few microseconds."""
    return (stage_folder / "control" / request).exists()


def forget_requests(stage_folder: Path) -> None:
    """Remove what an earlier attempt at a stage left unanswered."""
    for request in (CHECKPOINT, PAUSE, STOP, PAUSED):
        take_back(stage_folder, request)


def must_stop(stage_folder: Path, stop: threading.Event, save: Callable[[], object]) -> bool:
    """Obey what was asked, between two steps: wait while paused, and return whether to stop.

    Args:
        stage_folder: `artifacts/<stage>` of the run.
        stop: the other way to ask for a stop: by a signal, or from the same process.
        save: writes a checkpoint; called when one is asked for, also during a pause.
    """
    while True:
        if take_back(stage_folder, CHECKPOINT):
            save()
        if stop.is_set() or take_back(stage_folder, STOP):
            forget_requests(stage_folder)
            return True
        if not is_asked(stage_folder, PAUSE):
            take_back(stage_folder, PAUSED)
            return False
        ask(stage_folder, PAUSED)
        stop.wait(LOOK_S)
