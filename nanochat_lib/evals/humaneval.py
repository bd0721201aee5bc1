"""HumanEval-X Rust as tasks: prompts cut right, stand-ins for its crates, flags for its flaws.

A row holds `prompt` (a block comment), `declaration` (imports and signature), `canonical_solution`
and `test`. The imports name rand, regex and md5, which a plain rustc does not have: `stand_ins.rs`
has small modules of the same names, added where a program mentions them. The model sees comment
and signature only, without white space after the brace.

Source: THUDM/CodeGeeX, HumanEval-X (Apache-2.0), which translates OpenAI's HumanEval.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nanochat_lib.records import Task

STAND_INS = Path(__file__).with_name("stand_ins.rs")

# The tests call a function that only the canonical solution declares, not the prompt.
MISSING_FUNCTION = "tests_call_undeclared_function"
# The signature names a type that only the canonical solution declares.
MISSING_TYPE = "prompt_names_undeclared_type"
# The published tests are commented out, so that any program would pass them.
TESTS_REPLACED = "tests_replaced"
# The canonical solution of problem 32 does not end on about half of the published random inputs
# (Newton's method from 0), so these are fixed polynomials on which it does.
_REPLACEMENTS = {
    "Rust/32": """\
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_zeros() {
        assert!((find_zero(&vec![1.0, 2.0]) + 0.5).abs() < 1e-3);
        let polynomials = [
            vec![-6.0, 11.0, -6.0, 1.0],
            vec![5.0, 3.0, 0.0, 2.0],
            vec![0.0, 4.0],
            vec![-7.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        ];
        for xs in polynomials {
            assert!(poly(&xs, find_zero(&xs)).abs() < 1e-3);
        }
    }
}"""
}

_CRATE_MARKS = {"rand": r"\brand::|\bRng\b", "regex": r"\bRegex\b|\bregex::", "md5": r"\bmd5::"}
_IMPORTS = {"rand": "use rand::Rng;", "regex": "use regex::Regex;"}
_FUNCTION = re.compile(r"\bfn\s+(\w+)")
_TYPE = re.compile(r"\b(?:struct|enum|trait|type)\s+(\w+)")
_WORD = re.compile(r"\w+")
_CALL = re.compile(r"\b(\w+)\s*\(")


def humaneval_task(row: dict[str, Any]) -> Task:
    """Return one row of HumanEval-X Rust as a task.

    Raises:
        KeyError: a key is missing.
        ValueError: the declaration holds no function, or does not end in its opening brace.
    """
    declaration = row["declaration"].rstrip()
    start = re.search(r"^(pub\s+)?fn\s", declaration, flags=re.MULTILINE)
    if start is None or not declaration.endswith("{"):
        raise ValueError("`declaration` must end in a function's signature and its opening brace")
    prompt = f"{row.get('prompt', '').strip()}\n{declaration[start.start() :]}".lstrip()
    tests = _REPLACEMENTS.get(row["task_id"], row["test"]).strip()
    solution = row["canonical_solution"]
    flags = [TESTS_REPLACED] if row["task_id"] in _REPLACEMENTS else []
    if set(_FUNCTION.findall(solution)) & set(_CALL.findall(tests)):
        flags.append(MISSING_FUNCTION)
    if set(_TYPE.findall(solution)) & set(_WORD.findall(declaration)):
        flags.append(MISSING_TYPE)
    task = Task(
        task_id=f"humaneval_x/{row['task_id']}",
        prompt=prompt,
        canonical_solution=solution if solution.startswith("\n") else "\n" + solution,
        tests=tests + "\n",
        task_set="humaneval_x",
        prelude=declaration[: start.start()].strip(),
        flags=tuple(flags),
    )
    return with_stand_ins(task, task.canonical_solution)


def is_flawed(task: Task) -> bool:
    """Return whether the one function that the prompt asks for cannot pass by itself."""
    return not {MISSING_FUNCTION, MISSING_TYPE}.isdisjoint(task.flags)


def with_stand_ins(task: Task, completion: str) -> Task:
    """Return the task with the stand-ins that a program of this completion mentions."""
    text = f"{task.prompt}{completion}\n{task.tests}"
    imports = [line for line in task.prelude.split("\n") if line.startswith("use std::")]
    modules = []
    for crate, mark in _CRATE_MARKS.items():
        if re.search(mark, text):
            modules.append(_stand_ins()[crate])
            imports += [_IMPORTS[crate]] if crate in _IMPORTS else []
    return replace(task, prelude="\n".join([*imports, *modules]) + "\n\n")


@cache
def _stand_ins() -> dict[str, str]:
    parts = re.split(r"^//@ (\w+)\n", STAND_INS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
