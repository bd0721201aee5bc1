"""HumanEval-X Rust: every canonical solution passes, and the stand-ins do what their crates do."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.evals.humaneval import (
    MISSING_FUNCTION,
    MISSING_TYPE,
    TESTS_REPLACED,
    humaneval_task,
    with_stand_ins,
)
from nanochat_lib.evals.judging import canonical_completions, cut_completion, judge_completions
from nanochat_lib.evals.tasks import load_tasks
from nanochat_lib.records import Program, Task, Verdict
from nanochat_lib.rust.verify import verify

HUMANEVAL = PROJECT_ROOT.parent / "shared/data/humaneval_x_rust/humaneval_rust.jsonl.gz"
needs_humaneval = pytest.mark.skipif(
    not HUMANEVAL.is_file(), reason="HumanEval-X Rust is not beside the project"
)
ROW = {
    "task_id": "Rust/7",
    "prompt": "\n/*\n Count.\n*/\n",
    "declaration": "\nuse std::cmp::max;\nuse rand::Rng;\nuse regex::Regex;\nuse md5;\n\n"
    "fn count(text: &str) -> usize {\n\n",
    "canonical_solution": "    text.len()\n}\n",
    "test": "#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn test_count() {\n"
    '        assert!(count("ab") == 2);\n    }\n}\n',
}


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(HUMANEVAL)


def _passes(body: str, uses: str) -> bool:
    """Return whether rustc builds and passes a test with this body and the stand-ins it uses."""
    test = f"#[test]\nfn stands_in() {{\n{body}\n}}\n"
    prelude = with_stand_ins(humaneval_task({**ROW, "canonical_solution": f"{uses} }}"}), uses)
    (found,) = verify([Program("stand_in", prelude.prelude + test)], "test")
    return found.verdict is Verdict.PASSED


@needs_humaneval
def test_all_canonical_solutions_pass(tasks: list[Task]) -> None:
    episodes = judge_completions(tasks, canonical_completions(tasks), RunConfig(), truncate=False)
    failed = [e.task_id for e in episodes if e.verified.verdict is not Verdict.PASSED]
    assert len(episodes) == 164
    assert failed == []
    assert all(e.verified.n_tests >= 1 for e in episodes)


@needs_humaneval
@pytest.mark.slow
def test_an_empty_body_passes_nowhere(tasks: list[Task]) -> None:
    texts = [(task.task_id, "\n    todo!()\n}") for task in tasks]
    verdicts = Counter(e.verified.verdict for e in judge_completions(tasks, texts, RunConfig()))
    assert Verdict.PASSED not in verdicts
    assert verdicts[Verdict.COMPILE_ERROR] == 5  # the undeclared items
    assert sum(verdicts.values()) == 164


@needs_humaneval
def test_flawed_problems_are_flagged(tasks: list[Task]) -> None:
    flagged = {int(t.task_id.split("/")[-1]) for t in tasks if MISSING_FUNCTION in t.flags}
    assert flagged == {10, 32, 38, 50}
    assert [t.task_id for t in tasks if MISSING_TYPE in t.flags] == ["humaneval_x/Rust/137"]
    assert [t.task_id for t in tasks if TESTS_REPLACED in t.flags] == ["humaneval_x/Rust/32"]


@needs_humaneval
def test_prompts_are_cut_at_the_token_boundary(tasks: list[Task]) -> None:
    for task in tasks:
        assert re.search(r"\nfn \w+|\npub fn \w+", task.prompt)
        assert task.prompt.endswith("{")
        assert "\nuse " not in task.prompt
        assert task.canonical_solution.startswith("\n")


def test_only_the_crates_a_program_mentions_stand_in() -> None:
    task = humaneval_task(ROW)
    assert task.prelude.strip() == "use std::cmp::max;"
    assert task.canonical_solution == "\n    text.len()\n}\n"
    widened = with_stand_ins(task, "\n    Regex::new(text).unwrap().as_str().len()\n}")
    assert "mod regex" in widened.prelude
    assert "mod rand" not in widened.prelude
    assert with_stand_ins(widened, "\n    0\n}") == task


def test_a_completion_may_use_a_crate_that_the_canonical_solution_does_not() -> None:
    body = '\n    Regex::new("[ab]").unwrap().find_iter(text).count()\n}'
    task = humaneval_task(ROW)
    (episode,) = judge_completions([task], [(task.task_id, body)], RunConfig())
    assert episode.verified.verdict is Verdict.PASSED, episode


def test_a_problem_with_a_missing_function_keeps_what_follows_its_first() -> None:
    tests = ROW["test"].replace("count(", "count_all(")
    solution = "\n    0\n}\nfn count_all(text: &str) -> usize {\n    text.len()\n}\n"
    task = humaneval_task({**ROW, "test": tests, "canonical_solution": solution})
    assert task.flags == (MISSING_FUNCTION,)
    assert cut_completion(task, solution) == solution
    assert cut_completion(humaneval_task(ROW), solution) == "\n    0\n}"


def test_md5_equals_the_known_digest() -> None:
    texts = ["", "a", "message digest", "x" * 55, "y" * 56, "z" * 64, "ä" * 100]
    lines = [
        f'assert_eq!(format!("{{:x}}", md5::compute("{text}")), '
        f'"{hashlib.md5(text.encode()).hexdigest()}");'
        for text in texts
    ]
    assert _passes("\n".join(lines), "md5::compute")


def test_regex_finds_what_python_finds() -> None:
    patterns = [
        r"[.?!]\s*", r"a+b?", r"(ab|c)*d", r"^\w+", r"\d{2,3}", r"[^aeiou\s]+", r"\bI\b", r"x*",
        r"a{2}", r"(?:no|yes)$", r"<.+?>", r"[a-c\-]", r"\.", r"[]x]", r"é.",
    ]  # fmt: skip
    texts = [
        "",
        "I am. Yes! I know? no",
        "aab aabb cabd ababcd",
        "12 345 6789 <a><b>",
        "-]é!I yes",
    ]
    lines = []
    for pattern in patterns:
        for text in texts:
            found = [match.group() for match in re.finditer(pattern, text)]
            pieces, start = [], 0
            for match in re.finditer(pattern, text):
                pieces.append(text[start : match.start()])
                start = match.end()
            pieces.append(text[start:])
            wanted = "[{}]".format(", ".join(f'"{piece}"' for piece in found))
            split = "[{}]".format(", ".join(f'"{piece}"' for piece in pieces))
            rust = f'let re = Regex::new(r"{pattern}").unwrap(); let t = "{text}";'
            lines.append(
                f"{{ {rust} let f: Vec<&str> = re.find_iter(t).map(|m| m.as_str()).collect();"
                f" let wanted: Vec<&str> = vec!{wanted}; assert_eq!(f, wanted);"
                f" let s: Vec<&str> = re.split(t).collect(); let pieces: Vec<&str> = vec!{split};"
                f" assert_eq!(s, pieces); assert_eq!(re.is_match(t), !f.is_empty()); }}"
            )
    bad = ["(a", "a)", "*a", "[a", "a{x}"]
    lines += [f'assert!(Regex::new(r"{pattern}").is_err());' for pattern in bad]
    # An empty match right behind another one does not count in Rust; in Python it does.
    lines.append('let x = Regex::new("x*").unwrap(); assert_eq!(x.find_iter("axb").count(), 3);')
    assert _passes("\n".join(lines), "Regex::new")


def test_random_numbers_stay_in_range_and_vary() -> None:
    body = """
    let mut rng = rand::thread_rng();
    let mut seen = [0; 6];
    for _ in 0..600 {
        let value: i32 = rng.gen_range(-3, 3);
        assert!((-3..3).contains(&value));
        seen[(value + 3) as usize] += 1;
        let share: f64 = rng.gen();
        assert!((0.0..1.0).contains(&share));
        assert!((b'a'..=b'z').contains(&rng.gen_range(b'a', b'z' + 1)));
    }
    assert!(seen.iter().all(|count| *count > 60), "{seen:?}");
    assert!((0..64).any(|_| rand::random::<u32>() > u32::MAX / 2));
    assert!((0..64).any(|_| rng.gen::<i32>() < 0));
    assert!((0..64).any(|_| rng.gen_bool(0.5)));
    """
    assert _passes(body, "rand::random")
