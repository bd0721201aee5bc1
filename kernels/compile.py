"""How jitted functions are compiled, cached, and bound to a CPU level.

`jit` is numba's `njit` with the interpreter lock released and a cache on disk. numba's own cache
does not notice an edit in another file, so the cache folder's name carries a hash of every file
that holds jitted code, in this package and beside the function.

A level ("generic", "avx2") travels through jitted code as a tuple whose *length* is the level.
numba compiles one version per tuple type, so code for instructions that the machine lacks is
never generated: LLVM does not raise on such code, it ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numba
from llvmlite import binding

LEVELS: dict[str, tuple[int, ...]] = {
    "generic": (0,),
    "avx2": (0,) * 2,
    "avx512vnni": (0,) * 3,
    "amx": (0,) * 4,
}
_NEEDS = {  # CPU features by level
    "generic": (),
    "avx2": ("avx2",),
    "avx512vnni": ("avx512f", "avx512bw", "avx512vnni"),
    "amx": ("avx512f", "avx512bw", "avx512vnni", "amx-tile", "amx-int8"),
}
PERMISSION_CALL = (158, 0x1023, 18)  # arch_prctl, ARCH_REQ_XCOMP_PERM, tile data (x86-64)


def jit(function: Callable) -> Callable:
    """Compile `function` on first call, without the interpreter lock, cached between processes."""
    # LLVM ends the process when it meets assembly without a parser, be it only in a callee that
    # the cache holds and this process never compiled.
    binding.initialize_native_asmparser()
    folder = cache_dir(Path(function.__code__.co_filename).parent)
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or "")
    try:
        return numba.njit(nogil=True, cache=folder is not None, error_model="numpy", _nrt=False)(
            function
        )
    finally:
        numba.config.CACHE_DIR = previous


def inline(function: Callable) -> Callable:
    """Compile `function` into its callers: for helpers on vector values, which are never boxed."""
    return numba.njit(nogil=True, error_model="numpy", _nrt=False)(function)


@functools.cache
def missing_features(level: str) -> tuple[str, ...]:
    """Return the CPU features that `level` needs and this machine lacks."""
    has = binding.get_host_cpu_features()
    forced = os.environ.get("NUMBA_CPU_FEATURES")
    if forced is not None:
        has = {item[1:]: item[0] == "+" for item in forced.split(",") if item}
    missing = tuple(name for name in _NEEDS[level] if not has.get(name, False))
    if level == "amx" and not missing and not _may_use_tiles():
        return ("the system's permission to use tiles",)
    return missing


def _may_use_tiles() -> bool:
    """Ask Linux for this process's use of AMX tiles: without it the first one is a SIGILL."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(*PERMISSION_CALL) == 0


@functools.cache
def cache_dir(callers: Path) -> Path | None:
    """Return a writable cache folder that changes with the source, or None when there is none."""
    stamp = hashlib.sha256(numba.__version__.encode())
    for folder in (Path(__file__).parent, callers):
        for text in (path.read_bytes() for path in sorted(folder.rglob("*.py"))):
            if b"kernels.compile" in text:
                stamp.update(text)
    return writable_folder(f"numba-{stamp.hexdigest()[:16]}")


def writable_folder(name: str) -> Path | None:
    """Return a folder for machine code of this user, made if needed; None when there is none."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    roots = [Path(os.environ["NUMBA_CACHE_DIR"])] if os.environ.get("NUMBA_CACHE_DIR") else []
    roots += [user_cache, Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"]
    for root in roots:
        folder = root / "nanochat" / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        owned = folder.stat().st_uid == os.getuid()  # a cache holds machine code: trust only ours
        if owned and os.access(folder, os.W_OK):
            return folder
    return None
