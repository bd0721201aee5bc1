"""What was different between runs: settings and environment, read from their `run.json`.

Input: runs. Output: a frame with a row per setting that is not the same in all of them and a column
per run, values as text; a setting that a run lacks is "-".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from nanochat_lib.report.run_data import RunData

ABSENT = "-"
_SHORT = {"git.commit": 12, "git.diff_sha256": 12, "lock_hash": 12}  # digits that tell apart


def parameter_differences(runs: Sequence[RunData]) -> pl.DataFrame:
    """Return the settings in which runs differ; targets and the profile's name are settings too."""
    return _differences(runs, [_flat(run.config) for run in runs], "parameter")


def environment_differences(runs: Sequence[RunData]) -> pl.DataFrame:
    """Return where commit, machine, packages, compiler or sandbox differ."""
    found = []
    for run in runs:
        state = {name: run.state.get(name) for name in ("git", "machine", "versions", "lock_hash")}
        state["machine"] = {
            # what is free changes from minute to minute and says nothing about a run
            k: v
            for k, v in (state["machine"] or {}).items()
            if k != "memory_available_gb"
        }
        found.append(_flat(state | {"rustc": run.rustc, "sandbox": run.sandbox}))
    return _differences(runs, found, "environment")


def _differences(
    runs: Sequence[RunData], found: Sequence[Mapping[str, str]], first: str
) -> pl.DataFrame:
    names = dict.fromkeys(name for values in found for name in values)
    rows = [
        {first: name} | dict(zip(column_names(runs), values, strict=True))
        for name in names
        if len(set(values := [one.get(name, ABSENT) for one in found])) > 1
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys((first, *column_names(runs)), pl.String))


def column_names(runs: Sequence[RunData]) -> list[str]:
    """Return a distinct name for each run: label or id, with its folder where two are equal."""
    names = [run.label or run.run_id for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.dir})"
        for name, run in zip(names, runs, strict=True)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested dictionaries as dotted names with values as text."""
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return {prefix: text[: _SHORT.get(prefix, len(text))] or ABSENT}
    parts = [_flat(inner, f"{prefix}.{name}" if prefix else name) for name, inner in value.items()]
    return {name: text for part in parts for name, text in part.items()}
