"""Browse programs that rustc judged: what was kept, what was rejected, what a model wrote.

In: tables of programs (`samples_of` reads a run's). Out: a widget with filters, one program at a
time, its verdict, and on request rustc's diagnostics at the lines they point at.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import polars as pl

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Program
from nanochat_lib.report.widgets.listing import chip_html, code_html, verdict_html
from nanochat_lib.report.widgets.look import framed, row
from nanochat_lib.rust.verify import verify

ANY = "any"
# What the tables of stage 1 and of the evaluation have in common, under one name each.
COLUMNS = ("name", "kind", "verdict", "codes", "difficulty", "text", "program", "detail", "facts")


def samples_of(run_dir: Path) -> dict[str, pl.DataFrame]:
    """Return the programs of a run by where they come from; absent tables are left out."""
    folder, found = run_dir / "artifacts", {}
    for label, name in (("kept", "verified"), ("rejected", "rejected")):
        path = folder / "preprocess" / f"{name}.parquet"
        if path.is_file():
            found[f"{label} by stage 1"] = _corpus_rows(pl.read_parquet(path))
    path = folder / "evaluate" / "episodes.parquet"
    if path.is_file():
        found["written by the model"] = _episode_rows(pl.read_parquet(path))
    if not found:
        raise WorkbenchError(
            f"{run_dir} holds no judged programs yet: run 01_preprocess.ipynb for this run first."
        )
    return found


def _corpus_rows(rows: pl.DataFrame) -> pl.DataFrame:
    facts = pl.format(
        "{} · {} lines · complexity {} · {} tests · {}",
        "licence", "n_lines", "cyclomatic_complexity", "n_tests", "split",
    )  # fmt: skip
    return rows.with_columns(name="source_id", facts=facts).select(COLUMNS)


def _episode_rows(rows: pl.DataFrame) -> pl.DataFrame:
    facts = pl.format(
        "checkpoint {} · {} tokens · mean depth {}",
        "checkpoint", "n_tokens", pl.col("expected_loops").round(2),
    )  # fmt: skip
    text = pl.col("prompt") + pl.col("completion")
    return rows.with_columns(
        name=pl.format("{} #{}", "task_id", "sample_idx"),
        kind="task_set",
        difficulty=pl.format("level {}", "level"),
        text=text,
        program=text,
        facts=facts,
    ).select(COLUMNS)


class SampleBrowser:
    """Filters on top, one program below."""

    def __init__(
        self, tables: Mapping[str, pl.DataFrame], config: VerifyConfig | None = None
    ) -> None:
        self.tables, self.config = dict(tables), config
        self.found = pl.DataFrame()
        self._is_filling = False
        self._make()
        self._take_table()

    def _make(self) -> None:
        size = {"width": "230px"}
        self.table = widgets.ToggleButtons(
            options=list(self.tables), style={"button_width": "170px"}
        )
        self.filters = {
            name: widgets.Dropdown(description=name, options=[ANY], layout=size)
            for name in ("verdict", "codes", "kind", "difficulty")
        }
        self.search = widgets.Text(
            placeholder="text in the program or its name", description="search", layout=size
        )
        self.place = widgets.BoundedIntText(1, min=1, max=1, layout={"width": "90px"})
        back = widgets.Button(description="Previous", icon="arrow-left", layout={"width": "110px"})
        forth = widgets.Button(description="Next", icon="arrow-right", layout={"width": "110px"})
        self.ask = widgets.Button(description="Ask rustc again", icon="gavel")
        self.count, self.shown = widgets.HTML(), widgets.HTML()
        self.widget = framed(
            self.table, row(*self.filters.values(), self.search),
            row(back, self.place, self.count, forth, self.ask), self.shown,
            on_theme=lambda is_dark: None,
        )  # fmt: skip
        self.table.observe(lambda _: self._take_table(), "value")
        for choice in (*self.filters.values(), self.search):
            choice.observe(lambda _: self._filter(), "value")
        self.place.observe(lambda _: self._show(), "value")
        back.on_click(lambda _: self._step(-1))
        forth.on_click(lambda _: self._step(1))
        self.ask.on_click(lambda _: self.judge())

    def _take_table(self) -> None:
        """Offer the filters that the chosen table has values for."""
        rows = self.tables[self.table.value]
        self._is_filling = True
        for name, choice in self.filters.items():
            column = rows[name].explode() if rows.schema[name] == pl.List else rows[name]
            counts = column.drop_nulls().value_counts(sort=True).head(60).rows()
            options = [(f"{value} ({n:,})", value) for value, n in counts if str(value)]
            choice.options = [(ANY, ANY), *options]
            choice.value = ANY
        self._is_filling = False
        self._filter()

    def _filter(self) -> None:
        if self._is_filling:
            return
        rows = self.tables[self.table.value]
        for name, choice in self.filters.items():
            if choice.value != ANY:
                column = pl.col(name)
                is_list = rows.schema[name] == pl.List
                rows = rows.filter(
                    column.list.contains(choice.value) if is_list else column == choice.value
                )
        if wanted := self.search.value:
            in_text = pl.any_horizontal(
                pl.col(name).str.contains(wanted, literal=True) for name in ("text", "name")
            )
            rows = rows.filter(in_text)
        self.found = rows
        self.place.max = max(rows.height, 1)
        self.place.value = 1
        self._show()

    def _step(self, by: int) -> None:
        self.place.value = min(max(self.place.value + by, 1), self.place.max)

    @property
    def row(self) -> dict[str, Any] | None:
        """Return the program on the screen, or None when the filters leave none."""
        if not self.found.height:
            return None
        return self.found.row(min(self.place.value, self.found.height) - 1, named=True)

    def _show(self) -> None:
        n = self.tables[self.table.value].height
        self.count.value = f"of <b>{self.found.height:,}</b> ({n:,} without filters)"
        self.ask.disabled = self.row is None
        if self.row is None:
            self.shown.value = '<p class="nano-quiet">No program fits these filters.</p>'
            return
        self.shown.value = _head(self.row) + code_html(self.row["text"])

    def judge(self) -> None:
        """Let rustc judge the program on the screen, and show where it complains."""
        found = self.row
        if found is None:
            return
        try:
            (judged,) = verify([Program(found["name"], found["program"])], "build",
                               config=self.config)  # fmt: skip
        except WorkbenchError as error:
            self.shown.value = f'<div class="nano-error">{html.escape(str(error))}</div>'
            return
        listing = code_html(found["program"], judged.diagnostics)
        self.shown.value = _head(found) + verdict_html(judged) + listing


def _head(found: dict[str, Any]) -> str:
    parts = [found["name"], found["difficulty"], found["facts"]]
    text = html.escape(" · ".join(str(part) for part in parts if part))
    codes = html.escape(" ".join(found["codes"] or []))
    detail = html.escape(found["detail"] or "")
    said = f"<div>{chip_html(found['verdict'])}{codes} {detail}</div>"
    return f'<div class="nano-quiet">{text}</div>{said}'
