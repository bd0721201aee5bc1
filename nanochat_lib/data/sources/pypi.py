"""Source packages of Rust projects on PyPI, by the names that the user gives.

Input: project names, e.g. `rpds-py`. Output: `Unit`s, each a `.tar.gz` file whose SHA-256 the index
confirms. The package index that pip is set to is asked through `unearth` (extra `pypi`), which
finds and downloads only: `pip download` would run a package's build backend to learn its metadata,
and no code of a package may run here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanochat_lib.data.sources.units import SourceUnavailable, Unit, file_sha256

_DEFAULT_INDEX = "https://pypi.org/simple/"


def pypi_units(folder: Path, projects: Sequence[str], tell: Callable[[str], None]) -> list[Unit]:
    """Download the newest source package of each project and return them in the order given.

    Args:
        folder: where the files go; what is there already is not downloaded again.
        projects: names, with a version where one is wanted: `orjson==3.10.0`.
        tell: called with what is being done, and with what could not be done.

    Raises:
        SourceUnavailable: `unearth` is not installed, or no project could be had.
    """
    finder = _finder()
    units, problems = [], []
    for project in projects:
        tell(f"downloading {project}")
        try:
            units.append(_unit(finder, project, folder))
        except SourceUnavailable as error:
            problems.append(str(error))
            tell(str(error))
    if problems and not units:
        raise SourceUnavailable(" ".join(problems))
    return units


def _finder() -> Any:
    try:
        from unearth import PackageFinder
    except ImportError as error:
        raise SourceUnavailable(
            "Source packages from PyPI need unearth: install the extra with 'pip install .[pypi]'."
        ) from error
    return PackageFinder(index_urls=[_index()], no_binary=[":all:"])


def _index() -> str:
    """Return the package index that pip is set to."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^\S*\.index-url='([^']+)'", done.stdout, re.MULTILINE)
    return found[1] if found else _DEFAULT_INDEX


def _unit(finder: Any, project: str, folder: Path) -> Unit:
    from httpx2 import HTTPError  # what unearth speaks HTTP with

    (folder / "partial").mkdir(parents=True, exist_ok=True)
    try:
        found = finder.find_best_match(project).best
        if found is None or found.link is None:
            raise SourceUnavailable(f"There is no source package of {project} to be had.")
        path = folder / found.link.filename
        if not path.is_file():  # written under another name first: a torn download is no archive
            with_hash = found.link.hashes and {k: [v] for k, v in found.link.hashes.items()}
            arrived = finder.download(found.link, folder / "partial", with_hash)
            arrived.replace(path)
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise SourceUnavailable(f"{project} could not be downloaded: {error}") from error
    return Unit("pypi", found.name, str(found.version), str(path), file_sha256(path))
