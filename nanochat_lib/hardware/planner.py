"""The plan of a profile: parameters, time and memory by arithmetic, and what does not add up.

In: a `RunConfig` and the machine that is there. Out: a `Plan`, shown by `nanochat plan`, the
`00_plan` notebook and the report. Nothing is measured here: rates are the profile's targets,
peaks come from `devices.py`, and every finding states the figures it was computed from.

P stored parameters, L layers, R loops, D d_model, F d_ff, V vocabulary, T positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nanochat_lib.config import ModelConfig, RunConfig
from nanochat_lib.hardware.detect import Machine, detect_machine
from nanochat_lib.hardware.findings import Finding, find_all
from nanochat_lib.hardware.memory import planned_processes, training_memory_gb

SECONDS_PER_DAY = 86_400
# FLOPs a step computes for each FLOP of the model: checkpoints recompute the forward pass once, and
# nested ones twice.
RECOMPUTE = {"none": 1.0, "layer": 8 / 6, "loop": 10 / 6}


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
        summed = f"{self.memory_gb['gradients']:.2f} GB" if self.processes > 1 else "none"
        return [
            _row("stored parameters", _count(self.parameters.stored)),
            _row("executed parameters (stored layers x loops)", _count(self.parameters.executed)),
            _row("training FLOPs per token", f"{self.train_flops_per_token:.3g}"),
            _row("tokens the step count asks for", _count(self.tokens)),
            _row("days at the profile's rate", "no rate given" if days is None else f"{days:.1f}"),
            _row("TFLOP/s that rate needs", "no rate given" if tflops is None else f"{tflops:.0f}"),
            _row(f"memory on one {self.memory_device}", f"{sum(self.memory_gb.values()):.2f} GB"),
            _row("memory there is", f"{self.memory_limit_gb:.1f} GB"),
            _row("processes that share every batch", str(self.processes)),
            _row("gradients they sum each step", summed),
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


def _row(quantity: str, value: str) -> dict[str, Any]:
    return {"quantity": quantity, "value": value}


def _count(n: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)
