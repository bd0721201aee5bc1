"""What is known of processors and GPUs that profiles name: features, peak rates, memory.

Figures are the vendors' dense (not sparse) peaks; a planner divides by them, it never promises
them. An unknown device gives None, and the plan says so instead of guessing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    """Dense bf16 peak in TFLOP/s, memory in GB, memory bandwidth in GB/s."""

    bf16_tflops: float
    memory_gb: float
    bandwidth_gb_s: float


@dataclass(frozen=True)
class CpuFacts:
    """Microarchitecture and the kernel levels it can run."""

    architecture: str
    kernels: tuple[str, ...]


GPUS = {
    "RTX 4090": GpuFacts(165.2, 24.0, 1008.0),
    "RTX PRO 6000 Blackwell": GpuFacts(503.8, 96.0, 1792.0),
    "H100": GpuFacts(989.4, 80.0, 3350.0),
    "H200": GpuFacts(989.4, 141.0, 4800.0),
    "A100": GpuFacts(312.0, 80.0, 2039.0),
}
_ZEN2 = CpuFacts("Zen 2", ("generic", "AVX2"))
_ZEN3 = CpuFacts("Zen 3", ("generic", "AVX2"))
_ZEN5 = CpuFacts("Zen 5", ("generic", "AVX2", "AVX512"))
CPUS = {"3995WX": _ZEN2, "9800X3D": _ZEN5, "Zen 3": _ZEN3}


def gpu_facts(name: str) -> GpuFacts | None:
    """Return what is known of a GPU whose name contains a known one."""
    return next((facts for known, facts in GPUS.items() if known.lower() in name.lower()), None)


def cpu_facts(name: str) -> CpuFacts | None:
    """Return what is known of a processor whose name contains a known one."""
    return next((facts for known, facts in CPUS.items() if known.lower() in name.lower()), None)


def kernels_of(features: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kernel levels that detected CPU features allow."""
    levels = ["generic"]
    if "avx2" in features:
        levels.append("AVX2")
    if "avx512f" in features and "avx512vnni" in features:
        levels.append("AVX512")
    return tuple(levels)
