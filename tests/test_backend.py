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
from kernels.compile import LEVELS as BY_NAME
from kernels.cuda import driver, tensors
from kernels.cuda.compiler import CudaUnavailableError
from kernels.cuda.products import Device
from nanochat_lib.cli.doctor import OK, OPTIONAL, run_checks
from nanochat_lib.config import HardwareConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import Gpu, detect_machine
from nanochat_lib.model import backend, engine, engine_gpu
from nanochat_lib.model.backend import choice_here, open_engine
from nanochat_lib.model.decoding.agreement import ENTROPY_LIMIT, LOGIT_LIMIT, compare
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


def test_auto_takes_a_gpu_that_agrees_and_it_writes_the_cpu_engines_text(model, a_gpu, caplog):
    with caplog.at_level(logging.INFO):
        engine = open_engine(model, AUTO, max_batch=2)
    assert engine.runs_on == "cuda"
    found = engine.agreement
    assert 0 <= found.logit_lag < LOGIT_LIMIT / 2
    assert 0 < found.entropy_gap < ENTROPY_LIMIT / 2  # keys in float16, so not 0
    assert (found.n_elsewhere, found.n_texts, found.fault) == (0, 2, "")
    assert f"The GPU decodes as the CPU engine does: {found}." in caplog.text
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


DRAFT = Draft(1, 3)


def drafting(model, device=AUTO):
    return open_engine(model, device, max_batch=2, draft=DRAFT)


def test_a_gpu_that_drafts_writes_the_text_of_plain_decoding(model, a_gpu):
    engine = drafting(model)
    assert engine.runs_on == "cuda"
    assert engine.agreement.entropy_gap > 0
    assert engine.agreement.n_texts == 0  # drafts are verified with all loops
    assert {"draft", "verify"} <= set(a_gpu.launched)
    prompts, sampling = some_prompts(3, longest=8), Sampling(5, temperature=0)
    wanted = Engine.from_model(model, max_batch=2, threads=1).generate(prompts, sampling)
    found = engine.generate(prompts, sampling)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    with pytest.raises(WorkbenchError, match="take one or the other"):
        engine.generate(prompts, replace(sampling, exit_threshold=0.5))


class Gullible(Wrong):
    """A GPU that accepts every draft: it makes the drafted token's logit the largest."""

    def __init__(self, shim: Shim) -> None:
        super().__init__(shim, "")

    def launch(self, name, args, grid, *rest, **sizes):
        if name == "verify":
            n = grid * args.n_drafts
            tokens = (ctypes.c_int * n).from_address(args.drafted_token)
            logits = (ctypes.c_float * (n * args.sample.stride)).from_address(args.sample.logits)
            for row, token in enumerate(tokens):
                logits[row * args.sample.stride + token] += 30
        super().launch(name, args, grid, *rest, **sizes)


@pytest.mark.parametrize("kernel", ["attention", "draft", "every draft"])
def test_a_gpu_that_drafts_wrongly_is_not_taken(model, a_gpu, monkeypatch, kernel):
    wrong = Gullible(a_gpu) if kernel == "every draft" else Wrong(a_gpu, kernel)
    monkeypatch.setattr(engine_gpu, "program", lambda *_: wrong)
    engine = drafting(model)
    assert isinstance(engine, Engine)
    assert "; not on the GPU: its texts are not those of the CPU engine: " in engine.runs_on
    prompts = some_prompts(1, longest=8)
    assert (
        engine.generate(prompts, Sampling(6, temperature=0))[0].passes < 6
    )  # it drafts all the same
    with pytest.raises(WorkbenchError, match="its texts are not those"):
        drafting(model, CUDA)


def test_steps_that_do_nothing_are_an_error_and_no_endless_loop(model, a_gpu, monkeypatch):
    monkeypatch.setattr(engine_gpu, "program", lambda *_: Wrong(a_gpu, "append"))
    assert "what they launch does not run" in open_engine(model, AUTO, max_batch=1).runs_on


