"""The dashboard and every explorer in JupyterLab, in a headless Chromium.

Set NANOCHAT_SCREENSHOTS to a folder to keep the pictures and look at them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PROFILE
from jupyter_lab import LabPage, copy_notebooks, lab_server

from nanochat_lib.config import PROJECT_ROOT
from nanochat_lib.runs import read_run_json

pytestmark = [pytest.mark.browser, pytest.mark.slow]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the browser extra")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EXPLORERS = sorted(path.stem for path in (PROJECT_ROOT / "notebooks").glob("explore_*.ipynb"))
LONG = {"pretrain.total_steps": 100_000, "pretrain.checkpoint_every": 100_000}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished tiny run, made by the command line."""
    folder = tmp_path_factory.mktemp("lab") / "reports" / "runs"
    command = [sys.executable, "-m", "nanochat_lib.cli", "run", "--profile", str(TINY_PROFILE)]
    command += ["--run-id", "seen", "--runs-dir", str(folder)]
    command += ["--stages", "preprocess,pretrain,maxrl,evaluate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def lab(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that opens and runs a notebook in JupyterLab; the server is shared."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    folder = tmp_path_factory.mktemp("notebooks")
    parameters = {"profile": str(TINY_PROFILE), "run_id": "seen", "runs_dir": str(runs_dir)}
    copy_notebooks(PROJECT_ROOT / "notebooks", folder, {**parameters, "overrides": LONG})
    opened: list[LabPage] = []
    with (
        lab_server(folder, tmp_path_factory.mktemp("settings")) as address,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_notebook(name: str, *, dark: bool = False) -> LabPage:
            for page in opened:
                page.close()
            opened[:] = [LabPage(browser, address, f"{name}.ipynb", dark=dark)]
            return opened[0]

        yield open_notebook
        browser.close()


def _button(seen: LabPage, name: str) -> Any:
    return seen.page.locator(".nano button", has_text=re.compile(rf"^\s*{name}\s*$"))


def _chip(seen: LabPage, text: str, seconds: float) -> None:
    seen.page.locator(".nano-chip", has_text=text).wait_for(timeout=1000 * seconds)


def test_the_dashboard_shows_a_finished_run(lab: Any) -> None:
    seen = lab("live")
    assert seen.wait_until_done() == []
    _chip(seen, "completed", 20)
    seen.page.locator(".nano .scatterlayer .trace path.js-line").first.wait_for()
    assert seen.page.locator(".nano .scatterlayer .trace").count() > 12
    assert seen.page.locator(".nano .js-plotly-plot").count() == 1
    seen.picture("dashboard-finished")
    assert seen.problems == []
    assert seen.outside == []


def test_start_pause_and_stop_within_a_second(lab: Any, runs_dir: Path) -> None:
    """A new run: stage 1 first, then training; the kernel answers while it trains."""
    seen = lab("live")
    assert seen.wait_until_done() == []
    name = seen.page.locator(".nano").get_by_label("run", exact=True)
    name.fill("fresh")
    name.press("Enter")
    _chip(seen, "not begun", 20)
    _button(seen, "Start").click()
    _chip(seen, "running", 300)
    seen.page.wait_for_function(
        "() => [...document.querySelectorAll('.nano .scatterlayer .trace path.js-line')]"
        ".some(path => path.getAttribute('d').length > 200)", timeout=60_000
    )  # fmt: skip
    seen.picture("dashboard-running")
    assert _kernel_answers(seen) < 2
    _button(seen, "Pause").click()
    _chip(seen, "paused", 5)
    _button(seen, "Checkpoint now").click()
    saved = runs_dir / "fresh" / "artifacts" / "pretrain" / "checkpoints"
    seen.page.wait_for_timeout(1000)
    assert len(list(saved.glob("step_*"))) == 1
    _button(seen, "Go on").click()
    _chip(seen, "running", 5)
    began = time.monotonic()
    _button(seen, "Stop").click()
    _chip(seen, "interrupted", 5)
    took = time.monotonic() - began
    seen.picture("dashboard-stopped")
    assert took < 1
    assert read_run_json(runs_dir / "fresh")["stages"]["pretrain"]["status"] == "interrupted"
    assert seen.problems == []


def _kernel_answers(seen: LabPage) -> float:
    """Return the seconds that the kernel takes to answer a line of Python."""
    return seen.page.evaluate(
        """async () => {
          const began = performance.now();
          const future = window.panel.sessionContext.session.kernel.requestExecute({code: "1 + 1"});
          await future.done;
          return (performance.now() - began) / 1000;
        }"""
    )


def test_the_dark_theme_reaches_the_figure_and_the_form_refuses(lab: Any) -> None:
    seen = lab("live", dark=True)
    assert seen.wait_until_done() == []
    seen.page.wait_for_function(
        "() => document.querySelector('.nano .js-plotly-plot')._fullLayout.paper_bgcolor"
        " === '#171a20'"
    )
    seen.page.locator(".nano .jupyter-widget-Collapse-header").click()
    seen.page.locator(".nano [role=tab]", has_text="pretrain").click()
    seen.page.locator(".nano").get_by_label("total_steps", exact=True).fill("0")
    seen.page.locator(".nano-error", has_text="greater than or equal to 1").first.wait_for()
    seen.page.wait_for_function(
        "() => [...document.querySelectorAll('.nano button')]"
        ".some(b => b.textContent.trim() === 'Start' && b.disabled)"
    )
    seen.picture("dashboard-form-dark")
    assert seen.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", EXPLORERS)
def test_every_explorer_opens_runs_and_shows_its_widget(lab: Any, name: str, dark: bool) -> None:
    seen = lab(name, dark=dark)
    assert seen.wait_until_done(300) == []
    widget = seen.page.locator(".nano .widget-hbox, .nano .widget-dropdown").first
    widget.wait_for()
    USE[name](seen)
    seen.page.evaluate("document.querySelector('.nano .widget-hbox').scrollIntoView()")
    seen.page.wait_for_timeout(1500)
    seen.picture(f"{name}-{'dark' if dark else 'light'}")
    assert seen.problems == []
    assert seen.outside == []


def _use_generation(seen: LabPage) -> None:
    """Hover over a token, then let rustc judge the text."""
    token = seen.page.locator(".nano-tokens .t").first
    token.hover()
    seen.page.locator(".nano-tokens .t .tip", has_text="left at loop").first.wait_for()
    _button(seen, "Compile it").click()
    seen.page.locator(".nano-chip").first.wait_for(timeout=60_000)
    token.hover()


def _use_samples(seen: LabPage) -> None:
    seen.page.locator(".nano button", has_text="rejected by stage 1").click()
    seen.page.locator(".nano-chip", has_text="COMPILE_ERROR").first.wait_for()
    _button(seen, "Ask rustc again").click()
    seen.page.locator(".nano-code .note").first.wait_for(timeout=60_000)


def _use_weights(seen: LabPage) -> None:
    seen.page.locator(".nano").get_by_label("matrix").select_option("down")
    seen.page.locator(".nano .js-plotly-plot", has_text="Codes of down").first.wait_for()


def _use_kernels(seen: LabPage) -> None:
    tokens = seen.page.locator(".nano").get_by_label("tokens B")
    tokens.fill("8")
    tokens.press("Enter")
    _button(seen, "Measure").click()
    seen.page.locator(".nano .js-plotly-plot", has_text="8 token(s)").wait_for(timeout=120_000)


def _use_rewards(seen: LabPage) -> None:
    seen.page.locator(".nano").get_by_label("example").select_option("early exit")
    seen.page.locator(".nano-warn", has_text="leaves_early").wait_for(timeout=60_000)


USE = {
    "explore_generation": _use_generation,
    "explore_kernels": _use_kernels,
    "explore_rewards": _use_rewards,
    "explore_samples": _use_samples,
    "explore_weights": _use_weights,
}
