"""Fixtures shared by the tests: a tiny configuration and a folder of runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat_lib.config import RunConfig, load_profile

TINY_PROFILE = Path(__file__).parent / "fixtures" / "tiny.toml"


@pytest.fixture
def tiny_config() -> RunConfig:
    """Return the profile that every test can afford."""
    return load_profile(str(TINY_PROFILE))


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Return an empty folder for run folders, inside an empty reports folder."""
    return tmp_path / "reports" / "runs"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch work on one thread: small products on several only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Return a headless Chromium, closed after each module: it occupies the thread's event loop."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is in the browser extra"
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
