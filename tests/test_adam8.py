"""8-bit AdamW: close to torch's AdamW, a quarter of its state, bit-equal through a checkpoint."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretrain import Recorder, ToyData, configured, same_weights, weights_of

from nanochat_lib.config import ModelConfig, PretrainConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.optim import Optimizers
from nanochat_lib.train.pretrain import pretrain

MODEL = ModelConfig(
    vocab_size=512, d_model=64, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=4, d_ff=64,
    max_seq_len=16,
)  # fmt: skip
PLAN = PretrainConfig(total_steps=10, warmup_steps=0, decay_steps=2, weight_decay=0.1)


def make(name, seed=1):
    model = LoopLM(MODEL, seed=seed)
    return model, Optimizers(model, PLAN.model_copy(update={"optimizer": name}))


def take_steps(model, optimizers, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(step)


def installed():
    pytest.importorskip("torchao", reason="torchao is in the adam8 extra")
    if not execution.find_cxx():
        pytest.skip("no C++ compiler on this machine")


def test_without_torchao_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(WorkbenchError, match=r"needs torchao, which is not installed: pip install"):
        make("adamw_8bit")


def test_without_a_compiler_it_says_so(monkeypatch):
    pytest.importorskip("torchao", reason="torchao is in the adam8 extra")
    monkeypatch.setattr(execution, "find_cxx", lambda: None)
    with pytest.raises(WorkbenchError, match=r"found no C\+\+ compiler"):
        make("adamw_8bit")


@pytest.mark.slow
def test_its_steps_are_close_to_those_of_torchs_adamw():
    installed()
    (ours, eight), (theirs, whole) = make("adamw_8bit"), make("adamw")
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    take_steps(ours, eight, range(6))
    take_steps(theirs, whole, range(6))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p - q).norm() < 0.05 * (q - start[name]).norm(), name
    bytes_of = [
        sum(t.numel() * t.element_size() for k, t in o.state_tensors().items() if "qmap" not in k)
        for o in (eight, whole)
    ]
    assert bytes_of[0] < 0.27 * bytes_of[1]


@pytest.mark.slow
def test_its_state_goes_through_safetensors_bit_equal(tmp_path):
    installed()
    model, optimizers = make("adamw_8bit")
    take_steps(model, optimizers, range(5))
    path = tmp_path / "state.safetensors"
    save_file(optimizers.state_tensors(), path)
    again, restored = make("adamw_8bit")
    again.load_state_dict(model.state_dict())
    restored.load_state_tensors(load_file(path))
    for each, optimizer in ((model, optimizers), (again, restored)):
        take_steps(each, optimizer, range(5, 9))
    assert same_weights(model.state_dict(), again.state_dict())


@pytest.mark.slow
def test_training_with_it_learns_and_resumes(tmp_path):
    installed()
    settings = {"optimizer": "adamw_8bit", "gate_steps": 0, "model": MODEL}
    whole, first, second = Recorder(), Recorder(6, lambda: (_ for _ in ()).throw(OSError())), None
    pretrain(configured(**settings), ToyData(), tmp_path / "a", log=whole)
    losses = [value for _, value in whole.series(Metric.LOSS)]
    assert losses[-1] < losses[0] - 0.5
    with pytest.raises(OSError):
        pretrain(configured(**settings), ToyData(), tmp_path / "b", log=first)
    second = Recorder()
    pretrain(configured(**settings), ToyData(), tmp_path / "b", log=second)
    assert second.series(Metric.LOSS) == whole.series(Metric.LOSS)[4:]
    assert same_weights(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))


def test_another_optimiser_does_not_take_over_a_checkpoint(tmp_path):
    pretrain(configured(total_steps=6, gate_steps=0), ToyData(), tmp_path, log=Recorder())
    with pytest.raises(WorkbenchError, match="optimizer = muon, now it is adamw"):
        pretrain(
            configured(total_steps=6, gate_steps=0, optimizer="adamw"),
            ToyData(), tmp_path, log=Recorder(),
        )  # fmt: skip
