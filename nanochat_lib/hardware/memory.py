"""How much memory a training step needs on one device, by arithmetic.

In: a configuration and the model's number of parameters. Out: GB by part. The counts of bytes were
read off running models, tensor by tensor; tests compare them again.

L layers, R loops, D d_model, F d_ff, V vocabulary, T positions.
"""

from __future__ import annotations

from operator import mul
from typing import TYPE_CHECKING

from nanochat_lib.config import RunConfig

if TYPE_CHECKING:  # planner.py imports this module
    from nanochat_lib.hardware.planner import ParameterCount

LOGITS_CHUNK_TOKENS = 4096  # positions whose logits exist at once in the chunked loss
# Of a matrix's parameter during a step: as it multiplies, and its gradient summed over the loops.
PRODUCT_BYTES = {"float32": 4 + 4, "bfloat16": 2 + 2, "int8": 2 + 4}
# fp32 values (D, F) that a layer in one loop keeps for its backward pass, at a position; and those
# that exist at once while that runs.
KEPT_VALUES = {
    ("float", "float32"): (10, 4), ("float", "bfloat16"): (8.5, 2),
    ("int8", "float32"): (6.9, 2.25), ("int8", "bfloat16"): (4.9, 1.25),
}  # fmt: skip
INT8_WORKING_VALUES = (4.5, 9.8)
OPTIMIZER_BYTES = {"muon": 4.0, "adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256)}  # of matrices


def training_memory_gb(config: RunConfig, parameters: ParameterCount) -> dict[str, float]:
    """Return the memory of a training step by part, in GB on one device.

    fp32 weights and gradients; AdamW keeps two fp32 values a parameter, in 8 bits two bytes, Muon
    one fp32 value for matrices. Products as `PRODUCT_BYTES` says, activations as `activation_bytes`
    does; logits of one chunk of the loss, forward and backward.
    """
    model, train = config.model, config.pretrain
    positions = _positions(config)
    of_matrix = OPTIMIZER_BYTES[train.optimizer]
    of_table = OPTIMIZER_BYTES["adamw" if train.optimizer == "muon" else train.optimizer]
    optimizer = parameters.layers * of_matrix + parameters.other * of_table
    kept, working_set = activation_bytes(config)
    logits = min(positions, LOGITS_CHUNK_TOKENS) * model.vocab_size * 4 * 2
    products, dtype = _products(config)
    parts = {
        "weights": parameters.stored * 4,
        "products": parameters.layers * PRODUCT_BYTES[products if products == "int8" else dtype],
        "gradients": parameters.stored * 4,
        "optimizer": optimizer,
        "activations": kept + working_set,
        "logits": logits,
    }
    copies = 1 if config.hardware.n_gpus else planned_processes(config)  # in one main memory
    return {part: copies * n_bytes / 1e9 for part, n_bytes in parts.items()}


def activation_bytes(config: RunConfig) -> tuple[float, float]:
    """Return the bytes of activations kept for the whole backward pass, and of one layer's.

    A layer in one loop keeps `KEPT_VALUES` (counted in a running model; a test compares). With
    checkpoints only the layer that is recomputed does; kept is the residual stream, in fp32, before
    every layer in every loop, or before every loop and the layers of one. The exits' states and
    their gradients remain.
    """
    model, train = config.model, config.pretrain
    positions, stream = _positions(config), model.d_model * 4
    products, dtype = _products(config)
    widths = (4 * model.d_model, 4 * model.d_ff)
    layer = working = sum(map(mul, KEPT_VALUES[products, dtype], widths))
    if products == "int8":
        working = sum(map(mul, INT8_WORKING_VALUES, widths))
    n_layers, n_loops = model.n_layers, model.n_loops
    kept = {
        "none": (n_layers * n_loops - 1) * layer,
        "layer": n_layers * n_loops * stream,
        "loop": (n_layers + n_loops) * stream,
    }[train.activation_checkpointing]
    return positions * (kept + 2 * n_loops * stream), positions * working


def _products(config: RunConfig) -> tuple[str, str]:
    """Return how layers multiply, "float" or "int8", and in which type; "auto" before it is known.

    Whether int8 pays is timed on the GPU: until then it is planned as float.
    """
    train = config.pretrain
    is_half = train.dtype == "bfloat16" or (train.dtype == "auto" and config.hardware.n_gpus > 0)
    return "int8" if train.products == "int8" else "float", "bfloat16" if is_half else "float32"


def _positions(config: RunConfig) -> int:
    """Return the tokens that one process takes at once: at most its share of the batch."""
    train = config.pretrain
    share = train.batch_size // planned_processes(config)
    return min(train.micro_batch_size, share) * train.seq_len


def least_memory(config: RunConfig, parameters: ParameterCount) -> tuple[float, str]:
    """Return the GB of the same model with the settings that need least, and those settings."""
    least = {"optimizer": "adamw_8bit", "activation_checkpointing": "loop", "micro_batch_size": 1}
    changes = {k: v for k, v in least.items() if getattr(config.pretrain, k) != v}
    pretrain = config.pretrain.model_copy(update=changes)
    smaller = config.model_copy(update={"pretrain": pretrain})
    settings = ", ".join(f"pretrain.{name}={value}" for name, value in changes.items())
    return sum(training_memory_gb(smaller, parameters).values()), settings


def planned_processes(config: RunConfig) -> int:
    """Return how many processes train on the profile's machine: one for each GPU, as many as fit.

    A batch is shared evenly, so their number divides `batch_size`.
    """
    most = config.hardware.train_processes or max(config.hardware.n_gpus, 1)
    return next(n for n in range(most, 0, -1) if config.pretrain.batch_size % n == 0)
