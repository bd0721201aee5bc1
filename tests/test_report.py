"""Run pages, their numbers and judgements, the index, and exported notebooks, read as files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from run_factory import HOSTILE, STAGES, make_run, write_json

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Metric
from nanochat_lib.report.content import readings, summary
from nanochat_lib.report.content.sections import run_sections
from nanochat_lib.report.pages.html import figure_json, json_text, rust, visible
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.notebook import export_notebook, export_notebooks
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.plots import figures
from nanochat_lib.report.run_data import RunData, load_run
from nanochat_lib.runs import METRIC_SCHEMA

VOID = {"meta", "link", "br", "img", "input", "hr", "path"}
TARGETS = {"compile_rate": 0.9, "pass_at_1": 0.72, "loss": 2.5, "bits_per_byte": 1.8}


class Page(HTMLParser):
    """What a page holds: elements with attributes, ids, script texts, unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.elements.append((tag, values))
        if tag == "script":
            self.scripts.append((values, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open[-3:])

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            values, text = self.scripts[-1]
            self.scripts[-1] = (values, text + data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """Return the attributes of elements of a tag whose attributes have these values."""
        return [
            values
            for name, values in self.elements
            if name == tag and all(values.get(k) == v for k, v in wanted.items())
        ]

    @property
    def ids(self) -> list[str]:
        """Return every id of the page."""
        return [values["id"] for _, values in self.elements if "id" in values]


@pytest.fixture(scope="module")
def reports_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a reports folder with a whole run, and one that stopped after pre-training."""
    folder = tmp_path_factory.mktemp("reports")
    write_run_report(make_run(folder / "runs", "whole", targets=TARGETS))
    early = ("preprocess", "pretrain")
    billions = {**TARGETS, "parameters_b": 7.0}
    partial = make_run(folder / "runs", "partial", stages=early, targets=billions)
    write_run_report(partial, self_contained=False)
    return folder


@pytest.fixture(scope="module")
def text(reports_dir: Path) -> str:
    """Return the whole run's page."""
    return (reports_dir / "runs" / "whole" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    """Return the whole run's page, parsed."""
    return Page(text)


def run_of(reports_dir: Path, name: str = "whole") -> RunData:
    """Return a run of the fixture."""
    return load_run(reports_dir / "runs" / name)


def test_tags_are_balanced_and_ids_unique(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_link_within_the_page_has_its_target(page: Page) -> None:
    inner = [values["href"][1:] for values in page.all("a") if values["href"].startswith("#")]
    assert len(inner) > 30
    assert set(inner) <= set(page.ids)


def test_every_problem_is_one_click_away(reports_dir: Path, page: Page, text: str) -> None:
    (link,) = page.all("a", href="outcomes.html")
    target = (reports_dir / "runs" / "whole" / link["href"]).read_text(encoding="utf-8")
    outcomes = Page(target)
    assert outcomes.open == []
    assert outcomes.scripts == []
    assert outcomes.all("a", href="report.html")
    assert len(outcomes.all("details")) == 8  # two checkpoints, four problems
    assert HOSTILE.strip() not in target
    assert "95.0% (76 of 80) of the programs that pass are semantically correct" in text
    assert "1.3% (2 of 150) of what ran, judged twice" in text
    assert "types 31, ownership 4 of 192 judged programs" in text
    assert "1.7% (27 of 1,602) of the programs that pass, left out: clippy::eq_op (27)" in text
    assert not (reports_dir / "runs" / "partial" / "outcomes.html").exists()


def test_the_top_says_what_was_asked_what_came_out_and_whether_it_is_healthy(text: str) -> None:
    top = text[: text.index('id="data"')]
    order = [
        "Asked: train a ternary model of 2.62 million parameters",
        "Targets: ", "Health: ", 'aria-label="Key numbers"', "Against the targets",
        "Is it healthy?",
    ]  # fmt: skip
    places = [top.index(part, top.index("<main")) for part in order]
    assert places == sorted(places)


def test_every_figure_has_its_own_link_in_the_contents(page: Page) -> None:
    figures = [values["id"] for values in page.all("article") if "id" in values]
    assert len(figures) > 20
    linked = [values["href"] for values in page.all("a")]
    assert all(linked.count(f"#{name}") >= 2 for name in figures)  # contents, and beside its title


def test_every_figure_has_reading_table_source_and_label(reports_dir: Path, page: Page) -> None:
    run = run_of(reports_dir)
    blocks = [block for section in run_sections(run) for block in section.blocks]
    drawn = [block for block in blocks if block.figure is not None]
    assert len(drawn) > 20
    for block in drawn:
        assert block.reading, block.anchor
        assert block.table.height, block.anchor
        assert "Made-up CPU" in block.source, block.anchor
        assert re.search(r"\d", block.source), block.anchor
    labels = [plot["aria-label"] for plot in page.all("div", **{"class": "plot"})]
    assert len(labels) == len(drawn)
    assert all(len(label) > 10 for label in labels)


def test_nothing_is_requested_from_anywhere(page: Page) -> None:
    for _, values in page.elements:
        for key in ("src", "href", "srcset", "action", "poster"):
            assert not re.match(r"(https?:)?//", values.get(key, "")), values
    assert not page.all("link", rel="stylesheet")


def test_only_our_scripts_may_run(page: Page) -> None:
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*)", policy)[1].split()
    running = [text for values, text in page.scripts if values.get("type") is None]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in running
    ]
    assert sorted(hashes) == sorted(allowed)
    assert len(hashes) == 2  # the plotting library and report.js


def test_generated_script_shows_as_text(text: str) -> None:
    assert HOSTILE.count("<script>") == 1
    assert "<script>window" not in text
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text


def test_figure_data_cannot_close_its_script() -> None:
    dangerous = {"text": "</script><script>alert(1)</script><!-- & \u2028"}
    safe = json_text(dangerous)
    assert "<" not in safe
    assert json.loads(safe) == dangerous


def test_hidden_characters_of_a_model_are_written_out() -> None:
    assert visible("a\u202eb\x00c\td\n") == "a\\u{202e}b\\u{0}c\td\n"
    assert "\u2066" not in rust('let x = "\u2066";')


def test_a_page_with_lone_surrogates_is_still_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=("pretrain",), steps=5)
    sample = {"prompt": "fn f() {", "completion": "\ud800", "note": ""}
    write_json(folder / "artifacts" / "pretrain" / "summary.json", {"samples": [sample]})
    assert write_run_report(folder).read_text(encoding="utf-8").endswith("</html>")


def test_figures_on_a_page_leave_template_and_title_to_it(reports_dir: Path) -> None:
    figure = figures.loss_curves(run_of(reports_dir).metrics)
    assert figure.layout.template.layout.colorway
    layout = json.loads(figure_json(figure))["layout"]
    assert not layout.get("template")
    assert not layout.get("title")
    assert figure.layout.title.text == "Loss"  # the caller's figure is left alone


def test_setup_holds_both_templates_and_no_share_button(page: Page) -> None:
    setup = json.loads(next(t for values, t in page.scripts if values.get("id") == "setup"))
    assert set(setup["templates"]) == {"light", "dark"}
    assert setup["config"]["showSendToCloud"] is False
    assert setup["config"]["displaylogo"] is False


def test_shared_script_keeps_pages_small(reports_dir: Path) -> None:
    path = reports_dir / "runs" / "partial" / "report.html"
    assert path.stat().st_size < 1_000_000
    source = Page(path.read_text(encoding="utf-8")).all("script", src="../../assets/plotly.min.js")
    assert source
    assert (path.parent / source[0]["src"]).resolve().stat().st_size > 1_000_000


def test_stages_that_were_not_run_say_so(reports_dir: Path) -> None:
    sections = {s.anchor: s for s in run_sections(run_of(reports_dir, "partial"))}
    for name in ("maxrl", "evaluate", "kernels", "long-context"):
        assert sections[name].status == "not run"
        assert sections[name].blocks
        assert all(block.figure is None and block.missing for block in sections[name].blocks)
    text = (reports_dir / "runs" / "partial" / "report.html").read_text(encoding="utf-8")
    assert text.count("Not measured in this run:") >= 6


def test_a_run_without_any_stage_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=())
    text = write_run_report(folder, self_contained=False).read_text(encoding="utf-8")
    assert Page(text).open == []


