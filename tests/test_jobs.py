"""A machine's trouble is never a program's failure: what happens to a job when the ground moves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from sample_programs import sample_programs

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.jobs import MIN_FREE_MIB, settings_here, surroundings_here
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify, verify_stream

pytestmark = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
SMALL = VerifyConfig(batch_size=8)


@cache
def programs() -> list[Program]:
    return sample_programs(32, seed=21)


@cache
def truth() -> dict[str, Verdict]:
    return {one.program_id: one.verdict for one in verify(programs(), "test", config=SMALL)}


def _wrong(found: list[Verified]) -> list[Verified]:
    """Return verdicts that are neither right nor an UNJUDGED that names its cause."""
    return [
        one
        for one in found
        if one.verdict is not truth()[one.program_id]
        and not (one.verdict is Verdict.UNJUDGED and one.detail)
    ]


def _unjudged(found: list[Verified]) -> list[Verified]:
    return [one for one in found if one.verdict is Verdict.UNJUDGED]


@contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Call a function again and again in a thread while the block runs."""
    stop = threading.Event()

    def again() -> None:
        while not stop.wait(0.002):
            with suppress(OSError):  # what it looks at goes away by itself, too
                act()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which jobs make their scratch folders."""
    settings_here(Level.TEST, SMALL)  # the completion proof stays elsewhere
    truth()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


# --- The compiler -------------------------------------------------------------------------------


@pytest.fixture
def own_rustc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the compiler of a toolchain of hard links, which a test may replace."""
    real, copy = find_toolchain().sysroot, tmp_path / "toolchain"
    truth()
    try:
        for part in ("bin/rustc", "lib"):
            (copy / part).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-al", real / part, copy / part], check=True)
    except subprocess.CalledProcessError:
        pytest.skip("the toolchain cannot be hard-linked into the temporary folder")
    monkeypatch.setenv("PATH", str(copy / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    find_toolchain.cache_clear()
    yield copy / "bin" / "rustc"
    find_toolchain.cache_clear()


def _install(rustc: Path, content: bytes) -> None:
    """Put another file in the compiler's place, as an update does."""
    fresh = rustc.with_name("fresh")
    fresh.write_bytes(content)
    fresh.chmod(0o755)
    fresh.replace(rustc)


OTHER_RUSTC = b"""#!/bin/sh
if [ "$1" = --print ]; then echo ${0%/*}/..; else
printf 'host: x86_64-unknown-linux-gnu\\nrelease: 1.99.0\\n'; fi
"""


def test_another_rustc_in_the_middle_of_a_run_gives_no_verdict(
    own_rustc: Path, tmp_path: Path
) -> None:
    stream = verify_stream(programs(), "test", config=SMALL, workers=1, cache_dir=tmp_path / "c")
    found = [next(stream)]
    right = own_rustc.read_bytes()
    _install(own_rustc, OTHER_RUSTC)
    found += list(stream)
    assert not _wrong(found)
    assert any("replaced meanwhile" in one.detail for one in _unjudged(found))
    assert surroundings_here().rustc == "1.99.0"
    _install(own_rustc, right)
    again = verify(programs(), "test", config=SMALL, cache_dir=tmp_path / "c")
    assert {one.program_id: one.verdict for one in again} == truth()
    assert sum(one.cached for one in again) == len(found) - len(_unjudged(found))


def test_the_same_rustc_installed_again_in_the_middle_costs_no_verdict(own_rustc: Path) -> None:
    stream = verify_stream(programs(), "test", config=SMALL, workers=1)
    found = [next(stream)]
    _install(own_rustc, own_rustc.read_bytes())
    found += list(stream)
    assert not _wrong(found)
    assert not _unjudged(found)


def test_a_rustc_that_is_removed_in_the_middle_judges_nobody_wrongly(own_rustc: Path) -> None:
    stream = verify_stream(programs(), "test", config=SMALL, workers=1)
    found = [next(stream)]
    own_rustc.unlink()
    found += list(stream)
    assert not _wrong(found)
    assert _unjudged(found)


def _pids_of(names: tuple[str, ...], folder: Path) -> set[int]:
    """Return processes of these programs that work below a folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            works_here = Path(os.readlink(process / "cwd")).is_relative_to(folder)
            if works_here and (process / "comm").read_text().strip() in names:
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("rustc",),
        pytest.param(("cc",), marks=pytest.mark.slow),
        pytest.param(("collect2",), marks=pytest.mark.slow),
        ("ld", "rust-lld"),
    ],
    ids=" ".join,
)
def test_a_compiler_or_linker_killed_in_the_middle_is_nobodys_failure(
    names: tuple[str, ...], scratch: Path
) -> None:
    killed: set[int] = set()

    def kill_some() -> None:
        for pid in _pids_of(names, scratch) - killed:
            if len(killed) < 6 or "rustc" not in names:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

    with _meanwhile(kill_some):
        found = verify(programs()[:16], "test", config=SMALL)
    assert killed
    assert not _wrong(found)


# --- The work folder ----------------------------------------------------------------------------


def test_a_scratch_folder_removed_once_is_made_again(scratch: Path) -> None:
    removed: set[Path] = set()

    def remove_the_first() -> None:
        for folder in scratch.glob("nanochat-*/job/batch"):
            if not removed:  # at once: one that vanishes file by file meets the next attempt, too
                gone = folder.parents[1].rename(scratch / "gone")
                removed.add(folder)
                shutil.rmtree(gone, ignore_errors=True)

    with _meanwhile(remove_the_first):
        found = verify(programs(), "test", config=SMALL)
    assert removed
    assert not _wrong(found)
    assert not _unjudged(found)


def test_scratch_folders_that_vanish_again_and_again_judge_nobody_wrongly(scratch: Path) -> None:
    def remove_all() -> None:
        for folder in scratch.glob("nanochat-*/job/batch"):
            shutil.rmtree(folder.parents[1], ignore_errors=True)

    with _meanwhile(remove_all):
        found = verify(programs(), "test", config=SMALL)
    assert not _wrong(found)
    assert _unjudged(found)
    assert not list(scratch.glob("nanochat-*"))


@pytest.mark.slow
def test_sources_that_vanish_under_rustc_judge_nobody_wrongly(scratch: Path) -> None:
    def remove_sources() -> None:
        for file in scratch.glob("nanochat-*/job/batch/**/*.rs"):
            file.unlink(missing_ok=True)

    with _meanwhile(remove_sources):
        found = verify(programs(), "check", config=SMALL)
    right = {one.program_id: one.verdict for one in verify(programs(), "check", config=SMALL)}
    for one in found:
        assert one.verdict in (right[one.program_id], Verdict.UNJUDGED), one


def test_a_missing_folder_for_scratch_folders_is_the_cause(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "absent"))
    found = verify(programs(), "test", config=SMALL)
    assert len(_unjudged(found)) == len(found)
    assert "the work folder cannot be used" in found[0].detail


def test_a_removed_completion_proof_is_built_again() -> None:
    (proof,) = settings_here(Level.TEST, SMALL).readable
    shutil.rmtree(proof.parent)
    found = verify(programs(), "test", config=SMALL)
    assert not _wrong(found)
    assert not _unjudged(found)


@contextmanager
def _small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_judges_nobody(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _small_disk(scratch / "disk", 3) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        found = verify(programs(), "test", config=SMALL)
    assert len(_unjudged(found)) == len(found)
    assert "is full" in found[0].detail
    assert "TMPDIR" in found[0].detail


def test_a_disk_that_fills_in_the_middle_judges_nobody_wrongly(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _small_disk(scratch / "disk", 2 * MIN_FREE_MIB) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        stream = verify_stream(programs(), "test", config=SMALL, workers=2)
        found = [next(stream)]
        time.sleep(0.05)
        with (disk / "filler").open("wb") as filler:
            with suppress(OSError):
                while filler.write(bytes(1 << 20)):
                    filler.flush()
            found += list(stream)
    assert not _wrong(found)
    assert any("is full" in one.detail for one in _unjudged(found))
