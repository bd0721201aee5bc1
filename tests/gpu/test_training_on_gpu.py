"""On a GPU: training's Triton products equal the same arithmetic in torch on the CPU."""

from __future__ import annotations

import pytest
import torch

from kernels.cuda.driver import why_unavailable
from kernels.training import linear as ours
from kernels.training import operators

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
