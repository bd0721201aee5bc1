"""How fast the engine decodes: `python -m nanochat_lib.publish.decode_bench [--json FILE]`.

For one model whose shared layers fit in the nearest caches and one of 350 million parameters:
tokens per second beside stock llama.cpp on the same exported file (TQ2_0, same threads, when
installed), what leaving loops early and drafting gain, and where the time of a token goes. Weights
are random, which changes no time; drafting depends on what the model knows, so it is measured on
--checkpoint. One thread is timed by the CPU time of the process, several by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernels.bench.__main__ import machine
from kernels.compile import LEVELS, jit
from kernels.team import new_team
from nanochat_lib.config import ModelConfig
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nanochat_lib.model.decoding.forward import (
    ALL_LOOPS,
    attention,
    forward,
    head,
    linear_products,
)
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Draft, Sampling
from nanochat_lib.publish.gguf_file import write_gguf
from nanochat_lib.publish.stock import StockModel
from nanochat_lib.runs import write_atomic

Row = dict[str, str | int | float]
MODELS = {
    "layers in L2": ModelConfig(
        vocab_size=2048, d_model=512, n_layers=2, n_loops=4, n_heads=8, n_kv_heads=4, d_ff=1536,
        max_seq_len=512,
    ),
    "350 M parameters": ModelConfig(
        vocab_size=16384, d_model=1536, n_layers=12, n_loops=4, n_heads=12, n_kv_heads=4,
        d_ff=4096, max_seq_len=512,
    ),
}  # fmt: skip
PROMPT = list(range(5, 21))
THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Limits:
    """How much is decoded: tokens a slice, slices."""

    n_tokens: int = 48
    n_repeats: int = 5


def speed_rows(checkpoint: Checkpoint, gguf: Path, limits: Limits, threads: int = 1) -> list[Row]:
    """Time greedy decoding of one sequence by the engine and by stock llama.cpp, interleaved."""
    n = limits.n_tokens
    engine = Engine.from_model(checkpoint.model, max_batch=1, threads=threads)
    runs = {"engine": lambda: engine.generate([PROMPT], Sampling(n, temperature=0))}
    try:
        with StockModel(gguf, threads=threads) as stock:
            runs["llama.cpp TQ2_0"] = lambda: stock.greedy(PROMPT, n)
            times = _interleaved(runs, limits.n_repeats, threads)
    except WorkbenchError:
        times = _interleaved({"engine": runs["engine"]}, limits.n_repeats, threads)
    return [
        _row("speed", name, threads=threads, tokens_per_s=n / seconds, n_tokens=n, limits=limits)
        for name, seconds in times.items()
    ]


def exit_rows(checkpoint: Checkpoint, limits: Limits) -> list[Row]:
    """Time decoding at several exit thresholds; mean_loops is the depth that they led to.

    The prompt is one token: longer ones run all loops at any threshold.
    """
    n = limits.n_tokens
    engine = Engine.from_model(checkpoint.model, max_batch=1, threads=1)
    depth = {}

    def run(threshold: float) -> Callable[[], None]:
        def decode() -> None:
            sampling = Sampling(n, exit_threshold=threshold)
            depth[threshold] = np.mean(engine.generate([PROMPT[:1]], sampling)[0].exit_loops)

        return decode

    times = _interleaved({t: run(t) for t in THRESHOLDS}, limits.n_repeats)
    return [
        _row(
            "exit", "engine", tokens_per_s=n / seconds, n_tokens=n, limits=limits,
            exit_threshold=threshold, mean_loops=float(depth[threshold]),
            speedup=times[1.0] / seconds,
        )
        for threshold, seconds in times.items()
    ]  # fmt: skip


def part_rows(checkpoint: Checkpoint, limits: Limits) -> list[Row]:
    """Time where a token's time goes: one thread, at position 100, in jitted loops.

    Parts are added one after the other, in the order of a token, and their differences reported: a
    part by itself would find its weights in a nearer cache than it does in a token.
    """
    engine = Engine.from_model(checkpoint.model, max_batch=1, threads=1)
    engine.generate([PROMPT], Sampling(2, temperature=0))
    state, runs = engine._states[0], {}
    state.position[0] = 100
    arguments = LEVELS[engine.backend], new_team(1)[0], engine._shape, engine._weights, state
    for n_parts, name in enumerate(("products", "head", "attention", "rest")):
        runs[name] = lambda n_parts=n_parts: _repeat_parts(*arguments, n_parts, 20)
    so_far, rows = 0.0, []
    for name, seconds in _interleaved(runs, 2 * limits.n_repeats).items():
        rows.append(_row("part", name, us=1e6 * (seconds / 20 - so_far), limits=limits))
        so_far = seconds / 20
    over = so_far / (so_far - rows[-1]["us"] / 1e6)
    return [*rows, _row("part", "token", us=1e6 * so_far, of_kernels=over, limits=limits)]


def draft_rows(checkpoint: Checkpoint, limits: Limits) -> list[Row]:
    """Time drafting with the first loops against decoding with all, on a trained model."""
    n, model = 8 * limits.n_tokens, checkpoint.model
    drafts = [Draft(0, 0), *(Draft(1, tokens) for tokens in (2, 4, 8))]
    engines = {
        draft: Engine.from_model(
            model, max_batch=1, threads=1, draft=draft if draft.loops else None
        )
        for draft in drafts
    }
    prompt, n = PROMPT, min(n, checkpoint.config.max_seq_len - len(PROMPT))
    passes = {}

    def run(draft: Draft) -> Callable[[], None]:
        def decode() -> None:
            found = engines[draft].generate([prompt], Sampling(n, temperature=0))[0]
            passes[draft] = len(found.tokens) / found.passes

        return decode

    times = _interleaved({draft: run(draft) for draft in drafts}, limits.n_repeats)
    return [
        _row(
            "draft", f"draft {draft.tokens}" if draft.loops else "no draft", n_tokens=n,
            tokens_per_s=n / seconds, limits=limits, tokens_per_pass=passes[draft],
            speedup=times[drafts[0]] / seconds,
        )
        for draft, seconds in times.items()
    ]  # fmt: skip


@jit
def _repeat_parts(level, team, shape, weights, state, n_parts, count):
    """Do tokens of the products alone (0), and the head (1), and attention (2), or all (3)."""
    state.token[0], loops = 7, (0, shape.n_loops)
    for _ in range(count):
        if n_parts == 3:
            forward(level, team, shape, weights, state, 1, loops, ALL_LOOPS)
        else:
            for loop in range(shape.n_loops):
                for layer in range(shape.n_layers):
                    linear_products(level, team, shape, weights, state, layer)
                    if n_parts == 2:
                        attention(team, shape, weights, state, (loop, layer), 1)
        if n_parts > 0:
            head(team, shape, weights, state, 1)


def _interleaved(runs: dict, n_repeats: int, threads: int = 1) -> dict:
    """Return the median seconds of each, after one unmeasured round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict = {key: [] for key in runs}
    for number in range(n_repeats + 1):
        for key, run in runs.items():
            began = clock()
            run()
            if number:
                times[key].append(clock() - began)
    return {key: statistics.median(values) for key, values in times.items()}


