"""The planner finds by itself what equations say of the brief's three machines."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.config import load_profile, profile_names, with_overrides
from nanochat_lib.hardware.detect import Gpu, Machine, detect_machine
from nanochat_lib.hardware.planner import count_parameters, make_plan, train_flops_per_token

SMALL = Machine(
    cpu="test", cores=2, cpu_features=("avx2", "fma"), numa_nodes=1, memory_gb=25.0,
    memory_available_gb=20.0, gpus=(), os="Linux", has_cxx=True,
)  # fmt: skip
THREADRIPPER = Machine(
    cpu="AMD Ryzen Threadripper PRO 3995WX", cores=128, cpu_features=("avx2", "fma"),
    numa_nodes=8, memory_gb=1024.0, memory_available_gb=1000.0,
    gpus=(Gpu("NVIDIA RTX PRO 6000 Blackwell", 96.0),), os="Linux", has_cxx=True,
)  # fmt: skip
A, B, C = (
    "config_a_threadripper_blackwell",
    "config_b_9800x3d_dual4090",
    "config_c_dual_epyc_4090",
)


def _findings(profile: str, machine: Machine = SMALL) -> dict[str, str]:
    return {f.key: f.text for f in make_plan(load_profile(profile), machine).findings}


@pytest.mark.parametrize(
    ("profile", "days", "stated"), [(A, "60.7", "7"), (B, "3.6", "5"), (C, "34.1", "6")]
)
def test_step_count_contradicts_the_stated_days(profile: str, days: str, stated: str) -> None:
    text = _findings(profile)["training_days"]
    assert f"{days} days, not the stated {stated}." in text


@pytest.mark.parametrize(("profile", "stored"), [(A, 1.96), (B, 0.88), (C, 1.37)])
def test_stated_size_is_the_executed_count(profile: str, stored: float) -> None:
    plan = make_plan(load_profile(profile), SMALL)
    assert plan.parameters.stored / 1e9 == pytest.approx(stored, abs=0.01)
    assert "can only mean the executed count" in _findings(profile)["parameters"]


def test_seven_billion_stored_parameters_exceed_the_card() -> None:
    text = _findings(A)["compute_if_stored"]
    assert "would need 840 TFLOP/s" in text
    assert "about 504" in text


def test_zen2_has_no_avx512_and_zen5_has() -> None:
    assert "Zen 2 and has no AVX512" in _findings(A)["cpu_kernel"]
    assert "cpu_kernel" not in _findings(B)
    assert "cpu_kernel" not in _findings(C)


def test_adamw_state_of_config_c_exceeds_its_card() -> None:
    assert "is 80 GB of state against 1 x 24 GB" in _findings(C)["memory_if_stored"]


def test_the_real_machine_is_compared_with_the_profile() -> None:
    assert "2 CPU threads, not 128" in _findings(A)["machine"]
    # On the machine the profile was written for, only the missing AVX-512 differs.
    assert _findings(A, THREADRIPPER)["machine"].endswith("no AVX512: avx2, fma.")
    assert "machine" not in _findings("laptop")


def test_preferences_without_effect_are_said() -> None:
    assert "openmp_threads = 56" in _findings(C)["preferences"]
    assert "tensor_parallel = True" in _findings(B)["preferences"]
    assert "2 processes train, one for each GPU" in _findings(B)["preferences"]
    assert "preferences" not in _findings(A)  # what reads numa_aware and preferred_kernel decodes
    assert "preferences" not in _findings("laptop")


def test_two_gpus_share_batches_and_each_holds_the_whole_model() -> None:
    """By hand: fp32 weights and gradients; Muon's 4 bytes of matrices, AdamW's 8 of the rest."""
    plan, config = make_plan(load_profile(B), SMALL), load_profile(B)
    shared = {row["quantity"]: row["value"] for row in plan.rows()}
    assert shared["processes that share every batch"] == "2"
    assert shared["gradients they sum each step"] == "3.50 GB"
    assert plan.memory_gb["weights"] == pytest.approx(0.8756 * 4, rel=1e-3)
    tables = 2 * 32768 * 2560
    assert plan.memory_gb["optimizer"] == pytest.approx(0.8756 * 4 + tables * 4e-9, rel=1e-3)
    assert "is 48 GB of state against 2 x 24 GB" in _findings(B)["memory_if_stored"]
    alone = with_overrides(config, {"hardware.train_processes": 1, "pretrain.micro_batch_size": 4})
    both = with_overrides(config, {"pretrain.micro_batch_size": 4})  # of which each takes two
    assert (make_plan(alone, SMALL).processes, make_plan(both, SMALL).processes) == (1, 2)
    activations = [make_plan(one, SMALL).memory_gb["activations"] for one in (alone, both)]
    assert activations[0] == pytest.approx(2 * activations[1])
    assert (
        "165 bf16 TFLOP/s there are"
        in {found.key: found.text for found in make_plan(alone, SMALL).findings}["compute"]
    )


def test_parameter_count_equals_the_model_built_by_torch(tiny_config) -> None:
    from nanochat_lib.model.looplm import LoopLM

    for config in (tiny_config.model, load_profile("laptop").model):
        built = sum(p.numel() for p in LoopLM(config).parameters())
        assert count_parameters(config).stored == built


def test_flops_equal_a_count_of_the_operations(tiny_config) -> None:
    """torch's own counter on one forward pass, attention counted for causal (half) keys."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nanochat_lib.model.looplm import LoopLM

    config = tiny_config.model.model_copy(update={"ternary": False})
    tokens = torch.zeros((1, 64), dtype=torch.int64)
    model = LoopLM(config)
    with FlopCounterMode(display=False) as counter:
        for hidden in model(tokens).hidden:
            model.logits(hidden)
    attention = 4 * 64 * 64 * config.d_model * config.n_layers * config.n_loops  # all T keys
    counted = counter.get_total_flops()
    sdpa = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op))
    forward = (counted - sdpa + attention / 2) / 64
    assert train_flops_per_token(config, 64) == pytest.approx(3 * forward, rel=0.02)


