"""Rows and files of stage 1: Parquet, tasks, shards, and the numbers of the summary.

Input: judged candidates and TinyRust examples. Output: the files that later stages and reports
read. `cpu_ms` is left empty in Parquet: it is the one column that differs between two equal runs;
its sum is in the summary.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import zstandard

from nanochat_lib.config import RunConfig
from nanochat_lib.data.difficulty import CLASSES, difficulty_of
from nanochat_lib.data.select import TRAIN
from nanochat_lib.data.shards import write_index, write_shard
from nanochat_lib.data.sources.candidates import Candidate
from nanochat_lib.data.tinyrust.generate import TinyExample
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.records import (
    VERIFIED_COLUMNS,
    Level,
    RustSource,
    Verdict,
    Verified,
    as_row,
)
from nanochat_lib.runs import write_atomic, write_binary
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.syntax import SyntaxFeatures, features

_COMPRESSED_BYTES = 8_000_000  # of held-out text at most; xz -9e takes a second for each million
_LIST_COLUMNS = {"codes": pl.List(pl.String)}
_INTEGERS = (
    "n_tests", "cyclomatic_complexity", "n_lines", "explicit_lifetimes", "unsafe_blocks",
    "max_nesting",
)  # fmt: skip
# What differs between two equal runs: libtest's number of a thread, the module a batch gave.
_RUN_MARKS = re.compile(r"(?<=') \(\d+\)|\bp\d{4}_[0-9a-f]{12}::")


@dataclass(frozen=True)
class Judged:
    """A candidate with its judgement, and the split it was given."""

    candidate: Candidate
    verified: Verified
    split: str = ""

    @property
    def row(self) -> RustSource:
        """Return the row without its judgement."""
        return self.candidate.row

    @property
    def compiled(self) -> bool:
        """Return whether a full build succeeded."""
        return self.verified.verdict.compiled


@dataclass(frozen=True)
class Chosen:
    """The real rows that are kept, with what balancing found."""

    kept: list[Judged]
    difficulty_before: Counter[str]
    deficit: dict[str, int]


@dataclass
class TinyRust:
    """Generated examples by outcome."""

    passed: list[tuple[TinyExample, Verified]] = field(default_factory=list)
    rejected: list[tuple[TinyExample, Verified]] = field(default_factory=list)
    n_benchmark_text: int = 0

    def texts(self, *, is_train: bool) -> list[str]:
        """Return the texts of the training split, or of all held-out splits."""
        return [e.text for e, _ in self.passed if (e.task.split == TRAIN) == is_train]


def difficulty(judged: Judged) -> str:
    """Return the difficulty of a row's text."""
    return difficulty_of(_features(judged.row.text))


@lru_cache(maxsize=1 << 16)
def _features(text: str) -> SyntaxFeatures:
    """Walk a text's tree once: balancing, the tables and the summary all ask for it."""
    return features(text)


def write_corpus(
    folder: Path,
    config: RunConfig,
    judged: Sequence[Judged],
    chosen: Chosen,
    tiny: TinyRust,
) -> dict[str, Any]:
    """Write every file but the summary, and return the numbers that come from writing them."""
    _write_tables(folder, judged, chosen, tiny)
    tasks = [json.dumps(as_row(e.task), ensure_ascii=False) for e, _ in tiny.passed]
    write_atomic(folder / "tasks.jsonl", "".join(line + "\n" for line in tasks))
    real = {s: [j.row.text for j in chosen.kept if j.split == s] for s in (TRAIN, "validation")}
    held_out = "\n".join(real["validation"])
    write_atomic(folder / "validation_real.txt", held_out)
    tiny_train, tiny_held = tiny.texts(is_train=True), tiny.texts(is_train=False)
    tokenizer = train_tokenizer([*real[TRAIN], *tiny_train], config.model.vocab_size)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    texts = {
        "real_train": real[TRAIN],
        "real_validation": real["validation"],
        "tinyrust_train": tiny_train,
        "tinyrust_validation": tiny_held,
    }
    infos = {n: write_shard(shards / f"{n}.bin", t, tokenizer) for n, t in texts.items()}
    write_index(shards, infos)
    validation = infos["real_validation"]
    return {
        "tokenizer": {
            "vocab_size": tokenizer.get_vocab_size(),
            "bytes_per_token": validation.n_bytes / max(validation.n_tokens, 1),
        },
        "compression": compression(held_out),
        "tokens": {name: info.n_tokens for name, info in infos.items()},
    }


