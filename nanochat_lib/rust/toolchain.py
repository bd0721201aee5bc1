"""Find the Rust toolchain: the real compiler, its version, host triple and documentation.

`rustc` on the PATH is often rustup's proxy, which costs 5 ms per start and reads files outside the
toolchain; the sysroot it reports holds the compiler itself. Everything that runs rustc in the
sandbox asks here once per process; `current_toolchain` looks whether the compiler's files are still
the same, because an update may replace them in the middle of a run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanochat_lib.errors import WorkbenchError

OLDEST_VERSION = (1, 75)
_ASK_TIMEOUT_S = 60


@dataclass(frozen=True)
class Toolchain:
    """One installed Rust toolchain."""

    rustc: Path  # the compiler itself, never rustup's proxy
    sysroot: Path
    version: str  # "1.95.0"
    host: str  # "x86_64-unknown-linux-gnu"
    docs: Path | None  # the HTML documentation, where it is installed
    commit: str = "unknown"  # of the compiler's source, where it says so
    stamp: tuple[tuple[str, int, int, int], ...] = ()  # its files when it was found

    @property
    def clippy(self) -> Path | None:
        """Return clippy-driver of the same toolchain, if it is installed."""
        return self._tool("clippy-driver")

    @property
    def rustfmt(self) -> Path | None:
        """Return rustfmt of the same toolchain, if it is installed."""
        return self._tool("rustfmt")

    def _tool(self, name: str) -> Path | None:
        path = self.sysroot / "bin" / name
        return path if path.is_file() else None

    def is_unchanged(self) -> bool:
        """Return whether the compiler's files are those that were found."""
        return self.stamp == _stamp(self.rustc, self.sysroot)


@cache
def find_toolchain() -> Toolchain:
    """Return the toolchain that `rustc` on the PATH belongs to.

    Raises:
        WorkbenchError: no rustc is found, it does not answer, or it is older than 1.75.
    """
    proxy = shutil.which("rustc") or shutil.which("rustc", path=Path.home() / ".cargo" / "bin")
    if proxy is None:
        raise WorkbenchError(
            "No Rust compiler: expected 'rustc' 1.75 or newer on the PATH, found none. "
            "Install Rust with rustup or your distribution's package manager."
        )
    sysroot = Path(_ask(proxy, "--print", "sysroot").strip())
    rustc = sysroot / "bin" / "rustc"
    if not rustc.is_file():
        rustc = Path(proxy).resolve()
    facts = _ask(str(rustc), "-vV")
    version, host = (_field(facts, name, rustc) for name in ("release", "host"))
    if _numbers(version) < OLDEST_VERSION:
        raise WorkbenchError(
            f"The Rust compiler {rustc} is too old: expected 1.75 or newer, found {version}. "
            "Update it, for example with 'rustup update stable'."
        )
    docs = sysroot / "share" / "doc" / "rust" / "html"
    commit = re.search(r"^commit-hash: (\w+)$", facts, re.MULTILINE)
    return Toolchain(
        rustc=rustc,
        sysroot=sysroot,
        version=version,
        host=host,
        docs=docs if docs.is_dir() else None,
        commit=commit[1] if commit else "unknown",
        stamp=_stamp(rustc, sysroot),
    )


def current_toolchain() -> Toolchain:
    """Return the toolchain, asked anew when its files were replaced since; raises as above."""
    if not find_toolchain().is_unchanged():
        find_toolchain.cache_clear()
    return find_toolchain()


def _stamp(rustc: Path, sysroot: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return name, size, time and inode of the compiler: a small program and its big library."""
    found = []
    for path in (rustc, *sorted(sysroot.glob("lib/librustc_driver-*"))):
        with contextlib.suppress(OSError):
            about = path.stat()
            found.append((str(path), about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(found)


def _ask(rustc: str, *arguments: str) -> str:
    """Return what rustc prints for a question about itself."""
    try:
        done = subprocess.run(
            [rustc, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_ASK_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise WorkbenchError(
            f"The Rust compiler does not answer: '{rustc} {' '.join(arguments)}' failed with: "
            f"{said[0] if said else 'no message'}. Check the installation with 'rustc -vV'."
        ) from error
    return done.stdout


def _field(facts: str, name: str, rustc: Path) -> str:
    found = re.search(rf"^{name}: (.+)$", facts, re.MULTILINE)
    if found is None:
        raise WorkbenchError(
            f"The Rust compiler {rustc} gives an unknown answer: expected a line '{name}: ...' "
            f"from 'rustc -vV', found {facts[:80]!r}. Reinstall the toolchain."
        )
    return found[1]


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers: "1.95.0-nightly" gives (1, 95, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("-")[0]))
