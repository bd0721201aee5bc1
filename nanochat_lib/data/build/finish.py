"""The end of a corpus: split by package, write the tables in pieces, measure, say what is there.

Input: the state with every row judged. Output: the files of `build.py`. Rows are read from the
state and written in pieces of `_ROWS_PER_PIECE`, which polars then streams into one file, so that
memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.config import RunConfig
from nanochat_lib.data.build import prepare
from nanochat_lib.data.build.state import EXACT, NEAR, State
from nanochat_lib.data.build.tasks import write_tasks
from nanochat_lib.data.card import card_text
from nanochat_lib.data.corpus import RECHECKED_ROWS, require_compile_rate
from nanochat_lib.data.rows import table_row, table_schema
from nanochat_lib.data.select import held_out_groups
from nanochat_lib.data.sources.candidates import TASK_ONLY
from nanochat_lib.data.sources.units import file_sha256, units_hash
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.runs import write_atomic
from nanochat_lib.rust.syntax import features
from nanochat_lib.rust.verify import verify

_ROWS_PER_PIECE = 2_000
_IS_ROW = f"kind != '{TASK_ONLY}'"
_PASSED = f"verdict = 'PASSED' AND {_IS_ROW}"
_JUDGED = f"verdict NOT IN ('', 'UNJUDGED') AND {_IS_ROW}"
_REJECTED = f"verdict NOT IN ('PASSED', '') AND {_IS_ROW}"
# What a row can end at before it is judged, in the order of the work.
ENDS = (
    prepare.UNFIT_SIZE, prepare.NIGHTLY, prepare.OUTSIDE, prepare.BENCHMARK, EXACT, NEAR,
)  # fmt: skip


def write(config: RunConfig, state: State, folder: Path, rustc: str) -> dict[str, Any]:
    """Write the tables and return the summary without times.

    Raises:
        WorkbenchError: nothing passed, all rows are of one package, or the finished set compiles
            less often than `data.min_compile_rate`.
    """
    _require_some(state)
    held = _held_out(config, state)
    kept = (
        table_row(c, v, features(c.row.text), "validation" if c.row.group in held else "train")
        for _, c, v in state.judged(_PASSED)
    )
    lost = (table_row(c, v, features(c.row.text)) for _, c, v in state.judged(_REJECTED))
    n_kept = _write_table(kept, folder / "verified.parquet")
    n_lost = _write_table(lost, folder / "rejected.parquet")
    tasks = write_tasks(state, held, folder / "tasks.jsonl")
    n_tasks = sum(row["n_kept"] for row in tasks)
    after = recheck(config, state)
    files = ("verified.parquet", "rejected.parquet", "tasks.jsonl")
    return {
        "rows": {"verified": n_kept, "rejected": n_lost, "tasks": n_tasks},
        "tasks": tasks,
        **_counts(state),
        "funnel": _funnel(state, held),
        "compile_rate": {"by_source": _by_source(state), "after": after},
        "error_codes": _error_codes(state),
        "licences": _licences(state),
        "problems": [text for (text,) in state.query("SELECT text FROM problems ORDER BY text")],
        "units": _units(state),
        "units_sha256": units_hash(state.units()),
        "files_sha256": {name: file_sha256(folder / name) for name in files},
        "settings": config.corpus.model_dump(mode="json"),
        "rustc": rustc,
    }


def write_summary(folder: Path, summary: dict[str, Any], seconds: dict[str, float]) -> dict:
    """Add times and memory, write `summary.json` and the card, and return the summary."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    summary |= {"seconds": {name: round(s, 2) for name, s in seconds.items()}}
    summary |= {"peak_rss_mib": round(peak)}
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_atomic(folder / "DATASET_CARD.md", card_text(summary))
    return summary


def recheck(config: RunConfig, state: State) -> dict[str, int]:
    """Judge a sample of the finished set once more, and require `data.min_compile_rate` of it."""
    order = f"{_PASSED} AND id IN (SELECT id FROM rows WHERE {_PASSED}"
    sample = state.judged(f"{order} ORDER BY id * 2654435761 % 4294967296 LIMIT ?)", RECHECKED_ROWS)
    programs = [Program(str(row), c.program, c.edition) for row, c, _ in sample]
    fresh = verify(programs, Level.BUILD, config=config.verify)
    judged = [v for v in fresh if v.verdict is not Verdict.UNJUDGED]
    counts = {"n_compiled": sum(v.verdict.compiled for v in judged), "n_judged": len(judged)}
    require_compile_rate(counts, config.data.min_compile_rate)
    return counts


