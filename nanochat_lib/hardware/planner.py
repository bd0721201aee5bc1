"""The plan of a profile: parameters, time and memory by arithmetic, and what does not add up.

In: a `RunConfig` and the machine that is there. Out: a `Plan`, shown by `nanochat plan`, the
`00_plan` notebook and the report. Nothing is measured here: rates are the profile's targets,
peaks come from `devices.py`, and every finding states the figures it was computed from.

P stored parameters, L layers, R loops, D d_model, F d_ff, V vocabulary, T positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from operator import mul
from typing import Any

from nanochat_lib.config import ModelConfig, RunConfig
from nanochat_lib.hardware.detect import Machine, detect_machine
from nanochat_lib.hardware.findings import Finding, find_all

SECONDS_PER_DAY = 86_400
LOGITS_CHUNK_TOKENS = 4096  # positions whose logits exist at once in the chunked loss
# FLOPs a step computes for each FLOP of the model: checkpoints recompute the forward pass once, and
# nested ones twice.
RECOMPUTE = {"none": 1.0, "layer": 8 / 6, "loop": 10 / 6}
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


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a LoopLM: matrices of the shared layers, the rest, stored, executed."""

    layers: int
    other: int
    n_loops: int

    @property
    def stored(self) -> int:
        """Return parameters on disk: the shared layers once."""
        return self.layers + self.other

    @property
    def executed(self) -> int:
        """Return the effective count: the shared layers once per loop."""
        return self.layers * self.n_loops + self.other


@dataclass(frozen=True)
class Plan:
    """What a profile asks for. Memory in GB (1e9 bytes) on one device.

    Each of the processes that train together holds the whole model on a device of its own.
    """

    profile: str
    parameters: ParameterCount
    train_flops_per_token: float
    tokens: int
    days_at_target_rate: float | None
    required_tflops: float | None
    memory_gb: dict[str, float]
    memory_limit_gb: float
    memory_device: str
    processes: int
    findings: tuple[Finding, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return the plan as quantity and value, for a table."""
        days, tflops = self.days_at_target_rate, self.required_tflops
        summed = [
            _row("processes that share every batch", str(self.processes)),
            _row("gradients they sum each step", f"{self.memory_gb['gradients']:.2f} GB"),
        ]
        return [
            _row("stored parameters", _count(self.parameters.stored)),
            _row("executed parameters (stored layers x loops)", _count(self.parameters.executed)),
            _row("training FLOPs per token", f"{self.train_flops_per_token:.3g}"),
            _row("tokens the step count asks for", _count(self.tokens)),
            _row("days at the profile's rate", "no rate given" if days is None else f"{days:.1f}"),
            _row("TFLOP/s that rate needs", "no rate given" if tflops is None else f"{tflops:.0f}"),
            _row(f"memory on one {self.memory_device}", f"{sum(self.memory_gb.values()):.2f} GB"),
            _row("memory there is", f"{self.memory_limit_gb:.1f} GB"),
            *(summed if self.processes > 1 else []),
        ]

    def memory_rows(self) -> list[dict[str, Any]]:
        """Return one row per part of the training memory, in GB."""
        return [{"part": part, "gb": round(gb, 3)} for part, gb in self.memory_gb.items()]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self) | {
            "parameters": {"stored": self.parameters.stored, "executed": self.parameters.executed}
        }


def make_plan(config: RunConfig, machine: Machine | None = None) -> Plan:
    """Compute the plan of a profile; `machine` defaults to the one this runs on."""
    machine = machine or detect_machine()
    parameters = count_parameters(config.model)
    tokens = config.pretrain.total_steps * config.pretrain.batch_size * config.pretrain.seq_len
    flops = train_flops_per_token(config.model, config.pretrain.seq_len)
    rate, again = config.targets.tokens_per_s, RECOMPUTE[config.pretrain.activation_checkpointing]
    has_gpu = config.hardware.n_gpus > 0
    plan = Plan(
        profile=config.profile,
        parameters=parameters,
        train_flops_per_token=flops,
        tokens=tokens,
        days_at_target_rate=tokens / rate / SECONDS_PER_DAY if rate else None,
        required_tflops=again * flops * rate / 1e12 if rate else None,
        memory_gb=training_memory_gb(config, parameters),
        memory_limit_gb=config.hardware.gpu_memory_gb if has_gpu else machine.memory_gb,
        memory_device="GPU" if has_gpu else "machine",
        processes=planned_processes(config),
    )
    return Plan(**{**plan.__dict__, "findings": find_all(config, plan, machine)})


def planned_processes(config: RunConfig) -> int:
    """Return how many processes train on the profile's machine: one for each GPU, as many as fit.

    A batch is shared evenly, so their number divides `batch_size`.
    """
    most = config.hardware.train_processes or max(config.hardware.n_gpus, 1)
    return next(n for n in range(most, 0, -1) if config.pretrain.batch_size % n == 0)


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Count the parameters of a LoopLM, norms and exit gate included."""
    kv_width = model.n_kv_heads * model.head_size
    attention = 2 * model.d_model**2 + 2 * model.d_model * kv_width
    feed_forward = 3 * model.d_model * model.d_ff
    norms = 2 * model.d_model * (1 + model.sandwich_norm)
    norms += (model.d_model + model.d_ff) * model.sub_norm
    layer = attention + feed_forward + norms
    other = 2 * model.vocab_size * model.d_model + model.d_model + (model.d_model + 1)
    other += model.d_model * (model.input_injection + model.n_loops * model.loop_gates)
    return ParameterCount(model.n_layers * layer, other, model.n_loops)


def train_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Return FLOPs per trained token: 6 per executed weight, and attention over T/2 keys.

    Every loop ends in an exit with its own logits, so the head counts once per loop.
    """
    layers = count_parameters(model).layers
    heads = model.vocab_size * model.d_model
    attention = model.n_layers * seq_len * model.d_model  # QK' and AV: 2 * 2 * (T/2) * D / 2
    return 6.0 * model.n_loops * (layers + heads + attention)


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


def _row(quantity: str, value: str) -> dict[str, Any]:
    return {"quantity": quantity, "value": value}


def _count(n: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)
