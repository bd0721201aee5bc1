"""Let rustc's lexer judge programs with unbalanced brackets, many in one process.

An unclosed or mismatched bracket ends rustc at once, so such programs cannot share a crate, and a
rustc each costs 8 ms, most of it starting up. rustfmt of the same toolchain is the same lexer and
parser behind another door, and goes on to the next file: 0.1 ms a program. Input: units that
`policy.py` calls unbalanced. Output: verdicts with the message and place that rustc gives. What
rustfmt does not complain of, or cannot be asked about, is left to `batch.compile_alone`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from nanochat_lib.records import Diagnostic, Verdict, Verified
from nanochat_lib.rust.judging.batch import Settings, Unit, verified_as
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, run_sandboxed

FEWEST = 2  # one alone is cheaper with rustc itself
_ERROR = re.compile(
    r"^error(?:\[(?P<code>E\d+)\])?: (?P<message>.*)\n"
    r" *--> (?:.*/)?(?P<file>\w+\.rs):(?P<line>\d+):(?P<column>\d+)$",
    re.MULTILINE,
)


def judge_unbalanced(
    units: Sequence[Unit], folder: Path, settings: Settings
) -> dict[int, Verified]:
    """Return PARSE_ERROR, by key, for the units that rustc's lexer refuses.

    Args:
        units: programs of one edition; an answer may be missing for any of them.
        folder: scratch folder that does not exist yet.
        settings: limits and toolchain; without rustfmt in it nothing is judged.
    """
    judged: dict[int, Verified] = {}
    waiting = list(units)
    if settings.toolchain.rustfmt is None or len(waiting) < FEWEST:
        return judged
    folder.mkdir()
    names = {f"u{number}_{secrets.token_hex(6)}.rs": unit for number, unit in enumerate(waiting)}
    (folder / "rustfmt.toml").touch()  # or it would look for one in every folder above
    for name, unit in names.items():
        (folder / name).write_bytes(unit.program.source.encode())
    while waiting:
        files = [name for name, unit in names.items() if unit.key not in judged]
        done = _rustfmt(files, units[0].program.edition, folder, settings)
        found = _errors(done.stderr.decode("utf-8", "replace"), names)
        for unit in waiting:
            unit.cpu_ms += done.cpu_s * 1e3 / len(waiting)
            if unit.key in found:
                errors = found[unit.key]
                judged[unit.key] = verified_as(unit, Verdict.PARSE_ERROR, settings, done, errors)
        # An unterminated literal ends it early: the files after that one need another run.
        has_died = done.ended == "exit" and done.returncode not in (0, 1)
        n_before = len(waiting)
        waiting = [unit for unit in waiting if unit.key not in judged]
        if not has_died or len(waiting) == n_before:
            break
    return judged


def _rustfmt(names: Sequence[str], edition: str, folder: Path, settings: Settings) -> Completed:
    return run_sandboxed(
        [settings.toolchain.rustfmt, f"--edition={edition}", "--check", "--color=never", *names],
        work_dir=folder,
        profile="compile",
        limits=COMPILE_LIMITS,
        allow_unsandboxed=settings.config.allow_unsandboxed,
    )


def _errors(stderr: str, names: dict[str, Unit]) -> dict[int, list[Diagnostic]]:
    """Return the errors of each unit by its key; those without a place belong to nobody."""
    found: dict[int, list[Diagnostic]] = {}
    for match in _ERROR.finditer(stderr):
        unit = names.get(match["file"])
        if unit is not None:
            place = int(match["line"]), int(match["column"])
            error = Diagnostic("error", match["code"] or "", match["message"], *place)
            found.setdefault(unit.key, []).append(error)
    return found
