"""What a run is doing now, read from its folder, and the dashboard's head made from it.

In: `run.json`, `progress.json` and the control files of a run folder. Out: a `Situation`, and HTML
in which every text from the folder is escaped.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_lib import control
from nanochat_lib.records import Metric
from nanochat_lib.report.run_data import read_json
from nanochat_lib.report.widgets.tail import MetricTail
from nanochat_lib.runs import status_of

LISTENS = ("pretrain", "maxrl", "long_context")  # stages that look at control files
_CHIPS = {"completed": "good", "running": "busy", "paused": "warn", "failed": "bad"}


@dataclass(frozen=True)
class Situation:
    """One look at a run folder."""

    run_id: str
    stage: str  # that is shown
    status: str  # of that stage: running, paused, completed, interrupted, failed or "not begun"
    running: str = ""  # the stage at work, which may be another
    where: str = ""  # "this kernel" or "process 123"
    pause: bool = False  # asked for
    done: int = 0
    total: int = 0
    text: str = ""
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def can_continue(self) -> bool:
        """Return whether starting would go on where the stage was stopped."""
        return self.status in ("interrupted", "failed")


def look(run_dir: Path, stage: str, *, is_ours: bool) -> Situation:
    """Return what a run folder says; a folder that does not exist is a run not begun."""
    state = read_json(run_dir / "run.json") or {"stages": {}}
    stages = state["stages"]
    running = next((name for name in stages if _is_running(stages[name], is_ours)), "")
    shown, folder = stages.get(stage, {}), run_dir / "artifacts" / (running or stage)
    status = _status(shown, is_ours)
    if running == stage and control.is_asked(folder, control.PAUSED):
        status = "paused"
    progress = read_json(run_dir / "progress.json") if running else {}
    pid = stages.get(running, {}).get("pid")
    return Situation(
        run_id=run_dir.name,
        stage=stage,
        status=status,
        running=running,
        where="this kernel" if pid == os.getpid() else f"process {pid}" if pid else "",
        pause=bool(running) and control.is_asked(folder, control.PAUSE),
        done=progress.get("done", 0) if progress.get("stage") == running else 0,
        total=progress.get("total", 0) if progress.get("stage") == running else 0,
        text=str(progress.get("text", "")) if progress.get("stage") == running else "",
        error=str(shown.get("error", "")) if status == "failed" else "",
        config=state.get("config", {}),
    )


def _status(stage: dict[str, Any], is_ours: bool) -> str:
    if not stage:
        return "not begun"
    if stage["status"] == "running" and not _is_running(stage, is_ours):
        return "interrupted"
    return stage["status"]


def _is_running(stage: dict[str, Any], is_ours: bool) -> bool:
    """Return whether somebody works on a stage; in this kernel only the dashboard's own thread."""
    if stage.get("pid") == os.getpid():
        return stage["status"] == "running" and is_ours
    return status_of({"stages": {"it": stage}}) == "running"


def head_html(now: Situation, tail: MetricTail) -> str:
    """Return the head of the dashboard: run, stage, status, progress, newest numbers."""
    chip = f'<span class="nano-chip nano-{_CHIPS.get(now.status, "quiet")}">{now.status}</span>'
    parts = [f'<span class="nano-title">{html.escape(now.run_id)}</span>', html.escape(now.stage)]
    parts.append(chip)
    if now.running:
        parts.append(f'<span class="nano-quiet">{_at_work(now)}</span>')
    body = f'<div class="nano-head">{"".join(f"<span>{p}</span>" for p in parts)}</div>'
    if now.error:
        body += f'<div class="nano-error">{html.escape(now.error)}</div>'
    if now.total:
        share = min(100 * now.done / now.total, 100)
        body += f'<div class="nano-bar"><i style="width:{share:.1f}%"></i></div>'
    return body + f'<div class="nano-numbers">{_numbers(now, tail)}</div>'


def _at_work(now: Situation) -> str:
    what = "" if now.running == now.stage else f"{now.running} "
    said = "pausing after this step" if now.pause and now.status != "paused" else now.text
    return html.escape(f"{what}in {now.where}: {said}" if said else f"{what}in {now.where}")


def _numbers(now: Situation, tail: MetricTail) -> str:
    shown = []
    if now.total:
        shown.append(("step", f"{now.done:,} of {now.total:,}"))
        if now.running != now.stage:
            pace = None
        else:
            pace = tail.seconds_per_step(now.stage)
        if pace and now.status == "running":
            shown.append(("time left", f"about {duration((now.total - now.done) * pace)}"))
    for label, metric, form in (
        ("tokens/s", Metric.TOKENS_PER_S, "{:,.0f}"),
        ("loss", Metric.LOSS, "{:.3f}"),
        ("held-out bits per byte", Metric.BITS_PER_BYTE, "{:.3f}"),
        ("token entropy", Metric.TOKEN_ENTROPY, "{:.2f} nats"),
        ("exit entropy", Metric.EXIT_ENTROPY, "{:.2f} nats"),
        ("compile rate", Metric.COMPILE_RATE, "{:.1%}"),
        ("pass rate", Metric.PASS_RATE, "{:.1%}"),
    ):
        value = tail.last(now.stage, metric)
        if value is not None:
            shown.append((label, form.format(value)))
    return "".join(f'<span><span class="nano-quiet">{a}</span> <b>{b}</b></span>' for a, b in shown)


def duration(seconds: float) -> str:
    """Return seconds as a person would say them: `45 s`, `2 min 10 s`, `3 h 05 min`."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def told(text: str, *, is_problem: bool = False) -> str:
    """Return a message as HTML; a problem is announced to screen readers at once."""
    kind, role = ("nano-error", "alert") if is_problem else ("nano-quiet", "status")
    return f'<div class="{kind}" role="{role}">{html.escape(text)}</div>' if text else ""
