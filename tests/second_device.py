"""A device that is not the CPU, made of CPU tensors: finds what a GPU would refuse, without one.

Its tensors compute what CPU tensors do. As on a GPU, an operation of tensors on both devices is an
error, and so is `.numpy()`. What only CUDA has (streams, graphs, Triton, its kernels) it has not.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "second"
# A GPU takes positions from the CPU where it indexes, and copies are how one crosses over.
CROSSING = ("aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put_")


# A bit of the tensor stands for these, which nothing looks at below a dispatch in Python.
EAGER = {
    torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default,
    torch.ops.aten._neg_view.default: torch.ops.aten.neg.default,
}
_KEPT: list[torch.library.Library] = []  # what they register ends with them


@cache
def second_device() -> torch.device:
    """Return the device, which torch knows from the first call on."""
    module = types.ModuleType(f"torch.{NAME}")
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, module)
    _let_autocast_work()
    return torch.device(NAME, 0)


def _let_autocast_work() -> None:
    """Cast what products take, as CUDA does; all other operations take what comes."""
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    products = torch.library.Library("aten", "IMPL")
    for name in ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention"):
        products.impl(name, _casting(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    _KEPT.extend((rest, products))


def _casting(op: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        wanted = torch.get_autocast_dtype(NAME)

        def cast(one: torch.Tensor) -> torch.Tensor:
            return one.to(wanted) if one.dtype == torch.float32 else one

        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
            return op(*args, **kwargs)

    return call


class OnDevice(torch.Tensor):
    """A tensor of the second device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=second_device(), requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """Return the numbers; torch refuses that to tensors that are not its own."""
        return self.inner.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, kinds: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(op, args, kwargs or {})


class Devices(TorchDispatchMode):
    """While entered, tensors can be made on the second device and moved there and back."""

    def __torch_dispatch__(
        self, op: Any, kinds: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(op, args, kwargs or {})


def _compute(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers, and say on which device the results are."""
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    mine = [one for one in given if isinstance(one, OnDevice)]
    name = op._schema.name + (f".{op._overloadname}" if op._overloadname != "default" else "")
    if mine and not name.startswith(CROSSING):
        others = [one for one in given if not isinstance(one, OnDevice) and one.dim()]
        if others:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name} got {NAME} and cpu"
            )
    wanted = kwargs.get("device")
    if wanted is not None:
        is_mine = torch.device(wanted).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")} if is_mine else kwargs
    else:
        is_mine = isinstance(args[0], OnDevice) if args and name in CROSSING else bool(mine)
    inner_args = tree_map_only(OnDevice, lambda one: one.inner, args)
    inner_kwargs = tree_map_only(OnDevice, lambda one: one.inner, kwargs)
    found = EAGER.get(op, op)(*inner_args, **inner_kwargs)
    same = {id(one.inner): one for one in mine}

    def wrap(one: torch.Tensor) -> torch.Tensor:
        if id(one) in same:
            return same[id(one)]
        return OnDevice(one) if is_mine else one

    if "item" in name or "_local_scalar_dense" in name:
        return found
    return tree_map_only(torch.Tensor, wrap, found)
