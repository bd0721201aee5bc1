"""The report of one run: a single HTML page made from the files of its folder.

Input: a run folder, finished or not. Output: `report.html` in it, which opens offline, makes no
request, and follows the reader's light or dark system. `self_contained` embeds the plotting script
(5 MB); without it the page links one copy shared by all runs, `reports/assets/plotly.min.js`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.report.content.blocks import (
    BAD,
    GOOD,
    OUTCOMES_PAGE,
    UNKNOWN,
    WATCH,
    Check,
)
from nanochat_lib.report.content.outcomes import group_outcomes
from nanochat_lib.report.content.readings import number
from nanochat_lib.report.content.sections import run_sections
from nanochat_lib.report.content.summary import (
    TargetRow,
    health_checks,
    is_comparable,
    key_numbers,
    target_rows,
)
from nanochat_lib.report.pages.drawing import drawing_parts, write_shared_plotly
from nanochat_lib.report.pages.html import asset, content_policy, render
from nanochat_lib.report.run_data import RunData, load_run
from nanochat_lib.runs import write_atomic

MARKS = {GOOD: "✓ good", WATCH: "! watch", BAD: "✗ act", UNKNOWN: "? unknown"}


def write_run_report(run_dir: Path, *, self_contained: bool = True) -> Path:
    """Write a run's report, and beside it the page of every evaluated problem; return its path.

    Args:
        run_dir: the run's folder.
        self_contained: embed the plotting script; otherwise link the copy shared by all runs.

    Raises:
        WorkbenchError: the folder holds no run, or run.json is damaged.
    """
    run = load_run(run_dir)
    path = run_dir / "report.html"
    if not run.episodes.is_empty():
        write_outcomes(
            run.episodes.to_dicts(),
            run_dir / OUTCOMES_PAGE,
            title=f"{run.run_id}: every problem",
            rates=run.results.to_dicts(),
            back=path.name,
        )
    write_atomic(path, render_report(run, self_contained=self_contained))
    if not self_contained:
        write_shared_plotly(run_dir.parent.parent / "assets")
    return path


def write_outcomes(
    rows: Sequence[dict[str, Any]],
    path: Path,
    *,
    title: str,
    rates: Sequence[dict[str, Any]] = (),
    back: str = "",
) -> Path:
    """Write the page of every problem of an evaluation, which runs no script; return its path.

    Args:
        rows: episode rows; columns that are missing count as empty.
        path: the page.
        title: its heading.
        rates: `EvalResult` rows, shown on top.
        back: relative link to the page that leads here.
    """
    page = render(
        "outcomes.html.j2",
        title=title,
        back=back,
        rates=pl.DataFrame(list(rates), infer_schema_length=None),
        groups=group_outcomes(rows),
        style=asset("style.css"),
        policy=content_policy(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


def render_report(run: RunData, *, self_contained: bool) -> str:
    """Return the page of a run as HTML text."""
    checks, targets, sections = health_checks(run), target_rows(run), run_sections(run)
    contents = [("summary", "Summary", []), ("targets", "Targets", [])][: 1 + bool(targets)]
    contents += [("health", "Health", []), *((s.anchor, s.title, s.blocks) for s in sections)]
    return render(
        "page.html.j2",
        page=drawing_parts("" if self_contained else "../../assets/plotly.min.js"),
        run=run,
        created=when(run.state.get("created", "")),
        asked=asked_text(run),
        outcome=outcome_text(checks, targets),
        keys=key_numbers(run),
        targets=targets,
        scale=_scale_text(run),
        checks=checks,
        marks=MARKS,
        contents=[*contents, ("origin", "Origin of this run", [])],
        sections=sections,
        origin=_origin(run),
        notebooks=notebook_links(run.dir, ""),
        config=_config_rows(run.config),
    )


def when(created: str) -> str:
    """Return an ISO time as `2026-08-01 12:30 UTC`, or the text itself when it is none."""
    try:
        return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return created


def notebook_links(run_dir: Path, prefix: str) -> list[tuple[str, str]]:
    """Return (name, relative link) of executed notebooks, the HTML version where there is one."""
    folder = run_dir / "notebooks"
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        page = path.with_suffix(".html")
        target = page if page.exists() else path
        found.append((path.stem, f"{prefix}notebooks/{target.name}"))
    return found


def asked_text(run: RunData) -> str:
    """Say in one sentence what the run was to do."""
    config = run.config
    pretrain, model = config.get("pretrain", {}), config.get("model", {})
    if not model:
        return "The run recorded no configuration."
    tokens = pretrain["total_steps"] * pretrain["batch_size"] * pretrain["seq_len"]
    maxrl = config.get("maxrl", {}).get("total_steps", 0)
    return (
        f"Asked: train a ternary model of {run.n_parameters / 1e6:.2f} million parameters "
        f"(layers x loops: {model['n_layers']} x {model['n_loops']}) for "
        f"{pretrain['total_steps']:,} steps on {tokens:,} tokens, then {maxrl:,} MaxRL updates."
    )


def outcome_text(checks: list[Check], targets: list[TargetRow]) -> str:
    """Say how many targets were met and whether the run is healthy."""
    parts = []
    for outcome in ("met", "not met", "another scale", "not measured"):
        if n := sum(row.outcome == outcome for row in targets):
            parts.append(f"{n} {'of another scale' if outcome == 'another scale' else outcome}")
    met = f"Targets: {', '.join(parts)}. " if parts else ""
    bad = [check.name for check in checks if check.state == BAD]
    watch = [check.name for check in checks if check.state == WATCH]
    n_good = sum(check.state == GOOD for check in checks)
    n_unknown = sum(check.state == UNKNOWN for check in checks)
    text = f"{met}Health: {n_good} of {len(checks)} checks are good"
    text += f", act on {', '.join(bad)}" if bad else ""
    text += f", watch {', '.join(watch)}" if watch else ""
    return text + (f"; {n_unknown} not measured." if n_unknown else ".")


def _scale_text(run: RunData) -> str:
    wanted = run.targets.get("parameters_b")
    size = f"{number(run.n_parameters)} stored parameters"
    if is_comparable(run):
        return f"Targets of profile {run.state.get('profile')}; this model has {size}."
    return (
        f"The targets of profile {run.state.get('profile')} were set for a model of {wanted:g} "
        f"billion parameters; this one has {size}. They are shown as targets and do not apply "
        "at this scale."
    )


def _origin(run: RunData) -> list[tuple[str, str]]:
    state = run.state
    git, machine = state.get("git", {}), state.get("machine", {})
    commit = git.get("commit") or "not a checkout"
    changed = " with uncommitted changes" if git.get("dirty") else ""
    versions = ", ".join(f"{name} {found}" for name, found in state.get("versions", {}).items())
    rows = [
        ("Commit", commit + changed),
        ("Machine", run.machine),
        ("System", machine.get("os", "")),
        ("Processor features", ", ".join(machine.get("cpu_features", []))),
        ("Compiler", run.rustc),
        ("Sandbox", run.sandbox or "not recorded"),
        ("Versions", versions),
        ("Package constraints", state.get("lock_hash", "")[:16]),
        ("Seed", str(run.config.get("seed", ""))),
        ("Stages", "; ".join(_stage_text(name, s) for name, s in state.get("stages", {}).items())),
    ]
    return [(name, value) for name, value in rows if value]


def _stage_text(name: str, stage: dict[str, Any]) -> str:
    seconds = f" in {stage['seconds']:,.0f} s" if stage.get("seconds") else ""
    shared = f" (done once, by {stage['shared_with']})" if stage.get("shared_with") else ""
    return f"{name} {stage.get('status', 'unknown')}{seconds}{shared}"


def _config_rows(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    sections = [(name, list(v.items())) for name, v in config.items() if isinstance(v, dict)]
    plain = [(name, value) for name, value in config.items() if not isinstance(value, dict)]
    return [("run", plain), *sections] if config else []