def test_a_step_is_captured_once_for_all_texts_of_one_sampling(model, a_gpu, monkeypatch):
    engine, captured = open_engine(model, CUDA, max_batch=2), []
    monkeypatch.setattr(engine_gpu, "_as_graph", lambda once: captured.append(once) or once)
    monkeypatch.setattr(engine_gpu, "MAX_GRAPHS", 2)
    prompts = some_prompts(3, longest=8)
    found = [engine.generate(prompts, Sampling(n, 0.5), seed=3) for n in (4, 4, 2)]
    assert len(captured) == 1  # that which reads prompts was there
    assert found[0] == found[1]
    assert [one.tokens[:2] for one in found[0]] == [one.tokens for one in found[2]]
    engine.use("persistent")
    assert engine.generate(prompts, Sampling(4, 0.5), seed=3) == found[0]
    assert len(captured) == 3
    assert len(engine._graphs) == 2
    with pytest.raises(WorkbenchError, match="graph, persistent"):
        engine.use("eager")


def test_an_engine_agrees_with_itself_and_not_with_another_model(model):
    judge = Engine.from_model(model, max_batch=4, threads=1)
    itself = compare(judge, judge, 4)
    assert itself.fault == ""
    assert max(itself.logit_lag, itself.entropy_gap) < 1e-5  # sums in another order
    drafts = Engine.from_model(model, max_batch=4, threads=1, draft=DRAFT)
    assert compare(drafts, judge, 4, DRAFT.tokens).fault == ""
    changed = small_model(**TINY)
    changed.head.weight.data = changed.head.weight.data.flip(0)
    found = compare(Engine.from_model(changed, max_batch=4, threads=1), judge, 4)
    assert "standard deviations too low" in found.fault
    assert found.logit_lag > LOGIT_LIMIT
    short = Engine.from_model(model, max_batch=4, threads=1, max_seq_len=2)
    assert compare(short, short, 4).fault == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: {"tokens": one.tokens[:-1]}, "greedy tokens, not"),
        (lambda one: {"tokens": [300, *one.tokens[1:]]}, "none of the vocabulary"),
        (lambda one: {"token_entropy": [math.nan] * len(one.tokens)}, "nats off"),
        (lambda one: {"exit_loops": [1, *one.exit_loops[1:]]}, "another loop than the last"),
        (lambda one: {"passes": one.passes + 1}, "came of 5 passes"),
    ],
)
@pytest.mark.parametrize("n_drafts", [0, 1])
def test_every_kind_of_disagreement_is_said(model, change, reason, n_drafts):
    judge = Engine.from_model(model, max_batch=4, threads=1)

    class Other:
        def generate(self, prompts, sampling):
            return [replace(one, **change(one)) for one in judge.generate(prompts, sampling)]

    assert reason in compare(Other(), judge, 4, n_drafts).fault


def test_leaving_at_other_loops_is_a_disagreement_where_no_drafts_are_made(model):
    judge = Engine.from_model(model, max_batch=4, threads=1)

    class Other:
        def generate(self, prompts, sampling):
            found = judge.generate(prompts, sampling)
            if sampling.exit_threshold == 1:
                return found
            return [replace(one, exit_loops=[3 - loop for loop in one.exit_loops]) for one in found]

    found = compare(Other(), judge, 4)
    assert found.fault == "4 of 4 tokens leave at another loop"
    assert found.n_elsewhere == found.n_texts == 4
    assert compare(Other(), judge, 4, 3).fault == ""


