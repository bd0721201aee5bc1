"""Mutants of HumanEval-X solutions: none that breaks a published test passes in the engine.

The oracle is one plain rustc and one run per program, without anything of ours in between.
`python tests/test_mutants.py FILE N` judges N mutants of each solution and prints the counts.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from mutate_rust import mutants, some_mutants

from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.evals.judging import cut_completion, judge_completions, program_of
from nanochat_lib.evals.tasks import load_tasks
from nanochat_lib.records import Task, Verdict
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain

HUMANEVAL = PROJECT_ROOT.parent / "shared/data/humaneval_x_rust/humaneval_rust.jsonl.gz"
TIMEOUT_S = 10


@dataclass(frozen=True)
class Mutant:
    """One changed solution with both judgements."""

    task_id: str
    kind: str
    text: str
    truth: str  # "passed" | "failed" | "not compiled" | "timeout"
    verdict: Verdict


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def judge_plainly(folder: Path, source: str) -> str:
    """Say what one rustc and one run make of a program with tests."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        Path(work, "program.rs").write_text(source)
        command = [str(find_toolchain().rustc), "--edition=2021", "-Awarnings", "--test"]
        quiet = {"cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        built = subprocess.run([*command, "-o", "program", "program.rs"], check=False, **quiet)
        if built.returncode:
            return "not compiled"
        try:
            run = subprocess.run(
                ["./program"], check=False, timeout=TIMEOUT_S, preexec_fn=_limit_memory, **quiet
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        return "failed" if run.returncode else "passed"


def judge_mutants(tasks: list[Task], n: int) -> list[Mutant]:
    """Judge at most `n` mutants of each solution by the engine and by the oracle."""
    made = [
        (task, kind, text)
        for number, task in enumerate(tasks)
        for kind, text in some_mutants(task.canonical_solution, n, seed=number)
    ]
    sources = [program_of(t, cut_completion(t, text)).source for t, _, text in made]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        truths = list(pool.map(partial(judge_plainly, Path(folder)), sources))
    texts = [(task.task_id, text) for task, _, text in made]
    episodes = judge_completions(tasks, texts, RunConfig())
    return [
        Mutant(task.task_id, kind, text, truth, episode.verified.verdict)
        for (task, kind, text), truth, episode in zip(made, truths, episodes, strict=True)
    ]


def wrong_verdicts(found: list[Mutant]) -> list[Mutant]:
    """Return the mutants on which engine and oracle disagree."""
    return [one for one in found if (one.verdict is Verdict.PASSED) != (one.truth == "passed")]


def test_a_mutant_differs_in_one_place_and_never_inside_of_a_string() -> None:
    text = '\n    let s = "a + b"; // 1 + 1\n    if n < 2 { return true; }\n    n + 3\n}'
    made = dict.fromkeys(mutant for _, mutant in mutants(text))
    assert all('"a + b"; // 1 + 1' in mutant for mutant in made)
    for part in ("n <= 2", "!(n < 2)", "return false", "n - 3", "n + 4", "n + 2", "n < 1"):
        assert sum(part in mutant for mutant in made) == 1, part
    assert len(some_mutants(text, 5, seed=0)) == 5
    assert len({mutant for _, mutant in some_mutants(text, 50, seed=0)}) > 7


@pytest.mark.slow
@pytest.mark.skipif(
    sandbox_level() == "none" or not HUMANEVAL.is_file(),
    reason="no sandbox, or HumanEval-X Rust is not beside the project",
)
def test_no_mutant_that_breaks_a_test_passes() -> None:
    found = judge_mutants(load_tasks(HUMANEVAL), n=3)
    truths = Counter(one.truth for one in found)
    assert truths["failed"] > 200
    assert len({one.kind for one in found}) >= 8
    broken = [one for one in found if one.truth in ("failed", "timeout", "not compiled")]
    assert [one for one in broken if one.verdict is Verdict.PASSED] == []
    assert wrong_verdicts(found) == []


def main(path: str, n: str) -> None:
    """Print what engine and oracle made of the mutants, as JSON."""
    found = judge_mutants(load_tasks(path), int(n))
    report = {
        "n_mutants": len(found),
        "oracle": Counter(one.truth for one in found),
        "engine": Counter(one.verdict for one in found),
        "kinds_that_break_a_test": Counter(o.kind for o in found if o.truth == "failed"),
        "different": [vars(one) for one in wrong_verdicts(found)],
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
