"""Stage 1: from raw Rust to verified rows, a tokenizer and token shards.

Input: a `RunConfig` and the stage's folder. Output in that folder: `verified.parquet`,
`rejected.parquet`, `tasks.jsonl` (TinyRust's; with a corpus also `corpus_tasks.jsonl`),
`tokenizer.json`, `shards/` with a dataset card, `validation_real.txt` and `summary.json`. The order
of work is the order of the functions in `preprocess`: collect, judge by rustc, balance, keep
benchmarks out, split by group, generate TinyRust, write. The same sources, toolchain and seed give
the same files byte for byte; times are in the summary only.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.data import rows, select
from nanochat_lib.data.augment.stage import more_rows
from nanochat_lib.data.card import shards_card
from nanochat_lib.data.rows import Judged
from nanochat_lib.data.sources.built import built_candidates, carry_tasks
from nanochat_lib.data.sources.candidates import (
    MAX_TEXT_BYTES,
    MIN_TEXT_BYTES,
    Candidate,
    seeded_order,
)
from nanochat_lib.data.sources.folder import folder_candidates
from nanochat_lib.data.sources.toolchain import toolchain_candidates
from nanochat_lib.data.tinyrust.confirm import confirm
from nanochat_lib.data.tinyrust.generate import TinyExample, generate
from nanochat_lib.data.tokenizer import compare_vocabularies, load_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Metric, Program, RustSource, Verdict, Verified
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.gates.clippy import find_lints
from nanochat_lib.rust.semantics import count_unsafe
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain
from nanochat_lib.rust.verify import verify

TASK_SET = PROJECT_ROOT / "nanochat_lib" / "evals" / "task_set"
RECHECKED_ROWS = 96  # of the finished set, judged once more without the cache
COMPARED_SIZES = (1024, 4096, 16384)  # of vocabularies, beside ours
_PROGRAMS_BETWEEN_LOOKS = 32  # at `stop`
_CANDIDATES_PER_EXAMPLE = 4  # read from a folder for every example wanted


@dataclass
class Work:
    """What every step of the stage needs; `seconds` collects the time of each step."""

    config: RunConfig
    folder: Path
    cache_dir: Path | None = None
    stop: threading.Event | None = None
    progress: Callable[[int, int, str], None] | None = None
    n_total: int = 1
    n_done: int = 0
    funnel: list[dict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Time a step and tell its name; an asked-for stop ends the stage between steps."""
        self.tell(text)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def tell(self, text: str, n_more: int = 0) -> None:
        """Report progress, or end the stage when a stop was asked for."""
        if self.stop is not None and self.stop.is_set():
            raise KeyboardInterrupt
        self.n_done += n_more
        if self.progress is not None:
            self.progress(self.n_done, self.n_total, text)

    def count(self, step: str, n: int) -> None:
        """Add a line to the funnel of real Rust."""
        self.funnel.append({"step": step, "n": n})


