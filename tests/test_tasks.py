"""The shipped problems are right (rustc says so), and files of every known format are read."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat_lib.config import PROJECT_ROOT, EvalConfig, MaxRLConfig, RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.judging import canonical_completions, judge_completions
from nanochat_lib.evals.tasks import (
    builtin_tasks,
    evaluation_sets,
    load_tasks,
    parse_task_file,
    policy_tasks,
)
from nanochat_lib.records import Task, Verdict, as_row

HUMANEVAL = PROJECT_ROOT.parent / "shared/data/humaneval_x_rust/humaneval_rust.jsonl.gz"
MULTIPL_E_ROW = {
    "name": "HumanEval_0_double",
    "language": "rs",
    "prompt": "/// Double a number.\nfn double(x: isize) -> isize {\n",
    "tests": "}\n\nfn main() {\n    let candidate = double;\n    assert_eq!(candidate(2), 4);\n}\n",
    "stop_tokens": ["\n}"],
}
HUMANEVAL_ROW = {
    "task_id": "Rust/0",
    "prompt": "\n/*\n Double a number.\n*/\n",
    "declaration": "\nuse std::cmp;\nuse rand::Rng;\nuse md5;\n\nfn double(x:i32) -> i32{\n\n",
    "canonical_solution": "\n    x * 2\n}\n",
    "test": "\n#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n"
    "    fn test_double() {\n        assert!(double(2) == 4);\n    }\n}\n",
}


def _write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_there_are_enough_problems_of_every_level() -> None:
    tasks = builtin_tasks()
    assert len(tasks) >= 48
    assert {task.level for task in tasks} == {1, 2, 3}
    assert all(sum(task.level == level for task in tasks) >= 12 for level in (1, 2, 3))
    numbers = [int(task.task_id.split("/")[1][:3]) for task in tasks]
    assert numbers == list(range(1, len(tasks) + 1))


@pytest.mark.parametrize("task", builtin_tasks(), ids=lambda task: task.task_id)
def test_a_problem_has_the_agreed_shape(task: Task) -> None:
    assert task.prompt == task.prompt.strip()
    assert re.search(r"^///.*\n(.*\n)*?fn \w+", task.prompt, flags=re.MULTILINE)
    assert task.prompt.endswith("{")
    for body in (task.canonical_solution, task.mutant):
        assert body.startswith("\n    ")
        assert body.endswith("\n}")
    assert len(re.findall(r"assert(?:_eq|_ne)?!\(", task.tests)) >= 4


def test_every_canonical_solution_passes_and_every_mutant_fails() -> None:
    tasks = builtin_tasks()
    right = judge_completions(tasks, canonical_completions(tasks), RunConfig())
    wrong = judge_completions(tasks, [(t.task_id, t.mutant) for t in tasks], RunConfig())
    assert {e.task_id: e.verified.verdict for e in right} == {
        task.task_id: Verdict.PASSED for task in tasks
    }
    assert {e.verified.verdict for e in wrong} <= {Verdict.TEST_FAILED, Verdict.RUN_ERROR}


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="HumanEval-X Rust is not beside the project")
def test_no_shipped_problem_is_one_of_humaneval() -> None:
    def words(task: Task) -> set[str]:
        text = " ".join(re.findall(r"[a-z]+", task.prompt.lower()))
        return {text[i : i + 40] for i in range(0, len(text) - 40)}

    theirs = load_tasks(HUMANEVAL)
    names = {re.findall(r"\bfn (\w+)", task.prompt)[-1] for task in theirs}
    known = set().union(*map(words, theirs))
    for task in builtin_tasks():
        assert re.findall(r"\bfn (\w+)", task.prompt)[-1] not in names
        assert not words(task) & known


def test_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    tasks = builtin_tasks()[:5]
    path = _write(tmp_path / "tasks.jsonl", [as_row(task) for task in tasks])
    assert load_tasks(path) == tasks


def test_multipl_e_rows_become_tasks(tmp_path: Path) -> None:
    (task,) = load_tasks(_write(tmp_path / "humaneval-rs.jsonl", [MULTIPL_E_ROW]))
    assert task.task_id == "multipl_e/HumanEval_0_double"
    assert task.prompt.endswith("-> isize {")
    assert task.tests.startswith("fn main()")
    assert task.stop_tokens == ()


# The shapes of MultiPL-E's Rust problems: the types that Python's become, and what surrounds them.
MULTIPL_E_SHAPES = {
    "floats": ("fn f(xs: Vec<f64>, t: f64) -> bool {", "candidate(vec![1.0, 2.5], 0.3), true"),
    "strings": ("fn f(s: String) -> Vec<String> {", 'candidate(String::from("a b")), '
                'vec![String::from("a"), String::from("b")]'),
    "option": ("fn f(xs: Vec<isize>) -> Option<isize> {", "candidate(vec![-1]), Some(-1)"),
    "tuple": ("fn f(n: isize) -> (isize, isize) {", "candidate(12), (4, 6)"),
    "empty vector": ("fn f(x: Vec<isize>) -> Vec<isize> {",
                     "candidate(Vec::<isize>::new()), Vec::<isize>::new()"),
    "map": ("use std::collections::HashMap;\n\nfn f(t: String) -> HashMap<String, isize> {",
            'candidate(String::from("")), HashMap::from([])'),
    "nested": ("fn f(g: Vec<Vec<isize>>, k: isize) -> Vec<isize> {",
               "candidate(vec![vec![1, 2], vec![3, 4]], 2), vec![1, 2]"),
    "raw text": ("fn f(s: String) -> String {", 'candidate(String::from("}")), String::from("{")'),
    "unit": ("fn f(n: isize) -> () {", "candidate(1), ()"),
}  # fmt: skip
DOC = '/// Do it.\n/// >>> f(String::from("{"))\n/// "}" is closed.\n'


def _multipl_e_rows() -> list[dict]:
    return [
        {
            "name": f"HumanEval_{number}_{name.replace(' ', '_')}",
            "language": "rs",
            "prompt": f"{DOC}{signature}\n",
            "doctests": "transform",
            "prompt_terminology": "reworded",
            "tests": "}\n\nfn main() {\n    let candidate = f;\n"
            f"    assert_eq!({case});\n    assert_eq!({case});\n}}\n",
            "stop_tokens": ["\n}"],
        }
        for number, (name, (signature, case)) in enumerate(MULTIPL_E_SHAPES.items())
    ]


@pytest.mark.parametrize("as_array", [False, True])
def test_multipl_e_prompts_compile_with_todo_as_body(tmp_path: Path, as_array: bool) -> None:
    path = tmp_path / "humaneval-rs-reworded.json"
    if as_array:  # as in MultiPL-E's own repository; as lines on the hub
        path.write_text(json.dumps(_multipl_e_rows(), indent=2))
    else:
        _write(path, _multipl_e_rows())
    tasks = load_tasks(path)
    assert len(tasks) == len(MULTIPL_E_SHAPES)
    for body in ("\n    todo!()\n}", "\n    todo!()", "    todo!()\n"):
        episodes = judge_completions(tasks, [(t.task_id, body) for t in tasks], RunConfig())
        assert {e.verified.verdict for e in episodes} == {Verdict.RUN_ERROR}
        assert {e.verified.detail for e in episodes} == {"not yet implemented"}


def test_humaneval_rows_become_tasks(tmp_path: Path) -> None:
    path = tmp_path / "humaneval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL_ROW).encode()))
    (task,) = load_tasks(path)
    assert task.task_id == "humaneval_x/Rust/0"
    assert task.prompt == "/*\n Double a number.\n*/\nfn double(x:i32) -> i32{"
    assert task.prelude.strip() == "use std::cmp;"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": "a"}\n', "the format is not known"),
        ("", "holds no task"),
        (json.dumps(MULTIPL_E_ROW) + "\n\n{broken\n", "line 3: not valid JSON"),
        (json.dumps(MULTIPL_E_ROW) + '\n{"prompt": "fn f() {"}\n', "line 2: the key"),
        (json.dumps(MULTIPL_E_ROW) + "\n[1]\n", "line 2: expected a JSON object"),
        (json.dumps([MULTIPL_E_ROW, 1]), "entry 2: expected a JSON object"),
        (json.dumps([MULTIPL_E_ROW])[:-1], "not valid JSON"),
        ("[]", "holds no task"),
        (json.dumps({**MULTIPL_E_ROW, "tests": "fn main() {}"}), "line 1: `tests` must begin"),
        (json.dumps(MULTIPL_E_ROW) * 1 + "\n" + json.dumps(MULTIPL_E_ROW), "appears twice"),
        (json.dumps({**HUMANEVAL_ROW, "declaration": "fn f()"}), "line 1: `declaration` must"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkbenchError, match=message):
        load_tasks(path)


def test_own_rows_with_unknown_or_bad_keys_are_refused(tmp_path: Path) -> None:
    row = as_row(builtin_tasks()[0])
    with pytest.raises(WorkbenchError, match="unknown keys levle"):
        load_tasks(_write(tmp_path / "a.jsonl", [row, {**row, "task_id": "b", "levle": 1}]))
    with pytest.raises(WorkbenchError, match="opening brace"):
        load_tasks(_write(tmp_path / "b.jsonl", [{**row, "prompt": "fn f()"}]))


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="There is no task set 'builtni'"):
        load_tasks("builtni")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe4"}\n')
    with pytest.raises(WorkbenchError, match="cannot be read as UTF-8"):
        load_tasks(tmp_path / "latin.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-12])
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_tasks(tmp_path / "cut.jsonl.gz")


def test_a_task_file_without_a_mark_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="needs the marks task, solution, mutant, tests"):
        parse_task_file("//@ task 001_a level=1\nfn a() {\n//@ solution\n}\n", "family")
    whole = "//@ task {}\nfn a() {{\n//@ solution\n}}\n//@ mutant\n}}\n//@ tests\na();\n"
    assert parse_task_file(whole.format("001_a level=1"), "family")[0].level == 1
    with pytest.raises(WorkbenchError, match="must read like"):
        parse_task_file(whole.format("1_a"), "family")


def test_the_sets_of_a_run_are_named_apart(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.jsonl", [MULTIPL_E_ROW])
    again = _write(tmp_path / "again.jsonl", [MULTIPL_E_ROW])
    settings = EvalConfig(task_files=(str(path), str(again)))
    assert list(evaluation_sets(settings, tmp_path)) == ["builtin", "multipl_e", "again"]
    row = as_row(builtin_tasks()[0]) | {"task_set": "tinyrust", "split": "train"}
    _write(tmp_path / "tasks.jsonl", [row])
    assert list(evaluation_sets(EvalConfig(), tmp_path)) == ["tinyrust", "builtin"]


def own_rows(n: int, **changes: object) -> str:
    rows = []
    for i in range(n):
        task = Task(f"corpus/p{i // 3}/f{i}", f"fn f{i}() -> i32 {{", "\n    1\n}", "", "corpus")
        rows.append(json.dumps(as_row(replace(task, **changes))))
    return "\n".join(rows) + "\n"


def test_prompts_of_stage_3_come_from_stage_1_and_from_files(tmp_path: Path) -> None:
    tiny = replace(builtin_tasks()[0], task_set="tinyrust", split="train", level=1)
    (tmp_path / "tasks.jsonl").write_text(json.dumps(as_row(tiny)) + "\n")
    own = tmp_path / "own.jsonl"
    own.write_text(own_rows(240))
    found = policy_tasks(MaxRLConfig(task_files=(str(own),)), tmp_path)
    assert found[0] == tiny
    split = {task.task_id: task.split for task in found[1:]}
    held = {task_id.split("/")[1] for task_id, name in split.items() if name == "held_package"}
    trained = {task_id.split("/")[1] for task_id, name in split.items() if name == "train"}
    assert held.isdisjoint(trained)
    assert 4 <= len(held) <= 18  # 80 packages, one of eight
    (tmp_path / "corpus_tasks.jsonl").write_text(own_rows(3, split="held_package"))
    with pytest.raises(WorkbenchError, match="appears twice"):
        policy_tasks(MaxRLConfig(task_files=(str(own),)), tmp_path)
    assert len(policy_tasks(MaxRLConfig(), tmp_path)) == 4


@pytest.mark.parametrize("name", ["builtin", "humaneval_x", "multipl_e"])
def test_benchmarks_are_not_trained_on(tmp_path: Path, name: str) -> None:
    file = tmp_path / "tasks_of_mine.jsonl"
    file.write_text(own_rows(2, task_set=name))
    with pytest.raises(WorkbenchError, match="must not train"):
        policy_tasks(MaxRLConfig(task_files=(str(file),)), tmp_path)