def test_plan_of_every_profile_prints_as_table_and_json() -> None:
    runner = CliRunner()
    for profile in (A, B, C, "h200", "laptop"):
        assert "stored parameters" in runner.invoke(app, ["plan", profile]).output
        found = json.loads(runner.invoke(app, ["plan", profile, "--json"]).output)
        assert found["parameters"]["executed"] > found["parameters"]["stored"]


def test_detection_agrees_with_the_operating_system() -> None:
    import os

    machine = detect_machine()
    assert machine.cores == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    assert machine.memory_gb == pytest.approx(total, rel=0.02)


def test_a_model_that_does_not_fit_is_told_what_would() -> None:
    config = load_profile(C)
    text = _findings(C)["memory"]
    assert "pretrain.optimizer=adamw_8bit, pretrain.activation_checkpointing=loop" in text
    assert "which fits" in text
    least = {"optimizer": "adamw_8bit", "activation_checkpointing": "loop", "micro_batch_size": 1}
    pretrain = config.pretrain.model_copy(update=least)
    need = sum(make_plan(config.model_copy(update={"pretrain": pretrain})).memory_gb.values())
    assert f"it needs {need:.1f} GB" in text
    assert need < config.hardware.gpu_memory_gb < sum(make_plan(config).memory_gb.values())


def test_plans_of_all_profiles_have_the_same_quantities() -> None:
    """The plan notebook lays them side by side."""
    plans = {name: make_plan(load_profile(name), SMALL) for name in profile_names()}
    labels = [row["quantity"].replace("GPU", "machine") for row in plans["laptop"].rows()]
    assert len(plans) > 4
    for name, plan in plans.items():
        found = [row["quantity"].replace("GPU", "machine") for row in plan.rows()]
        assert found == labels, name
