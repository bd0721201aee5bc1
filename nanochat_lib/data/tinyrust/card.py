"""The dataset card of TinyRust: families, levels, splits, counts, the benchmark and its hash.

Every number is counted while the card is written: examples are generated, the benchmark and a
sample of them are built and run. `python -m nanochat_lib.data.tinyrust.card --out FOLDER` writes
`README.md` and `benchmark.jsonl`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from nanochat_lib.data.tinyrust import benchmark
from nanochat_lib.data.tinyrust.confirm import confirm
from nanochat_lib.data.tinyrust.generate import FAMILIES, HELD_SHARE, SPLITS, TinyExample, generate
from nanochat_lib.records import Task, Verdict, Verified
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.toolchain import find_toolchain

_ABOUT = """---
license: mit
language: en
tags:
  - rust
  - code-generation
  - synthetic
---
# TinyRust

Small, self-contained, documented Rust functions with tests, for research at the scale of a laptop:
what TinyStories is for English. Each example is a doc comment, a signature, a body in one of
several idioms, and a table of cases whose expected values come from an independent reference in
Python. rustc builds every example and runs its tests. The texts are made from templates of this
project and are under its licence.

A task's split depends on the task alone, never on a seed or an order:

- `train`: what may be trained on;
- `held_parameters`: {share:.0%} of the constants and types of trained compositions;
- `held_composition`: {share:.0%} of the combinations of operations, never trained on;
- `held_family`: whole families, never trained on.
"""


@dataclass
class Counts:
    """What was generated, by family, level and split."""

    families: Counter[str] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    splits: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, example: TinyExample) -> None:
        """Count one example."""
        task = example.task
        self.families[task.family] += 1
        self.levels[task.level] += 1
        self.characters[task.level] += len(example.text)
        self.splits[task.level, task.split] += 1


def count(n: int, seed: int) -> Counts:
    """Generate `n` examples, distinct by prompt and solution, and count them."""
    counts = Counts()
    for example in generate(benchmark.LEVELS, n, seed):
        counts.add(example)
    return counts


def card(counts: Counts, tasks: list[Task], judged: list[Verified]) -> str:
    """Return the text of the card.

    Args:
        counts: of the generated examples.
        tasks: the fixed benchmark.
        judged: verdicts of the benchmark and of a sample of examples.
    """
    n = sum(counts.levels.values())
    parts = (
        [_ABOUT.format(share=HELD_SHARE)],
        [f"## Counts\n\n{n:,} distinct examples (prompt and solution), seed 0:\n"],
        _level_table(counts),
        [f"\n## Verification\n\n{_verified(judged)}\n", *_benchmark(tasks)],
        [f"\n## Families\n\n{len(FAMILIES)}, of which {sum(f.held for f in FAMILIES)} are held "
         f"out. Counts are those of the {n:,} examples above.\n"],
        _family_table(counts),
    )  # fmt: skip
    return "\n".join(line for part in parts for line in part) + "\n"


def _level_table(counts: Counts) -> list[str]:
    lines = ["| level | examples | characters each | " + " | ".join(SPLITS) + " |"]
    lines.append("| ---: " * (3 + len(SPLITS)) + "|")
    for level, n in sorted(counts.levels.items()):
        splits = " | ".join(f"{counts.splits[level, split]:,}" for split in SPLITS)
        lines.append(f"| {level} | {n:,} | {counts.characters[level] / n:.0f} | {splits} |")
    return lines


def _verified(judged: list[Verified]) -> str:
    passed = sum(one.verdict is Verdict.PASSED for one in judged)
    return (
        f"{passed:,} of {len(judged):,} examples judged for this card (the benchmark and a sample "
        f"of the others) build and pass their tests with rustc {find_toolchain().version}."
    )


def _benchmark(tasks: list[Task]) -> list[str]:
    return [
        "\n## Benchmark\n",
        f"`benchmark.jsonl`, version {benchmark.VERSION}: {len(tasks)} tasks, "
        f"{benchmark.TASKS_PER_PART} of every level from each of {', '.join(benchmark.HELD_SPLITS)}"
        ". Results compare when the hash is the same:\n",
        f"    {benchmark.hash_of(tasks)}\n",
        "    nanochat evaluate --tasks benchmark.jsonl --completions FILE\n",
    ]


def _family_table(counts: Counts) -> list[str]:
    lines = ["| family | level | held out | examples | what |", "| --- | ---: | --- | ---: | --- |"]
    for family in sorted(FAMILIES, key=lambda f: (f.level, f.name)):
        what = (family.sketch.__doc__ or "").strip().split("\n")[0].removesuffix(" (held out).")
        held = "yes" if family.held else ""
        n = counts.families[family.name]
        lines.append(f"| `{family.name}` | {family.level} | {held} | {n:,} | {what.rstrip('.')} |")
    return lines


def write_card(folder: Path, n: int, n_verified: int) -> list[Verified]:
    """Write the card and the benchmark into a folder; return the verdicts behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = benchmark.benchmark_tasks()
    judged = confirm(TinyExample(t, t.prompt + t.canonical_solution) for t in tasks)
    judged += confirm(islice(generate(benchmark.LEVELS, n, seed=0), n_verified))
    write_atomic(folder / "benchmark.jsonl", benchmark.as_json_lines(tasks))
    write_atomic(folder / "README.md", card(count(n, seed=0), tasks, judged))
    return judged


def main(arguments: list[str] | None = None) -> int:
    """Write the card; status 1 when an example failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for card and benchmark")
    parser.add_argument("--n", type=int, default=100_000, help="examples generated and counted")
    parser.add_argument("--verify", type=int, default=5000, help="of them, built and run")
    options = parser.parse_args(arguments)
    judged = write_card(options.out, options.n, min(options.verify, options.n))
    sys.stdout.write(f"{options.out}: {_verified(judged)}\n")
    return int(any(one.verdict is not Verdict.PASSED for one in judged))


if __name__ == "__main__":
    raise SystemExit(main())
