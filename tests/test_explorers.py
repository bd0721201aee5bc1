"""What the explorers show, without a browser: numbers against independent ones, text escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.bench.lab import Question, lab_rows
from nanochat_lib.config import HardwareConfig, ModelConfig
from nanochat_lib.data.tokenizer import encode_prompt, train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.inside.explain import Explainer, open_explainer
from nanochat_lib.evals.inside.weights import codes_of, loop_changes, weight_rows
from nanochat_lib.evals.tasks import builtin_tasks
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM, exit_pdf
from nanochat_lib.records import Diagnostic, Level, Verdict, Verified
from nanochat_lib.report.widgets.explore import kernel_lab, reward_lab
from nanochat_lib.report.widgets.explore.generation import GenerationExplorer, depth_table
from nanochat_lib.report.widgets.explore.samples import SampleBrowser, samples_of
from nanochat_lib.report.widgets.explore.weights import CodeViewer, change_figure, weight_figure
from nanochat_lib.report.widgets.listing import code_html, tokens_html
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.syntax import features

HOSTILE = "<script>window.hacked = 1</script>"
SHAPE = ModelConfig(
    vocab_size=320, d_model=32, n_layers=2, n_loops=3, n_heads=4, n_kv_heads=2, d_ff=64,
    max_seq_len=96,
)  # fmt: skip
needs_sandbox = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox here")


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    """Return an untrained model whose gate leaves at different loops."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tokenizer.json"
    text = "fn double(x: i32) -> i32 {\n    x * 2\n}\n" * 50
    train_tokenizer([text], SHAPE.vocab_size).save(str(path))
    model = LoopLM(SHAPE, seed=1)
    torch.nn.init.normal_(model.exit_gate.weight, generator=torch.Generator().manual_seed(0))
    save_checkpoint(
        folder / "final", model, step=0, tokens_seen=0, stage="pretrain", tokenizer_json=path
    )
    return open_explainer(folder / "final", HardwareConfig(cpu_threads=1))


PROMPT = "fn double(x: i32) -> i32 {"


def test_candidates_are_those_of_the_model_after_all_loops(explainer: Explainer) -> None:
    steps = explainer.explain(PROMPT, temperature=0.0, max_new_tokens=12)
    ids = encode_prompt(explainer.tokenizer, PROMPT) + [step.token_id for step in steps]
    with torch.no_grad():
        output = explainer.model(torch.tensor([ids[:-1]]))
        chances = F.softmax(explainer.model.logits(output.hidden[-1])[0, -len(steps) :], -1)
        leaving = exit_pdf(output.exit_prob)[:, 0, -len(steps) :]
    for i, step in enumerate(steps):
        assert step.loop == SHAPE.n_loops
        assert step.probability == pytest.approx(float(chances[i, step.token_id]), abs=1e-5)
        assert step.candidates[0][1] == pytest.approx(step.probability, abs=1e-5)  # greedy
        entropy = float(-(chances[i] * chances[i].log()).sum())
        assert step.entropy_nats == pytest.approx(entropy, abs=0.02)
        assert step.exit_pdf == pytest.approx(leaving[:, i].tolist())
        assert [p for _, p in step.candidates] == sorted(
            (p for _, p in step.candidates), reverse=True
        )


def test_a_lower_threshold_leaves_earlier(explainer: Explainer) -> None:
    depth = depth_table(explainer, PROMPT, (1.0, 0.6, 0.2))["mean loops"]
    assert depth[0] == SHAPE.n_loops
    assert depth[0] > depth[1] >= depth[2]


def test_the_text_is_the_tokens_decoded(explainer: Explainer) -> None:
    steps = explainer.explain(PROMPT, max_new_tokens=8)
    wanted = explainer.tokenizer.decode([s.token_id for s in steps if s.text])
    assert explainer.text(steps) == "\n" + wanted


def test_moving_the_slider_generates_again(explainer: Explainer) -> None:
    explorer = GenerationExplorer(explainer, builtin_tasks()[:3])
    explorer.temperature.value = 0.0
    explorer.threshold.value = 1.0
    assert {step.loop for step in explorer.steps} == {3}
    explorer.threshold.value = 0.3
    assert min(step.loop for step in explorer.steps) < 3
    assert explorer.shown.value.count('class="t"') == len(explorer.steps)
    explorer.task.value = 1
    assert explorer.prompt.value == builtin_tasks()[1].prompt


class _Fixed:
    """Writes the same text whatever it is asked."""

    n_loops = 2

    def __init__(self, text: str) -> None:
        self._text = text

    def explain(self, prompt: str, **settings: Any) -> list[Any]:
        return []

    def text(self, steps: list[Any]) -> str:
        return self._text


@needs_sandbox
def test_compile_it_runs_the_hidden_tests_of_the_task() -> None:
    task = builtin_tasks()[0]
    verdicts = {}
    for name, text in (("right", task.canonical_solution), ("wrong", task.mutant)):
        explorer = GenerationExplorer(_Fixed(text + "\nfn more() {"), [task])
        explorer.judge()
        verdicts[name] = explorer.verdict.value
    assert "PASSED" in verdicts["right"]
    assert "TEST_FAILED" in verdicts["wrong"]


