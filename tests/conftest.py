"""Fixtures shared by the tests: a tiny configuration and a folder of runs."""

from __future__ import annotations

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
