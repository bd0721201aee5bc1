"""The verdict cache: what was judged once is never judged again.

An append-only file, `verdicts.jsonl`, one JSON line for each verdict, keyed by everything it
depends on (`cache_key`). A line is written with one call under a file lock, so that processes may
share the file; a line that a crash has cut or a disk has damaged is skipped. The cache stays with
whoever submits: workers on other machines never see it. A folder that cannot be written costs the
cache, never the run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.judging import batch
from nanochat_lib.rust.judging.jobs import Surroundings

_LOG = logging.getLogger(__name__)
_NEVER_CACHED = frozenset((Verdict.UNJUDGED, Verdict.TIMEOUT))
_NOT_IN_KEY = {"batch_size", "allow_unsandboxed", "cluster"}  # they decide no verdict
_HEAD = b'{"key":"'


def cache_key(
    program: Program, level: Level, config: VerifyConfig, surroundings: Surroundings
) -> str:
    """Return the SHA-256 of everything that a verdict depends on."""
    limits = config.model_dump(exclude=_NOT_IN_KEY)
    parts = (program.source, program.edition, level, limits, asdict(surroundings), batch.FLAGS)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class VerdictCache:
    """Verdicts by key: the lines of the file, and those that this process has added."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "verdicts.jsonl"
        self.entries: dict[str, bytes] = {}
        self.is_writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            self._give_up(error)
            return
        for line in content.splitlines():
            if line.startswith(_HEAD) and line.endswith(b"}"):
                self.entries[line[8:72].decode("ascii", "replace")] = line

    def get(self, key: str, program: Program, level: Level) -> Verified | None:
        """Return a stored verdict under the program's own id; None for a damaged line too."""
        line = self.entries.get(key)
        if line is None:
            return None
        try:
            return _read_line(line, key, program.program_id, level)
        except (ValueError, KeyError, TypeError):
            del self.entries[key]  # judged anew, and written again
            return None

    def put(self, key: str, verified: Verified) -> None:
        """Append a verdict, unless another run could decide it otherwise."""
        if verified.verdict in _NEVER_CACHED or key in self.entries or not self.is_writable:
            return
        row = {"key": key} | {
            name: value
            for name, value in asdict(verified).items()
            if name not in ("program_id", "level", "cached")
        }
        line = json.dumps(row, separators=(",", ":")).encode()
        try:
            self._append(line)
        except OSError as error:
            self._give_up(error)
        else:
            self.entries[key] = line

    def _append(self, line: bytes) -> None:
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_torn = file.tell() > 0 and not _ends_with_newline(self.path)
            file.write((b"\n" if is_torn else b"") + line + b"\n")

    def _give_up(self, error: OSError) -> None:
        self.is_writable = False
        _LOG.warning("Verdicts of this run are not kept: the cache cannot be used: %s.", error)


def _read_line(line: bytes, key: str, program_id: str, level: Level) -> Verified:
    """Return the verdict of a line; raises for one that is damaged."""
    row = json.loads(line)
    if row["key"] != key:
        raise ValueError("the line belongs to another key")
    return Verified(
        program_id=program_id,
        verdict=Verdict(row["verdict"]),
        level=level,
        diagnostics=tuple(Diagnostic(**entry) for entry in row["diagnostics"]),
        detail=row["detail"],
        sandbox=row["sandbox"],
        cpu_ms=row["cpu_ms"],
        cached=True,
        n_tests=row["n_tests"],
    )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