@needs_sandbox
def test_compile_it_marks_the_line_rustc_complains_about() -> None:
    explorer = GenerationExplorer(_Fixed("\n    missing + 1\n}"), builtin_tasks()[:1])
    explorer.prompt.value = "fn free() -> i32 {"
    explorer.judge()
    shown = explorer.verdict.value
    assert "COMPILE_ERROR" in shown
    assert '<span class="mark">missing</span>' in shown
    assert "E0425" in shown


def test_a_listing_escapes_and_places_its_notes() -> None:
    notes = [
        Diagnostic("error", "E0001", HOSTILE, 2, 5, 2, 8),
        Diagnostic("warning", "", "no place"),
        Diagnostic("error", "", "beyond the end", 99, 1, 99, 2),
    ]
    shown = code_html(f"fn a() {{\nlet abc = 1; {HOSTILE}\n}}", notes)
    assert "<script>" not in shown
    assert '<span class="mark">abc</span>' in shown
    assert shown.index("no place") < shown.index("abc") < shown.index("E0001")
    assert "beyond the end" in shown


def test_tokens_are_escaped_wherever_they_are_shown(explainer: Explainer) -> None:
    step = explainer.explain(PROMPT, max_new_tokens=1)[0]
    hostile = type(step)(1, HOSTILE, 1, 0.5, 0.5, ((HOSTILE, 0.5),), (1.0, 0.0, 0.0))
    shown = tokens_html(HOSTILE, [hostile], 3)
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") >= 4
    assert not re.search(r'aria-label="[^"]*<', shown)


def test_weights_are_those_that_multiply() -> None:
    model = LoopLM(SHAPE, seed=2)
    rows = weight_rows(model)
    assert rows.height == 2 * 7
    weight = model.layers[1].down.weight.detach().numpy()
    scale = float(np.float16(np.abs(weight).mean(dtype=np.float64)))
    codes = np.clip(np.round(weight / np.float32(scale)), -1, 1)
    found = rows.filter((pl.col("layer") == 2) & (pl.col("matrix") == "down")).row(0, named=True)
    assert found["scale"] == pytest.approx(scale)
    assert found["zero"] == pytest.approx((codes == 0).mean())
    assert np.array_equal(codes_of(model, 1, "down")[0], codes)
    dense = LoopLM(SHAPE.model_copy(update={"ternary": False}))
    with pytest.raises(WorkbenchError, match="no ternary weights"):
        weight_rows(dense)


def test_the_change_of_a_layer_is_measured_in_every_loop(explainer: Explainer) -> None:
    changes = loop_changes(explainer.model, explainer.tokenizer, "fn double(x: i32)")
    assert changes.select("loop", "layer").rows() == [(r, n) for r in (1, 2, 3) for n in (1, 2)]
    ids = torch.tensor([explainer.tokenizer.encode("fn double(x: i32)").ids])
    model = explainer.model
    seen, before = [], model.run_layer
    model.run_layer = lambda layer, h, *rest: seen.append(h) or layer(h, *rest)
    with torch.no_grad():
        model(ids)
    model.run_layer = before
    first = ((seen[1] - seen[0]).norm(dim=-1) / seen[0].norm(dim=-1)).mean()
    assert changes["change"][0] == pytest.approx(float(first), rel=1e-5)
    assert not any(layer._forward_hooks for layer in model.layers)


def test_the_code_viewer_shows_the_window_it_names() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (300, 400)).astype(np.int8)
    rows = pl.DataFrame({"layer": [1], "matrix": ["q"]})
    viewer = CodeViewer(rows, lambda layer, matrix: (codes, 0.5))
    assert viewer.top.max == 300 - 192
    viewer.top.value = 48
    assert np.array_equal(viewer.figure.widget.data[0].z, codes[48:240, :384])
    assert viewer.left.disabled is False
    viewer.figure.set_dark(True)
    assert viewer.figure.widget.layout.template.layout.paper_bgcolor == "#171a20"


def test_weight_and_change_figures_hold_every_row() -> None:
    model = LoopLM(SHAPE, seed=2)
    rows = weight_rows(model)
    figure = weight_figure(rows).children[-1]
    assert sum(len(trace.y) for trace in figure.data) == 2 * rows.height
    changes = pl.DataFrame({"loop": [1, 2], "layer": [1, 1], "change": [0.5, 0.25]})
    assert list(change_figure(changes).children[-1].data[0].y) == [0.5, 0.25]


@pytest.fixture
def tables() -> dict[str, pl.DataFrame]:
    """Return two tables of programs."""
    rows = [
        (f"p{i}", "function" if i % 2 else "test", "PASSED" if i % 3 else "COMPILE_ERROR",
         [] if i % 3 else ["E0308", "E0425"], "easy", f"fn f{i}() {{}}", f"fn f{i}() {{}}",
         "", "facts")
        for i in range(12)
    ]  # fmt: skip
    names = ("name", "kind", "verdict", "codes", "difficulty", "text", "program", "detail", "facts")
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return {"kept": frame, "hostile": frame.head(1).with_columns(text=pl.lit(HOSTILE))}


