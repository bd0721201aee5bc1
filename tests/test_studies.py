"""Studies: rules and caches against their definitions; points trained once; the notebooks run."""

from __future__ import annotations

import json

import numpy as np
import papermill
import polars as pl
import pytest
import torch
from test_looplm import TINY, trained_like

from nanochat_lib.config import PROJECT_ROOT, ModelConfig, load_profile
from nanochat_lib.data.shards import write_index, write_shard
from nanochat_lib.data.tinyrust.generate import generate
from nanochat_lib.data.tokenizer import load_tokenizer, train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Sampling
from nanochat_lib.records import as_row
from nanochat_lib.studies import exits, figures, policies, tables
from nanochat_lib.studies.kv_sharing import decoded_loss
from nanochat_lib.studies.notebook import open_policies, open_study
from nanochat_lib.studies.plan import BASE_PROFILE, D_MODEL, STEPS, STUDIES, arm_config
from nanochat_lib.train.objective import token_statistics

SMALL = {
    "model.vocab_size": 320, "model.d_model": 32, "model.d_ff": 64, "model.max_seq_len": 96,
    "pretrain.total_steps": 4, "pretrain.batch_size": 2, "pretrain.micro_batch_size": 2,
    "pretrain.seq_len": 48, "pretrain.gate_steps": 1, "pretrain.eval_every": 2,
    "pretrain.dtype": "float32", "pretrain.compile": "off", "pretrain.held_out_kib": 1,
    "eval.max_tasks": 4, "eval.max_new_tokens": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_run(tmp_path_factory):
    """A run folder with the files of stage 1 that a study reads, made of TinyRust alone."""
    run = tmp_path_factory.mktemp("data_run")
    folder = run / "artifacts" / "preprocess"
    (folder / "shards").mkdir(parents=True)
    examples = list(generate([1, 2], 120, 0))
    texts = [example.text for example in examples]
    train_tokenizer(texts, SMALL["model.vocab_size"]).save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    parts = {"train": texts[:90], "validation": texts[90:]}
    shards = {
        f"{kind}_{split}": write_shard(folder / "shards" / f"{kind}_{split}.bin", part, tokenizer)
        for kind in ("real", "tinyrust")
        for split, part in parts.items()
    }
    write_index(folder / "shards", shards)
    rows = [json.dumps(as_row(example.task)) for example in examples]
    (folder / "tasks.jsonl").write_text("\n".join(rows) + "\n")
    return run


def looped_states(n_loops=3, n=50):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n_loops, n, 8, generator=generator)
    return hidden, torch.rand(n_loops, n, generator=generator)


def test_the_gate_leaves_where_its_cdf_says():
    hidden, exit_prob = looped_states()
    loops = exits.trained_gate(hidden, exit_prob, 0.6)
    for i, found in enumerate(loops.tolist()):
        survival, cdf = 1.0, 0.0
        for r in range(3):
            leave = float(exit_prob[r, i]) if r < 2 else 1.0
            cdf += survival * leave
            survival *= 1 - leave
            if cdf >= 0.6 or r == 2:
                assert found == r
                break


def test_the_change_of_h_leaves_at_the_first_quiet_loop():
    hidden, exit_prob = looped_states()
    loops = exits.hidden_change(hidden, exit_prob, 1.2)
    for i, found in enumerate(loops.tolist()):
        quiet = [
            r
            for r in (1, 2)
            if float((hidden[r, i] - hidden[r - 1, i]).norm() / hidden[r, i].norm()) < 1.2
        ]
        assert found == (quiet[0] if quiet else 2)


def test_a_static_depth_is_that_loops_loss():
    model = trained_like(TINY)
    windows = np.random.default_rng(0).integers(0, TINY.vocab_size, (5, 13))
    rows = exits.loss_curves(model, windows)
    tokens = torch.from_numpy(windows)
    hidden = model(tokens[:, :-1]).hidden
    for row in rows:
        if row["rule"] == "static depth":
            h = hidden[int(row["level"]) - 1].flatten(0, 1)
            nats, _ = token_statistics(h, model.head.weight, tokens[:, 1:].flatten())
            assert row["loss"] == pytest.approx(float(nats.mean()), abs=1e-5)
            assert row["mean_depth"] == row["level"]


def test_full_depth_writes_what_the_engine_writes():
    model = trained_like(TINY.model_copy(update={"ternary": False}))
    prompts = [[5, 9, 40], [7, 7, 8, 100, 3]]
    found, depth = exits.write_greedily(model, prompts, "static depth", 3, 8)
    engine = Engine.from_model(model, threads=1)
    expected = engine.generate(prompts, Sampling(8, temperature=0, stop_ids=frozenset({0})))
    assert found == [generation.tokens for generation in expected]
    assert depth == 3


