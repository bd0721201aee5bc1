"""Curves over the looks of stage 3: what goes wrong, what the reward pays, how the policy moves.

Input: `looks` of the stage's summary, each at the same held-out tasks with the same seeds. Output:
figures. Shares are of judged programs; what could not be judged is in none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from nanochat_lib.records import Verdict
from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import plain
from nanochat_lib.report.plots.figures import base_figure, missing_figure
from nanochat_lib.report.policy.figures import OLDER, UPDATES

Look = dict[str, Any]
Lines = dict[str, Callable[[Look], float | None]]
MOST_CODES = 6
_VERDICTS = (
    (Verdict.PASSED, "green"), (Verdict.TEST_FAILED, "blue"), (Verdict.RUN_ERROR, "purple"),
    (Verdict.COMPILE_ERROR, "orange"), (Verdict.PARSE_ERROR, "gold"),
)  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot")
POLICY_LINES: dict[str, tuple[str, str, str, Lines]] = {  # anchor -> title, axis, format, lines
    "maxrl-entropy": ("Token entropy while sampling", "nats per token", ".3g",
                      {"token entropy": lambda look: look.get("token_entropy_nats")}),
    "maxrl-kl": ("Distance from the base model", "KL, nats per token", ".3g",
                 {"KL(policy, base)": lambda look: look.get("kl_nats")}),
    "maxrl-loops": ("Loops that the frozen gate would use", "loops", ".3g",
                    {"expected loops": lambda look: look.get("expected_loops")}),
    "maxrl-distinct": ("Distinct bodies", "share", ".1%", {
        "distinct bodies of all programs": lambda look: look.get("distinct_bodies_rate"),
        "of one program a task": lambda look: look.get("distinct_first_rate"),
    }),
    "maxrl-length": ("Length of the programs", "tokens", ".3g", {
        "tokens per program": lambda look: look.get("completion_tokens_mean")}),
}  # fmt: skip


def over_looks(
    looks: Sequence[Look], lines: Lines, *, title: str, y_title: str, style: str = ".1%"
) -> go.Figure:
    """Return one line per name over the updates; a line whose values are all missing is left out.

    Args:
        looks: of the summary.
        lines: name -> how its value is read from a look.
        title: of the figure.
        y_title: of the vertical axis.
        style: d3 format of the values.
    """
    found = {name: [read(look) for look in looks] for name, read in lines.items()}
    found = {name: v for name, v in found.items() if any(one is not None for one in v)}
    if not found:
        return missing_figure(title, OLDER)
    figure = base_figure(title, UPDATES, y_title)
    for i, (name, values) in enumerate(found.items()):
        figure.add_scatter(
            x=[look["step"] for look in looks],
            y=values,
            name=plain(name),
            mode="lines+markers",
            line={"color": theme.series_color(i), "dash": _DASHES[i // 5 % 4], "width": 2},
            marker={"size": 6, "symbol": i % 8},
            hovertext=[look["moment"] for look in looks],
            hovertemplate=f"update %{{x}} (%{{hovertext}}): %{{y:{style}}}"
            f"<extra>{plain(name)}</extra>",
        )
    most = max(value for values in found.values() for value in values if value is not None)
    ticks = "" if "%" not in style else ".0%" if most > 0.05 else ".1%"
    figure.update_yaxes(rangemode="tozero", tickformat=ticks)
    figure.update_layout(showlegend=len(found) > 1)
    return figure


def outcomes(looks: Sequence[Look]) -> go.Figure:
    """Draw what became of the judged programs, stacked to all of them."""
    title = "What became of the programs"
    looks = list({look["step"]: look for look in looks if "mistakes" in look}.values())
    if not looks:
        return missing_figure(title, OLDER)
    figure = base_figure(title, UPDATES, "share of judged programs")
    rest = [1.0] * len(looks)
    for verdict, role in _VERDICTS:
        values = [verdict_share(look, verdict) for look in looks]
        rest = [left - value for left, value in zip(rest, values, strict=True)]
        if any(values):
            _add_area(figure, looks, values, str(verdict), role)
    if max(rest) > 1e-9:
        _add_area(figure, looks, rest, "limits and others", "muted")
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return figure


def _add_area(
    figure: go.Figure, looks: Sequence[Look], values: Sequence[float], name: str, role: str
) -> None:
    figure.add_scatter(
        x=[look["step"] for look in looks],
        y=list(values),
        name=name.replace("_", " ").lower(),
        mode="lines",
        stackgroup="outcome",
        fillcolor=theme.color(role),
        line={"color": theme.color("background"), "width": 1},
        hovertemplate="update %{x}: %{y:.1%}<extra>" + name + "</extra>",
    )


def verdict_share(look: Look, verdict: Verdict) -> float:
    """Return the share of judged programs of a look with a verdict."""
    found = look["mistakes"]
    if verdict is Verdict.PASSED:
        return 1 - sum(found["verdicts"].values()) / max(found["n_judged"], 1)
    return found["verdicts"].get(str(verdict), 0) / max(found["n_judged"], 1)


def error_classes(looks: Sequence[Look]) -> go.Figure:
    """Draw the share of programs with errors of each class of rustc's, and with failed tests."""
    names = dict.fromkeys(n for look in looks for n in look.get("mistakes", {}).get("classes", {}))
    lines: Lines = {f"{name} (rustc)": _mistake("classes", name) for name in names}
    if lines:
        lines["tests failed"] = _mistake("verdicts", str(Verdict.TEST_FAILED))
    return over_looks(looks, lines, title="Mistakes by class", y_title="share of judged programs")


