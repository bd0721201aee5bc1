"""AdamW with 8-bit moments (torchao), and its state as flat tensors for checkpoints.

A moment of 4,096 values or more is held as one byte each with a float32 scale for every 256, 2.03
bytes for a parameter's two instead of 8. torchao compiles the update, which takes a C++ compiler.

Source: block-wise 8-bit optimisers, arXiv 2110.02861; torchao.optim.AdamW8bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat_lib.errors import WorkbenchError

BYTES_PER_PARAMETER = 2 * (1 + 4 / 256)
PARTS = ("codes", "scale", "qmap")


def adamw_8bit(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Return torchao's optimiser.

    Raises:
        WorkbenchError: torchao is not installed, or there is no C++ compiler for its update.
    """
    from nanochat_lib.train.execution import find_cxx

    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise WorkbenchError(
            'pretrain.optimizer = "adamw_8bit" needs torchao, which is not installed: '
            "pip install 'nanochat-rs-ternary[adam8]', or choose muon or adamw."
        ) from error
    if not find_cxx():
        raise WorkbenchError(
            'pretrain.optimizer = "adamw_8bit" compiles its update and found no C++ compiler. '
            "Install g++ or clang++, or choose muon or adamw."
        )
    return AdamW8bit(groups, lr=lr, betas=betas)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group; torchao holds it in a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def flat_entry(entry: dict[str, Any]) -> dict[str, Tensor]:
    """Return one parameter's state as plain tensors; 8-bit moments become `<name>.codes` etc."""
    flat = {}
    for name, value in entry.items():
        if hasattr(value, "qmap"):
            flat |= {f"{name}.{part}": getattr(value, part) for part in PARTS}
        else:
            flat[name] = value
    return flat


def whole_entry(flat: dict[str, Tensor]) -> dict[str, Any]:
    """Undo `flat_entry`; the second moment is unsigned."""
    entry = {name: value for name, value in flat.items() if "." not in name}
    moments = {name.split(".")[0] for name in flat if "." in name}
    if not moments:
        return entry
    from torchao.optim.subclass_8bit import OptimState8bit

    for name in moments:
        parts = [flat[f"{name}.{part}"] for part in PARTS]
        entry[name] = OptimState8bit(*parts, name == "exp_avg", torch.float32)
    return entry
