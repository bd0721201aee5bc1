"""The machine that a profile is written for, and the brief's targets for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanochat_lib.settings.base import StageConfig


class HardwareConfig(StageConfig):
    """The machine a profile is written for: preferences; what runs is decided by detection."""

    cpu_model: str = Field("", description="processor name, for the planner's feature check")
    cpu_threads: int = Field(2, ge=1, description="CPU threads used by kernels and workers")
    cpu_memory_gb: float = Field(8.0, gt=0, description="main memory in GB")
    numa_aware: bool = Field(False, description="place weights on the node that reads them")
    numa_nodes: int = Field(1, ge=1, description="NUMA nodes expected")
    use_openmp: bool = Field(True, description="OpenMP threading layer for CPU kernels")
    openmp_threads: int = Field(0, ge=0, description="OpenMP threads; 0: cpu_threads")
    preferred_kernel: Literal["auto", "generic", "AVX2", "AVX512", "CUDA"] = Field(
        "auto",
        description="most that CPU kernels use of the instructions that are here; CUDA: as auto, "
        "for decode_device tries a GPU first by itself",
    )
    decode_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what generates text; auto: a GPU that agrees with the CPU, else that"
    )
    gpu_model: str = Field("", description="GPU name; empty: none")
    n_gpus: int = Field(0, ge=0, description="number of GPUs")
    train_processes: int = Field(
        0,
        ge=0,
        description="processes that share every batch; 0: one for each GPU there is; on a CPU one",
    )
    gpu_memory_gb: float = Field(0.0, ge=0, description="memory of one GPU in GB")
    tensor_parallel: bool = Field(
        False, description="split each layer over the GPUs (no effect: they share batches)"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share a layer")
    cuda_math_mode: Literal["default", "fast"] = Field(
        "default", description="fast allows TF32 and reduced-precision accumulation"
    )
    loader_workers: int = Field(
        0, ge=0, description="processes that prepare training batches; 0: the trainer itself"
    )
    prefetch_factor: int = Field(2, ge=1, description="batches prepared ahead per loader worker")
    pin_memory: bool = Field(False, description="page-locked host batches (GPU only)")


class TargetsConfig(StageConfig):
    """The brief's targets for this machine: drawn as targets, never as results. None: not set."""

    parameters_b: float | None = Field(None, gt=0, description="model size in 1e9 parameters")
    compile_rate: float | None = Field(None, ge=0, le=1, description="compile rate above this")
    semantic_score: float | None = Field(None, ge=0, le=1, description="semantic score above this")
    pass_at_1: float | None = Field(None, ge=0, le=1, description="HumanEval-Rust pass@1 above")
    loss: float | None = Field(None, gt=0, description="final loss in nats below this")
    tokens_per_s: float | None = Field(None, gt=0, description="training tokens per second")
    training_days: float | None = Field(None, gt=0, description="days of pre-training")
    context_length: int | None = Field(None, gt=0, description="longest context in tokens")
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory used on each GPU in GB")
    cpu_memory_gb: float | None = Field(None, gt=0, description="main memory used in GB")
    bits_per_byte: float | None = Field(None, gt=0, description="held-out bits per byte below")
