"""Layers that multiply in int8: the numbers of the float path, choices, sharing, training."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_pretrain import TINY, Recorder, ToyData, configured
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kernels.training import operators
from nanochat_lib.config import ModelConfig, PretrainConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model import products
from nanochat_lib.model.attention import positions_of
from nanochat_lib.model.looplm import Layer, LoopLM, call_layer
from nanochat_lib.model.products import BIT_LINEARS, Int8Weights, LayerWeights
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.long_context import _plan
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety.memory import LiveBytes, recomputed

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ModelConfig(
    vocab_size=300, d_model=64, n_layers=2, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=160,
    max_seq_len=64,
)  # fmt: skip
VARIANTS = ("", "sub_norm", "sandwich_norm", "input_injection", "loop_gates")
CPU = torch.device("cpu")


def model_of(variant="", **changes):
    flag = {variant: True} if variant else {}
    model = LoopLM(SMALL.model_copy(update=flag | changes), seed=1)
    for parameter in model.parameters():  # norms of 1 would hide a norm that is left out
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    return model


def relative(found, wanted) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def one_layer(layer: Layer, kind, x):
    """Return what one layer gives, and gradients to its input and parameters."""
    layer.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    positions = positions_of(x.shape[1], head_size=16, rope_base=1e4)
    out = layer(x, kind.of(layer), positions)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), {"x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_a_layer_gives_the_numbers_of_the_float_path(variant, monkeypatch):
    """To rounding: 1e-5 forward, and backward when gradients are not rounded; else 3 %.

    At a tie between two codes both paths may round apart; these inputs have few ties.
    """
    layer, x = model_of(variant).layers[0], torch.randn(3, 24, 64, generator=seeded(3))
    wanted, slopes = one_layer(layer, LayerWeights, x)
    found, rounded = one_layer(layer, Int8Weights, x)
    assert relative(found, wanted) < 1e-3
    per_token = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert (per_token < 1e-5).float().mean() > 0.9
    for name in ("linear", "norm_linear", "swiglu_linear"):
        exact = getattr(products, name)
        monkeypatch.setattr(products, name, without_rounding(exact))
    _, exact = one_layer(layer, Int8Weights, x)
    assert set(exact) == set(rounded) == set(slopes)
    for name, slope in slopes.items():
        assert relative(exact[name], slope) < 5e-3, name
        assert 0 < relative(rounded[name], slope) < 0.03, name


def without_rounding(function):
    return lambda *args: function(*args, int8_backward=False)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_gives_the_numbers_of_the_float_path(variant):
    """Most tokens to float32's rounding; where a tie flips a code, more flip in what follows."""
    model, tokens = model_of(variant), torch.randint(0, 300, (2, 40), generator=seeded(0))
    with torch.no_grad():
        wanted = model(tokens).hidden[-1]
        with execution.int8_products(model, True):
            found = model(tokens).hidden[-1]
    per_token = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert 0 < per_token.median() < 1e-6
    assert per_token.max() < 0.05


def test_all_loops_and_micro_batches_share_one_quantisation(monkeypatch):
    calls, original = [], products.ternary
    monkeypatch.setattr(products, "ternary", lambda w: calls.append(1) or original(w))
    model, tokens = model_of(), torch.randint(0, 300, (4, 16))
    with execution.int8_products(model, True):
        for part in tokens.split(2):
            model(part)
    assert len(calls) == len(BIT_LINEARS) * SMALL.n_layers
    assert model.weights_of == LayerWeights.of


def test_every_step_quantises_the_weights_it_has(tmp_path, monkeypatch):
    """Codes that outlived an optimiser step would give the losses of frozen layers."""
    seen = []
    original = Int8Weights.of.__func__
    monkeypatch.setattr(
        Int8Weights, "of", lambda layer: seen.append(layer.up.weight.sum().item())
        or original(Int8Weights, layer),
    )  # fmt: skip
    config = configured(gate_steps=0, products="int8")
    pretrain(config, ToyData(), tmp_path, log=Recorder())
    assert len(seen) == len(set(seen)) == 12


