"""Runs side by side: what differs, which value is best, curves, the page, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
from run_factory import make_run
from test_report import Page
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.notes import write_notes
from nanochat_lib.records import Metric
from nanochat_lib.report.compare.differences import (
    environment_differences,
    parameter_differences,
)
from nanochat_lib.report.compare.numbers import Number, NumberRow, number_rows
from nanochat_lib.report.compare.overlays import MOST, OVERLAYS, overlay, overlay_blocks
from nanochat_lib.report.compare.page import (
    load_runs,
    numbers_frame,
    page_name,
    readable,
    write_comparison,
)
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.run_data import RunData, load_run
from nanochat_lib.runs import METRIC_SCHEMA


def change(folder: Path, **sections: dict) -> None:
    """Change values of a run's run.json: `change(folder, config={"seed": 1})`."""
    path = folder / "run.json"
    state = json.loads(path.read_text())
    for name, values in sections.items():
        state[name] |= values
    path.write_text(json.dumps(state))


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three runs: one differs in settings, one has another machine and only two stages."""
    folder = tmp_path_factory.mktemp("compare") / "reports" / "runs"
    make_run(folder, "plain", steps=60)
    changed = make_run(folder, "seeded", steps=60, seed=1)
    change(changed, config={"seed": 7}, git={"commit": "f" * 40, "dirty": True})
    early = make_run(folder, "early", steps=60, stages=("preprocess", "pretrain"), seed=2)
    change(early, machine={"cpu": "Other CPU"}, versions={"torch": "2.12.0"})
    return folder


@pytest.fixture(scope="module")
def runs(runs_dir: Path) -> list[RunData]:
    """Return the three runs, read."""
    return load_runs(["plain", "seeded", "early"], runs_dir)


def test_only_settings_that_differ_are_listed(runs: list[RunData]) -> None:
    assert parameter_differences(runs).to_dicts() == [
        {"parameter": "seed", "plain": "0", "seeded": "7", "early": "0"}
    ]


def test_environment_differences_name_commit_machine_and_packages(runs: list[RunData]) -> None:
    rows = {row["environment"]: row for row in environment_differences(runs).to_dicts()}
    assert set(rows) == {"git.commit", "git.dirty", "machine.cpu", "versions.torch"}
    assert rows["git.commit"]["seeded"] == "f" * 12
    assert rows["machine.cpu"] == {
        "environment": "machine.cpu", "plain": "Made-up CPU", "seeded": "Made-up CPU",
        "early": "Other CPU",
    }  # fmt: skip


def test_equal_runs_do_not_differ(runs: list[RunData]) -> None:
    assert parameter_differences([runs[0], runs[0]]).is_empty()


def test_many_runs_with_few_settings_become_rows() -> None:
    wide = pl.DataFrame({"parameter": ["seed"], "a_1": ["0"], "b": ["1"]})
    assert readable(wide).to_dicts() == [{"run": "a_1", "seed": "0"}, {"run": "b", "seed": "1"}]


def test_best_and_level_follow_sense_and_intervals() -> None:
    def row(sense: int, *cells: Number | None) -> tuple[str, ...]:
        return NumberRow("x", sense, cells).marks

    low, high = Number(1.0, "1"), Number(2.0, "2")
    assert row(-1, low, high, None) == ("best", "", "")
    assert row(1, low, high, None) == ("", "best", "")
    assert row(0, low, high) == ("", "")
    assert row(1, low, low) == ("", "")  # nobody is best of equals
    near = [Number(v, "", span=(v - 0.1, v + 0.1)) for v in (0.5, 0.35, 0.2)]
    assert row(1, *near) == ("best", "level", "")


def test_numbers_are_those_of_the_metric_rows(runs: list[RunData]) -> None:
    rows = {row.label: row for row in number_rows(runs)}
    losses = [
        run.metrics.filter(pl.col("name") == Metric.VAL_LOSS).sort("step")["value"][-1]
        for run in runs
    ]
    found = rows["Held-out loss, nats per token"]
    assert [cell.value for cell in found.cells] == losses
    assert found.marks.index("best") == losses.index(min(losses))
    passed = rows["pass@1 on tinyrust"].cells
    assert passed[0].span == pytest.approx((0.51, 0.65))
    assert "48 problems" in passed[0].count
    assert passed[2] is None  # never evaluated


def test_a_run_that_measured_nothing_is_a_dash(runs: list[RunData]) -> None:
    frame = numbers_frame(runs)
    row = frame.filter(pl.col("number") == "pass@1 on tinyrust").to_dicts()[0]
    assert row["early"] == "-"
    assert row["plain"] == "58.0% [51.0%, 65.0%]"


def test_overlays_hold_one_line_per_run_that_differ(runs: list[RunData]) -> None:
    figure = overlay(runs, "pretrain", Metric.TASK_LOSS, sense=-1)
    assert [trace.name for trace in figure.data] == ["plain", "seeded", "early"]
    looks = {(trace.line.color, trace.line.dash) for trace in figure.data}
    assert len(looks) == len({color for color, _ in looks}) == len({d for _, d in looks}) == 3
    drawn = figure.data[1].y
    rows = runs[1].metrics.filter(pl.col("name") == Metric.TASK_LOSS, pl.col("stage") == "pretrain")
    assert list(drawn) == rows.sort("step")["value"].to_list()


def _made(values: list[float], walls: list[float], name: str) -> RunData:
    rows = [("r", "pretrain", i, "loss", v, w)
            for i, (v, w) in enumerate(zip(values, walls, strict=True))]  # fmt: skip
    frame = pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")
    return RunData(Path("x") / name, {"run_id": name}, frame)


def test_time_goes_on_after_a_resume_begins_its_clock_anew() -> None:
    runs = [_made([4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 0.5, 2.5], "a"), _made([1.0], [0.0], "b")]
    figure = overlay(runs, "pretrain", "loss", over="seconds")
    assert list(figure.data[0].x) == [1.0, 3.0, 3.0, 5.0]


def test_of_many_runs_the_best_are_drawn_and_the_rest_is_named() -> None:
    runs = [_made([9.0, float(i)], [0.0, 1.0], f"r{i}") for i in range(MOST + 3)]
    names = {trace.name for trace in overlay(runs, "pretrain", "loss", sense=-1).data}
    assert names == {f"r{i}" for i in range(MOST)}


def test_names_in_figures_are_text() -> None:
    runs = [_made([1.0], [0.0], name) for name in ("<b>x</b>", "y")]
    assert overlay(runs, "pretrain", "loss").data[0].name == "&lt;b&gt;x&lt;/b&gt;"


def test_every_overlay_has_reading_and_a_row_per_run(runs: list[RunData]) -> None:
    blocks = {block.anchor: block for block in overlay_blocks(runs)}
    assert set(blocks) >= {anchor for anchor, *_ in OVERLAYS} - {"long-context-loss"}
    assert "bits-per-byte-by-time" in blocks
    for block in blocks.values():
        assert block.reading
        assert block.table.height >= 2
    assert "3 of 3 runs" in blocks["task-loss"].source


@pytest.mark.parametrize("self_contained", [True, False])
def test_the_page_is_whole_and_asks_for_nothing(
    runs: list[RunData], tmp_path: Path, self_contained: bool
) -> None:
    path = runs[0].dir.parent.parent / "compare" / f"{tmp_path.name}.html"
    text = write_comparison(runs, path, self_contained=self_contained).read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    inner = {v["href"][1:] for v in page.all("a") if v["href"].startswith("#")}
    assert inner <= set(page.ids)
    for _, values in page.elements:
        assert not re.match(r"(https?:)?//", values.get("src", "") + values.get("href", ""))
    if not self_contained:
        assert path.stat().st_size < 1_000_000
        (shared,) = [v["src"] for v, _ in page.scripts if "src" in v]
        assert (path.parent / shared).resolve().is_file()
    assert "★ best" in text
    assert "≈ level" in text


def test_links_lead_to_the_reports_wherever_the_page_lies(runs_dir: Path, tmp_path: Path) -> None:
    (runs_dir / "plain" / "report.html").write_text("x")
    runs = load_runs(["plain", "seeded"], runs_dir)
    path = write_comparison(runs, tmp_path / "deep" / "er" / "page.html")
    links = [v["href"] for v in Page(path.read_text()).all("a") if "report.html" in v["href"]]
    assert [(path.parent / link).resolve() for link in links] == [
        (runs_dir / "plain" / "report.html").resolve()
    ]


def test_pages_of_different_runs_never_share_a_name() -> None:
    names = [f"a_rather_long_name_of_a_run_{i}" for i in range(4)]
    pages = {page_name(names[: i + 1]) for i in range(4)} | {page_name([*names[:3], "x"])}
    assert len(pages) == 5
    assert all(len(name) < 100 and ":" not in name for name in pages)
    assert page_name(["sweep:loops"]) == "sweep-loops.html"


def test_what_cannot_be_compared_is_refused(runs_dir: Path) -> None:
    for ids in ([], ["plain"], ["plain", "plain"]):
        with pytest.raises(WorkbenchError, match="at least two different runs"):
            load_runs(ids, runs_dir)
    with pytest.raises(WorkbenchError, match="no run 'absent'"):
        load_runs(["plain", "absent"], runs_dir)


def test_the_command_writes_the_page_and_the_index_links_it(runs_dir: Path) -> None:
    runner, place = CliRunner(), ["--runs-dir", str(runs_dir)]
    for name in ("plain", "seeded"):
        write_notes(runs_dir / name, add_tags=["pair"])
    done = runner.invoke(app, ["compare", "--tag", "pair", *place])
    assert done.exit_code == 0, done.output
    path = runs_dir.parent / "compare" / "pair.html"
    assert path.is_file()
    assert "compare/pair.html" in write_index(runs_dir.parent).read_text()
    told = json.loads(runner.invoke(app, ["compare", "plain", "early", "--json", *place]).output)
    assert [run["run_id"] for run in told["runs"]] == ["plain", "early"]
    rates = next(row for row in told["numbers"] if row["number"] == "pass@1 on tinyrust")
    assert rates["better"] == "more"
    assert set(rates["runs"]) == {"plain"}


def test_policies_are_compared_by_what_their_intervals_show(tmp_path: Path) -> None:
    """51 of 96 and 60 of 96 passed overlap; a fall of 30 points is apart from a rise of 31."""
    runs = [load_run(make_run(tmp_path / "runs", name, stages=("maxrl",))) for name in "ab"]
    other = runs[1].summaries["maxrl"]
    other["after"] |= {"n_passed": 60, "pass_rate_low": 0.55, "pass_rate_high": 0.7}
    other["gains"]["pass_rate"] = {"rise": -0.3, "low": -0.4, "high": -0.2, "n_tasks": 24}
    rows = {row.label: row for row in number_rows(runs)}
    passed = rows["Held-out TinyRust passed after MaxRL"]
    assert [cell.text for cell in passed.cells] == ["53.1%", "62.5%"]
    assert passed.marks == ("level", "best")
    rise = rows["Rise over the same tasks: tests passed"]
    assert [cell.text for cell in rise.cells] == ["+31.0 points", "-30.0 points"]
    assert rise.marks == ("best", "")
    assert rows["Held-out pass@4 after MaxRL"].cells[0].count == "24 tasks"
    assert rows["Share of MaxRL spent waiting for the judge"].cells[0].text == "6%"
