"""A made-up run folder with the files a real run writes, for tests of the reports only.

The curves are smooth formulas with seeded noise; they are nobody's measurements.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl
from maxrl_factory import maxrl_summary, maxrl_values

from nanochat_lib.config import RunConfig
from nanochat_lib.records import Metric
from nanochat_lib.runs import METRIC_SCHEMA

STAGES = ("preprocess", "pretrain", "maxrl", "long_context", "evaluate", "kernels", "publish")
HOSTILE = 'fn f() -> &\'static str {\n    "<script>window.hacked = 1</script>"\n}\n'


def make_run(
    runs_dir: Path,
    run_id: str = "made_up",
    *,
    stages: tuple[str, ...] = STAGES,
    steps: int = 400,
    targets: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a run folder as the stages named would leave it, and return its path."""
    config = RunConfig.model_validate(
        {"profile": "laptop", "model": {"n_loops": 4}, "targets": targets or {}}
    )
    folder = runs_dir / run_id
    folder.mkdir(parents=True)
    write_json(folder / "run.json", run_state(run_id, config, stages))
    noise = random.Random(seed)
    rows = [row for stage in stages for row in metric_rows(stage, steps, noise)]
    frame = pl.DataFrame([(run_id, *row) for row in rows], schema=METRIC_SCHEMA, orient="row")
    frame.write_parquet(folder / "metrics.parquet")
    for stage in stages:
        artifacts = folder / "artifacts" / stage
        artifacts.mkdir(parents=True)
        WRITERS.get(stage, lambda _: None)(artifacts)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "02_pretrain.ipynb").write_text("{}", encoding="utf-8")
    return folder


