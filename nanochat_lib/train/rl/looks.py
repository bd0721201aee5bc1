"""Looks at held-out tasks: before, between and after the updates of stage 3.

In: a policy's sampler, tasks it never trains on, the base model. Out: plain dictionaries for the
record, from which the summary and its curves are made. Every look samples the same tasks with the
same seeds. Points of a curve are measured on the same tasks (`eval_tasks` of the main split);
before and after all `final_eval_tasks` are sampled, and other splits too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.config import RunConfig
from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric, Task
from nanochat_lib.train.rl import measures
from nanochat_lib.train.rl.attempts import Attempts
from nanochat_lib.train.rl.curriculum import MAIN_SPLIT
from nanochat_lib.train.rl.policy import compare
from nanochat_lib.train.rl.rollouts import Rollout, stable_seed

KS = (1, 2, 4, 8, 16, 32)
COMPARED = 96  # rollouts of a look whose distance to the base is measured
MAX_EXAMPLES = 12


@dataclass(frozen=True)
class Looks:
    """Held-out tasks by split, and what is needed to try them."""

    config: RunConfig
    attempts: Attempts
    held_out: dict[str, list[Task]]
    base_checkpoint: Path

    def between(self, model: LoopLM, seconds: Counter) -> dict[str, Any]:
        """Return the point of the curves: rates, mistakes, reward parts, distance to the base."""
        return self._point(self._try(self._curve_tasks, MAIN_SPLIT, seconds), model)

    def whole(self, model: LoopLM, seconds: Counter) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the point of the curves, and all that is said before and after training."""
        found = {split: self._try(tasks, split, seconds) for split, tasks in self.held_out.items()}
        main = found[MAIN_SPLIT]
        first = {task.task_id for task in self._curve_tasks}
        point = self._point([r for r in main if r.task.task_id in first], model)
        by_task = measures.count_tasks(main)
        look = measures.rates(main) | {
            "by_level": _by_level(main),
            "by_split": {split: measures.rates(rollouts) for split, rollouts in found.items()},
            "pass_at": measures.pass_at(by_task, KS),
            "mistakes": measures.mistakes(main),
            "guards": measures.guards(main),
            "by_task": by_task,
            "samples": [_sample(r) for r in main if not r.episode.sample_idx],
            "sandbox": next((r.episode.verified.sandbox for r in main), ""),
        }
        return point, look

    def gains(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """Return the paired rises between two whole looks, over all tasks and by level."""
        by_level: dict[int, measures.PerTask] = {}
        for task in self.held_out[MAIN_SPLIT]:
            if task.task_id in before["by_task"]:
                counts = by_level.setdefault(task.level, {})
                counts[task.task_id] = before["by_task"][task.task_id]
        return measures.gains(before["by_task"], after["by_task"]) | {
            f"level{level}": measures.gains(counts, after["by_task"])
            for level, counts in sorted(by_level.items())
        }

    @property
    def _curve_tasks(self) -> list[Task]:
        return self.held_out[MAIN_SPLIT][: self.config.maxrl.eval_tasks]

    def _try(self, tasks: list[Task], split: str, seconds: Counter) -> list[Rollout]:
        plan = self.config.maxrl
        seed = stable_seed(self.config.seed, f"held out {split}")
        timed: Counter = Counter()
        found = self.attempts.all(tasks, plan.eval_samples, plan, seed=seed, seconds=timed)
        seconds.update({f"held_out_{part}": value for part, value in timed.items()})
        return found

    def _point(self, rollouts: Sequence[Rollout], model: LoopLM) -> dict[str, Any]:
        base = load_checkpoint(self.base_checkpoint).model.to(model.head.weight.device)
        far = compare(model, base, rollouts[:COMPARED], self.config.maxrl.temperature)
        return measures.rates(rollouts) | {
            "by_level": {k: v["pass_rate"] for k, v in _by_level(rollouts).items()},
            "mistakes": measures.mistakes(rollouts),
            "reward_parts": measures.mean_reward_parts(rollouts),
            "guards": {k: v["share"] for k, v in measures.guards(rollouts).items()},
            **far,
        }


def metrics_of(point: dict[str, Any]) -> dict[str, float]:
    """Return what of a point is written as metrics."""
    names = {
        Metric.HELD_OUT_COMPILE_RATE: "compile_rate",
        Metric.HELD_OUT_PASS_RATE: "pass_rate",
        Metric.KL_NATS: "kl_nats",
        Metric.EXPECTED_LOOPS: "expected_loops",
    }
    return {metric: point[key] for metric, key in names.items() if key in point} | {
        Metric.SEMANTIC_SCORE: point["mistakes"]["semantic_score"]
    }


def pair_examples(
    before: Sequence[dict[str, str]], after: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Pair the first samples of every held-out task; what changed its verdict comes first."""
    later = {sample["task_id"]: sample for sample in after}
    pairs = [(old, later[old["task_id"]]) for old in before if old["task_id"] in later]
    pairs.sort(key=lambda pair: pair[0]["verdict"] == pair[1]["verdict"])
    return [
        {
            "task_id": old["task_id"],
            "prompt": old["prompt"],
            "before": old["completion"],
            "after": new["completion"],
            "verdict_before": old["verdict"],
            "verdict_after": new["verdict"],
            "why_before": old["why"],
            "why_after": new["why"],
        }
        for old, new in pairs[:MAX_EXAMPLES]
    ]


def without_lists(look: dict[str, Any]) -> dict[str, Any]:
    """Return a look without what is only kept to compare it with another one."""
    kept_apart = ("samples", "by_task")
    return {key: value for key, value in look.items() if key not in kept_apart}


def _by_level(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    levels = sorted({r.task.level for r in rollouts})
    return {str(n): measures.rates([r for r in rollouts if r.task.level == n]) for n in levels}


def _sample(rollout: Rollout) -> dict[str, str]:
    verified = rollout.episode.verified
    return {
        "task_id": rollout.task.task_id,
        "prompt": rollout.task.prompt,
        "completion": rollout.episode.completion,
        "verdict": str(verified.verdict),
        "why": verified.diagnostics[0].message if verified.diagnostics else verified.detail,
    }