def test_filters_narrow_and_steps_walk(tables: dict[str, pl.DataFrame]) -> None:
    browser = SampleBrowser(tables)
    assert browser.found.height == 12
    browser.filters["verdict"].value = "COMPILE_ERROR"
    assert browser.found["name"].to_list() == ["p0", "p3", "p6", "p9"]
    browser.filters["codes"].value = "E0425"
    assert browser.found.height == 4
    browser.filters["kind"].value = "test"
    assert browser.found["name"].to_list() == ["p0", "p6"]
    browser.place.value = 2
    assert browser.row["name"] == "p6"
    browser.search.value = "f6()"
    assert browser.found["name"].to_list() == ["p6"]
    browser.search.value = "nowhere"
    assert browser.row is None
    assert "No program fits" in browser.shown.value
    browser.table.value = "hostile"
    assert browser.filters["verdict"].value == "any"


def test_a_hostile_sample_shows_as_text(tables: dict[str, pl.DataFrame]) -> None:
    browser = SampleBrowser(tables)
    browser.search.value = ""
    browser.table.value = "hostile"
    assert "<script>" not in browser.shown.value
    assert "&lt;script&gt;" in browser.shown.value


@needs_sandbox
def test_asking_again_shows_the_diagnostics(tables: dict[str, pl.DataFrame]) -> None:
    bad = tables["kept"].head(1).with_columns(program=pl.lit('fn f() -> i32 { "a" }\n'))
    browser = SampleBrowser({"one": bad})
    browser.judge()
    assert "E0308" in browser.shown.value
    assert 'class="mark"' in browser.shown.value


def test_a_run_without_programs_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="01_preprocess"):
        samples_of(tmp_path)


def test_every_level_of_the_lab_equals_the_reference() -> None:
    for question in (Question(64, 96, 1), Question(48, 80, 3, "base3"), Question(64, 64, 2)):
        rows = lab_rows(question, n_repeats=1)
        products = [row for row in rows if row["kernel"] == "ternary"]
        assert {row["backend"] for row in products} == set(kernels.backends()) - {"reference"}
        assert all(row["equals_reference"] for row in products)
        assert {row["kernel"] for row in rows} == {"ternary", "read", "reference"}
        assert all(row["us_median"] > 0 for row in rows)


def test_a_kernel_that_is_wrong_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.accumulate

    def off_by_one(*args: Any, **settings: Any) -> np.ndarray:
        found = real(*args, **settings)
        return found if settings["backend"] == "reference" else found + 1

    monkeypatch.setattr(kernels, "accumulate", off_by_one)
    rows = lab_rows(Question(64, 64), n_repeats=1)
    assert not any(row["equals_reference"] for row in rows if row["kernel"] == "ternary")
    assert ">NO<" in kernel_lab.summary_html(rows)


def test_the_lab_refuses_what_it_cannot_measure_and_goes_on() -> None:
    lab = kernel_lab.KernelLab(Question(64, 64))
    before = list(lab.rows)
    lab.n.value = "many"
    lab.measure()
    assert "expected a whole number, found &#x27;many&#x27;" in lab.said.value
    lab.n.value = "1"
    lab.measure()
    assert "rows must lie between 16" in lab.said.value
    assert lab.rows == before
    assert not lab.go.disabled
    lab.n.value = "128"
    lab.measure()
    assert lab.rows[0]["n"] == 128
    assert len(lab.figure.widget.data[0].x) == len(lab.rows)


@needs_sandbox
def test_the_reward_lab_tells_honest_work_from_hacks() -> None:
    lab = reward_lab.RewardLab(builtin_tasks()[:2])
    assert "PASSED" in lab.said.value
    assert "No known hack" in lab.said.value
    lab.example.value = builtin_tasks()[0].mutant
    assert "TEST_FAILED" in lab.said.value
    lab.example.value = reward_lab.EXAMPLES["early exit"]
    assert "PASSED" not in lab.said.value
    assert "leaves_early" in lab.said.value
    lab.text.value = f"    0 {HOSTILE}\n}}"
    lab.judge()
    assert "<script>" not in lab.said.value


def test_reward_parts_add_up_to_the_reward() -> None:
    judged = Verified("p", Verdict.PASSED, Level.TEST)
    own = "fn f<'a>(x: &'a i32) -> i32 { if *x > 1 { unsafe { 1 } } else { 2 } }"
    shown = reward_lab.rewards_html(judged, own)
    found = features(own)
    lifetimes = 0.05 * min(found.explicit_lifetimes, 4)
    total = 1 + 0.02 * found.cyclomatic_complexity + lifetimes - 0.2 * found.unsafe_blocks
    assert f">{total:.2f}<" in shown
    assert "not scored zero" in reward_lab.rewards_html(
        Verified("p", Verdict.UNJUDGED, Level.TEST), own
    )
