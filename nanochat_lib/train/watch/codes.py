"""The ternary codes while they learn: how many are zero, how many have changed, scale drift."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from nanochat_lib.model.looplm import BIT_LINEARS, LoopLM
from nanochat_lib.model.ternary import quantize_weight
from nanochat_lib.records import Metric


@dataclass
class CodeMonitor:
    """Remembers the codes of the last look and the scales of the first one."""

    codes: dict[str, Tensor] = field(default_factory=dict)
    first_scales: dict[str, float] = field(default_factory=dict)

    def look(self, model: LoopLM) -> dict[str, float]:
        """Return zero fraction, flip rate since the last look and drift of the scales by layer.

        The drift of a layer is the mean of log2(scale / first scale) over its matrices: 1 means
        twice as large. Nothing is returned when the model is not ternary.
        """
        if not model.config.ternary:
            return {}
        pairs = {
            name: quantize_weight(parameter)
            for name, parameter in model.named_parameters()
            if name.split(".")[-2] in BIT_LINEARS
        }
        fresh = {name: codes.cpu() for name, (codes, _) in pairs.items()}
        scales = {name: scale for name, (_, scale) in pairs.items()}
        n_codes = sum(c.numel() for c in fresh.values())
        n_zero = n_codes - sum(int(c.count_nonzero()) for c in fresh.values())
        values = {str(Metric.ZERO_FRACTION): n_zero / n_codes}
        if self.codes:
            n_flipped = sum(int((fresh[n] != old).sum()) for n, old in self.codes.items())
            values[str(Metric.FLIP_RATE)] = n_flipped / n_codes
        self.codes, self.first_scales = fresh, self.first_scales or scales
        return values | self._drift(scales)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return what a training checkpoint keeps: code tensors and scales."""
        return {f"codes.{name}": codes for name, codes in self.codes.items()}, self.first_scales

    def load_state(self, tensors: dict[str, Tensor], first_scales: dict[str, float]) -> None:
        """Take over what `state` returned (other names are ignored)."""
        prefix = "codes."
        self.codes = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        self.first_scales = dict(first_scales)

    def _drift(self, scales: dict[str, float]) -> dict[str, float]:
        by_layer: dict[str, list[float]] = {}
        for name, scale in scales.items():  # e.g. layers.0.q.weight
            by_layer.setdefault(name.split(".")[1], []).append(
                math.log2(scale / self.first_scales[name])
            )
        return {f"{Metric.SCALE_DRIFT}{i}": sum(v) / len(v) for i, v in by_layer.items()}
