"""Units: the packages of a corpus, one after the other, and how each is read.

Input: a `Unit` (an archive, a folder, a file of JSON lines, or the toolchain's pages). Output: its
files as lists of `Candidate`s in a fixed order. A file whose licence is not permitted gives none,
and is counted by its licence. An archive is unpacked into a scratch folder and removed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from nanochat_lib.data.sources.archives import BadArchive, unpack
from nanochat_lib.data.sources.candidates import Candidate, RustFile, file_candidates
from nanochat_lib.data.sources.folder import described_files, rust_files
from nanochat_lib.data.sources.licences import UNKNOWN_LICENCE, is_permissive
from nanochat_lib.data.sources.packages import Package, PackageFinder
from nanochat_lib.data.sources.toolchain import toolchain_candidates
from nanochat_lib.errors import WorkbenchError

FOLDER = "folder"
TOOLCHAIN = "toolchain"


class SourceUnavailable(Exception):
    """A source that cannot be had now (offline, not installed); the text says why."""


@dataclass(frozen=True)
class Unit:
    """One package of a source, or one part of it."""

    source: str  # "toolchain" | "folder" | "debian" | "pypi" | "hub"
    package: str
    version: str
    place: str  # archive, folder or file
    sha256: str  # of an archive or file; of a folder, that of its paths and sizes

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"{self.source}/{self.package}"


@dataclass
class ReadFile:
    """What one file of a unit gave: candidates, or why there are none."""

    candidates: list[Candidate] = field(default_factory=list)
    n_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # files passed over, by reason
    dropped: Counter[str] = field(default_factory=Counter)  # files dropped, by licence
    problem: str = ""  # for the whole unit


def read_unit(unit: Unit, scratch: Path, *, any_licence: bool) -> Iterator[ReadFile]:
    """Yield the files of a unit; a unit that cannot be used yields its problem and nothing else.

    Args:
        scratch: folder for what is unpacked; emptied before and after.
        any_licence: keep files under every licence, not only under permissive ones.
    """
    if unit.source == TOOLCHAIN:
        found = groupby(toolchain_candidates(Path(unit.place)), key=lambda c: c.row.path)
        for _, group in found:
            candidates = list(group)
            n_bytes = sum(len(c.row.text.encode()) for c in candidates)
            yield ReadFile(candidates, n_bytes)
        return
    skipped: Counter[str] = Counter()
    try:
        place = Path(unit.place)
        now = folder_hash(place) if unit.source == FOLDER else file_sha256(place)
        if now != unit.sha256:
            raise BadArchive(f"{place} changed since this corpus was begun")
        for file in _files(unit, scratch, skipped):
            yield _read(file, any_licence, skipped)
            skipped.clear()
    except (BadArchive, OSError) as error:
        yield ReadFile(problem=f"{unit.name}: {error}", skipped=Counter({"unusable archives": 1}))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if +skipped:
        yield ReadFile(skipped=+skipped)


def _read(file: RustFile, any_licence: bool, skipped: Counter[str]) -> ReadFile:
    n_bytes = len(file.text.encode())
    is_own = file.source == FOLDER and file.licence == UNKNOWN_LICENCE  # the user's own to give
    if not (any_licence or is_own or is_permissive(file.licence)):
        return ReadFile([], n_bytes, +skipped, Counter({file.licence: 1}))
    return ReadFile(list(file_candidates(file)), n_bytes, +skipped)


def _files(unit: Unit, scratch: Path, skipped: Counter[str]) -> Iterator[RustFile]:
    if unit.place.endswith(".jsonl"):
        return _lines(unit)
    if unit.source == FOLDER:
        top = Path(unit.place)
        finder = PackageFinder(top)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        unpack(Path(unit.place), scratch, skipped)
        top = scratch
        finder = PackageFinder(top, licence=_declared_licence(top), is_closed=True)
    return described_files(
        top, source=unit.source, origin=unit.package, finder=finder, skipped=skipped
    )


def _declared_licence(top: Path) -> str:
    """Return the SPDX expression of a Python source package's metadata, if it has one."""
    for path in sorted(top.glob("*/PKG-INFO")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "License-Expression":
                return value.strip()
    return ""


def _lines(unit: Unit) -> Iterator[RustFile]:
    with Path(unit.place).open(encoding="utf-8") as file:
        for line in file:
            found = json.loads(line)
            package = Package(found["package"], found["licence"])
            yield RustFile(
                found["text"], found["path"], unit.source, unit.package, package, found["licence"]
            )


def folder_unit(folder: Path) -> Unit:
    """Return a user's folder as a unit.

    Raises:
        WorkbenchError: the folder does not exist.
    """
    if not folder.is_dir():
        raise WorkbenchError(f"Folder {folder} does not exist. Set corpus.folder.")
    top = folder.absolute()
    return Unit(FOLDER, top.name, "", str(top), folder_hash(top))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a SHA-256 of the paths and sizes of a folder's Rust files."""
    digest = hashlib.sha256()
    for path in rust_files(folder, Counter()):
        digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_size}\n".encode())
    return digest.hexdigest()


def units_hash(units: Iterable[Unit]) -> str:
    """Return a hash of what a corpus is made of; places on this machine do not enter it."""
    digest = hashlib.sha256()
    for unit in units:
        digest.update(f"{unit.source}\0{unit.package}\0{unit.version}\0{unit.sha256}\n".encode())
    return digest.hexdigest()