def test_a_run_that_is_still_writing_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=("pretrain",), steps=3)
    (folder / "metrics.parquet").unlink()
    line = {"stage": "pretrain", "step": 1, "wall_s": 0.1, "values": {"loss": 7.5}}
    torn = json.dumps(line | {"step": 2})[:20]
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + torn, encoding="utf-8")
    run = load_run(folder)
    assert run.last("pretrain", Metric.LOSS) == 7.5
    assert write_run_report(folder, self_contained=False).exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="no run"):
        write_run_report(tmp_path / "nothing")


def test_sandbox_compiler_and_machine_are_shown(text: str) -> None:
    for found in ("landlock+seccomp", "rustc 1.85.0", "Made-up CPU, 2 cores, 24 GB, no GPU"):
        assert found in text


def test_targets_are_compared_with_held_out_and_human_eval_numbers(reports_dir: Path) -> None:
    rows = {row.name: row for row in summary.target_rows(run_of(reports_dir))}
    assert rows["HumanEval-Rust pass@1"].outcome == "not met"
    assert "humaneval_x" in rows["HumanEval-Rust pass@1"].measured
    assert rows["Held-out bits per byte, real Rust"].outcome == "met"


def test_a_target_for_billions_is_never_this_models_result(reports_dir: Path) -> None:
    rows = summary.target_rows(run_of(reports_dir, "partial"))
    outcomes = {row.name: row.outcome for row in rows}
    assert outcomes["HumanEval-Rust pass@1"] == "not measured"
    assert outcomes["Held-out loss, nats per token"] == "another scale"
    assert "met" not in outcomes.values()


