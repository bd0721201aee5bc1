"""What a training stage watched besides its loss: warnings, free text, tasks, gradients, peak.

In: a `RunData`; out: blocks for the section of pre-training, and its warnings as facts. A run that
did not record a quantity has no block for it.
"""

from __future__ import annotations

from typing import Any

from nanochat_lib.records import Metric
from nanochat_lib.report.content import readings
from nanochat_lib.report.content.blocks import Block, curve_block
from nanochat_lib.report.plots.figures import Line, curves
from nanochat_lib.report.run_data import RunData, read_json, series

STAGE = "pretrain"
GROUPS = ("attention", "feed_forward", "embedding", "head", "norms", "exit_gate")
ROLES = ("blue", "orange", "green", "purple", "muted", "text")
# anchor, title, axis, sentence's subject, its unit, metrics with their labels; the first is read.
BLOCKS: tuple[tuple[str, str, str, str, str, dict[str, str]], ...] = (
    (
        "task-evaluation", "Tasks judged by rustc during training", "rate", "The compile rate",
        "%", {
            Metric.COMPILE_RATE: "compile rate", Metric.SEMANTIC_SCORE: "semantic score",
            f"{Metric.PASS_AT}1": "pass@1", f"{Metric.PASS_AT}4": "pass@4",
        },
    ),
    (
        "free-text", "Free-running text", "share", "Distinct pairs of tokens", "%", {
            Metric.DISTINCT_2: "distinct-2", Metric.DISTINCT_1: "distinct-1",
            Metric.REPETITION: "repetition (runs of 4 seen before)",
        },
    ),
    (
        "gradient-groups", "Gradient norm by group", "norm", "The norm of attention's gradients",
        "", {f"{Metric.GRAD_NORM_GROUP}{g}": g.replace("_", " ") for g in GROUPS},
    ),
    (
        "peak-share", "Share of this machine's matmul peak", "share of the measured peak",
        "The share", "%", {Metric.PEAK_SHARE: "the model's own FLOPs"},
    ),
)  # fmt: skip


def watch_blocks(run: RunData) -> list[Block]:
    """Return one block for each quantity that the run recorded."""
    blocks = []
    for anchor, title, axis, subject, unit, labels in BLOCKS:
        found = {m: t for m, t in labels.items() if series(run.metrics, STAGE, m).height}
        if not found:
            continue
        lines = [Line(m, text, ROLES[i]) for i, (m, text) in enumerate(found.items())]
        first = next(iter(found))
        blocks.append(
            curve_block(
                run,
                anchor,
                curves(run.metrics, STAGE, lines, title=title, y_title=axis),
                list(found),
                reading=readings.trend(run.metrics, STAGE, first, subject, unit=unit),
            )
        )
    return blocks


def warning_facts(run: RunData) -> list[tuple[str, str]]:
    """Return the warnings of pre-training: quantity, and value, band, meaning and advice."""
    path = run.artifact(STAGE, "warnings.json")
    rows = (read_json(path) if path.is_file() else None) or []
    facts = [(f"{_kind(row)}: {row['quantity']}", _sentence(row)) for row in rows]
    return sorted(facts, key=lambda fact: fact[0].startswith("Note"))


def _kind(row: dict[str, Any]) -> str:
    return "Note" if row["is_note"] else "Warning"


def _sentence(row: dict[str, Any]) -> str:
    low, high = row["low"], row["high"]
    band = f"{low:g} to {high:g}" if None not in (low, high) else ""
    band = band or (f"at most {high:g}" if low is None else f"at least {low:g}")
    whose = "the brief's band" if row["is_note"] else "healthy"
    first, last = row["first_step"], row["last_step"]
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    guide = f" See {row['guide']}." if row["guide"] else ""
    return (
        f"{row['value']:.3g} at {steps}; {whose}: {band}. {row['meaning']} "
        f"Try: {row['advice']}.{guide}"
    )
