"""Reports in a headless Chromium: offline, dark and light, every figure drawn, nothing requested.

Set NANOCHAT_SCREENSHOTS to a folder to keep the pictures and look at them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from run_factory import make_run

from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.notebook import export_notebooks
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.plots import figures, theme
from nanochat_lib.report.run_data import load_run

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the browser extra")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRAWN = "html[data-drawn={}]"
HOSTILE_OUTPUT = "<script>window.hacked = 1</script><img src='https://example.com/x.png'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Return a headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


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
    write_index(folder)
    return folder


class Visit:
    """A page opened offline, with everything it tried to load and every error it raised."""

    def __init__(self, browser: object, path: Path, scheme: str, width: int = 1300) -> None:
        self.context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.errors.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(path.as_uri())
        if self.page.locator(".plot").count():
            self.page.wait_for_selector(DRAWN.format(scheme), state="attached")
        if folder := os.environ.get("NANOCHAT_SCREENSHOTS"):
            name = f"{path.parent.name}-{path.stem}-{scheme}-{width}.png"
            self.page.screenshot(path=str(Path(folder) / name), full_page=True)

    def _console(self, message: object) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    @property
    def outside(self) -> list[str]:
        """Return the requests that were for anything but a file or inline data."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


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


@pytest.mark.parametrize("width", [420, 1300])
def test_nothing_is_wider_than_the_window(visit, width: int) -> None:
    seen = visit("runs/shared/report.html", width=width)
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
