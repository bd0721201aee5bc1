"""Measure the verification engine against one plain rustc per program, on the same programs.

Input: how many programs, a seed. Output: CPU and wall milliseconds per program for both sides, and
whether their verdicts agree. The corpus is made here from templates: short functions with tests, a
third of them broken (grammar, names, types, ownership, wrong results), as a language model's first
programs are. Sides take turns in chunks, so that a noisy machine disturbs both.
`python -m nanochat_lib.rust.bench` prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

_TEMPLATES = (
    ("pub fn f(xs: &[i64]) -> i64 {{\n"
     "    xs.iter().filter(|x| **x % {a} == 0).map(|x| x * {b}).sum()\n}}",
     "f(&[{a}, 1, 2 * {a}])", "{a} * {b} * 3 + if 1 % {a} == 0 {{ {b} }} else {{ 0 }}"),
    ("pub fn f(s: &str) -> String {{ s.chars().rev().chain(\"{a}\".chars()).collect() }}",
     "f(\"ab\")", "\"ba{a}\".to_string()"),
    ("use std::collections::HashMap;\n\npub fn f(words: &[&str]) -> usize {{\n"
     "    let mut seen = HashMap::new();\n    for word in words {{\n"
     "        *seen.entry(word.len()).or_insert({a}) += {b};\n    }}\n    seen.len()\n}}",
     "f(&[\"a\", \"bb\", \"c\"])", "2"),
    ("#[derive(Debug, Clone, PartialEq)]\npub struct Point {{ x: i64, y: i64 }}\n"
     "impl Point {{\n    pub fn shifted(&self, d: i64) -> Point {{\n"
     "        Point {{ x: self.x + d, y: self.y * {b} }}\n    }}\n}}\n"
     "pub fn f(d: i64) -> Point {{ Point {{ x: {a}, y: 1 }}.shifted(d) }}",
     "f(2)", "Point {{ x: {a} + 2, y: {b} }}"),
    ("pub fn f(n: u64) -> Option<u64> {{\n    match n {{\n        0 => None,\n"
     "        n if n % 2 == 0 => Some(n / 2 + {a}),\n        n => n.checked_mul({b}),\n    }}\n}}",
     "f(3)", "Some(3 * {b})"),
)  # fmt: skip
_BREAKS = (
    ("pub fn f(", "pub fn f(("),
    ("pub fn f(", "pub fn g() -> i64 {{ missing }} pub fn f("),
    ("pub fn f(", 'pub fn g() -> i64 {{ "text" }} pub fn f('),
    ("pub fn f(", "pub fn g(s: String) -> String {{ drop(s); s }} pub fn f("),
)


@dataclass(frozen=True)
class Side:
    """What one way of judging cost, per program."""

    cpu_ms: float
    wall_ms: float


def sample_programs(n: int, seed: int = 0) -> list[Program]:
    """Return distinct programs, a third of which do not compile and some of which fail."""
    chance = random.Random(seed)
    programs = []
    for number in range(n):
        body, call, result = chance.choice(_TEMPLATES)
        if chance.random() < 1 / 3:
            body = body.replace(*chance.choice(_BREAKS), 1)
        if chance.random() < 0.1:
            call = call.replace("2", "7")
        text = (
            f"// {number}\n{body}\n\n#[cfg(test)]\nmod tests {{{{\n    use super::*;\n"
            f"    #[test]\n    fn works() {{{{ assert_eq!({call}, {result}); }}}}\n}}}}\n"
        )
        source = text.format(a=chance.randint(2, 99), b=chance.randint(2, 99))
        programs.append(Program(str(number), source))
    return programs


def _judge_plainly(folder: Path, level: Level, program: Program) -> bool:
    """Return whether rustc, and the tests it built, end with status 0, without a sandbox."""
    work = folder / program.program_id
    work.mkdir()
    (work / "program.rs").write_text(program.source)
    kind = {"test": "--test", "main": "--crate-type=bin", "lib": "--crate-type=lib"}
    arguments = ["--emit=metadata"] if level is Level.CHECK else []
    arguments += ["--edition=2021", "-Awarnings", kind[policy_of(program.source).kind]]
    quiet = {"cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    rustc = [str(find_toolchain().rustc), *arguments, "-o", "program", "program.rs"]
    if subprocess.run(rustc, check=False, **quiet).returncode:
        return False
    return (
        level is Level.CHECK or not subprocess.run(["./program"], check=False, **quiet).returncode
    )


def _cpu_s() -> float:
    """Return the CPU seconds of this process, the children it waited for, and its launchers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + used.ru_utime + used.ru_stime
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def compare(n: int = 200, level: Level = Level.CHECK, *, seed: int = 0, chunk: int = 100) -> dict:
    """Judge the same programs both ways, in turns.

    Args:
        n: number of programs.
        level: check or test.
        seed: seed of the corpus.
        chunk: programs per turn.

    Returns:
        a plain dictionary: both sides' milliseconds per program, ratios, and disagreements.
    """
    programs, workers = sample_programs(n, seed), usable_cores()
    verify(programs[:1], level)  # start a launcher before the clock
    spent, passed = {"engine": [0.0, 0.0], "plain": [0.0, 0.0]}, {"engine": [], "plain": []}
    for start in range(0, n, chunk):
        part = programs[start : start + chunk]
        for side in ("engine", "plain"):
            cpu_s, wall_s = _cpu_s(), time.perf_counter()
            if side == "engine":
                passed[side] += [one.verdict is Verdict.PASSED for one in verify(part, level)]
            else:
                with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
                    passed[side] += pool.map(partial(_judge_plainly, Path(folder), level), part)
            spent[side][0] += (_cpu_s() - cpu_s) * 1e3 / n
            spent[side][1] += (time.perf_counter() - wall_s) * 1e3 / n
    engine, plain = Side(*spent["engine"]), Side(*spent["plain"])
    return {
        "level": str(level),
        "n": n,
        "n_passed": sum(passed["plain"]),
        "n_different": sum(a != b for a, b in zip(*passed.values(), strict=True)),
        "engine": asdict(engine),
        "one_rustc_per_program": asdict(plain),
        "cpu_ratio": plain.cpu_ms / engine.cpu_ms,
        "wall_ratio": plain.wall_ms / engine.wall_ms,
    }


if __name__ == "__main__":
    for wanted in (Level.CHECK, Level.TEST):
        sys.stdout.write(json.dumps(compare(200, wanted)) + "\n")
