"""Licences: SPDX expressions, which of them are permissive, and Debian's copyright files.

Input: an SPDX expression from a manifest, or the text of a `debian/copyright` file in the
machine-readable format (DEP-5). Output: whether Rust under it may enter a training set by default,
and the licence of one path.

Source: SPDX specification 3.0, annex B (expressions); DEP-5 (`copyright-format/1.0`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

UNKNOWN_LICENCE = "unknown"
# Licences that ask for no more than a notice. Nothing that ties what is made with a file (GPL,
# LGPL, MPL, EPL, CDDL, CC-BY-SA), restricts its use, or is unclear.
PERMISSIVE = frozenset(
    {
        "0BSD", "AFL-3.0", "Apache-1.1", "Apache-2.0", "BlueOak-1.0.0",
        "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-3-Clause", "BSL-1.0",
        "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "HPND", "ICU", "ISC", "MIT", "MIT-0", "NCSA",
        "PostgreSQL", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unicode-DFS-2016",
        "Unlicense", "UPL-1.0", "W3C", "WTFPL", "X11", "Zlib",
    }
)  # fmt: skip
# Debian's short names that SPDX spells otherwise; a family without version is not guessed.
_DEBIAN_NAMES = {
    "expat": "MIT", "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause",
    "apache-2": "Apache-2.0", "apache": "Apache-2.0", "zlib": "Zlib", "isc": "ISC",
    "cc0": "CC0-1.0", "psf-2": "PSF-2.0", "mpl-2": "MPL-2.0",
    "unlicence": "Unlicense", "boost": "BSL-1.0",
}  # fmt: skip
_SPDX_BY_LOWER = {name.lower(): name for name in PERMISSIVE}
_TOKEN = re.compile(r"[()]|[^\s()]+")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_FIELD = re.compile(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", re.MULTILINE)


def spdx(expression: str) -> str:
    """Return an expression as SPDX writes it: `MIT/Apache-2.0` -> `MIT OR Apache-2.0`."""
    # Old manifests separate alternatives by a slash, which SPDX does not know.
    return " ".join(expression.replace("/", " OR ").split())


@cache
def is_permissive(expression: str) -> bool:
    """Return whether an SPDX expression lets one choose permissive licences only.

    `GPL-2.0 OR MIT` does, `MIT AND GPL-2.0` does not, and neither does what cannot be read.
    """
    tokens = _TOKEN.findall(expression)
    value, rest = _any_of(tokens)
    return value and not rest


def _any_of(tokens: list[str]) -> tuple[bool, list[str]]:
    value, rest = _all_of(tokens)
    while rest and rest[0].upper() == "OR":
        other, rest = _all_of(rest[1:])
        value = value or other
    return value, rest


def _all_of(tokens: list[str]) -> tuple[bool, list[str]]:
    value, rest = _one(tokens)
    while rest and rest[0].upper() == "AND":
        other, rest = _one(rest[1:])
        value = value and other
    return value, rest


def _one(tokens: list[str]) -> tuple[bool, list[str]]:
    if not tokens:
        return False, []
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        value, rest = _any_of(rest)
        return (value, rest[1:]) if rest and rest[0] == ")" else (False, ["unclosed"])
    if rest and rest[0].upper() == "WITH":  # an exception only adds permissions
        rest = rest[2:]
    return first.rstrip("+") in PERMISSIVE, rest


@dataclass(frozen=True)
class CopyrightFile:
    """The paragraphs of a `debian/copyright` file: patterns of paths, and the licence of each."""

    paragraphs: tuple[tuple[tuple[str, ...], str], ...]

    def licence_of(self, path: str) -> str:
        """Return the SPDX licence of a path in the source tree; the last paragraph that fits wins.

        Empty when no paragraph fits.
        """
        fitting = [spdx_name for patterns, spdx_name in self.paragraphs if _fits(path, patterns)]
        return fitting[-1] if fitting else ""

    def is_special(self, path: str) -> bool:
        """Return whether a path has a licence of its own, apart from that of the whole package."""
        return any(_fits(path, patterns) for patterns, _ in self.paragraphs if "*" not in patterns)


def read_copyright(text: str) -> CopyrightFile:
    """Return the paragraphs of a machine-readable copyright file; none for another format."""
    found = []
    for paragraph in _paragraphs(text):
        if "files" in paragraph and "license" in paragraph:
            patterns = tuple(paragraph["files"].split())
            if not all(pattern.startswith("debian/") for pattern in patterns):
                found.append((patterns, _from_debian(paragraph["license"].split("\n")[0])))
    return CopyrightFile(tuple(found))


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    for block in _PARAGRAPHS.split(text.replace("\r", "")):
        yield {name.lower(): value.strip() for name, value in _FIELD.findall(block)}


def _from_debian(short: str) -> str:
    """Return Debian's licence line as an SPDX expression: `Expat or Apache-2.0` -> `MIT OR ...`."""
    if not short.strip():
        return ""
    words = short.replace(",", " ").replace("/", " or ").split()
    return " ".join(_spdx_word(word) for word in words)


def _spdx_word(word: str) -> str:
    lower = word.lower()
    if lower in ("or", "and", "with"):
        return lower.upper()
    return _DEBIAN_NAMES.get(lower) or _SPDX_BY_LOWER.get(lower, word)


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(_pattern(pattern).fullmatch(path) for pattern in patterns)


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    """Return a DEP-5 pattern as a regular expression: only `*` and `?` are special."""
    text = re.escape(pattern.removeprefix("./")).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text, re.DOTALL)