def state_of(run: RunData, name: str) -> str:
    """Return the state of one health check."""
    return next(check.state for check in summary.health_checks(run) if check.name == name)


def with_metrics(values: dict[str, list[float]], **state) -> RunData:
    """Return a run that recorded these metrics of pre-training."""
    rows = [
        ("r", "pretrain", step, name, value, 0.0)
        for name, found in values.items()
        for step, value in enumerate(found)
    ]
    frame = pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")
    model = {"vocab_size": 2048, "n_loops": 4}
    return RunData(Path("made_up"), {"config": {"model": model}, **state}, frame)


@pytest.mark.parametrize(
    ("share", "state"), [(0.9, "good"), (0.2, "watch"), (0.02, "bad")]
)  # fmt: skip
def test_exit_collapse_is_seen_relative_to_ln_r(share: float, state: str) -> None:
    run = with_metrics({Metric.EXIT_ENTROPY: [share * math.log(4)]})
    assert state_of(run, "Exit gate") == state


@pytest.mark.parametrize(("gap", "state"), [(-0.1, "good"), (-0.5, "watch"), (0.9, "bad")])
def test_calibration_gap_is_judged_on_both_sides(gap: float, state: str) -> None:
    assert state_of(with_metrics({Metric.CALIBRATION_GAP: [gap]}), "Calibration") == state


def test_a_low_entropy_of_a_trained_model_is_healthy() -> None:
    """The brief's rule would warn here: 2.5 nats is below 5, and yet right for a loss of 2.5."""
    assert state_of(with_metrics({Metric.TOKEN_ENTROPY: [2.5]}), "Token entropy") == "good"
    assert state_of(with_metrics({Metric.TOKEN_ENTROPY: [7.5]}), "Token entropy") == "watch"


def test_loss_spikes_and_broken_losses_are_found() -> None:
    calm = [3.0 + 0.01 * math.sin(i) for i in range(200)]
    assert state_of(with_metrics({Metric.LOSS: calm}), "Loss spikes") == "good"
    spiky = [*calm[:100], 6.0, 6.0, *calm[102:]]
    assert state_of(with_metrics({Metric.LOSS: spiky}), "Loss spikes") == "watch"
    assert summary.count_spikes(np.array(spiky)) == 1
    broken = [*calm[:-1], math.nan]
    assert state_of(with_metrics({Metric.LOSS: broken}), "Loss spikes") == "bad"


def test_a_steep_start_is_not_a_spike() -> None:
    falling = np.array([8.0 * math.exp(-i / 40) + 2 for i in range(300)])
    assert summary.count_spikes(falling) == 0


def test_repeated_text_has_few_distinct_grams() -> None:
    assert summary.distinct_rate(["let x = 1 ; " * 40]) < 0.1
    words = " ".join(f"w{i}" for i in range(60))
    assert summary.distinct_rate([words]) == 1.0
    assert summary.distinct_rate(["short"]) is None


def test_what_was_not_measured_is_never_good() -> None:
    assert {check.state for check in summary.health_checks(with_metrics({}))} == {"unknown"}


def test_running_without_a_sandbox_is_bad() -> None:
    assert state_of(with_metrics({}, sandbox="none"), "Sandbox") == "bad"


def test_readings_give_first_last_and_count(reports_dir: Path) -> None:
    run = with_metrics({Metric.BITS_PER_BYTE: [7.25, 3.0, 2.5]})
    label = readings.trend(run.metrics, "pretrain", Metric.BITS_PER_BYTE, "Bits", unit="bits")
    assert label == "Bits fell from 7.25 to 2.5 bits by step 2 (3 measurements)."
    assert "below xz -9e (1.83)" in readings.read_bits(run_of(reports_dir))


def test_index_lists_runs_newest_first_with_counts(reports_dir: Path) -> None:
    text = write_index(reports_dir).read_text(encoding="utf-8")
    page = Page(text)
    links = [values["href"] for values in page.all("a") if values["href"] != "#main"]
    assert {"runs/whole/report.html", "runs/partial/report.html"} <= set(links)
    assert all((reports_dir / link).exists() for link in links)
    assert "1,640 of 2,160" in text
    assert page.open == []


