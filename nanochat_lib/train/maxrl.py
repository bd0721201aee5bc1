"""Stage 3: reinforcement learning with rustc and the tests as the judge (MaxRL).

In: a stage-2 checkpoint and tasks with hidden tests. Each update draws tasks that the policy solves
sometimes, samples programs with the packed decode engine, lets the verification engine build and
test them while the next are sampled, turns pass or fail into advantages and takes a policy-gradient
step; then the engine packs the new weights. Out: `final/`, `checkpoints/`, `summary.json` with
rates on held-out tasks before and after, their curves in between, and metrics as they come.

Nothing depends on hidden random state: tasks and samples of an update follow from (seed, step), so
a run that was stopped or killed goes on with the numbers it would have had.

Source: MaxRL (arXiv 2602.02710). We differ in choosing tasks by how often their family is solved
(`rl/curriculum.py`), because tasks that are always or never solved give no gradient.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_lib.config import MaxRLConfig, RunConfig
from nanochat_lib.control import STOP, is_asked, must_stop
from nanochat_lib.data.tinyrust.unseen import unseen_tasks
from nanochat_lib.data.tokenizer import load_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.model.backend import open_engine
from nanochat_lib.model.checkpoint import TOKENIZER, TrainState, load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Decoder
from nanochat_lib.records import Metric, Task, as_row
from nanochat_lib.runs import write_atomic
from nanochat_lib.train.execution import (
    Abandoned,
    choose_device,
    choose_dtype,
    cpu_threads,
    signals_set,
)
from nanochat_lib.train.rl import looks, measures
from nanochat_lib.train.rl.advantage import advantages
from nanochat_lib.train.rl.attempts import Attempts
from nanochat_lib.train.rl.curriculum import Curriculum, split_tasks
from nanochat_lib.train.rl.looks import Looks
from nanochat_lib.train.rl.policy import Policy, Step
from nanochat_lib.train.rl.rollouts import Rollout, Sampler, stable_seed
from nanochat_lib.train.rl.warm_start import warm_start
from nanochat_lib.train.watch.continuous import adjust_reward_threshold

STAGE = "maxrl"
KEEP_CHECKPOINTS = 2
STEADY = 0.5  # share of the updates before the learning rate falls
NEW_TASKS = "new_tasks.jsonl"
Log = Callable[[int, dict[str, float]], None]
Report = Callable[[int, int, str], None]


def maxrl(
    config: RunConfig,
    base_checkpoint: Path,
    tasks: list[Task],
    folder: Path,
    *,
    log: Log,
    cache_dir: Path | None = None,
    stop: threading.Event | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Run stage 3 and return its summary, which is also written to `folder/summary.json`.

    Args:
        config: `maxrl`, `verify`, `hardware`, `targets` and `seed` are used.
        base_checkpoint: folder of a stage-2 checkpoint with its tokenizer.
        tasks: of all splits; training uses "train" (and tasks without a split) only.
        folder: artifacts folder of the stage; an unfinished run found there is continued.
        log: takes (update, values by Metric name); update 0 is the untrained policy.
        cache_dir: of the verification engine.
        stop: polled before every update and while programs are sampled and judged; when set, a
            checkpoint is written first.
        progress: takes (done, total, text).

    Raises:
        WorkbenchError: no tasks at the levels asked for, no tokenizer, or a refused checkpoint.
        KeyboardInterrupt: `stop` was set.
    """
    report = progress or (lambda done, total, text: None)
    stop = stop or threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    with signals_set(stop), cpu_threads(config.hardware.cpu_threads, folder):
        trainer = _open_trainer(config, base_checkpoint, tasks, folder, cache_dir, stop)
        try:
            trainer.run(log, stop, report)
        finally:
            trainer.attempts.close()
        return trainer.finish()


