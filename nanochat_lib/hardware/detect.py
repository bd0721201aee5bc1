"""Look at the machine that is really there: processor, memory, NUMA nodes, GPUs, tools.

Detection decides what runs; a profile only states preferences. Nothing here imports torch: GPUs are
read from the driver's own tool, so that `nanochat plan` answers at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

KERNEL_FEATURES = ("avx2", "fma", "avx512f", "avx512vnni", "amx-int8", "amx-bf16", "neon")


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: its name and memory in GB (1e9 bytes)."""

    name: str
    memory_gb: float


@dataclass(frozen=True)
class Machine:
    """What was found. Memory in GB (1e9 bytes); `cores` are those this process may use."""

    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    numa_nodes: int
    memory_gb: float
    memory_available_gb: float
    gpus: tuple[Gpu, ...]
    os: str
    has_cxx: bool

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@lru_cache(maxsize=1)
def detect_machine() -> Machine:
    """Return this machine; measured once per process."""
    memory = _memory()
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        cpu_features=_cpu_features(),
        numa_nodes=max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        memory_gb=memory.get("MemTotal", 0.0),
        memory_available_gb=memory.get("MemAvailable", 0.0),
        gpus=_gpus(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        has_cxx=any(shutil.which(name) for name in ("g++", "clang++", "c++")),
    )


def usable_cores() -> int:
    """Count the processors this process may run on, not those that exist (containers, taskset)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpu_features() -> tuple[str, ...]:
    """Ask LLVM, which also decides what numba may compile; a name says nothing about a VM."""
    from llvmlite import binding

    found = binding.get_host_cpu_features()
    return tuple(name for name in KERNEL_FEATURES if found.get(name))


def _memory() -> dict[str, float]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {part[0].rstrip(":"): int(part[1]) * 1024 / 1e9 for part in fields if len(part) >= 2}


def _gpus() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.rsplit(",", 1) for line in found.stdout.splitlines() if "," in line)
    return tuple(Gpu(name.strip(), float(mib) * 2**20 / 1e9) for name, mib in rows)
