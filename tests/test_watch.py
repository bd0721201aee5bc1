"""What a run watches: each number against a direct computation, and the warnings it leads to."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from test_pretrain import TINY, Recorder, ToyData, configured

from nanochat_lib.config import (
    PROJECT_ROOT,
    HardwareConfig,
    ModelConfig,
    PretrainConfig,
    TargetsConfig,
)
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train.parallel.step import Progress
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.watch import alerts, speed
from nanochat_lib.train.watch.alerts import Alerts, read_alerts
from nanochat_lib.train.watch.codes import CodeMonitor
from nanochat_lib.train.watch.continuous import adjust_reward_threshold, consider_stopping
from nanochat_lib.train.watch.gradients import GROUPS, clip_gradients, group_of
from nanochat_lib.train.watch.text import FreeText, text_statistics

HEALTHY = {
    "exit_entropy_nats": 0.5, "calibration_gap_nats": 0.1, "token_entropy_nats": 7.0,
    "token_entropy_share": 0.9, "repetition": 0.1, "distinct_2": 0.8, "zero_fraction": 0.31,
    "flip_rate": 0.01, "scale_drift_layer_0": 0.2, "matmul_peak_share": 0.2, "peak_rss_mib": 10.0,
}  # fmt: skip


def model_with_gradients(factor=1.0):
    model = LoopLM(TINY, seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * factor
    return model


def test_gradient_norms_by_group_are_those_of_their_parameters():
    model = model_with_gradients()
    by_hand = dict.fromkeys(GROUPS, 0.0)
    for name, parameter in model.named_parameters():
        by_hand[group_of(name)] += float(parameter.grad.double().square().sum())
    norms = clip_gradients(model, 1e9)
    assert norms["grad_norm"] == pytest.approx(math.sqrt(sum(by_hand.values())), rel=1e-5)
    for group, square in by_hand.items():
        assert norms[f"grad_norm_{group}"] == pytest.approx(math.sqrt(square), rel=1e-5)
        assert square > 0


@pytest.mark.parametrize("factor", [1e-4, 1.0])
def test_clipping_is_torchs_own(factor):
    ours, theirs = model_with_gradients(factor), model_with_gradients(factor)
    clip_gradients(ours, 0.5)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)


def test_a_nan_gradient_is_seen():
    model = model_with_gradients()
    model.head.weight.grad[0, 0] = math.nan
    assert math.isnan(clip_gradients(model, 1.0)["grad_norm"])


def test_scale_drift_counts_doublings_of_a_layer():
    model = LoopLM(TINY.model_copy(update={"n_layers": 2}), seed=1)
    monitor = CodeMonitor()
    assert monitor.look(model)["scale_drift_layer_0"] == 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("layers.1.") and parameter.ndim == 2:
                parameter.mul_(4)
    values = monitor.look(model)
    assert values["scale_drift_layer_0"] == 0
    assert values["scale_drift_layer_1"] == pytest.approx(2, abs=0.01)
    assert values[Metric.FLIP_RATE] == 0  # codes do not depend on the scale
    restored = CodeMonitor()
    restored.load_state(*monitor.state())
    assert restored.look(model) == monitor.look(model)


def test_text_statistics_by_hand():
    values = text_statistics([[1, 2, 1, 2, 1, 2]])
    assert values["distinct_1"] == pytest.approx(2 / 6)
    assert values["distinct_2"] == pytest.approx(2 / 5)
    assert values["repetition"] == pytest.approx(1 / 3)
    assert text_statistics([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])["repetition"] == 0
    assert text_statistics([[1, 2, 3], [1, 2, 3]])["distinct_1"] == 0.5


def test_a_collapsed_model_repeats_and_a_random_one_does_not():
    model = LoopLM(TINY, seed=1)
    random = FreeText(15, HardwareConfig()).look(model)
    assert random["distinct_2"] > 0.9
    assert random["repetition"] < 0.1
    with torch.no_grad():
        model.head.weight.zero_()
        model.final_norm.weight.fill_(1.0)
        model.head.weight[7] = 0
        model.embed.weight.fill_(1.0)  # one direction, which the head knows
        model.head.weight[7] = 50.0
    collapsed = FreeText(15, HardwareConfig()).look(model)
    assert collapsed["distinct_1"] < 0.1
    assert collapsed["repetition"] > 0.8


def test_free_text_by_cuda_where_there_is_none_is_an_error(monkeypatch):
    """A model that cannot be packed is only a warning: nobody asked for that by name."""
    monkeypatch.setattr("nanochat_lib.model.backend.why_unavailable", lambda: "no GPU: here")
    with pytest.raises(WorkbenchError, match="the GPU cannot decode here: no GPU: here"):
        FreeText(15, HardwareConfig(decode_device="cuda")).look(LoopLM(TINY))


def test_free_text_can_be_switched_off():
    assert FreeText(0, HardwareConfig()).look(LoopLM(TINY)) == {}


def test_achieved_flops_are_the_models_own(monkeypatch):
    config = ModelConfig(
        vocab_size=300, d_model=32, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=4, d_ff=64,
        max_seq_len=16,
    )  # fmt: skip
    watched = speed.Speed.measured(config, 16, torch.device("cpu"), torch.float32)
    assert watched.peak_flops > 1e8
    watched.peak_flops = 1e9
    matrices = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32  # norms counted as weights
    per_token = 6 * 2 * (matrices + 300 * 32 + 16 * 32)  # loops x (layer + head + attention)
    values = watched.look(tokens=1000, seconds=0.5)
    assert values["model_tflops"] * 1e12 == pytest.approx(per_token * 2000, rel=0.01)
    assert values["matmul_peak_share"] == pytest.approx(per_token * 2000 / 1e9, rel=0.01)
    assert watched.look(tokens=1000, seconds=0.5) == {}
    later = watched.look(tokens=1500, seconds=1.5)  # 500 tokens in a second
    assert later["model_tflops"] * 1e12 == pytest.approx(per_token * 500, rel=0.01)


def look_at(tmp_path, values, *, done=1.0, config=TINY, targets=None):
    Alerts(tmp_path, config, targets or TargetsConfig()).look(10, values, done)
    return read_alerts(tmp_path / alerts.FILE)


def test_healthy_values_raise_nothing(tmp_path):
    assert look_at(tmp_path, HEALTHY) == {}
    assert not (tmp_path / alerts.FILE).exists()


UNHEALTHY = {
    "exit_entropy / ln R": ({"exit_entropy_nats": 0.01}, "the-exit-gate-collapsed"),
    "calibration_gap_nats": ({"calibration_gap_nats": -0.5}, "the-model-is-too-sure-or-too-unsure"),
    "token_entropy / ln V": ({"token_entropy_share": 0.01}, "the-policy-repeats-itself"),
    "repetition": ({"repetition": 0.7}, "the-policy-repeats-itself"),
    "distinct_2": ({"distinct_2": 0.05}, "the-policy-repeats-itself"),
    "zero_fraction": ({"zero_fraction": 0.9}, ""),
    "flip_rate": ({"flip_rate": 0.4}, ""),
    "scale_drift (log2)": ({"scale_drift_layer_3": -4.0}, ""),
    "matmul_peak_share": ({"matmul_peak_share": 0.001}, "slow-cpu-training"),
    "memory share": ({"peak_rss_mib": 1e9}, "cuda-out-of-memory"),
    "compile_rate": ({"compile_rate": 0.1}, "low-compile-rate"),
}


@pytest.mark.parametrize("quantity", UNHEALTHY)
def test_each_unhealthy_value_is_named_with_value_band_and_advice(tmp_path, quantity, caplog):
    values, anchor = UNHEALTHY[quantity]
    found = look_at(tmp_path, HEALTHY | values, targets=TargetsConfig(compile_rate=0.9))
    assert list(found) == [quantity]
    alert = found[quantity]
    assert alert.value != alert.low
    assert (alert.low, alert.high) != (None, None)
    assert alert.advice
    assert alert.guide.endswith(f"#{anchor}") if anchor else not alert.guide
    assert f"{quantity} is " in caplog.text
    assert "Try: " in caplog.text


def test_every_guide_that_is_named_is_there():
    text = (PROJECT_ROOT / alerts.GUIDE).read_text()
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    rules = (*alerts.RULES, *alerts._own_rules(TargetsConfig(compile_rate=0.9)))
    assert {rule.anchor for rule in rules} - {""} <= anchors


def test_the_briefs_band_is_shown_as_the_briefs(tmp_path, caplog):
    found = look_at(tmp_path, HEALTHY | {"token_entropy_nats": 2.0})
    assert found["token_entropy_nats"].is_note
    assert "the brief's band: 6 to 8" in found["token_entropy_nats"].sentence()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_an_alert_is_logged_once_and_keeps_first_and_last_step(tmp_path, caplog):
    watched = Alerts(tmp_path, TINY, TargetsConfig())
    watched.look(10, {"zero_fraction": 0.9})
    watched.look(20, {"zero_fraction": 0.8})
    again = Alerts(tmp_path, TINY, TargetsConfig())  # a resumed run
    again.look(20, {"zero_fraction": 0.8})
    (alert,) = read_alerts(tmp_path / alerts.FILE).values()
    assert (alert.first_step, alert.last_step, alert.value) == (10, 20, 0.8)
    assert caplog.text.count("zero_fraction is") == 1


def test_young_runs_are_not_judged_by_what_comes_later(tmp_path):
    assert look_at(tmp_path, {"flip_rate": 0.9, "repetition": 0.9}, done=0.05) == {}


def test_a_run_writes_what_it_watched(tmp_path):
    recorder = Recorder()
    config = configured(total_steps=8, gate_steps=0, free_text_tokens=12, eval_every=4)
    pretrain(config, ToyData(), tmp_path, log=recorder)
    names = {name for _, name, _ in recorder.rows}
    assert {
        "distinct_1", "distinct_2", "repetition", "scale_drift_layer_0", "token_entropy_share",
        "model_tflops", "matmul_peak_share", "grad_norm_attention", "grad_norm_feed_forward",
        "grad_norm_embedding", "grad_norm_head", "grad_norm_norms", "grad_norm_exit_gate",
    } <= names  # fmt: skip
    rows = json.loads((tmp_path / alerts.FILE).read_text())
    assert {"token_entropy_nats", "matmul_peak_share"} <= {row["quantity"] for row in rows}


@pytest.mark.parametrize(
    ("metric", "series", "ends_at"),
    [
        ("val_loss", [3.0, 2.0, 2.1, 2.2, 1.0], 3),
        ("compile_rate", [0.1, 0.2, 0.2, 0.1, 0.9], 3),
        ("pass_at_4", [0.1, 0.2, 0.3, 0.4, 0.5], None),
        ("val_loss", [3.0, math.nan, 2.0, 2.1, 1.9], None),
    ],
)
def test_early_stopping_waits_for_its_patience(metric, series, ends_at):
    plan = PretrainConfig(early_stopping_metric=metric, early_stopping_patience=2)
    progress, ended = Progress(), None
    for i, value in enumerate(series):
        consider_stopping(progress, plan, {metric: value})
        if progress.is_stopped_early:
            ended = i
            break
    assert ended == ends_at


def test_a_run_that_does_not_improve_ends_early_with_a_checkpoint(tmp_path):
    config = configured(
        total_steps=12, eval_every=2, gate_steps=2, early_stopping_metric="pass_rate",
        early_stopping_patience=2,
    )  # fmt: skip
    summary = pretrain(
        config, ToyData(), tmp_path, log=Recorder(), on_eval=lambda s, m: {"pass_rate": 0.5}
    )
    assert summary["steps"] == 4
    assert summary["stopped_early"] is True
    assert (tmp_path / "checkpoints" / "step_000004").is_dir()
    resumed = Recorder()
    pretrain(config, ToyData(), tmp_path, log=resumed, on_eval=lambda s, m: {"pass_rate": 0.5})
    assert resumed.series(Metric.LOSS) == []  # it is over, also when the stage is run again


def test_early_stopping_on_an_unknown_metric_is_refused_before_the_first_step(tmp_path):
    recorder = Recorder()
    with pytest.raises(WorkbenchError, match="Did you mean 'val_loss'"):
        pretrain(configured(early_stopping_metric="valloss"), ToyData(), tmp_path, log=recorder)
    assert not recorder.rows


def test_evaluation_on_tasks_has_its_own_pace_on_the_same_axis(tmp_path):
    recorder = Recorder()
    config = configured(total_steps=12, eval_every=2, task_eval_every=6, gate_steps=0)
    pretrain(config, ToyData(), tmp_path, log=recorder, on_eval=lambda s, m: {"pass_at_1": s / 12})
    assert recorder.series("pass_at_1") == [(0, 0.0), (6, 0.5), (12, 1.0)]
    assert [step for step, _ in recorder.series(Metric.VAL_LOSS)] == [0, 2, 4, 6, 8, 10, 12, 12]


def test_the_reward_threshold_rises_only_while_too_little_compiles():
    assert adjust_reward_threshold(0.9, 0.5, 0.8) == pytest.approx(0.92)
    assert adjust_reward_threshold(0.9, 0.8, 0.8) == 0.9
    assert adjust_reward_threshold(0.99, 0.1, 0.8) == 1.0
