"""Texts a finished stage writes by itself, judged and kept in its summary for notebook and report.

Input: a stage's folder with `final/`, and the run's tasks. Output: rows {prompt, completion, note}
under `samples` in the stage's summary.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from nanochat_lib.config import RunConfig
from nanochat_lib.evals.generation import open_writer
from nanochat_lib.evals.judging import judge_attempts, make_attempt
from nanochat_lib.evals.suite import choose_tasks
from nanochat_lib.evals.tasks import evaluation_sets
from nanochat_lib.runs import write_atomic

N_PER_SET = 3


def write_samples(config: RunConfig, folder: Path, preprocess: Path) -> list[dict[str, str]]:
    """Complete a few held-out prompts of each task set, judge them, and keep them.

    Args:
        config: `eval`, `verify`, `hardware.cpu_threads` and `seed` are used.
        folder: a training stage's artifacts, with `final/`; its summary.json gets the rows.
        preprocess: the run's artifacts/preprocess.
    """
    sets = evaluation_sets(config.eval, preprocess)
    tasks = [task for found in sets.values() for task in choose_tasks(found, N_PER_SET)]
    writer = open_writer(folder / "final", config.hardware)
    attempts = [
        make_attempt(tasks[i], found)
        for batch in writer.complete([t.prompt for t in tasks], config.eval, seed=config.seed)
        for i, found in batch
    ]
    episodes = judge_attempts(attempts, config)
    rows = []
    for task, episode in zip(tasks, episodes, strict=True):
        note = " ".join([f"{task.task_set}:", episode.verified.verdict, *episode.verified.codes])
        rows.append({"prompt": task.prompt, "completion": episode.completion, "note": note})
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_atomic(path, json.dumps({**summary, "samples": rows}, indent=1))
    return rows
