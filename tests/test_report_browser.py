"""Reports in a headless Chromium: offline, dark and light, every figure drawn, nothing requested.

Set NANOCHAT_SCREENSHOTS to a folder to keep the pictures and look at them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from run_factory import make_run
from visits import DRAWN, Visit

from nanochat_lib.experiments.notes import write_notes
from nanochat_lib.report.compare.page import load_runs, write_comparison
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.notebook import export_notebooks
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.plots import figures, theme
from nanochat_lib.report.run_data import load_run

pytestmark = pytest.mark.browser
HOSTILE_OUTPUT = "<script>window.hacked = 1</script><img src='https://example.com/x.png'>"


@pytest.fixture(scope="module")
def reports_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a reports folder: one self-contained page, one that shares the script, a notebook."""
    folder = tmp_path_factory.mktemp("reports")
    whole = make_run(folder / "runs", "whole", targets={"pass_at_1": 0.72, "loss": 2.5})
    figure = json.loads(figures.loss_curves(load_run(whole).metrics).to_json())
    outputs = [
        new_output("display_data", {"application/vnd.plotly.v1+json": figure}),
        new_output("display_data", {"text/html": HOSTILE_OUTPUT}),
    ]
    book = new_notebook(cells=[new_code_cell("1", outputs=outputs)])
    nbformat.write(book, whole / "notebooks" / "02_pretrain.ipynb")
    export_notebooks(whole)
    write_run_report(whole)
    write_run_report(make_run(folder / "runs", "shared", steps=100), self_contained=False)
    write_notes(whole, hypothesis="<b>more</b>", add_tags=["loops"])
    runs = load_runs(["whole", "shared"], folder / "runs")
    write_comparison(runs, folder / "compare" / "both.html", self_contained=False)
    write_comparison(runs, folder / "compare" / "alone.html")
    write_index(folder)
    return folder


@pytest.fixture
def visit(browser: object, reports_dir: Path) -> Iterator[object]:
    """Return a function that opens a page of the reports folder; closes what it opened."""
    opened: list[Visit] = []

    def open_page(name: str, scheme: str = "light", width: int = 1300) -> Visit:
        opened.append(Visit(browser, reports_dir / name, scheme, width))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["whole", "shared"])
def test_a_report_opens_offline_with_every_figure(visit, name: str, scheme: str) -> None:
    seen = visit(f"runs/{name}/report.html", scheme)
    plots = seen.page.locator(".plot")
    assert plots.count() > 20
    for i in range(plots.count()):
        assert plots.nth(i).locator("svg.main-svg").count() >= 1
        assert plots.nth(i).locator(".trace, .points path, .scatterlayer path").count() >= 1
    assert seen.outside == []
    assert seen.errors == []
    index = 0 if scheme == "light" else 1
    background = seen.page.evaluate("document.querySelector('.plot')._fullLayout.paper_bgcolor")
    assert background == theme.SURFACE["background"][index]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["both", "alone"])
def test_a_comparison_opens_offline_with_every_figure(visit, name: str, scheme: str) -> None:
    seen = visit(f"compare/{name}.html", scheme)
    plots = seen.page.locator(".plot")
    assert plots.count() > 8
    for i in range(plots.count()):
        assert plots.nth(i).locator(".scatterlayer .trace").count() == 2
    assert seen.outside == []
    assert seen.errors == []


def test_a_page_can_be_printed(visit) -> None:
    """On paper: light figures, no contents list and no buttons, nothing cut off."""
    seen = visit("runs/shared/report.html", "dark")
    assert seen.page.locator("nav.contents").is_visible()
    assert len(seen.page.pdf()) > 50_000
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert not seen.page.locator("nav.contents").is_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(background) == "rgb(255, 255, 255)"
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    seen.page.wait_for_selector(DRAWN.format("light"), state="attached")
    assert seen.errors == []


def test_figures_follow_a_change_of_the_system(visit) -> None:
    seen = visit("runs/shared/report.html", "light")
    color = "document.querySelector('#loss .plot')._fullData[1].line.color"
    assert seen.page.evaluate(color) == theme.SERIES["blue"][0]
    seen.page.emulate_media(color_scheme="dark")
    seen.page.wait_for_selector(DRAWN.format("dark"), state="attached")
    assert seen.page.evaluate(color) == theme.SERIES["blue"][1]
    assert seen.errors == []


def test_generated_script_stays_text_in_the_browser(visit) -> None:
    seen = visit("runs/whole/report.html")
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.get_by_text("<script>window.hacked = 1</script>").count() >= 1


def test_deep_links_and_tables_work_by_keyboard(visit) -> None:
    seen = visit("runs/shared/report.html")
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the report"
    seen.page.locator("nav a[href='#loss']").press("Enter")
    seen.page.wait_for_url("**#loss")
    details = seen.page.locator("#loss details")
    details.locator("summary").press("Enter")
    assert details.locator("table tbody tr").first.is_visible()


@pytest.mark.parametrize("width", [360, 420, 1300])
@pytest.mark.parametrize("name", ["runs/shared/report.html", "compare/both.html", "index.html"])
def test_nothing_is_wider_than_the_window(visit, name: str, width: int) -> None:
    seen = visit(name, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_index_filters_and_sorts(visit, scheme: str) -> None:
    seen = visit("index.html", scheme)
    rows = seen.page.locator("#runs tbody tr:visible")
    assert rows.count() == 2
    seen.page.get_by_label("Filter").fill("whole")
    assert rows.count() == 1
    assert seen.page.locator("#count").text_content() == "1 of 2 runs"
    seen.page.get_by_label("Filter").fill("")
    seen.page.get_by_role("button", name="show runs tagged loops").click()
    assert rows.count() == 1
    seen.page.get_by_label("Filter").fill("")
    first = rows.first.locator("td").first
    seen.page.get_by_role("button", name="Run", exact=True).click()
    assert "shared" in first.text_content()
    seen.page.get_by_role("button", name="Run", exact=True).click()
    assert "whole" in first.text_content()
    assert seen.outside == []
    assert seen.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_exported_notebook_draws_and_blocks_what_it_should(visit, scheme: str) -> None:
    seen = visit("runs/whole/notebooks/02_pretrain.html", scheme)
    assert seen.page.locator(".plot svg.main-svg").count() >= 1
    assert seen.page.evaluate("window.hacked") is None
    assert seen.outside == ["https://example.com/x.png"]  # asked for by the output, and blocked:
    refused = [text for text in seen.errors if "Content Security Policy" in text]
    assert len(refused) == 2
