"""Debian's Rust packages: `rust-src` and `librust-*-dev`, downloaded without installing anything.

Input: how many packages, and from which suite. Output: `Unit`s, each a verified `.deb` file. apt
itself does the work, on a root of its own: its lists and downloads lie in our folder, so that the
system's lists, caches and packages are neither used nor changed. It checks Debian's signatures, and
so do we with the SHA-256 of its index.

Source: `apt.conf(5)` (Dir::*), `apt-get(8)` (download), `sources.list(5)` (DEB822).
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.data.sources.units import SourceUnavailable, Unit

_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_URI = re.compile(r"https?://\S+/debian/?(?=\s)")
# One with a `+` is a feature of a package and holds no files.
_NAME = re.compile(r"rust-src|librust-[a-z0-9.-]+-dev")
_FEATURE = re.compile(r"\blibrust-([a-z0-9-]+?)(?:-[\d.]+)?(?:\+[a-z0-9+.-]+)?-dev\b")
_PER_DOWNLOAD = 40  # packages for each call of apt-get
_TIMEOUT_S = 900

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DebianPackage:
    """What Debian's index says of a package."""

    name: str
    version: str
    architecture: str
    sha256: str
    n_users: int  # packages that depend on it

    @property
    def file_name(self) -> str:
        """Return the name that `apt-get download` gives the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def debian_units(folder: Path, *, suite: str, most: int, tell: Tell) -> list[Unit]:
    """Download packages and return them as units, in the order of their names.

    Args:
        folder: of apt's root and the packages; what is there already is not downloaded again.
        suite: e.g. "trixie"; empty: what this machine's own apt is set to.
        most: packages, those first that most others depend on; 0: all.
        tell: called with what is being done.

    Raises:
        SourceUnavailable: no apt, no network, or no package arrived.
    """
    root = _make_root(folder, suite)
    tell("reading Debian's index")
    update = _apt(root, "apt-get", "update", "-q")
    packages = sorted(_index(root), key=lambda p: (-p.n_users, p.name))
    if not packages:
        raise SourceUnavailable(
            "Debian's index could not be read, or lists no Rust packages: is this machine online? "
            "apt says: " + _last_words(update)
        )
    chosen = packages[:most] if most else packages
    files = folder / "debs"
    files.mkdir(exist_ok=True)
    for start in range(0, len(chosen), _PER_DOWNLOAD):
        tell(f"downloading Debian packages, {start} of {len(chosen)}")
        _download(root, chosen[start : start + _PER_DOWNLOAD], files)
    units = [_unit(p, files) for p in chosen if _is_whole(files / p.file_name, p.sha256)]
    if not units:
        raise SourceUnavailable("None of Debian's packages could be downloaded.")
    if len(units) < len(chosen):
        tell(f"{len(chosen) - len(units)} of {len(chosen)} Debian packages did not arrive whole")
    return sorted(units, key=lambda unit: unit.package)


def _unit(package: DebianPackage, files: Path) -> Unit:
    place = str(files / package.file_name)
    return Unit("debian", package.name, package.version, place, package.sha256)


def _make_root(folder: Path, suite: str) -> Path:
    """Make apt's private root and return it."""
    root = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "sources", "empty"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    if suite:
        found = _URI.search(_system_sources())
        (root / "sources" / "debian.sources").write_text(
            f"Types: deb\nURIs: {found[0] if found else _DEFAULT_MIRROR}\nSuites: {suite}\n"
            f"Components: main\nSigned-By: {_KEYRING}\n"
        )
    options = {
        "Dir::State::lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 30,
    }
    if suite:
        options |= {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": root / "sources"}
    lines = "".join(f'{name} "{value}";\n' for name, value in options.items())
    (root / "apt.conf").write_text(lines)
    return root


def _system_sources() -> str:
    paths = sorted(Path("/etc/apt").glob("sources.list*")) + sorted(
        Path("/etc/apt/sources.list.d").glob("*.sources")
    )
    return "\n".join(p.read_text(errors="replace") for p in paths if p.is_file())


def _apt(root: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    try:
        return subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SourceUnavailable(
            f"Debian packages need {command[0]}, which this machine does not have."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(
            f"{' '.join(command[:2])} did not end in {_TIMEOUT_S} s: is this machine online?"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _index(root: Path) -> Iterator[DebianPackage]:
    """Yield the newest version of each Rust package in apt's index."""
    listed = _apt(root, "apt-cache", "dumpavail").stdout
    stanzas = [s for s in listed.split("\n\n") if re.match(r"Package: (?:librust-|rust-src)", s)]
    fields = [dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE)) for stanza in stanzas]
    users: Counter[str] = Counter()
    for found in fields:
        users.update(set(_FEATURE.findall(found.get("Depends", ""))))
    for found in fields:
        if _NAME.fullmatch(found["Package"]) and "SHA256" in found:
            crate = found["Package"].removeprefix("librust-").removesuffix("-dev")
            base = re.sub(r"-[\d.]+$", "", crate)
            yield DebianPackage(
                name=found["Package"],
                version=found["Version"],
                architecture=found["Architecture"],
                sha256=found["SHA256"],
                n_users=users[base] if base == crate else 0,
            )


def _download(root: Path, packages: Sequence[DebianPackage], files: Path) -> None:
    wanted = [p for p in packages if not _is_whole(files / p.file_name, p.sha256)]
    if wanted:
        names = [f"{p.name}={p.version}" for p in wanted]
        _apt(root, "apt-get", "download", "-q", *names, cwd=files)


def _is_whole(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
