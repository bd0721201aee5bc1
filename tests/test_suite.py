"""Evaluation end to end: what is judged, what is counted, what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import polars as pl
import pytest

from nanochat_lib.config import HardwareConfig, RunConfig
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals import suite
from nanochat_lib.evals.during import continuous_evaluator, task_evaluator
from nanochat_lib.evals.generation import Completion
from nanochat_lib.evals.judging import cut_completion, judge_completions, read_completions
from nanochat_lib.evals.results import failure_tables, result_rows
from nanochat_lib.evals.samples import write_samples
from nanochat_lib.evals.suite import choose_tasks, evaluate, judge_file
from nanochat_lib.evals.tasks import builtin_tasks
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Diagnostic, Episode, Level, Metric, Task, Verdict, Verified

TASKS = builtin_tasks()[:4]


def _episode(task: str, idx: int, verdict: Verdict, detail: str = "", code: str = "") -> Episode:
    diagnostics = (Diagnostic("error", code, f"about {code}"),) if code else ()
    verified = Verified(task, verdict, Level.TEST, diagnostics, detail, "landlock+seccomp")
    return Episode(task, idx, f"\n    {verdict}\n}}", verified, n_tokens=5)


def _task(name: str, **values) -> Task:
    return replace(TASKS[0], task_id=name, **values)


class _ScriptedWriter:
    """Stands for a model: writes the canonical solution, or for odd samples the mutant."""

    engine = SimpleNamespace(runs_on="cpu (made up)")

    def complete(
        self, prompts: list[str], settings, *, n_samples: int = 1, seed: int = 0
    ) -> Iterator[list[tuple[int, Completion]]]:
        by_prompt = {task.prompt: task for task in builtin_tasks()}
        for i, prompt in enumerate(prompts):
            task = by_prompt[prompt]
            texts = (task.canonical_solution + "\n\nfn next() {", task.mutant)
            yield [(i, Completion(texts[s % 2], 7, 1.5, False)) for s in range(n_samples)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an untrained tiny model and a tokenizer, as `final/`."""
    folder = tmp_path_factory.mktemp("stage")
    texts = [task.prompt + task.canonical_solution for task in builtin_tasks()]
    tokenizer = train_tokenizer(texts, 512)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"vocab_size": tokenizer.get_vocab_size(), "d_model": 64, "n_layers": 1, "n_heads": 2}
    shape |= {"n_kv_heads": 1, "d_ff": 64, "max_seq_len": 160}
    model = LoopLM(RunConfig().model.model_copy(update=shape))
    save_checkpoint(
        folder / "final",
        model,
        step=1,
        tokens_seen=1,
        stage="pretrain",
        tokenizer_json=folder / "tokenizer.json",
    )
    return folder / "final"


def test_completions_are_judged_in_order_and_numbered_per_task() -> None:
    a, b = TASKS[0], TASKS[1]
    texts = [
        (b.task_id, b.canonical_solution + "\n}}} garbage"),
        (a.task_id, a.mutant),
        (a.task_id, "\n    1 + \n}"),
        (a.task_id, a.canonical_solution),
    ]
    episodes = judge_completions(TASKS, texts, RunConfig())
    assert [e.task_id for e in episodes] == [task_id for task_id, _ in texts]
    assert [e.sample_idx for e in episodes] == [0, 0, 1, 2]
    verdicts = [e.verified.verdict for e in episodes]
    assert verdicts[0] == verdicts[3] == Verdict.PASSED
    assert verdicts[1] == Verdict.TEST_FAILED
    assert verdicts[2] in (Verdict.PARSE_ERROR, Verdict.COMPILE_ERROR)
    assert episodes[0].completion == b.canonical_solution


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(WorkbenchError, match="Did you mean 'builtin/001_clamp_sum'"):
        judge_completions(TASKS, [("builtin/01_clamp_sum", "\n}")], RunConfig())


def test_multipl_e_texts_pass_with_and_without_the_closing_brace() -> None:
    task = _task(
        "m",
        prompt="/// Double.\nfn double(x: isize) -> isize {",
        tests="fn main() {\n    assert_eq!(double(2), 4);\n}\n",
        task_set="multipl_e",
    )
    texts = [
        "\n    x * 2",
        "\n    x * 2\n}",
        " x * 2 }\nfn more() {",
        "\n    if x > 0 { x + x } else {",
    ]
    episodes = judge_completions([task], [("m", text) for text in texts], RunConfig())
    verdicts = [e.verified.verdict for e in episodes]
    assert verdicts[:3] == [Verdict.PASSED] * 3
    assert verdicts[3] != Verdict.PASSED
    assert cut_completion(task, "\n    x * 2") == "\n    x * 2\n}"


