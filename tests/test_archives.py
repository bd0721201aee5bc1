"""Archives: only plain Rust and licence files come out, whatever an archive says."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter

import pytest

from nanochat_lib.data.sources import archives
from nanochat_lib.data.sources.archives import BadArchive, unpack

RUST = b"pub fn one() -> u8 {\n    1\n}\n"


def tar_bytes(files, *, links=()):
    """Return a tar file; names are written as they are, also those that a tar program refuses."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return packed.getvalue()


def ar_member(name, content):
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)


def deb_bytes(files):
    data = lzma.compress(tar_bytes(files))
    odd = ar_member("control.tar.xz", lzma.compress(tar_bytes({"control": b"x"})) + b"")
    return (
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + odd + ar_member("data.tar.xz", data)
    )


def opened(tmp_path, content):
    """Unpack and return {path: content} and what was passed over."""
    path, folder, skipped = tmp_path / "archive", tmp_path / "out", Counter()
    path.write_bytes(content)
    unpack(path, folder, skipped)
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    return found, +skipped


@pytest.mark.parametrize(
    "pack",
    [lambda d: d, gzip.compress, lzma.compress, archives.zstandard.ZstdCompressor().compress],
    ids=["tar", "gz", "xz", "zst"],
)
def test_rust_and_what_tells_its_licence_comes_out(tmp_path, pack):
    files = {
        "a/src/lib.rs": RUST,
        "a/Cargo.toml": b"[package]",
        "a/logo.png": b"x",
        "a/b.rs.bak": b"",
    }
    found, skipped = opened(tmp_path, pack(tar_bytes(files)))
    assert found == {"a/src/lib.rs": RUST, "a/Cargo.toml": b"[package]"}
    assert not skipped


def test_a_debian_package_is_read_without_dpkg(tmp_path):
    files = {"./usr/share/cargo/registry/a-1.0/src/lib.rs": RUST}
    found, _ = opened(tmp_path, deb_bytes(files))
    assert found == {"usr/share/cargo/registry/a-1.0/src/lib.rs": RUST}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not on this machine")
def test_what_dpkg_packs_we_unpack(tmp_path):
    top = tmp_path / "p"
    (top / "DEBIAN").mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    (top / "DEBIAN/control").write_text(control)
    (top / "usr").mkdir()
    (top / "usr/lib.rs").write_bytes(RUST)
    made = subprocess.run(["dpkg-deb", "-b", top, tmp_path / "x.deb"], capture_output=True)
    assert made.returncode == 0
    found, _ = opened(tmp_path, (tmp_path / "x.deb").read_bytes())
    assert found == {"usr/lib.rs": RUST}


def test_nothing_is_written_outside_and_links_are_left_out(tmp_path):
    names = ["../up.rs", "/root.rs", "a/../../b.rs", "a\\..\\..\\c.rs", "C:\\d.rs", "ok/../e.rs"]
    bad = tar_bytes(dict.fromkeys(names, RUST), links=[("l.rs", "/etc/passwd"), ("d", "/tmp")])
    found, skipped = opened(tmp_path, bad)
    assert found == {}
    assert skipped == {"path outside its archive": 6, "link or device in an archive": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive"]


def test_a_zip_is_read_by_the_same_rules(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/lib.rs", RUST)
        made.writestr("../up.rs", RUST)
        made.writestr("a/big.rs", b"/" * 1_000_001)
        link = zipfile.ZipInfo("link.rs")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    found, skipped = opened(tmp_path, packed.getvalue())
    assert found == {"a/lib.rs": RUST}
    assert skipped == {
        "path outside its archive": 1, "larger than 1 MB": 1, "link or device in an archive": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bomb.rs", "bomb.bin"])
def test_a_bomb_is_given_up_whatever_it_holds(tmp_path, monkeypatch, name):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 5_000_000)
    bomb = gzip.compress(tar_bytes({f"{n}{name}": bytes(900_000) for n in range(20)}))
    assert len(bomb) < 50_000
    with pytest.raises(BadArchive, match="unpacks to more than 5,000,000 bytes"):
        opened(tmp_path, bomb)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(BadArchive, match="more than 3 files"):
        opened(tmp_path, tar_bytes({f"{n}.rs": RUST for n in range(9)}))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"nonsense" * 999, deb_bytes({"a.rs": RUST})[:300], gzip.compress(RUST)[:-9],
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n"), b"PK\x03\x04" + bytes(90),
        lzma.compress(tar_bytes({"a.rs": RUST}))[:-40], b"!<arch>\n" + b"x" * 70,
    ],
)  # fmt: skip
def test_a_damaged_archive_says_so(tmp_path, content):
    with pytest.raises(BadArchive, match="archive is"):
        opened(tmp_path, content)
