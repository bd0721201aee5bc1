"""The body of a report: one section per stage, each figure with its sentence, table and source.

Input: a `RunData`. Output: plain `Section` objects that `page.py` renders; no HTML is made here.
A stage that was not run still has its section, which says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report import bars, figures
from nanochat_lib.report.content import readings
from nanochat_lib.report.content.listings import Group, before_after, episode_groups, sample_groups
from nanochat_lib.report.content.summary import evaluation_anchor, is_human_eval
from nanochat_lib.report.run_data import RunData, series

MAX_TABLE_ROWS = 30


@dataclass(frozen=True)
class Block:
    """One figure with what belongs to it; `missing` replaces a figure that has no data."""

    anchor: str
    title: str
    figure: go.Figure | None
    reading: str
    table: pl.DataFrame
    source: str
    missing: str = ""


@dataclass(frozen=True)
class Section:
    """One stage of the report."""

    anchor: str
    title: str
    intro: str
    status: str
    blocks: list[Block] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def run_sections(run: RunData) -> list[Section]:
    """Return the sections of a run in the order of its stages."""
    return [
        _data_section(run),
        _pretrain_section(run),
        _maxrl_section(run),
        _long_context_section(run),
        _evaluation_section(run),
        _kernel_section(run),
        _publish_section(run),
    ]


def make_block(
    anchor: str, figure: go.Figure, *, reading: str, table: pl.DataFrame, source: str
) -> Block:
    """Return a block; a figure that says `missing` is replaced by its reason."""
    missing = (figure.layout.meta or {}).get("missing", "")
    title = figure.layout.title.text
    if missing:
        return Block(anchor, title, None, "", pl.DataFrame(), "", missing)
    return Block(anchor, title, figure, reading, thin(table), source)


def thin(table: pl.DataFrame) -> pl.DataFrame:
    """Return at most `MAX_TABLE_ROWS` rows, evenly chosen, always with the last."""
    if table.height <= MAX_TABLE_ROWS:
        return table
    last = table.height - 1
    picks = [round(i * last / (MAX_TABLE_ROWS - 1)) for i in range(MAX_TABLE_ROWS)]
    return table[picks]


def _steps_table(metrics: pl.DataFrame, stage: str, names: Sequence[str]) -> pl.DataFrame:
    rows = pl.concat([series(metrics, stage, name) for name in names])
    if rows.is_empty():
        return pl.DataFrame()
    order = [name for name in names if name in rows["name"]]
    wide = rows.pivot("name", index="step", values="value", aggregate_function="last")
    return wide.select("step", *order).sort("step")


def _curve(
    run: RunData,
    anchor: str,
    figure: go.Figure,
    names: Sequence[str],
    *,
    reading: str = "",
    stage: str = "pretrain",
) -> Block:
    names = [str(name) for name in names]
    table = _steps_table(run.metrics, stage, names)
    source = f"{table.height:,} steps measured; stage {stage}; {run.machine}"
    text = reading or readings.trend(run.metrics, stage, names[0], figure.layout.title.text)
    return make_block(anchor, figure, reading=text, table=table, source=source)


def _data_section(run: RunData) -> Section:
    summary = run.summary("preprocess")
    rates, funnel = summary.get("compile_rate", {}), summary.get("funnel", [])
    difficulty, codes = summary.get("difficulty", {}), summary.get("error_codes", [])
    n_judged = rates.get("before", {}).get("n_judged", 0)
    source = f"n = {n_judged:,} judged programs; {run.rustc or 'rustc not recorded'}; {run.machine}"
    least = run.config.get("data", {}).get("min_compile_rate")
    specs = (
        ("funnel", bars.verification_funnel(funnel), readings.read_funnel(funnel), funnel),
        (
            "compile-rate",
            bars.compile_rate_by_source(rates, least),
            readings.read_compile_rate(rates),
            _rate_rows(rates),
        ),
        ("error-codes", bars.error_codes(codes), readings.read_codes(codes), codes),
        (
            "difficulty",
            bars.difficulty_mix(difficulty),
            readings.read_difficulty(difficulty),
            [{"mix": key, **values} for key, values in difficulty.items()],
        ),
    )
    return Section(
        "data",
        "1 · Data: Rust, judged by rustc",
        "Every program was compiled, and run where it can be, inside a sandbox. Only what passed "
        "is kept. Real Rust teaches language; TinyRust, generated and tested, measures success.",
        _status(run, "preprocess"),
        [
            make_block(anchor, figure, reading=text, table=_table(rows), source=source)
            for anchor, figure, text, rows in specs
        ],
        _data_facts(run, summary),
    )


def _rate_rows(rates: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"source": "all", "kind": key, **rates[key]} for key in ("before", "after") if key in rates
    ]
    rows += rates.get("by_source", [])
    return [row | {"rate": row["n_compiled"] / max(row["n_judged"], 1)} for row in rows]


def _data_facts(run: RunData, summary: dict[str, Any]) -> list[tuple[str, str]]:
    if not summary:
        return []
    tokenizer, tokens = summary.get("tokenizer", {}), summary.get("tokens", {})
    semantic, tiny = summary.get("semantic_rate", {}), summary.get("tinyrust", {})
    facts = [("Sandbox", run.sandbox or "not recorded"), ("Compiler", run.rustc or "not recorded")]
    if semantic.get("n_judged"):
        text = readings.share(semantic["n_passed"], semantic["n_judged"])
        facts.append(("Tests and examples that ran and passed", text))
    if "n_unjudged" in summary:
        text = f"{summary['n_unjudged']:,}, counted neither as right nor as wrong"
        facts.append(("Could not be judged", text))
    facts += [(f"Tokens, {name.replace('_', ' ')}", f"{n:,}") for name, n in tokens.items()]
    if tokenizer:
        size, density = tokenizer.get("vocab_size", 0), tokenizer.get("bytes_per_token", 0)
        facts.append(("Tokenizer", f"{size:,} tokens, {density:.2f} bytes per token"))
    if tiny:
        facts.append(("TinyRust", f"{tiny.get('n', 0):,} of {tiny.get('n_families', 0)} families"))
    licences = sorted(summary.get("licences", []), key=lambda row: -row["n"])
    text = ", ".join(f"{row['licence']} ({row['n']:,})" for row in licences[:6])
    return [*facts, ("Licences", text)] if text else facts


def _pretrain_section(run: RunData) -> Section:
    metrics, n_loops, targets = run.metrics, run.n_loops, run.targets
    vocab_size = run.config.get("model", {}).get("vocab_size", 2)
    compression = run.summary("preprocess").get("compression", {})
    blocks = [
        _curve(
            run,
            "bits-per-byte",
            figures.bits_per_byte(
                metrics, compression, targets.get("bits_per_byte"), n_loops=n_loops
            ),
            [Metric.BITS_PER_BYTE, Metric.BITS_PER_BYTE_TINYRUST],
            reading=readings.read_bits(run),
        ),
        _curve(
            run,
            "loss",
            figures.loss_curves(metrics, target=targets.get("loss")),
            [Metric.TASK_LOSS, Metric.LOSS, Metric.VAL_LOSS],
        ),
        _curve(
            run,
            "token-entropy",
            figures.token_entropy(metrics, vocab_size),
            [Metric.TOKEN_ENTROPY, Metric.TASK_LOSS],
            reading=readings.read_token_entropy(run),
        ),
        _curve(
            run,
            "calibration-gap",
            figures.calibration_gap(metrics),
            [Metric.CALIBRATION_GAP],
        ),
        _curve(
            run,
            "exit-entropy",
            figures.exit_entropy(metrics, n_loops),
            [Metric.EXIT_ENTROPY, Metric.EXPECTED_LOOPS],
            reading=readings.read_exit(run),
        ),
        _curve(
            run,
            "exit-distribution",
            figures.exit_distribution(metrics, n_loops),
            [f"{Metric.EXIT_PDF}{i}" for i in range(1, n_loops + 1)],
            reading=readings.read_exit_distribution(run),
        ),
        _curve(
            run,
            "ternary-codes",
            figures.ternary_codes(metrics),
            [Metric.ZERO_FRACTION, Metric.FLIP_RATE],
            reading=readings.trend(metrics, "pretrain", Metric.ZERO_FRACTION, "Share of zeros"),
        ),
        *_training_blocks(run),
    ]
    model = run.config.get("model", {})
    intro = (
        f"{model.get('n_layers', '?')} shared layers, run {n_loops} times; "
        f"{run.n_parameters:,} stored parameters, vocabulary {vocab_size:,}, "
        f"width {model.get('d_model', '?')}. Losses are nats per token; ln V = "
        f"{math.log(vocab_size):.2f}."
    )
    title = "2 · Pre-training the looped model"
    groups = sample_groups(run, "pretrain", "Free-running samples after pre-training")
    status = _status(run, "pretrain")
    return Section("pretrain", title, intro, status, blocks, groups=groups)


def _training_blocks(run: RunData) -> list[Block]:
    metrics = run.metrics
    return [
        _curve(run, "learning-rate", figures.learning_rate(metrics), [Metric.LEARNING_RATE]),
        _curve(run, "gradient-norm", figures.gradient_norm(metrics), [Metric.GRAD_NORM]),
        _curve(
            run,
            "throughput",
            figures.throughput(metrics, target=run.targets.get("tokens_per_s")),
            [Metric.TOKENS_PER_S, Metric.PEAK_RSS_MIB],
        ),
    ]


def _maxrl_section(run: RunData) -> Section:
    config = run.config.get("maxrl", {})
    rates = [
        Metric.HELD_OUT_PASS_RATE,
        Metric.HELD_OUT_COMPILE_RATE,
        Metric.PASS_RATE,
        Metric.COMPILE_RATE,
    ]
    n_samples = config.get("prompts_per_step", 0) * config.get("rollouts_per_prompt", 0)
    target = run.targets.get("compile_rate")
    progress = figures.maxrl_progress(run.metrics, target)
    seconds = figures.maxrl_seconds(run.metrics)
    parts = [Metric.GENERATE_S, Metric.VERIFY_S, Metric.UPDATE_S]
    blocks = [
        _curve(
            run, "maxrl-progress", progress, rates, reading=readings.read_maxrl(run), stage="maxrl"
        ),
        _curve(run, "maxrl-seconds", seconds, parts, stage="maxrl"),
    ]
    intro = (
        f"The model writes programs, rustc and their tests judge them. Reward: "
        f"{config.get('reward', 'tests')}. Each update samples {n_samples} programs; each held-out "
        f"point is measured on {config.get('eval_tasks', 0)} tasks it never trained on."
    )
    title = "3 · MaxRL: learning from the compiler"
    groups = before_after(run) or sample_groups(run, "maxrl", "Programs after MaxRL")
    return Section("maxrl", title, intro, _status(run, "maxrl"), blocks, groups=groups)


def _long_context_section(run: RunData) -> Section:
    rows = run.summary("long_context").get("loss_by_position", [])
    short = run.config.get("pretrain", {}).get("seq_len")
    length = run.config.get("long_context", {}).get("seq_len", 0)
    reading = ""
    if rows:
        final = {key: value for key, value in rows[-1].items() if key.startswith("loss")}
        parts = [f"{key.replace('_', ' ')} {value:.2f}" for key, value in final.items()]
        reading = f"At position {rows[-1]['position']:,}: {', '.join(parts)} nats per token."
    source = f"{len(rows)} positions; {run.machine}"
    figure = bars.loss_by_position(rows, short)
    blocks = [
        make_block("loss-by-position", figure, reading=reading, table=_table(rows), source=source),
        _curve(
            run,
            "long-context-loss",
            figures.loss_curves(run.metrics, "long_context"),
            [Metric.TASK_LOSS, Metric.LOSS, Metric.VAL_LOSS],
            stage="long_context",
        ),
    ]
    intro = f"{length:,} tokens after {short} in pre-training, with a raised RoPE base."
    status = _status(run, "long_context")
    return Section("long-context", "4 · Longer context", intro, status, blocks)


def _evaluation_section(run: RunData) -> Section:
    results, targets = run.results, run.targets
    sets = results["task_set"].unique(maintain_order=True).to_list() if results.height else []
    blocks = []
    for task_set in sets:
        wanted = {"compile_rate": "compile_rate", "semantic_score": "semantic_score"}
        if is_human_eval(task_set):
            wanted["pass@1"] = "pass_at_1"
        marks = {metric: targets[key] for metric, key in wanted.items() if key in targets}
        rows = results.filter(pl.col("task_set") == task_set)
        n = f"{rows['n_samples'].max():,} samples of {rows['n_problems'].max():,} problems"
        block = make_block(
            evaluation_anchor(task_set),
            bars.evaluation_bars(results, task_set, marks),
            reading=readings.read_evaluation(results, task_set),
            table=rows.drop("task_set"),
            source=f"{n} per checkpoint; sandbox {run.sandbox or 'not recorded'}; {run.machine}",
        )
        blocks.append(block)
    if not any(is_human_eval(name) for name in sets):
        why = (
            "no HumanEval-Rust file was given. Name one in eval.task_files "
            "(HumanEval-X Rust or MultiPL-E), or read the results on the shipped set."
        )
        figure = figures.missing_figure("HumanEval-Rust", why)
        blocks.append(make_block("humaneval", figure, reading="", table=pl.DataFrame(), source=""))
    intro = (
        "Task sets are never mixed: TinyRust measures what the model was taught, the shipped set "
        "and HumanEval-Rust measure Rust at large. Whiskers: 95 % bootstrap over problems."
    )
    status = _status(run, "evaluate")
    groups = episode_groups(run)
    return Section("evaluate", "5 · Evaluation", intro, status, blocks, groups=groups)


def _kernel_section(run: RunData) -> Section:
    rows = run.summary("kernels").get("bench", {}).get("rows", [])
    source = f"{len(rows)} timings, medians; {run.machine}"
    reading = ""
    if rows:
        best = max(rows, key=lambda row: row.get("speedup", 0.0))
        reading = f"{best['backend']} is fastest at {best['shape']}: {best['speedup']:.1f} times."
    figure = figures.missing_figure("Ternary kernels", "the kernel stage was not run.")
    blocks = [
        make_block("kernels-speed", figure, reading=reading, table=_table(rows), source=source)
    ]
    intro = "Packed ternary weights times int8 activations: integers, equal on every backend."
    return Section("kernels", "6 · Kernels", intro, _status(run, "kernels"), blocks)


def _publish_section(run: RunData) -> Section:
    folder = run.dir / "artifacts" / "publish"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [
        (str(path.relative_to(folder)), f"{path.stat().st_size / 1e6:,.2f} MB") for path in files
    ]
    intro = "Files made for publication." if facts else "Nothing was exported in this run."
    return Section("publish", "7 · Publication", intro, _status(run, "publish"), facts=facts)


def _status(run: RunData, stage: str) -> str:
    state = run.stage(stage)
    if not state:
        return "not run"
    seconds = f", {state['seconds']:,.0f} s" if state.get("seconds") else ""
    error = f": {state['error']}" if state.get("error") else ""
    return f"{state.get('status', 'unknown')}{seconds}{error}"


def _table(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return (
        pl.DataFrame(list(rows), infer_schema_length=None, strict=False) if rows else pl.DataFrame()
    )