def test_index_of_200_runs_is_small_and_shows_damaged_ones(tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs", "run_000", steps=5, stages=("preprocess", "pretrain"))
    state = json.loads((first / "run.json").read_text(encoding="utf-8"))
    for number in range(1, 200):
        folder = tmp_path / "runs" / f"run_{number:03d}"
        folder.mkdir()
        created = f"2026-03-01T13:{number // 60:02d}:{number % 60:02d}.000+00:00"
        write_json(folder / "run.json", state | {"run_id": folder.name, "created": created})
    (tmp_path / "runs" / "run_007" / "run.json").write_text("{", encoding="utf-8")
    path = write_index(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    assert text.count("<tr>") == 201
    assert "damaged" in text
    assert text.index("run_199") < text.index("run_001")


def test_an_index_without_runs_says_how_to_begin(tmp_path: Path) -> None:
    assert "make demo" in write_index(tmp_path / "reports").read_text(encoding="utf-8")


@pytest.fixture
def notebook(reports_dir: Path, tmp_path: Path) -> Path:
    """Return an executed notebook with a figure, hostile output and a widget."""
    figure = json.loads(figures.loss_curves(run_of(reports_dir).metrics).to_json())
    outputs = [
        new_output("display_data", {"application/vnd.plotly.v1+json": figure, "text/plain": "F"}),
        new_output("display_data", {"text/html": "<script>window.hacked = 1</script>"}),
        new_output("display_data", {
            "application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "VBox()",
        }),
        new_output("stream", name="stdout", text="<b>plain</b>"),
    ]  # fmt: skip
    cells = [new_markdown_cell("# Title"), new_code_cell("x = '<i>'", outputs=outputs)]
    path = tmp_path / "runs" / "r" / "notebooks" / "02_pretrain.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_exported_notebooks_keep_figures_and_ask_for_nothing(notebook: Path) -> None:
    html = export_notebook(notebook, notebook.with_suffix(".html"))
    page = Page(html.read_text(encoding="utf-8"))
    assert len(page.all("div", **{"class": "plot"})) == 1
    spec = next(text for values, text in page.scripts if values.get("id") == "figure-0")
    assert len(json.loads(spec)["data"]) == 3
    assert "template" not in json.loads(spec)["layout"]
    for _, values in page.elements:
        assert not re.match(r"(https?:)?//", values.get("src", "") + values.get("href", ""))
    text = html.read_text(encoding="utf-8")
    assert "VBox()" in text
    assert "&lt;b&gt;plain" in text
    assert "mathjax" not in text.split("<script>")[0].lower()


def test_a_script_in_an_output_is_not_allowed_to_run(notebook: Path) -> None:
    page = Page(export_notebook(notebook, notebook.with_suffix(".html")).read_text("utf-8"))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    digest = hashlib.sha256(b"window.hacked = 1").digest()
    assert base64.b64encode(digest).decode() not in policy
    assert "'unsafe-inline'" not in re.search(r"script-src ([^;]*)", policy)[1]


def test_notebooks_of_a_run_share_one_plotting_script(notebook: Path) -> None:
    run_dir = notebook.parents[1]
    pages = export_notebooks(run_dir)
    assert [path.name for path in pages] == ["02_pretrain.html"]
    assert pages[0].stat().st_size < 500_000
    source = Page(pages[0].read_text("utf-8")).all("script", src="../../../assets/plotly.min.js")
    assert (pages[0].parent / source[0]["src"]).resolve().exists()


def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text("not json", encoding="utf-8")
    with pytest.raises(WorkbenchError, match="not a readable notebook"):
        export_notebook(path, tmp_path / "x.html")


@pytest.mark.slow
def test_a_million_metric_rows_make_a_small_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=("pretrain",), steps=10)
    names = [Metric.LOSS, Metric.TASK_LOSS, Metric.GRAD_NORM, Metric.TOKENS_PER_S]
    n = 250_000
    pl.concat(
        pl.DataFrame({"run_id": "r", "stage": "pretrain", "step": range(n), "name": str(name),
                      "value": np.random.default_rng(0).normal(3, 0.1, n), "wall_s": 0.0})
        for name in names
    ).cast(METRIC_SCHEMA).write_parquet(folder / "metrics.parquet")  # fmt: skip
    path = write_run_report(folder, self_contained=False)
    assert path.stat().st_size < 1_000_000


def test_the_factory_writes_every_stage() -> None:
    assert set(STAGES) >= {"preprocess", "pretrain", "maxrl", "long_context", "evaluate"}
