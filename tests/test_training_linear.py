"""Training's int8 products: against the straight-through layers of model/ternary.py in torch,
in Triton's interpreter (a process of its own), and as machine code for GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kernels.training.linear import linear, norm_linear, swiglu_linear, ternary
from nanochat_lib.model.ternary import quantize_activations, ternary_weight

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (cuda-check)")


def tensors(seed: int = 0):
    torch.manual_seed(seed)
    x, up = torch.randn(3, 20, 96), torch.randn(3, 20, 96)
    weight, norm = torch.randn(64, 96) * 0.1, torch.rand(96) + 0.5
    return [t.requires_grad_() for t in (x, up, weight, norm)]


def ours(kind, x, up, weight, norm, exact):
    options = {"int8_backward": not exact}
    if kind == "norm":
        return norm_linear(x, norm, 1e-5, [ternary(weight)], **options)[0]
    if kind == "swiglu":
        return swiglu_linear(x, up, [ternary(weight)], **options)[0]
    return linear(x, [ternary(weight)], **options)[0]


def theirs(kind, x, up, weight, norm):
    """What a layer of looplm.py computes."""
    if kind == "norm":
        x = F.rms_norm(x, (96,), norm, 1e-5)
    if kind == "swiglu":
        x = F.silu(x) * up
    return F.linear(quantize_activations(x), ternary_weight(weight))


@pytest.mark.parametrize("kind", ["plain", "norm", "swiglu"])
@pytest.mark.parametrize("exact", [True, False])
def test_forward_and_gradients_are_those_of_the_layers(kind, exact):
    """Exact backward agrees to rounding; in int8 gradients to the inputs are within 1.5 %."""
    ours_in, theirs_in = tensors(), tensors()
    found, wanted = ours(kind, *ours_in, exact), theirs(kind, *theirs_in)
    assert relative(found, wanted) < 1e-5
    direction = torch.randn_like(wanted)
    (found * direction).sum().backward()
    (wanted * direction).sum().backward()
    for name, one, other in zip(("x", "up", "weight", "norm"), ours_in, theirs_in, strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            limit = 1e-5 if exact or name == "weight" else 1.5e-2
            assert relative(one.grad, other.grad) < limit, name


def relative(found, wanted) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def test_several_weights_share_the_quantised_rows():
    x, _, weight, norm = tensors()
    other = torch.randn(10, 96).requires_grad_()
    both = norm_linear(x, norm, 1e-5, [ternary(weight), ternary(other)])
    (alone,) = norm_linear(x, norm, 1e-5, [ternary(other)])
    assert torch.equal(both[1], alone)
    assert [y.shape for y in both] == [(3, 20, 64), (3, 20, 10)]


def test_a_weight_of_another_width_is_refused():
    with pytest.raises(ValueError, match="x has 5 inputs"):
        linear(torch.ones(2, 5), [ternary(torch.ones(3, 6))])


@needs_triton
def test_the_kernels_in_the_interpreter():
    checks = Path(__file__).with_name("triton_interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


COMPILE = """
import sys, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.training import triton_kernels as ours
from kernels.training.operators import tile_sizes

def compiled(arch, name):
    options = {}
    if name == "int8_product":
        sizes = tile_sizes(4096, 4096, arch)
        options = {option: sizes.pop(option) for option in ("num_warps", "num_stages")}
        types = dict(a="*i8", b="*i8", a_scale="*fp32", b_scale="*fp32", out="*bf16",
                     M="i32", N="i32", K="i32")
        constants = sizes | {"SCALED": True}
    else:
        types = dict(x="*bf16", other="*bf16", codes="*i8", act_scale="*fp32", n="i32",
                     stride="i32", eps="fp32")
        constants = {"KIND": 1, "BLOCK": 4096}
    signature = types | {constant: "constexpr" for constant in constants}
    divisible = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values())
                 if kind[0] == "*" or kind == "i32"}
    source = ASTSource(getattr(ours, name), signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

for arch in map(int, sys.argv[2:]):
    for name in ("int8_product", "rows_to_int8"):
        found = compiled(arch, name)
        path = Path(sys.argv[1]) / f"{name}_{arch}_{found.metadata.shared}.cubin"
        path.write_bytes(found.asm["cubin"])
"""
SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@needs_triton
def test_kernels_compile_for_gpus_and_use_integer_tensor_cores(tmp_path):
    command = [sys.executable, "-c", COMPILE, str(tmp_path), *map(str, SHARED_KB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    found = list(tmp_path.iterdir())
    assert len(found) == 2 * len(SHARED_KB)
    for path in found:
        arch, shared = map(int, path.stem.split("_")[-2:])
        code = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
        assert "LDL" not in code, path.stem
        assert "STL" not in code, path.stem
        assert shared <= SHARED_KB[arch] << 10, path.stem
        if path.stem.startswith("int8_product"):
            assert "IGMMA" in code if arch == 90 else "IMMA" in code, path.stem
            assert "HMMA" not in code, path.stem
