"""Evaluation: sample programs from checkpoints, let rustc judge them, report rates with counts.

`evaluate` is stage 5: checkpoints and task sets in; results.parquet, episodes.parquet and
summary.json out. `judge_file` judges texts from anywhere without a model (`judging.py`), and
`during.py` is what pre-training calls between its steps. Every verdict comes from rustc; every
rate carries its counts and an interval (`results.py`, `passk.py`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from nanochat_lib.config import EvalConfig, HardwareConfig, RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals import results
from nanochat_lib.evals.generation import Writer, open_writer
from nanochat_lib.evals.judging import (
    Attempt,
    canonical_completions,
    judge_attempts,
    judge_completions,
    make_attempt,
    read_completions,
)
from nanochat_lib.records import Episode, EvalResult, Metric, Task, Verdict, as_row
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.programs import truncate_completion

if TYPE_CHECKING:  # torch takes three seconds to import
    pass

Log = Callable[[int, dict[str, float]], None]
Progress = Callable[[int, int, str], None]


@dataclass
class _Watch:
    """Progress over sampled programs, and the stop signal, of one evaluation."""

    total: int
    progress: Progress | None
    stop: Event | None
    done: int = 0

    def add(self, n: int, text: str) -> None:
        """Count and report `n` programs; raise KeyboardInterrupt when a stop was asked for."""
        self.done += n
        self.look(0, text)

    def look(self, n_more: int, text: str) -> None:
        """Report without counting; raise KeyboardInterrupt when a stop was asked for."""
        if self.progress is not None:
            self.progress(self.done + n_more, self.total, text)
        if self.stop is not None and self.stop.is_set():
            raise KeyboardInterrupt


def evaluate(
    checkpoints: dict[str, Path],
    task_sets: dict[str, list[Task]],
    config: RunConfig,
    folder: Path,
    *,
    cache_dir: Path | None = None,
    log: Log | None = None,
    stop: Event | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge samples of every checkpoint on every task set; write two tables and a summary.

    Args:
        checkpoints: name -> checkpoint folder, in the order of the report.
        task_sets: name -> tasks; of each at most `config.eval.max_tasks` are used.
        config: `eval`, `verify`, `hardware` and `seed` are used.
        folder: where results.parquet, episodes.parquet and summary.json go.
        cache_dir: folder of the verdict cache.
        log: called with (number of the pair of checkpoint and set, metrics).
        stop: checked between batches; set: KeyboardInterrupt, and nothing is written.
        progress: called with (programs done, programs, text).

    Returns: the content of summary.json.
    """
    chosen = {name: choose_tasks(tasks, config.eval.max_tasks) for name, tasks in task_sets.items()}
    n_samples, _ = plan_samples(config.eval)
    n_programs = len(checkpoints) * n_samples * sum(map(len, chosen.values()))
    work = _Evaluation(config, cache_dir, _Watch(2 * n_programs, progress, stop))
    step = 0
    for checkpoint, path in checkpoints.items():
        writer = open_writer(path, config.hardware)
        work.decoding.append(writer.engine.runs_on)
        for name, tasks in chosen.items():
            episodes = work.judge(work.sample(writer, tasks))
            values = work.record(checkpoint, name, tasks, episodes)
            step += 1
            if log is not None:
                log(step, values)
    work.n_tasks = [
        {"task_set": name, "n_tasks": len(tasks), "n_available": len(task_sets[name])}
        for name, tasks in chosen.items()
    ]
    return work.write(folder)


def choose_tasks(tasks: list[Task], n: int) -> list[Task]:
    """Return at most `n` tasks, evenly from every level and split, never from a training split.

    A set that has only training tasks is taken as it is.
    """
    held_out = [task for task in tasks if task.split != "train"] or tasks
    groups: dict[tuple[int, str], list[Task]] = {}
    for task in held_out:
        groups.setdefault((task.level, task.split), []).append(task)
    taken = {task.task_id for task in _in_turns([_spread(g) for g in groups.values()])[:n]}
    return [task for task in held_out if task.task_id in taken]


def _spread(tasks: list[Task]) -> list[Task]:
    """Reorder so that any first part of the list comes from the whole of it, family by family."""
    families: dict[str, list[Task]] = {}
    for task in tasks:
        families.setdefault(task.family, []).append(task)
    return _in_turns(list(families.values()))


def _in_turns(groups: list[list[Task]]) -> list[Task]:
    return [task for turn in zip_longest(*groups) for task in turn if task is not None]


def plan_samples(settings: EvalConfig) -> tuple[int, tuple[int, ...]]:
    """Return samples per task and the k of pass@k; greedy text is the same every time: once."""
    if settings.temperature == 0:
        return 1, (1,)
    return settings.n_samples, settings.k


