"""Task sets: the shipped problems, and readers of the files other evaluations use.

`load_tasks` is the door: "builtin", or a path. The format of a file is recognised from the keys of
its first line: our own rows (TinyRust's tasks.jsonl), HumanEval-X Rust, or MultiPL-E Rust. Every
problem becomes a `Task`, so the rest of the evaluation knows one shape only.

The shipped problems are the files in `task_set/`, one per family, written to be read and edited:

    //@ task 001_clamp_sum level=1      then doc comment and signature, as the model sees them
    //@ solution                        the rest of the function
    //@ mutant                          a plausible wrong rest, which must fail
    //@ tests                           statements for one #[test] function
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nanochat_lib.config import EvalConfig, MaxRLConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.humaneval import humaneval_task
from nanochat_lib.records import Task

HELD_OUT_OF = 8  # one package of so many is never trained on
BUILTIN_DIR = Path(__file__).with_name("task_set")
Row = dict[str, Any]

_PARTS = ["task", "solution", "mutant", "tests"]
_TASK_HEADER = re.compile(r"(?P<name>\d{3}_\w+) level=(?P<level>\d)")
_TUPLE_FIELDS = ("stop_tokens", "flags")
_OWN_KEYS = {"task_id", "prompt", "canonical_solution", "tests"}
_HUMANEVAL_KEYS = {"task_id", "declaration", "canonical_solution", "test"}
_BENCHMARKS = ("builtin", "humaneval_x", "multipl_e")
_MULTIPL_E_KEYS = {"prompt", "tests", "stop_tokens"}


def load_tasks(name_or_path: str | Path) -> list[Task]:
    """Return the tasks of a set.

    Args:
        name_or_path: "builtin", a JSON-lines file (`.jsonl`, `.jsonl.gz`), or a JSON array.

    Raises:
        WorkbenchError: no such file, an unknown format, or a malformed line (named).
    """
    if name_or_path == "builtin":
        return builtin_tasks()
    path = Path(name_or_path)
    if not path.is_file():
        raise WorkbenchError(
            f"There is no task set {str(name_or_path)!r}: give 'builtin' or the path of a "
            "HumanEval-X Rust, MultiPL-E Rust or TinyRust file (.jsonl or .jsonl.gz)."
        )
    rows = read_json_lines(path)
    if not rows:
        raise WorkbenchError(f"{path} holds no task: every line should be a JSON object.")
    convert = _converter(path, rows[0][1])
    tasks = []
    for number, row in rows:
        try:
            tasks.append(convert(row))
        except (KeyError, TypeError, ValueError) as error:
            raise WorkbenchError(f"{path}, line {number}: {_explain(error)}") from error
    _reject_duplicates(tasks, str(path))
    return tasks


def evaluation_sets(settings: EvalConfig, preprocess: Path) -> dict[str, list[Task]]:
    """Return the task sets of a run by name: TinyRust, the shipped one, and the files named.

    Args:
        settings: `task_files` names HumanEval-X Rust or MultiPL-E files.
        preprocess: the run's artifacts/preprocess; without tasks.jsonl, TinyRust is left out.
    """
    tinyrust = preprocess / "tasks.jsonl"
    sets = {"tinyrust": load_tasks(tinyrust)} if tinyrust.is_file() else {}
    sets["builtin"] = builtin_tasks()
    for file in settings.task_files:
        tasks = load_tasks(file)
        name = tasks[0].task_set
        sets[name if name not in sets else Path(file).name.partition(".")[0]] = tasks
    return sets


def policy_tasks(settings: MaxRLConfig, preprocess: Path) -> list[Task]:
    """Return the prompts of stage 3: TinyRust, the corpus's functions with tests, files named.

    Tasks without a split are held out by package (the first two parts of their id): about one
    package of eight, the same ones in every run.

    Args:
        settings: `task_files` names files in our own format, such as a corpus's tasks.jsonl.
        preprocess: the run's artifacts/preprocess.

    Raises:
        WorkbenchError: a file is missing or malformed, or holds a benchmark's problems: what was
            trained on measures nothing.
    """
    files = [preprocess / name for name in ("tasks.jsonl", "corpus_tasks.jsonl")]
    tasks = [task for file in files if file.is_file() for task in load_tasks(file)]
    for file in settings.task_files:
        found = load_tasks(file)
        benchmark = next((t.task_set for t in found if t.task_set in _BENCHMARKS), None)
        if benchmark:
            raise WorkbenchError(
                f"maxrl.task_files: {file} holds problems of {benchmark}, which measures models "
                "and must not train them. Give tasks of your own, e.g. a corpus's tasks.jsonl."
            )
        tasks += found
    _reject_duplicates(tasks, "the prompts of stage 3 (maxrl.task_files)")
    return [task if task.split else replace(task, split=_split_of(task)) for task in tasks]


def _split_of(task: Task) -> str:
    """Return the split of a task that has none, by a hash of its package."""
    package = "/".join(task.task_id.split("/")[:2])
    held = hashlib.sha256(package.encode()).digest()[0] < 256 // HELD_OUT_OF
    return "held_package" if held else "train"


def builtin_tasks() -> list[Task]:
    """Return the shipped hand-written problems in the order of their numbers."""
    tasks = []
    for path in sorted(BUILTIN_DIR.glob("*.rs")):
        tasks += parse_task_file(path.read_text(encoding="utf-8"), family=path.stem)
    _reject_duplicates(tasks, str(BUILTIN_DIR))
    return sorted(tasks, key=lambda task: task.task_id)


def parse_task_file(text: str, family: str) -> list[Task]:
    """Return the tasks of one file of `task_set/` (format: see the top of this module)."""
    marks = list(re.finditer(r"^//@ (\w+) ?(.*)\n", text, flags=re.MULTILINE))
    if [mark[1] for mark in marks] != _PARTS * (len(marks) // len(_PARTS)):
        raise WorkbenchError(
            f"task_set/{family}.rs: every problem needs the marks {', '.join(_PARTS)} in this order"
        )
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [text[mark.end() : end].rstrip() for mark, end in zip(marks, ends, strict=True)]
    return [
        _builtin_task(marks[i][2], *parts[i : i + len(_PARTS)], family=family)
        for i in range(0, len(marks), len(_PARTS))
    ]


def _builtin_task(
    header: str, prompt: str, solution: str, mutant: str, tests: str, *, family: str
) -> Task:
    found = _TASK_HEADER.fullmatch(header)
    if found is None or not prompt.endswith("{"):
        raise WorkbenchError(
            f"task_set/{family}.rs: {header!r} must read like '007_name level=2', and its text "
            "must end in the opening brace of a function"
        )
    return Task(
        task_id=f"builtin/{found['name']}",
        prompt=prompt,
        canonical_solution="\n" + solution,
        tests=_test_module(found["name"].partition("_")[2], tests),
        task_set="builtin",
        level=int(found["level"]),
        family=family,
        mutant="\n" + mutant,
    )


def _test_module(name: str, statements: str) -> str:
    body = textwrap.indent(statements, " " * 8)
    return (
        "#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n"
        f"    fn checks_{name}() {{\n{body}\n    }}\n}}\n"
    )


def _own_task(row: Row) -> Task:
    unknown = set(row) - {field.name for field in fields(Task)}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    values = {key: tuple(v) if key in _TUPLE_FIELDS else v for key, v in row.items()}
    task = Task(**values)
    if not task.prompt.endswith("{"):
        raise ValueError("`prompt` must end in the opening brace of a function")
    return task


def _multipl_e_task(row: Row) -> Task:
    """Read one row of MultiPL-E's Rust files.

    Their tests begin with the brace that closes the function, because their stop token cuts it
    off. Here a completion includes that brace, so it leaves the tests and the stop tokens.
    """
    name = row.get("name") or row["task_id"]
    tests = row["tests"].lstrip()
    if not tests.startswith("}"):
        raise ValueError("`tests` must begin with the brace that closes the function")
    return Task(
        task_id=f"multipl_e/{name}",
        prompt=row["prompt"].rstrip(),
        canonical_solution=row.get("canonical_solution", ""),
        tests=tests[1:].lstrip(),
        task_set="multipl_e",
        stop_tokens=tuple(token for token in row["stop_tokens"] if token.strip() != "}"),
    )


def _converter(path: Path, first: Row) -> Callable[[Row], Task]:
    if set(first) >= _HUMANEVAL_KEYS:
        return humaneval_task
    if set(first) >= _OWN_KEYS:
        return lambda row: _own_task({"task_set": path.name.partition(".")[0]} | row)
    if set(first) >= _MULTIPL_E_KEYS:
        return _multipl_e_task
    raise WorkbenchError(
        f"{path}: the format is not known. Expected the keys of HumanEval-X "
        f"({', '.join(sorted(_HUMANEVAL_KEYS))}), of MultiPL-E "
        f"({', '.join(sorted(_MULTIPL_E_KEYS))}) or of our own tasks "
        f"({', '.join(sorted(_OWN_KEYS))}); found {', '.join(sorted(first)) or 'none'}."
    )


def read_json_lines(path: Path) -> list[tuple[int, Row]]:
    """Return (line number, object) of a `.jsonl` or `.jsonl.gz` file, skipping empty lines.

    MultiPL-E's own repository keeps its prompts as one JSON array: there the number is the place
    in the array.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise WorkbenchError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if text.lstrip().startswith("["):
        return _read_array(path, text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkbenchError(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise WorkbenchError(f"{path}, line {number}: expected a JSON object.")
        rows.append((number, row))
    return rows


def _read_array(path: Path, text: str) -> list[tuple[int, Row]]:
    try:
        rows = list(enumerate(json.loads(text), start=1))
    except json.JSONDecodeError as error:
        raise WorkbenchError(f"{path}: not valid JSON ({error}).") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise WorkbenchError(f"{path}, entry {number}: expected a JSON object.")
    return rows


def _explain(error: Exception) -> str:
    return f"the key {error} is missing." if isinstance(error, KeyError) else f"{error}."


def _reject_duplicates(tasks: list[Task], place: str) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.task_id in seen:
            raise WorkbenchError(f"{place}: the task id {task.task_id!r} appears twice.")
        seen.add(task.task_id)