def _row(section: str, what: str, *, limits: Limits, **values: float) -> Row:
    return {"section": section, "what": what, "n_repeats": limits.n_repeats, **values}


def random_checkpoint(config: ModelConfig, folder: Path) -> Checkpoint:
    """Return a model of random weights whose logits and exits vary, with a small tokenizer."""
    model = LoopLM(config, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.weight.normal_(std=0.05, generator=generator)
        model.embed.weight.normal_(std=1.0, generator=generator)
        model.exit_gate.weight.normal_(std=0.05, generator=generator)
    tokenizer = train_tokenizer(["fn add(a: i32) -> i32 {\n    a\n}\n"] * 20, config.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    target = folder / "checkpoint"
    path = folder / "tokenizer.json"
    save_checkpoint(target, model, step=1, tokens_seen=1, stage="pretrain", tokenizer_json=path)
    return load_checkpoint(target)


def run_bench(limits: Limits, checkpoint: Path | None = None, threads: int = 2) -> list[Row]:
    """Measure both models, and drafting on `checkpoint` when there is one."""
    rows = []
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = random_checkpoint(config, Path(folder))
            gguf = write_gguf(model, Path(folder) / "model.gguf", "tq2_0", "bench")
            found = [*exit_rows(model, limits), *part_rows(model, limits)]
            for n_threads in (1, threads):
                found += speed_rows(model, gguf, limits, n_threads)
        rows += [row | {"model": name, "n_loops": config.n_loops} for row in found]
    if checkpoint is not None:
        model = load_checkpoint(checkpoint)
        name, n_loops = "the checkpoint", model.config.n_loops
        found = draft_rows(model, limits) if n_loops > 1 else []
        rows += [row | {"model": name, "n_loops": n_loops} for row in found]
    return rows


def decode_rows(*checkpoints: Path) -> list[Row]:
    """Measure early exits and parts of the last of `checkpoints`, or of random weights: seconds."""
    limits = Limits(n_repeats=3)
    if checkpoints:
        model = load_checkpoint(checkpoints[-1])
        return [*exit_rows(model, limits), *part_rows(model, limits)]
    with tempfile.TemporaryDirectory() as folder:
        model = random_checkpoint(next(iter(MODELS.values())), Path(folder))
        return [*exit_rows(model, limits), *part_rows(model, limits)]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(prog="python -m nanochat_lib.publish.decode_bench")
    parser.add_argument("--json", type=Path, help="file that the rows are written to")
    parser.add_argument("--checkpoint", type=Path, help="a trained model, to measure drafting on")
    options = parser.parse_args(arguments)
    rows = run_bench(Limits(), options.checkpoint)
    sys.stdout.write(f"{machine()}\n{format_table(rows)}\n")
    if options.json:
        report = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
        write_atomic(options.json, json.dumps(report, indent=1))
    return 0


def format_table(rows: list[Row]) -> str:
    """Return the rows as aligned text, with what the targets ask for."""
    lines = []
    for row in rows:
        text = f"{row['model']:17} {row['section']:6} {row['what']:16}"
        if row["section"] == "part":
            text += f" {row['us']:9.1f} us"
            if row["what"] == "token":
                text += f": {row['of_kernels']:.2f} times its kernels (target at most 1.3)"
        else:
            text += f" {row['tokens_per_s']:9.1f} tokens/s"
        if row["section"] == "speed":
            text += f", {row['threads']} threads"
        if row["section"] == "exit":
            wanted = 0.85 * row["n_loops"] / row["mean_loops"]
            text += f", threshold {row['exit_threshold']:.2f}, mean depth {row['mean_loops']:.2f}"
            text += f": {row['speedup']:.2f} times full depth (target {wanted:.2f})"
        if row["section"] == "draft":
            text += f": {row['speedup']:.2f} times, {row['tokens_per_pass']:.2f} tokens a pass"
        lines.append(text)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
