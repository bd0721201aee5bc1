"""The model card: front matter, what the model is, how to use it, and measured numbers only.

Every number comes from the run folder with its sample count; the brief's targets stand in a column
of their own. What was not measured is said to be not measured.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from nanochat_lib.config import RunConfig
from nanochat_lib.hardware.planner import count_parameters

FRONT_MATTER = """---
language: en
license: mit
library_name: nanochat-rs-ternary
pipeline_tag: text-generation
tags:
  - rust
  - code-generation
  - ternary-quantization
  - looplm
  - compiler-verified
---
"""


def model_card(
    config: RunConfig, state: dict[str, Any], stage: str, results: pl.DataFrame, data: dict
) -> str:
    """Return the text of the card.

    Args:
        config: the run's configuration, with the exported model's shape.
        state: content of run.json.
        stage: stage whose model is exported.
        results: rows of evaluate/results.parquet; empty when there was no evaluation.
        data: summary of the preprocess stage.
    """
    model, count = config.model, count_parameters(config.model)
    weights = "ternary weights (1.58 bit)" if model.ternary else "float weights"
    return "\n".join(
        [
            FRONT_MATTER,
            f"# {config.publish.model_name}",
            "",
            f"A LoopLM with {weights} that writes Rust: {count.stored / 1e6:.2f} M stored "
            f"parameters, {model.n_layers} layers run {model.n_loops} times "
            f"({count.executed / 1e6:.2f} M executed), context {model.max_seq_len} tokens, "
            f"vocabulary {model.vocab_size}. Exported after stage `{stage}` of run "
            f"`{state['run_id']}`, commit `{state['git']['commit'][:12] or 'unknown'}`"
            f"{' with local changes' if state['git']['dirty'] else ''}.",
            "",
            "It is a small research model: most real-world Rust it writes does not compile.",
            "",
            *_usage(config),
            *_measured(config, stage, results),
            *_training_data(data),
            "## Limits",
            "",
            "Generated programs may be wrong or harmful; run them in a sandbox. The GGUF files run "
            "all loops, since the format has no slot for the exit gate, and llama.cpp does not "
            "quantise activations to int8 the way training did when the layers are float32.",
            "",
        ]
    )


def pass_rates(results: pl.DataFrame) -> dict[str, float]:
    """Return, by stage in training order, the share of all evaluated samples that passed.

    Args:
        results: rows of evaluate/results.parquet; parts of a task set ("set/level 1") count once.
    """
    if results.is_empty():
        return {}
    whole = results.filter(
        (pl.col("metric") == "pass@1") & ~pl.col("task_set").str.contains("/", literal=True)
    )
    sums = whole.group_by("checkpoint", maintain_order=True).agg(
        pl.col("n_correct").sum() / pl.col("n_samples").sum()
    )
    return {stage: rate for stage, rate in sums.iter_rows() if rate is not None}


def _usage(config: RunConfig) -> list[str]:
    return [
        "## Usage",
        "",
        "```sh",
        "nanochat generate safetensors --prompt 'fn factorial(n: u64) -> u64 {'",
        f"llama-cli -m {config.publish.model_name}-tq2_0.gguf -p 'fn factorial(n: u64) -> u64 {{'",
        "```",
        "",
        "```python",
        "from nanochat_lib.evals.suite import complete_prompt",
        'print(complete_prompt("safetensors", "fn factorial(n: u64) -> u64 {"))',
        "```",
        "",
    ]


def _measured(config: RunConfig, stage: str, results: pl.DataFrame) -> list[str]:
    lines = ["## Performance", ""]
    rows = [] if results.is_empty() else results.filter(pl.col("checkpoint") == stage).to_dicts()
    if not rows:
        return [*lines, "Not measured in this run.", ""]
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in pass_rates(results).items())
    lines += [f"Passed of all samples, by the model of each stage: {rates}.", ""]
    lines += ["| Task set | Benchmark | Measured | 95 % interval | n |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['task_set']} | {row['metric']} | {row['rate']:.1%} | "
        f"{row['low']:.1%} to {row['high']:.1%} | {row['n_samples']} samples, "
        f"{row['n_problems']} problems |"
        for row in rows
    ]
    targets = config.targets.model_dump(exclude_none=True)
    if targets:
        named = ", ".join(f"{key} {value:g}" for key, value in targets.items())
        lines += ["", f"Targets of profile `{config.profile}` (not results): {named}."]
    return [*lines, ""]


def _training_data(data: dict) -> list[str]:
    if not data:
        return []
    after, tokens = data["compile_rate"]["after"], data["tokens"]
    licences = ", ".join(f"{row['licence']} ({row['n']:,})" for row in data["licences"][:6])
    return [
        "## Training data",
        "",
        f"{after['n_judged']:,} real-Rust rows, of which {after['n_compiled']:,} compile under "
        f"{data['rustc']} (sandbox: {data['sandbox']}), and {data['tinyrust']['n']:,} generated "
        f"TinyRust programs whose tests pass; {tokens['real_train']:,} and "
        f"{tokens['tinyrust_train']:,} training tokens. Licences: {licences}.",
        "",
    ]