def test_rates_leave_out_what_could_not_be_judged() -> None:
    tasks = [_task("a"), _task("b"), _task("c")]
    episodes = [
        _episode("a", 0, Verdict.PASSED),
        _episode("a", 1, Verdict.TEST_FAILED),
        _episode("b", 0, Verdict.COMPILE_ERROR, code="E0308"),
        _episode("b", 1, Verdict.UNJUDGED),
        _episode("c", 0, Verdict.UNJUDGED),
        _episode("c", 1, Verdict.UNJUDGED),
    ]
    rows = {row.metric: row for row in result_rows("x", "set", tasks, episodes, ks=[1, 2])}
    compile_rate = rows["compile_rate"]
    assert (compile_rate.n_correct, compile_rate.n_samples, compile_rate.n_problems) == (2, 3, 2)
    assert (compile_rate.rate, compile_rate.n_unjudged) == (2 / 3, 3)
    assert rows["pass@1"].rate == pytest.approx((1 / 2 + 0) / 2)
    assert rows["pass@2"].rate == 1.0  # b and c lack two judged samples
    assert (rows["pass@2"].n_problems, rows["pass@2"].n_samples) == (1, 2)
    assert rows["semantic_score"].rate == pytest.approx((1 + 1 + 0.5) / 3)
    assert all(row.low <= row.rate <= row.high for row in rows.values())


def test_nothing_judged_is_no_rate_but_is_counted() -> None:
    rows = result_rows("x", "set", [_task("a")], [_episode("a", 0, Verdict.UNJUDGED)], ks=[1])
    assert [(row.rate, row.n_samples, row.n_unjudged) for row in rows] == [(0.0, 0, 1)] * 3


def test_a_program_that_never_ends_did_compile() -> None:
    episodes = [_episode("a", 0, Verdict.TIMEOUT), _episode("b", 0, Verdict.TIMEOUT, "rustc: 10 s")]
    rows = result_rows("x", "set", [_task("a"), _task("b")], episodes, ks=[1])
    assert (rows[0].n_correct, rows[0].n_samples) == (1, 2)


def test_tinyrust_is_told_apart_by_level_and_split() -> None:
    tasks = [
        _task("a", task_set="tinyrust", level=1, split="held_parameters"),
        _task("b", task_set="tinyrust", level=2, split="held_parameters"),
        _task("c", task_set="tinyrust", level=2, split="held_family"),
    ]
    episodes = [_episode(name, 0, Verdict.PASSED) for name in "ab"]
    episodes.append(_episode("c", 0, Verdict.TEST_FAILED))
    rows = result_rows("x", "tinyrust", tasks, episodes, ks=[1])
    rates = {row.task_set: row.rate for row in rows if row.metric == "pass@1"}
    assert rates == {
        "tinyrust": pytest.approx(2 / 3),
        "tinyrust/level1": 1.0,
        "tinyrust/level2": 0.5,
        "tinyrust/held_parameters": 1.0,
        "tinyrust/held_family": 0.0,
    }


def test_tasks_are_chosen_evenly_and_never_from_training() -> None:
    tasks = [
        _task(f"{split}-{level}-{family}-{i}", level=level, split=split, family=family)
        for split in ("train", "held_parameters", "held_family")
        for level in (1, 2)
        for family in ("x", "y")
        for i in range(5)
    ]
    chosen = choose_tasks(tasks, 8)
    assert len({task.task_id for task in chosen}) == 8
    kinds = [(task.split, task.level, task.family) for task in chosen]
    assert len(set(kinds)) == 8
    assert "train" not in {split for split, _, _ in kinds}
    assert len(choose_tasks(tasks[:20], 6)) == 6  # nothing but training tasks
    assert choose_tasks(tasks, 1000) == tasks[20:]


def test_failures_are_counted_by_verdict_and_code() -> None:
    tasks = [_task("a")]
    episodes = [
        _episode("a", 0, Verdict.COMPILE_ERROR, code="E0308"),
        _episode("a", 1, Verdict.COMPILE_ERROR, code="E0308"),
        _episode("a", 2, Verdict.PASSED),
    ]
    tables = failure_tables(suite.results.episode_rows("x", "set", tasks, episodes))
    place = {"checkpoint": "x", "task_set": "set"}
    assert tables["verdicts"][0] == {**place, "verdict": "COMPILE_ERROR", "n": 2}
    assert tables["error_codes"] == [{**place, "code": "E0308", "n": 2, "message": "about E0308"}]
    classes = {row["class"]: (row["n"], row["n_judged"]) for row in tables["error_classes"]}
    assert classes["types"] == (2, 3)
    assert classes["ownership"] == (0, 3)
    assert tables["distinct_bodies"] == [{**place, "rate": pytest.approx(2 / 3), "n": 3}]


