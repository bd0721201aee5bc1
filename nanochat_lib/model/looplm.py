"""LoopLM: one stack of layers, run `n_loops` times, with a chance to leave after every loop.

In: token ids (B, T). Out: per loop the normed hidden state (B, T, D), from which the head makes
logits, and the probability of leaving there. The block is the one that stock GGUF runtimes load
as `nanbeige`: bias-free, pre-RMSNorm, grouped-query attention, SwiGLU, interleaved RoPE, and the
final RMSNorm inside the loop, so that its output feeds both the head and the next loop.

Source: Ouro (arXiv 2510.25741), without its sandwich norm, which stock runtimes do not know.

B batch, T positions, D d_model, H heads, K head size, F d_ff, V vocabulary, R loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.attention import Positions, attend, positions_of, project_rotated
from nanochat_lib.model.ternary import BitLinear, quantize_activations

BIT_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoopOutput:
    """What one forward pass gives, loop by loop.

    hidden: R tensors (B, T, D), each after the final RMSNorm. exit_prob: (R, B, T), the chance of
    leaving at loop r given that it was reached.
    """

    hidden: list[Tensor]
    exit_prob: Tensor


class LayerWeights(NamedTuple):
    """The effective weights of one layer for one forward pass, (out, in).

    One fused matmul for gate and up was a third slower on a CPU: its halves are strided.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    """One pre-norm transformer layer; all its matrices are `BitLinear`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, ternary = config.d_model, config.ternary
        kv_width = config.n_kv_heads * config.head_size
        self.attn_norm = RMSNorm(width, config.norm_eps)
        self.q = BitLinear(width, width, ternary=ternary)
        self.k = BitLinear(width, kv_width, ternary=ternary)
        self.v = BitLinear(width, kv_width, ternary=ternary)
        self.o = BitLinear(width, width, ternary=ternary)
        self.ffn_norm = RMSNorm(width, config.norm_eps)
        self.gate = BitLinear(width, config.d_ff, ternary=ternary)
        self.up = BitLinear(width, config.d_ff, ternary=ternary)
        self.down = BitLinear(config.d_ff, width, ternary=ternary)

    def effective_weights(self) -> LayerWeights:
        """Quantise every matrix once; the result serves all loops of a forward pass."""
        weights = (getattr(self, name).effective_weight() for name in BIT_LINEARS)
        device = self.q.weight.device.type
        if torch.is_autocast_enabled(device):  # else every loop would cast them anew
            weights = (weight.to(torch.get_autocast_dtype(device)) for weight in weights)
        return LayerWeights(*weights)

    def forward(self, x: Tensor, weights: LayerWeights, positions: Positions) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self._attend(self.attn_norm(x), weights, positions)
        return x + self._feed_forward(self.ffn_norm(x), weights)

    def _attend(self, x: Tensor, weights: LayerWeights, positions: Positions) -> Tensor:
        x = self._quantized(x)
        q = project_rotated(x, weights.q, positions.rope)
        k = project_rotated(x, weights.k, positions.rope)
        v = F.linear(x, weights.v).unflatten(-1, (-1, self.config.head_size))  # (B, T, H, K)
        return F.linear(self._quantized(attend(q, k, v, positions.mask)), weights.o)

    def _feed_forward(self, x: Tensor, weights: LayerWeights) -> Tensor:
        x = self._quantized(x)
        inner = F.silu(F.linear(x, weights.gate)) * F.linear(x, weights.up)  # (B, T, F)
        return F.linear(self._quantized(inner), weights.down)

    def _quantized(self, x: Tensor) -> Tensor:
        return quantize_activations(x) if self.config.ternary else x


class LoopLM(nn.Module):
    """The language model: embedding, shared layers in a loop, exit gate, head."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.exit_gate = nn.Linear(config.d_model, 1)
        self.run_layer: Callable[..., Tensor] = call_layer
        self.run_layers: Callable[..., Tensor] = call_layers
        self._init_weights(seed)

    def forward(self, tokens: Tensor, n_loops: int | None = None) -> LoopOutput:
        """Run the loops.

        Args:
            tokens: (B, T) int64, T at most `max_seq_len`.
            n_loops: passes to make instead of the configured number.

        Raises:
            WorkbenchError: the sequence is longer than the model.
        """
        _, T = tokens.shape
        if self.config.max_seq_len < T:
            raise WorkbenchError(
                f"A sequence of {T} tokens was given to a model of max_seq_len "
                f"{self.config.max_seq_len}. Cut the input or extend the context (stage 4)."
            )
        h = self.embed(tokens)
        positions = positions_of(
            T, head_size=self.config.head_size, rope_base=self.config.rope_base, device=h.device
        )
        weights = [layer.effective_weights() for layer in self.layers]
        hidden = []
        for _ in range(n_loops or self.config.n_loops):
            h = self.final_norm(self.run_layers(self, h, weights, positions))
            hidden.append(h)
        exit_prob = torch.stack([torch.sigmoid(self.exit_gate(h))[..., 0].float() for h in hidden])
        return LoopOutput(hidden, exit_prob)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map a normed hidden state (..., D) to logits (..., V)."""
        return self.head(hidden)

    @torch.no_grad()
    def _init_weights(self, seed: int) -> None:
        """Normal weights from a private generator; projections into the residual start small.

        The gate starts at zero (every exit_prob 1/2), the head small, so that the first loss is
        close to ln V. Embeddings of 0.2 instead of 0.02 gave 0.1 bits per byte after 0.25 M tokens
        of Rust (2.43 against 2.54, one seed); 1.0 gave nothing (2.53).
        """
        generator = torch.Generator().manual_seed(seed)
        depth = self.config.n_layers * self.config.n_loops
        for name, parameter in self.named_parameters():
            kind = name.split(".")[-2]
            if kind == "exit_gate":
                parameter.zero_()
            elif kind in BIT_LINEARS:
                std = 1 / math.sqrt(parameter.shape[1])
                shrink = math.sqrt(2 * depth) if kind in ("o", "down") else 1.0
                parameter.normal_(std=std / shrink, generator=generator)
            elif kind in ("embed", "head"):
                parameter.normal_(std=0.2 if kind == "embed" else 0.02, generator=generator)


def call_layer(layer: Layer, x: Tensor, weights: LayerWeights, positions: Positions) -> Tensor:
    """Run one layer: the default of `LoopLM.run_layer`, and what training may compile."""
    return layer(x, weights, positions)


def call_layers(
    model: LoopLM, x: Tensor, weights: list[LayerWeights], positions: Positions
) -> Tensor:
    """Run all layers once: the default of `LoopLM.run_layers`, which training may recompute."""
    for layer, layer_weights in zip(model.layers, weights, strict=True):
        x = model.run_layer(layer, x, layer_weights, positions)
    return x


def exit_pdf(exit_prob: Tensor) -> Tensor:
    """Turn conditional exit probabilities into a distribution over loops.

    Args:
        exit_prob: (R, ...) chance of leaving at loop r given that it was reached.

    Returns:
        (R, ...), sums to 1 over the first axis; the last loop takes what is left.

    Source: Ouro, section 3. Example: exit_prob [0.5, 0.5, 0.9] gives [0.5, 0.25, 0.25].
    """
    survival = torch.cumprod(1 - exit_prob[:-1], dim=0)
    reached = torch.cat((torch.ones_like(exit_prob[:1]), survival))  # survival before each loop
    return torch.cat((exit_prob[:-1] * reached[:-1], reached[-1:]))


def expected_loops(pdf: Tensor) -> Tensor:
    """Return the mean number of loops (...) of an exit_pdf (R, ...), counted from 1."""
    loops = torch.arange(1, len(pdf) + 1, device=pdf.device, dtype=pdf.dtype)
    return torch.tensordot(loops, pdf, dims=1)


def exit_entropy_nats(pdf: Tensor) -> Tensor:
    """Return the entropy (...) of an exit_pdf (R, ...); at most ln R."""
    return -(pdf * pdf.clamp(min=1e-9).log()).sum(0)