@dataclass
class _Evaluation:
    """An evaluation under way: what it works with, and what it has found so far."""

    config: RunConfig
    cache_dir: Path | None
    watch: _Watch
    rates: list[EvalResult] = field(default_factory=list)
    rows: results.Rows = field(default_factory=list)
    n_tasks: results.Rows = field(default_factory=list)
    decoding: list[str] = field(default_factory=list)  # what each checkpoint ran on
    n_prompts_cut: int = 0
    generate_s: float = 0.0
    verify_s: float = 0.0

    def sample(self, writer: Writer, tasks: list[Task]) -> list[Attempt]:
        """Let a model complete the tasks' prompts."""
        started = time.monotonic()
        settings, seed = self.config.eval, self.config.seed
        n_samples, _ = plan_samples(settings)
        prompts = [task.prompt for task in tasks]
        attempts = []
        for batch in writer.complete(prompts, settings, n_samples=n_samples, seed=seed):
            for i, found in batch:
                attempts.append(make_attempt(tasks[i], found))
                self.n_prompts_cut += found.is_prompt_cut
            self.watch.add(len(batch), "programs written")
        self.generate_s += time.monotonic() - started
        return attempts

    def judge(self, attempts: list[Attempt]) -> list[Episode]:
        """Let rustc judge what was written."""
        started, text = time.monotonic(), "programs judged"
        episodes = judge_attempts(
            attempts,
            self.config,
            cache_dir=self.cache_dir,
            on_progress=lambda done, _: self.watch.look(done, text),
            in_depth=True,
        )
        self.verify_s += time.monotonic() - started
        self.watch.add(len(attempts), text)
        return episodes

    def record(
        self, checkpoint: str, name: str, tasks: list[Task], episodes: list[Episode]
    ) -> dict[str, float]:
        """Keep one pair of checkpoint and task set; return its metrics."""
        _, ks = plan_samples(self.config.eval)
        rates = results.result_rows(checkpoint, name, tasks, episodes, ks=ks)
        self.rates += rates
        self.rows += results.episode_rows(checkpoint, name, tasks, episodes)
        whole = {row.metric: row for row in rates if row.task_set == name}
        values = {
            Metric.COMPILE_RATE: whole["compile_rate"].rate,
            Metric.SEMANTIC_SCORE: whole["semantic_score"].rate,
            Metric.N_UNJUDGED: whole["compile_rate"].n_unjudged,
        }
        return values | ({Metric.PASS_RATE: whole["pass@1"].rate} if "pass@1" in whole else {})

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the two tables and the summary; return the summary."""
        folder.mkdir(parents=True, exist_ok=True)
        rates = [as_row(row) for row in self.rates]
        summary = {
            "rates": rates,
            **results.failure_tables(self.rows),
            "task_sets": self.n_tasks,
            "n_samples": plan_samples(self.config.eval)[0],
            "temperature": self.config.eval.temperature,
            "decoding": ", ".join(dict.fromkeys(self.decoding)),
            "n_unjudged": sum(row["verdict"] == Verdict.UNJUDGED for row in self.rows),
            "n_prompts_cut": self.n_prompts_cut,
            "seconds": {"generate": round(self.generate_s, 2), "verify": round(self.verify_s, 2)},
            **results.name_judges(self.rows),
        }
        results.write_frame(rates, folder / "results.parquet", results.RESULT_SCHEMA)
        results.write_frame(self.rows, folder / "episodes.parquet", results.EPISODE_SCHEMA)
        write_atomic(folder / "summary.json", json.dumps(summary, indent=1))
        return summary


def judge_file(
    tasks: list[Task],
    completions: str,
    config: RunConfig | None = None,
    *,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Judge the completions of a file, or the reference solutions, without a model.

    Args:
        tasks: the task set.
        completions: "canonical", or a JSON-lines file with `task_id` and `completion`.
        config: limits of verification; the defaults when None.
        cache_dir: folder of the verdict cache.

    Returns: `rates` (EvalResult rows), `episodes` (a row per program), the tables of
        `results.failure_tables`, and how many tasks had no completion. k runs over powers of two
        up to the samples that every task has.

    Raises:
        WorkbenchError: a malformed file, an unknown task, or nothing to judge.
    """
    config = config or RunConfig()
    is_canonical = completions == "canonical"
    texts = canonical_completions(tasks) if is_canonical else read_completions(Path(completions))
    if not texts:
        raise WorkbenchError("The task set has no reference solutions: give a file of completions.")
    episodes = judge_completions(
        tasks, texts, config, cache_dir=cache_dir, truncate=not is_canonical, in_depth=True
    )
    checkpoint = "canonical" if is_canonical else Path(completions).stem
    name = tasks[0].task_set
    fewest = min(Counter(episode.task_id for episode in episodes).values())
    ks = [2**i for i in range(fewest.bit_length())]
    rows = results.episode_rows(checkpoint, name, tasks, episodes)
    rates = results.result_rows(checkpoint, name, tasks, episodes, ks=ks)
    return {
        "rates": [as_row(row) for row in rates],
        "episodes": rows,
        "n_tasks_without_completion": len(tasks) - len({row["task_id"] for row in rows}),
        **results.failure_tables(rows),
        **results.name_judges(rows),
    }


def complete_prompt(
    checkpoint: Path,
    prompt: str,
    *,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    exit_threshold: float = 1.0,
) -> str:
    """Return what a checkpoint writes after a prompt, up to the end of the function."""
    settings = EvalConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, exit_threshold=exit_threshold
    )
    writer = open_writer(checkpoint, HardwareConfig(cpu_threads=1))
    ((_, found),) = next(writer.complete([prompt], settings))
    return truncate_completion(found.text)