def test_evaluation_writes_what_its_model_deserves(
    tmp_path: Path, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "open_writer", lambda path, hardware: _ScriptedWriter())
    logged, seen = [], []
    summary = evaluate(
        {"pretrain": tmp_path},
        {"builtin": builtin_tasks()},
        tiny_config,
        tmp_path / "out",
        log=lambda step, values: logged.append((step, values)),
        progress=lambda done, total, text: seen.append((done, total)),
    )
    rates = {row["metric"]: row for row in summary["rates"]}
    assert rates["compile_rate"]["rate"] == 1.0
    assert rates["pass@1"]["rate"] == 0.5  # one of two samples
    assert rates["pass@2"]["rate"] == 1.0
    assert rates["pass@2"]["n_problems"] == tiny_config.eval.max_tasks
    assert logged[0][1][Metric.PASS_RATE] == 0.5
    assert seen[-1] == (seen[-1][1], seen[-1][1])
    frame = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert frame.to_dicts() == summary["rates"]
    episodes = pl.read_parquet(tmp_path / "out" / "episodes.parquet")
    assert episodes.height == 2 * tiny_config.eval.max_tasks
    assert set(episodes["verdict"]) == {"PASSED", "TEST_FAILED"}
    assert set(episodes["expected_loops"]) == {1.5}
    on_disk = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert on_disk == summary
    assert summary["sandbox"]
    assert summary["decoding"] == "cpu (made up)"
    assert re.fullmatch(r"1\.\d+\.\d+.*", summary["rustc"])


def test_a_stop_leaves_nothing_half_written(
    tmp_path: Path, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "open_writer", lambda path, hardware: _ScriptedWriter())
    stop = Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        evaluate({"a": tmp_path}, {"builtin": TASKS}, tiny_config, tmp_path / "out", stop=stop)
    assert not (tmp_path / "out").exists()


def test_an_untrained_model_goes_through_and_repeats(
    tmp_path: Path, tiny_config: RunConfig, checkpoint: Path
) -> None:
    sets = {"builtin": builtin_tasks()}
    runs = [
        evaluate({"pretrain": checkpoint}, sets, tiny_config, tmp_path / name)
        for name in ("first", "second")
    ]
    assert runs[0]["rates"] == runs[1]["rates"]
    frames = [pl.read_parquet(tmp_path / n / "episodes.parquet") for n in ("first", "second")]
    assert frames[0]["completion"].to_list() == frames[1]["completion"].to_list()
    assert frames[0]["n_tokens"].max() <= tiny_config.eval.max_new_tokens
    assert frames[0]["expected_loops"].min() >= 1
    assert {row["metric"]: row["rate"] for row in runs[0]["rates"]}["pass@1"] == 0


def test_the_continuous_evaluator_follows_the_model(
    tiny_config: RunConfig, checkpoint: Path
) -> None:
    from nanochat_lib.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    on_eval = continuous_evaluator(TASKS, tiny_config, loaded.tokenizer_path)
    first, again = on_eval(1, loaded.model), on_eval(2, loaded.model)
    assert first == again
    ks = {f"pass_at_{k}" for k in tiny_config.eval.k}
    assert set(first) == {Metric.COMPILE_RATE, Metric.SEMANTIC_SCORE, Metric.N_UNJUDGED} | ks


def test_the_continuous_evaluator_gives_the_rates_of_stage_five(
    tmp_path: Path, tiny_config: RunConfig, checkpoint: Path
) -> None:
    from nanochat_lib.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    found = continuous_evaluator(TASKS, tiny_config, loaded.tokenizer_path)(1, loaded.model)
    summary = evaluate({"m": checkpoint}, {"builtin": TASKS}, tiny_config, tmp_path / "whole")
    rates = {row["metric"]: row["rate"] for row in summary["rates"]}
    assert found[Metric.COMPILE_RATE] == rates["compile_rate"]
    assert found[Metric.SEMANTIC_SCORE] == rates["semantic_score"]
    assert found["pass_at_1"] == rates["pass@1"]


