"""Unpack the Rust of an archive into a folder, trusting nothing the archive says.

Input: a `.deb`, `.tar.*`, `.crate` or `.zip` file. Output: its `.rs` files, manifests and licence
texts below a folder, nothing else: no links, no devices, no path that leaves the folder, no file of
more than `MAX_FILE_BYTES`. What was passed over is counted by reason. An archive that unpacks to
more than `MAX_UNPACKED_BYTES`, or that is damaged, is a `BadArchive`: the caller goes on with the
next one. Nothing is installed and no code of the archive runs.

A `.deb` is an `ar` archive (`man 5 ar`, `man 5 deb`) of which `data.tar.*` holds the files.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import zstandard

from nanochat_lib.data.sources.folder import MAX_FILE_BYTES

MAX_UNPACKED_BYTES = 2_000_000_000
MAX_MEMBERS = 500_000
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
# What tells the licence and edition of a file, besides the Rust itself.
_WANTED = re.compile(
    r"(?:\.rs|(?:^|/)(?:Cargo\.toml|PKG-INFO|copyright|(?:LICEN[CS]E|COPYING|UNLICENSE)[^/]*))$"
)
_PACKED: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
    b"\x28\xb5\x2f\xfd": lambda file: zstandard.ZstdDecompressor().stream_reader(file),
}
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError,
    EOFError, OSError, ValueError, NotImplementedError, RuntimeError,
)  # fmt: skip


class BadArchive(Exception):
    """An archive that cannot be used; the text says why."""


def unpack(archive: Path, folder: Path, skipped: Counter[str]) -> int:
    """Write the wanted files of an archive below a folder and return how many there are.

    Args:
        archive: told apart by its first bytes, not by its name.
        folder: made when missing; files that are there are replaced.
        skipped: counts what was passed over, by reason.

    Raises:
        BadArchive: no archive that we know, damaged, or larger than `MAX_UNPACKED_BYTES`.
    """
    n_files = 0
    try:
        for name, read in _members(archive, skipped):
            place = _safe_place(name)
            if place is None:
                skipped["path outside its archive"] += 1
            elif _WANTED.search(name):
                content = read()
                if len(content) > MAX_FILE_BYTES:
                    skipped["larger than 1 MB"] += 1
                    continue
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                n_files += 1
    except _DAMAGE as error:
        raise BadArchive(f"{archive.name} is damaged: {error}") from error
    return n_files


def _safe_place(name: str) -> PurePosixPath | None:
    """Return a member's relative path; None for one that would leave the folder."""
    place = PurePosixPath(name.replace("\\", "/"))
    is_bad = place.is_absolute() or ".." in place.parts or "\0" in name or not place.parts
    return None if is_bad or ":" in place.parts[0] else place


Member = tuple[str, Callable[[], bytes]]  # name, and how to read at most MAX_FILE_BYTES + 1


def _members(archive: Path, skipped: Counter[str]) -> Iterator[Member]:
    with archive.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        if head == _AR_MAGIC:
            yield from _tar_members(_data_of_deb(file, archive), archive, skipped)
        elif head[:4] == b"PK\x03\x04":
            yield from _zip_members(file, archive, skipped)
        else:
            yield from _tar_members(file, archive, skipped)


def _data_of_deb(file: BinaryIO, archive: Path) -> BinaryIO:
    """Return the bytes of `data.tar.*` inside a `.deb`."""
    file.seek(len(_AR_MAGIC))
    while header := file.read(_AR_HEADER_BYTES):
        if len(header) < _AR_HEADER_BYTES or header[58:] != b"`\n":
            break
        name, size = header[:16].strip(b" /").decode("ascii", "replace"), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BufferedReader(_Part(file, size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise BadArchive(f"{archive.name} is a Debian package without data")


class _Part(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer with what is left."""
        found = self.file.read(min(len(buffer), self.left))
        buffer[: len(found)] = found
        self.left -= len(found)
        return len(found)


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than `MAX_UNPACKED_BYTES`: a small file may hold a lot."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.n_bytes = file, name, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as a tar reader asks for them."""
        found = self.file.read(size)
        self.n_bytes += len(found)
        _require_bounded(self.n_bytes, self.name)
        return found


def _tar_members(file: BinaryIO, archive: Path, skipped: Counter[str]) -> Iterator[Member]:
    reader = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
    head = reader.peek(8)[:8]
    opener = next((make for magic, make in _PACKED.items() if head.startswith(magic)), None)
    stream = _Bounded(opener(reader) if opener else reader, archive.name)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for n, member in enumerate(tar):
            _require_few(n, archive.name)
            if member.isfile():
                content = tar.extractfile(member)
                yield member.name, lambda content=content: content.read(MAX_FILE_BYTES + 1)
            elif not member.isdir():
                skipped["link or device in an archive"] += 1


def _zip_members(file: BinaryIO, archive: Path, skipped: Counter[str]) -> Iterator[Member]:
    n_bytes = 0
    with zipfile.ZipFile(file) as packed:
        for n, member in enumerate(packed.infolist()):
            _require_few(n, archive.name)
            if member.is_dir():
                continue
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                skipped["link or device in an archive"] += 1
                continue
            with packed.open(member) as content:  # what it says of its size need not be true
                found = content.read(MAX_FILE_BYTES + 1)
            n_bytes += len(found)
            _require_bounded(n_bytes, archive.name)
            yield member.filename, lambda found=found: found


def _require_bounded(n_bytes: int, name: str) -> None:
    if n_bytes > MAX_UNPACKED_BYTES:
        raise BadArchive(f"{name} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")


def _require_few(n: int, name: str) -> None:
    if n >= MAX_MEMBERS:
        raise BadArchive(f"{name} holds more than {MAX_MEMBERS:,} files")