def run_state(run_id: str, config: RunConfig, stages: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of run.json."""
    return {
        "run_id": run_id,
        "created": "2026-03-01T12:00:00.000+00:00",
        "profile": config.profile,
        "config": config.model_dump(mode="json"),
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "machine": {"cpu": "Made-up CPU", "cores": 2, "memory_gb": 24.0, "os": "Linux",
                    "cpu_features": ["avx2"], "gpus": []},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "rustc": "rustc 1.85.0 (made up)",
        "sandbox": "landlock+seccomp",
        "lock_hash": "f" * 64,
        "stages": {
            name: {"status": "completed", "started": "2026-03-01T12:00:00.000+00:00",
                   "finished": "2026-03-01T12:01:00.000+00:00", "seconds": 60.0, "error": ""}
            for name in stages
        },
    }  # fmt: skip


def metric_rows(
    stage: str, steps: int, noise: random.Random
) -> list[tuple[str, int, str, float, float]]:
    """Return (stage, step, name, value, wall_s) rows of a training stage."""
    make = {"pretrain": _pretrain_values, "maxrl": maxrl_values, "long_context": _long_values}
    if stage not in make:
        return []
    last = {"pretrain": steps, "maxrl": 12, "long_context": 12}[stage]
    return [
        (stage, step, str(name), float(value), step * 0.2)
        for step in range(1, last + 1)
        for name, value in make[stage](step, last, noise).items()
    ]


def _pretrain_values(step: int, last: int, noise: random.Random) -> dict[str, float]:
    progress = step / last
    loss = 2.4 + 5.2 * math.exp(-6 * progress) + noise.gauss(0, 0.06)
    raw = [math.exp(-0.5 * (i - 2.2 * progress) ** 2 / 2.5) for i in range(4)]
    pdf = [value / sum(raw) for value in raw]
    exit_entropy = -sum(p * math.log(p) for p in pdf)
    values = {
        Metric.LOSS: loss - 0.05 * exit_entropy,
        Metric.TASK_LOSS: loss,
        Metric.TOKEN_ENTROPY: loss + 0.25 * math.exp(-4 * progress) - 0.08,
        Metric.CALIBRATION_GAP: 0.25 * math.exp(-4 * progress) - 0.08 + noise.gauss(0, 0.02),
        Metric.EXIT_ENTROPY: exit_entropy,
        Metric.EXPECTED_LOOPS: sum((i + 1) * p for i, p in enumerate(pdf)),
        Metric.LEARNING_RATE: 0.003 * min(1.0, step / 20, 3.4 * (1 - progress) + 1e-3),
        Metric.GRAD_NORM: 0.6 + 2 * math.exp(-8 * progress) + abs(noise.gauss(0, 0.1)),
        Metric.TOKENS_PER_S: 11000 + noise.gauss(0, 350),
        Metric.PEAK_RSS_MIB: 1800 + 60 * progress,
    }
    values |= {f"{Metric.EXIT_PDF}{i}": p for i, p in enumerate(pdf, start=1)}
    if step % 50 == 0 or step == 1:
        bits = 1.72 + 5.5 * math.exp(-7 * progress)
        values |= {
            Metric.VAL_LOSS: loss + 0.1,
            Metric.BITS_PER_BYTE: bits,
            Metric.BITS_PER_BYTE_TINYRUST: 0.35 + 6 * math.exp(-9 * progress),
            Metric.ZERO_FRACTION: 0.38 - 0.05 * progress,
            Metric.FLIP_RATE: 0.2 * math.exp(-4 * progress),
        }
        values |= {f"{Metric.BITS_PER_BYTE_LOOP}{i}": bits + 0.12 * (4 - i) for i in range(1, 5)}
    return values


def _long_values(step: int, last: int, noise: random.Random) -> dict[str, float]:
    loss = 2.6 - 0.15 * step / last + noise.gauss(0, 0.02)
    return {Metric.LOSS: loss, Metric.TASK_LOSS: loss, Metric.TOKENS_PER_S: 7000.0}


def _write_preprocess(folder: Path) -> None:
    write_json(folder / "summary.json", {
        "funnel": [
            {"step": "collected", "n": 2400}, {"step": "licence allowed", "n": 2310},
            {"step": "parses", "n": 2255}, {"step": "distinct", "n": 2170},
            {"step": "compiles", "n": 1640}, {"step": "runs or passes", "n": 1602},
        ],
        "compile_rate": {
            "before": {"n_compiled": 1640, "n_judged": 2160},
            "after": {"n_compiled": 1602, "n_judged": 1602},
            "by_source": [
                {"source": "toolchain_docs", "kind": "doc_example", "n_compiled": 1450,
                 "n_judged": 1800},
                {"source": "toolchain_docs", "kind": "function", "n_compiled": 110,
                 "n_judged": 270},
                {"source": "tinyrust", "kind": "tinyrust", "n_compiled": 80, "n_judged": 90},
            ],
        },
        "semantic_rate": {"n_passed": 1602, "n_judged": 1640},
        "gates": {
            "clippy": "asked", "n_asked": 1602, "n_linted": 27, "n_unjudged": 1, "n_unsafe": 90,
            "lints": [{"lint": "clippy::eq_op", "n": 27}],
        },
        "error_codes": [
            {"code": "E0425", "n": 210, "message": "cannot find value `x` in this scope"},
            {"code": "E0433", "n": 120, "message": "failed to resolve: use of undeclared type"},
            {"code": "E0308", "n": 66, "message": "mismatched types: expected `Vec<T>`"},
            {"code": "", "n": 9, "message": "<a href='https://example.com'>link</a>"},
        ],
        "difficulty": {
            "before": {"easy": 1100, "medium": 380, "hard": 122},
            "after": {"easy": 400, "medium": 660, "hard": 122},
            "wanted": {"easy": 0.3, "medium": 0.5, "hard": 0.2},
            "deficit": {"easy": 0, "medium": 0, "hard": 142},
        },
        "augmentation": [
            {"rewrite": "rename_locals", "n_applied": 90, "n_duplicate": 2, "n_judged": 88,
             "n_unjudged": 0, "n_accepted": 86, "rate": 86 / 88},
            {"rewrite": "loop_to_while", "n_applied": 0, "n_duplicate": 0, "n_judged": 0,
             "n_unjudged": 0, "n_accepted": 0, "rate": 0.0},
        ],
        "vocabularies": [
            {"name": "ours", "vocab_size": 2048, "n_bytes": 98000, "n_tokens": 38600,
             "bytes_per_token": 98000 / 38600},
            {"name": "BPE on the same text", "vocab_size": 4096, "n_bytes": 98000,
             "n_tokens": 33800, "bytes_per_token": 98000 / 33800},
            {"name": "GPT-2: not here", "vocab_size": 0, "n_bytes": 0, "n_tokens": 0,
             "bytes_per_token": 0.0},
        ],
        "licences": [{"licence": "MIT OR Apache-2.0", "n": 1600}, {"licence": "unknown", "n": 2}],
        "tokenizer": {"vocab_size": 2048, "bytes_per_token": 2.54},
        "compression": {"xz_bits_per_byte": 1.83, "zstd_bits_per_byte": 1.98, "n_bytes": 98000},
        "tokens": {"real_train": 310000, "real_validation": 24000, "tinyrust_train": 520000,
                   "tinyrust_validation": 40000},
        "tinyrust": {"n": 4000, "by_level": {"1": 1500, "2": 1500, "3": 1000}, "n_families": 23},
        "sandbox": "landlock+seccomp", "rustc": "rustc 1.85.0 (made up)", "n_unjudged": 4,
        "seconds": {"verify": 41.0},
    })  # fmt: skip


def _write_pretrain(folder: Path) -> None:
    code = (
        "\n    let mut best = values[0];\n    for v in values {\n        if *v > best {}\n    }\n}"
    )
    samples = [
        {"prompt": "fn largest(values: &[i32]) -> i32 {", "completion": code},
        {"prompt": "fn f() -> &'static str {", "completion": HOSTILE},
    ]
    write_json(folder / "summary.json", {"samples": samples, "parameters_stored": 2_622_977})


def _write_long_context(folder: Path) -> None:
    rows = [
        {"position": p, "before": 2.5 + max(0, p - 256) / 500, "after": 2.6 - p / 9e3,
         "short_context": 2.58}
        for p in range(0, 1024, 128)
    ]  # fmt: skip
    write_json(folder / "summary.json", {"loss_by_position": rows})


def _write_evaluate(folder: Path) -> None:
    tiny = {"compile_rate": (0.62, 0.86), "semantic_score": (0.6, 0.84), "pass@1": (0.3, 0.58)}
    rates = {
        "tinyrust": tiny,
        "tinyrust/level1": {"pass@1": (0.5, 0.8)},
        "tinyrust/held_family": {"pass@1": (0.02, 0.05)},
        "builtin": {
            "compile_rate": (0.2, 0.26),
            "semantic_score": (0.2, 0.25),
            "pass@1": (0, 0.02),
        },
        "humaneval_x": {"compile_rate": (0.1, 0.12), "pass@1": (0.0, 0.0)},
    }
    rows = [
        {"checkpoint": checkpoint, "task_set": task_set, "metric": metric, "rate": pair[i],
         "low": max(0.0, pair[i] - 0.07), "high": pair[i] + 0.07, "n_correct": round(192 * pair[i]),
         "n_samples": 192, "n_problems": 48, "n_unjudged": 0}
        for task_set, metrics in rates.items()
        for i, checkpoint in enumerate(("pretrain", "maxrl"))
        for metric, pair in metrics.items()
    ]  # fmt: skip
    pl.DataFrame(rows).write_parquet(folder / "results.parquet")
    gates = {"n_passed": 80, "n_ok": 76, "n_lints": 3, "n_unsafe": 1, "n_unknown": 0}
    gates |= {"checkpoint": "maxrl", "task_set": "tinyrust", "n_repeated": 150, "n_flaky": 2}
    place = {"checkpoint": "maxrl", "task_set": "tinyrust", "n_judged": 192}
    classes = [place | {"class": "types", "n": 31}, place | {"class": "ownership", "n": 4}]
    write_json(folder / "summary.json", {"semantics": [gates], "error_classes": classes})
    pl.DataFrame([_episode(c, i) for c in ("pretrain", "maxrl") for i in range(4)]).write_parquet(
        folder / "episodes.parquet"
    )


def _episode(checkpoint: str, i: int) -> dict[str, Any]:
    passed = checkpoint == "maxrl" or i == 3
    return {
        "task_id": f"sum_where/{i}", "checkpoint": checkpoint, "task_set": "tinyrust", "level": 1,
        "family": "filter_sum", "split": "held_parameters", "sample_idx": 0,
        "completion": HOSTILE if i == 2 else "\n    values.iter().filter(|v| **v > 3).sum()\n}",
        "verdict": "PASSED" if passed else ("COMPILE_ERROR" if i else "TEST_FAILED"),
        "prompt": "fn sum_where(values: &[i32]) -> i32 {",
        "codes": [] if passed else ["E0308"], "n_tokens": 21, "expected_loops": 2.4,
        "detail": "" if passed else "mismatched types: expected `i32`, found `Vec<i32>`",
    }  # fmt: skip


def _write_maxrl(folder: Path) -> None:
    write_json(folder / "summary.json", maxrl_summary(HOSTILE))


def _write_kernels(folder: Path) -> None:
    speeds = {
        ("dense_f32", "numpy"): 1.0,
        ("ternary", "generic"): 2.1,
        ("ternary", "avx2"): 9.4,
        ("dense_f32", "numba"): 0.8,
        ("dense_f32", "torch"): 1.1,
        ("dense_bf16", "torch"): 1.9,
    }
    rows = [
        {
            "section": "warm",
            "kernel": kernel,
            "backend": backend,
            "n": n,
            "k": k,
            "batch": batch,
            "threads": 1,
            "us_median": 90 * batch / speed,
            "gb_per_s": 0.9 * speed,
            "gops": 7.0 * speed * batch,
            "ratio_to_numpy_f32": speed / batch**0.2,
            "n_repeats": 9,
        }
        for n, k in ((768, 256), (256, 768), (2560, 2560))
        for batch in (1, 8, 32)
        for (kernel, backend), speed in speeds.items()
    ]
    common = {"section": "working_set", "n": 2048, "k": 2048, "us_median": 50.0, "n_repeats": 5}
    rows += [
        common | {"kernel": kernel, "backend": "amx", "packing": packing, "set_mb": mb,
                  "gb_per_s": rate / (1 + mb / 100)}
        for mb in (1.0, 32.0, 640.0)
        for kernel, packing, rate in (("read", "", 90.0), ("ternary", "2bit", 80.0),
                                      ("ternary", "base3", 60.0))
    ]  # fmt: skip
    rows += [
        {"section": "exit", "what": "engine", "n_repeats": 3, "n_tokens": 48, "speedup": 1 / depth,
         "exit_threshold": depth, "mean_loops": 4 * depth, "tokens_per_s": 2000 / depth}
        for depth in (0.5, 0.8, 1.0)
    ]  # fmt: skip
    rows += [
        {"section": "part", "what": what, "us": us, "n_repeats": 6, "of_kernels": 1.1}
        for what, us in (("products", 150.0), ("head", 50.0), ("rest", 20.0), ("token", 220.0))
    ]
    write_json(folder / "bench.json", rows)


def _write_publish(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"\0" * 4096)
    (folder / "README.md").write_text("made up", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


WRITERS = {
    "preprocess": _write_preprocess,
    "pretrain": _write_pretrain,
    "maxrl": _write_maxrl,
    "kernels": _write_kernels,
    "long_context": _write_long_context,
    "evaluate": _write_evaluate,
    "publish": _write_publish,
}
