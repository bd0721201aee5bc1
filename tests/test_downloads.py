"""Sources that are downloaded: apt, a package index and data sets, all of them local here."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_archives import deb_bytes, tar_bytes

from nanochat_lib.data.sources import debian, hub, pypi
from nanochat_lib.data.sources.debian import debian_units
from nanochat_lib.data.sources.units import SourceUnavailable, read_unit

RUST = "/// Adds one.\npub fn next(x: u8) -> u8 {\n    let y = x;\n    y + 1\n}\n"


def ignore(_):
    """Take progress, and forget it."""


def stanza(name, content, depends=""):
    digest = hashlib.sha256(content).hexdigest()
    return (
        f"Package: {name}\nVersion: 1:0.1-2\nArchitecture: amd64\nDepends: {depends}\n"
        f"SHA256: {digest}\nDescription: x"
    )


@pytest.fixture
def apt(monkeypatch):
    """An apt with three packages, of which one arrives damaged; it remembers what it was asked."""
    content = deb_bytes({"usr/share/cargo/registry/a-0.1/src/lib.rs": RUST.encode()})
    index = [
        stanza("bash", content),
        stanza("librust-itoa-1-dev", content),
        stanza("librust-itoa-dev", content),
        stanza("librust-serde-dev", content, "librust-itoa-1+default-dev (>= 1.0), libc6"),
        stanza("librust-serde+derive-dev", content, "librust-itoa-dev"),
        stanza("librust-torn-dev", b"other", "librust-serde-1.0.1-dev"),
    ]
    asked = []

    def run(root, *command, cwd=None):
        asked.append(command)
        if "download" in command:
            for wanted in command[3:]:
                name, _, version = wanted.partition("=")
                (cwd / f"{name}_{version.replace(':', '%3a')}_amd64.deb").write_bytes(content)
        output = "\n\n".join(index) if command[0] == "apt-cache" else "E: no network"
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(debian, "_apt", run)
    return asked


def test_packages_that_others_need_come_first_and_damaged_ones_are_left_out(apt, tmp_path):
    told = []
    units = debian_units(tmp_path, suite="trixie", most=2, tell=told.append)
    assert [unit.package for unit in units] == ["librust-itoa-dev", "librust-serde-dev"]
    assert all(unit.version == "1:0.1-2" for unit in units)
    everything = debian_units(tmp_path, suite="trixie", most=0, tell=told.append)
    assert [unit.package for unit in everything] == [
        "librust-itoa-1-dev", "librust-itoa-dev", "librust-serde-dev",
    ]  # fmt: skip
    assert "1 of 4 Debian packages did not arrive whole" in told
    files = list(read_unit(everything[1], tmp_path / "scratch", any_licence=True))
    assert [c.row.path for f in files for c in f.candidates] == ["a-0.1/src/lib.rs"] * 2
    assert not (tmp_path / "scratch").exists()


def test_what_lies_there_whole_is_not_downloaded_again(apt, tmp_path):
    debian_units(tmp_path, suite="", most=2, tell=ignore)
    apt.clear()
    debian_units(tmp_path, suite="", most=2, tell=ignore)
    assert not [command for command in apt if "download" in command]


def test_apt_works_on_a_root_of_its_own(tmp_path):
    root = debian._make_root(tmp_path, "trixie")
    options = (root / "apt.conf").read_text()
    for name in ("Dir::State::lists", "Dir::Cache", "Dir::State::status", "Dir::Etc::sourceparts"):
        assert f'{name} "{root}' in options
    assert "Suites: trixie" in (root / "sources/debian.sources").read_text()


def test_an_offline_debian_says_so(monkeypatch, tmp_path):
    nothing = subprocess.CompletedProcess((), 100, "", "E: Could not resolve host")
    monkeypatch.setattr(debian, "_apt", lambda *_, **__: nothing)
    with pytest.raises(SourceUnavailable, match=r"online\?.*Could not resolve host"):
        debian_units(tmp_path, suite="", most=1, tell=ignore)


def test_without_apt_the_program_is_named(monkeypatch, tmp_path):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(debian.subprocess, "run", missing)
    with pytest.raises(SourceUnavailable, match="need apt-get"):
        debian_units(tmp_path, suite="", most=1, tell=ignore)


SETUP = "raise SystemExit('code of a package ran')\n"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index with one project, whose build would end this process."""
    files = {
        "alpha-1.0/src/lib.rs": RUST.encode(),
        "alpha-1.0/setup.py": SETUP.encode(),
        "alpha-1.0/PKG-INFO": b"Name: alpha\nLicense-Expression: ISC\n",
    }
    page = tmp_path / "index" / "alpha"
    page.mkdir(parents=True)
    (page / "alpha-1.0.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    (page / "alpha-1.1-py3-none-any.whl").write_bytes(b"a wheel is no source")
    links = "".join(f'<a href="{p.name}">{p.name}</a>' for p in sorted(page.iterdir()))
    (page / "index.html").write_text(f"<html><body>{links}</body></html>")
    monkeypatch.setattr(pypi, "_index", lambda: (tmp_path / "index").as_uri())


def test_a_source_package_is_fetched_and_never_run(index, tmp_path):
    pytest.importorskip("unearth", reason="unearth is in the pypi extra")
    told = []
    (unit,) = pypi.pypi_units(tmp_path / "files", ["alpha", "no-such-project"], told.append)
    assert (unit.package, unit.version) == ("alpha", "1.0")
    assert any("no source package of no-such-project" in text for text in told)
    (file,) = read_unit(unit, tmp_path / "scratch", any_licence=False)
    assert {c.row.licence for c in file.candidates} == {"ISC"}
    with pytest.raises(SourceUnavailable, match="no-such-project"):
        pypi.pypi_units(tmp_path / "files", ["no-such-project"], ignore)


def test_an_index_that_nobody_answers_for_is_unavailable(monkeypatch, tmp_path):
    pytest.importorskip("unearth", reason="unearth is in the pypi extra")
    monkeypatch.setattr(pypi, "_index", lambda: "http://127.0.0.1:9/simple/")
    with pytest.raises(SourceUnavailable, match="could not be downloaded"):
        pypi.pypi_units(tmp_path, ["alpha"], ignore)


def test_the_index_is_the_one_that_pip_is_set_to(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://example.net/simple")
    assert pypi._index() == "https://example.org/simple"


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "unearth", None)
    with pytest.raises(SourceUnavailable, match=r"pip install \.\[pypi\]"):
        pypi.pypi_units(tmp_path, ["x"], ignore)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceUnavailable, match=r"pip install \.\[hub\]"):
        hub.hub_units(tmp_path, ["x/y"], 10, ignore)


def test_a_data_set_is_read_into_files_with_licence_and_origin(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is in the hub extra")
    monkeypatch.setattr(hub, "ROWS_PER_FILE", 2)
    rows = [
        {"content": RUST, "max_stars_repo_licenses": licences, "max_stars_repo_name": f"o/r{n}"}
        for n, licences in enumerate((["MIT"], ["MIT", "GPL-3.0"], ["Apache-2.0"]))
    ]
    (tmp_path / "set").mkdir()
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "set" / "train.jsonl").write_text(lines)
    name = str(tmp_path / "set")
    units = hub.hub_units(tmp_path / "files", [name], 0, ignore)
    assert len(units) == 2
    files = [f for unit in units for f in read_unit(unit, Path("unused"), any_licence=False)]
    assert [{c.row.licence for c in f.candidates} for f in files] == [
        {"MIT"}, set(), {"Apache-2.0"},
    ]  # fmt: skip
    assert files[1].dropped == {"MIT AND GPL-3.0": 1}
    assert {c.row.package for c in files[2].candidates} == {"o/r2"}
    with pytest.raises(SourceUnavailable, match="name it as"):
        hub.hub_units(tmp_path / "files", [f"{name}:missing"], 0, ignore)
