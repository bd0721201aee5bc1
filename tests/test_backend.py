"""Which engine decodes, with a driver that runs the GPU's kernels on the CPU in place of a GPU."""

from __future__ import annotations

import ctypes
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuda_shim import Shim, compiled
from test_engine import small_model, some_prompts
from test_gpu_step import HereMemory

import kernels
from kernels import torch_op
from kernels.cuda import driver, tensors
from kernels.cuda.compiler import CudaUnavailableError
from kernels.cuda.products import Device
from nanochat_lib.config import HardwareConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import Gpu, detect_machine
from nanochat_lib.model import backend, engine_gpu
from nanochat_lib.model.backend import choice_here, disagreement, open_engine
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.request import Draft, Sampling

TINY = {
    "d_model": 16, "n_layers": 1, "n_loops": 2, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16,
    "max_seq_len": 14,
}  # fmt: skip
AUTO, CPU, CUDA = (HardwareConfig(decode_device=device) for device in ("auto", "cpu", "cuda"))


class AllowedMemory(HereMemory):
    """Arrays that the kernels may read weights from."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        shim.allow()

    def place(self, array):
        found = super().place(array)
        if found.dtype == np.uint8:
            where = ctypes.c_void_p(found.ctypes.data), ctypes.c_size_t(found.nbytes)
            self.shim.library.shim_allow(*where)
        return found


@pytest.fixture(scope="module")
def shim() -> Shim:
    return Shim(compiled(defines=("HEAD_SIZE=8",)))


@pytest.fixture(scope="module")
def model():
    return small_model(**TINY)


@pytest.fixture
def a_gpu(monkeypatch, shim):
    """Let a GPU be there, whose kernels are the shipped ones; return what launches them."""
    machine = replace(detect_machine(), gpus=(Gpu("Made-up GPU", 24.0),))
    monkeypatch.setattr(backend, "detect_machine", lambda: machine)
    for module in (backend, engine_gpu):
        monkeypatch.setattr(module, "why_unavailable", lambda: "")
    monkeypatch.setattr(engine_gpu, "program", lambda *_: shim)
    monkeypatch.setattr(engine_gpu, "device", lambda _: Device(2, 99 << 10))
    monkeypatch.setattr(engine_gpu, "TorchMemory", lambda: AllowedMemory(shim))
    monkeypatch.setattr(engine_gpu, "_as_graph", lambda once: once)
    return shim


def without_gpu(monkeypatch, reason: str, gpus=()) -> None:
    machine = replace(detect_machine(), gpus=gpus)
    monkeypatch.setattr(backend, "detect_machine", lambda: machine)
    for module in (backend, engine_gpu):
        monkeypatch.setattr(module, "why_unavailable", lambda: reason)


def test_auto_takes_a_gpu_that_agrees_and_it_writes_the_cpu_engines_text(model, a_gpu):
    engine = open_engine(model, AUTO, max_batch=2)
    assert engine.runs_on == "cuda"
    prompts, sampling = some_prompts(3, longest=8), Sampling(5, temperature=0)
    wanted = open_engine(model, CPU, max_batch=2)
    assert wanted.runs_on.startswith("cpu (")
    found = engine.generate(prompts, sampling)
    assert [one.tokens for one in found] == [
        one.tokens for one in wanted.generate(prompts, sampling)
    ]


def test_reload_on_a_gpu_gives_the_text_of_the_new_weights(model, a_gpu):
    engine = open_engine(model, CUDA, max_batch=2)
    other = small_model(**TINY)
    for parameter in other.parameters():
        parameter.data.mul_(1.1).add_(0.01)
    prompts, sampling = some_prompts(2, longest=8), Sampling(5, temperature=0)
    before = engine.generate(prompts, sampling)
    engine.reload(other)
    wanted = Engine.from_model(other, max_batch=2, threads=1).generate(prompts, sampling)
    after = engine.generate(prompts, sampling)
    assert [one.tokens for one in after] == [one.tokens for one in wanted]
    assert after != before
    with pytest.raises(WorkbenchError, match="cannot take"):
        engine.reload(small_model())


class Wrong:
    """A GPU on which one kernel does nothing, or another thing."""

    def __init__(self, shim: Shim, name: str) -> None:
        self.shim, self.name = shim, name

    def launch(self, name, *args, **sizes):
        if name != self.name:
            self.shim.launch(name, *args, **sizes)

    def __getattr__(self, name):
        return getattr(self.shim, name)


@pytest.mark.parametrize(
    "kernel",
    ["norm_quantize", "quantize", "attention", "leave", "sample"],
)
def test_a_gpu_that_computes_wrongly_is_not_taken(model, a_gpu, monkeypatch, caplog, kernel):
    monkeypatch.setattr(engine_gpu, "program", lambda *_: Wrong(a_gpu, kernel))
    with caplog.at_level(logging.WARNING):
        engine = open_engine(model, AUTO, max_batch=2)
    assert isinstance(engine, Engine)
    reason = "its texts are not those of the CPU engine: "
    assert f"; not on the GPU: {reason}" in engine.runs_on
    assert f"Decoding runs on the CPU: {reason}" in caplog.text


def test_cuda_by_name_is_refused_where_it_computes_wrongly(model, a_gpu, monkeypatch):
    monkeypatch.setattr(engine_gpu, "program", lambda *_: Wrong(a_gpu, "leave"))
    with pytest.raises(WorkbenchError, match="cannot decode here: its texts are not those"):
        open_engine(model, CUDA, max_batch=1)


def test_an_engine_agrees_with_itself_and_not_with_another_model(model):
    judge = Engine.from_model(model, max_batch=4, threads=1)
    assert disagreement(judge, judge, 4) == ""
    other = Engine.from_model(small_model(max_seq_len=20), max_batch=4, threads=1)
    assert "standard deviations too low" in disagreement(other, judge, 4)
    short = Engine.from_model(model, max_batch=4, threads=1, max_seq_len=2)
    assert disagreement(short, short, 4) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: {"tokens": one.tokens[:-1]}, "greedy tokens, not"),
        (lambda one: {"tokens": [300, *one.tokens[1:]]}, "none of the vocabulary"),
        (lambda one: {"token_entropy": [math.nan] * len(one.tokens)}, "nats off"),
        (lambda one: {"exit_loops": [1 + loop % 2 for loop in one.exit_loops]}, "another loop"),
    ],
)
def test_every_kind_of_disagreement_is_said(model, change, reason):
    judge = Engine.from_model(model, max_batch=4, threads=1)

    class Other:
        def generate(self, prompts, sampling):
            return [replace(one, **change(one)) for one in judge.generate(prompts, sampling)]

    assert reason in disagreement(Other(), judge, 4)


def test_without_a_gpu_auto_is_silent_and_cuda_by_name_an_error(model, monkeypatch, caplog):
    without_gpu(monkeypatch, "no GPU: the CUDA driver finds no device")
    engine = open_engine(model, AUTO, max_batch=1)
    assert engine.runs_on == f"cpu ({engine.backend})"
    assert not caplog.text
    assert choice_here() == backend.Choice("cpu", "no GPU: the CUDA driver finds no device")
    with pytest.raises(WorkbenchError, match=r"here: no GPU: .* finds no device\. Set it to auto"):
        open_engine(model, CUDA, max_batch=1)


def test_a_gpu_without_a_compiler_is_one_sentence(model, monkeypatch, caplog):
    without_gpu(monkeypatch, "no CUDA compiler", (Gpu("Made-up GPU", 24.0),))
    engine = open_engine(model, AUTO, max_batch=1)
    assert engine.runs_on.endswith("; not on the GPU: no CUDA compiler")
    assert caplog.text.count("Decoding runs on the CPU: no CUDA compiler.") == 1
    caplog.clear()
    assert "not on" not in open_engine(model, CPU, max_batch=1).runs_on
    assert not caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CudaUnavailableError("the CUDA compiler 12.8 failed: unknown sm_130"), "unknown sm_130"),
        (RuntimeError("CUDA out of memory.\nTried to allocate"), "CUDA out of memory"),
    ],
)
def test_what_fails_while_opening_leads_to_the_cpu(model, a_gpu, monkeypatch, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(engine_gpu, "program", fail)
    assert open_engine(model, AUTO, max_batch=1).runs_on.endswith(reason)
    with pytest.raises(WorkbenchError, match=reason):
        open_engine(model, CUDA, max_batch=1)


def test_what_the_gpu_engine_lacks_runs_on_the_cpu(model, a_gpu):
    for wish, reason in (({"draft": Draft()}, "draft"), ({"packing": "base3"}, "base3")):
        assert reason in open_engine(model, AUTO, max_batch=1, **wish).runs_on
        with pytest.raises(WorkbenchError, match=reason):
            open_engine(model, CUDA, max_batch=1, **wish)
    odd = small_model(d_model=48)  # heads of 12
    assert "heads of 12" in open_engine(odd, AUTO, max_batch=1).runs_on
    with pytest.raises(WorkbenchError, match="no packing 'base4'"):
        open_engine(model, AUTO, packing="base4")


@pytest.mark.parametrize("b", [1, 5])
def test_the_operator_on_cuda_runs_the_cuda_product(shim, monkeypatch, b):
    """Its CUDA half gets tensors in memory here, and a driver that runs the kernels on them."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("nanochat::ternary_linear", "CUDA")
    monkeypatch.setattr(tensors, "program", lambda *_: shim)
    monkeypatch.setattr(tensors, "device", lambda _: Device(2, 99 << 10))
    rng = np.random.default_rng(b)
    packed = torch.from_numpy(kernels.pack(rng.integers(-1, 2, (37, 100)).astype(np.int8)))
    x = torch.from_numpy(rng.standard_normal((b, 2, 100)).astype(np.float32))
    scale = torch.from_numpy(rng.random(37).astype(np.float32))
    shim.allow(packed.numpy())
    wanted = torch_op.ternary_linear(x, packed, scale)
    assert torch.equal(torch_op._on_cuda(x, packed, scale), wanted)


def test_cuda_tensors_without_a_compiler_are_one_sentence(monkeypatch):
    monkeypatch.setattr(driver, "why_unavailable", lambda: "no CUDA compiler")
    x, packed, scale = torch.zeros(1, 16), torch.zeros(1, 1, 64, dtype=torch.uint8), torch.ones(16)
    with pytest.raises(CudaUnavailableError, match="CUDA kernels cannot run: no CUDA compiler"):
        torch_op._on_cuda(x, packed, scale)