def test_the_doctor_opens_a_model_where_a_gpu_is(a_gpu, monkeypatch):
    monkeypatch.setattr(backend, "PROBE", small_model(**TINY).config)
    monkeypatch.setattr(backend, "PROBE_ROWS", 2)
    monkeypatch.setattr("nanochat_lib.cli.doctor.detect_machine", backend.detect_machine)
    assert choice_here().device == "cuda"
    check = next(run_checks(["decoding"]))
    assert check.state == OK
    assert "cuda: decodes as the CPU engine does: logits lag by at most" in check.found
    monkeypatch.setattr(engine_gpu, "program", lambda *_: Wrong(a_gpu, "attention"))
    check = next(run_checks(["decoding"]))
    assert check.state == OPTIONAL
    assert "its texts are not those of the CPU engine" in check.found


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
        (MemoryError("Unable to allocate 618 GiB"), "Unable to allocate 618 GiB"),
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
    for wish, reason in (({"draft": Draft(1, 33)}, "1 to 32"), ({"packing": "base3"}, "base3")):
        assert reason in open_engine(model, AUTO, max_batch=1, **wish).runs_on
        with pytest.raises(WorkbenchError, match=reason):
            open_engine(model, CUDA, max_batch=1, **wish)
    varied = small_model(**TINY, sandwich_norm=True)  # packed weights have no place for it
    with pytest.raises(WorkbenchError, match=r"GPU engine runs the stock block.*sandwich_norm"):
        open_engine(varied, CUDA, max_batch=1)
    with pytest.raises(WorkbenchError, match="max_seq_len 15 exceeds the model's 14"):
        open_engine(model, CUDA, max_batch=1, max_seq_len=15)
    odd = small_model(d_model=48)  # heads of 12
    assert "heads of 12" in open_engine(odd, AUTO, max_batch=1).runs_on
    with pytest.raises(WorkbenchError, match="no packing 'base4'"):
        open_engine(model, AUTO, packing="base4")


LEVELS = {
    "generic": "generic",
    "AVX2": "avx2",
    "AVX512": "avx512vnni",
    "auto": "amx",
    "CUDA": "amx",
}


@pytest.mark.parametrize("preferred", LEVELS)
def test_preferred_kernel_bounds_the_level_that_decodes(model, monkeypatch, preferred):
    ran = []
    monkeypatch.setattr(engine, "generate", lambda level, *_: ran.append(len(level)))
    found = open_engine(model, CPU.model_copy(update={"preferred_kernel": preferred}), max_batch=2)
    usable = [name for name in kernels.backends() if name != "reference"]
    allowed = [name for name in usable if len(BY_NAME[name]) <= len(BY_NAME[LEVELS[preferred]])]
    assert found.runs_on == f"cpu ({allowed[-1]})"
    found.generate(some_prompts(3, longest=8), Sampling(5))
    assert set(ran) == {len(BY_NAME[allowed[-1]])}


@pytest.mark.slow  # the decode program is compiled for every level
def test_every_level_decodes_the_same_text(model):
    one = Engine.from_model(model, max_batch=2)
    prompts, sampling = some_prompts(3, longest=8), Sampling(5)
    wanted = one.generate(prompts, sampling)
    for level in BY_NAME:
        one.use(level)
        assert one.generate(prompts, sampling) == wanted


def test_a_level_that_the_machine_lacks_gives_its_best(model, monkeypatch):
    monkeypatch.setattr(kernels, "backends", lambda: ("reference", "generic"))
    for preferred in LEVELS:
        hardware = CPU.model_copy(update={"preferred_kernel": preferred})
        assert open_engine(model, hardware, max_batch=1).runs_on == "cpu (generic)"
    monkeypatch.setenv("NANOCHAT_KERNEL", "avx3")
    with pytest.raises(WorkbenchError, match="has no kernels: there is no kernel backend 'avx3'"):
        open_engine(model, CPU, max_batch=1)


def test_cuda_as_preferred_kernel_decodes_on_a_gpu_first(model, a_gpu):
    hardware = AUTO.model_copy(update={"preferred_kernel": "CUDA"})
    assert open_engine(model, hardware, max_batch=1).runs_on == "cuda"
    by_name = CPU.model_copy(update={"preferred_kernel": "CUDA"})  # the device is a stronger word
    assert open_engine(model, by_name, max_batch=1).runs_on.startswith("cpu (")


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
