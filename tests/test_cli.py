"""The command line: every README command works, mistakes are one paragraph, exit codes hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.config import PROJECT_ROOT, load_profile
from nanochat_lib.runs import create_run

TINY = str(Path(__file__).parent / "fixtures" / "tiny.toml")


def _nanochat(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanochat_lib.cli", *arguments]
    environment = {**os.environ, **changes}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--profile", "labtop"], "Did you mean 'laptop'?"),
        (["run", "--profile", TINY, "--set", "pretrain.totl_steps=1"], "pretrain.total_steps"),
        (["run", "--profile", TINY, "--set", "pretrain.total_steps"], "expects key=value"),
        (["run", "--profile", TINY, "--stages", "pretrian"], "Did you mean 'pretrain'?"),
        (["run", "--profile", TINY, "--resume"], "no run of profile 'tiny' to resume"),
        (["verify", "absent.rs"], "There is no file or folder absent.rs"),
        (["verify", TINY, "--level", "tset"], "Did you mean 'test'?"),
        (["verify", TINY, "--json", "/absent/out.jsonl"], "/absent/out.jsonl cannot be written"),
        (["verify", TINY, "--cluster", "my cluster"], "such as tcp://10.0.0.5:8786"),
        (["corpus", "--out", "c", "--set", "corpus.sourcs=[]"], "Did you mean 'corpus.sources'?"),
        (["corpus", "--out", "c", "--set", 'corpus.sources=["dbian"]'], "'debian'"),
        (["evaluate", "--cluster", "nowhere"], "such as tcp://10.0.0.5:8786"),
    ],
)
def test_mistakes_are_one_paragraph_without_a_traceback(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    extra = ["--runs-dir", str(tmp_path / "runs")] if arguments[0] == "run" else []
    done = _nanochat(*arguments, *extra)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_missing_rustc_is_said_before_a_run_is_made(tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    done = _nanochat(
        "run", "--profile", TINY, "--runs-dir", str(runs_dir), PATH="/nonexistent", HOME="/x"
    )
    assert done.returncode == 1
    assert "rustc" in done.stderr
    assert "Traceback" not in done.stderr
    assert not runs_dir.exists()


def test_make_without_rustc_is_one_line_at_once(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env", "python3"):
        (tools / name).symlink_to(shutil.which(name))
    make = shutil.which("make")
    done = subprocess.run(
        [make, "-C", str(PROJECT_ROOT), "check-tools"], capture_output=True, text=True,
        env={"PATH": str(tools)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("rustc is not on PATH: install Rust")


def test_evaluate_canonical_solutions_without_a_model(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = _nanochat("evaluate", "--tasks", "builtin", "--completions", "canonical",
                     "--json", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    rates = {row["metric"]: row["rate"] for row in json.loads(out.read_text())["rates"]}
    assert rates["compile_rate"] == rates["pass@1"] == 1.0


def test_runs_and_kernels_print_tables_and_json(tmp_path: Path) -> None:
    create_run(load_profile(TINY), "one", tmp_path)
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["runs", "--runs-dir", str(tmp_path), "--json"]).output)
    assert [row["run_id"] for row in listed] == ["one"]
    assert "one" in runner.invoke(app, ["runs", "--runs-dir", str(tmp_path)]).output
    levels = json.loads(runner.invoke(app, ["kernels", "--json"]).output)
    assert any(row["usable"] and row["chosen"] for row in levels)


def test_every_command_in_the_readme_exists() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text()
    used = set(re.findall(r"^nanochat (\w+)", readme, re.MULTILINE))
    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert used <= known
    targets = set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
