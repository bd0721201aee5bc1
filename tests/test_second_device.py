"""Training on a device that is not the CPU, without a GPU: second_device_cases.py, in a process.

torch counts devices in a process's first backward pass, so a second one must be known before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, str]:
    """Return what went wrong in each case, by its name; empty where nothing did."""
    report = tmp_path_factory.mktemp("second_device") / "cases.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", str(HERE / "second_device_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    assert report.is_file(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.attrib["name"]] = "".join(part.text or "" for part in case)
    return found


@pytest.mark.parametrize(
    ("words", "n_cases"),
    [("refuses", 1), ("pretraining", 4), ("resumed", 1), ("longer_context", 1), ("policy", 1)],
)
def test_what_runs_there(cases, words, n_cases) -> None:
    chosen = {name: error for name, error in cases.items() if words in name}
    assert len(chosen) == n_cases
    assert not any(chosen.values()), "\n\n".join(chosen.values())
