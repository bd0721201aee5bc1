"""Rust in a folder: whole files and slices of them, with package and licence.

Input: a folder of `.rs` files. Output: `Candidate`s in a fixed order. What could not be read is
counted in `skipped`.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nanochat_lib.data.sources import packages
from nanochat_lib.data.sources.candidates import (
    TASK_ONLY,
    Candidate,
    RustFile,
    file_candidates,
    seeded_order,
)
from nanochat_lib.errors import WorkbenchError

MAX_FILE_BYTES = 1_000_000
_SKIPPED_FOLDERS = frozenset({"target", ".git", "node_modules"})


def folder_candidates(
    folder: Path, *, seed: int, most: int, skipped: Counter[str]
) -> Iterator[Candidate]:
    """Yield whole files and slices of a folder of `.rs` files, packages in turn, at most `most`.

    Args:
        skipped: counts what was passed over, by reason ("not UTF-8", "larger than 1 MB", ...).

    Raises:
        WorkbenchError: the folder does not exist, or holds no `.rs` file that can be read.
    """
    if not folder.is_dir():
        raise WorkbenchError(f"Input folder {folder} does not exist. Set data.input_dir.")
    n_files = n_rows = 0
    finder = packages.PackageFinder(folder)
    for path in _in_turns(rust_files(folder, skipped), finder, seed):
        text = _readable_text(path, skipped)
        if text is None:
            continue
        n_files += 1
        for candidate in file_candidates(_described(path, text, finder)):
            if candidate.row.kind != TASK_ONLY:
                yield candidate
                n_rows += 1
        if n_rows >= most:
            return
    if not n_files:
        passed_over = "".join(f"; {n} {reason}" for reason, n in sorted(skipped.items()))
        raise WorkbenchError(
            f"Input folder {folder} holds no readable .rs file{passed_over}. Set data.input_dir to "
            "a folder with Rust source, or leave it empty to use the toolchain's documentation."
        )


def described_files(
    folder: Path, *, source: str, origin: str, finder: packages.PackageFinder, skipped: Counter[str]
) -> Iterator[RustFile]:
    """Yield every readable `.rs` file of a folder in the order of their paths.

    Args:
        source: kind of source, the first part of the ids of rows.
        origin: name of the archive or folder, their second part.
        finder: of the folder.
        skipped: counts what was passed over, by reason.
    """
    for path in rust_files(folder, skipped):
        text = _readable_text(path, skipped)
        if text is not None:
            file = _described(path, text, finder)
            yield replace(file, source=source, origin=origin, path=shown_path(file.path))


def shown_path(path: str) -> str:
    """Return a path without the folders that every Debian package has."""
    return path.removeprefix("usr/share/cargo/registry/").removeprefix("usr/src/")


def _described(path: Path, text: str, finder: packages.PackageFinder) -> RustFile:
    package = finder.package_of(path)
    place = path.relative_to(finder.top).as_posix()
    return RustFile(text, place, "folder", package.name, package, finder.licence_of(path))


def rust_files(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Return the regular `.rs` files below a folder; links are counted, never followed."""
    found: list[Path] = []
    for base, folders, names in os.walk(folder, followlinks=False):
        skipped["symbolic links"] += sum(os.path.islink(os.path.join(base, f)) for f in folders)
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".rs"):
                found.append(Path(base, name))
    return found


def _in_turns(paths: list[Path], finder: packages.PackageFinder, seed: int) -> Iterator[Path]:
    """Yield one file of each package in turn, in an order that only the seed decides."""
    queues: dict[str, list[Path]] = {}
    for path in sorted(
        paths, key=lambda p: seeded_order(seed, p.relative_to(finder.top).as_posix())
    ):
        queues.setdefault(finder.package_of(path).name, []).append(path)
    waiting = [queues[name] for name in sorted(queues)]
    for turn in range(max(map(len, waiting), default=0)):
        yield from (queue[turn] for queue in waiting if turn < len(queue))


def _readable_text(path: Path, skipped: Counter[str]) -> str | None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            skipped["symbolic links" if stat.S_ISLNK(status.st_mode) else "not a plain file"] += 1
        elif status.st_size > MAX_FILE_BYTES:
            skipped["larger than 1 MB"] += 1
        else:
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
    except OSError:
        skipped["unreadable"] += 1
    return None
