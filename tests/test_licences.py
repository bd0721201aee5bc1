"""Licences: which expressions are permissive, and what Debian's copyright files say of a path."""

from __future__ import annotations

import pytest

from nanochat_lib.data.sources.licences import is_permissive, read_copyright, spdx
from nanochat_lib.data.sources.packages import PackageFinder

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: alpha

Files: *
Copyright: 2020 Somebody
License: Expat or Apache-2.0

Files: src/vendored/*
 src/gpl?.rs
Copyright: 2021 Somebody Else
License: GPL-2+
 On Debian systems, see /usr/share/common-licenses.

Files: src/vendored/free.rs
Copyright: none
License: CC0-1.0

Files: debian/*
Copyright: 2022 A Packager
License: GPL-3

License: Expat
 Permission is hereby granted
"""


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("MIT", True), ("MIT OR Apache-2.0", True), ("MIT/Apache-2.0", True),
        ("GPL-3.0-only", False), ("MIT OR GPL-3.0-or-later", True), ("MIT AND GPL-2.0-only", False),
        ("(MIT OR GPL-2.0-only) AND BSD-3-Clause", True), ("MIT AND (MPL-2.0 OR LGPL-3.0)", False),
        ("Apache-2.0 WITH LLVM-exception", True), ("GPL-2.0 WITH Classpath-exception-2.0", False),
        ("Apache-2.0+", True), ("unknown", False), ("", False), ("MIT OR", True), ("(MIT", False),
        ("MIT GPL-3.0", False), ("mit or apache-2.0", False),
    ],
)  # fmt: skip
def test_permissive_means_that_one_may_choose_permissive_licences_only(expression, wanted):
    assert is_permissive(spdx(expression)) is wanted


def test_the_last_paragraph_that_fits_decides():
    found = read_copyright(COPYRIGHT)
    assert found.licence_of("src/lib.rs") == "MIT OR Apache-2.0"
    assert found.licence_of("src/vendored/deep/a.rs") == "GPL-2+"
    assert found.licence_of("src/gpl1.rs") == "GPL-2+"
    assert found.licence_of("src/vendored/free.rs") == "CC0-1.0"
    assert not found.is_special("src/lib.rs")
    assert found.is_special("src/gpl1.rs")
    assert read_copyright("This package was written by hand.\nMIT").licence_of("a.rs") == ""


@pytest.mark.parametrize(
    ("manifest", "lib", "vendored"),
    [
        ('license = "MIT"', "MIT", "GPL-2+"),  # the manifest speaks for all but special files
        ("", "MIT OR Apache-2.0", "GPL-2+"),  # Debian's word where there is no other
    ],
)
def test_a_debian_package_is_asked_file_by_file(tmp_path, manifest, lib, vendored):
    source = tmp_path / "usr/share/cargo/registry/alpha-1.0"
    (source / "src/vendored").mkdir(parents=True)
    (source / "Cargo.toml").write_text(f'[package]\nname = "alpha"\nversion = "1.0"\n{manifest}')
    copyright_file = tmp_path / "usr/share/doc/librust-alpha-dev/copyright"
    copyright_file.parent.mkdir(parents=True)
    copyright_file.write_text(COPYRIGHT)
    finder = PackageFinder(tmp_path, is_closed=True)
    assert finder.licence_of(source / "src/lib.rs") == lib
    assert finder.licence_of(source / "src/vendored/a.rs") == vendored
    assert finder.package_of(source / "src/lib.rs").version == "1.0"


def test_an_unpacked_archive_does_not_look_above_itself(tmp_path):
    (tmp_path / "Cargo.toml").write_text('[package]\nname = "mine"\nlicense = "MIT"')
    inner = tmp_path / "unpacked" / "theirs"
    inner.mkdir(parents=True)
    finder = PackageFinder(tmp_path / "unpacked", is_closed=True)
    assert finder.package_of(inner / "a.rs").name == "theirs"
    assert finder.licence_of(inner / "a.rs") == "unknown"
    assert PackageFinder(tmp_path / "unpacked").package_of(inner / "a.rs").name == "mine"


def test_a_text_that_is_not_permissive_beside_one_that_is_holds_too(tmp_path):
    (tmp_path / "LICENSE-MIT").write_text("Permission is hereby granted, free of charge, to any")
    finder = PackageFinder(tmp_path)
    assert finder.licence_of(tmp_path / "a.rs") == "MIT"
    (tmp_path / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE")
    assert PackageFinder(tmp_path).licence_of(tmp_path / "a.rs") == "MIT AND GPL-3.0-only"