def compression(text: str) -> dict[str, float]:
    """Return what `xz -9e` and `zstd -19` need for a text, in bits per byte of it."""
    data = text.encode()[:_COMPRESSED_BYTES]
    packed = {
        "xz_bits_per_byte": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "zstd_bits_per_byte": zstandard.ZstdCompressor(level=19).compress(data),
    }
    per_byte = {name: 8 * len(found) / max(len(data), 1) for name, found in packed.items()}
    return {**per_byte, "n_bytes": len(data)}


def summarise(
    config: RunConfig,
    judged: Sequence[Judged],
    chosen: Chosen,
    tiny: TinyRust,
    rechecked: dict[str, int],
) -> dict[str, Any]:
    """Return rates, error codes, difficulty and licences; real Rust and TinyRust stay apart."""
    verdicts = [j.verified for j in judged]
    tiny_verdicts = [v for _, v in (*tiny.passed, *tiny.rejected)]
    data = config.data
    return {
        "compile_rate": {
            "before": _compiled(verdicts),
            "after": rechecked,
            "by_source": _by_source(judged, tiny),
        },
        "semantic_rate": _semantic(verdicts),
        "error_codes": _error_codes(verdicts),
        "verdicts": dict(sorted(Counter(str(v.verdict) for v in verdicts).items())),
        "difficulty": {
            "before": {name: chosen.difficulty_before[name] for name in CLASSES},
            "after": _counts((difficulty(j) for j in chosen.kept), CLASSES),
            "wanted": dict(
                zip(CLASSES, (data.easy_share, data.medium_share, data.hard_share), strict=True)
            ),
            "deficit": chosen.deficit,
        },
        "licences": [
            {"licence": name, "n": n}
            for name, n in sorted(Counter(j.row.licence for j in chosen.kept).items())
        ],
        "tinyrust": {
            "n": len(tiny.passed),
            "by_level": _counts(str(e.task.level) for e, _ in tiny.passed),
            "by_split": _counts(e.task.split for e, _ in tiny.passed),
            "n_families": len({e.task.family for e, _ in tiny.passed}),
            "n_rejected": len(tiny.rejected),
            "n_benchmark_text": tiny.n_benchmark_text,
        },
        "sandbox": next((v.sandbox for v in (*verdicts, *tiny_verdicts) if v.sandbox), ""),
        "n_unjudged": sum(v.verdict is Verdict.UNJUDGED for v in (*verdicts, *tiny_verdicts)),
        "verify_cpu_s": round(
            sum(v.cpu_ms for v in (*verdicts, *tiny_verdicts) if not v.cached) / 1000, 2
        ),
    }


def _write_tables(folder: Path, judged: Sequence[Judged], chosen: Chosen, tiny: TinyRust) -> None:
    kept = [_judged_row(j) for j in chosen.kept]
    kept += [_tiny_row(e, v) for e, v in tiny.passed]
    lost = [_judged_row(j) for j in judged if j.verified.verdict is not Verdict.PASSED]
    lost += [_tiny_row(e, v) for e, v in tiny.rejected]
    for name, found in (("verified", kept), ("rejected", lost)):
        table = pl.DataFrame(found, schema=table_schema())
        write_binary(folder / f"{name}.parquet", table.write_parquet)


def _judged_row(judged: Judged) -> dict[str, Any]:
    return table_row(judged.candidate, judged.verified, _features(judged.row.text), judged.split)


def _tiny_row(example: TinyExample, verified: Verified) -> dict[str, Any]:
    split = example.task.split
    return table_row(_tiny_candidate(example), verified, _features(example.text), split)


