"""What kind of mistake a program makes: rustc's error codes by class, and two semantic measures.

Input: `Verified` records. Output: classes of codes, counts, and two numbers with different
meanings: `semantic_score` grades how far programs get through the compiler, `semantic_ok` is the
strict statement that one does what its tests say, that clippy sees no mistake in it and that it is
sound. Programs that could not be judged are in neither denominator.
The classes are those of `error_classes.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Level, Program, SemanticFindings, Verdict, Verified
from nanochat_lib.rust.error_classes import ERROR_CLASSES, ErrorClass, error_class
from nanochat_lib.rust.gates.clippy import ASKS_FOR_CLIPPY, asks_for_clippy, find_lints
from nanochat_lib.rust.gates.miri import find_miri, interpret
from nanochat_lib.rust.syntax import tokens
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain

# Attributes and macros that need no `unsafe` in edition 2021 and break what it guards.
_UNSAFE_WORDS = frozenset(["unsafe", "no_mangle", "export_name", "link_section", "global_asm"])
_NOT_SOUND = ("undefined behaviour", "not available")


@dataclass(frozen=True)
class SemanticScore:
    """A score between 0 and 1 with its counts."""

    score: float
    n_judged: int
    n_compiled: int
    n_unjudged: int
    by_class: dict[str, int]  # programs with at least one error of the class


def error_classes(verified: Verified) -> tuple[ErrorClass, ...]:
    """Return the classes of a program's errors, each once, in the order of `ERROR_CLASSES`."""
    found = {error_class(d.code) for d in verified.diagnostics if d.level == "error"}
    return tuple(name for name in ERROR_CLASSES if name in found)


def count_codes(verified: Iterable[Verified]) -> Counter[str]:
    """Count programs per error code (a program counts once for each of its codes)."""
    return Counter(code for one in verified for code in one.codes)


def semantic_progress(verified: Verified) -> float:
    """Return how far a program got through the compiler: 0, 0.25, 0.5, 0.75 or 1.

    0: it does not parse; 0.25: it parses, names or macros do not resolve; 0.5: names resolve,
    types do not fit; 0.75: types fit, ownership or lifetimes do not; 1: it compiles. The earliest
    mistake counts, because rustc does not look for later kinds behind it.
    """
    if verified.verdict is Verdict.PARSE_ERROR:
        return 0.0
    if verified.verdict not in (Verdict.COMPILE_ERROR, Verdict.BUILD_ERROR):
        return 1.0
    classes = error_classes(verified)
    if verified.verdict is Verdict.BUILD_ERROR:
        return 0.75
    if "others" in classes or "resolution" in classes or not classes:
        return 0.25
    return 0.5 if "types" in classes else 0.75


def semantic_score(verified: Iterable[Verified]) -> SemanticScore:
    """Return the mean of `semantic_progress` over the programs that rustc judged.

    A program that was stopped while it compiled (TIMEOUT or RESOURCE_LIMIT before it was built)
    cannot be told from one stopped while it ran by its verdict; `detail` says "rustc", and such a
    program counts as not judged here.
    """
    rows = list(verified)
    judged = [one for one in rows if _is_judged(one)]
    by_class: Counter[str] = Counter()
    for one in judged:
        by_class.update(error_classes(one))
    total = sum(map(semantic_progress, judged))
    return SemanticScore(
        score=total / len(judged) if judged else 0.0,
        n_judged=len(judged),
        n_compiled=sum(semantic_progress(one) == 1.0 for one in judged),
        n_unjudged=len(rows) - len(judged),
        by_class={name: by_class[name] for name in ERROR_CLASSES},
    )


def _is_judged(verified: Verified) -> bool:
    stopped = verified.verdict in (Verdict.TIMEOUT, Verdict.RESOURCE_LIMIT)
    return verified.verdict is not Verdict.UNJUDGED and not (
        stopped and verified.detail.startswith("rustc")
    )


# --- The strict statement -----------------------------------------------------------------------


