"""The page of a sweep: all points ranked, what each varied setting did, the best runs compared.

Input: a sweep's folder and its run folders, finished or not. Output: `compare.html` in the sweep's
folder. With several seeds, points that differ in nothing else are one group: its mean, and its
lowest and highest value, because a difference smaller than that may be luck.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.sweep import load_sweep, sweep_folder
from nanochat_lib.experiments.sweep_spec import Point, SweepSpec
from nanochat_lib.report.compare.overlays import MOST
from nanochat_lib.report.compare.page import write_comparison
from nanochat_lib.report.content.blocks import Block, Section, frame_of
from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import plain
from nanochat_lib.report.plots.figures import base_figure
from nanochat_lib.report.run_data import RunData, load_run

MOST_BARS = 30
MOST_TICKS = 8  # so many different values are named on the axis
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Outcome:
    """One point with its run, where it has one, and the number that ranks it."""

    point: Point
    run: RunData | None
    value: float | None

    @property
    def status(self) -> str:
        """Return how its run stands."""
        return self.run.status if self.run else NOT_BEGUN


def sweep_outcomes(name: str, runs_dir: Path) -> tuple[SweepSpec, list[Outcome]]:
    """Return a sweep and its points, the best first, those without a number last."""
    spec, points = load_sweep(sweep_folder(name, runs_dir))
    found = [_outcome(spec, point, runs_dir) for point in points]
    sign = 1 if spec.goal == "min" else -1
    return spec, sorted(found, key=lambda one: (one.value is None, sign * (one.value or 0.0)))


def sweep_table(spec: SweepSpec, outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """Return one row per point: settings, seed, status, the number that ranks it, what failed."""
    return frame_of(
        [
            {
                "run": one.point.run_id,
                **{key: _text(value) for key, value in one.point.swept.items()},
                "seed": one.point.seed,
                "status": one.status,
                spec.metric: one.value,
                "problem": _problem(one.run),
            }
            for one in outcomes
        ]
    )


def write_sweep_page(name: str, runs_dir: Path, *, self_contained: bool = True) -> Path:
    """Write the page of a sweep and return its path.

    Raises:
        WorkbenchError: there is no such sweep, or none of its points has begun.
    """
    spec, outcomes = sweep_outcomes(name, runs_dir)
    runs = [replace(o.run, label=_run_label(spec, o.point)) for o in outcomes if o.run]
    if not runs:
        raise WorkbenchError(f"No point of sweep {name!r} has begun: there is nothing to compare.")
    n_failed = sum(one.status == "failed" for one in outcomes)
    n_done = sum(one.status == "completed" for one in outcomes)
    goal = "least" if spec.goal == "min" else "most"
    section = Section(
        "sweep",
        "The sweep",
        f"{len(outcomes)} points of {len(spec.swept)} settings and {len(spec.seeds)} seeds: "
        f"{n_done} completed, {n_failed} failed. Ranked by {spec.metric}, {goal} is best. Below, "
        f"the {min(len(runs), MOST)} best runs are compared.",
        "",
        [_ranking(spec, outcomes), *_effects(spec, outcomes)],
    )
    path = sweep_folder(name, runs_dir) / "compare.html"
    return write_comparison(
        runs[:MOST],
        path,
        title=f"Sweep {name}",
        sections=[section],
        self_contained=self_contained,
    )


def _outcome(spec: SweepSpec, point: Point, runs_dir: Path) -> Outcome:
    folder = runs_dir / point.run_id
    if not (folder / "run.json").exists():
        return Outcome(point, None, None)
    run = load_run(folder)
    return Outcome(point, run, run.last(*spec.metric.split(".", 1)))


def _ranking(spec: SweepSpec, outcomes: Sequence[Outcome]) -> Block:
    """Return bars of the groups of seeds, the best on top."""
    groups: dict[str, list[float]] = {}
    for one in outcomes:
        if one.value is not None:
            groups.setdefault(_label(spec, one.point), []).append(one.value)
    sign = 1 if spec.goal == "min" else -1
    ranked = sorted(groups.items(), key=lambda group: sign * mean(group[1]))
    title = f"Points by {spec.metric}"
    table = sweep_table(spec, outcomes)
    source = f"{len(outcomes)} points, {len(spec.seeds)} seeds each"
    if not ranked:
        why = f"no point recorded {spec.metric} yet."
        return Block("ranking", title, None, "", pl.DataFrame(), "", why)
    figure = _dots(ranked[:MOST_BARS], title, spec.metric)
    return Block("ranking", title, figure, _read_ranking(ranked), table, source)


def _dots(ranked: list[tuple[str, list[float]]], title: str, unit: str) -> go.Figure:
    """Return a dot per group with a whisker over its seeds, under its label, the best on top.

    Dots and not bars: the axis need not begin at zero, where small differences would drown.
    """
    means = [mean(values) for _, values in ranked]
    figure = base_figure(title, unit, "", height=110 + 40 * len(ranked))
    figure.add_scatter(
        x=means,
        y=list(range(len(ranked))),
        mode="markers",
        marker={"size": 11, "color": theme.color("blue")},
        error_x={
            "array": [max(v) - m for (_, v), m in zip(ranked, means, strict=True)],
            "arrayminus": [m - min(v) for (_, v), m in zip(ranked, means, strict=True)],
            "color": theme.color("text"),
            "thickness": 1.2,
        },
        hovertemplate="%{x:.4g}<extra></extra>",
        showlegend=False,
    )
    for i, (label, values) in enumerate(ranked):
        seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
        text = f"<b>{mean(values):.4g}</b>  {plain(label)}{seeds}"
        place = {"x": 0, "xref": "paper", "xanchor": "left", "y": i - 0.22, "yanchor": "bottom"}
        figure.add_annotation(text=text, showarrow=False, font={"size": 12}, **place)
    figure.update_yaxes(range=[len(ranked) - 0.4, -0.9], visible=False)
    figure.update_layout(margin={"l": 16})
    return figure


def _read_ranking(ranked: list[tuple[str, list[float]]]) -> str:
    (label, values), *rest = ranked
    spread = f", {min(values):.4g} to {max(values):.4g} over {len(values)} seeds"
    text = f"Best: {label} with {mean(values):.4g}{spread if len(values) > 1 else ''}."
    near = [
        other for other, found in rest if min(found) <= max(values) and max(found) >= min(values)
    ]
    if len(values) > 1 and near:
        text += f" {len(near)} other settings overlap with it: more seeds would tell."
    left_out = len(ranked) - MOST_BARS
    return text + (f" {left_out} more are in the table alone." if left_out > 0 else "")


def _effects(spec: SweepSpec, outcomes: Sequence[Outcome]) -> list[Block]:
    known = [one for one in outcomes if one.value is not None]
    return [
        _effect(spec, key, known)
        for key in spec.swept
        if len({_text(one.point.swept[key]) for one in known}) > 1
    ]


def _effect(spec: SweepSpec, key: str, known: Sequence[Outcome]) -> Block:
    """Return every point at its value of one setting; the other settings vary too."""
    values = [one.point.swept[key] for one in known]
    is_numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    distinct = sorted(set(values)) if is_numeric else []
    title = f"{spec.metric} by {key}"
    figure = base_figure(title, key, spec.metric)
    _add_points(spec, figure, values if is_numeric else [_text(v) for v in values], known)
    if not is_numeric:
        figure.update_xaxes(type="category")
    elif min(values) > 0 and max(values) / min(values) > 30:
        figure.update_xaxes(type="log")
    if is_numeric and len(distinct) <= MOST_TICKS:
        figure.update_xaxes(tickvals=distinct, ticktext=[_text(value) for value in distinct])
    rows = _by_value(values, known)
    source = f"{len(known)} points; the other settings vary as well"
    return Block(_anchor(key), title, figure, _read_effect(spec, key, rows), frame_of(rows), source)


def _add_points(
    spec: SweepSpec, figure: go.Figure, x: Sequence[Any], known: Sequence[Outcome]
) -> None:
    figure.add_scatter(
        x=list(x),
        y=[one.value for one in known],
        mode="markers",
        marker={"size": 9, "color": theme.color("blue"), "opacity": 0.75},
        customdata=[plain(f"{one.point.run_id}: {_label(spec, one.point)}") for one in known],
        hovertemplate="%{customdata}<br>%{y:.4g}<extra></extra>",
        showlegend=False,
    )


def _by_value(values: Sequence[Any], known: Sequence[Outcome]) -> list[dict[str, Any]]:
    groups: dict[Any, list[float]] = {}
    for value, one in sorted(zip(values, known, strict=True), key=lambda pair: _order(pair[0])):
        groups.setdefault(_text(value), []).append(one.value)
    return [
        {"value": value, "points": len(found), "mean": mean(found), "lowest": min(found),
         "highest": max(found)}
        for value, found in groups.items()
    ]  # fmt: skip


def _read_effect(spec: SweepSpec, key: str, rows: list[dict[str, Any]]) -> str:
    pick = min if spec.goal == "min" else max
    best = pick(rows, key=lambda row: row["mean"])
    worst = next(row for row in sorted(rows, key=lambda r: r["mean"], reverse=pick is min))
    return (
        f"Best on average at {key} = {best['value']}: {best['mean']:.4g} over {best['points']} "
        f"points; worst at {worst['value']}: {worst['mean']:.4g}."
    )


def _order(value: Any) -> tuple[bool, Any]:
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else _text(value))


def _label(spec: SweepSpec, point: Point) -> str:
    """Return what tells a point from the others, as short as it can be read."""
    names = [key.split(".")[-1] for key in spec.swept]
    parts = [
        f"{name if names.count(name) == 1 else key} {_text(point.swept[key])}"
        for key, name in zip(spec.swept, names, strict=True)
    ]
    return ", ".join(parts) or "the base settings"


def _run_label(spec: SweepSpec, point: Point) -> str:
    return _label(spec, point) + (f", seed {point.seed}" if len(spec.seeds) > 1 else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _anchor(key: str) -> str:
    return "effect-" + key.replace(".", "-").replace("_", "-")


def _problem(run: RunData | None) -> str:
    stages = run.state.get("stages", {}).values() if run else ()
    return "; ".join(stage["error"] for stage in stages if stage.get("error"))
