"""Judge completions by rustc: texts in, episodes out; no model is needed.

A completion is cut as its task asks, put between prompt and tests, and judged by `rust/verify.py`.
Sits between what wrote the text (`generation.py`, or a file from anywhere) and the numbers
(`results.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from nanochat_lib.config import RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.generation import Completion
from nanochat_lib.evals.humaneval import is_flawed, with_stand_ins
from nanochat_lib.evals.tasks import read_json_lines
from nanochat_lib.records import Episode, Level, Program, SemanticFindings, Task, Verified
from nanochat_lib.rust.gates.repeat import find_flaky
from nanochat_lib.rust.programs import assemble, truncate_completion
from nanochat_lib.rust.semantics import judge_semantics
from nanochat_lib.rust.verify import verify


@dataclass(frozen=True)
class Attempt:
    """A completion of a task before it is judged."""

    task: Task
    text: str
    n_tokens: int = 0
    expected_loops: float = 0.0


def make_attempt(task: Task, found: Completion) -> Attempt:
    """Return what a model wrote for a task, cut to the completion that is judged."""
    text = cut_completion(task, found.text)
    return Attempt(task, text, found.n_tokens, found.expected_loops)


def judge_completions(
    tasks: list[Task],
    completions: Iterable[tuple[str, str]],
    config: RunConfig,
    *,
    cache_dir: Path | None = None,
    truncate: bool = True,
    in_depth: bool = False,
) -> list[Episode]:
    """Judge completions from anywhere; no model is needed.

    Args:
        tasks: the tasks that may be named.
        completions: (task id, text after the prompt); several per task are its samples. The id
            may lack the name of the set: `Rust/0` is `humaneval_x/Rust/0`.
        config: `verify` and `hardware.cpu_threads` are used.
        cache_dir: folder of the verdict cache; None: judge everything anew.
        truncate: cut each text after the brace that closes the function, as a model's output
            needs; False for texts that are exactly the wanted program.
        in_depth: as for `judge_attempts`.

    Raises:
        WorkbenchError: a task id that is not among the tasks (with the nearest one).
    """
    by_id = {task.task_id.partition("/")[2]: task for task in tasks}
    by_id |= {task.task_id: task for task in tasks}
    attempts = []
    for task_id, text in completions:
        if task_id not in by_id:
            raise WorkbenchError(_no_such_task(task_id, tasks, by_id))
        task = by_id[task_id]
        attempts.append(Attempt(task, cut_completion(task, text) if truncate else text))
    return judge_attempts(attempts, config, cache_dir=cache_dir, in_depth=in_depth)


def _no_such_task(task_id: str, tasks: list[Task], known: Iterable[str]) -> str:
    close = get_close_matches(task_id, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Its ids are like {tasks[0].task_id!r}."
    return f"There is no task {task_id!r} among these {len(tasks):,}. {hint}"


def canonical_completions(tasks: list[Task]) -> list[tuple[str, str]]:
    """Return (task id, reference solution) of the tasks that have one."""
    return [(task.task_id, task.canonical_solution) for task in tasks if task.canonical_solution]


def read_completions(path: Path) -> list[tuple[str, str]]:
    """Return (task id, completion) of a JSON-lines file with these two keys.

    Several lines of one task are its samples, equal texts too. Where lines number themselves
    (`sample_idx`), the same number twice is a file that was put together twice, and refused.

    Raises:
        WorkbenchError: the file is missing or empty, a line is malformed, or a sample appears twice
            (lines named).
    """
    if not path.is_file():
        raise WorkbenchError(
            f"There is no file {path}: give 'canonical', or JSON lines such as "
            '{"task_id": "builtin/001_clamp_sum", "completion": "\\n    0\\n}"}.'
        )
    completions, seen = [], {}
    for number, row in read_json_lines(path):
        values = (row.get("task_id"), row.get("completion"))
        if not all(isinstance(value, str) for value in values):
            raise WorkbenchError(
                f"{path}, line {number}: `task_id` and `completion` must both be texts."
            )
        sample = (values[0], row.get("sample_idx"))
        if sample[1] is not None and seen.setdefault(sample, number) != number:
            raise WorkbenchError(
                f"{path}, lines {seen[sample]} and {number}: sample {sample[1]} of {values[0]!r} "
                "appears twice."
            )
        completions.append(values)
    if not completions:
        raise WorkbenchError(f"{path} holds no completion.")
    return completions


def cut_completion(task: Task, text: str) -> str:
    """Cut raw generated text to the completion that is judged.

    Problems that need an item beyond the prompt's own function keep what follows it. MultiPL-E
    texts may come without the closing brace, because their stop token cuts it off: the brace that
    is added here closes the function only when nothing before it does.
    """
    if is_flawed(task):
        return text
    ending = "\n}" if task.task_set == "multipl_e" else ""
    return truncate_completion(text + ending, task.stop_tokens)


def judge_attempts(
    attempts: list[Attempt],
    config: RunConfig,
    *,
    cache_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    in_depth: bool = False,
) -> list[Episode]:
    """Judge attempts that are cut already.

    Args:
        attempts: in the order the episodes shall have; samples of a task are numbered in it.
        config: `verify` and `hardware.cpu_threads` are used.
        cache_dir: folder of the verdict cache; None: judge everything anew.
        on_progress: called with (programs judged, programs).
        in_depth: also ask clippy and Miri about programs that pass, and judge those that ran a
            second time, to find outcomes that are not deterministic.
    """
    programs = [program_of(attempt.task, attempt.text) for attempt in attempts]
    limits, workers = config.verify, config.hardware.cpu_threads
    verified = verify(
        programs,
        Level.TEST,
        config=limits, cache_dir=cache_dir, workers=workers, on_progress=on_progress,
    )  # fmt: skip
    findings: list[SemanticFindings | None] = [None] * len(programs)
    flaky: list[bool | None] = [None] * len(programs)
    if in_depth:
        own = [attempt.task.prompt + attempt.text for attempt in attempts]
        findings = judge_semantics(
            programs, verified, own, config=limits, cache_dir=cache_dir, workers=workers
        )
        flaky = find_flaky(programs, verified, config=limits, workers=workers)
    seen: Counter[str] = Counter()
    episodes = []
    for attempt, *judgement in zip(attempts, verified, findings, flaky, strict=True):
        episodes.append(_episode(attempt, seen[attempt.task.task_id], *judgement))
        seen[attempt.task.task_id] += 1
    return episodes


def _episode(
    attempt: Attempt,
    sample_idx: int,
    verified: Verified,
    findings: SemanticFindings | None,
    is_flaky: bool | None,
) -> Episode:
    return Episode(
        task_id=attempt.task.task_id,
        sample_idx=sample_idx,
        completion=attempt.text,
        verified=verified,
        n_tokens=attempt.n_tokens,
        expected_loops=attempt.expected_loops,
        semantics=findings,
        is_flaky=is_flaky,
    )


def program_of(task: Task, completion: str) -> Program:
    """Return the program that judges a completion, with the stand-ins that HumanEval-X needs."""
    if task.task_set == "humaneval_x":
        task = with_stand_ins(task, completion)
    return assemble(task, completion)