def test_a_cache_of_all_loops_gives_the_models_own_loss():
    model = trained_like(TINY)
    windows = np.random.default_rng(3).integers(0, TINY.vocab_size, (4, 17))
    tokens = torch.from_numpy(windows)
    hidden = model(tokens[:, :-1]).hidden[-1].flatten(0, 1)
    nats, _ = token_statistics(hidden, model.head.weight, tokens[:, 1:].flatten())
    assert decoded_loss(model, windows, "full") == pytest.approx(float(nats.mean()), abs=2e-3)
    losses = {kept: decoded_loss(model, windows, kept) for kept in ("last", "first")}
    assert abs(losses["last"] - losses["first"]) > 1e-4


def test_with_one_loop_all_ways_of_sharing_are_the_same():
    model = trained_like(TINY.model_copy(update={"n_loops": 1}))
    windows = np.random.default_rng(3).integers(0, TINY.vocab_size, (3, 9))
    assert len({decoded_loss(model, windows, kept) for kept in ("full", "last", "first")}) == 1


def test_intervals_are_students():
    mean, half = tables.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(2.484, abs=1e-3)
    assert np.isnan(tables.mean_interval([1.0])[1])


def test_differences_are_paired_by_seed():
    rows = pl.DataFrame(
        {"arm": ["a", "a", "b", "b"], "seed": [0, 1, 1, 0], "bits_per_byte": [1.0, 5.0, 5.5, 1.5]}
    )
    (row,) = tables.differences(rows, ["bits_per_byte"]).to_dicts()
    assert row["bits per byte, real Rust"] == "+0.500 ± 0.000"


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_has_a_configuration_of_its_own(name):
    arms = STUDIES[name].arms
    configs = [arm_config(arm, 0).model_dump_json() for arm in arms]
    assert len(set(configs)) == len(arms)
    assert all(key.split(".")[0] in ("model", "pretrain") for arm in arms for key in arm.settings)


def test_the_base_is_what_the_arms_take_it_for():
    base = load_profile(str(BASE_PROFILE))
    assert (base.pretrain.total_steps, base.model.d_model) == (STEPS, D_MODEL)
    assert base.pretrain.dtype != "auto"


def test_a_study_without_tokens_says_what_to_run(tmp_path):
    with pytest.raises(WorkbenchError, match="Run 01_preprocess"):
        open_study("loops", str(tmp_path))
    with pytest.raises(WorkbenchError, match="no study 'lops'.*loops"):
        open_study("lops", str(tmp_path))


def test_equal_points_of_two_studies_are_one(data_run, tmp_path):
    loops, ternary = (
        open_study(name, str(data_run), seeds=[0], folder=str(tmp_path))
        for name in ("loops", "ternary")
    )
    shared = {point.folder for point in loops.points} & {point.folder for point in ternary.points}
    assert len(shared) == 2  # 2 layers x 2 loops and x 4 loops


def test_points_are_trained_once_judged_and_tabulated(data_run, tmp_path):
    settings = {"seeds": [0], "folder": str(tmp_path), "overrides": SMALL}
    opened = open_study("ternary", str(data_run), **settings)
    told = []
    opened.run(1, lambda done, total, text: told.append((done, total)))
    assert told == [(i, 4) for i in range(1, 5)]
    rows = tables.point_rows(opened.points)
    assert rows["n_programs"].to_list() == [4] * 4
    assert rows["bits_per_byte"].null_count() == 0
    assert tables.summary(rows)["seeds"].to_list() == [1] * 4
    before = [p.folder.joinpath("result.json").stat().st_mtime_ns for p in opened.points]
    opened.run(1)
    assert before == [p.folder.joinpath("result.json").stat().st_mtime_ns for p in opened.points]


def test_a_failed_point_leaves_the_others(data_run, tmp_path):
    overrides = SMALL | {"model.vocab_size": 300}  # the shards hold ids up to 319
    opened = open_study(
        "kv_sharing", str(data_run), seeds=[0], folder=str(tmp_path), overrides=overrides
    )
    with pytest.raises(WorkbenchError, match=r"2 of 2 points failed.*tries them again"):
        opened.run(1)
    assert not any(point.is_done for point in opened.points)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_notebook_of_a_study_runs(name, data_run, tmp_path):
    source = PROJECT_ROOT / "notebooks" / "experiments" / f"{name}.ipynb"
    parameters = {"data_run": str(data_run), "seeds": [0, 1], "workers": 1, "overrides": SMALL}
    parameters["folder"] = str(tmp_path / "points")
    if name == "sizes":  # the arms differ in what SMALL would make equal
        parameters["overrides"] = {k: v for k, v in SMALL.items() if "d_" not in k}
    papermill.execute_notebook(source, tmp_path / "out.ipynb", parameters=parameters)


