"""Compile programs with rustc: one alone, which is the truth, or many as modules of one crate.

Input: `Unit`s (a program and its policy). Output: verdicts for what does not compile, and `Built`
groups of what does. In a batch every program is a file of its own; an error belongs to the file
that its JSON span names; the files blamed leave the crate and the rest is compiled again until
nothing is blamed. A batch that dies, or whose error has no owner, is split and tried again, down to
programs alone. `policy.py` keeps everything out of a batch that could see it is in one.
Source of the message format: "JSON Output" in the rustc book.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.error_classes import error_class
from nanochat_lib.rust.judging.policy import CRATE_OF, Policy
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, run_sandboxed
from nanochat_lib.rust.toolchain import Toolchain

# -Awarnings leaves deny lints alone, which decide verdicts; --cap-lints would not.
# One codegen unit: 8 % less CPU for a batch of 64, whose threads would share two cores anyway.
FLAGS = ("-Awarnings", "-Copt-level=0", "-Cdebuginfo=0", "-Cstrip=debuginfo", "-Ccodegen-units=1")
FEWEST_TO_SCREEN = 12  # below this, starting rustc once more costs what screening saves
SPLIT_INTO = 8  # parts of a batch that died: three levels reach one program of 64
MAX_DIAGNOSTICS = 20  # kept per program
_PARSE_CODES = frozenset(
    ("E0585", "E0586", "E0748", "E0753", "E0758", "E0762", "E0763", "E0765", "E0766", "E0768")
)
# Messages without a code that are not about the grammar.
_NOT_PARSING = ("cannot find", "no rules expected", "linking with", "recursion limit", "format arg")
_SPAN = (
    ("line", "line_start"), ("column", "column_start"),
    ("end_line", "line_end"), ("end_column", "column_end"),
)  # fmt: skip
_LINKER_KILLED = re.compile(
    rb"failed: signal: 9|ld terminated with signal 9|Killed signal terminated program"
)
_NOT_THE_PROGRAM = (
    "No space left", "failed to write", "couldn't create", "linker `", "can't find",
    "couldn't read",
)  # fmt: skip


@dataclass
class Unit:
    """One program on its way through a batch."""

    key: int  # chosen by the caller, unique
    program: Program
    policy: Policy
    is_alone: bool = False  # may share neither crate nor process
    module: str = ""
    cpu_ms: float = 0.0

    @property
    def n_lines(self) -> int:
        """Return the lines of the program's own text; later ones were appended."""
        return self.program.source.count("\n") + 1


@dataclass(frozen=True)
class Settings:
    """What every compilation of one call of `verify` has in common."""

    level: Level
    config: VerifyConfig
    toolchain: Toolchain
    link_args: tuple[str, ...] = ()
    readable: tuple[Path, ...] = ()


@dataclass
class Built:
    """Units that compiled together, and the test binary that holds them (None below `build`)."""

    units: list[Unit]
    folder: Path
    binary: Path | None
    sandbox: str
    is_alone: bool = False  # a crate of its own


