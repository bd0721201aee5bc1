"""The state of a corpus while it is built: one SQLite file, so that nothing is lost or done twice.

Holds the plan (units), the position of the reader, every row that is worth judging with its
verdict, what became of tasks, the dedup index and the counts of the funnel. Each step is one
transaction: after a crash the file is as before the step or as after it. Memory is bounded by
SQLite's cache, whatever the size of the corpus.

Dedup: a row ends when an earlier one has the same text (white space apart), or when the MinHash
estimate of shared shingles reaches the threshold. Earlier rows are met through bands of the MinHash
(locality-sensitive hashing), at most `_MOST_COMPARED` per band.

Source: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", sections 3.3 and 3.4.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from nanochat_lib.data.build.prepare import Prepared, Row, likeness
from nanochat_lib.data.sources.candidates import Candidate, task_of
from nanochat_lib.data.sources.units import Unit
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Diagnostic, Level, RustSource, Task, Verdict, Verified

FILE_NAME = "state.sqlite"
EXACT = "exact repeat"
NEAR = "near repeat"
_MOST_COMPARED = 32
_CACHE_KIB = 32 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, source TEXT, kind TEXT, grp TEXT, licence TEXT, n_bytes INTEGER,
    record TEXT NOT NULL, level TEXT NOT NULL, digest BLOB NOT NULL,
    verdict TEXT NOT NULL DEFAULT '', compiled INTEGER NOT NULL DEFAULT 0, code TEXT DEFAULT '',
    judgement TEXT
);
CREATE INDEX IF NOT EXISTS pending ON rows (id) WHERE verdict = '';
CREATE TABLE IF NOT EXISTS exact (hash INTEGER PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bands (
    hash INTEGER, row INTEGER, PRIMARY KEY (hash, row)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    step TEXT, source TEXT, kind TEXT, n INTEGER NOT NULL, PRIMARY KEY (step, source, kind)
);
CREATE TABLE IF NOT EXISTS problems (text TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS trials (row INTEGER PRIMARY KEY, outcome TEXT NOT NULL);
"""