def _require_some(state: State) -> None:
    if state.query(f"SELECT 1 FROM rows WHERE {_PASSED} LIMIT 1"):
        return
    n_files = dict(_steps(state)).get("files", 0)
    codes = ", ".join(f"{row['code']} ({row['n']})" for row in _error_codes(state)[:3]) or "none"
    problems = " ".join(text for (text,) in state.query("SELECT text FROM problems LIMIT 3"))
    raise WorkbenchError(
        f"The corpus is empty: of {n_files} files nothing passed verification; most common errors: "
        f"{codes}. {problems} Add sources (corpus.sources), or look at what was passed over: "
        f"{_counts(state)['skipped_files']}, licences {_counts(state)['dropped_licences']}."
    )


def _held_out(config: RunConfig, state: State) -> frozenset[str]:
    found = state.query(f"SELECT grp, SUM(n_bytes) FROM rows WHERE {_PASSED} GROUP BY grp")
    held = held_out_groups(dict(found), config.data.validation_fraction, config.seed)
    if not held:
        raise WorkbenchError(
            "All verified rows come from one package, so that none can be held out for validation: "
            "add sources (corpus.sources)."
        )
    return held


def _write_table(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows as one Parquet file, a piece at a time, and return how many there are."""
    pieces = path.with_suffix(".pieces")
    shutil.rmtree(pieces, ignore_errors=True)
    pieces.mkdir()
    n_rows, paths, source = 0, [], iter(rows)
    while (piece := list(islice(source, _ROWS_PER_PIECE))) or not paths:
        paths.append(pieces / f"{len(paths):06}.parquet")
        pl.DataFrame(piece, schema=table_schema()).write_parquet(paths[-1])
        n_rows += len(piece)
    partial = path.with_suffix(".partial")
    pl.scan_parquet(paths).sink_parquet(partial, row_group_size=_ROWS_PER_PIECE)
    partial.replace(path)
    shutil.rmtree(pieces)
    return n_rows


def _steps(state: State) -> Iterator[tuple[str, int]]:
    yield from state.query(f"SELECT step, SUM(n) FROM counts WHERE {_IS_ROW} GROUP BY step")


def _counts(state: State) -> dict[str, Any]:
    steps = dict(_steps(state))
    by_name = "SELECT kind, n FROM counts WHERE step = ? ORDER BY n DESC, kind"
    return {
        "n_files": steps.get("files", 0),
        "n_bytes": steps.get("bytes", 0),
        "n_permitted_bytes": steps.get("permitted bytes", 0),
        "skipped_files": dict(state.query(by_name, "skipped")),
        "dropped_licences": dict(state.query(by_name, "licence")),
    }


def _funnel(state: State, held: frozenset[str]) -> list[dict[str, Any]]:
    steps = dict(_steps(state))
    left = steps.get(prepare.FOUND, 0)
    funnel = [{"step": "found", "n": left}]
    for end in ENDS:
        left -= steps.get(end, 0)
        funnel.append({"step": f"without: {end}", "n": left})
    for step, where in (
        ("judged", _JUDGED),
        ("compiled", f"compiled AND {_IS_ROW}"),
        ("passed", _PASSED),
    ):
        (n,) = state.query(f"SELECT COUNT(*) FROM rows WHERE {where}")[0]
        funnel.append({"step": step, "n": n})
    groups = state.query(f"SELECT grp, COUNT(*) FROM rows WHERE {_PASSED} GROUP BY grp")
    n_held = sum(n for group, n in groups if group in held)
    funnel.append({"step": "train", "n": sum(n for _, n in groups) - n_held})
    return [*funnel, {"step": "validation", "n": n_held}]


def _by_source(state: State) -> list[dict[str, Any]]:
    """Return, by source and kind: found, judged, compiled and passed."""
    found = {
        (source, kind): n
        for source, kind, n in state.query(
            "SELECT source, kind, n FROM counts WHERE step = ?", prepare.FOUND
        )
    }
    judged = state.query(
        "SELECT source, kind, COUNT(*), SUM(compiled), SUM(verdict = 'PASSED') FROM rows"
        f" WHERE {_JUDGED} GROUP BY source, kind ORDER BY source, kind"
    )
    return [
        {
            "source": source,
            "kind": kind,
            "n_found": found.get((source, kind), 0),
            "n_judged": n_judged,
            "n_compiled": n_compiled,
            "n_passed": n_passed,
        }
        for source, kind, n_judged, n_compiled, n_passed in judged
    ]


def _error_codes(state: State) -> list[dict[str, Any]]:
    found = state.query(
        f"SELECT code, COUNT(*) FROM rows WHERE code != '' AND {_IS_ROW}"
        " GROUP BY code ORDER BY 2 DESC, 1"
    )
    return [{"code": code, "n": n} for code, n in found]


def _licences(state: State) -> list[dict[str, Any]]:
    found = state.query(
        f"SELECT licence, COUNT(*) FROM rows WHERE {_PASSED} GROUP BY licence ORDER BY 2 DESC, 1"
    )
    return [{"licence": licence, "n": n} for licence, n in found]


def _units(state: State) -> list[dict[str, Any]]:
    return [
        {name: getattr(unit, name) for name in ("source", "package", "version", "sha256")}
        for unit in state.units()
    ]
