"""Stages and pipeline: parameters checked first, markers, resume, status written by us."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest

from nanochat_lib import pipeline
from nanochat_lib.cli.shared import parse_settings
from nanochat_lib.config import load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.pipeline import PipelineInterrupted, choose_stages, is_done, run_pipeline
from nanochat_lib.runs import Run, create_run, open_run
from nanochat_lib.stages import STAGES, parameter_table, stage_marker, start_stage

TINY = str(Path(__file__).parent / "fixtures" / "tiny.toml")


def _namespace(runs_dir: Path, **changes: object) -> dict:
    values = {"profile": TINY, "run_id": "dev", "runs_dir": str(runs_dir), "overrides": {}}
    return {**values, "seed": 0, "if_exists": "resume", **changes}


def test_injected_typo_is_refused_with_the_nearest_name(runs_dir: Path) -> None:
    injected = ["", '# Parameters\nprofile = "laptop"\nprofil = "x"\n']
    with pytest.raises(WorkbenchError, match="no parameter 'profil'. Did you mean 'profile'"):
        start_stage("kernels", _namespace(runs_dir, In=injected))
    assert not runs_dir.exists()


def test_typo_in_overrides_is_refused_before_a_folder_is_made(runs_dir: Path) -> None:
    with pytest.raises(WorkbenchError, match="Did you mean 'pretrain.total_steps'"):
        start_stage("kernels", _namespace(runs_dir, overrides={"pretrain.total_step": 1}))
    assert not runs_dir.exists()


def test_a_stage_without_its_inputs_says_which_notebook_to_run(runs_dir: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"01_preprocess.ipynb with the same run_id"):
        start_stage("pretrain", _namespace(runs_dir))


def test_a_stage_begun_with_other_parameters_is_not_mixed(runs_dir: Path) -> None:
    run, _ = start_stage("preprocess", _namespace(runs_dir))
    (run.artifacts("preprocess") / "half").write_text("x")
    changed = _namespace(runs_dir, overrides={"data.max_examples": 7})
    with pytest.raises(WorkbenchError, match="data.max_examples: 60 -> 7"):
        start_stage("preprocess", changed)
    start_stage("preprocess", {**changed, "if_exists": "replace"})
    assert not (run.artifacts("preprocess") / "half").exists()
    with pytest.raises(WorkbenchError, match="already has stage preprocess"):
        start_stage("preprocess", {**changed, "if_exists": "error"})
    with pytest.raises(WorkbenchError, match="if_exists is one of"):
        start_stage("preprocess", {**changed, "if_exists": "repalce"})


def test_marker_follows_parameters_inputs_and_nothing_else(runs_dir: Path) -> None:
    first = create_run(load_profile(TINY), "a", runs_dir)
    same = create_run(load_profile(TINY), "b", runs_dir)
    other = create_run(load_profile(TINY, {"pretrain.total_steps": 9}), "c", runs_dir)
    markers = [stage_marker(run, STAGES["pretrain"])[0] for run in (first, same, other)]
    assert markers[0] == markers[1] != markers[2]
    preprocess = [stage_marker(run, STAGES["preprocess"])[0] for run in (first, other)]
    assert preprocess[0] == preprocess[1]
    same.begin_stage("preprocess", marker="another input", parameters={})
    assert stage_marker(same, STAGES["pretrain"])[0] != markers[0]


def test_every_stage_has_its_notebook_and_described_parameters() -> None:
    config = load_profile(TINY)
    for name, stage in STAGES.items():
        assert (pipeline.NOTEBOOK_DIR / stage.notebook).is_file()
        assert all(parameter_table(config, name)["meaning"].str.len_chars() > 0)
    assert [s.name for s in choose_stages([], config)] == list(STAGES)
    no_extension = load_profile("config_b_9800x3d_dual4090")
    assert {s.name for s in choose_stages([], no_extension)} == set(STAGES) - {"long_context"}
    assert set(pipeline.TYPICAL_SECONDS) == set(STAGES)


def test_unknown_stage_and_malformed_setting_are_named() -> None:
    with pytest.raises(WorkbenchError, match="Did you mean 'pretrain'"):
        choose_stages(["pretrian"], load_profile(TINY))
    with pytest.raises(WorkbenchError, match="expects key=value"):
        parse_settings(["pretrain.total_steps"])
    assert parse_settings(["a=1", "b=[1, 2]", "c=adamw"]) == {"a": 1, "b": [1, 2], "c": "adamw"}


def _notebook(folder: Path, stage: str, *lines: str) -> None:
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
    parameters = nbformat.v4.new_code_cell('run_id = "dev"')
    parameters.metadata["tags"] = ["parameters"]
    start = (
        "from nanochat_lib.stages import start_stage\n"
        f'run, config = start_stage("{stage}", globals())'
    )
    book.cells = [parameters, *map(nbformat.v4.new_code_cell, (start, *lines))]
    nbformat.write(book, folder / STAGES[stage].notebook)


@pytest.fixture
def stage_run(runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run whose notebooks lie in a temporary folder, to be written by the test."""
    monkeypatch.setattr(pipeline, "NOTEBOOK_DIR", tmp_path)
    return create_run(load_profile(TINY), "dev", runs_dir)


def _go(run: Run) -> list[str]:
    seen: list[str] = []
    parameters = pipeline.notebook_parameters(TINY, {}, 0)
    run_pipeline(
        run,
        choose_stages(["kernels"], run.config),
        parameters,
        on_progress=lambda p: seen.append(p.status),
    )
    return seen


def test_a_finished_stage_is_skipped_the_second_time(stage_run: Run, tmp_path: Path) -> None:
    _notebook(tmp_path, "kernels", 'run.end_stage("kernels", "completed")')
    assert _go(stage_run)[-1] == "completed"
    assert is_done(stage_run, STAGES["kernels"])
    assert _go(stage_run) == ["skipped"]


def test_a_failing_notebook_fails_the_stage_with_its_own_words(
    stage_run: Run, tmp_path: Path
) -> None:
    _notebook(
        tmp_path,
        "kernels",
        "from nanochat_lib.errors import WorkbenchError",
        'raise WorkbenchError("the shard is damaged")',
    )
    with pytest.raises(WorkbenchError, match="Stage kernels failed: the shard is damaged"):
        _go(stage_run)
    state = stage_run.stage_state("kernels")
    assert (state["status"], state["error"]) == ("failed", "the shard is damaged")


def test_a_notebook_that_forgets_to_complete_is_not_completed(
    stage_run: Run, tmp_path: Path
) -> None:
    _notebook(tmp_path, "kernels", "1 + 1")
    with pytest.raises(WorkbenchError, match="without completing"):
        _go(stage_run)
    assert stage_run.stage_state("kernels")["status"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_the_kernel_and_the_run_can_resume(
    stage_run: Run, tmp_path: Path, number: signal.Signals
) -> None:
    _notebook(
        tmp_path,
        "kernels",
        "import time",
        '(run.artifacts("kernels") / "began").touch(); time.sleep(120)',
        'run.end_stage("kernels", "completed")',
    )

    def stop_when_begun() -> None:
        while not (stage_run.dir / "artifacts/kernels/began").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_begun, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(PipelineInterrupted, match="--resume"):
        _go(stage_run)
    assert time.monotonic() - began < 60  # the cell would sleep for 120 s
    assert open_run("dev", stage_run.dir.parent).stage_state("kernels")["status"] == "interrupted"
    _notebook(tmp_path, "kernels", 'run.end_stage("kernels", "completed")')
    assert _go(stage_run)[-1] == "completed"
