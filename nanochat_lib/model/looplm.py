"""LoopLM: one stack of layers, run `n_loops` times, with a chance to leave after every loop.

In: token ids (B, T). Out: per loop the normed hidden state (B, T, D), from which the head makes
logits, and the probability of leaving there. The block is the one that stock GGUF runtimes load
as `nanbeige`: bias-free, pre-RMSNorm, grouped-query attention, SwiGLU, interleaved RoPE, and the
final RMSNorm inside the loop, so that its output feeds both the head and the next loop.

Variants (sandwich norm, SubLN, input injection, gates of loops) are flags for experiments on loss:
neither stock runtimes nor the packed engine know them.

Source: Ouro (arXiv 2510.25741), without its sandwich norm by default.

B batch, T positions, D d_model, H heads, K head size, F d_ff, V vocabulary, R loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.attention import Positions, attend, positions_of
from nanochat_lib.model.products import BIT_LINEARS, Int8Weights, LayerWeights
from nanochat_lib.model.ternary import BitLinear, exact_in_16_bits, quantize_activations

AnyWeights = LayerWeights | Int8Weights


@dataclass(frozen=True)
class LoopOutput:
    """What one forward pass gives, loop by loop.

    hidden: R tensors (B, T, D), each after the final RMSNorm. exit_prob: (R, B, T), the chance of
    leaving at loop r given that it was reached.
    """

    hidden: list[Tensor]
    exit_prob: Tensor


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
        norm_eps = config.norm_eps
        self.attn_out_norm = RMSNorm(width, norm_eps) if config.sandwich_norm else None
        self.ffn_out_norm = RMSNorm(width, norm_eps) if config.sandwich_norm else None
        self.attn_sub_norm = RMSNorm(width, norm_eps) if config.sub_norm else None
        self.ffn_sub_norm = RMSNorm(config.d_ff, norm_eps) if config.sub_norm else None

    def forward(self, x: Tensor, weights: AnyWeights, positions: Positions) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        q, k, v = weights.heads(self, x, positions.rope)
        out = weights.output(self, attend(q, k, v, positions.mask))
        x = x + _maybe(self.attn_out_norm, out)
        return x + _maybe(self.ffn_out_norm, weights.feed_forward(self, x))

    def quantized(self, x: Tensor) -> Tensor:
        """Return x as the ternary products read it: rounded to int8 levels per token."""
        return quantize_activations(x) if self.config.ternary else x


def _maybe(norm: RMSNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class LoopEntry(nn.Module):
    """What the variants do between loops; without them h passes as it is.

    `injection` (D,) weights the embedding added before every loop but the first; `gate` (R, D) is
    the logit of the share of a loop's change that is kept. Source: input injection, Dehghani et
    al. 2018 (arXiv 1807.03819) and Geiping et al. 2025 (arXiv 2502.05171).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.n_loops, config.d_model)
        self.injection = (
            nn.Parameter(torch.zeros(config.d_model)) if config.input_injection else None
        )
        self.gate = nn.Parameter(torch.full(shape, 2.0)) if config.loop_gates else None

    def enter(self, h: Tensor, embedded: Tensor, loop_idx: int) -> Tensor:
        """Return what loop `loop_idx` reads."""
        if self.injection is None or not loop_idx:
            return h
        return h + self.injection * embedded

    def leave(self, before: Tensor, after: Tensor, loop_idx: int) -> Tensor:
        """Return what loop `loop_idx` hands on; further loops than trained use the last gate."""
        if self.gate is None:
            return after
        gate = self.gate[min(loop_idx, len(self.gate) - 1)]
        return before + torch.sigmoid(gate) * (after - before)


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
        self.entry = LoopEntry(config)
        self.weights_of: Callable[[Layer], AnyWeights] = LayerWeights.of
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
        h = embedded = self.embed(tokens)
        positions = positions_of(
            T, head_size=self.config.head_size, rope_base=self.config.rope_base, device=h.device
        )
        weights = [self.weights_of(layer) for layer in self.layers]
        hidden = []
        for loop_idx in range(n_loops or self.config.n_loops):
            entered = self.entry.enter(h, embedded, loop_idx)
            after = self.run_layers(self, entered, weights, positions)
            h = self.final_norm(self.entry.leave(entered, after, loop_idx))
            hidden.append(h)
        exit_prob = torch.stack([torch.sigmoid(self.exit_gate(h))[..., 0].float() for h in hidden])
        return LoopOutput(hidden, exit_prob)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map a normed hidden state (..., D) to logits (..., V)."""
        return self.head(hidden)

    def use_weights_as_they_are(self) -> None:
        """Stop quantising matrices: they were read from a file that holds codes times scale."""
        for layer in self.layers:
            for name in BIT_LINEARS:
                getattr(layer, name).ternary = False

    @torch.no_grad()
    def round_tables(self) -> None:
        """Round embedding and head to 16 bits, in place, when training is over.

        GGUF files and the decode engine store them so; a model that is rounded before it is
        measured has the same loss everywhere. Again, it changes nothing.
        """
        for table in (self.embed.weight, self.head.weight):
            table.copy_(exact_in_16_bits(table))

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


def call_layer(layer: Layer, x: Tensor, weights: AnyWeights, positions: Positions) -> Tensor:
    """Run one layer: the default of `LoopLM.run_layer`, and what training may compile."""
    return layer(x, weights, positions)


def call_layers(
    model: LoopLM, x: Tensor, weights: list[AnyWeights], positions: Positions
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
