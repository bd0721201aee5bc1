"""Sweeps: which points there are, that each is an ordinary run, none lost, none done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from run_factory import make_run
from test_report import Page
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments import sweep as engine
from nanochat_lib.experiments.registry import list_runs
from nanochat_lib.experiments.sweep import PointResult, divide_machine, load_sweep, run_sweep
from nanochat_lib.experiments.sweep_spec import SweepSpec, make_spec, read_sweep, sweep_points
from nanochat_lib.hardware.detect import Gpu, detect_machine
from nanochat_lib.records import Metric
from nanochat_lib.report.compare.sweep import sweep_outcomes, sweep_table, write_sweep_page
from nanochat_lib.runs import open_run, read_metrics

HERE = Path(__file__).parent
TINY = str(HERE / "fixtures" / "tiny.toml")
FAKE = (sys.executable, str(HERE / "fixtures" / "sweep_worker.py"))
GRID = {"pretrain.learning_rate": [0.01, 0.02], "model.n_loops": [1, 2]}


def spec_of(**values) -> SweepSpec:
    """Return a sweep of the tiny profile over two stages."""
    base = {"name": "s", "profile": TINY, "stages": ["preprocess", "pretrain"], "grid": GRID}
    return make_spec({**base, "base": {"pretrain.warmup_steps": 0}, **values})


def done_stages(runs_dir: Path) -> list[str]:
    """Return the stages that the stand-in really did, as `run stage`."""
    path = runs_dir.parent / "done.txt"
    return path.read_text().splitlines() if path.exists() else []


# --- Which points ---------------------------------------------------------------------------------


def test_grid_and_seeds_are_combined() -> None:
    points = sweep_points(spec_of(seeds=[0, 1, 2]))
    assert len(points) == len({point.run_id for point in points}) == 12
    found = {(p.swept["pretrain.learning_rate"], p.swept["model.n_loops"], p.seed) for p in points}
    assert len(found) == 12
    assert all(point.run_id.startswith("s.") for point in points)


def random_spec(samples: int) -> SweepSpec:
    """Return a sweep of random samples."""
    drawn = {
        "pretrain.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.n_loops": {"low": 1, "high": 3, "integer": True},
        "pretrain.optimizer": {"choices": ["muon", "adamw"]},
    }
    return spec_of(grid={}, random={"samples": samples, "parameters": drawn})


def test_more_random_samples_keep_the_first_ones() -> None:
    few, many = sweep_points(random_spec(5)), sweep_points(random_spec(60))
    assert [p.run_id for p in few] == [p.run_id for p in many][:5]
    assert {p.swept["model.n_loops"] for p in many} == {1, 2, 3}
    assert {p.swept["pretrain.optimizer"] for p in many} == {"muon", "adamw"}
    rates = [p.swept["pretrain.learning_rate"] for p in many]
    assert 1e-4 <= min(rates) < 1e-3 < 1e-2 < max(rates) <= 1e-1  # even over magnitudes
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_a_larger_sweep_keeps_the_names_of_its_points() -> None:
    small = {p.run_id for p in sweep_points(spec_of())}
    grid = {"model.n_loops": [2, 1, 4], "pretrain.learning_rate": [0.02, 0.01, 0.03]}
    assert small < {p.run_id for p in sweep_points(spec_of(grid=grid, seeds=[0, 1]))}


def test_the_file_is_read_with_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\ngrid:\n  pretrain.learning_rate: [1e-3, 2E-3, 0.5]\nseeds: [0, 1]\n")
    spec = read_sweep(path)
    assert spec.grid["pretrain.learning_rate"] == (0.001, 0.002, 0.5)
    assert spec.seeds == (0, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: s\ngird: {}", "unknown key 'gird'. Did you mean 'grid'"),
        ("name: a b", "letters, digits"),
        ("grid: {}", "name: Field required"),
        ("name: s\ngrid: {a: [1]}\ngrid: {b: [1]}", "given twice"),
        ("name: [", "is not YAML"),
        ("- 1", "expected keys such as name"),
        ("name: s\nseeds: []", "seeds"),
        ("name: s\nmetric: pretrain.bits_per_bite", "Did you mean 'bits_per_byte'"),
        ("name: s\nrandom: {samples: 1, parameters: {seed: {low: 3, high: 1}}}", "low must be"),
        ("name: s\nrandom: {samples: 1, parameters: {seed: {log: true, low: 0, high: 1}}}",
         "log needs a positive low"),
        ("name: s\nrandom: {samples: 1, parameters: {seed: {low: 1, choices: [1]}}}", "either"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_explained(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=said):
        read_sweep(path)


def test_settings_that_cannot_be_are_refused_before_anything_runs(runs_dir: Path) -> None:
    for grid, said in (
        ({"model.n_lops": [1]}, "Did you mean 'model.n_loops'"),
        ({"model.n_heads": [3]}, "even multiple"),
        ({}, "Did you mean 'pretrain'"),
    ):
        stages = ["pretrian"] if not grid else ["pretrain"]
        with pytest.raises(WorkbenchError, match=said):
            run_sweep(spec_of(grid=grid, stages=stages), runs_dir, worker=FAKE)
    assert not runs_dir.exists()
    with pytest.raises(WorkbenchError, match="5,000 points"):
        sweep_points(spec_of(grid={"seed": [0]}, seeds=list(range(5000))))


# --- The machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "memory", "n_points", "wanted"),
    [
        (2, 24, 6, (2, 1)), (16, 64, 4, (4, 4)), (16, 64, 40, (16, 1)), (64, 6.0, 40, (4, 1)),
        (8, 64, 1, (1, 8)), (1, 0.5, 3, (1, 1)),
    ],
)  # fmt: skip
def test_the_pool_fits_the_machine(
    cores: int, memory: float, n_points: int, wanted: tuple[int, int], monkeypatch
) -> None:
    from dataclasses import replace

    machine = replace(detect_machine(), cores=cores, memory_available_gb=memory, gpus=())
    monkeypatch.setattr(engine, "detect_machine", lambda: machine)
    crew = divide_machine(spec_of(), n_points)
    assert (crew.jobs, crew.threads) == wanted
    assert crew.jobs * crew.threads <= cores


def test_points_that_use_gpus_get_one_each(monkeypatch) -> None:
    from dataclasses import replace

    machine = replace(detect_machine(), cores=16, gpus=(Gpu("a", 24.0), Gpu("b", 24.0)))
    monkeypatch.setattr(engine, "detect_machine", lambda: machine)
    crew = divide_machine(spec_of(base={"hardware.n_gpus": 1}), 10)
    assert (crew.jobs, crew.gpus) == (2, 2)
    assert divide_machine(spec_of(), 10).gpus == 0


# --- Running --------------------------------------------------------------------------------------


def test_every_point_is_an_ordinary_run(runs_dir: Path) -> None:
    seen: list[PointResult] = []
    spec = spec_of()
    results = run_sweep(spec, runs_dir, on_point=lambda one, *_: seen.append(one), worker=FAKE)
    assert [result.status for result in results] == ["completed"] * 4
    assert [r.point.run_id for r in results] == [p.run_id for p in sweep_points(spec)]
    assert {one.point.run_id for one in seen} == {one.point.run_id for one in results}
    rows = list_runs(runs_dir)
    tags = {"sweep:s", "n_loops:1", "n_loops:2", "learning_rate:0.01", "learning_rate:0.02"}
    assert set(rows["tags"].explode()) == tags
    for result in results:
        run = open_run(result.point.run_id, runs_dir)
        assert run.config.model.n_loops == result.point.swept["model.n_loops"]
        assert run.config.hardware.cpu_threads == divide_machine(spec, 4).threads


def test_a_stage_in_common_is_done_once(runs_dir: Path) -> None:
    results = run_sweep(spec_of(), runs_dir, worker=FAKE)
    done = done_stages(runs_dir)
    assert sum(line.endswith(" preprocess") for line in done) == 1
    assert sum(line.endswith(" pretrain") for line in done) == 4
    (maker,) = [line.split()[0] for line in done if line.endswith(" preprocess")]
    for result in results:
        folder = runs_dir / result.point.run_id
        state = json.loads((folder / "run.json").read_text())["stages"]["preprocess"]
        assert state.get("shared_with", maker) == maker
        summary = json.loads((folder / "artifacts/preprocess/summary.json").read_text())
        assert summary == {"by": maker}


def test_stages_that_differ_are_not_shared(runs_dir: Path) -> None:
    run_sweep(spec_of(grid={"data.max_examples": [10, 20]}, seeds=[0, 1]), runs_dir, worker=FAKE)
    done = done_stages(runs_dir)
    assert sum(line.endswith(" preprocess") for line in done) == 4  # another seed is another stage


def test_what_is_done_is_not_done_again_and_more_points_are_added(runs_dir: Path) -> None:
    run_sweep(spec_of(), runs_dir, worker=FAKE)
    before = done_stages(runs_dir)
    again = run_sweep(spec_of(), runs_dir, worker=FAKE)
    assert all(result.was_done for result in again)
    assert done_stages(runs_dir) == before
    grid = {**GRID, "pretrain.learning_rate": [0.01, 0.02, 0.03]}
    more = run_sweep(spec_of(grid=grid), runs_dir, worker=FAKE)
    assert sum(result.was_done for result in more) == 4
    assert len(done_stages(runs_dir)) == len(before) + 2  # the shared stage was there already


def test_a_failed_point_loses_no_other(runs_dir: Path) -> None:
    grid = {"pretrain.learning_rate": [0.1, 0.01, 0.02]}
    results = run_sweep(spec_of(grid=grid), runs_dir, worker=FAKE)
    assert [result.status for result in results] == ["failed", "completed", "completed"]
    assert results[0].error == "the loss is not finite"
    again = run_sweep(spec_of(grid=grid), runs_dir, worker=FAKE)
    assert [result.was_done for result in again] == [False, True, True]


def test_a_process_that_dies_without_a_word_is_a_failed_point(runs_dir: Path) -> None:
    dies = (
        sys.executable,
        "-c",
        "import os; print('so long', flush=True); os.kill(os.getpid(), 9)",
    )
    results = run_sweep(spec_of(grid={"seed": [0]}, stages=["pretrain"]), runs_dir, worker=dies)
    assert results[0].status == "failed"
    assert "killed by signal 9" in results[0].error
    assert "so long" in results[0].error


def start_slow_sweep(runs_dir: Path) -> subprocess.Popen:
    """Start a sweep of four slow points in a process of its own, two at a time."""
    values = spec_of(base={"pretrain.warmup_steps": 4, "pretrain.total_steps": 40}, jobs=2)
    code = (
        "import sys, json; from pathlib import Path\n"
        "from nanochat_lib.experiments.sweep import run_sweep\n"
        "from nanochat_lib.experiments.sweep_spec import make_spec\n"
        "spec, runs_dir, worker = json.loads(sys.argv[1])\n"
        "run_sweep(make_spec(spec), Path(runs_dir), worker=worker)\n"
    )
    told = json.dumps([values.model_dump(mode="json"), str(runs_dir), FAKE])
    return subprocess.Popen([sys.executable, "-c", code, told])


def wait_for(condition, seconds: float = 60) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_sweep_goes_on_where_it_was(runs_dir: Path) -> None:
    process = start_slow_sweep(runs_dir)
    wait_for(lambda: sum(line.endswith("pretrain") for line in done_stages(runs_dir)) >= 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = done_stages(runs_dir)
    assert len(before) < 5
    spec, points = load_sweep(runs_dir.parent / "sweeps" / "s")
    results = run_sweep(spec, runs_dir, worker=FAKE)
    assert [result.status for result in results] == ["completed"] * 4
    assert any(result.was_done for result in results)
    done = done_stages(runs_dir)
    assert done[: len(before)] == before
    assert len(done) == len(set(done)) == 5  # nothing twice: one shared stage, four points
    assert [point.run_id for point in points] == [r.point.run_id for r in results]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to tell children")
def test_no_point_goes_on_when_its_sweep_was_killed(runs_dir: Path) -> None:
    process = start_slow_sweep(runs_dir)
    wait_for(lambda: len(list(runs_dir.glob("*/run.json"))) >= 1)
    wait_for(lambda: any(row == "running" for row in list_runs(runs_dir)["status"]))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: "running" not in list_runs(runs_dir)["status"].to_list(), seconds=10)


def test_ctrl_c_stops_the_points_and_the_call_can_be_repeated(runs_dir: Path) -> None:
    process = start_slow_sweep(runs_dir)
    wait_for(lambda: any(row == "running" for row in list_runs(runs_dir)["status"]))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert "running" not in list_runs(runs_dir)["status"].to_list()
    spec, _ = load_sweep(runs_dir.parent / "sweeps" / "s")
    results = run_sweep(spec, runs_dir, worker=FAKE)
    assert [result.status for result in results] == ["completed"] * 4


def test_one_sweep_is_run_once_at_a_time(runs_dir: Path) -> None:
    process = start_slow_sweep(runs_dir)
    wait_for(lambda: list(runs_dir.glob("*/run.json")))
    with pytest.raises(WorkbenchError, match="being run by another process"):
        run_sweep(spec_of(), runs_dir, worker=FAKE)
    process.kill()
    process.wait()


def test_threads_of_points_are_limited(runs_dir: Path) -> None:
    tells = (sys.executable, "-c", "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'])")
    spec = spec_of(grid={"seed": [0]}, stages=["pretrain"], threads=1)
    (result,) = run_sweep(spec, runs_dir, worker=tells)
    assert result.error.endswith(": 1")


# --- The page and the command ---------------------------------------------------------------------


def test_the_page_ranks_points_and_shows_what_each_setting_did(runs_dir: Path) -> None:
    grid = {**GRID, "pretrain.learning_rate": [0.1, 0.01, 0.02]}
    run_sweep(spec_of(grid=grid, seeds=[0, 1]), runs_dir, worker=FAKE)
    spec, outcomes = sweep_outcomes("s", runs_dir)
    values = [one.value for one in outcomes if one.value is not None]
    assert values == sorted(values) == pytest.approx([2.01] * 2 + [2.02] * 4 + [2.03] * 2)
    table = sweep_table(spec, outcomes)
    assert table["status"].to_list() == ["completed"] * 8 + ["failed"] * 4
    assert table["problem"].to_list()[-1] == "the loss is not finite"
    text = write_sweep_page("s", runs_dir, self_contained=False).read_text()
    page = Page(text)
    assert page.open == []
    assert {"ranking", "effect-pretrain-learning-rate", "effect-model-n-loops"} <= set(page.ids)
    assert "Best: learning_rate 0.01" in text
    assert "2.01 to 2.02 over 2 seeds" in text
    assert "Best on average at pretrain.learning_rate = 0.01" in text
    assert "4 failed" in text


def test_a_sweep_of_many_points_has_a_small_page(runs_dir: Path) -> None:
    spec = spec_of(grid={"pretrain.learning_rate": [i / 1000 for i in range(1, 201)]})
    points = sweep_points(spec)
    for i, point in enumerate(points):
        folder = make_run(runs_dir, point.run_id, stages=("pretrain",), steps=30, seed=i)
        assert read_metrics(folder).filter(pl.col("name") == Metric.BITS_PER_BYTE).height
    folder = runs_dir.parent / "sweeps" / "s"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(engine._described(spec, points)))
    path = write_sweep_page("s", runs_dir, self_contained=False)
    assert path.stat().st_size < 1_000_000


def test_an_unknown_sweep_names_the_known_ones(runs_dir: Path) -> None:
    run_sweep(spec_of(), runs_dir, worker=FAKE)
    with pytest.raises(WorkbenchError, match="no sweep 'x'.*Known: s"):
        write_sweep_page("x", runs_dir)


def test_the_command_lists_points_and_runs_none(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nprofile: {TINY}\ngrid: {{model.n_loops: [1, 2]}}\n")
    arguments = ["sweep", str(path), "--dry-run", "--json", "--runs-dir", str(tmp_path / "runs")]
    listed = json.loads(CliRunner().invoke(app, arguments).output)
    assert [row["model.n_loops"] for row in listed] == [1, 2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_real_sweep_by_the_command_line(tmp_path: Path) -> None:
    """Two points share stage 1; the second call finds everything done."""
    path, runs_dir = tmp_path / "s.yaml", tmp_path / "reports" / "runs"
    path.write_text(
        f"name: real\nprofile: {TINY}\nstages: [preprocess, pretrain, report]\n"
        "grid: {pretrain.learning_rate: [1e-3, 2e-3]}\n"
    )
    command = [sys.executable, "-m", "nanochat_lib.cli", "sweep", str(path)]
    command += ["--runs-dir", str(runs_dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["completed", "completed"]
    assert all(row["pretrain.bits_per_byte"] > 0 for row in rows)
    states = [json.loads(p.read_text())["stages"] for p in sorted(runs_dir.glob("*/run.json"))]
    assert sum("shared_with" in state["preprocess"] for state in states) == 1
    assert (runs_dir.parent / "sweeps" / "real" / "compare.html").is_file()
    assert len(list(runs_dir.glob("*/report.html"))) == 2
    again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert again.stderr.count("done before") == 2
    assert os.path.getsize(runs_dir.parent / "index.html") > 0
