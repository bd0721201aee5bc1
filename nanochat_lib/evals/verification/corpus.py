"""Programs to measure verification with, as the stages of this workbench meet them.

Two kinds, drawn in a fixed order for a seed: examples of the toolchain's documentation as stage 1
finds them, and attempts at tasks (TinyRust, the shipped problems, task files given by path) as
stage 3 and evaluation judge them, where a model wrote the function's body: half of the bodies are
mutants of the reference solution. More than a third of the whole does not compile. `mutants_of`
breaks whole programs, tests included, for looking for wrong verdicts rather than for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from nanochat_lib.data.select import needs_nightly
from nanochat_lib.data.sources.toolchain import toolchain_candidates
from nanochat_lib.data.tinyrust.generate import generate
from nanochat_lib.evals.judging import program_of
from nanochat_lib.evals.tasks import builtin_tasks, load_tasks
from nanochat_lib.evals.verification.mutate import mutants
from nanochat_lib.records import Program, Task
from nanochat_lib.rust.toolchain import find_toolchain

DOCUMENTATION_SHARE = 0.3
BROKEN_SHARE = 0.7  # of attempts at tasks
_LEVELS = (1, 2, 3, 4, 5)


def mixed_corpus(n: int, *, seed: int = 0, task_files: Sequence[Path] = ()) -> list[Program]:
    """Return `n` distinct programs; fewer documentation examples where none are installed.

    Args:
        n: number of programs.
        seed: of every choice; the same toolchain and seed give the same programs.
        task_files: HumanEval-X Rust, MultiPL-E or TinyRust files whose tasks are mixed in.
    """
    rng = Random(f"verification {seed}")
    programs = documentation(round(n * DOCUMENTATION_SHARE), rng)
    tasks = _tasks(n, rng, task_files)
    texts = {program.source for program in programs}
    while len(programs) < n:
        program = _attempt(rng.choice(tasks), rng)
        if program.source not in texts:
            texts.add(program.source)
            programs.append(program)
    rng.shuffle(programs)
    return [replace(p, program_id=f"{i}/{p.program_id}") for i, p in enumerate(programs)]


def documentation(n: int, rng: Random) -> list[Program]:
    """Return examples of the installed documentation that may run and ask for nothing unstable.

    `runnable` rows leave files, network and processes alone, so they may also run unsandboxed.
    """
    docs = find_toolchain().docs
    found = list(toolchain_candidates(docs)) if docs else []
    stable = [c for c in found if c.row.runnable and not c.row.must_panic and not needs_nightly(c)]
    chosen = rng.sample(stable, min(n, len(stable)))
    return [Program(f"documentation/{c.row.path}", c.program, c.edition) for c in chosen]


def mutants_of(programs: Sequence[Program], n: int, *, seed: int = 0) -> list[Program]:
    """Return `n` mutants of whole programs, tests included, of all kinds."""
    rng = Random(f"mutants {seed}")
    found: list[Program] = []
    while len(found) < n:
        program = rng.choice(programs)
        for kind, text in mutants(program.source, 1, rng):
            name = f"{program.program_id}/{kind}/{len(found)}"
            found.append(replace(program, program_id=name, source=text))
    return found


def _tasks(n: int, rng: Random, task_files: Sequence[Path]) -> list[Task]:
    tasks = [example.task for example in generate(_LEVELS, n, rng.randrange(1 << 30))]
    tasks += 2 * builtin_tasks()
    for file in task_files:
        tasks += load_tasks(file)
    return [task for task in tasks if task.canonical_solution]


def _attempt(task: Task, rng: Random) -> Program:
    body = task.canonical_solution
    if rng.random() < BROKEN_SHARE:
        found = mutants(body, 1, rng)
        body = found[0][1] if found else body
    return program_of(task, body)