@pytest.mark.parametrize("mode", ["layer", "loop"])
def test_recomputed_layers_have_the_same_gradients(mode):
    model, tokens = model_of(), torch.randint(0, 300, (2, 24), generator=seeded(0))
    found = [gradients(model, tokens, each, torch.bfloat16) for each in ("none", mode)]
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def gradients(model, tokens, mode="none", dtype=torch.float32):
    model.zero_grad(set_to_none=True)
    with execution.int8_products(model, True), recomputed(model, mode):
        with execution.autocast(CPU, dtype):
            hidden = model(tokens).hidden
        sum(h.float().pow(4).mean() for h in hidden).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_int8_keeps_less_for_the_backward_pass():
    """Codes and act_scale of a row instead of rounded floats; counted tensor by tensor."""
    model, tokens, peak = model_of(), torch.randint(0, 300, (32, 64)), {}
    for is_int8 in (False, True):
        with execution.int8_products(model, is_int8), LiveBytes() as live:
            with execution.autocast(CPU, torch.bfloat16):
                hidden = model(tokens).hidden
            sum(h.float().pow(4).mean() for h in hidden).backward()
        peak[is_int8] = live.peak
    assert peak[True] < 0.85 * peak[False]


def test_autocast_gives_its_type_and_masters_stay_float32():
    layer, x = model_of().layers[0], torch.randn(2, 16, 64, generator=seeded(0))
    rope = positions_of(16, head_size=16, rope_base=1e4).rope
    weights = Int8Weights.of(layer)
    with execution.autocast(CPU, torch.bfloat16):
        q, k, v = weights.heads(layer, x, rope)
    assert {t.dtype for t in (q, k, v)} == {torch.bfloat16}
    wanted = LayerWeights.of(layer).heads(layer, x, rope)
    for found, exact in zip((q, k, v), wanted, strict=True):  # 8 bits of a mantissa, one rounding
        assert relative(found.float(), exact) < 3e-3


