"""Measure a build against the verification engine alone, on the same rows.

Input: settings of a corpus whose downloads are there. Output: seconds and rows per second of both,
and their ratio: what reading, dedup, trying wrong bodies on tasks and writing cost beside judging.
Rows here are all that is judged once, tasks of documentation, too. Run it with
`python -m nanochat_lib.data.build.bench --set '{"corpus.debian_packages": 60}'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.data.build import build
from nanochat_lib.data.build.state import State
from nanochat_lib.records import Level, Program
from nanochat_lib.rust.verify import verify


def measure(config: RunConfig, scratch: Path) -> dict[str, float]:
    """Build a corpus, then judge its rows once more with nothing else going on.

    CPU seconds are those of this process and of the programs that it judged; unlike the seconds of
    the clock they do not depend on what else the machine does.

    Args:
        config: of the corpus; the time of planning and downloading does not count.
        scratch: an empty folder.
    """
    own = time.process_time()
    summary = build.build_corpus(config, scratch)
    build_s = summary["seconds"]["read and judge"] + summary["seconds"]["write"]
    state = State(scratch, config.corpus.near_duplicate)
    query = "SELECT COUNT(*), SUM(json_extract(judgement, '$.cpu_ms')) / 1000 FROM rows"
    n_rows, judged_cpu_s = state.query(query)[0]
    build_cpu_s = time.process_time() - own + judged_cpu_s
    began, own = time.perf_counter(), time.process_time()
    engine_cpu_s = _judge_again(config, state)
    engine_s = time.perf_counter() - began
    engine_cpu_s += time.process_time() - own
    return {
        "n_rows": n_rows,
        "n_bytes": summary["n_bytes"],
        "build_s": round(build_s, 2),
        "engine_s": round(engine_s, 2),
        "build_cpu_s": round(build_cpu_s, 2),
        "engine_cpu_s": round(engine_cpu_s, 2),
        "rows_per_s": round(n_rows / build_s, 1),
        "engine_rows_per_s": round(n_rows / engine_s, 1),
        "ratio": round(engine_s / build_s, 3),
        "cpu_ratio": round(engine_cpu_s / build_cpu_s, 3),
        "peak_rss_mib": summary["peak_rss_mib"],
    }


def _judge_again(config: RunConfig, state: State) -> float:
    """Judge all rows in lots as a build does, and return the CPU seconds of the programs."""
    cpu_ms = 0.0
    for level in (Level.BUILD, Level.TEST):
        programs = [
            Program(str(row), c.program, c.edition)
            for row, c, _ in state.judged("level = ?", level)
        ]
        for start in range(0, len(programs), build.LOT_ROWS):
            lot = programs[start : start + build.LOT_ROWS]
            cpu_ms += sum(v.cpu_ms for v in verify(lot, level, config=config.verify))
    return cpu_ms / 1000


def main() -> None:
    """Measure the corpus of the command line's settings, and print or write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="", help="write the numbers here")
    parser.add_argument("--set", default="{}", dest="settings", help="JSON of dotted settings")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(load_profile("laptop", json.loads(given.settings)), Path(scratch))
    text = json.dumps(found, indent=1)
    if given.json:
        Path(given.json).write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
