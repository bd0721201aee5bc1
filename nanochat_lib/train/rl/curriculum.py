"""Which tasks a policy tries: those it sometimes solves, by its own pass rate.

In: tasks and, update by update, what became of the rollouts; out: the tasks of the next update. A
prompt whose rollouts all pass or all fail has no gradient under `maxrl`, `grpo` and `rloo`, so a
family is drawn in proportion to the chance 1 - p^S - (1 - p)^S that S rollouts of it differ, with p
its recent pass rate. Families never tried count as p = 1/2, so all are tried first; no family is
ever left out, because p changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Task
from nanochat_lib.train.rl.rollouts import Rollout

LEAST_WEIGHT = 0.05  # of a family that is always or never solved
MEMORY = 0.9  # kept of a family's counts at every update that tries it: about ten of them count
MAIN_SPLIT = "held_parameters"
OTHER_SPLITS = ("held_composition", "held_family", "held_package")  # looked at before and after


class Curriculum:
    """Draws training tasks by family; `state` is what a resumed run must remember."""

    def __init__(self, tasks: Iterable[Task], n_rollouts: int, state: dict[str, Any]) -> None:
        """Begin, or go on from the `state` of an earlier attempt (changed in place)."""
        self.state, self._n_rollouts = state, n_rollouts
        self._families: dict[str, list[Task]] = {}
        for task in tasks:
            self._families.setdefault(family_of(task), []).append(task)

    def weight(self, family: str) -> float:
        """Return how often a family is drawn, relative to others."""
        counts = self.state.get(family, {"recent": (0.0, 0.0)})
        passed, tried = counts["recent"]
        p = (passed + 1) / (tried + 2)
        n = self._n_rollouts
        return 1 - p**n - (1 - p) ** n + LEAST_WEIGHT

    def choose(self, n_tasks: int, *, seed: str) -> list[Task]:
        """Return the tasks of an update, which depend on the state and the seed only."""
        rng = Random(seed)
        names = list(self._families)
        picks = rng.choices(names, [self.weight(name) for name in names], k=n_tasks)
        return [rng.choice(self._families[family]) for family in picks]

    def learn(self, rollouts: Iterable[Rollout]) -> None:
        """Take note of what was tried in one update."""
        found: dict[str, list[int]] = {}
        for rollout in rollouts:
            counts = found.setdefault(family_of(rollout.task), [0, 0])
            counts[0] += rollout.has_passed
            counts[1] += rollout.is_judged
        for family, (passed, tried) in found.items():
            old = self.state.get(family, {"recent": (0.0, 0.0), "all": (0, 0)})
            self.state[family] = {
                "recent": [MEMORY * old["recent"][0] + passed, MEMORY * old["recent"][1] + tried],
                "all": [old["all"][0] + passed, old["all"][1] + tried],
            }

    def table(self) -> list[dict[str, Any]]:
        """Return one row per family: level, pass rate lately and over all, share of the draws."""
        weights = {name: self.weight(name) for name in self._families}
        total = sum(weights.values())
        rows = []
        for name, tasks in self._families.items():
            counts = self.state.get(name, {"recent": (0.0, 0.0), "all": (0, 0)})
            passed, tried = counts["recent"]
            rows.append({
                "family": name,
                "level": tasks[0].level,
                "n_tasks": len(tasks),
                "n_passed": counts["all"][0],
                "n_tried": counts["all"][1],
                "pass_rate_recent": passed / tried if tried else None,
                "weight": weights[name] / total,
            })  # fmt: skip
        return sorted(rows, key=lambda row: (row["level"], row["family"]))


def family_of(task: Task) -> str:
    """Return the name under which a task's chances are kept; packages of a corpus share one."""
    if task.task_set == "tinyrust":
        return task.family
    return "/".join([task.task_set, *task.flags[:1]])


def split_tasks(
    tasks: Sequence[Task], levels: Sequence[int], n_held_out: int, *, seed: int
) -> tuple[list[Task], dict[str, list[Task]]]:
    """Return the training tasks, and the held-out ones by split: fixed for a seed.

    Tasks of a corpus have no level and are always taken. One task per prompt; of each split as many
    tasks of every level as can be had, in an order that mixes the levels, so that its first part is
    a fair sample too. Splits beside the main one have a third of its tasks.

    Raises:
        WorkbenchError: no task to train on, or none to look at.
    """
    distinct = {task.prompt: task for task in sorted(tasks, key=lambda t: t.task_id)}
    by_split: dict[str, list[Task]] = {}
    for task in distinct.values():
        if task.level in levels or not task.level:
            by_split.setdefault(task.split or "train", []).append(task)
    for split in ("train", MAIN_SPLIT):
        if not by_split.get(split):
            raise WorkbenchError(
                f"MaxRL needs TinyRust tasks of split {split!r} at levels {tuple(levels)} whose "
                f"prompt leaves room for maxrl.max_new_tokens; {len(tasks)} tasks of all splits "
                "and levels fit and none is. Raise data.tinyrust_examples, or change maxrl.levels "
                "or max_new_tokens."
            )
    held_out = {}
    for split in (MAIN_SPLIT, *OTHER_SPLITS):
        n_wanted = n_held_out if split == MAIN_SPLIT else -(-n_held_out // 3)
        if picked := _spread(by_split.get(split, []), n_wanted, f"{seed} {split}"):
            held_out[split] = picked
    return by_split["train"], held_out


def _spread(tasks: Sequence[Task], n_wanted: int, seed: str) -> list[Task]:
    """Return tasks of all levels in turn, in a random order within each."""
    rng = Random(seed)
    shuffled = rng.sample(tasks, len(tasks))
    turns: dict[int, int] = {}
    order = []
    for task in shuffled:
        turns[task.level] = turns.get(task.level, 0) + 1
        order.append((turns[task.level], task.level))
    ranked = sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])
    return [task for _, task in ranked[:n_wanted]]
