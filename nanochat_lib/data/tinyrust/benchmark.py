"""The fixed benchmark: the same held-out tasks for everybody, with a hash that proves it.

Output: `TASKS_PER_PART` tasks of every level from every held-out split, drawn by a seed of its own.
No two share a prompt, and none is in the training split whatever its seed, because a task's split
depends on the task alone. Results compare when the hash is `SHA256`; a change to a template, a
range or a test changes it, and with it `VERSION`. The file is the one that `nanochat evaluate`
reads.
"""

from __future__ import annotations

import hashlib
import json

from nanochat_lib.data.tinyrust.generate import FAMILIES, SPLITS, generate
from nanochat_lib.records import Task, as_row

VERSION = 1
SHA256 = "f2badfae5633278dd9ce04f7981669dc87f5f096ebc4d51bb78fa3190081db31"
TASKS_PER_PART = 40
HELD_SPLITS = tuple(split for split in SPLITS if split != "train")
LEVELS = tuple(sorted({family.level for family in FAMILIES}))
_SEED = 20_260_000 + VERSION


def benchmark_tasks() -> list[Task]:
    """Return the tasks in their fixed order: split by split, level by level."""
    return [
        task
        for split in HELD_SPLITS
        for level in LEVELS
        for task in _distinct_prompts(level, split)
    ]


def _distinct_prompts(level: int, split: str) -> list[Task]:
    """Return tasks of one part; one solution is enough where several idioms solve a prompt."""
    chosen: dict[str, Task] = {}
    for example in generate((level,), 4 * TASKS_PER_PART, _SEED, splits=(split,)):
        chosen.setdefault(example.task.prompt, example.task)
        if len(chosen) == TASKS_PER_PART:
            break
    return list(chosen.values())


def as_json_lines(tasks: list[Task]) -> str:
    """Return tasks as a task file: one JSON object a line."""
    return "".join(json.dumps(as_row(task), sort_keys=True) + "\n" for task in tasks)


def hash_of(tasks: list[Task]) -> str:
    """Return the SHA-256 of what decides a result: prompts and tests, in order."""
    parts = [[task.task_id, task.prompt, task.tests] for task in tasks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