@dataclass
class _Trainer:
    """The moving parts of the stage; `record` is what a resumed run must remember."""

    config: RunConfig
    folder: Path
    tokenizer_path: Path
    tokens_seen: int
    policy: Policy
    engine: Decoder
    attempts: Attempts
    looks: Looks
    curriculum: Curriculum
    step: int = 0
    record: dict[str, Any] = field(default_factory=dict)

    def run(self, log: Log, stop: threading.Event, report: Report) -> None:
        """Update until `total_steps`, looking at held-out tasks before, in between and after."""
        try:
            self._run(log, stop, report)
        except Abandoned:
            self._stop(stop)

    def _run(self, log: Log, stop: threading.Event, report: Report) -> None:
        plan = self.config.maxrl
        if "before" not in self.record:
            report(0, plan.total_steps, "held-out tasks before")
            log(0, self.look("before"))
        if plan.warm_start_tasks and "warm_start" not in self.record:
            report(0, plan.total_steps, "warm start on programs that pass")
            self.warm_start()
        while self.step < plan.total_steps:
            if must_stop(self.folder, stop, self.save):
                self._stop(stop)
            if self.step and self.step % plan.eval_every == 0 and not self._has_looked():
                log(self.step, self.look("during"))
            values = self.update()
            log(self.step, values)
            if self.step % plan.checkpoint_every == 0:
                self.save()
            report(self.step, plan.total_steps, f"{values[Metric.PASS_RATE]:.0%} passed")
        self.policy.model.round_tables()
        self.engine.reload(self.policy.model)
        report(self.step, plan.total_steps, "held-out tasks after")
        log(plan.total_steps, self.look("after"))

    def _has_looked(self) -> bool:
        return any(point["step"] == self.step for point in self.record["looks"])

    def _stop(self, stop: threading.Event) -> None:
        """Write the checkpoint of the last whole update, and end."""
        must_stop(self.folder, stop, self.save)  # takes the request back
        self.save()
        raise KeyboardInterrupt("stopped by request; the checkpoint was written")

    def update(self) -> dict[str, float]:
        """Sample, judge, learn; return the metrics of this update."""
        plan, seconds = self._plan(), Counter()
        began = time.perf_counter()
        tasks = self.curriculum.choose(
            plan.prompts_per_step, seed=f"{self.config.seed} tasks {self.step}"
        )
        scale = float(len(tasks) * plan.rollouts_per_prompt * plan.max_new_tokens)
        seed = stable_seed(self.config.seed, f"update {self.step}")
        rollouts: list[Rollout] = []
        share = rate_share(self.step, plan.total_steps)
        self.policy.set_rate(share)
        self.policy.begin()
        for part in self.attempts.stream(
            tasks, plan.rollouts_per_prompt, plan, seed=seed, seconds=seconds
        ):
            started = time.perf_counter()
            self.policy.learn(part, advantages_of(part, plan), scale=scale)
            seconds[Metric.UPDATE_S] += time.perf_counter() - started
            rollouts += part
        started = time.perf_counter()
        step = self.policy.step(scale=scale)
        self.engine.reload(self.policy.model)
        seconds[Metric.UPDATE_S] += time.perf_counter() - started
        self.curriculum.learn(rollouts)
        self._remember(rollouts, {**seconds, "updates_s": time.perf_counter() - began})
        self.step += 1
        return (
            _metrics(rollouts, step, plan, share) | _throughput(rollouts, seconds) | dict(seconds)
        )

    def warm_start(self) -> None:
        """Learn what passes anyway as text, look at what that gave, and save.

        That look is a point of the summary only: as metrics, step 0 is the base.
        """
        plan = self._plan()
        tasks = self.curriculum.choose(plan.warm_start_tasks, seed=f"{self.config.seed} warm start")
        found = warm_start(
            self.policy.model,
            list({task.task_id: task for task in tasks}.values()),
            self.attempts,
            plan,
            seed=self.config.seed,
            dtype=self.policy.dtype,
        )
        self.engine.reload(self.policy.model)
        self.record["warm_start"] = found
        self._remember((), found["seconds"])
        self.look("warm start")
        self.save()

    def look(self, moment: str) -> dict[str, float]:
        """Judge held-out tasks with the same seeds at every moment; keep rates in the record."""
        seconds: Counter = Counter()
        if moment not in ("before", "after"):
            point = self.looks.between(self.policy.model, seconds)
        else:
            point, self.record[moment] = self.looks.whole(self.policy.model, seconds)
        self.record.setdefault("looks", []).append({"step": self.step, "moment": moment} | point)
        self._remember((), seconds)
        self._adjust_threshold(point["compile_rate"])
        return looks.metrics_of(point)

    def _plan(self) -> MaxRLConfig:
        """Return the configuration with the reward threshold of now."""
        threshold = self.record.get("reward_threshold", self.config.maxrl.reward_threshold)
        return self.config.maxrl.model_copy(update={"reward_threshold": threshold})

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
        before, after, plan = self.record["before"], self.record["after"], self.config.maxrl
        summary = {
            "before": looks.without_lists(before),
            "after": looks.without_lists(after),
            "gains": self.looks.gains(before, after),
            "looks": self.record["looks"],
            "examples": looks.pair_examples(before["samples"], after["samples"]),
            "guards": after["guards"] | measures.drift_guards(before, after),
            "advantage": plan.advantage,
            "reward": plan.reward,
            "reward_threshold": self._plan().reward_threshold,
            "gate": "frozen; all loops run while sampling and training",
            "steps": self.step,
            "samples_per_task": plan.eval_samples,
            "warm_start": self.record.get("warm_start"),
            "curriculum": self.curriculum.table(),
            "sandbox": after["sandbox"],
            "decoding": self.engine.runs_on,
            "device": self.policy.model.head.weight.device.type,
            "n_rollouts": self.record.get("n_rollouts", 0),
            "n_unjudged": self.record.get("n_unjudged", 0),
            "seconds": {k: round(v, 2) for k, v in self.record.get("seconds", {}).items()},
        }
        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def _remember(self, rollouts: Sequence[Rollout], seconds: dict[str, float]) -> None:
        totals = self.record.setdefault("seconds", {})
        for part, value in seconds.items():
            totals[str(part)] = totals.get(str(part), 0.0) + value
        for name, n in (
            ("n_rollouts", len(rollouts)),
            ("n_unjudged", sum(not r.is_judged for r in rollouts)),
        ):
            self.record[name] = self.record.get(name, 0) + n

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


