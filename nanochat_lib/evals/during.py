"""Evaluation between the steps of training: a few tasks, judged by rustc, on the axis of steps.

In: task sets of a run; out: the callable that `pretrain` takes as `on_eval`, which returns compile
rate, semantic score and pass@k. One task set is used, because rates of different sets must not be
mixed: TinyRust where the run has it, else the shipped problems.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_lib.config import RunConfig
from nanochat_lib.evals import results
from nanochat_lib.evals.generation import Writer, make_writer
from nanochat_lib.evals.judging import judge_attempts, make_attempt
from nanochat_lib.evals.suite import choose_tasks, plan_samples
from nanochat_lib.evals.tasks import evaluation_sets
from nanochat_lib.records import Metric, Task

if TYPE_CHECKING:  # torch takes three seconds to import
    from nanochat_lib.model.looplm import LoopLM

OnEval = Callable[[int, "LoopLM"], dict[str, float]]


def task_evaluator(
    config: RunConfig, preprocess: Path, *, cache_dir: Path | None = None
) -> OnEval | None:
    """Return what pre-training calls every `pretrain.task_eval_every` steps; None when that is 0.

    Args:
        preprocess: the run's artifacts/preprocess, with tokenizer and tasks.
        cache_dir: folder of the verdict cache.
    """
    plan = config.pretrain
    if not plan.task_eval_every:
        return None
    sets = evaluation_sets(config.eval, preprocess)
    tasks = choose_tasks(sets.get("tinyrust") or sets["builtin"], plan.task_eval_tasks)
    return continuous_evaluator(tasks, config, preprocess / "tokenizer.json", cache_dir=cache_dir)


def continuous_evaluator(
    tasks: list[Task],
    config: RunConfig,
    tokenizer_path: Path,
    *,
    cache_dir: Path | None = None,
) -> OnEval:
    """Return `on_eval(step, model)` for a training stage: rates of samples of a few tasks.

    The model is packed anew at every call, into the same engine. Samples and temperature are those
    of `eval`, with the same seeds every time, so that rates move with the model alone; they are
    over tasks that could be judged.
    """
    n_samples, ks = plan_samples(config.eval)
    writers: list[Writer] = []

    def on_eval(step: int, model: LoopLM) -> dict[str, float]:
        if writers:
            writers[0].engine.reload(model)
        else:
            writers.append(make_writer(model, tokenizer_path, config.hardware))
        prompts = [task.prompt for task in tasks]
        attempts = [
            make_attempt(tasks[i], found)
            for batch in writers[0].complete(
                prompts, config.eval, n_samples=n_samples, seed=config.seed
            )
            for i, found in batch
        ]
        episodes = judge_attempts(attempts, config, cache_dir=cache_dir, in_depth=True)
        name = tasks[0].task_set
        rates = results.result_rows(f"step {step}", name, tasks, episodes, ks=ks)
        whole = {row.metric: row for row in rates if row.task_set == name}
        values = {
            Metric.COMPILE_RATE: whole["compile_rate"].rate,
            Metric.SEMANTIC_SCORE: whole["semantic_score"].rate,
            Metric.N_UNJUDGED: whole["compile_rate"].n_unjudged,
        }
        return values | {
            f"{Metric.PASS_AT}{k}": whole[f"pass@{k}"].rate for k in ks if f"pass@{k}" in whole
        }

    return on_eval