def judge_semantics(
    programs: Sequence[Program],
    verdicts: Sequence[Verified],
    own_texts: Sequence[str] = (),
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    toolchain: Toolchain | None = None,
) -> list[SemanticFindings]:
    """Ask clippy about every program that passed, and Miri about those with unsafe code.

    Args:
        programs: as they were judged.
        verdicts: of the same programs, from level `test`.
        own_texts: the part of each program that answers for itself, without tests and stand-ins;
            empty: the whole programs.
        config: limits and batch size.
        cache_dir: folder of the verdict cache; None: no cache.
        workers: threads; None: one per CPU.
        toolchain: whose clippy and Miri; None: the one on the PATH.
    """
    toolchain = toolchain or find_toolchain()
    miri, own = find_miri(toolchain), own_texts or [program.source for program in programs]
    passed = [v.verdict is Verdict.PASSED and v.level is Level.TEST for v in verdicts]
    is_doubtful = [
        is_fine and miri is not None and count_unsafe(text) > 0
        for is_fine, text in zip(passed, own, strict=True)
    ]
    shared = {"config": config, "workers": workers}
    lint = partial(find_lints, cache_dir=cache_dir, toolchain=toolchain, **shared)
    looks = _ask_about(programs, passed, lint)
    runs = _ask_about(programs, is_doubtful, partial(interpret, miri=miri, **shared))
    answers = zip(programs, own, passed, looks, runs, strict=True)
    findings = [_findings(*answer, has_miri=miri is not None) for answer in answers]
    if toolchain.clippy is None:
        return [replace(found, clippy="not available") for found in findings]
    return findings


def _findings(
    program: Program,
    own: str,
    passed: bool,
    look: Verified | None,
    run: Verified | None,
    *,
    has_miri: bool,
) -> SemanticFindings:
    lints = _own_lints(look, program.source, own)
    n_unsafe = count_unsafe(own)
    return SemanticFindings(
        program_id=program.program_id,
        passed=passed,
        clippy=_clippy_gate(look, lints),
        miri=_miri_gate(run, has_miri=has_miri) if n_unsafe else "not needed",
        lints=lints,
        n_unsafe=n_unsafe,
    )


def _ask_about(
    programs: Sequence[Program],
    is_asked: Sequence[bool],
    ask: Callable[[list[Program]], list[Verified]],
) -> list[Verified | None]:
    """Return the answer on each program that is asked about, and None for the others."""
    answers = iter(ask([program for program, yes in zip(programs, is_asked, strict=True) if yes]))
    return [next(answers) if yes else None for yes in is_asked]


def count_unsafe(text: str) -> int:
    """Count what can break memory safety, in macros too: `unsafe`, and attributes as strong."""
    return sum(token.text in _UNSAFE_WORDS for token in tokens(text) if token.kind == "word")


def semantic_ok(findings: SemanticFindings) -> bool | None:
    """Return whether a program builds, passes all its tests, triggers no lint of
    `clippy::correctness`, and holds no unsafe code that Miri did not find clean.

    Unsafe code is left out otherwise because no test shows that it is sound, and because only
    unsafe code could forge the completion proof of `harness.py`.

    Returns: None when a gate that decides could not look; such a program is in no rate. Without
        clippy that is every program: a rate over those that fail their tests would be zero.
    """
    if findings.clippy == "not available":
        return None
    if not findings.passed or findings.lints or findings.miri in _NOT_SOUND:
        return False
    return None if "not judged" in (findings.clippy, findings.miri) else True


def explain_semantics(findings: SemanticFindings) -> str:
    """Return why a program that passes its tests is not `semantic_ok`, or an empty string."""
    if findings.clippy == "not available":
        return "clippy is not installed: nothing is known of its correctness lints"
    if not findings.passed:
        return ""
    if findings.lints:
        return f"clippy::correctness: {', '.join(findings.lints)}"
    if findings.miri in _NOT_SOUND:
        return f"unsafe code, and Miri is {findings.miri}".replace("is undef", "found undef")
    is_open = "not judged" in (findings.clippy, findings.miri)
    return "clippy or Miri could not judge it" if is_open else ""


def _clippy_gate(look: Verified | None, lints: tuple[str, ...]) -> str:
    if look is None:
        return "not asked"
    if look.verdict is Verdict.UNJUDGED:
        return "not judged"
    return "lints" if lints else "clean"


def _miri_gate(run: Verified | None, *, has_miri: bool) -> str:
    if run is None:
        return "not asked" if has_miri else "not available"
    if run.verdict is Verdict.PASSED:
        return "clean"
    return "undefined behaviour" if run.verdict is Verdict.RUN_ERROR else "not judged"


def _own_lints(look: Verified | None, source: str, own: str) -> tuple[str, ...]:
    """Return the lints that lie in a program's own text."""
    if look is None:
        return ()
    before, found, _ = source.partition(own)
    first = before.count("\n") + 1
    last = first + own.count("\n") if found else source.count("\n") + 1
    lints = [d.code for d in look.diagnostics if first <= d.line <= last]
    if look.verdict is Verdict.PASSED and asks_for_clippy(own):
        lints.append(ASKS_FOR_CLIPPY)
    return tuple(dict.fromkeys(lints))