def rate_share(step: int, total_steps: int) -> float:
    """Return the share of the learning rate at an update: whole at first, 0 after the last.

    Constant rates left the policy as noisy as its last updates.
    """
    return min(1.0, (total_steps - step) / (total_steps * (1 - STEADY)))


def advantages_of(rollouts: Sequence[Rollout], plan: MaxRLConfig) -> np.ndarray:
    """Return one advantage per rollout; they stand in groups of one prompt each."""
    shape = (-1, plan.rollouts_per_prompt)
    rewards = np.array([r.episode.reward for r in rollouts]).reshape(shape)
    judged = np.array([r.is_judged for r in rollouts]).reshape(shape)
    return advantages(rewards, judged, plan.advantage).ravel()


def _metrics(
    rollouts: Sequence[Rollout], step: Step, plan: MaxRLConfig, share: float
) -> dict[str, float]:
    found = measures.rates(rollouts)
    rewards = np.array([r.episode.reward for r in rollouts]).reshape(-1, plan.rollouts_per_prompt)
    values = {
        Metric.COMPILE_RATE: found["compile_rate"],
        Metric.PASS_RATE: found["pass_rate"],
        Metric.REWARD_MEAN: found["reward_mean"],
        Metric.N_UNJUDGED: float(found["n_unjudged"]),
        Metric.MIXED_GROUPS: float((rewards.min(1) < rewards.max(1)).mean()),
        Metric.DISTINCT_BODIES: found["distinct_bodies_rate"],
        Metric.COMPLETION_TOKENS: found["completion_tokens_mean"],
        Metric.TOKEN_ENTROPY: found["token_entropy_nats"],
        Metric.GRAD_NORM: step.grad_norm,
        Metric.LEARNING_RATE: plan.learning_rate * share,
    }
    if plan.inner_steps > 1:
        values[Metric.CLIPPED_SHARE] = step.clipped_share
    if plan.kl_weight:
        values[Metric.UPDATE_KL] = step.kl_nats
    return values


