"""What flows between the floors: frozen dataclasses, their Parquet columns, and metric names.

A `RustSource` becomes a `Program`, which the compiler turns into a `Verified`; a `Task` is a
program with a hole, an `Episode` one attempt at it. Metrics are rows (see `runs.py`). On disk
everything is Parquet or JSON, readable without this project.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """Outcome of verification; UNJUDGED: could not be judged, which is not a failure."""

    PARSE_ERROR = "PARSE_ERROR"
    COMPILE_ERROR = "COMPILE_ERROR"
    BUILD_ERROR = "BUILD_ERROR"
    RUN_ERROR = "RUN_ERROR"
    TEST_FAILED = "TEST_FAILED"
    TIMEOUT = "TIMEOUT"
    RESOURCE_LIMIT = "RESOURCE_LIMIT"
    UNJUDGED = "UNJUDGED"
    PASSED = "PASSED"

    @property
    def compiled(self) -> bool:
        """Return whether a full build succeeded (only meaningful at levels `build` and `test`)."""
        return self in _COMPILED


_COMPILED = frozenset({Verdict.RUN_ERROR, Verdict.TEST_FAILED, Verdict.PASSED})


class Level(StrEnum):
    """How far a program is judged."""

    SYNTAX = "syntax"
    CHECK = "check"
    BUILD = "build"
    TEST = "test"


@dataclass(frozen=True)
class RustSource:
    """One piece of Rust with its origin: an example, a function, a TinyRust program."""

    source_id: str  # unique within a corpus: "<source>/<package>/<path>#<n>"
    text: str
    kind: str  # "doc_example" | "function" | "test" | "file" | "tinyrust"
    source: str  # "toolchain_docs" | "folder" | "debian" | "pypi" | "hub" | "tinyrust"
    package: str
    path: str
    licence: str  # SPDX expression, or "unknown"
    group: str  # rows of one group never cross the train/validation border
    runnable: bool = True  # False: compile only (`no_run`)
    must_panic: bool = False  # `should_panic` of rustdoc
    version: str = ""  # of the package; empty: not known


@dataclass(frozen=True)
class Program:
    """A complete Rust program to judge: items and `#[test]` functions, or a `fn main`."""

    program_id: str
    source: str
    edition: str = "2021"


@dataclass(frozen=True)
class Diagnostic:
    """One rustc message with its span; the end column is the first one behind it.

    Lines and columns count from 1 in the program's own text; 0: no place.
    """

    level: str  # "error" | "warning" | ...
    code: str  # "E0382", a lint name, or ""
    message: str
    line: int = 0
    column: int = 0
    end_line: int = 0
    end_column: int = 0


@dataclass(frozen=True)
class Verified:
    """The judgement of one `Program`."""

    program_id: str
    verdict: Verdict
    level: Level
    diagnostics: tuple[Diagnostic, ...] = ()
    detail: str = ""  # why UNJUDGED, which limit, the panic message: plain text
    sandbox: str = ""  # "landlock+seccomp" | "bubblewrap" | "none"
    cpu_ms: float = 0.0  # this program's share of compile and run CPU time
    cached: bool = False
    n_tests: int = 0  # tests that ran

    @property
    def codes(self) -> tuple[str, ...]:
        """Return the distinct error codes in order of appearance."""
        errors = (d.code for d in self.diagnostics if d.level == "error" and d.code)
        return tuple(dict.fromkeys(errors))


@dataclass(frozen=True)
class SemanticFindings:
    """What is known of a program's meaning: its tests and the two gates behind them.

    `clippy` is "clean", "lints", "not available", "not judged" or "not asked" (the tests did not
    pass); `miri` is "not needed" (no unsafe code), "clean", "undefined behaviour", "not available",
    "not judged" or "not asked".
    """

    program_id: str
    passed: bool  # builds, tests ran, all passed
    clippy: str
    miri: str
    lints: tuple[str, ...] = ()  # distinct lints of `clippy::correctness` in the program's own text
    n_unsafe: int = 0  # `unsafe` and attributes as strong, in the program's own text


@dataclass(frozen=True)
class Task:
    """A prompt with hidden tests: TinyRust, the shipped set, HumanEval-X and MultiPL-E alike.

    `prompt` holds the doc comment and the signature up to and including the opening brace, with
    **no trailing whitespace** (a newline there breaks the token boundary, see docs);
    `canonical_solution` is the rest of the function, from the newline after that brace to its
    closing brace; `tests` is a `#[cfg(test)] mod tests { use super::*; ... }` block.
    The program is `prelude + prompt + completion + "\\n" + tests`.
    """

    task_id: str
    prompt: str
    canonical_solution: str
    tests: str
    task_set: str  # "tinyrust" | "builtin" | "corpus" | "humaneval_x" | "multipl_e" | file stem
    prelude: str = ""  # `use` lines or stand-ins that the model does not see
    level: int = 0  # TinyRust 1..5; 0: not graded
    family: str = ""  # of the corpus: the package
    split: str = ""  # "train" | "held_parameters" | "held_composition" | "held_family" (TinyRust)
    # | "held_package" (corpus)
    mutant: str = ""  # a wrong completion that must fail (shipped set)
    stop_tokens: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # flaws; of the corpus: "documentation" | "unit_tests", licence


@dataclass(frozen=True)
class Episode:
    """One attempt at a task, with its judgement."""

    task_id: str
    sample_idx: int
    completion: str  # after truncation
    verified: Verified
    n_tokens: int
    expected_loops: float = 0.0
    reward: float = 0.0
    semantics: SemanticFindings | None = None  # None: nobody asked
    is_flaky: bool | None = None  # judged again with another verdict; None: judged once


@dataclass(frozen=True)
class EvalResult:
    """One number of an evaluation, always with its counts.

    `rate` is `n_correct / n_samples` unless `metric` is a pass@k, where it is the estimator's mean
    over `n_problems`. `low` and `high` are the 95 % bootstrap interval over problems.
    """

    checkpoint: str  # "pretrain" | "maxrl" | "long_context" | "canonical" | ...
    task_set: str
    metric: str  # "compile_rate" | "semantic_score" | "semantic_ok" | "pass@1" | ...
    rate: float
    low: float
    high: float
    n_correct: int
    n_samples: int
    n_problems: int
    n_unjudged: int = 0


# Columns of `verified.parquet`: RustSource + program + judgement + syntax features; `program` is
# what was judged, `sha256` that of `text`.
VERIFIED_COLUMNS: tuple[str, ...] = (
    "source_id", "text", "program", "edition", "kind", "source", "package", "version", "path",
    "licence", "group", "sha256", "level",
    "verdict", "codes", "detail", "sandbox", "cpu_ms", "n_tests", "split", "difficulty",
    "cyclomatic_complexity", "n_lines", "explicit_lifetimes", "unsafe_blocks", "max_nesting",
)  # fmt: skip


class Metric(StrEnum):
    """Names of metrics, so that a chart cannot ask for one that nobody writes."""

    LOSS = "loss"  # total, nats per token
    TASK_LOSS = "task_loss"  # expected cross-entropy, nats per token
    ENTROPY_TERM = "entropy_term"
    VAL_LOSS = "val_loss"  # nats per token, held-out real Rust, last loop
    BITS_PER_BYTE = "bits_per_byte"  # held-out real Rust, last loop
    BITS_PER_BYTE_TINYRUST = "bits_per_byte_tinyrust"
    BITS_PER_BYTE_LOOP = "bits_per_byte_loop_"  # + loop number from 1
    TOKEN_ENTROPY = "token_entropy_nats"
    TOKEN_ENTROPY_SHARE = "token_entropy_share"  # of ln V
    EXIT_ENTROPY = "exit_entropy_nats"
    EXIT_PDF = "exit_pdf_"  # + loop number from 1
    EXPECTED_LOOPS = "expected_loops"
    CALIBRATION_GAP = "calibration_gap_nats"  # token entropy minus cross-entropy
    ZERO_FRACTION = "zero_fraction"  # share of zero codes
    FLIP_RATE = "flip_rate"  # share of codes changed since the last look
    SCALE_DRIFT = "scale_drift_layer_"  # + layer from 0: scales against the first look, log2
    DISTINCT_1 = "distinct_1"  # distinct tokens of free-running text / tokens
    DISTINCT_2 = "distinct_2"  # and pairs of tokens
    REPETITION = "repetition"  # share of free text's runs of 4 tokens that it had before
    LEARNING_RATE = "learning_rate"
    GRAD_NORM = "grad_norm"
    GRAD_NORM_GROUP = "grad_norm_"  # + group of parameters
    TOKENS_PER_S = "tokens_per_s"
    MODEL_TFLOPS = "model_tflops"  # achieved, the model's own FLOPs
    PEAK_SHARE = "matmul_peak_share"  # of this machine's measured matmul peak
    PROCESSES = "processes"  # that train together
    PEAK_RSS_MIB = "peak_rss_mib"  # of the first of them
    PEAK_GPU_MIB = "peak_gpu_mib"
    GATE_LOSS = "gate_loss"
    COMPILE_RATE = "compile_rate"
    PASS_RATE = "pass_rate"
    PASS_AT = "pass_at_"  # + k
    SEMANTIC_SCORE = "semantic_score"
    REWARD_MEAN = "reward_mean"
    N_UNJUDGED = "n_unjudged"
    DISTINCT_BODIES = "distinct_bodies_rate"
    COMPLETION_TOKENS = "completion_tokens_mean"
    HELD_OUT_COMPILE_RATE = "held_out_compile_rate"
    HELD_OUT_PASS_RATE = "held_out_pass_rate"
    GENERATE_S = "generate_s"
    VERIFY_S = "verify_s"  # in stage 3 beside other work
    WAIT_S = "wait_s"  # for the judge, with nothing else to do
    UPDATE_S = "update_s"
    KL_NATS = "kl_nats"  # per sampled token of held-out tasks, policy from base
    UPDATE_KL = "update_kl_nats"  # of an update's own rollouts, where kl_weight asks for it
    CLIPPED_SHARE = "clipped_share"  # of tokens in further steps over the same rollouts
    MIXED_GROUPS = "mixed_groups_rate"  # prompts whose rollouts differ in reward
    COMPLETION_TOKENS_S = "completion_tokens_per_s"  # while sampling
    PROGRAMS_S = "judged_programs_per_s"  # while judging


def as_row(record: Any) -> dict[str, Any]:
    """Return a record as a flat dictionary for a data frame (enums as text, tuples as lists)."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(record).items()
    }