def test_exit_rules_are_drawn_by_their_mean_over_seeds():
    rows = pl.DataFrame(
        {
            "arm": "4 loops",
            "seed": [0, 0, 1, 1],
            "rule": "trained gate",
            "level": [0.3, 0.9, 0.3, 0.9],
            "mean_depth": [1.0, 3.0, 2.0, 4.0],
            "loss": [3.0, 2.0, 4.0, 3.0],
        }
    )
    (line,) = figures.over_depth(rows, "loss", "Loss over mean depth").data
    assert list(line.x) == [1.5, 3.5]
    assert list(line.y) == [3.5, 2.5]
    missing = figures.over_depth(rows, "compile_rate", "Compile rate").layout.annotations
    assert "Not measured" in missing[0].text


def test_a_bar_of_one_seed_has_no_interval():
    rows = pl.DataFrame(
        {"arm": ["a", "b", "b"], "seed": [0, 0, 1], "bits_per_byte": [1.0, 0.1, 0.5]}
    )
    one, two = figures.arms(rows, "bits_per_byte").data
    assert one.error_x.array is None
    assert two.x[0] - two.error_x.arrayminus[0] == 0


SMALL_POLICY = {
    "maxrl.total_steps": 2, "maxrl.prompts_per_step": 2, "maxrl.rollouts_per_prompt": 2,
    "maxrl.prompts_per_part": 1, "maxrl.max_new_tokens": 12, "maxrl.levels": [1],
    "maxrl.eval_every": 1, "maxrl.eval_tasks": 2, "maxrl.final_eval_tasks": 3,
    "maxrl.eval_samples": 2, "maxrl.checkpoint_every": 1, "maxrl.dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_run(data_run):
    """The run with a (random) model of stage 2 beside its data."""
    folder = data_run / "artifacts"
    config = ModelConfig(
        vocab_size=320, d_model=32, n_layers=1, n_loops=2, n_heads=2, n_kv_heads=1, d_ff=64,
        max_seq_len=160,
    )  # fmt: skip
    save_checkpoint(
        folder / "pretrain" / "final", LoopLM(config), step=0, tokens_seen=0, stage="pretrain",
        tokenizer_json=folder / "preprocess" / "tokenizer.json",
    )  # fmt: skip
    whole = load_profile("laptop").model_dump(mode="json")
    (data_run / "run.json").write_text(json.dumps({"config": whole}))
    return data_run


def test_the_policy_notebook_compares_estimators_once(trained_run, tmp_path):
    parameters = {
        "data_run": str(trained_run), "seeds": [0, 1], "workers": 1, "folder": str(tmp_path),
        "overrides": SMALL_POLICY,
    }  # fmt: skip
    source = PROJECT_ROOT / "notebooks" / "experiments" / "maxrl.ipynb"
    papermill.execute_notebook(source, None, parameters, cwd=PROJECT_ROOT, progress_bar=False)
    opened = open_policies(
        str(trained_run), seeds=(0, 1), folder=str(tmp_path), overrides=SMALL_POLICY
    )
    assert all(point.is_done for point in opened.points)
    rows = policies.rate_rows(opened.points)
    assert rows["arm"].unique(maintain_order=True).to_list() == [a.name for a in policies.ARMS]
    result = opened.points[0].result()
    row = rows.row(0, named=True)
    assert row["pass_rise"] == result["after"]["pass_rate"] - result["before"]["pass_rate"]
    assert (row["n"], row["tasks"], row["programs sampled"]) == (6, 3, 8)
    table = policies.rate_table(rows)
    assert table["seeds"].to_list() == [2, 2, 2]
    first = policies.pooled(opened.points, "pass_rate").row(0, named=True)
    assert first["after"].startswith(f"{result['after']['pass_rate']:.1%} [")
    assert first["is_separate"] == (
        result["after"]["pass_rate_low"] > result["before"]["pass_rate_high"]
    )
    curve = policies.curve_rows(opened.points)
    assert curve.filter(arm="GRPO", seed=1)["programs"].to_list() == [0, 4, 8]
    before = {p.folder: (p.folder / "result.json").stat().st_mtime_ns for p in opened.points}
    opened.run(1)
    assert before == {p: (p / "result.json").stat().st_mtime_ns for p in before}


def test_policies_need_a_trained_model(tmp_path):
    (tmp_path / "artifacts" / "preprocess").mkdir(parents=True)
    with pytest.raises(WorkbenchError, match=r"01_preprocess\.ipynb first"):
        open_policies(str(tmp_path))


def test_points_of_policies_have_the_names_of_what_decides_them(trained_run, tmp_path):
    def names(**changes):
        found = open_policies(
            str(trained_run), seeds=(0,), folder=str(tmp_path), overrides=SMALL_POLICY | changes
        )
        return {point.folder.name for point in found.points}

    assert len(names()) == 3
    assert names() == names(**{"pretrain.grad_clip": 2.0})  # the base is what it is
    assert names().isdisjoint(names(**{"maxrl.temperature": 0.8}))
