"""The tasks of a corpus: try wrong bodies on them, split them by package, write and count them.

Input: the state with every row judged. Output: `tasks.jsonl`. A reward must not be had for nothing,
so three programs are judged for each task, put together as stage 3 does: the function's own body,
the same behind a panic (which compiles, whatever the function returns), and `Default::default()`.
A task stays when its own body passes and neither of the others does. Tests that hold for a panic
check nothing about the function; tests that hold for a default value (`0`, `false`, an empty `Vec`)
reward a constant.

Tasks of the packages whose rows are held out are held out, too, but for those whose function is
known from a row or task to train on (packages copy from each other): they are dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.build.prepare import FOUND
from nanochat_lib.data.build.state import State
from nanochat_lib.data.select import HELD_PACKAGE, TRAIN, known_tasks
from nanochat_lib.data.sources.candidates import DOCUMENTATION, TASK_ONLY, UNIT_TESTS
from nanochat_lib.records import Level, Program, Task, Verdict, Verified, as_row
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.verify import verify

KEPT = "kept"
UNSOUND = "own body does not pass as a task"
FREE = "passes with a panic"
CONSTANT = "passes with a default value"
UNKNOWN = "could not be tried"
REPEATED = "its function has a task already"
KNOWN = "held out, but known from what is trained on"
DROPPED = (UNSOUND, FREE, CONSTANT, UNKNOWN, REPEATED, KNOWN)

_ROW_KINDS = {UNIT_TESTS: "test", DOCUMENTATION: TASK_ONLY}
_LOT_TASKS = 256
_PANIC = "\n    unimplemented!();"
_DEFAULT = "\n    Default::default()\n}"
_FAILS = frozenset({Verdict.TEST_FAILED, Verdict.RUN_ERROR})
_CONST_PANIC = "E0080"  # a `const fn` that panics while a constant is computed


def try_tasks(state: State, config: VerifyConfig, tell: Callable[[str], None]) -> None:
    """Try out the tasks of a corpus that were not tried yet, a lot at a time.

    Args:
        state: every row is judged; the outcomes are stored there.
        config: of verification.
        tell: called with what is being done.
    """
    while lot := state.next_tasks(_LOT_TASKS):
        tell(f"trying wrong bodies on the tasks from row {lot[0][0]} on")
        outcomes = outcomes_of([task for _, task in lot], config)
        state.try_out(zip((row for row, _ in lot), outcomes, strict=True))


def outcomes_of(tasks: Sequence[Task], config: VerifyConfig) -> list[str]:
    """Return what becomes of each task by its trial: `KEPT`, or why not."""
    programs = [program for task in tasks for program in _programs(task)]
    found = verify(programs, Level.TEST, config=config)
    return [_outcome(*found[i : i + 3]) for i in range(0, len(found), 3)]


def _programs(task: Task) -> list[Program]:
    bodies = (task.canonical_solution, _PANIC + task.canonical_solution, _DEFAULT)
    return [assemble(task, body) for body in bodies]


def _outcome(own: Verified, panicking: Verified, default: Verified) -> str:
    verdicts = (own.verdict, panicking.verdict, default.verdict)
    if Verdict.UNJUDGED in verdicts:
        return UNKNOWN
    if own.verdict is not Verdict.PASSED:
        return UNSOUND
    if panicking.verdict is Verdict.PASSED:
        return FREE
    if default.verdict is Verdict.PASSED:
        return CONSTANT
    has_failed = panicking.verdict in _FAILS or _CONST_PANIC in panicking.codes
    return KEPT if has_failed else UNKNOWN


def write_tasks(state: State, held: frozenset[str], path: Path) -> list[dict[str, Any]]:
    """Write the tasks that stay, one JSON object a line, and count by kind what became of all.

    Args:
        held: packages whose rows are held out.
        path: of the file.

    Returns: for each kind of task {kind, n_found, n_judged, n_passed, n_train, n_held_package,
        n_kept} and `dropped` {reason: n}.
    """
    known = known_tasks([t for t in _kept(state) if t.family in held], _trained_on(state, held))
    written: Counter[tuple[str, str]] = Counter()  # (kind, split)
    n_known: Counter[str] = Counter()
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for task in _kept(state):
            if task.task_id in known:
                n_known[task.flags[0]] += 1
                continue
            task = replace(task, split=HELD_PACKAGE if task.family in held else TRAIN)
            written[task.flags[0], task.split] += 1
            file.write(json.dumps(as_row(task), ensure_ascii=False) + "\n")
    partial.replace(path)
    return [_counts(state, kind, written, n_known[kind]) for kind in _ROW_KINDS]


def _kept(state: State) -> Iterator[Task]:
    """Yield the tasks that stay by their trial; of a function with two, the one of unit tests."""
    place, bodies = "", set()
    for row, candidate, _ in state.judged("id IN (SELECT row FROM trials WHERE outcome = ?)", KEPT):
        task = candidate.task
        if task is None:
            raise AssertionError(f"row {row} was tried and is no task")
        file = task.task_id.rpartition("#")[0]
        if file != place:
            place, bodies = file, set()
        if task.canonical_solution not in bodies:
            bodies.add(task.canonical_solution)
            yield task


def _trained_on(state: State, held: frozenset[str]) -> Iterator[str]:
    """Yield the texts of the rows and the functions of the tasks that are not held out."""
    for _, candidate, _ in state.judged(f"verdict = 'PASSED' AND kind != '{TASK_ONLY}'"):
        if candidate.row.group not in held:
            yield candidate.row.text
    for task in _kept(state):
        if task.family not in held:
            yield task.prompt + task.canonical_solution


def _counts(
    state: State, kind: str, written: Counter[tuple[str, str]], n_known: int
) -> dict[str, Any]:
    row_kind = _ROW_KINDS[kind]
    of_kind = "FROM rows WHERE kind = ? AND level = 'test' AND verdict NOT IN ('', 'UNJUDGED')"
    judged, passed = state.query(
        f"SELECT COUNT(*), COALESCE(SUM(verdict = 'PASSED'), 0) {of_kind}", row_kind
    )[0]
    (found,) = state.query(
        "SELECT COALESCE(SUM(n), 0) FROM counts WHERE step = ? AND kind = ?", FOUND, row_kind
    )[0]
    outcomes = Counter(
        dict(
            state.query(
                "SELECT outcome, COUNT(*) FROM trials JOIN rows ON rows.id = trials.row"
                " WHERE kind = ? GROUP BY outcome",
                row_kind,
            )
        )
    )
    n_kept = written[kind, TRAIN] + written[kind, HELD_PACKAGE]
    outcomes |= Counter({KNOWN: n_known, REPEATED: outcomes[KEPT] - n_kept - n_known})
    return {
        "kind": kind,
        "n_found": found,
        "n_judged": judged,
        "n_passed": passed,
        "dropped": {reason: outcomes[reason] for reason in DROPPED},
        "n_kept": n_kept,
        "n_train": written[kind, TRAIN],
        "n_held_package": written[kind, HELD_PACKAGE],
    }
