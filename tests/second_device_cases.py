"""Stages 2 to 4 with the model on a device that is not the CPU (run by test_second_device.py).

A GPU refuses an operation of tensors on two devices; so does the device of second_device.py, which
computes what the CPU does. Each stage must run there and come to the numbers that the CPU gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from second_device import NAME, Devices, second_device
from test_maxrl import PLAN as MAXRL_PLAN
from test_maxrl import TASKS, base, collect, easy_judge, tokenizer  # noqa: F401 (fixtures)
from test_pretrain import PLAN, TINY, Recorder, ToyData

from nanochat_lib.config import HardwareConfig, LongContextConfig, RunConfig
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution, maxrl
from nanochat_lib.train.long_context import extend_context
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.watch import speed

second_device()  # before the first backward pass: torch counts devices then
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"total_steps": 6, "warmup_steps": 1, "decay_steps": 2, "eval_every": 3,
         "checkpoint_every": 3}  # fmt: skip
VARIANTS = {"sandwich_norm": True, "sub_norm": True, "input_injection": True, "loop_gates": True}
LONG = LongContextConfig(
    seq_len=64, rope_base=80_000.0, total_steps=4, batch_size=4, learning_rate=0.01
)


@pytest.fixture
def on_second_device(monkeypatch) -> Iterator[torch.device]:
    """Let stages choose the second device; it has no random numbers to time products with."""
    device = second_device()
    for module in (execution, maxrl):
        monkeypatch.setattr(module, "choose_device", lambda *_: device)
    monkeypatch.setattr(speed, "matmul_peak", lambda *_: 1e12)
    with Devices():
        yield device


def configured(**changes) -> RunConfig:
    return RunConfig(
        model=TINY.model_copy(update=changes.pop("model", {})),
        pretrain=PLAN.model_copy(update=SHORT | changes),
        long_context=LONG,
        maxrl=MAXRL_PLAN,
        hardware=HardwareConfig(cpu_threads=1),
    )


def close(here: list[tuple[str, float]], there: list[tuple[str, float]], tolerance: float) -> None:
    """Compare the losses of two runs, by name and in order, and that something was compared."""
    assert len(here) == len(there) > 4
    for (name, a), (other, b) in zip(here, there, strict=True):
        assert name == other
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), name


def losses(rows) -> list[tuple[str, float]]:
    kept = (Metric.LOSS, Metric.VAL_LOSS, Metric.GATE_LOSS)
    return [(f"{name} {step}", value) for step, name, value in rows if name in map(str, kept)]


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with Devices():
        x = torch.arange(6.0, device=second_device()).view(2, 3)
        assert (x.device.type, (x + 1).device.type, x.cpu().device.type) == (NAME, NAME, "cpu")
        assert float((2 * x).sum()) == 30
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"free_text_tokens": 8}, 1e-3),
        ({"products": "int8", "exit_gradients": "remade"}, 0.02),
        ({"activation_checkpointing": "loop", "optimizer": "adamw"}, 1e-3),
        ({"dtype": "bfloat16", "trained_exits": "last", "model": VARIANTS}, 0.1),
    ],
    ids=["muon", "int8", "recomputed", "bfloat16"],
)
def test_pretraining_there_is_pretraining_here(changes, tolerance, tmp_path, request) -> None:
    here, there = Recorder(), Recorder()
    config = configured(**changes)
    pretrain(config, ToyData(), tmp_path / "here", log=here)
    request.getfixturevalue("on_second_device")
    pretrain(config, ToyData(), tmp_path / "there", log=there)
    close(losses(here.rows), losses(there.rows), tolerance)


def test_a_resumed_run_takes_its_state_to_the_device(on_second_device, tmp_path) -> None:
    whole, part = Recorder(), Recorder()
    pretrain(configured(), ToyData(), tmp_path / "whole", log=whole)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after the checkpoint of step 3
        pretrain(configured(), ToyData(), tmp_path / "part", log=Recorder(4, stop))
    pretrain(configured(), ToyData(), tmp_path / "part", log=part)
    first = losses(part.rows)
    assert first[0][0].endswith("4")
    assert first == losses(whole.rows)[-len(first) :]


def test_a_longer_context_is_trained_there(on_second_device, tmp_path) -> None:
    folder = save_checkpoint(
        tmp_path / "base", LoopLM(TINY, seed=3), step=1, tokens_seen=0, stage="pretrain",
        tokenizer_json=None,
    )  # fmt: skip
    rows = Recorder()
    summary = extend_context(configured(), folder, ToyData(), tmp_path / "long", log=rows)
    assert losses(rows.rows)[-1][1] < losses(rows.rows)[0][1]
    assert all(bucket["after"] < bucket["before"] for bucket in summary["loss_by_position"])


def test_the_policy_learns_there(base, tmp_path, easy_judge, request) -> None:  # noqa: F811
    plan = {"total_steps": 2, "kl_weight": 0.01, "inner_steps": 2, "warm_start_tasks": 4}
    config = configured().model_copy(update={"maxrl": MAXRL_PLAN.model_copy(update=plan)})
    here, there = [], []
    maxrl.maxrl(config, base, TASKS, tmp_path / "here", log=collect(here))
    request.getfixturevalue("on_second_device")
    summary = maxrl.maxrl(config, base, TASKS, tmp_path / "there", log=collect(there))
    assert summary["device"] == NAME
    names = (Metric.GRAD_NORM, Metric.KL_NATS, Metric.UPDATE_KL, Metric.HELD_OUT_PASS_RATE)
    first, second = (
        [(f"{n} {step}", values[n]) for step, values in rows for n in names if n in values]
        for rows in (here, there)
    )
    close(first, second, 1e-3)
