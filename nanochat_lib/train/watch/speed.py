"""What training costs: memory, achieved FLOP/s, and their share of this machine's matmul peak.

FLOPs are the model's own (6 for each weight that runs, and attention); recomputed activations do
not count, so that a share can be compared between settings.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from nanochat_lib.config import ModelConfig
from nanochat_lib.hardware.planner import train_flops_per_token
from nanochat_lib.records import Metric

MEASURED_S = 0.1
SIDE = {"cpu": 1024, "cuda": 8192}  # large enough that more side does not raise the rate


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the best of several large square products, with the threads set now."""
    side = SIDE.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # constants let a GPU clock higher
    x = torch.randn(side, side, generator=generator, device=device).to(dtype)
    torch.mm(x, x)
    best, deadline = 0.0, time.perf_counter() + MEASURED_S
    while best == 0.0 or time.perf_counter() < deadline:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(x, x)
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


@dataclass
class Speed:
    """Turns tokens and seconds of training into rates since the last look."""

    flops_per_token: float
    peak_flops: float
    tokens_before: int = 0
    seconds_before: float = 0.0

    @classmethod
    def measured(
        cls, config: ModelConfig, seq_len: int, device: torch.device, dtype: torch.dtype
    ) -> Speed:
        """Measure the peak of this machine for one model."""
        return cls(train_flops_per_token(config, seq_len), matmul_peak(device, dtype))

    def look(self, tokens: int, seconds: float) -> dict[str, float]:
        """Return achieved FLOP/s and their share of the peak; nothing before the first step.

        Args:
            tokens, seconds: of training so far.
        """
        n_tokens, spent = tokens - self.tokens_before, seconds - self.seconds_before
        self.tokens_before, self.seconds_before = tokens, seconds
        if n_tokens <= 0 or spent <= 0:
            return {}
        rate = self.flops_per_token * n_tokens / spent
        return {
            str(Metric.MODEL_TFLOPS): rate / 1e12,
            str(Metric.PEAK_SHARE): rate / self.peak_flops,
        }


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the largest memory so far, in MiB: of the process, and on the GPU where there is one.

    Example: {"peak_rss_mib": 512.0}.
    """
    values = {str(Metric.PEAK_RSS_MIB): peak_rss_mib()}
    if device.type == "cuda":
        values[str(Metric.PEAK_GPU_MIB)] = torch.cuda.max_memory_allocated(device) / 2**20
    return values


def peak_rss_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
