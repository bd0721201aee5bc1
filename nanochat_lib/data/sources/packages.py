"""Tell which package a `.rs` file belongs to, and under which licence and edition.

Looks up the tree for the nearest Cargo.toml with a `[package]`, then for licence files; in an
unpacked Debian package the copyright file decides about files with a licence of their own, and
about packages that name none. The standard library's licence is known.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.data.sources.licences import (
    UNKNOWN_LICENCE,
    CopyrightFile,
    is_permissive,
    read_copyright,
    spdx,
)

EDITION_WITHOUT_KEY = "2015"  # what Cargo assumes when a manifest does not say
DEFAULT_EDITION = "2021"  # for files that belong to no manifest

# A sentence that only this licence has -> its SPDX name, in the order they are listed in.
_LICENCE_TEXTS = (
    ("Permission is hereby granted, free of charge", "MIT"),
    ("Apache License", "Apache-2.0"),
    ("Mozilla Public License", "MPL-2.0"),
    ("Redistribution and use in source and binary forms", "BSD-3-Clause"),
    ("Permission to use, copy, modify, and/or distribute", "ISC"),
    ("This is free and unencumbered software", "Unlicense"),
    ("GNU AFFERO GENERAL PUBLIC LICENSE", "AGPL-3.0-only"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL-3.0-only"),
    ("GNU GENERAL PUBLIC LICENSE", "GPL-3.0-only"),
)
# Where Debian packages keep source: the rest of the path is the one their copyright file speaks of.
_DEBIAN_SOURCE = re.compile(r"usr/(?:share/cargo/registry|src)/[^/]+/(.*)")
_LICENCE_NAMES = ("LICENSE*", "LICENCE*", "COPYING*", "UNLICENSE*")


@dataclass(frozen=True)
class Package:
    """A package's name, SPDX licence expression, Rust edition, version and library's name."""

    name: str
    licence: str = UNKNOWN_LICENCE
    edition: str = DEFAULT_EDITION
    version: str = ""
    library: str = ""  # empty: called like the package

    @property
    def crate(self) -> str:
        """Return the name by which Rust code calls the package's library."""
        return self.library or self.name.replace("-", "_")


class PackageFinder:
    """Find packages below (and around) one input folder; remembers what it has looked up."""

    def __init__(self, top: Path, *, licence: str = "", is_closed: bool = False) -> None:
        """Look below `top`.

        Args:
            licence: of files which no manifest and no text speaks of.
            is_closed: nothing above `top` belongs to it (an unpacked archive).
        """
        self.top = top
        self._licence = licence
        self._is_closed = is_closed
        self._known: dict[Path, Package] = {}
        self._manifests: dict[Path, dict[str, Any]] = {}
        self._copyright = _copyright_file(top)

    def package_of(self, path: Path) -> Package:
        """Return the package of a file below the input folder."""
        folder = path.parent
        if folder not in self._known:
            self._known[folder] = self._look_up(folder)
        return self._known[folder]

    def licence_of(self, path: Path) -> str:
        """Return the SPDX licence of one file; see `CopyrightFile` for Debian packages."""
        declared = self.package_of(path).licence
        inside = _DEBIAN_SOURCE.match(path.relative_to(self.top).as_posix())
        if self._copyright is None or inside is None:
            return declared
        own = self._copyright.licence_of(inside[1])
        is_decisive = declared == UNKNOWN_LICENCE or self._copyright.is_special(inside[1])
        return own if own and is_decisive else declared

    def _look_up(self, folder: Path) -> Package:
        above = [folder, *folder.absolute().parents]
        if self._is_closed:
            above = above[: self._depth(folder) + 1]
        manifest, place = next(
            ((found, at) for at in above if "package" in (found := self._manifest(at))), ({}, None)
        )
        section = manifest.get("package", {})
        parents = above[above.index(place) :] if place else above[: self._depth(folder) + 1]
        licence = spdx(self._text(section, "license", parents)) or _licence_of_files(parents)
        return Package(
            name=str(section.get("name") or self._name_without_manifest(folder)),
            licence=licence or self._licence or UNKNOWN_LICENCE,
            edition=(self._text(section, "edition", parents) or EDITION_WITHOUT_KEY)
            if place
            else DEFAULT_EDITION,
            version=self._text(section, "version", parents),
            library=_library_name(manifest),
        )

    def _manifest(self, folder: Path) -> dict[str, Any]:
        if folder not in self._manifests:
            self._manifests[folder] = _read_manifest(folder)
        return self._manifests[folder]

    def _text(self, section: dict[str, Any], key: str, parents: list[Path]) -> str:
        """Return a manifest's value, also when it is inherited from the workspace."""
        value = section.get(key, "")
        if isinstance(value, dict) and value.get("workspace"):
            workspaces = (
                self._manifest(at).get("workspace", {}).get("package", {}) for at in parents
            )
            value = next((found[key] for found in workspaces if key in found), "")
        return value if isinstance(value, str) else ""

    def _depth(self, folder: Path) -> int:
        return len(folder.relative_to(self.top).parts)

    def _name_without_manifest(self, folder: Path) -> str:
        """Return the folder of the first level, or the input folder's own name."""
        parts = folder.relative_to(self.top).parts
        return parts[0] if parts else self.top.absolute().name


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "Cargo.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


def _library_name(manifest: dict[str, Any]) -> str:
    section = manifest.get("lib")
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else ""


def _copyright_file(top: Path) -> CopyrightFile | None:
    """Return what an unpacked Debian package says of its licences."""
    for path in sorted(top.glob("usr/share/doc/*/copyright")):
        return read_copyright(path.read_text(encoding="utf-8", errors="replace"))
    return None


def _licence_of_files(parents: list[Path]) -> str:
    for folder in parents:
        files = sorted({path for name in _LICENCE_NAMES for path in folder.glob(name)})
        texts = [path.read_text(errors="replace") for path in files if path.is_file()]
        names = [spdx for mark, spdx in _LICENCE_TEXTS if any(mark in text for text in texts)]
        if names:
            # Texts side by side are alternatives by custom; one that is not permissive may be meant
            # for a part, so that all of them are taken to hold.
            return (" OR " if all(map(is_permissive, names)) else " AND ").join(names)
    return ""
