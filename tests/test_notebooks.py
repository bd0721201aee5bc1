"""Every notebook runs: all stages by `nanochat run`, each one by nbval, and by plain papermill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import polars as pl
import pytest

from nanochat_lib.config import PROJECT_ROOT, load_profile
from nanochat_lib.runs import Run, open_run, read_metrics
from nanochat_lib.stages import STAGES

TINY = str(Path(__file__).parent / "fixtures" / "tiny.toml")
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
CLI = [sys.executable, "-m", "nanochat_lib.cli"]
TIMING = (
    "tokens_per_s", "model_tflops", "matmul_peak_share", "generate_s", "verify_s", "update_s",
    "peak_rss_mib",
)  # fmt: skip


def _nanochat(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of all stages with the tiny profile, made by the command line."""
    runs_dir = tmp_path_factory.mktemp("e2e") / "reports" / "runs"
    done = _nanochat("run", "--profile", TINY, "--run-id", "e2e", "--runs-dir", str(runs_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    return open_run("e2e", runs_dir)


def test_all_stages_complete_and_leave_their_artifacts(finished_run: Run) -> None:
    states = finished_run.state()["stages"]
    assert {name: state["status"] for name, state in states.items()} == dict.fromkeys(
        STAGES, "completed"
    )
    artifacts = finished_run.dir / "artifacts"
    for path in (
        "preprocess/verified.parquet",
        "pretrain/final/model.safetensors",
        "maxrl/final/model.safetensors",
        "long_context/final/model.safetensors",
        "evaluate/results.parquet",
        "kernels/bench.json",
        "publish/README.md",
        "publish/nanochat-rs-ternary-tq2_0.gguf",
    ):
        assert (artifacts / path).is_file(), path
    page = (finished_run.dir / "report.html").read_text()
    assert "e2e" in page
    assert (finished_run.dir.parent.parent / "index.html").is_file()


def test_a_finished_run_resumes_without_doing_anything(finished_run: Run) -> None:
    done = _nanochat(
        "run", "--profile", TINY, "--run-id", "e2e", "--resume",
        "--runs-dir", str(finished_run.dir.parent),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped") == len(STAGES)


def test_an_existing_run_id_is_refused_with_one_sentence(finished_run: Run) -> None:
    done = _nanochat(
        "run", "--profile", TINY, "--run-id", "e2e", "--runs-dir", str(finished_run.dir.parent)
    )
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert "Traceback" not in done.stderr


def test_nbval_runs_every_notebook(finished_run: Run, tmp_path: Path) -> None:
    parameters = {
        "profile": TINY,
        "run_id": finished_run.run_id,
        "runs_dir": str(finished_run.dir.parent),
        "overrides": {},
    }
    for path in NOTEBOOKS:
        run_id = "tour" if path.name == "00_tour.ipynb" else finished_run.run_id
        papermill.execute_notebook(
            path, tmp_path / path.name, {**parameters, "run_id": run_id},
            prepare_only=True, progress_bar=False,
        )  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--nbval-current-env", "--nbval-cell-timeout=300", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_plain_papermill_refuses_an_unknown_parameter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", str(PROJECT_ROOT / "notebooks/07_kernels.ipynb")]
    command += [str(tmp_path / "out.ipynb"), "-p", "runs_dir", str(tmp_path), "-p", "profil", "x"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    assert done.returncode != 0
    assert "Did you mean 'profile'" in done.stderr
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.slow
def test_ctrl_c_in_pretrain_then_resume_equals_an_uninterrupted_run(
    finished_run: Run, tmp_path: Path
) -> None:
    settings = ["--set", "pretrain.total_steps=60", "--set", "pretrain.checkpoint_every=5"]
    settings += ["--set", "hardware.cpu_threads=1"]  # two runs may each choose when cores are busy
    runs = {}
    for name in ("straight", "stopped"):
        folder = tmp_path / "reports" / "runs" / name
        shutil.copytree(finished_run.dir, folder)
        state = json.loads((folder / "run.json").read_text())
        state["run_id"] = name
        state["stages"] = {"preprocess": state["stages"]["preprocess"]}
        (folder / "run.json").write_text(json.dumps(state))
        shutil.rmtree(folder / "artifacts" / "pretrain")
        runs[name] = ["run", "--profile", TINY, "--run-id", name, "--resume", *settings]
        runs[name] += ["--stages", "preprocess,pretrain", "--runs-dir", str(folder.parent)]
    assert _nanochat(*runs["straight"]).returncode == 0
    folder = tmp_path / "reports" / "runs" / "stopped"
    process = subprocess.Popen([*CLI, *runs["stopped"]], stdout=subprocess.PIPE, text=True)
    while not list((folder / "artifacts" / "pretrain").glob("checkpoints/step_*")):
        time.sleep(0.05)
        assert process.poll() is None, "ended before it was interrupted"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    config = load_profile(TINY)
    stopped = open_run("stopped", folder.parent, config)
    assert stopped.stage_state("pretrain")["status"] == "interrupted"
    assert _nanochat(*runs["stopped"]).returncode == 0
    kept = ~pl.col("name").is_in(TIMING)
    found = [
        read_metrics(tmp_path / "reports" / "runs" / name)
        .filter((pl.col("stage") == "pretrain") & kept)
        .select("step", "name", "value")
        for name in ("straight", "stopped")
    ]
    assert found[0].height > 100
    assert found[0].equals(found[1])


def test_notebooks_are_valid_and_name_their_parameters() -> None:
    of_stages = {"profile", "run_id", "runs_dir", "overrides", "seed", "if_exists"}
    own = {"09_compare.ipynb": {"run_ids", "runs_dir", "title"}}
    for path in NOTEBOOKS:
        nbformat.validate(nbformat.read(path, as_version=4))
        found = papermill.inspect_notebook(str(path))
        assert set(found) == own.get(path.name, of_stages)
