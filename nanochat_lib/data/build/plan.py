"""The plan of a corpus: which packages it is made of, in which order.

Input: `CorpusConfig` and the folder for downloads. Output: `Unit`s, and for each source that could
not be had the reason. One source that is offline does not stop the others.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat_lib.config import CorpusConfig
from nanochat_lib.data.sources.debian import debian_units
from nanochat_lib.data.sources.hub import hub_units
from nanochat_lib.data.sources.pypi import pypi_units
from nanochat_lib.data.sources.units import TOOLCHAIN, SourceUnavailable, Unit, folder_unit
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust.toolchain import Toolchain


def plan_units(
    config: CorpusConfig, toolchain: Toolchain, folder: Path, tell: Callable[[str], None]
) -> tuple[list[Unit], list[str]]:
    """Return the units of all sources in the configured order, and what could not be had.

    Args:
        toolchain: whose documentation is a source.
        folder: for downloads.
        tell: called with what is being done.

    Raises:
        WorkbenchError: no source gave anything, or a source lacks its setting.
    """
    _require_settings(config)
    units: list[Unit] = []
    problems: list[str] = []
    for source in dict.fromkeys(config.sources):
        try:
            units += _units_of(source, config, toolchain, folder, tell)
        except SourceUnavailable as error:
            problems.append(f"{source} is left out: {error}")
            tell(problems[-1])
    if not units:
        raise WorkbenchError(
            f"No source of Rust could be had. {' '.join(problems)} Set corpus.sources to one that "
            "is there: 'folder' with corpus.folder needs no network."
        )
    return units, problems


def _units_of(
    source: str,
    config: CorpusConfig,
    toolchain: Toolchain,
    folder: Path,
    tell: Callable[[str], None],
) -> list[Unit]:
    if source == "debian":
        suite, most = config.debian_suite, config.debian_packages
        return debian_units(folder, suite=suite, most=most, tell=tell)
    if source == "pypi":
        return pypi_units(folder / "pypi", config.pypi_projects, tell)
    if source == "hub":
        return hub_units(folder / "hub", config.hub_datasets, config.hub_rows, tell)
    if source == "folder":
        return [folder_unit(Path(config.folder).expanduser())]
    return [_toolchain_unit(toolchain)]


def _toolchain_unit(toolchain: Toolchain) -> Unit:
    if toolchain.docs is None:
        raise SourceUnavailable(
            f"{toolchain.version} has no documentation: `rustup component add rust-docs`."
        )
    version = hashlib.sha256(toolchain.version.encode()).hexdigest()
    return Unit(TOOLCHAIN, "rust-docs", toolchain.version, str(toolchain.docs), version)


def _require_settings(config: CorpusConfig) -> None:
    for source, key, value in (
        ("folder", "folder", config.folder),
        ("pypi", "pypi_projects", config.pypi_projects),
        ("hub", "hub_datasets", config.hub_datasets),
    ):
        if source in config.sources and not value:
            raise WorkbenchError(
                f"corpus.sources names '{source}', which needs corpus.{key}: nothing is read that "
                "you did not name."
            )


def benchmark_texts(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts of benchmark files: of JSON lines every text value, of others the whole.

    Raises:
        WorkbenchError: a file that cannot be read.
    """
    for path in map(Path, paths):
        try:
            data = path.expanduser().read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
            raise WorkbenchError(f"Benchmark file {path} cannot be read: {error}.") from error
        if not {".json", ".jsonl"} & set(path.suffixes):
            yield text
            continue
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise WorkbenchError(f"Benchmark file {path} is not JSON lines: {error}.") from error
        yield from _texts(found)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
