"""Hub datasets of Rust, by the names that the user gives, through `datasets` (extra `hub`).

Input: names such as `org/name`, or `org/name:column` where the Rust is in a column that we do not
know. Output: `Unit`s, each a file of JSON lines (`text`, `path`, `package`, `licence`) with at most
`ROWS_PER_FILE` rows: a data set is read as a stream once, and from then on it lies here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat_lib.data.sources.licences import UNKNOWN_LICENCE, spdx
from nanochat_lib.data.sources.units import SourceUnavailable, Unit, file_sha256
from nanochat_lib.runs import write_atomic

ROWS_PER_FILE = 2000
_TEXTS = ("content", "code", "text", "output_data", "output", "completion")
_LICENCES = ("max_stars_repo_licenses", "licenses", "license", "licence", "detected_licenses")
_PATHS = ("max_stars_repo_path", "path", "file_path")
_PACKAGES = ("max_stars_repo_name", "repo_name", "repository_name", "crate_name")


def hub_units(
    folder: Path, datasets: Sequence[str], most: int, tell: Callable[[str], None]
) -> list[Unit]:
    """Read data sets into files and return them as units, in the order given.

    Args:
        folder: where the files go; what is there already is not read again.
        datasets: names, each with `:column` where needed; a local folder works too.
        most: rows of each; 0: all.
        tell: called with what is being done, and with what could not be done.

    Raises:
        SourceUnavailable: `datasets` is not installed, or no data set could be had.
    """
    try:
        import datasets as library
    except ImportError as error:
        raise SourceUnavailable(
            "Hub data sets need datasets: install the extra with 'pip install .[hub]'."
        ) from error
    units, problems = [], []
    for named in datasets:
        name, _, column = named.partition(":")
        tell(f"reading data set {name}")
        try:
            stream = library.load_dataset(name, split="train", streaming=True)
            units += _units(folder, name, _rows(stream, name, column, most))
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(f"Data set {name} could not be read: {str(error).splitlines()[0]}")
            tell(problems[-1])
    if problems and not units:
        raise SourceUnavailable(" ".join(problems))
    return units


def _units(folder: Path, name: str, rows: Iterator[dict[str, str]]) -> list[Unit]:
    folder.mkdir(parents=True, exist_ok=True)
    units = []
    while lines := [json.dumps(row, ensure_ascii=False) for row in islice(rows, ROWS_PER_FILE)]:
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{len(units):05}.jsonl"
        write_atomic(path, "\n".join(lines) + "\n")
        units.append(Unit("hub", f"{name}-{len(units):05}", "", str(path), file_sha256(path)))
    return units


def _rows(stream: Any, name: str, column: str, most: int) -> Iterator[dict[str, str]]:
    """Yield text, path, package and licence of each row.

    Raises:
        ValueError: the data set has no column that we take for Rust.
    """
    for n, row in enumerate(islice(stream, most or None)):
        wanted = column or _first_of(row, _TEXTS)
        if not isinstance(row.get(wanted), str):
            raise ValueError(
                f"no column with Rust among {', '.join(row)}: name it as {name}:column"
            )
        licence = row.get(_first_of(row, _LICENCES)) or UNKNOWN_LICENCE
        if isinstance(licence, list):  # found by a scanner, side by side: all are taken to hold
            licence = " AND ".join(map(str, licence))
        yield {
            "text": row[wanted],
            "path": str(row.get(_first_of(row, _PATHS)) or f"row{n}.rs"),
            "package": str(row.get(_first_of(row, _PACKAGES)) or name),
            "licence": spdx(licence),
        }


def _first_of(row: dict[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in row), "")