@dataclass
class Outcome:
    """What compiling gave: judged units by key, and groups that compiled."""

    judged: dict[int, Verified] = field(default_factory=dict)
    built: list[Built] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take over the results of a part."""
        self.judged.update(other.judged)
        self.built += other.built


@dataclass(frozen=True)
class Message:
    """One error of rustc with the file it belongs to (empty: none)."""

    file: str
    diagnostic: Diagnostic


# --- One program alone ------------------------------------------------------------------------


def compile_alone(unit: Unit, folder: Path, settings: Settings) -> Outcome:
    """Compile one program as a crate of its own, as plain rustc would."""
    folder.mkdir()
    (folder / "program.rs").write_bytes(unit.program.source.encode())
    arguments = [CRATE_OF[unit.policy.kind], "-o", "program", "program.rs"]
    done = _rustc(arguments, unit.program.edition, folder, settings, settings.config.compile_cpu_s)
    unit.cpu_ms += done.cpu_s * 1e3
    if done.ended == "exit" and done.returncode == 0:
        binary = folder / "program" if settings.level in (Level.BUILD, Level.TEST) else None
        return Outcome(built=[Built([unit], folder, binary, done.sandbox, True)])
    messages = [m.diagnostic for m in read_messages(done.stderr)]
    verdict, detail = _judge_alone(done, messages, settings)
    return Outcome(judged={unit.key: verified_as(unit, verdict, settings, done, messages, detail)})


def _judge_alone(
    done: Completed, messages: Sequence[Diagnostic], settings: Settings
) -> tuple[Verdict, str]:
    """Return the verdict on a program that did not compile, and the cause if it is not a code."""
    if done.ended in ("cpu_limit", "wall_limit"):
        return Verdict.TIMEOUT, f"rustc passed its {done.ended.replace('_', ' ')}"
    if done.ended not in ("exit", "signal"):
        return Verdict.RESOURCE_LIMIT, f"rustc passed its {done.ended.replace('_', ' ')}"
    if done.ended == "signal" or done.returncode < 0:
        if b"memory allocation" in done.stderr:
            return Verdict.RESOURCE_LIMIT, "rustc ran out of memory"
        if -done.returncode in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            return Verdict.RESOURCE_LIMIT, "rustc overflowed its stack"
        return Verdict.UNJUDGED, f"rustc was killed by signal {-done.returncode}"
    if done.returncode != 1:
        return Verdict.UNJUDGED, f"rustc crashed with status {done.returncode}"
    blameless = [m.message for m in messages if not m.line and _is_not_the_program(m.message)]
    if blameless:
        _refuse_missing_linker(blameless[0])
        return Verdict.UNJUDGED, f"rustc could not work: {blameless[0]}"
    is_linking = bool(messages) and messages[0].message.startswith("linking with")
    if is_linking and _LINKER_KILLED.search(done.stderr):
        return Verdict.UNJUDGED, "the linker was killed"
    if not messages:
        return Verdict.UNJUDGED, "rustc failed without a message"
    has_built_metadata = settings.level is not Level.CHECK and _has_metadata(done)
    return (Verdict.BUILD_ERROR if has_built_metadata else Verdict.COMPILE_ERROR), ""


def _is_not_the_program(message: str) -> bool:
    return any(text in message for text in _NOT_THE_PROGRAM)


def _refuse_missing_linker(message: str) -> None:
    if message.startswith("linker `") and "not found" in message:
        raise WorkbenchError(
            f"rustc cannot link: expected a C linker ('cc') on the PATH, found none ({message}). "
            "Install a C toolchain such as gcc."
        )


def is_parse_error(diagnostics: Sequence[Diagnostic]) -> bool:
    """Return whether rustc's first error is one of the grammar.

    Only asked where tree-sitter sees an error too: rustc's messages do not name their phase.
    """
    if not diagnostics:
        return False
    first = diagnostics[0]
    if first.code:
        return first.code in _PARSE_CODES
    return not first.message.startswith(_NOT_PARSING)


# --- Many programs as one crate ---------------------------------------------------------------


def compile_batch(units: Sequence[Unit], folder: Path, settings: Settings) -> Outcome:
    """Compile programs as modules of one crate; verdicts equal those of `compile_alone`.

    Args:
        units: programs of one edition that `policy.py` lets compile together, all libraries or
            none of them (below level `build` they may mix).
        folder: scratch folder that does not exist yet.
        settings: level, limits and toolchain.
    """
    folder.mkdir()
    _write_modules(units, folder)
    outcome = Outcome()
    _screen([unit for unit in units if unit.policy.has_tests_apart], folder, settings, outcome)
    alive = [unit for unit in units if unit.key not in outcome.judged]
    while alive:
        done = _compile_crate(alive, folder, settings)
        if done.ended == "exit" and done.returncode == 0:
            binary = folder / "crate" if settings.level in (Level.BUILD, Level.TEST) else None
            outcome.built.append(Built(alive, folder, binary, done.sandbox))
            break
        has_checked = settings.level is not Level.CHECK and _has_metadata(done)
        verdict = Verdict.BUILD_ERROR if has_checked else Verdict.COMPILE_ERROR
        blamed = _blame(done, alive)
        for unit, messages in blamed:
            outcome.judged[unit.key] = verified_as(unit, verdict, settings, done, messages)
        if not blamed:
            outcome.add(_split(alive, folder, settings))
            break
        alive = [unit for unit in alive if unit.key not in outcome.judged]
    return outcome


def _screen(units: Sequence[Unit], folder: Path, settings: Settings, outcome: Outcome) -> None:
    """Judge what does not compile even without its tests, which costs a third of compiling them.

    Most programs that fail do so in the function that a model wrote. The tests are compiled once,
    with what is left. rustc stops after macros where one does not expand, so another look is worth
    its cost until it has come to types.
    """
    alive = list(units)
    while len(alive) >= FEWEST_TO_SCREEN:
        done = _compile_crate(alive, folder, replace(settings, level=Level.CHECK), tests=False)
        blamed = _blame(done, alive)
        for unit, messages in blamed:
            verdict = Verdict.COMPILE_ERROR
            outcome.judged[unit.key] = verified_as(unit, verdict, settings, done, messages)
        if not blamed or any(_is_about_types(d) for _, messages in blamed for d in messages):
            break
        alive = [unit for unit in alive if unit.key not in outcome.judged]


def _is_about_types(diagnostic: Diagnostic) -> bool:
    return error_class(diagnostic.code) in ("types", "ownership", "lifetimes")


def _split(units: Sequence[Unit], folder: Path, settings: Settings) -> Outcome:
    """Compile a batch that has no culprit in smaller parts, at last one by one."""
    if len(units) == 1:
        return compile_alone(units[0], folder / "alone", settings)
    outcome, size = Outcome(), -(-len(units) // SPLIT_INTO)
    for start in range(0, len(units), size):
        part = units[start : start + size]
        outcome.add(compile_batch(part, folder / f"part{start}", settings))
    return outcome


def _write_modules(units: Sequence[Unit], folder: Path) -> None:
    """Write one file per program under a name that no program can guess."""
    nonce = secrets.token_hex(6)
    for number, unit in enumerate(units):
        unit.module = f"p{number:04d}_{nonce}"
        text = unit.program.source
        if unit.policy.kind == "main":
            # libtest calls it; its type check is the one rustc does for `main`.
            text += (
                f"\n#[test] fn entry_{nonce}() -> ::std::process::ExitCode "
                "{ ::std::process::Termination::report(main()) }\n"
            )
        (folder / f"{unit.module}.rs").write_bytes(text.encode())


def _compile_crate(
    units: Sequence[Unit], folder: Path, settings: Settings, *, tests: bool = True
) -> Completed:
    root = "".join(f"pub mod {unit.module};\n" for unit in units)
    (folder / "crate.rs").write_text(root)
    is_library = units[0].policy.kind == "lib" and settings.level is not Level.CHECK
    crate = "--crate-type=lib" if is_library or not tests else "--test"
    # Less than a program alone may use: a batch that needs more is split, which is cheaper than
    # letting one endless program use up the limit of all.
    cpu_s = min(settings.config.compile_cpu_s, 2.0 + 0.06 * len(units))
    arguments = [crate, "--crate-name=batch", "-o", "crate", "crate.rs"]
    done = _rustc(arguments, units[0].program.edition, folder, settings, cpu_s)
    for unit in units:
        unit.cpu_ms += done.cpu_s * 1e3 / len(units)
    return done


def _blame(done: Completed, units: Sequence[Unit]) -> list[tuple[Unit, list[Diagnostic]]]:
    """Return the units that errors name with their errors; nothing when rustc itself died."""
    if done.ended != "exit" or done.returncode != 1:
        return []
    by_file = {f"{unit.module}.rs": unit for unit in units}
    blamed: dict[int, tuple[Unit, list[Diagnostic]]] = {}
    for message in read_messages(done.stderr):
        unit = by_file.get(message.file)
        if unit is not None:
            blamed.setdefault(unit.key, (unit, []))[1].append(message.diagnostic)
    return list(blamed.values())


# --- rustc ------------------------------------------------------------------------------------


def _rustc(
    arguments: Sequence[str], edition: str, folder: Path, settings: Settings, cpu_s: float
) -> Completed:
    emit = "metadata" if settings.level in (Level.SYNTAX, Level.CHECK) else "metadata,link"
    command = [
        str(settings.toolchain.rustc),
        f"--edition={edition}",
        "--error-format=json",
        "--json=diagnostic-short,artifacts",
        f"--emit={emit}",
        *FLAGS,
        *(settings.link_args if emit != "metadata" else ()),
        *arguments,
    ]
    return run_sandboxed(
        command,
        work_dir=folder,
        profile="compile",
        limits=replace(COMPILE_LIMITS, cpu_s=cpu_s, wall_s=5 * cpu_s + 10),
        allow_unsandboxed=settings.config.allow_unsandboxed,
        readable=settings.readable,
    )


def _has_metadata(done: Completed) -> bool:
    """Return whether rustc got past its checks: it announces the metadata before it builds."""
    return b'"emit":"metadata"' in done.stderr


def read_messages(stderr: bytes) -> list[Message]:
    """Return rustc's errors; one without a place of its own takes that of the notes after it."""
    messages: list[Message] = []
    for line in stderr.splitlines():
        entry = _json_object(line)
        if entry.get("$message_type") != "diagnostic":
            continue
        is_error = str(entry.get("level", "")).startswith("error")
        place = _place(entry)
        if not is_error:
            if place and messages and not messages[-1].file:
                messages[-1] = Message(place[0], replace(messages[-1].diagnostic, **place[1]))
            continue
        text, code = entry.get("message", ""), (entry.get("code") or {}).get("code", "")
        if not place and text.startswith(("aborting due to", "could not compile")):
            continue
        file, span = place or ("", {})
        messages.append(Message(file, Diagnostic("error", code, text, **span)))
    return messages


