"""The torch operator: equal to the kernels, sound to torch's own checks, and refusals."""

import numpy as np
import pytest
import torch

import kernels
from kernels import torch_op
from kernels.torch_op import ternary_linear

OP = torch.ops.nanochat.ternary_linear


@pytest.fixture(params=kernels.backends(), autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setattr(torch_op, "_backend", lambda: request.param)
    return request.param


def arguments(n: int = 37, k: int = 100, b: int = 3, packing: str = "2bit"):
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x, scale = rng.standard_normal((b, k)), rng.random(n)
    packed = torch.from_numpy(kernels.pack(codes, packing))
    return torch.tensor(x, dtype=torch.float32), packed, torch.tensor(scale, dtype=torch.float32)


@pytest.mark.parametrize("packing", list(kernels.PACKINGS))
@pytest.mark.parametrize("b", [1, 5, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_operator_returns_what_the_kernel_does(backend, packing, b, threads):
    x, packed, scale = arguments(b=b, packing=packing)
    wanted = kernels.ternary_matmul(
        packed.numpy(), scale.numpy(), x.numpy(), packing=packing, backend=backend
    )
    assert np.array_equal(ternary_linear(x, packed, scale, packing, threads).numpy(), wanted)


def test_leading_axes_strides_and_gradients_do_not_matter():
    x, packed, scale = arguments(b=12)
    wanted = ternary_linear(x, packed, scale)
    assert torch.equal(
        ternary_linear(x.reshape(3, 2, 2, 100), packed, scale).reshape(12, 37), wanted
    )
    assert torch.equal(ternary_linear(x[0], packed, scale), wanted[0])
    assert torch.equal(ternary_linear(x.T.contiguous().T, packed, scale), wanted)
    assert ternary_linear(x[:0], packed, scale).shape == (0, 37)
    with torch.no_grad():
        assert torch.equal(ternary_linear(x.requires_grad_(), packed, scale), wanted)


def test_torch_finds_the_operator_sound():
    x, packed, scale = arguments()
    torch.library.opcheck(OP.default, (x, packed, scale))
    torch.library.opcheck(OP.default, (x[None], packed, scale), {"threads": 2})


def test_operator_is_part_of_a_compiled_graph():
    x, packed, scale = arguments()

    def layer(x):
        return torch.relu(ternary_linear(x, packed, scale)) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("place", "bad", "reason"),
    [
        (0, torch.zeros(3, 100, dtype=torch.float64), "x must be float32"),
        (0, torch.full((3, 100), float("nan")), "NaN or infinity"),
        (0, torch.zeros(3, 120), "packed must be uint8"),
        (1, torch.zeros(3, 7, 64), "packed must be contiguous uint8"),
        (1, torch.zeros(3, 6, 64, dtype=torch.uint8), "packed must be uint8 \\(3, 7, 64\\)"),
        (2, torch.ones(1, 37), "weight_scale must be float32"),
        (2, torch.ones(99), "packed must be uint8 \\(7, 7, 64\\)"),
    ],
)
def test_bad_tensors_are_refused(place, bad, reason):
    tensors = list(arguments())
    tensors[place] = bad
    with pytest.raises(ValueError, match=reason):
        ternary_linear(*tensors)
