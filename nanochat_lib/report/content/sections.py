"""The body of a report: one section per stage, each figure with its sentence, table and source.

Input: a `RunData`. Output: plain `Section` objects that `page.py` renders; no HTML is made here.
A stage that was not run still has its section, which says so.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from nanochat_lib.records import Metric
from nanochat_lib.report.content import readings
from nanochat_lib.report.content.blocks import (
    OUTCOMES_PAGE,
    Block,
    Section,
    curve_block,
    frame_of,
    make_block,
    stage_status,
)
from nanochat_lib.report.content.gates import class_facts, corpus_gate_facts, gate_facts
from nanochat_lib.report.content.listings import episode_groups, sample_groups
from nanochat_lib.report.content.summary import is_human_eval, metric_anchor
from nanochat_lib.report.content.texts import text_blocks
from nanochat_lib.report.content.watch import warning_facts, watch_blocks
from nanochat_lib.report.plots import bars, figures, speed
from nanochat_lib.report.policy.section import policy_section
from nanochat_lib.report.run_data import RunData, series


def run_sections(run: RunData) -> list[Section]:
    """Return the sections of a run in the order of its stages."""
    return [
        _data_section(run),
        _pretrain_section(run),
        policy_section(run),
        _long_context_section(run),
        _evaluation_section(run),
        _kernel_section(run),
        _publish_section(run),
    ]


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
        stage_status(run, "preprocess"),
        [
            make_block(anchor, figure, reading=text, table=frame_of(rows), source=source)
            for anchor, figure, text, rows in specs
        ]
        + text_blocks(summary, source),
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
    facts += corpus_gate_facts(summary.get("gates", {}))
    if "n_unjudged" in summary:
        text = f"{summary['n_unjudged']:,}, counted neither as right nor as wrong"
        facts.append(("Could not be judged", text))
    facts += [(f"Tokens, {name.replace('_', ' ')}", f"{n:,}") for name, n in tokens.items()]
    if tokenizer:
        size, density = tokenizer.get("vocab_size", 0), tokenizer.get("bytes_per_token", 0)
        facts.append(("Tokenizer", f"{size:,} tokens, {density:.2f} bytes per token"))
    if tiny:
        facts.append(("TinyRust", f"{tiny.get('n', 0):,} of {tiny.get('n_families', 0)} families"))
    if carried := summary.get("corpus_tasks"):
        kinds = [f"{name.replace('_', ' ')} {n:,}" for name, n in carried["by_kind"].items()]
        n_held = carried["by_split"].get("held_package", 0)
        text = f"{carried['n']:,} ({', '.join(kinds)}), {n_held:,} of packages held out"
        facts.append(("Tasks of real Rust", carried["note"] or text))
    licences = sorted(summary.get("licences", []), key=lambda row: -row["n"])
    text = ", ".join(f"{row['licence']} ({row['n']:,})" for row in licences[:6])
    return [*facts, ("Licences", text)] if text else facts


def _pretrain_section(run: RunData) -> Section:
    metrics, n_loops, targets = run.metrics, run.n_loops, run.targets
    vocab_size = run.config.get("model", {}).get("vocab_size", 2)
    compression = run.summary("preprocess").get("compression", {})
    blocks = [
        curve_block(
            run,
            "bits-per-byte",
            figures.bits_per_byte(
                metrics, compression, targets.get("bits_per_byte"), n_loops=n_loops
            ),
            [Metric.BITS_PER_BYTE, Metric.BITS_PER_BYTE_TINYRUST],
            reading=readings.read_bits(run),
        ),
        curve_block(
            run,
            "loss",
            figures.loss_curves(metrics, target=targets.get("loss")),
            [Metric.TASK_LOSS, Metric.LOSS, Metric.VAL_LOSS],
            reading=_read_loss(run, "pretrain"),
        ),
        *_entropy_blocks(run, vocab_size),
        curve_block(
            run,
            "ternary-codes",
            figures.ternary_codes(metrics),
            [Metric.ZERO_FRACTION, Metric.FLIP_RATE],
            reading=readings.trend(
                metrics, "pretrain", Metric.ZERO_FRACTION, "The share of zero codes", unit="%"
            ),
        ),
        *_training_blocks(run),
        *watch_blocks(run),
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
    status, facts = stage_status(run, "pretrain"), warning_facts(run)
    return Section("pretrain", title, intro, status, blocks, facts, groups)


def _entropy_blocks(run: RunData, vocab_size: int) -> list[Block]:
    """Return the two entropies, which are never mixed: of the next token, and of the exits."""
    metrics, n_loops = run.metrics, run.n_loops
    return [
        curve_block(
            run,
            "token-entropy",
            figures.token_entropy(metrics, vocab_size),
            [Metric.TOKEN_ENTROPY, Metric.VAL_LOSS],
            reading=readings.read_token_entropy(run),
        ),
        curve_block(
            run,
            "calibration-gap",
            figures.calibration_gap(metrics),
            [Metric.CALIBRATION_GAP],
            reading=readings.trend(
                metrics, "pretrain", Metric.CALIBRATION_GAP, "The gap", unit="nats"
            ),
        ),
        curve_block(
            run,
            "exit-entropy",
            figures.exit_entropy(metrics, n_loops),
            [Metric.EXIT_ENTROPY, Metric.EXPECTED_LOOPS],
            reading=readings.read_exit(run),
        ),
        curve_block(
            run,
            "exit-distribution",
            figures.exit_distribution(metrics, n_loops),
            [f"{Metric.EXIT_PDF}{i}" for i in range(1, n_loops + 1)],
            reading=readings.read_exit_distribution(run),
        ),
    ]


def _training_blocks(run: RunData) -> list[Block]:
    metrics, stage = run.metrics, "pretrain"
    return [
        curve_block(
            run,
            "learning-rate",
            figures.learning_rate(metrics),
            [Metric.LEARNING_RATE],
            reading=readings.read_learning_rate(run),
        ),
        curve_block(
            run,
            "gradient-norm",
            figures.gradient_norm(metrics),
            [Metric.GRAD_NORM],
            reading=readings.middle(metrics, stage, Metric.GRAD_NORM, "Gradient norm"),
        ),
        curve_block(
            run,
            "throughput",
            figures.throughput(metrics, target=run.targets.get("tokens_per_s")),
            [Metric.TOKENS_PER_S, Metric.PEAK_RSS_MIB],
            reading=readings.middle(metrics, stage, Metric.TOKENS_PER_S, "Tokens per second"),
        ),
    ]


def _read_loss(run: RunData, stage: str) -> str:
    metric, label = Metric.VAL_LOSS, "The held-out loss"
    if series(run.metrics, stage, metric).is_empty():
        metric, label = Metric.LOSS, "The training loss"
    return readings.trend(run.metrics, stage, metric, label, unit="nats per token")


def _long_context_section(run: RunData) -> Section:
    rows = run.summary("long_context").get("loss_by_position", [])
    short = run.config.get("pretrain", {}).get("seq_len")
    length = run.config.get("long_context", {}).get("seq_len", 0)
    reading = ""
    if rows:
        final = [(name, value) for name, value in rows[-1].items() if name != "position"]
        parts = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in final]
        reading = f"From position {rows[-1]['position']:,} on: {', '.join(parts)} nats per token."
    source = f"{len(rows)} positions; {run.machine}"
    figure, table = bars.loss_by_position(rows, short), frame_of(rows)
    blocks = [
        make_block("loss-by-position", figure, reading=reading, table=table, source=source),
        curve_block(
            run,
            "long-context-loss",
            figures.loss_curves(run.metrics, "long_context"),
            [Metric.TASK_LOSS, Metric.LOSS, Metric.VAL_LOSS],
            reading=_read_loss(run, "long_context"),
            stage="long_context",
        ),
    ]
    intro = f"{length:,} tokens after {short} in pre-training, with a raised RoPE base."
    intro = " ".join([intro, run.summary("long_context").get("note", "")]).strip()
    status = stage_status(run, "long_context")
    return Section("long-context", "4 · Longer context", intro, status, blocks)


def _evaluation_section(run: RunData) -> Section:
    results, wanted = run.results, {"pass@1": "pass_at_1"}
    metrics = results["metric"].unique(maintain_order=True).to_list() if results.height else []
    blocks = [
        _evaluation_block(run, metric, target=run.targets.get(wanted.get(metric, metric)))
        for metric in metrics or ["pass@1"]
    ]
    for task_set in _sets_with_parts(results):
        blocks.append(_evaluation_block(run, "pass@1", parts_of=task_set))
    if not metrics or not any(map(is_human_eval, results["task_set"])):
        why = (
            "no HumanEval-Rust file was given. Name one in eval.task_files (HumanEval-X Rust or "
            "MultiPL-E); the shipped set stands in for it here."
        )
        missing = figures.missing_figure("HumanEval-Rust", why)
        blocks.append(make_block("humaneval", missing, reading="", table=pl.DataFrame(), source=""))
    intro = (
        "Task sets are never added up: TinyRust measures what the model was taught, the shipped "
        "set and HumanEval-Rust measure Rust at large. Targets are lines, never bars. The semantic "
        "score grades how far programs get through the compiler; semantic ok means that the tests "
        "pass, clippy sees no mistake, and no unsafe code is left unchecked."
    )
    has_episodes = not run.episodes.is_empty()
    classes, gates = (run.summary("evaluate").get(k, []) for k in ("error_classes", "semantics"))
    text = f"Every problem with its outcome and source ({run.episodes.height:,} programs)"
    return Section(
        "evaluate",
        "5 · Evaluation",
        intro,
        stage_status(run, "evaluate"),
        blocks,
        facts=[*class_facts(classes), *gate_facts(gates)],
        groups=episode_groups(run),
        links=[(text, OUTCOMES_PAGE)] if has_episodes else [],
    )


def _sets_with_parts(results: pl.DataFrame) -> list[str]:
    names = results["task_set"].unique(maintain_order=True) if results.height else []
    return list(dict.fromkeys(name.split("/")[0] for name in names if "/" in name))


def _evaluation_block(
    run: RunData, metric: str, *, target: float | None = None, parts_of: str = ""
) -> Block:
    results = run.results
    figure = bars.evaluation_bars(results, metric, target, parts_of=parts_of)
    rows = results.filter(pl.col("metric") == metric) if results.height else results
    if parts_of:
        rows = rows.filter(pl.col("task_set").str.starts_with(f"{parts_of}/"))
    n = rows["n_problems"].max() if rows.height else 0
    reading = readings.read_evaluation(results, metric)
    return make_block(
        metric_anchor(f"{metric} {parts_of}"),
        figure,
        reading=f"The same samples, by part of {parts_of}." if parts_of else reading,
        table=rows,
        source=f"up to {n:,} problems; sandbox {run.sandbox or 'not recorded'}; "
        f"decoded on {run.decoded_on('evaluate')}; {run.machine}",
    )


def _kernel_section(run: RunData) -> Section:
    rows = run.summary("kernels").get("bench", [])
    blocks = []
    for anchor, section, figure, reading in (
        ("kernel-speed", "warm", speed.kernel_bars(rows), readings.read_kernels(rows)),
        ("memory-roof", "working_set", speed.memory_roofline(rows), readings.read_roof(rows)),
        ("exit-speed", "exit", speed.exit_speed(rows), readings.read_exits(rows)),
        ("token-parts", "part", speed.token_parts(rows), readings.read_parts(rows)),
    ):
        part = [row for row in rows if row.get("section") == section]
        n_repeats = max((row["n_repeats"] for row in part), default=0)
        timed = f"{len(part)} timings, one thread, medians of {n_repeats} interleaved"
        source = f"{timed}; {run.machine}"
        table = frame_of(part)
        blocks.append(make_block(anchor, figure, reading=reading, table=table, source=source))
    intro = (
        "Packed ternary weights times int8 activations, integers equal on every backend, and the "
        "engine that decodes with them."
    )
    return Section("kernels", "6 · Kernels", intro, stage_status(run, "kernels"), blocks)


def _publish_section(run: RunData) -> Section:
    folder = run.dir / "artifacts" / "publish"
    checklist = run.summary("publish").get("checklist", [])
    facts = [
        (str(item.get("item", "")), f"{'done' if item.get('done') else 'not done'}: "
         f"{item.get('where', '')}")
        for item in checklist
    ]  # fmt: skip
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts += [(str(path.relative_to(folder)), _size_text(path.stat().st_size)) for path in files]
    intro = "The checklist and the files made for publication."
    intro = intro if facts else "Nothing was exported in this run."
    return Section("publish", "7 · Publication", intro, stage_status(run, "publish"), facts=facts)


def _size_text(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"