def test_evaluation_during_training_is_off_until_asked_for(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    assert task_evaluator(tiny_config, tmp_path) is None


def test_samples_are_kept_in_the_summary(
    tmp_path: Path, tiny_config: RunConfig, checkpoint: Path
) -> None:
    stage = checkpoint.parent
    (stage / "summary.json").write_text('{"steps": 3}')
    rows = write_samples(tiny_config, stage, tmp_path)
    summary = json.loads((stage / "summary.json").read_text())
    assert summary == {"steps": 3, "samples": rows}
    assert all(row["prompt"].endswith("{") and row["completion"][0] == "\n" for row in rows)


def test_a_file_of_completions_is_judged_without_a_model(tmp_path: Path) -> None:
    lines = [
        {"task_id": task.task_id, "completion": text + "\n\nfn more() {"}
        for task in TASKS
        for text in (task.canonical_solution, task.mutant)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = judge_file(TASKS, str(path))
    rates = {row["metric"]: row["rate"] for row in result["rates"]}
    assert (rates["pass@1"], rates["pass@2"]) == (0.5, 1.0)
    assert {row["checkpoint"] for row in result["rates"]} == {"mine"}
    canonical = judge_file(TASKS, "canonical")
    assert {row["rate"] for row in canonical["rates"]} == {1.0}
    short = {"task_id": "001_clamp_sum", "completion": TASKS[0].canonical_solution}
    path.write_text(json.dumps(short))
    assert judge_file(TASKS, str(path))["n_tasks_without_completion"] == len(TASKS) - 1
    with pytest.raises(WorkbenchError, match="no reference solutions"):
        judge_file([replace(TASKS[0], canonical_solution="")], "canonical")


def test_bad_files_of_completions_are_explained(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="There is no file"):
        read_completions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(WorkbenchError, match="holds no completion"):
        read_completions(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"task_id": "a", "completion": "}"}\n{"task_id": 3}\n')
    with pytest.raises(WorkbenchError, match="line 2: `task_id` and `completion`"):
        read_completions(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no completion"),
        ("{", "line 1: not valid JSON"),
        ('{"task_id": "a", "completion": null}', "must both be texts"),
        ('{"task_id": "a"}', "must both be texts"),
        ('"text"', "line 1: expected a JSON object"),
        ('{"task_id": "zzz", "completion": "}"}', "no task 'zzz' among these 4. Its ids are like"),
        ('{"task_id": "builtin/01_clamp_sum", "completion": "}"}', "Did you mean 'builtin/001_"),
        ("\n".join(['{"task_id": "001_clamp_sum", "completion": "}", "sample_idx": 0}'] * 2),
         "lines 1 and 2: sample 0 of '001_clamp_sum' appears twice"),
    ],
)  # fmt: skip
def test_a_bad_line_ends_an_evaluation_with_one_paragraph(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=re.escape(message)) as raised:
        judge_file(TASKS, str(path))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_equal_texts_are_samples_and_missing_tasks_are_counted(tmp_path: Path) -> None:
    line = json.dumps({"task_id": "001_clamp_sum", "completion": TASKS[0].canonical_solution})
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{line}\n\n{line}\n")
    result = judge_file(TASKS, str(path))
    rates = {row["metric"]: row for row in result["rates"]}
    assert (rates["pass@1"]["n_samples"], rates["pass@1"]["n_problems"]) == (2, 1)
    assert "pass@2" in rates
    assert result["n_tasks_without_completion"] == len(TASKS) - 1


def test_a_prompt_that_is_too_long_keeps_its_end(tiny_config: RunConfig, checkpoint: Path) -> None:
    from nanochat_lib.evals.generation import open_writer

    writer = open_writer(checkpoint, HardwareConfig(cpu_threads=1))
    long = "/// " + "very " * 200 + "long.\nfn f(x: i32) -> i32 {"
    (batch,) = writer.complete([long, TASKS[0].prompt], tiny_config.eval)
    assert [found.is_prompt_cut for _, found in batch] == [True, False]
    assert all(found.n_tokens >= 1 for _, found in batch)


def test_white_space_after_a_prompt_changes_no_completion(
    tiny_config: RunConfig, checkpoint: Path
) -> None:
    from nanochat_lib.evals.generation import open_writer

    writer = open_writer(checkpoint, HardwareConfig(cpu_threads=2))
    settings = tiny_config.eval.model_copy(update={"temperature": 1.0})
    for task in builtin_tasks()[:3]:
        variants = [task.prompt + ending for ending in ("", "\n", "\n    ", "\n\n\t")]
        ((first, *others),) = writer.complete(variants, settings, seed=3)
        assert first[1].text.startswith("\n")
        assert [found for _, found in others] == [first[1]] * 3


def test_a_completion_depends_on_seed_prompt_and_number_only(
    tiny_config: RunConfig, checkpoint: Path
) -> None:
    from nanochat_lib.evals.generation import open_writer

    writer = open_writer(checkpoint, HardwareConfig(cpu_threads=2))
    prompts = [task.prompt for task in builtin_tasks()[:6]]
    settings = tiny_config.eval.model_copy(update={"temperature": 1.0})

    def texts(order: list[str]) -> dict[str, list[str]]:
        found = {prompt: [] for prompt in order}
        for batch in writer.complete(order, settings, n_samples=2, seed=4):
            for i, completion in batch:
                found[order[i]].append(completion.text)
        return found

    assert texts(prompts) == texts(prompts[::-1])
    assert any(a != b for a, b in texts(prompts).values())
