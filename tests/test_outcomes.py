"""The page of every problem: complete, inert, and openable with nothing but a browser."""

from __future__ import annotations

import json
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.config import RunConfig
from nanochat_lib.evals.judging import judge_completions
from nanochat_lib.evals.results import episode_rows, failure_tables, result_rows
from nanochat_lib.evals.tasks import builtin_tasks
from nanochat_lib.records import as_row
from nanochat_lib.report.content.gates import corpus_gate_facts, gate_facts
from nanochat_lib.report.content.outcomes import group_outcomes
from nanochat_lib.report.pages.run import write_outcomes

TASKS = builtin_tasks()[:3]
SCRIPT = '<script>alert("x")</script>'
HOSTILE = f"\n    // {SCRIPT} </pre> \u202e &amp;\n    0\n}}"


class _Tags(HTMLParser):
    """Collect the tags and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def _row(task: str, verdict: str, **values) -> dict:
    row = {"checkpoint": "pretrain", "task_set": "builtin", "task_id": task, "sample_idx": 0}
    return row | {"prompt": "fn f() {", "completion": "}", "verdict": verdict} | values


def test_problems_are_grouped_with_all_their_samples() -> None:
    rows = [
        _row("a", "PASSED", is_flaky=True),
        _row("a", "COMPILE_ERROR", codes=["E0308"], detail="mismatched types"),
        _row("b", "TEST_FAILED", flags=["tests_call_undeclared_function"], is_flaky=False),
        _row("b", "PASSED", checkpoint="maxrl"),
    ]
    first, second = group_outcomes(rows)
    assert first.title == "pretrain on builtin"
    assert second.title == "maxrl on builtin"
    a, b = first.problems
    assert (a.outcome, a.state, a.codes) == ("1 of 2 passed", "watch", "E0308")
    assert (b.outcome, b.state) == ("0 of 1 passed", "bad")
    assert b.flags == "tests call undeclared function"
    assert a.samples[1].note == "E0308 · mismatched types"
    assert a.samples[0].note == "another verdict when judged again"
    assert "1 of 2 problems solved" in first.summary
    assert "1 of 2 judged twice had another verdict" in first.summary
    assert "1 problems carry a note" in first.summary


def test_what_a_model_wrote_is_shown_as_text(tmp_path: Path) -> None:
    row = _row(f"a{SCRIPT}", "PASSED", completion=HOSTILE, detail=SCRIPT, codes=[SCRIPT])
    path = write_outcomes([row], tmp_path / "page.html", title=SCRIPT, rates=[{"set": SCRIPT}])
    text = path.read_text(encoding="utf-8")
    page = _Tags(text)
    assert "script" not in page.tags
    assert page.text.count(SCRIPT) >= 5  # title, heading, rate, name, note, source
    assert "\u202e" not in text
    assert "\\u{202e}" in page.text
    assert "script-src 'none'" in unescape(text)


def test_an_evaluation_without_programs_says_so(tmp_path: Path) -> None:
    text = write_outcomes([], tmp_path / "page.html", title="none").read_text()
    assert "No program was judged" in text


def test_judged_completions_reach_the_page_and_the_gates(tmp_path: Path) -> None:
    texts = [(task.task_id, task.canonical_solution) for task in TASKS]
    texts += [(TASKS[0].task_id, HOSTILE), (TASKS[1].task_id, TASKS[1].mutant)]
    unsafe = TASKS[2].canonical_solution.replace("\n", "\n    let _ = unsafe { 1 };\n", 1)
    texts.append((TASKS[2].task_id, unsafe))
    episodes = judge_completions(TASKS, texts, RunConfig(), in_depth=True)
    rows = episode_rows("mine", "builtin", TASKS, episodes)
    (gates,) = failure_tables(rows)["semantics"]
    if gates["n_unknown"]:
        return  # clippy is not installed here: nothing is called clean
    assert (gates["n_passed"], gates["n_ok"], gates["n_unsafe"]) == (4, 3, 1)
    assert (gates["n_repeated"], gates["n_flaky"]) == (5, 0)  # hidden text does not compile
    rates = {r.metric: r for r in result_rows("mine", "builtin", TASKS, episodes, ks=[1])}
    ok = rates["semantic_ok"]
    assert (ok.n_correct, ok.n_samples, ok.n_unjudged) == (3, 6, 0)
    assert rates["pass@1"].n_correct == 4
    path = write_outcomes(rows, tmp_path / "o.html", title="t", rates=[as_row(ok)])
    page = _Tags(path.read_text())
    assert all(task.task_id in page.text for task in TASKS)
    assert "unsafe code, and Miri is" in page.text
    facts = dict(gate_facts([gates]))
    text = facts["Semantic correctness, mine on builtin"]
    assert text.startswith("75.0% (3 of 4) of the programs that pass")
    assert facts["Another verdict the second time"].startswith("0.0% (0 of 5)")


def test_gates_that_were_not_there_say_so() -> None:
    assert "not installed" in corpus_gate_facts({"clippy": "not available"})[0][1]
    assert corpus_gate_facts({}) == []
    row = dict.fromkeys(("n_ok", "n_lints", "n_unsafe", "n_repeated", "n_flaky"), 0)
    row |= {"checkpoint": "x", "task_set": "s", "n_passed": 2, "n_unknown": 2}
    assert "2 not known: a gate was missing" in gate_facts([row])[0][1]
    assert "no gate was asked" in gate_facts([{**row, "n_passed": 0}])[0][1]


def test_the_command_writes_json_and_page(tmp_path: Path) -> None:
    lines = [{"task_id": TASKS[0].task_id, "completion": HOSTILE}]
    completions = tmp_path / "mine.jsonl"
    completions.write_text("\n".join(map(json.dumps, lines)))
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    arguments = ["evaluate", "--completions", str(completions), "--json", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--html", str(page)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["episodes"][0]["task_id"] == TASKS[0].task_id
    assert f"{result['n_tasks_without_completion']} of" in done.output
    assert "semantic_score" in done.output  # no name is cut in a terminal of 80 columns
    assert SCRIPT in _Tags(page.read_text()).text