def table_schema() -> dict[str, Any]:
    """Return the columns of both tables with their types."""
    schema: dict[str, Any] = dict.fromkeys(VERIFIED_COLUMNS, pl.String)
    schema |= _LIST_COLUMNS | dict.fromkeys(_INTEGERS, pl.Int64) | {"cpu_ms": pl.Float64}
    return schema


def table_row(
    candidate: Candidate, verified: Verified, found: SyntaxFeatures, split: str = ""
) -> dict[str, Any]:
    """Return one line of a table: the source, its judgement, its syntax."""
    source = candidate.row
    values = {
        **as_row(source),
        **as_row(found),
        "program": candidate.program,
        "edition": candidate.edition,
        "sha256": hashlib.sha256(source.text.encode()).hexdigest(),
        "level": str(verified.level),
        "verdict": str(verified.verdict),
        "codes": list(verified.codes),
        "detail": _detail(verified),
        "sandbox": verified.sandbox,
        "cpu_ms": None,
        "n_tests": verified.n_tests,
        "split": split,
        "difficulty": difficulty_of(found),
    }
    return {name: values[name] for name in VERIFIED_COLUMNS}


def _detail(verified: Verified) -> str:
    """Return the first error with its place, or the judge's own words."""
    for found in verified.diagnostics:
        if found.level == "error":
            code = f" [{found.code}]" if found.code else ""
            return _RUN_MARKS.sub("", f"line {found.line}{code}: {found.message}")
    return _RUN_MARKS.sub("", verified.detail)


def _tiny_candidate(example: TinyExample) -> Candidate:
    task = example.task
    row = RustSource(
        source_id=task.task_id,
        text=example.text,
        kind="tinyrust",
        source="tinyrust",
        package=f"level{task.level}",
        path=task.family,
        licence="MIT",
        group=f"tinyrust/{task.family}",
    )
    program = assemble(task, task.canonical_solution)
    return Candidate(row, program.source, program.edition)


def _compiled(verdicts: Iterable[Verified]) -> dict[str, int]:
    judged = [v for v in verdicts if v.verdict is not Verdict.UNJUDGED]
    return {"n_compiled": sum(v.verdict.compiled for v in judged), "n_judged": len(judged)}


def _by_source(judged: Sequence[Judged], tiny: TinyRust) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Verified]] = {}
    for item in judged:
        is_docs = item.row.source == "toolchain_docs"
        source = f"toolchain_docs/{item.row.package}" if is_docs else item.row.source
        groups.setdefault((source, item.row.kind), []).append(item.verified)
    for _, verified in (*tiny.passed, *tiny.rejected):
        groups.setdefault(("tinyrust", "tinyrust"), []).append(verified)
    return [
        {"source": source, "kind": kind, **_compiled(found)}
        for (source, kind), found in sorted(groups.items())
    ]


def _semantic(verdicts: Iterable[Verified]) -> dict[str, int]:
    """Count, of the programs that were built to be run, those that ran to their end."""
    was_run = [v for v in verdicts if v.level is Level.TEST and _has_started(v.verdict)]
    n_passed = sum(v.verdict is Verdict.PASSED for v in was_run)
    return {"n_passed": n_passed, "n_judged": len(was_run)}


def _has_started(verdict: Verdict) -> bool:
    return verdict.compiled or verdict in (Verdict.TIMEOUT, Verdict.RESOURCE_LIMIT)


def _error_codes(verdicts: Iterable[Verified]) -> list[dict[str, Any]]:
    """Count rejected programs by the code of their first error, with one message as example."""
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for verified in verdicts:
        first = next((d for d in verified.diagnostics if d.level == "error"), None)
        if first is not None and not verified.verdict.compiled:
            code = first.code or "no code"
            counts[code] += 1
            messages.setdefault(code, _RUN_MARKS.sub("", first.message))
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"code": code, "n": n, "message": messages[code]} for code, n in order]


def _counts(names: Iterable[str], order: Sequence[str] = ()) -> dict[str, int]:
    found = Counter(names)
    return {name: found[name] for name in (order or sorted(found))}
