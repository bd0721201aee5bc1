"""Every problem of an evaluation with its outcome: what `outcomes.html` shows.

Input: episode rows (`EPISODE_SCHEMA` of `evals/results.py`, as dictionaries). Output: plain objects
by checkpoint and task set, each with its problems, each with its programs. Whatever a model wrote
is text here and is escaped by the page; nothing in this module makes HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lib.records import Verdict

Row = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One program of a problem, as text."""

    verdict: str
    note: str
    code: str


@dataclass(frozen=True)
class Problem:
    """One problem with all its samples of one checkpoint."""

    task_id: str
    flags: str
    outcome: str  # "2 of 4 passed"
    verdicts: str
    codes: str
    state: str  # "good" | "watch" | "bad": all, some, none of the samples passed
    samples: list[Sample]


@dataclass(frozen=True)
class Outcomes:
    """All problems of one checkpoint on one task set."""

    title: str
    summary: str
    problems: list[Problem]


def group_outcomes(rows: Sequence[Row]) -> list[Outcomes]:
    """Return the rows by checkpoint and task set, and in each by problem, in their order."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        group = groups.setdefault((row["checkpoint"], row["task_set"]), {})
        group.setdefault(row["task_id"], []).append(row)
    return [
        _outcomes(f"{checkpoint} on {task_set}", problems)
        for (checkpoint, task_set), problems in groups.items()
    ]


def _outcomes(title: str, problems: dict[str, list[Row]]) -> Outcomes:
    found = [_problem(task_id, rows) for task_id, rows in problems.items()]
    rows = [row for members in problems.values() for row in members]
    n_solved = sum(problem.state != "bad" for problem in found)
    parts = [
        f"{n_solved:,} of {len(found):,} problems solved by at least one of their programs",
        f"{len(rows):,} programs: {_counted(row['verdict'] for row in rows)}",
    ]
    if repeated := [row for row in rows if row.get("is_flaky") is not None]:
        n_flaky = sum(row["is_flaky"] for row in repeated)
        parts.append(f"{n_flaky:,} of {len(repeated):,} judged twice had another verdict")
    n_flagged = sum(bool(problem.flags) for problem in found)
    parts += [f"{n_flagged:,} problems carry a note"] if n_flagged else []
    return Outcomes(title, "; ".join(parts) + ".", found)


def _problem(task_id: str, rows: list[Row]) -> Problem:
    n_passed = sum(row["verdict"] == Verdict.PASSED for row in rows)
    return Problem(
        task_id=task_id,
        flags=", ".join(rows[0].get("flags") or []).replace("_", " "),
        outcome=f"{n_passed} of {len(rows)} passed",
        verdicts=_counted(row["verdict"] for row in rows),
        codes=", ".join(dict.fromkeys(code for row in rows for code in row.get("codes") or [])),
        state="good" if n_passed == len(rows) else "watch" if n_passed else "bad",
        samples=[_sample(row) for row in rows],
    )


def _sample(row: Row) -> Sample:
    notes = [
        ", ".join(row.get("codes") or []),
        str(row.get("detail") or ""),
        str(row.get("semantic_detail") or ""),
        "another verdict when judged again" if row.get("is_flaky") else "",
    ]
    code = f"{row.get('prompt') or ''}{row['completion']}"
    return Sample(row["verdict"], " · ".join(note for note in notes if note), code)


def _counted(verdicts: Iterable[str]) -> str:
    return ", ".join(f"{verdict} {n:,}" for verdict, n in Counter(verdicts).most_common())
