"""`nanochat verify`: an outcome for every file whatever is in it, whole output, and resumption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sample_programs import sample_programs

from nanochat_lib.cli.verify import read_source, rust_files, verify_files
from nanochat_lib.config import PROJECT_ROOT, VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.verify import verify

needs_sandbox = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
COMMAND = [sys.executable, "-m", "nanochat_lib.cli", "verify"]


def _nanochat(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip


def _rows(text: str) -> dict[str, dict]:
    return {Path(row["path"]).name: row for row in map(json.loads, text.splitlines())}


@needs_sandbox
def test_each_program_is_a_json_object_with_spans(tmp_path: Path) -> None:
    (tmp_path / "good.rs").write_text("#[test] fn t() {}\n")
    (tmp_path / "bad.rs").write_text('fn f() -> i32 { "text" }\nfn g() { missing }\n')
    done = _nanochat(tmp_path, "--level", "build", "--json", "-", "--no-cache")
    assert done.returncode == 3
    rows = _rows(done.stdout)
    assert (rows["good.rs"]["verdict"], rows["bad.rs"]["verdict"]) == ("PASSED", "COMPILE_ERROR")
    assert set(rows["bad.rs"]["codes"]) == {"E0308", "E0425"}
    (type_error,) = (d for d in rows["bad.rs"]["diagnostics"] if d["code"] == "E0308")
    assert (type_error["level"], type_error["message"]) == ("error", "mismatched types")
    span = {"start": {"line": 1, "column": 17}, "end": {"line": 1, "column": 23}}
    assert type_error["span"] == span
    assert rows["good.rs"]["sandbox"] == sandbox_level()
    assert not rows["good.rs"]["cached"]
    assert rows["good.rs"]["cpu_ms"] > 0
    assert "judged 2: 1 COMPILE_ERROR, 1 PASSED; 0 from the cache" in done.stderr


@needs_sandbox
def test_the_cache_answers_the_second_time(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_text("fn main() {}\n")
    first, second = (_nanochat(tmp_path, "--cache", tmp_path / "c", "--json", "-") for _ in "12")
    assert (first.returncode, second.returncode) == (0, 0)
    assert not _rows(first.stdout)["a.rs"]["cached"]
    assert _rows(second.stdout)["a.rs"]["cached"]


@needs_sandbox
def test_bad_files_are_outcomes_and_end_nothing(tmp_path: Path) -> None:
    files = {
        "good.rs": b"fn main() {}\n",
        "empty.rs": b"",
        "latin.rs": b"// caf\xe9\nfn main() {}\n",
        "utf16.rs": "fn main() {}".encode("utf-16"),
        "nul.rs": b"fn main() {\0}\n",
        "huge.rs": b"// ten megabytes\n" * 600_000,
        "bom_crlf.rs": b"\xef\xbb\xbffn main() {}\r\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "loop.rs").symlink_to("loop.rs")
    (tmp_path / "dangling.rs").symlink_to("absent.rs")
    (tmp_path / "folder.rs").mkdir()
    (tmp_path / "folder.rs" / "inner.rs").write_text("fn main() { x }\n")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.rs")
    out = tmp_path / "out.jsonl"
    done = _nanochat(tmp_path, "--level", "build", "--json", out, "--no-cache")
    rows = _rows(out.read_text())
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {
        "good.rs": "PASSED",
        "empty.rs": "PASSED",
        "latin.rs": "PARSE_ERROR",
        "utf16.rs": "PARSE_ERROR",
        "nul.rs": "PARSE_ERROR",
        "huge.rs": "RESOURCE_LIMIT",
        "bom_crlf.rs": "PASSED",
        "loop.rs": "UNJUDGED",
        "dangling.rs": "UNJUDGED",
        "inner.rs": "COMPILE_ERROR",
        "pipe.rs": "UNJUDGED",
    }
    assert rows["latin.rs"]["detail"] == "the text is not valid UTF-8"
    assert "symbolic links" in rows["loop.rs"]["detail"]
    assert "not a regular file" in rows["pipe.rs"]["detail"]
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_an_unreadable_folder_is_an_outcome(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.rs").write_text("")
    (tmp_path / "closed").chmod(0)
    found, unreadable = rust_files([tmp_path])
    (tmp_path / "closed").chmod(0o755)
    assert found == [tmp_path / "a.rs"]
    assert set(unreadable) == (set() if os.geteuid() == 0 else {tmp_path / "closed"})


def test_a_file_named_twice_is_judged_once_and_an_empty_folder_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.rs"
    file.write_text("")
    assert rust_files([file, tmp_path, file]) == ([file], {})
    file.unlink()
    with pytest.raises(WorkbenchError, match="No .rs files"):
        rust_files([tmp_path])


def test_of_an_endless_file_no_more_is_read_than_is_needed(tmp_path: Path) -> None:
    with (tmp_path / "sparse.rs").open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_source(tmp_path / "sparse.rs")) == 4_000_004


def test_progress_without_a_terminal_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanochat_lib.cli.verify._LINE_EVERY_S", 0)
    (tmp_path / "a.rs").write_text("fn main() {}")
    (tmp_path / "b.rs").write_text("fn f() {}")
    assert verify_files([tmp_path], "syntax", config=VerifyConfig(), cache_dir=None) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert [line for line in shown.err.splitlines() if "of 2" in line] == [
        "judged 1 of 2",
        "judged 2 of 2",
    ]


@needs_sandbox
def test_a_file_whose_name_is_not_utf8_is_judged(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.rs")).write_text("fn main() {}")
    done = _nanochat(tmp_path, "--level", "check", "--no-cache")
    assert done.returncode == 0
    assert "caf\ufffd.rs" in done.stdout


# --- Stopped in the middle ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of programs that take a few seconds to judge."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in sample_programs(400, seed=31):
        (programs / f"{program.program_id}.rs").write_text(program.source)
    return programs


def _stop_in_the_middle(folder: Path, how: signal.Signals) -> tuple[int, str, int]:
    """Judge, stop when some verdicts are cached; return exit code, messages, verdicts cached."""
    cached = folder.parent / "cache" / "verdicts.jsonl"
    arguments = [*_options(folder), "--json", folder.parent / "out.jsonl"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not (cached.exists() and cached.stat().st_size):
        time.sleep(0.01)
    os.killpg(process.pid, how)
    _, messages = process.communicate(timeout=60)
    return process.returncode, messages, len(cached.read_bytes().splitlines())


def _options(folder: Path) -> list[object]:
    return [folder, "--workers", "1", "--cache", folder.parent / "cache"]


def _assert_resumes(folder: Path, n_cached: int) -> None:
    done = _nanochat(*_options(folder), "--json", "-")
    rows = _rows(done.stdout)
    assert len(rows) == 400
    assert sum(row["cached"] for row in rows.values()) >= n_cached > 0
    assert not all(row["cached"] for row in rows.values())
    plain = verify(sample_programs(400, seed=31), "test")
    assert {name: row["verdict"] for name, row in rows.items()} == {
        f"{one.program_id}.rs": one.verdict for one in plain
    }
    last = _rows(_nanochat(*_options(folder), "--json", "-").stdout)
    assert all(row["cached"] for row in last.values())


@needs_sandbox
def test_ctrl_c_leaves_no_half_file_and_the_same_command_goes_on(folder: Path) -> None:
    code, messages, n_cached = _stop_in_the_middle(folder, signal.SIGINT)
    assert code == 130
    assert "the same command goes on from here" in messages
    assert "Traceback" not in messages
    assert {path.name for path in folder.parent.iterdir()} == {"programs", "cache"}
    _assert_resumes(folder, n_cached)


@needs_sandbox
def test_killed_in_the_middle_the_cache_answers_what_was_judged(folder: Path) -> None:
    code, _, n_cached = _stop_in_the_middle(folder, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (folder.parent / "out.jsonl").exists()
    _assert_resumes(folder, n_cached)