def error_codes(looks: Sequence[Look]) -> go.Figure:
    """Draw the share of programs with each of rustc's most frequent error codes."""
    most: dict[str, float] = {}
    for look in looks:
        found = look.get("mistakes", {})
        for code, n in found.get("codes", {}).items():
            most[code] = max(most.get(code, 0.0), n / max(found["n_judged"], 1))
    codes = sorted(most, key=lambda code: (-most[code], code))[:MOST_CODES]
    title = "Rustc's error codes over updates"
    if looks and not codes and "mistakes" in looks[0]:
        return missing_figure(title, "no error with a code at any look.")
    lines = {code: _mistake("codes", code) for code in codes}
    return over_looks(looks, lines, title=title, y_title="share of judged programs")


def _mistake(group: str, name: str) -> Callable[[Look], float | None]:
    def read(look: Look) -> float | None:
        found = look.get("mistakes")
        return found[group].get(name, 0) / max(found["n_judged"], 1) if found else None

    return read


def reward_parts(looks: Sequence[Look]) -> go.Figure:
    """Draw what each term of the brief's shaped formula would pay, and the reward that counts."""
    names = dict.fromkeys(n for look in looks for n in look.get("reward_parts", {}))
    lines: Lines = {f"shaped: {name}": _part(name) for name in names}
    if lines:
        lines["the reward of this run"] = lambda look: look.get("reward_mean")
    title = "Parts of the reward"
    return over_looks(looks, lines, title=title, y_title="mean over judged programs", style=".3f")


def _part(name: str) -> Callable[[Look], float | None]:
    return lambda look: look.get("reward_parts", {}).get(name)


def guard_shares(looks: Sequence[Look]) -> go.Figure:
    """Draw the share of programs that each guard counts; those never counted are left out."""
    names = dict.fromkeys(name for look in looks for name in look.get("guards", {}))
    counted = [name for name in names if any(look["guards"].get(name) for look in looks)]
    lines = {name.replace("_", " "): _guard(name) for name in counted}
    if names and not counted:
        lines = {"every guard": lambda look: max(look["guards"].values())}
    title = "Reward hacks over updates"
    return over_looks(looks, lines, title=title, y_title="share of programs")


def _guard(name: str) -> Callable[[Look], float | None]:
    return lambda look: look.get("guards", {}).get(name)


def policy_lines(looks: Sequence[Look], anchor: str) -> go.Figure:
    """Draw one of `POLICY_LINES`: entropy, distance, loops, distinct bodies or length."""
    title, axis, style, lines = POLICY_LINES[anchor]
    return over_looks(looks, lines, title=title, y_title=axis, style=style)