def preprocess(
    config: RunConfig,
    folder: Path,
    *,
    cache_dir: Path | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict:
    """Run stage 1 and return its summary, which is also written to `summary.json`.

    Args:
        cache_dir: where verdicts are kept, so that a second run judges only what is new.
        log: called once with the compile rate, by `Metric` name.
        stop: when set, the stage ends with KeyboardInterrupt; finished files stay valid.
        progress: called with (done, total, text).

    Raises:
        WorkbenchError: no source of Rust, nothing left after verification, a compile rate below
            `data.min_compile_rate`, or too few groups to hold any out.
        KeyboardInterrupt: `stop` was set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(config, folder, cache_dir, stop, progress)
    toolchain = find_toolchain()
    with work.step("collect", "reading sources"):
        candidates, skipped = collect(work, toolchain)
    work.n_total = len(candidates) + config.data.tinyrust_examples
    with work.step("verify", "judging real Rust"):
        judged = judge_candidates(work, candidates)
    with work.step("gates", "asking clippy"):
        gates = ask_gates(work, judged)
    with work.step("choose", "balancing and splitting"):
        chosen = choose(work, judged, gates.linted)
    with work.step("augment", "writing real Rust in other ways"):
        more = more_rows(chosen.kept, config, cache_dir)
        chosen = replace(chosen, kept=[*chosen.kept, *more.added])
    with work.step("tinyrust", "generating TinyRust"):
        tiny = make_tinyrust(work)
    with work.step("recheck", "judging a sample once more"):
        after = recheck(work, chosen.kept)
    with work.step("tokens", "training the tokenizer, writing shards"):
        facts = rows.write_corpus(folder, config, judged, chosen, tiny)
    with work.step("tasks", "splitting the corpus's tasks"):
        corpus_tasks = carry_tasks(config.data.corpus_dir, chosen.kept, folder)
    summary = {
        "funnel": work.funnel,
        **rows.summarise(config, judged, chosen, tiny, after),
        **facts,
        "corpus_tasks": corpus_tasks,
        "augmentation": more.table,
        "vocabularies": vocabularies(work, chosen, tiny),
        "gates": gates.summary,
        "rustc": toolchain.version,
        "skipped_files": skipped,
        "seconds": work.seconds,
    }
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_atomic(folder / "shards" / "DATASET_CARD.md", shards_card(summary, folder))
    if log is not None:
        log(0, _metrics(summary))
    return summary


def _metrics(summary: dict) -> dict[str, float]:
    before = summary["compile_rate"]["before"]
    return {
        Metric.COMPILE_RATE: before["n_compiled"] / max(before["n_judged"], 1),
        Metric.N_UNJUDGED: summary["n_unjudged"],
        Metric.VERIFY_S: summary["seconds"]["verify"],
    }


def collect(work: Work, toolchain: Toolchain) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates to judge, in a fixed order, and counts of files passed over.

    Raises:
        WorkbenchError: neither an input folder nor installed documentation.
    """
    data, skipped = work.config.data, Counter()
    if data.input_dir:
        most = data.max_examples * _CANDIDATES_PER_EXAMPLE
        found = folder_candidates(
            Path(data.input_dir).expanduser(), seed=work.config.seed, most=most, skipped=skipped
        )
    elif data.corpus_dir:
        most = data.max_examples * _CANDIDATES_PER_EXAMPLE
        folder = Path(data.corpus_dir).expanduser()
        found = built_candidates(folder, seed=work.config.seed, most=most)
    elif toolchain.docs is None:
        raise WorkbenchError(
            f"The toolchain {toolchain.version} has no documentation to take Rust from. Install it "
            "with `rustup component add rust-docs`, or set data.input_dir to a folder of .rs files."
        )
    else:
        found = toolchain_candidates(toolchain.docs)
    wanted = (c for c in found if not data.kinds or c.row.kind in data.kinds)
    distinct = select.drop_repeats(c for c in wanted if _has_fit_size(c))
    work.count("found", len(distinct.kept) + distinct.n_exact + distinct.n_near)
    work.count("without exact repeats", len(distinct.kept) + distinct.n_near)
    work.count("without near repeats", len(distinct.kept))
    stable = [c for c in distinct.kept if not select.needs_nightly(c)]
    work.count("for a stable toolchain", len(stable))
    chosen = select.take_spread(stable, data.max_examples, work.config.seed)
    work.count("taken", len(chosen))
    return chosen, {reason: n for reason, n in sorted(skipped.items()) if n}


def judge_candidates(work: Work, candidates: Sequence[Candidate]) -> list[Judged]:
    """Judge every candidate by rustc, examples that run by running them."""
    needs_tests = work.config.data.use_semantic_verification
    levels = [Level.TEST if needs_tests and c.row.runnable else Level.BUILD for c in candidates]
    programs = [Program(c.row.source_id, c.program, c.edition) for c in candidates]
    verdicts = _judge(work, programs, levels, "judging real Rust")
    return [Judged(c, v) for c, v in zip(candidates, verdicts, strict=True)]


@dataclass(frozen=True)
class Gates:
    """What clippy said of the real Rust that passed."""

    linted: frozenset[str]  # ids of rows with a lint of `clippy::correctness`
    summary: dict


def ask_gates(work: Work, judged: Sequence[Judged]) -> Gates:
    """Ask clippy about every real row that passed; nothing when verification is not semantic.

    Miri is not asked: Rust with unsafe code may be learned from, and is counted.
    """
    if not work.config.data.use_semantic_verification:
        return Gates(frozenset(), {})
    passed = [j.candidate for j in judged if j.verified.verdict is Verdict.PASSED]
    programs = [Program(c.row.source_id, c.program, c.edition) for c in passed]
    looks = find_lints(programs, config=work.config.verify, cache_dir=work.cache_dir)
    linted = {look.program_id: look.diagnostics for look in looks if look.diagnostics}
    lints = Counter(lint.code for found in linted.values() for lint in found)
    summary = {
        "clippy": "asked" if find_toolchain().clippy else "not available",
        "n_asked": len(programs),
        "n_linted": len(linted),
        "n_unjudged": sum(look.verdict is Verdict.UNJUDGED for look in looks),
        "n_unsafe": sum(count_unsafe(c.row.text) > 0 for c in passed),
        "lints": [{"lint": name, "n": n} for name, n in lints.most_common()],
    }
    return Gates(frozenset(linted), summary)


def choose(
    work: Work, judged: Sequence[Judged], linted: frozenset[str] = frozenset()
) -> rows.Chosen:
    """Drop what clippy objects to, balance by difficulty, drop benchmark text, split by group.

    Args:
        linted: ids of rows with a lint of `clippy::correctness`.

    Raises:
        WorkbenchError: nothing passed, or everything comes from one file.
    """
    data, seed = work.config.data, work.config.seed
    work.count("judged", sum(j.verified.verdict is not Verdict.UNJUDGED for j in judged))
    work.count("compiled", sum(j.compiled for j in judged))
    passed = [j for j in judged if j.verified.verdict is Verdict.PASSED]
    work.count("passed", len(passed))
    _require_some(judged, passed)
    if data.use_semantic_verification:
        passed = [j for j in passed if j.row.source_id not in linted]
        work.count("without clippy::correctness lints", len(passed))
    passed.sort(key=lambda j: seeded_order(seed, j.row.source_id))
    names = [rows.difficulty(j) for j in passed]
    shares = {"easy": data.easy_share, "medium": data.medium_share, "hard": data.hard_share}
    kept, deficit = select.keep_quota(passed, names, shares)
    work.count("balanced", len(kept))
    benchmarks = select.Benchmarks(benchmark_texts())
    kept = [j for j in kept if not benchmarks.overlap(j.row.text)]
    work.count("without benchmark text", len(kept))
    kept.sort(key=lambda j: j.row.source_id)
    kept = _with_several_groups(kept)
    sizes: Counter[str] = Counter()
    for item in kept:
        sizes[item.row.group] += len(item.row.text.encode())
    held = select.held_out_groups(sizes, data.validation_fraction, seed)
    kept = [replace(j, split="validation" if j.row.group in held else "train") for j in kept]
    kept = without_known(kept)
    work.count("without held-out repeats of training", len(kept))
    work.count("train", sum(j.split == "train" for j in kept))
    work.count("validation", sum(j.split == "validation" for j in kept))
    return rows.Chosen(kept, Counter(names), deficit)


def without_known(kept: list[Judged]) -> list[Judged]:
    """Drop held-out rows that repeat training text, as bindings and forks of a package do.

    They would measure memory. The rule is that of benchmarks and tasks. Where every held-out row
    repeats something, as in a small folder of one author, all stay.
    """
    trained = (j.row.text for j in kept if j.split == select.TRAIN)
    held = [j for j in kept if j.split != select.TRAIN]
    known = select.known_places([j.row.text for j in held], trained)
    dropped = {held[place].row.source_id for place in known}
    return (
        kept if len(dropped) == len(held) else [j for j in kept if j.row.source_id not in dropped]
    )


def make_tinyrust(work: Work) -> rows.TinyRust:
    """Generate TinyRust and keep the examples that pass rustc and their own tests."""
    data = work.config.data
    benchmarks = select.Benchmarks(benchmark_texts())
    result = rows.TinyRust()
    examples: list[TinyExample] = []
    if data.tinyrust_examples:
        examples = list(
            generate(levels=data.tinyrust_levels, n=data.tinyrust_examples, seed=work.config.seed)
        )
    verdicts = confirm(
        examples,
        config=work.config.verify,
        cache_dir=work.cache_dir,
        on_progress=lambda n: work.tell("judging TinyRust", n),
    )
    for example, verified in zip(examples, verdicts, strict=True):
        if verified.verdict is not Verdict.PASSED:
            result.rejected.append((example, verified))
        elif example.task.split == "train" and benchmarks.overlap(example.text):
            result.n_benchmark_text += 1
        else:
            result.passed.append((example, verified))
    return result


def vocabularies(work: Work, chosen: rows.Chosen, tiny: rows.TinyRust) -> list[dict]:
    """Return the bytes per token of our tokenizer and of others on the held-out real Rust."""
    real = {s: [j.row.text for j in chosen.kept if j.split == s] for s in ("train", "validation")}
    train = [*real["train"], *tiny.texts(is_train=True)]
    ours = load_tokenizer(work.folder / "tokenizer.json")
    found = compare_vocabularies(ours, train, real["validation"], COMPARED_SIZES)
    return [asdict(row) | {"bytes_per_token": row.bytes_per_token} for row in found]


def recheck(work: Work, kept: Sequence[Judged]) -> dict[str, int]:
    """Judge a sample of the finished set again, alone and without the cache, and count.

    Every row passed once, so the rate of the finished set is 1 by construction unless a verdict
    depends on its batch or on chance; this measures it instead of asserting it.

    Raises:
        WorkbenchError: fewer compile than `data.min_compile_rate` asks for.
    """
    order = sorted(kept, key=lambda j: seeded_order(work.config.seed + 1, j.row.source_id))
    sample = [j.candidate for j in order[:RECHECKED_ROWS]]
    programs = [Program(c.row.source_id, c.program, c.edition) for c in sample]
    fresh = verify(programs, Level.BUILD, config=work.config.verify, cache_dir=None)
    judged = [v for v in fresh if v.verdict is not Verdict.UNJUDGED]
    counts = {"n_compiled": sum(v.verdict.compiled for v in judged), "n_judged": len(judged)}
    require_compile_rate(counts, work.config.data.min_compile_rate)
    return counts


def require_compile_rate(counts: dict[str, int], least: float) -> None:
    """Raise a WorkbenchError when a set compiles less often than it must."""
    n_compiled, n_judged = counts["n_compiled"], counts["n_judged"]
    if n_compiled < least * n_judged or not n_judged:
        raise WorkbenchError(
            f"The verified set compiles in {n_compiled} of {n_judged} sampled rows, below "
            f"data.min_compile_rate = {least:g}. Verdicts changed between two judgements: delete "
            "the verification cache, check that the toolchain was not replaced meanwhile, and run "
            "again; or lower data.min_compile_rate."
        )


def benchmark_texts() -> list[str]:
    """Return the shipped problems, files as they are: n-grams need no parts, only the words."""
    return [path.read_text(encoding="utf-8") for path in sorted(TASK_SET.glob("*.rs"))]


def _judge(
    work: Work, programs: Sequence[Program], levels: Sequence[Level], text: str
) -> list[Verified]:
    """Return the verdicts in the order of the programs; one level at a time."""

    def on_progress(n_done: int, _: int) -> None:
        if n_done % _PROGRAMS_BETWEEN_LOOKS == 0:
            work.tell(text, _PROGRAMS_BETWEEN_LOOKS)

    verdicts: dict[int, Verified] = {}
    for level in sorted(set(levels)):
        places = [i for i, wanted in enumerate(levels) if wanted is level]
        found = verify(
            [programs[i] for i in places],
            level,
            config=work.config.verify,
            cache_dir=work.cache_dir,
            on_progress=on_progress,
        )
        verdicts.update(zip(places, found, strict=True))
        work.tell(text, len(places) % _PROGRAMS_BETWEEN_LOOKS)
    return [verdicts[i] for i in range(len(programs))]


def _has_fit_size(candidate: Candidate) -> bool:
    n_bytes = len(candidate.row.text.encode())
    if candidate.row.kind == "file":  # its limit was checked before it was read
        return n_bytes >= MIN_TEXT_BYTES
    return MIN_TEXT_BYTES <= n_bytes <= MAX_TEXT_BYTES


def _require_some(judged: Sequence[Judged], passed: Sequence[Judged]) -> None:
    if passed:
        return
    codes = Counter(code for j in judged for code in j.verified.codes[:1])
    common = ", ".join(f"{code} ({n})" for code, n in codes.most_common(3)) or "none"
    raise WorkbenchError(
        f"None of {len(judged)} Rust examples passed verification; most common errors: {common}. "
        "Files that belong to a crate rarely compile alone: give a folder of self-contained files "
        "in data.input_dir, or leave it empty to use the toolchain's documentation."
    )


def _with_several_groups(kept: list[Judged]) -> list[Judged]:
    """Return the rows; when all come from one package, with their files as groups.

    Raises:
        WorkbenchError: all come from one file, so nothing can be held out.
    """
    if len({j.row.group for j in kept}) > 1:
        return kept
    if len({j.row.path for j in kept}) < 2:
        raise WorkbenchError(
            f"The {len(kept)} verified examples come from fewer than two files, so that none can "
            "be held out for validation. Give data.input_dir more files, or raise "
            "data.max_examples."
        )
    return [replace(j, candidate=_regrouped(j.candidate)) for j in kept]


def _regrouped(candidate: Candidate) -> Candidate:
    row: RustSource = replace(candidate.row, group=candidate.row.path)
    return replace(candidate, row=row)
