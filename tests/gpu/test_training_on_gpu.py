"""On a GPU: training's Triton products equal the same arithmetic in torch on the CPU."""

from __future__ import annotations

import pytest
import torch
from test_products import RustBytes

from kernels.cuda.driver import why_unavailable
from kernels.training import linear as ours
from kernels.training import operators
from nanochat_lib.config import HardwareConfig, ModelConfig, PretrainConfig, RunConfig
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety.memory import recomputed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "a GPU is there"),
]


@pytest.mark.parametrize("shape", [(33, 100, 65), (2048, 1024, 1536)])
def test_products_and_gradients_are_those_of_the_cpu(shape):
    m, k, n = shape
    torch.manual_seed(0)
    x, weight, norm = torch.randn(m, k), torch.randn(n, k) * 0.1, torch.rand(k) + 0.5
    found = gradients(*(t.cuda() for t in (x, weight, norm)))
    wanted = gradients(x, weight, norm)
    for one, other in zip(found, wanted, strict=True):
        assert (one.cpu() - other).norm() / other.norm() < 5e-3


def gradients(x, weight, norm):
    leaves = [t.detach().requires_grad_() for t in (x, weight, norm)]
    (y,) = ours.norm_linear(leaves[0], leaves[2], 1e-5, [ours.ternary(leaves[1])])
    y.square().sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def test_sums_are_exact():
    a = torch.randint(-128, 128, (1500, 777), dtype=torch.int8)
    b = torch.randint(-1, 2, (1100, 777), dtype=torch.int8)
    assert torch.equal(operators.sums(a.cuda(), b.cuda()).cpu(), a.int() @ b.int().T)


MODEL = ModelConfig(
    vocab_size=1024, d_model=512, n_layers=2, n_loops=2, n_heads=8, n_kv_heads=4, d_ff=1536,
    max_seq_len=256,
)  # fmt: skip


def step(kind: str, device: str, *, is_compiled: bool = False, mode: str = "none"):
    """Return the hidden states and gradients of one training step in bfloat16."""
    model = LoopLM(MODEL, seed=1).to(device)
    tokens = torch.randint(0, 1024, (4, 256), generator=torch.Generator().manual_seed(0))
    with (
        execution.compiled_layers(model, is_compiled),
        execution.int8_products(model, kind == "int8"),
        recomputed(model, mode),
    ):
        with execution.autocast(torch.device(device), torch.bfloat16):
            hidden = model(tokens.to(device)).hidden
        sum(h.float().pow(4).mean() for h in hidden).backward()
    found = {f"hidden {i}": h.detach().float().cpu() for i, h in enumerate(hidden)}
    return found | {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def apart(one, other) -> float:
    return max(float((one[n] - v).norm() / v.norm()) for n, v in other.items())


def test_a_model_in_int8_is_that_of_the_cpu_and_of_the_float_path():
    """bfloat16 rounds and flips codes at ties: a few per cent, as between float paths."""
    found = step("int8", "cuda")
    assert apart(found, step("int8", "cpu")) < 0.1
    assert apart(found, step("float", "cuda")) < 0.1


@pytest.mark.parametrize("mode", ["none", "layer"])
def test_compiled_layers_have_the_same_products(mode):
    found = step("int8", "cuda", is_compiled=True, mode=mode)
    assert apart(found, step("int8", "cuda")) < 0.1


def test_int8_training_follows_float_training(tmp_path):
    curves = {}
    for kind in ("float", "int8"):
        rows: list[float] = []
        config = RunConfig(
            model=MODEL,
            pretrain=PretrainConfig(total_steps=30, gate_steps=0, products=kind, compile="off"),
            hardware=HardwareConfig(cpu_threads=1, n_gpus=1),
        )
        summary = pretrain(
            config, RustBytes(), tmp_path / kind,
            log=lambda step, values, rows=rows: rows.append(values.get(str(Metric.LOSS))),
        )  # fmt: skip
        assert summary["products"] == kind
        curves[kind] = [value for value in rows if value is not None]
    assert curves["float"][-1] < curves["float"][0] - 2
    assert curves["int8"] == pytest.approx(curves["float"], abs=0.1)


def test_auto_finds_out_which_is_faster_here():
    config = ModelConfig(d_model=2048, d_ff=5632, n_heads=32, n_kv_heads=16, n_layers=1)
    gain = execution.int8_gain(config, 8192, torch.device("cuda"))
    plan = PretrainConfig(batch_size=32, micro_batch_size=32)
    chosen = execution.choose_products(plan, LoopLM(config).cuda(), torch.bfloat16)
    assert abs(gain - 1) < 0.1 or chosen == ("int8" if gain > 1 else "float")


def test_torch_finds_the_operators_sound():
    x, other = torch.randn(40, 96).cuda(), torch.rand(96).cuda()
    codes, scale = operators.rows_to_int8(x, other, operators.NORM, 1e-5)
    once = ours.ternary(torch.randn(64, 96).cuda())
    rows, product = torch.ops.nanochat.rows_to_int8, torch.ops.nanochat.int8_product
    torch.library.opcheck(rows.default, (x, other, operators.NORM, 1e-5))
    arguments = (codes, once.codes, scale, once.scale, torch.bfloat16)
    torch.library.opcheck(product.default, arguments)
