"""Stage 3: reinforcement learning with rustc and the tests as the judge (MaxRL).

In: a stage-2 checkpoint and TinyRust tasks. Each update samples programs for a few training tasks
with the packed decode engine, lets the verification engine build and test them, turns pass or fail
into advantages and takes one policy-gradient step; then the engine packs the new weights. Out:
`final/`, `checkpoints/`, `summary.json` with compile and pass rates on held-out tasks before and
after, and metrics as they come.

Nothing depends on hidden random state: tasks and samples of an update follow from (seed, step), so
a run that was stopped goes on with the numbers it would have had.

Source: MaxRL (arXiv 2602.02710). We differ in choosing tasks by how often their family is solved,
because tasks that are always or never solved give no gradient.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nanochat_lib.config import RunConfig
from nanochat_lib.control import must_stop
from nanochat_lib.data.tokenizer import load_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import TrainState, load_checkpoint, save_checkpoint
from nanochat_lib.model.engine import Engine
from nanochat_lib.records import Metric, Task
from nanochat_lib.runs import write_atomic
from nanochat_lib.train.execution import cpu_threads, signals_set
from nanochat_lib.train.rl.advantage import advantages
from nanochat_lib.train.rl.policy import Policy
from nanochat_lib.train.rl.rollouts import Rollout, Sampler, guards, judge, length_guard, rates
from nanochat_lib.train.watch.continuous import adjust_reward_threshold

STAGE = "maxrl"
EVAL_SAMPLES = 4  # programs per held-out task
KEEP_CHECKPOINTS = 2
MAX_EXAMPLES = 12
OTHER_SPLITS = ("held_composition", "held_family")  # looked at before and after only
Log = Callable[[int, dict[str, float]], None]


def maxrl(
    config: RunConfig,
    base_checkpoint: Path,
    tasks: list[Task],
    folder: Path,
    *,
    log: Log,
    cache_dir: Path | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Run stage 3 and return its summary, which is also written to `folder/summary.json`.

    Args:
        config: `maxrl`, `verify`, `hardware.cpu_threads` and `seed` are used.
        base_checkpoint: folder of a stage-2 checkpoint with its tokenizer.
        tasks: TinyRust tasks of all splits; training uses "train" only.
        folder: artifacts folder of the stage; an unfinished run found there is continued.
        log: takes (update, values by Metric name); update 0 is the untrained policy.
        cache_dir: of the verification engine.
        stop: polled before every update; when set, a checkpoint is written first.
        progress: takes (done, total, text).

    Raises:
        WorkbenchError: no tasks at the levels asked for, no tokenizer, or a refused checkpoint.
        KeyboardInterrupt: `stop` was set.
    """
    trainer = _open_trainer(config, base_checkpoint, tasks, folder, cache_dir)
    report = progress or (lambda done, total, text: None)
    stop = stop or threading.Event()
    with signals_set(stop), cpu_threads(config.hardware.cpu_threads, folder):
        trainer.run(log, stop, report)
        return trainer.finish()