def _throughput(rollouts: Sequence[Rollout], seconds: Counter) -> dict[str, float]:
    n_tokens = sum(r.episode.n_tokens for r in rollouts)
    return {
        Metric.COMPLETION_TOKENS_S: n_tokens / max(seconds[Metric.GENERATE_S], 1e-9),
        Metric.PROGRAMS_S: len(rollouts) / max(seconds[Metric.VERIFY_S], 1e-9),
    }


def _open_trainer(
    config: RunConfig,
    base_checkpoint: Path,
    tasks: list[Task],
    folder: Path,
    cache_dir: Path | None,
    stop: threading.Event,
) -> _Trainer:
    """Load the latest checkpoint of an unfinished run, or the base model; pack it for sampling."""
    saved = _saved(folder / "checkpoints")
    source = saved[-1] if saved else base_checkpoint
    loaded = load_checkpoint(source, with_state=bool(saved))
    if loaded.tokenizer_path is None:
        raise WorkbenchError(
            f"The checkpoint {source} holds no tokenizer.json, so its tokens have no meaning: "
            "start from a folder that pre-training wrote."
        )
    # not that of the checkpoint: it is removed when newer ones are written
    kept = base_checkpoint / TOKENIZER
    tokenizer_path = kept if kept.is_file() else loaded.tokenizer_path
    plan, record = config.maxrl, loaded.state.values["record"] if loaded.state else {}
    model = loaded.model.to(choose_device(config.hardware))
    policy = _open_policy(config, model, base_checkpoint, record)
    length = loaded.config.max_seq_len
    engine = open_engine(policy.model, config.hardware, max_seq_len=length)
    sampler = Sampler(engine, load_tokenizer(loaded.tokenizer_path), length)
    tasks = _with_new_tasks(config, tasks, folder, cache_dir)
    fitting = [task for task in tasks if sampler.fits(task, plan.max_new_tokens)]
    train, held_out = split_tasks(fitting, plan.levels, plan.final_eval_tasks, seed=config.seed)
    attempts = Attempts(
        sampler,
        config.verify,
        cache_dir,
        min(config.hardware.cpu_threads, usable_cores()),
        lambda: stop.is_set() or is_asked(folder, STOP),
    )
    trainer = _Trainer(
        config, folder, tokenizer_path, loaded.tokens_seen, policy, engine, attempts,
        Looks(config, attempts, held_out, base_checkpoint),
        Curriculum(train, plan.rollouts_per_prompt, record.setdefault("curriculum", {})),
        record=record,
    )  # fmt: skip
    if loaded.state is not None:
        policy.load_state_tensors(loaded.state.tensors)
        trainer.step = loaded.step
    return trainer


def _with_new_tasks(
    config: RunConfig, tasks: list[Task], folder: Path, cache_dir: Path | None
) -> list[Task]:
    """Return the tasks, those of TinyRust's training split replaced by new ones where wanted."""
    plan, path = config.maxrl, folder / NEW_TASKS
    if not plan.new_tasks:
        return tasks
    if not path.is_file():
        new = unseen_tasks(
            plan.levels,
            plan.new_tasks,
            seed=stable_seed(config.seed, "new tasks"),
            known={task.prompt for task in tasks},
            config=config.verify,
            cache_dir=cache_dir,
        )
        write_atomic(path, "".join(json.dumps(as_row(task)) + "\n" for task in new))
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    kept = [t for t in tasks if (t.task_set, t.split) != ("tinyrust", "train")]
    return kept + [Task(**row | {"stop_tokens": (), "flags": ()}) for row in rows]


def _open_policy(
    config: RunConfig, model: LoopLM, base_checkpoint: Path, record: dict[str, Any]
) -> Policy:
    """Return the policy; its number type is chosen once, because timing may choose otherwise."""
    plan, device = config.maxrl, model.head.weight.device
    if "dtype" not in record:
        dtype = choose_dtype(plan.dtype, model.config, device)
        record["dtype"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
    base = load_checkpoint(base_checkpoint).model.to(device) if plan.kl_weight else None
    return Policy(model, plan, base, getattr(torch, record["dtype"]))


def _saved(root: Path) -> list[Path]:
    """Return the complete checkpoints of a stage, oldest first (drafts have other names)."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in folders if re.fullmatch(r"step_\d{6}", path.name))
