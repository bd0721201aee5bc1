"""Configuration: every shipped profile loads, typos and contradictions are refused with a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat_lib.config import RunConfig, load_profile, profile_names
from nanochat_lib.errors import WorkbenchError


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads(name: str) -> None:
    config = load_profile(name)
    assert config.profile == name
    assert config.pretrain.batch_size == (
        config.pretrain.micro_batch_size * config.pretrain.grad_accum_steps
    )


# The brief's table, typed here a second time so that an edit of a profile cannot go unnoticed:
# parameters (1e9), compile rate, semantic score, pass@1, loss, tokens/s, days, context length.
BRIEF_TARGETS = {
    "config_a_threadripper_blackwell": (7, 0.90, 0.90, 0.72, 2.5, 5000, 7, 65536),
    "config_b_9800x3d_dual4090": (3, 0.88, 0.88, 0.65, 2.8, 8000, 5, 4096),
    "config_c_dual_epyc_4090": (5, 0.87, 0.87, 0.68, 2.6, 6000, 6, 6144),
}


@pytest.mark.parametrize("name", BRIEF_TARGETS)
def test_profiles_hold_the_brief_targets(name: str) -> None:
    targets = load_profile(name).targets
    found = (
        targets.parameters_b,
        targets.compile_rate,
        targets.semantic_score,
        targets.pass_at_1,
        targets.loss,
        targets.tokens_per_s,
        targets.training_days,
        targets.context_length,
    )
    assert found == BRIEF_TARGETS[name]


def test_profiles_hold_the_brief_hardware_preferences() -> None:
    a = load_profile("config_a_threadripper_blackwell")
    b = load_profile("config_b_9800x3d_dual4090")
    c = load_profile("config_c_dual_epyc_4090")
    assert (a.hardware.numa_nodes, a.hardware.cpu_threads, a.pretrain.batch_size) == (8, 128, 32)
    assert (a.pretrain.seq_len, a.hardware.preferred_kernel) == (8192, "AVX512")
    assert (a.targets.gpu_memory_gb, a.targets.cpu_memory_gb) == (80, 800)
    assert (b.hardware.tensor_parallel_size, b.hardware.cuda_math_mode) == (2, "fast")
    assert (b.pretrain.batch_size, b.pretrain.dtype) == (4, "bfloat16")
    assert b.targets.gpu_memory_gb == 22
    assert (c.hardware.numa_nodes, c.hardware.cpu_threads) == (16, 224)
    assert (c.hardware.openmp_threads, c.hardware.preferred_kernel) == (56, "AVX2")
    assert (c.targets.gpu_memory_gb, c.targets.cpu_memory_gb) == (22, 700)


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        ({"pretrain.totl_steps": 5}, "pretrain.total_steps"),
        ({"pretain.total_steps": 5}, "pretrain"),
        ({"sede": 1}, "seed"),
    ],
)
def test_typo_names_the_nearest_key(overrides: dict, hint: str) -> None:
    with pytest.raises(WorkbenchError, match=f"Did you mean '{hint}'"):
        load_profile("laptop", overrides)


def test_unknown_profile_names_the_nearest_one() -> None:
    with pytest.raises(WorkbenchError, match="Did you mean 'laptop'"):
        load_profile("labtop")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"pretrain.total_steps": "many"}, "found 'many'"),
        ({"pretrain.batch_size": 16, "pretrain.micro_batch_size": 5}, "batch_size 16 must be"),
        ({"pretrain.seq_len": 512}, "exceeds model.max_seq_len 256"),
        ({"data.easy_share": 0.9}, "must be 1, found 1.6"),
        ({"eval.k": [8]}, "must lie between 1 and n_samples"),
        ({"model.n_heads": 3}, "must be an even multiple"),
        ({"seed.x": 3}, "seed"),
    ],
)
def test_wrong_value_says_what_was_found(overrides: dict, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        load_profile("laptop", overrides)


def test_broken_toml_and_missing_file_are_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(WorkbenchError, match="not valid TOML"):
        load_profile(str(broken))
    with pytest.raises(WorkbenchError, match="There is no profile"):
        load_profile(str(tmp_path / "absent.toml"))


def test_changing_total_steps_alone_scales_the_schedule() -> None:
    config = load_profile("laptop", {"pretrain.total_steps": 1000}).pretrain
    assert (config.warmup_steps, config.decay_steps) == (50, 300)


def test_resolved_configuration_round_trips_through_json() -> None:
    config = load_profile("config_b_9800x3d_dual4090", {"seed": 7})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_every_field_has_a_description() -> None:
    missing = [
        f"{section}.{name}"
        for section, field in RunConfig.model_fields.items()
        if hasattr(field.annotation, "model_fields")
        for name, inner in field.annotation.model_fields.items()
        if not inner.description
    ]
    assert missing == []