class State:
    """The open state file."""

    def __init__(self, folder: Path, near_duplicate: float) -> None:
        """Open the file of a folder, or make it; see `CorpusConfig.near_duplicate`."""
        self.near_duplicate = near_duplicate
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        self.db = sqlite3.connect(self.path, isolation_level=None)
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self.db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise WorkbenchError(
                f"{self.path} is damaged ({error}): delete it, and the corpus is built anew."
            ) from error

    # --- the plan -------------------------------------------------------------------------------

    def get(self, name: str) -> str:
        """Return a stored value, or an empty text."""
        found = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return found[0] if found else ""

    def put(self, name: str, value: str) -> None:
        """Store a value."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def plan(self, units: Sequence[Unit], problems: Iterable[str], settings: str) -> None:
        """Store what the corpus is made of, once and for all."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            records = ((n, json.dumps(asdict(unit))) for n, unit in enumerate(units))
            self.db.executemany("INSERT INTO units VALUES (?, ?)", records)
            self._note(problems)
            self.put("settings", settings)

    def units(self) -> list[Unit]:
        """Return the plan."""
        found = self.db.execute("SELECT record FROM units ORDER BY id")
        return [Unit(**json.loads(record)) for (record,) in found]

    def position(self) -> tuple[int, int]:
        """Return the unit and the file that are read next."""
        unit, _, file = (self.get("position") or "0 0").partition(" ")
        return int(unit), int(file)

    # --- reading --------------------------------------------------------------------------------

    def add(self, files: Iterable[Prepared]) -> None:
        """Take in files, drop repeats, and move the position behind them."""
        counts: Counter[tuple[str, str, str]] = Counter()
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            for file in files:
                counts.update(file.found)
                counts.update({("skipped", "", why): n for why, n in file.skipped.items()})
                counts.update({("licence", "", name): n for name, n in file.dropped.items()})
                counts["bytes", "", ""] += file.n_bytes
                counts["files", "", ""] += file.n_bytes > 0
                if not file.dropped:
                    counts["permitted bytes", "", ""] += file.n_bytes
                self._note([file.problem] if file.problem else [])
                for row in file.rows:
                    ended = self._add_row(row)
                    if ended:
                        counts[ended, _source(row.candidate.row), row.candidate.row.kind] += 1
                after = (file.unit + 1, 0) if file.is_last else (file.unit, file.file + 1)
                self.put("position", f"{after[0]} {after[1]}")
            self._count(counts)

    def _add_row(self, row: Row) -> str:
        """Store a row, or return why it is a repeat."""
        stored = self.db.execute("INSERT OR IGNORE INTO exact VALUES (?)", (row.exact,))
        if not stored.rowcount:
            return EXACT
        if self._has_near(row):
            return NEAR
        source = row.candidate.row
        made = self.db.execute(
            "INSERT INTO rows (source, kind, grp, licence, n_bytes, record, level, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _source(source), source.kind, source.group, source.licence,
                len(source.text.encode()), _record(row.candidate), row.level, row.digest,
            ),
        )  # fmt: skip
        pairs = [(band, made.lastrowid) for band in row.bands]
        self.db.executemany("INSERT INTO bands VALUES (?, ?)", pairs)
        return ""

    def _has_near(self, row: Row) -> bool:
        compared: set[int] = set()
        for band in row.bands:
            found = self.db.execute(
                "SELECT row FROM bands WHERE hash = ? ORDER BY row LIMIT ?", (band, _MOST_COMPARED)
            ).fetchall()
            for (other,) in found:
                if other in compared:
                    continue
                compared.add(other)
                query = "SELECT digest FROM rows WHERE id = ?"
                (digest,) = self.db.execute(query, (other,)).fetchone()
                if likeness(row.digest, digest) >= self.near_duplicate:
                    return True
        return False

    def _count(self, counts: Counter[tuple[str, str, str]]) -> None:
        self.db.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?)"
            " ON CONFLICT (step, source, kind) DO UPDATE SET n = n + excluded.n",
            ((*key, n) for key, n in counts.items() if n),
        )

    def _note(self, problems: Iterable[str]) -> None:
        self.db.executemany("INSERT OR IGNORE INTO problems VALUES (?)", ((p,) for p in problems))

    # --- judging --------------------------------------------------------------------------------

    def waiting(self) -> tuple[int, Level]:
        """Return the level that most rows wait to be judged at, and how many they are."""
        found = self.db.execute(
            "SELECT COUNT(*), level FROM rows WHERE verdict = '' GROUP BY level ORDER BY 1 DESC"
        ).fetchone()
        return (found[0], Level(found[1])) if found else (0, Level.BUILD)

    def next_lot(self, level: Level, most: int) -> list[tuple[int, Candidate]]:
        """Return the next rows to judge at a level, in order."""
        found = self.db.execute(
            "SELECT id, record FROM rows WHERE verdict = '' AND level = ? ORDER BY id LIMIT ?",
            (level, most),
        )
        return [(row, candidate_of(record)) for row, record in found]

    def judge(self, verdicts: Iterable[tuple[int, Verified]]) -> None:
        """Store verdicts by row."""
        values = [
            (v.verdict, v.verdict.compiled, _first_code(v), _judgement(v), row)
            for row, v in verdicts
        ]
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany(
                "UPDATE rows SET verdict = ?, compiled = ?, code = ?, judgement = ? WHERE id = ?",
                values,
            )

    def try_again(self) -> bool:
        """Let rows that could not be judged wait again, once; return whether there are any."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            if self.get("tried again"):
                return False
            self.put("tried again", "yes")
            again = "UPDATE rows SET verdict = '' WHERE verdict = 'UNJUDGED'"
            return self.db.execute(again).rowcount > 0

    def next_tasks(self, most: int) -> list[tuple[int, Task]]:
        """Return the next tasks whose solution passed and that no wrong body was tried on."""
        found = self.db.execute(
            "SELECT id, record FROM rows WHERE verdict = 'PASSED' AND level = 'test'"
            " AND kind IN ('test', 'task') AND id NOT IN (SELECT row FROM trials)"
            " ORDER BY id LIMIT ?",
            (most,),
        )
        candidates = ((row, candidate_of(record)) for row, record in found)
        return [(row, c.task) for row, c in candidates if c.task is not None]

    def try_out(self, outcomes: Iterable[tuple[int, str]]) -> None:
        """Store by row what became of tasks."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany("INSERT INTO trials VALUES (?, ?)", outcomes)

    # --- looking --------------------------------------------------------------------------------

    def query(self, sql: str, *values: object) -> list[tuple]:
        """Return the rows of a question about the state."""
        return self.db.execute(sql, values).fetchall()

    def judged(self, where: str, *values: object) -> Iterator[tuple[int, Candidate, Verified]]:
        """Yield judged rows in order, one at a time."""
        found = self.db.cursor().execute(
            f"SELECT id, record, judgement FROM rows WHERE {where} ORDER BY id", values
        )
        for row, record, judgement in found:
            candidate = candidate_of(record)
            yield row, candidate, _verified(candidate.row.source_id, judgement)


def _source(row: RustSource) -> str:
    return "toolchain" if row.source == "toolchain_docs" else row.source


def _record(candidate: Candidate) -> str:
    return json.dumps(asdict(candidate), ensure_ascii=False)


def candidate_of(record: str) -> Candidate:
    """Return the candidate of a stored record."""
    found = json.loads(record)
    task = found["task"]
    row = RustSource(**found["row"])
    return Candidate(row, found["program"], found["edition"], task_of(task) if task else None)


def _judgement(verified: Verified) -> str:
    return json.dumps(asdict(verified), ensure_ascii=False)


def _verified(program_id: str, judgement: str) -> Verified:
    found = json.loads(judgement)
    found |= {
        "program_id": program_id,
        "verdict": Verdict(found["verdict"]),
        "level": Level(found["level"]),
        "diagnostics": tuple(Diagnostic(**entry) for entry in found["diagnostics"]),
    }
    return Verified(**found)


def _first_code(verified: Verified) -> str:
    first = next((d for d in verified.diagnostics if d.level == "error"), None)
    return (first.code or "no code") if first and not verified.verdict.compiled else ""
