"""The fixed benchmark and the dataset card: the same for everybody, and counted, not claimed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from nanochat_lib.data.tinyrust import benchmark
from nanochat_lib.data.tinyrust.card import main
from nanochat_lib.data.tinyrust.generate import FAMILIES, generate
from nanochat_lib.evals.tasks import load_tasks

TASKS = benchmark.benchmark_tasks()
HELD = {family.name for family in FAMILIES if family.held}


def test_the_benchmark_is_the_one_that_the_hash_names() -> None:
    """A change to a template or a test changes it: raise VERSION and note the new hash then."""
    assert benchmark.hash_of(TASKS) == benchmark.SHA256
    assert benchmark.hash_of(TASKS[1:]) != benchmark.SHA256


def test_every_level_has_as_many_tasks_from_every_held_out_split() -> None:
    parts = Counter((task.split, task.level) for task in TASKS)
    assert set(parts) == {(s, level) for s in benchmark.HELD_SPLITS for level in benchmark.LEVELS}
    assert set(parts.values()) == {benchmark.TASKS_PER_PART}
    assert len({task.prompt for task in TASKS}) == len({task.task_id for task in TASKS}) == 600


def test_no_training_example_is_in_the_benchmark() -> None:
    trained = list(generate(benchmark.LEVELS, 10_000, seed=benchmark._SEED, splits=("train",)))
    assert not {e.task.prompt for e in trained} & {task.prompt for task in TASKS}
    assert not {e.task.family for e in trained} & HELD
    assert {task.family for task in TASKS if task.split == "held_family"} == HELD


def test_the_command_writes_a_card_with_counted_numbers(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--n", "1500", "--verify", "40"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "1,500 distinct examples" in text
    assert "640 of 640 examples judged" in text
    assert benchmark.SHA256 in text
    listed = re.findall(r"^\| `(\w+)` \| \d \| (yes|) \| [\d,]+ \| \S", text, re.MULTILINE)
    assert {name: held == "yes" for name, held in listed} == {f.name: f.held for f in FAMILIES}
    by_level = re.findall(r"^\| (\d) \| ([\d,]+) \| \d+ \| ([\d,| ]+) \|$", text, re.MULTILINE)
    assert sum(int(n.replace(",", "")) for _, n, _ in by_level) == 1500
    for _, n, splits in by_level:
        parts = [int(part.replace(",", "")) for part in splits.split("|")]
        assert sum(parts) == int(n.replace(",", ""))
    assert load_tasks(tmp_path / "benchmark.jsonl") == TASKS
