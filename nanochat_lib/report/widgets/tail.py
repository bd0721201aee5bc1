"""Follow the metrics of a run while it writes them: only what is new is read.

In: a run folder. Out: one `Curve` for each (stage, metric), as `runs.read_metrics` would return it,
except that a stage which resumed from an earlier checkpoint shows what it has computed again, not
the steps it is about to replace. Reads at most `CHUNK_BYTES` a call, so that attaching to a long
run never blocks the kernel.
"""

from __future__ import annotations

import json
import statistics
from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from nanochat_lib.report.run_data import downsample

CHUNK_BYTES = 1 << 20
RECENT = 64  # steps that decide the time per step


@dataclass
class Curve:
    """The values of one metric, by rising step."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def put(self, step: int, value: float) -> None:
        """Add a value; a step that is there already, and all behind it, are replaced."""
        if self.steps and step <= self.steps[-1]:
            self.cut(step)
        self.steps.append(step)
        self.values.append(value)

    def cut(self, step: int) -> None:
        """Forget a step and all behind it."""
        place = bisect_left(self.steps, step)
        del self.steps[place:], self.values[place:]

    def points(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return at most `limit` finite (steps, values), lowest and highest of each part kept."""
        rows = pl.DataFrame({"step": np.array(self.steps), "value": np.array(self.values)})
        rows = downsample(rows.filter(pl.col("value").is_finite()), limit=limit)
        return rows["step"].to_numpy(), rows["value"].to_numpy()


class MetricTail:
    """The metrics of one run folder, kept up to date by `read`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._forget()

    def _forget(self) -> None:
        self.curves: dict[tuple[str, str], Curve] = {}
        self._at: dict[str, deque[tuple[int, float]]] = {}  # stage -> (step, wall_s) of late
        self._offset = 0
        self._table = (0, 0)

    def read(self) -> bool:
        """Take over what was written since the last call; return whether there was anything."""
        table = _stamp(self.run_dir / "metrics.parquet")
        is_new_table = table != self._table
        if is_new_table or _stamp(self.run_dir / "metrics.jsonl")[1] < self._offset:
            self._forget()
            self._table = table
            self._read_table()
        return self._read_lines() or is_new_table

    def curve(self, stage: str, metric: str) -> Curve:
        """Return a metric's values; empty when the stage has not written any."""
        return self.curves.get((stage, metric)) or Curve()

    def last(self, stage: str, metric: str) -> float | None:
        """Return a metric's newest value, or None."""
        values = self.curve(stage, metric).values
        return values[-1] if values else None

    def stages(self) -> list[str]:
        """Return the stages that have written metrics, in order of appearance."""
        return list(dict.fromkeys(stage for stage, _ in self.curves))

    def seconds_per_step(self, stage: str) -> float | None:
        """Return the median time of the newest steps of this attempt, or None before the second."""
        recent = self._at.get(stage, ())
        pace = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(recent) if b[0] > a[0]]
        return statistics.median(pace) if pace else None

    def _read_table(self) -> None:
        path = self.run_dir / "metrics.parquet"
        if not path.exists():
            return
        rows = pl.read_parquet(path, columns=["stage", "step", "name", "value"])
        groups = rows.partition_by("stage", "name", as_dict=True, maintain_order=True)
        for (stage, name), part in groups.items():
            part = part.sort("step")
            curve = self.curves.setdefault((stage, name), Curve())
            curve.steps.frombytes(part["step"].to_numpy().tobytes())
            curve.values.frombytes(part["value"].to_numpy().tobytes())

    def _read_lines(self) -> bool:
        """Read whole lines behind the last ones, at most a chunk of them."""
        try:
            with (self.run_dir / "metrics.jsonl").open("rb") as file:
                file.seek(self._offset)
                text = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return False
        end = text.rfind(b"\n") + 1
        self._offset += end
        for line in text[:end].splitlines():
            self._take(line)
        return end > 0

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return  # a line that a SIGKILL tore; its step comes again
        stage, step = record["stage"], record["step"]
        recent = self._at.setdefault(stage, deque(maxlen=RECENT))
        if recent and (step < recent[-1][0] or record["wall_s"] < recent[-1][1]):
            recent.clear()  # another attempt
            for (of, _), curve in self.curves.items():
                if of == stage:
                    curve.cut(step)
        if not recent or step > recent[-1][0]:
            recent.append((step, record["wall_s"]))
        for name, value in record["values"].items():
            self.curves.setdefault((stage, name), Curve()).put(step, value)


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced: its time and size; zeros when absent."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size
