"""Notes of runs and the list of runs: kept whole, found again, never hidden by a damaged folder."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from run_factory import make_run
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.experiments.notes import Notes, read_notes, write_notes
from nanochat_lib.experiments.registry import list_runs, select_runs
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.run import write_run_report


def test_notes_are_kept_and_what_is_not_given_stays(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    assert read_notes(folder) == Notes()
    write_notes(folder, hypothesis="  four loops win ", add_tags=["loops", "loops"])
    write_notes(folder, conclusion="they do", add_tags=["paper"])
    assert read_notes(folder) == Notes(("loops", "paper"), "four loops win", "they do")
    write_notes(folder, hypothesis="", remove_tags=["loops"])
    assert read_notes(folder) == Notes(("paper",), "", "they do")
    assert [path.name for path in folder.glob("*.tmp")] == []


def _tag(folder: Path, name: str) -> None:
    for i in range(10):
        write_notes(folder, add_tags=[f"{name}{i}"])


def test_two_writers_lose_nothing(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_tag, args=(folder, name)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(read_notes(folder).tags) == {f"{name}{i}" for name in "xy" for i in range(10)}


@pytest.mark.parametrize("tag", ["", "two words", "-x", "<b>", "x" * 41])
def test_unusable_tags_are_refused(tag: str, runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    with pytest.raises(WorkbenchError, match="not usable"):
        write_notes(folder, add_tags=[tag])
    assert read_notes(folder) == Notes()


def test_what_is_wrong_with_a_note_is_said(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    with pytest.raises(WorkbenchError, match="no tag 'x'; its tags: none"):
        write_notes(folder, remove_tags=["x"])
    with pytest.raises(WorkbenchError, match="at most 4,000 characters, found 4,001"):
        write_notes(folder, conclusion="x" * 4001)
    with pytest.raises(WorkbenchError, match="no run 'b'"):
        write_notes(runs_dir / "b", add_tags=["x"])


@pytest.mark.parametrize("text", ["{", "[]", '{"tags": 3}', '{"tags": [1]}', '{"hypothesis": {}}'])
def test_damaged_notes_are_an_error_that_names_the_file(text: str, runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    (folder / "notes.json").write_text(text)
    with pytest.raises(WorkbenchError, match=r"notes\.json is damaged"):
        read_notes(folder)


def test_the_list_shows_damaged_folders_and_hides_nothing(runs_dir: Path) -> None:
    make_run(runs_dir, "good", stages=("pretrain",))
    (make_run(runs_dir, "torn", stages=()) / "run.json").write_text("{")
    (make_run(runs_dir, "odd", stages=()) / "notes.json").write_text("{")
    rows = {row["run_id"]: row for row in list_runs(runs_dir).to_dicts()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "completed", "torn": "damaged", "odd": "damaged",
    }  # fmt: skip
    assert "run.json is damaged" in rows["torn"]["problem"]


def test_runs_are_found_by_words_status_profile_and_tags(runs_dir: Path) -> None:
    for name in ("wide", "deep", "new"):
        make_run(runs_dir, name, stages=() if name == "new" else ("pretrain",))
    write_notes(runs_dir / "deep", hypothesis="Four [loops] win", add_tags=["loops"])
    rows = list_runs(runs_dir)

    def found(**wanted) -> set[str]:
        return set(select_runs(rows, **wanted)["run_id"])

    assert found(words=["[LOOPS]"]) == {"deep"}
    assert found(words=["pretrain", "wide"]) == {"wide"}
    assert found(status="new") == {"new"}
    assert found(tags=["loops"]) == {"deep"}
    assert found(profile="other") == set()
    assert found() == {"wide", "deep", "new"}


def test_the_command_line_tags_and_filters(runs_dir: Path) -> None:
    make_run(runs_dir, "a", stages=("pretrain",))
    make_run(runs_dir, "b", stages=())
    place = ["--runs-dir", str(runs_dir)]
    runner = CliRunner()
    done = runner.invoke(
        app, ["note", "a", "--tag", "x", "--conclusion", "[red]fine[/red]", *place]
    )
    assert done.exit_code == 0
    assert "[red]fine[/red]" in done.output
    listed = runner.invoke(app, ["runs", "--tag", "x", "--json", *place])
    assert [(row["run_id"], row["tags"]) for row in json.loads(listed.output)] == [("a", ["x"])]
    assert "[red]fine[/red]" in runner.invoke(app, ["runs", "fine", *place]).output
    assert "None of 2 runs matches" in runner.invoke(app, ["runs", "nowhere", *place]).output
    limited = runner.invoke(app, ["runs", "--limit", "1", "--json", *place])
    assert len(json.loads(limited.output)) == 1
    shown = runner.invoke(app, ["note", "b", "--json", *place])
    assert json.loads(shown.output)["tags"] == []
    assert not (runs_dir / "b" / "notes.json").exists()


def test_notes_show_in_the_report_and_the_index_as_text(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "a", stages=())
    write_notes(folder, hypothesis="<script>x</script>", add_tags=["loops"])
    for page in (write_index(runs_dir.parent), write_run_report(folder, self_contained=False)):
        text = page.read_text()
        assert "&lt;script&gt;x&lt;/script&gt;" in text
        assert ">loops<" in text