class RustBytes(ToyData):
    """Real Rust, a byte a token: windows of the programs that the verification is tested with."""

    def __init__(self):
        super().__init__(largest=256)
        path = Path(__file__).parent / "fixtures" / "mixed_programs.rs.txt"
        self.tokens = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64)

    def _rows(self, rng, n_rows, seq_len):
        first = rng.integers(0, len(self.tokens) - seq_len - 1, (n_rows, 1))
        return self.tokens[first + np.arange(seq_len + 1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_in_int8_follows_training_in_floats(tmp_path, dtype):
    """40 steps on real Rust: every loss within 0.03 nats, the last ten within 0.02 on average.

    For scale: they fall by 3 nats; three seeds differ by 0.06, bfloat16 from float32 by 0.018.
    """
    curves = {}
    for kind in ("float", "int8"):
        recorder = Recorder()
        config = configured(
            SMALL, total_steps=40, seq_len=64, batch_size=16, micro_batch_size=8, dtype=dtype,
            gate_steps=0, eval_every=40, checkpoint_every=40, products=kind,
            learning_rate=0.003, muon_learning_rate=0.008,
        )  # fmt: skip
        summary = pretrain(config, RustBytes(), tmp_path / kind, log=recorder)
        assert summary["products"] == kind
        curves[kind] = np.array([v for _, v in recorder.series(Metric.LOSS)])
    gap = curves["int8"] - curves["float"]
    assert curves["float"][-10:].mean() < curves["float"][0] - 2.5
    assert 0 < np.abs(gap).max() < 0.03
    assert abs(gap[-10:].mean()) < 0.02


def test_a_resumed_run_keeps_its_products_and_its_numbers(tmp_path):
    """Stopped after step 6 and continued under "auto", which would take floats here."""
    stop = threading.Event()
    whole, parts = Recorder(), Recorder(stop_at=6, action=stop.set)
    settings = {"products": "int8", "gate_steps": 0}
    pretrain(configured(**settings), ToyData(), tmp_path / "a", log=whole)
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(**settings), ToyData(), tmp_path / "b", log=parts, stop=stop)
    changed = configured(**settings | {"products": "auto"})
    summary = pretrain(changed, ToyData(), tmp_path / "b", log=parts)
    assert summary["products"] == "int8"
    assert parts.series(Metric.LOSS) == whole.series(Metric.LOSS)


def test_longer_context_multiplies_as_pre_training_did():
    assert _plan(load_profile("laptop", {"pretrain.products": "int8"})).products == "int8"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let the choice think that the model lies on a GPU with triton; products stay on the CPU."""
    model = model_of()
    seen = SimpleNamespace(config=model.config, layers=model.layers)
    seen.head = SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(execution, "has_triton", lambda: True)
    monkeypatch.setattr(execution, "int8_gain", lambda *_: 1.4)
    return seen


def test_auto_is_int8_where_it_is_faster_and_float_everywhere_else(on_a_gpu, monkeypatch):
    auto, half = PretrainConfig(), torch.bfloat16
    assert execution.choose_products(auto, model_of(), half) == "float"  # a CPU
    assert execution.choose_products(auto, on_a_gpu, half) == "int8"
    assert execution.choose_products(auto, on_a_gpu, torch.float32) == "float"
    on_a_gpu.config = SMALL.model_copy(update={"ternary": False})
    assert execution.choose_products(auto, on_a_gpu, half) == "float"
    on_a_gpu.config = SMALL
    monkeypatch.setattr(execution, "int8_gain", lambda *_: 0.9)
    assert execution.choose_products(auto, on_a_gpu, half) == "float"
    monkeypatch.setattr(execution, "has_triton", lambda: False)
    monkeypatch.setattr(execution, "int8_gain", None)  # not asked
    assert execution.choose_products(auto, on_a_gpu, half) == "float"


def test_kernels_that_fail_are_said_in_one_sentence(on_a_gpu, monkeypatch, caplog):
    def broken(*_):
        raise execution.kernel_errors()[-1]("out of resource: shared memory\nand more")

    monkeypatch.setattr(execution, "int8_gain", broken)
    assert execution.choose_products(PretrainConfig(), on_a_gpu, torch.bfloat16) == "float"
    assert "runs without them: out of resource: shared memory" in caplog.text
    assert "and more" not in caplog.text


def test_the_gain_is_measured_on_both_sides():
    """On a CPU the exact fallback in float32 is the slower one."""
    gain = execution.int8_gain(SMALL.model_copy(update={"d_model": 256, "d_ff": 512}), 512, CPU)
    assert 0 < gain < 1


def test_by_name_a_model_without_codes_is_refused(tmp_path):
    plan, plain = PretrainConfig(products="int8"), LoopLM(TINY.model_copy(update={"ternary": 0}))
    with pytest.raises(WorkbenchError, match=r"model\.ternary is false.*Take float"):
        execution.choose_products(plan, plain, torch.float32)
    with pytest.raises(WorkbenchError, match="needs model.ternary"):
        load_profile("laptop", {"pretrain.products": "int8", "model.ternary": False})
    with pytest.raises(WorkbenchError, match="pretrain.products: Input should be 'auto', 'float'"):
        load_profile("laptop", {"pretrain.products": "int4"})


def test_by_name_a_model_split_over_processes_is_refused():
    model = model_of()
    with one_process() as mesh:
        model.layers[0].q.weight = torch.nn.Parameter(
            distribute_tensor(model.layers[0].q.weight.data, mesh, [Shard(0)])
        )
        assert execution.choose_products(PretrainConfig(), model, torch.bfloat16) == "float"
        with pytest.raises(WorkbenchError, match="split over processes"):
            execution.choose_products(PretrainConfig(products="int8"), model, torch.bfloat16)


@contextmanager
def one_process():
    """Yield a device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not execution.find_cxx(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_compile_takes_the_products_as_one_graph_for_all_layers(dtype):
    from torch._dynamo.utils import counters

    model, tokens = model_of(), torch.randint(0, 300, (2, 24), generator=seeded(0))
    wanted = gradients(model, tokens, dtype=dtype)
    torch.compiler.reset()
    counters.clear()
    model.run_layer = torch.compile(call_layer, dynamic=False, fullgraph=True)
    found = gradients(model, tokens, dtype=dtype)
    assert counters["stats"]["unique_graphs"] == 1
    for name, gradient in wanted.items():
        assert relative(found[name], gradient) < 0.03, name


def test_torch_finds_the_operators_sound():
    x, other = torch.randn(10, 48), torch.rand(48)
    codes, scale = operators.rows_to_int8(x, other, operators.NORM, 1e-5)
    once = products.ternary(torch.randn(16, 48))
    rows, product = torch.ops.nanochat.rows_to_int8, torch.ops.nanochat.int8_product
    torch.library.opcheck(rows.default, (x, other, operators.NORM, 1e-5))
    arguments = (codes, once.codes, scale, once.scale, torch.bfloat16)
    torch.library.opcheck(product.default, arguments)
