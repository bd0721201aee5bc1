"""What in a profile does not fit, or contradicts itself or the machine, and what would.

Each rule is a function of (config, plan, machine) that returns findings with their figures. The
brief's own numbers are kept in the profiles; these rules are how their contradictions come to
light instead of being copied into a report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat_lib.config import HardwareConfig, RunConfig
from nanochat_lib.hardware.detect import Machine
from nanochat_lib.hardware.devices import cpu_facts, gpu_facts, kernels_of
from nanochat_lib.hardware.memory import least_memory

if TYPE_CHECKING:
    from nanochat_lib.hardware.planner import Plan

TIME_TOLERANCE = 1.25  # a plan this much longer or shorter than stated is a finding
ADAMW_BYTES = 16  # fp32 weight, gradient and two moments
EIGHT_BIT_BYTES = 6.06  # bf16 weight and gradient, stochastic rounding, 8-bit Adam


@dataclass(frozen=True)
class Finding:
    """One contradiction: a key to test and link, and a sentence with figures and a way out."""

    key: str
    text: str


def find_all(config: RunConfig, plan: Plan, machine: Machine) -> tuple[Finding, ...]:
    """Return every finding of every rule, in a fixed order."""
    return tuple(found for rule in RULES for found in rule(config, plan, machine))


def _time(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    days, stated = plan.days_at_target_rate, config.targets.training_days
    if not days or not stated or 1 / TIME_TOLERANCE < days / stated < TIME_TOLERANCE:
        return []
    train, rate = config.pretrain, config.targets.tokens_per_s
    per_step = train.batch_size * train.seq_len
    steps = int(stated * 86_400 * rate / per_step)
    return [
        Finding(
            "training_days",
            f"{train.total_steps:,} steps x {train.batch_size} x {train.seq_len} are "
            f"{plan.tokens / 1e9:.1f} G tokens: at {rate:,.0f} tokens/s {days:.1f} days, not the "
            f"stated {stated:g}. In {stated:g} days {steps:,} steps fit.",
        )
    ]


def _size(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    stated = config.targets.parameters_b
    stored, executed = plan.parameters.stored / 1e9, plan.parameters.executed / 1e9
    if not stated or 0.9 < stored / stated < 1.1:
        return []
    matches = "which is about" if 0.85 < executed / stated < 1.25 else "which is not"
    return [
        Finding(
            "parameters",
            f"The model stores {stored:.2f} G parameters, not the stated {stated:g} B; over "
            f"{config.model.n_loops} loops it executes {executed:.2f} G, {matches} that figure. "
            f"The stated size can only mean the executed count.",
        )
    ]


def _compute(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    targets, hardware = config.targets, config.hardware
    facts = gpu_facts(hardware.gpu_model)
    if not (targets.tokens_per_s and facts):
        return []
    peak = facts.bf16_tflops * plan.processes
    found = []
    if plan.required_tflops and plan.required_tflops > 0.5 * peak:
        found.append(
            Finding(
                "compute",
                f"{targets.tokens_per_s:,.0f} tokens/s of this model need "
                f"{plan.required_tflops:.0f} TFLOP/s, {plan.required_tflops / peak:.0%} of the "
                f"{peak:.0f} bf16 TFLOP/s there are; about half is what training reaches: plan on "
                f"{0.5 * peak * 1e12 / plan.train_flops_per_token:,.0f} tokens/s.",
            )
        )
    if targets.parameters_b:
        loops = config.model.n_loops
        need = 6 * targets.parameters_b * 1e9 * loops * targets.tokens_per_s / 1e12
        if need > peak:
            found.append(
                Finding(
                    "compute_if_stored",
                    f"{targets.parameters_b:g} G stored parameters x {loops} loops at "
                    f"{targets.tokens_per_s:,.0f} tokens/s would need {need:.0f} TFLOP/s; "
                    f"{plan.processes} x {hardware.gpu_model} have about {peak:.0f} in bf16.",
                )
            )
    return found


def _cpu(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    hardware, facts = config.hardware, cpu_facts(config.hardware.cpu_model)
    wanted = hardware.preferred_kernel
    if facts is None or wanted in ("auto", "CUDA", *facts.kernels):
        return []
    return [
        Finding(
            "cpu_kernel",
            f"{hardware.cpu_model} is {facts.architecture} and has no {wanted}; its best kernel "
            f"is {facts.kernels[-1]}. The machine's own features decide what runs.",
        )
    ]


def _memory(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    total, limit = sum(plan.memory_gb.values()), plan.memory_limit_gb
    found = []
    if limit and total > limit:
        largest = max(plan.memory_gb, key=plan.memory_gb.__getitem__)
        least, settings = least_memory(config, plan.parameters)
        fits = "fits" if least <= limit else "does not fit either: take a smaller model"
        found.append(
            Finding(
                "memory",
                f"A training step needs {total:.1f} GB on one {plan.memory_device}, there are "
                f"{limit:.0f}; the largest part is {largest} ({plan.memory_gb[largest]:.1f} GB). "
                f"With {settings or 'these settings, which need least,'} it needs {least:.1f} GB, "
                f"which {fits}. Several GPUs share batches, not layers.",
            )
        )
    stated, gpu = config.targets.parameters_b, config.hardware.gpu_memory_gb
    if stated and gpu and stated * ADAMW_BYTES > gpu:  # each GPU holds the whole model
        found.append(
            Finding(
                "memory_if_stored",
                f"AdamW in fp32 for {stated:g} G stored parameters is "
                f"{stated * ADAMW_BYTES:.0f} GB of state against "
                f"{config.hardware.n_gpus} x {gpu:g} GB of GPU memory, each of which would hold "
                f"all of it; with 8-bit Adam {stated * EIGHT_BIT_BYTES:.0f} GB.",
            )
        )
    return found


def _logits(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    model, train = config.model, config.pretrain
    positions = train.micro_batch_size * train.seq_len
    naive = positions * model.vocab_size * model.n_loops * 4 * 2 / 1e9
    if naive < 4:
        return []
    return [
        Finding(
            "logits",
            f"The logits of all {model.n_loops} exits at once would take {naive:.1f} GB; the loss "
            f"is computed in chunks, which takes {plan.memory_gb['logits']:.2f} GB.",
        )
    ]


def _machine(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    """Say where the machine differs from the profile; the machine decides."""
    hardware, differences = config.hardware, []
    if machine.cores < hardware.cpu_threads:
        differences.append(f"{machine.cores} CPU threads, not {hardware.cpu_threads}")
    if machine.memory_gb < 0.9 * hardware.cpu_memory_gb:
        differences.append(f"{machine.memory_gb:.0f} GB memory, not {hardware.cpu_memory_gb:.0f}")
    if machine.numa_nodes < hardware.numa_nodes:
        differences.append(f"{machine.numa_nodes} NUMA nodes, not {hardware.numa_nodes}")
    if len(machine.gpus) < hardware.n_gpus:
        there = ", ".join(gpu.name for gpu in machine.gpus) or "no GPU"
        differences.append(f"{there}, not {hardware.n_gpus} x {hardware.gpu_model}")
    wanted = hardware.preferred_kernel
    if wanted not in ("auto", "CUDA", *kernels_of(machine.cpu_features)):
        differences.append(f"no {wanted}: {', '.join(machine.cpu_features) or 'no SIMD found'}")
    if not differences:
        return []
    return [Finding("machine", f"This machine ({machine.cpu}) has " + "; ".join(differences) + ".")]


# Preferences that a profile may state and that nothing acts on yet: said, so that nobody waits for
# an effect. A name leaves this list in the commit that makes it work.
WITHOUT_EFFECT = ("tensor_parallel", "use_openmp", "openmp_threads")


def _preferences(config: RunConfig, plan: Plan, machine: Machine) -> list[Finding]:
    """Name the preferences of the profile that this version keeps but does not act on."""
    stated, defaults = config.hardware, HardwareConfig()
    kept = [name for name in WITHOUT_EFFECT if getattr(stated, name) != getattr(defaults, name)]
    if not kept:
        return []
    listed = ", ".join(f"{name} = {getattr(stated, name)}" for name in kept)
    text = f"Kept in the profile, but without effect in this version: {listed}."
    if stated.tensor_parallel:
        text += (
            f" Instead of splitting layers, {plan.processes} processes train, one for each GPU, on "
            "equal shares of every batch (hardware.train_processes), each with the whole model."
        )
    return [Finding("preferences", text)]


Rule = Callable[[RunConfig, "Plan", Machine], list[Finding]]
RULES: tuple[Rule, ...] = (_time, _size, _compute, _cpu, _memory, _logits, _machine, _preferences)
