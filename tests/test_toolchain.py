"""The compiler that is found is the real one, and every way to lack one is a clear message."""

import subprocess
from pathlib import Path

import pytest

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust.toolchain import find_toolchain


@pytest.fixture
def fake_rustc(tmp_path, monkeypatch):
    """A function that puts a script called rustc on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()

    def install(body: str) -> Path:
        rustc = tmp_path / "bin" / "rustc"
        rustc.write_text("#!/bin/sh\n" + body)
        rustc.chmod(0o755)
        return rustc

    return install


def find_again():
    return find_toolchain.__wrapped__()


def test_toolchain_is_the_one_that_rustc_reports():
    toolchain = find_toolchain()
    said = subprocess.run(["rustc", "-V"], capture_output=True, text=True, check=True).stdout
    assert said.split()[1] == toolchain.version
    assert toolchain.rustc == toolchain.sysroot / "bin" / "rustc"
    assert (toolchain.sysroot / "lib" / "rustlib" / toolchain.host).is_dir()
    assert toolchain.docs is None or (toolchain.docs / "std" / "index.html").is_file()
    assert toolchain.clippy is None or toolchain.clippy.is_file()


def test_compiler_is_not_the_proxy():
    """Without rustup's variables and folders the proxy fails; the compiler needs neither."""
    bare = {"HOME": "/nonexistent", "RUSTUP_HOME": "/nonexistent", "PATH": "/nonexistent"}
    done = subprocess.run(
        [find_toolchain().rustc, "-V"], env=bare, capture_output=True, text=True, check=True
    )
    assert find_toolchain().version in done.stdout


def test_missing_compiler_says_how_to_get_one(fake_rustc, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkbenchError, match=r"1\.75.*rustup"):
        find_again()


def test_old_compiler_is_refused_with_both_versions(fake_rustc):
    fake_rustc(
        'if [ "$1" = --print ]; then echo /nowhere; else\n'
        "printf 'rustc 1.70.0\\nhost: x86_64-unknown-linux-gnu\\nrelease: 1.70.0\\n'; fi\n"
    )
    with pytest.raises(WorkbenchError, match=r"1\.75.*1\.70\.0"):
        find_again()


def test_compiler_without_rustup_is_taken_as_it_is(fake_rustc, tmp_path):
    rustc = fake_rustc(
        'if [ "$1" = --print ]; then echo /nowhere; else\n'
        "printf 'host: x86_64-unknown-linux-gnu\\nrelease: 1.99.0-nightly\\n'; fi\n"
    )
    found = find_again()
    assert (found.rustc, found.version, found.docs) == (rustc, "1.99.0-nightly", None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo toolchain is not installed >&2; exit 1\n", "toolchain is not installed"),
        ("echo gibberish\n", "gibberish"),
        ("kill -9 $$\n", "does not answer"),
    ],
)
def test_broken_compiler_is_reported_in_its_own_words(fake_rustc, body, message):
    fake_rustc(body)
    with pytest.raises(WorkbenchError, match=message):
        find_again()