@dataclass
class _Trainer:
    """The moving parts of the stage; `record` is what a resumed run must remember."""

    config: RunConfig
    folder: Path
    cache_dir: Path | None
    tokenizer_path: Path
    tokens_seen: int
    policy: Policy
    engine: Engine
    sampler: Sampler
    train_tasks: list[Task]
    held_out: dict[str, list[Task]]  # split -> tasks
    step: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    last_look: list[Rollout] = field(default_factory=list)

    def run(self, log: Log, stop: threading.Event, report: Callable[[int, int, str], None]) -> None:
        """Update until `total_steps`, looking at held-out tasks before, in between and after."""
        plan = self.config.maxrl
        if "before" not in self.record:
            report(0, plan.total_steps, "held-out tasks before")
            log(0, self.look("before"))
        while self.step < plan.total_steps:
            if must_stop(self.folder, stop, self.save):
                self.save()
                raise KeyboardInterrupt("stopped by request; the checkpoint was written")
            values = self.update()
            if self.step % plan.eval_every == 0 and self.step < plan.total_steps:
                values |= self.look("during")
            log(self.step, values)
            if self.step % plan.checkpoint_every == 0:
                self.save()
            report(self.step, plan.total_steps, f"{values[Metric.PASS_RATE]:.0%} passed")
        log(plan.total_steps, self.look("after"))

    def update(self) -> dict[str, float]:
        """Sample, judge, learn; return the metrics of this update."""
        plan, seconds = self.config.maxrl, Counter()
        tasks = self._choose_tasks()
        rollouts = self._attempt(tasks, plan.rollouts_per_prompt, f"update {self.step}", seconds)
        shape = (len(tasks), plan.rollouts_per_prompt)
        rewards = np.array([r.episode.reward for r in rollouts]).reshape(shape)
        judged = np.array([r.is_judged for r in rollouts]).reshape(shape)
        started = time.perf_counter()
        advantage = advantages(rewards, judged, plan.advantage).ravel()
        grad_norm = self.policy.update(rollouts, advantage, plan)
        self.engine.reload(self.policy.model)
        seconds[Metric.UPDATE_S] = time.perf_counter() - started
        self._remember(rollouts, seconds)
        self.step += 1
        found = rates(rollouts)
        return {
            Metric.COMPILE_RATE: found["compile_rate"],
            Metric.PASS_RATE: found["pass_rate"],
            Metric.REWARD_MEAN: found["reward_mean"],
            Metric.N_UNJUDGED: float(found["n_unjudged"]),
            Metric.DISTINCT_BODIES: found["distinct_bodies_rate"],
            Metric.COMPLETION_TOKENS: found["completion_tokens_mean"],
            Metric.TOKEN_ENTROPY: found["token_entropy_nats"],
            Metric.GRAD_NORM: grad_norm,
            Metric.LEARNING_RATE: plan.learning_rate,
            **seconds,
        }

    def look(self, moment: str) -> dict[str, float]:
        """Judge held-out tasks with the same seeds at every moment; keep rates in the record."""
        splits = self.held_out if moment != "during" else {"held_parameters": ()}
        by_split, seconds = {}, Counter()
        for split in splits:
            rollouts = self._attempt(self.held_out[split], EVAL_SAMPLES, "held out", seconds)
            by_split[split] = rates(rollouts)
            if split == "held_parameters":
                self.last_look = rollouts
        main = by_split["held_parameters"]
        self._remember((), {f"held_out_{part}": s for part, s in seconds.items()})
        self._adjust_threshold(main["compile_rate"])
        if moment != "during":
            self.record[moment] = main | {
                "by_level": _by_level(self.last_look),
                "by_split": by_split,
                "guards": guards(self.last_look),
                "samples": [_first_sample(r) for r in self.last_look if not r.episode.sample_idx],
            }
        return {
            Metric.HELD_OUT_COMPILE_RATE: main["compile_rate"],
            Metric.HELD_OUT_PASS_RATE: main["pass_rate"],
        }

    def _adjust_threshold(self, compile_rate: float) -> None:
        """Ask for better programs while too few compile, where the configuration wants that."""
        plan, target = self.config.maxrl, self.config.targets.compile_rate
        if plan.adjust_reward_threshold and target is not None:
            before = self.record.get("reward_threshold", plan.reward_threshold)
            after = adjust_reward_threshold(before, compile_rate, target)
            self.record["reward_threshold"] = after

    def save(self) -> None:
        """Write a checkpoint that can be resumed; drop the oldest beyond `KEEP_CHECKPOINTS`."""
        root = self.folder / "checkpoints"
        state = TrainState(self.policy.state_tensors(), {"record": self.record})
        self._write(root / f"step_{self.step:06d}", state)
        for old in _saved(root)[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def finish(self) -> dict[str, Any]:
        """Write `final/` and the summary."""
        self._write(self.folder / "final", None)
        before, after = self.record["before"], self.record["after"]
        summary = {
            "before": _without_samples(before),
            "after": _without_samples(after),
            "examples": _examples(before["samples"], after["samples"]),
            "guards": after["guards"] | {"length_collapse": length_guard(before, after)},
            "advantage": self.config.maxrl.advantage,
            "reward": self.config.maxrl.reward,
            "gate": "frozen; all loops run while sampling and training",
            "steps": self.step,
            "samples_per_task": EVAL_SAMPLES,
            "solved_by_family": self.record.get("solved", {}),
            "sandbox": next((r.episode.verified.sandbox for r in self.last_look), ""),
            "n_unjudged": self.record.get("n_unjudged", 0),
            "seconds": {k: round(v, 2) for k, v in self.record.get("seconds", {}).items()},
        }
        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def _attempt(
        self, tasks: Sequence[Task], n_samples: int, purpose: str, seconds: Counter
    ) -> list[Rollout]:
        plan, started = self.config.maxrl, time.perf_counter()
        seed = stable_seed(self.config.seed, purpose)
        drafts = self.sampler.sample(tasks, n_samples, plan, seed=seed)
        sampled = time.perf_counter()
        threshold = self.record.get("reward_threshold", plan.reward_threshold)
        strict = plan.model_copy(update={"reward_threshold": threshold})
        rollouts = judge(drafts, strict, self.config.verify, cache_dir=self.cache_dir)
        seconds[Metric.GENERATE_S] += sampled - started
        seconds[Metric.VERIFY_S] += time.perf_counter() - sampled
        return rollouts

    def _choose_tasks(self) -> list[Task]:
        """Draw tasks, more often from families that are sometimes solved than always or never.

        The weight is p (1 - p) + 0.05 with p = (passed + 1) / (tried + 2) of the family so far.
        """
        rng = Random(f"{self.config.seed} tasks {self.step}")
        solved = self.record.get("solved", {})
        by_family: dict[str, list[Task]] = {}
        for task in self.train_tasks:
            by_family.setdefault(task.family, []).append(task)
        weights = []
        for family in by_family:
            passed, tried = solved.get(family, (0, 0))
            p = (passed + 1) / (tried + 2)
            weights.append(p * (1 - p) + 0.05)
        picks = rng.choices(list(by_family), weights, k=self.config.maxrl.prompts_per_step)
        return [rng.choice(by_family[family]) for family in picks]

    def _remember(self, rollouts: Sequence[Rollout], seconds: dict[str, float]) -> None:
        totals = self.record.setdefault("seconds", {})
        for part, value in seconds.items():
            totals[str(part)] = totals.get(str(part), 0.0) + value
        solved = self.record.setdefault("solved", {})
        for rollout in rollouts:
            passed, tried = solved.get(rollout.task.family, (0, 0))
            solved[rollout.task.family] = [passed + rollout.has_passed, tried + rollout.is_judged]
        n_unjudged = sum(not r.is_judged for r in rollouts)
        self.record["n_unjudged"] = self.record.get("n_unjudged", 0) + n_unjudged

    def _write(self, folder: Path, state: TrainState | None) -> None:
        save_checkpoint(
            folder,
            self.policy.model,
            step=self.step,
            tokens_seen=self.tokens_seen,
            stage=STAGE,
            tokenizer_json=self.tokenizer_path,
            state=state,
        )


def stable_seed(seed: int, purpose: str) -> int:
    """Return a 32-bit seed that depends only on the run's seed and what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "big")


def _open_trainer(
    config: RunConfig,
    base_checkpoint: Path,
    tasks: list[Task],
    folder: Path,
    cache_dir: Path | None,
) -> _Trainer:
    """Load the latest checkpoint of an unfinished run, or the base model; pack it for sampling."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = _saved(folder / "checkpoints")
    source = saved[-1] if saved else base_checkpoint
    loaded = load_checkpoint(source, with_state=bool(saved))
    if loaded.tokenizer_path is None:
        raise WorkbenchError(
            f"The checkpoint {source} holds no tokenizer.json, so its tokens have no meaning: "
            "start from a folder that pre-training wrote."
        )
    policy = Policy(loaded.model, config.maxrl.learning_rate)
    length, hardware = loaded.config.max_seq_len, config.hardware
    engine = Engine.from_model(
        policy.model, max_seq_len=length, threads=hardware.cpu_threads, numa=hardware.numa_aware
    )
    sampler = Sampler(engine, load_tokenizer(loaded.tokenizer_path), length)
    train, held_out = _select_tasks(config, tasks, sampler)
    trainer = _Trainer(
        config, folder, cache_dir, loaded.tokenizer_path, loaded.tokens_seen, policy, engine,
        sampler, train, held_out,
    )  # fmt: skip
    if loaded.state is not None:
        policy.load_state_tensors(loaded.state.tensors)
        trainer.step, trainer.record = loaded.step, loaded.state.values["record"]
    return trainer


def _select_tasks(
    config: RunConfig, tasks: list[Task], sampler: Sampler
) -> tuple[list[Task], dict[str, list[Task]]]:
    """Return training tasks, and held-out tasks by split: fixed for a seed, one per prompt."""
    plan = config.maxrl
    by_split: dict[str, list[Task]] = {}
    distinct = {task.prompt: task for task in sorted(tasks, key=lambda t: t.task_id)}
    for task in distinct.values():
        if task.level in plan.levels and sampler.fits(task, plan.max_new_tokens):
            by_split.setdefault(task.split, []).append(task)
    for split in ("train", "held_parameters"):
        if not by_split.get(split):
            raise WorkbenchError(
                f"MaxRL needs TinyRust tasks of split {split!r} at levels {plan.levels} whose "
                f"prompt leaves room for maxrl.max_new_tokens = {plan.max_new_tokens} of the "
                f"model's {sampler.max_seq_len} tokens; {len(tasks)} tasks were given and none "
                "is. Raise data.tinyrust_examples, or change maxrl.levels or max_new_tokens."
            )
    held_out = {}
    for split in ("held_parameters", *OTHER_SPLITS):
        found = by_split.get(split, [])
        wanted = plan.eval_tasks if split == "held_parameters" else -(-plan.eval_tasks // 3)
        picked = Random(f"{config.seed} {split}").sample(found, min(wanted, len(found)))
        if picked:
            held_out[split] = picked
    return by_split["train"], held_out


def _saved(root: Path) -> list[Path]:
    """Return the complete checkpoints of a stage, oldest first (drafts have other names)."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in folders if re.fullmatch(r"step_\d{6}", path.name))


def _by_level(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    levels = sorted({r.task.level for r in rollouts})
    return {str(n): rates([r for r in rollouts if r.task.level == n]) for n in levels}


def _first_sample(rollout: Rollout) -> dict[str, str]:
    verified = rollout.episode.verified
    return {
        "task_id": rollout.task.task_id,
        "prompt": rollout.task.prompt,
        "completion": rollout.episode.completion,
        "verdict": str(verified.verdict),
        "why": verified.diagnostics[0].message if verified.diagnostics else verified.detail,
    }


def _examples(before: list[dict[str, str]], after: list[dict[str, str]]) -> list[dict[str, str]]:
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


def _without_samples(look: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in look.items() if key != "samples"}
