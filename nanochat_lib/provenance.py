"""Where a run came from: commit, uncommitted changes, package versions, machine, compiler.

Collected once when a run folder is made, and shown in every report, so that a figure can be traced
to the code and the machine that produced it.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from nanochat_lib.config import PROJECT_ROOT
from nanochat_lib.hardware.detect import detect_machine

PACKAGES = ("torch", "numba", "numpy", "polars", "plotly", "tokenizers", "papermill", "jupyterlab")


def environment() -> dict[str, Any]:
    """Return git state, machine, versions, rustc and the hash of the package constraints."""
    return {
        "git": git_state(),
        "machine": detect_machine().as_dict(),
        "versions": {"python": platform.python_version()} | _package_versions(),
        "rustc": rustc_version(),
        "lock_hash": hash_files([PROJECT_ROOT / "constraints.txt"]),
    }


def git_state() -> dict[str, Any]:
    """Return the commit and whether files differ from it; empty strings outside a checkout."""
    commit = _output(["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"])
    diff = _output(["git", "-C", str(PROJECT_ROOT), "diff", "HEAD"])
    changed = hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else ""
    return {"commit": commit, "dirty": bool(diff), "diff_sha256": changed}


def rustc_version() -> str:
    """Return `rustc -V`, or an empty string when there is none on PATH."""
    return _output(["rustc", "-V"]) if shutil.which("rustc") else ""


def hash_files(paths: list[Path]) -> str:
    """Return one sha256 over names and contents, in order; missing files count as empty."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def code_hash(folders: tuple[str, ...]) -> str:
    """Return a hash of the Python source below the given folders of the project."""
    files = [p for folder in folders for p in sorted((PROJECT_ROOT / folder).rglob("*.py"))]
    return hash_files(files)


def _package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
