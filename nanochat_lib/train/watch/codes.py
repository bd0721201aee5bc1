"""The ternary codes while they learn: how many are zero, how many have changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nanochat_lib.model.looplm import BIT_LINEARS, LoopLM
from nanochat_lib.model.ternary import quantize_weight
from nanochat_lib.records import Metric


@dataclass
class CodeMonitor:
    """Remembers the ternary codes, to tell which share is zero and which share has flipped."""

    codes: dict[str, Tensor] = field(default_factory=dict)

    def look(self, model: LoopLM) -> dict[str, float]:
        """Return zero fraction and flip rate since the last look; nothing when not ternary."""
        if not model.config.ternary:
            return {}
        fresh = {
            name: quantize_weight(parameter)[0].cpu()
            for name, parameter in model.named_parameters()
            if name.split(".")[-2] in BIT_LINEARS
        }
        n_codes = sum(c.numel() for c in fresh.values())
        n_zero = sum(int((c == 0).sum()) for c in fresh.values())
        values = {str(Metric.ZERO_FRACTION): n_zero / n_codes}
        if self.codes:
            n_flipped = sum(int((fresh[name] != old).sum()) for name, old in self.codes.items())
            values[str(Metric.FLIP_RATE)] = n_flipped / n_codes
        self.codes = fresh
        return values

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the remembered codes for a training checkpoint."""
        return {f"codes.{name}": codes for name, codes in self.codes.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned (other names are ignored)."""
        prefix = "codes."
        self.codes = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