def _json_object(line: bytes) -> dict:
    if not line.startswith(b"{"):
        return {}
    try:
        entry = json.loads(line)
    except ValueError:  # the last line of a cut output
        return {}
    return entry if isinstance(entry, dict) else {}


def _place(entry: dict) -> tuple[str, dict[str, int]] | None:
    """Return file and span of a message: its primary span, or one that led to it."""
    for span in _spans(entry):
        while span:
            if "/" not in span["file_name"] and span["file_name"].endswith(".rs"):
                return span["file_name"], {ours: span.get(name, 0) for ours, name in _SPAN}
            span = (span.get("expansion") or {}).get("span")
    return None


def _spans(entry: dict) -> Iterator[dict]:
    spans = entry.get("spans") or []
    yield from (span for span in spans if span.get("is_primary"))
    yield from (span for span in spans if not span.get("is_primary"))
    for child in entry.get("children") or []:
        yield from child.get("spans") or []


def verified_as(
    unit: Unit,
    verdict: Verdict,
    settings: Settings,
    done: Completed,
    diagnostics: Sequence[Diagnostic] = (),
    detail: str = "",
) -> Verified:
    """Return the judgement of a unit; places behind the program's own text become 0."""
    own = tuple(_in_own_text(d, unit.n_lines) for d in diagnostics[:MAX_DIAGNOSTICS])
    return Verified(
        program_id=unit.program.program_id,
        verdict=verdict,
        level=settings.level,
        diagnostics=own,
        detail=detail,
        sandbox=done.sandbox,
        cpu_ms=unit.cpu_ms,
    )


def _in_own_text(diagnostic: Diagnostic, n_lines: int) -> Diagnostic:
    if diagnostic.line > n_lines:
        return replace(diagnostic, line=0, column=0, end_line=0, end_column=0)
    if diagnostic.end_line > n_lines:
        return replace(diagnostic, end_line=0, end_column=0)
    return diagnostic
