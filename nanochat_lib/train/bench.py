"""What a training step costs: against a plain transformer, against the matmul peak, in memory, and
what watching it costs; on a GPU also what int8 products gain.

`python -m nanochat_lib.train.bench --json FILE`, and with `--gpu` at widths for a GPU. The plain
transformer has torch's own modules (Linear, RMSNorm, scaled_dot_product_attention, cross_entropy),
as many layers as the LoopLM runs, no rounding and one exit; both are compiled, use bfloat16 and the
same optimisers, and take turns step by step, timed by the CPU time of one thread, so that other
programs matter little; on a GPU by the clock, when it has done its work. Medians. FLOPs are the
model's own, whatever type computes them, and the peak is that of bfloat16, so that a share of it is
the model FLOPs utilisation (MFU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bench_gpu.start import facts, is_refused
from nanochat_lib.config import ModelConfig, PretrainConfig, load_profile
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.hardware.planner import train_flops_per_token
from nanochat_lib.model.attention import rope_table, rotate
from nanochat_lib.model.looplm import LoopLM, LoopOutput
from nanochat_lib.provenance import git_state
from nanochat_lib.runs import write_atomic
from nanochat_lib.train import execution
from nanochat_lib.train.objective import Objective, stage_one_loss
from nanochat_lib.train.optim import Optimizers
from nanochat_lib.train.safety.memory import LiveBytes
from nanochat_lib.train.watch.cost import monitor_cost
from nanochat_lib.train.watch.speed import matmul_peak, synchronize

N_STEPS = 9
# name -> (d_model, stored layers, loops, d_ff, vocabulary, positions, sequences)
SHAPES = {
    "laptop, d = 256": (256, 2, 2, 512, 2048, 128, 8),
    "d = 256, T = 256": (256, 2, 2, 768, 2048, 256, 16),
    "d = 512, T = 512": (512, 2, 2, 1536, 4096, 512, 8),
}
# and how many sequences of a step at once: gradients are accumulated
GPU_SHAPES = {
    "d = 2048, T = 2048": (2048, 2, 4, 5632, 8192, 2048, 32, 8),
    "d = 4096, T = 2048": (4096, 1, 4, 11264, 8192, 2048, 32, 4),
}
SIDES = ("looplm", "plain")
GPU_SIDES = (*SIDES, "int8")
LEAST = {"of_plain": 0.85, "of_peak": 0.5}
GPU_LEAST = {"of_plain": 0.85, "int8_of_peak": 0.55, "int8_gain": 1.0}
MOST = {"loss_memory, remade": 1.3, "monitors": 0.03}


class PlainLayer(nn.Module):
    """A pre-norm transformer layer of torch's own modules."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kv = config.d_model, config.n_kv_heads * config.head_size
        self.head_size = config.head_size
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, kv, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, config.d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(config.d_ff, width, bias=False)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        h = self.norms[0](x)
        q, k, v = (m(h).unflatten(-1, (-1, self.head_size)) for m in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (_turned(q, rope), _turned(k, rope), v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def _turned(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate by halves, the form that compilers vectorise; eager code would use pairs."""
    if not torch.compiler.is_compiling():
        return rotate(x, rope)
    cos, sin = rope.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Plain(nn.Module):
    """A transformer as deep as a LoopLM runs, with one exit and weights of its own everywhere."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        n_layers = config.n_layers * config.n_loops
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(n_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.run_layer: Callable[..., Tensor] = torch.compile(_call, dynamic=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) to logits (B, T, V)."""
        config, device = self.config, tokens.device
        rope = rope_table(tokens.shape[1], config.head_size, config.rope_base, device)
        h = self.embed(tokens)
        for layer in self.layers:
            h = self.run_layer(layer, h, rope)
        return self.head(self.norm(h))


def _call(layer: PlainLayer, x: Tensor, rope: Tensor) -> Tensor:
    return layer(x, rope)


def step_rows(
    shapes: dict[str, tuple[int, ...]],
    n_steps: int = N_STEPS,
    *,
    sides: tuple[str, ...] = SIDES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return a row per shape: time of a step of each side, tokens/s, shares of both limits.

    Args:
        sides: "looplm" (float products), "plain", and "int8" (the LoopLM with int8 products).
    """
    rows = []
    for name, shape in shapes.items():
        torch.compiler.reset()
        config, plan = _configs(shape)
        size = (plan.batch_size, plan.seq_len + 1)
        tokens = torch.randint(0, config.vocab_size, size, device=device)
        steps = {side: _step_of(side, config, plan, tokens) for side in sides}
        rates = _interleaved(steps, n_steps, tokens.device)
        rows.append({"shape": name} | _step_row(config, plan, rates))
    return rows


def _step_of(
    side: str, config: ModelConfig, plan: PretrainConfig, tokens: Tensor
) -> Callable[[], None]:
    if side == "plain":
        return _plain_step(config, plan, tokens)
    return _loop_step(config, plan, tokens, is_int8=side == "int8")


def _interleaved(
    steps: dict[str, Callable[[], None]], n_steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every step, side by side, and the bfloat16 peak beside them."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    rates: dict[str, list[float]] = {key: [] for key in (*steps, "peak")}
    for _ in range(2):  # compiles
        for step in steps.values():
            step()
    for _ in range(n_steps):
        for key, step in steps.items():
            synchronize(device)
            began = clock()
            step()
            synchronize(device)
            rates[key].append(clock() - began)
        rates["peak"].append(matmul_peak(device, torch.bfloat16))
    return rates


def _step_row(
    config: ModelConfig, plan: PretrainConfig, rates: dict[str, list[float]]
) -> dict[str, Any]:
    seconds = {key: statistics.median(values) for key, values in rates.items()}
    n_tokens, ours = plan.batch_size * plan.seq_len, seconds["looplm"]
    flops = train_flops_per_token(config, plan.seq_len) * n_tokens / seconds["peak"]
    row = {
        "tokens": n_tokens,
        "step_ms": round(1e3 * ours, 1),
        "plain_ms": round(1e3 * seconds["plain"], 1),
        "tokens_per_s": round(n_tokens / ours),
        "of_plain": round(_gain(rates, "plain", "looplm"), 3),
        "of_peak": round(flops / ours, 3),
        "peak_tflops": round(seconds["peak"] / 1e12, 2),
        "n": len(rates["looplm"]),
    }
    if "int8" in seconds:
        row |= {
            "int8_ms": round(1e3 * seconds["int8"], 1),
            "int8_tokens_per_s": round(n_tokens / seconds["int8"]),
            "int8_gain": round(_gain(rates, "looplm", "int8"), 3),
            "int8_of_peak": round(flops / seconds["int8"], 3),
        }
    return row


def _gain(rates: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over rounds of one side's time over another's."""
    return statistics.median(s / f for s, f in zip(rates[slow], rates[fast], strict=True))


def _configs(shape: tuple[int, ...]) -> tuple[ModelConfig, PretrainConfig]:
    d_model, n_layers, n_loops, d_ff, vocab_size, seq_len, batch_size, *micro = shape
    config = ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_loops=n_loops,
        n_heads=d_model // 64,
        n_kv_heads=d_model // 128,
        d_ff=d_ff,
        max_seq_len=seq_len,
    )
    plan = PretrainConfig(
        batch_size=batch_size, micro_batch_size=(*micro, batch_size)[0], seq_len=seq_len
    )
    return config, plan


def _loop_step(
    config: ModelConfig,
    plan: PretrainConfig,
    tokens: Tensor,
    *,
    remakes: bool = False,
    is_int8: bool = False,
) -> Callable[[], None]:
    model = LoopLM(config).to(tokens.device)
    optimizers = Optimizers(model, plan, muon_dtype=torch.bfloat16)
    objective = Objective(0.05, remakes_gradients=remakes)

    def step() -> None:
        compiled = execution.compiled_layers(model, True)
        with compiled, execution.int8_products(model, is_int8):
            for part in tokens.split(plan.micro_batch_size):
                with execution.autocast(tokens.device, torch.bfloat16):
                    output = model(part[:, :-1])
                    loss = stage_one_loss(model, output, part[:, 1:], objective, is_compiled=True)
                loss.total.backward()
        _update(model, optimizers)

    return step


def _plain_step(config: ModelConfig, plan: PretrainConfig, tokens: Tensor) -> Callable[[], None]:
    model = Plain(config).to(tokens.device)
    optimizers = Optimizers(model, plan, muon_dtype=torch.bfloat16)

    def step() -> None:
        for part in tokens.split(plan.micro_batch_size):
            with execution.autocast(tokens.device, torch.bfloat16):
                logits = model(part[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten())
            loss.backward()
        _update(model, optimizers)

    return step


def _update(model: nn.Module, optimizers: Optimizers) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(0)
    optimizers.zero_grad()


def loss_memory(
    shape: tuple[int, ...], n_loops: int, exit_gradients: Literal["kept", "remade"]
) -> float:
    """Return peak bytes of the loss over `n_loops` exits, forward and backward, over those of one.

    Bytes of storages that are alive, without the hidden states that the model hands over; with the
    gradients that go back to them, each of which later loops' gradients are added to, as a model
    does.
    """
    config, plan = _configs(shape)
    model, peaks = LoopLM(config), []
    targets = torch.randint(0, config.vocab_size, (plan.batch_size, plan.seq_len))
    objective = Objective(0.05, remakes_gradients=exit_gradients == "remade")
    for n in (1, n_loops):
        start = torch.randn(*targets.shape, config.d_model, requires_grad=True)
        hidden = [start * 1]
        for _ in range(n - 1):
            hidden.append(hidden[-1] * 1)
        output = LoopOutput(hidden, torch.full((n, *targets.shape), 0.3))
        with LiveBytes() as live:
            stage_one_loss(model, output, targets, objective).total.backward()
        peaks.append(live.peak)
        model.zero_grad()
    return peaks[1] / peaks[0]


def remade_cost(shape: tuple[int, ...], n_steps: int) -> float:
    """Return the time of a step that remakes the exits' gradients over one that keeps them."""
    config, plan = _configs(shape)
    tokens = torch.randint(0, config.vocab_size, (plan.batch_size, plan.seq_len + 1))
    steps = {
        how: _loop_step(config, plan, tokens, remakes=how == "remade") for how in ("kept", "remade")
    }
    return _gain(_interleaved(steps, n_steps, tokens.device), "remade", "kept")


def watching() -> dict[str, float]:
    """Return the shares of step time that monitors and validation take in the laptop profile."""
    cost = monitor_cost(load_profile("laptop", {"pretrain.compile": "on"}))
    return {"monitors": round(cost.share, 4), "validation": round(cost.validation_share, 4)}


def main() -> None:
    """Measure, print the table beside the targets, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows, machine and commit")
    parser.add_argument("--steps", type=int, default=N_STEPS, help="steps of each side")
    parser.add_argument("--gpu", action="store_true", help="int8 against bfloat16 on the first GPU")
    arguments = parser.parse_args()
    if arguments.gpu:
        if is_refused():
            raise SystemExit(1)
        rows = step_rows(GPU_SHAPES, arguments.steps, sides=GPU_SIDES, device="cuda")
        _print(rows, GPU_LEAST)
        _write(arguments.json, facts() | {"steps": rows})
        return
    torch.set_num_threads(1)
    rows = step_rows(SHAPES, arguments.steps)
    _print(rows, LEAST)
    shares = {
        f"loss_memory, {how}": max(loss_memory(shape, 4, how) for shape in SHAPES.values())
        for how in ("kept", "remade")
    }
    shares |= {"remade": remade_cost(SHAPES["d = 512, T = 512"], arguments.steps)} | watching()
    for key, most in MOST.items():
        mark = "holds" if shares[key] <= most else "missed"
        print(f"{key}: {shares[key]:.3f}, wanted at most {most}: {mark}")
    print(f"loss_memory, kept: {shares['loss_memory, kept']:.3f}, the default")
    print(f"remade gradients: {shares['remade']:.3f} of the time of a step with kept ones")
    print(f"validation: {shares['validation']:.3f} of step time, which is no monitor")
    _write(arguments.json, {"steps": rows, "shares": shares})


def _print(rows: list[dict[str, Any]], least: dict[str, float]) -> None:
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
        for key, wanted in least.items():
            mark = "holds" if row[key] >= wanted else "missed"
            print(f"    {key}: {row[key]:.2f}, wanted at least {wanted}: {mark}")


def _write(path: Path | None, found: dict[str, Any]) -> None:
    if path is None:
        return
    found = {"machine": asdict(detect_machine()), "commit": git_state()} | found
    write_atomic(path, json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
