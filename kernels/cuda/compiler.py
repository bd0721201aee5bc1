"""Compile the CUDA sources with NVRTC, the compiler library that CUDA builds of torch bring.

In: an architecture such as 90 and preprocessor definitions; out: a cubin, kept in the user's cache
under a hash of sources, options and compiler. No header, no nvcc and no GPU is needed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from kernels.compile import writable_folder

FILES = ("primitives", "quantize", "product", "attention", "sampling", "step", "loops", "draft")
_SOURCES = Path(__file__).parent / "source"
# Without contraction what a GPU computes is what the sources say, and what a CPU computes of them.
_OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v", "--ptxas-options=-warn-spills")


class CudaUnavailableError(RuntimeError):
    """A GPU, its driver or the compiler is missing; the text is one sentence for the user."""


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture; `log` tells registers and spills of every kernel."""

    code: bytes
    log: str


def source_text() -> str:
    """Return the sources as one text, with the lines of its files for messages."""
    parts = [f'#line 1 "{name}.cu"\n{(_SOURCES / f"{name}.cu").read_text()}' for name in FILES]
    return "\n".join(parts)


def kernel_names() -> list[str]:
    """Return the names of all kernels in the sources."""
    return re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", source_text())


def compile_cubin(arch: int, defines: tuple[str, ...] = ()) -> Cubin:
    """Compile the sources for sm_<arch>, or take what the cache has.

    Raises:
        CudaUnavailableError: there is no NVRTC, or it does not know the architecture.
    """
    library = nvrtc()
    options = (f"--gpu-architecture=sm_{arch}", *_OPTIONS, *(f"-D{name}" for name in defines))
    text = source_text()
    key = hashlib.sha256("\0".join((text, *options, version(library))).encode()).hexdigest()[:24]
    folder = writable_folder("cuda")
    if folder is not None and (folder / f"{key}.cubin").is_file():
        return Cubin((folder / f"{key}.cubin").read_bytes(), (folder / f"{key}.log").read_text())
    found = _compile(library, text, options)
    if folder is not None:
        _keep(folder / f"{key}.log", found.log.encode())
        _keep(folder / f"{key}.cubin", found.code)
    return found


def _keep(path: Path, content: bytes) -> None:
    """Write whole or not at all: several processes may compile the same."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """Load the compiler library.

    Raises:
        CudaUnavailableError: none was found.
    """
    for path in _candidates():
        try:
            # The compiler looks for this by name, and not beside itself: it finds what is loaded.
            for part in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(part))
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise CudaUnavailableError(
        "no CUDA compiler: libnvrtc was not found; install a CUDA build of torch, "
        "or the package nvidia-cuda-nvrtc"
    )


def _candidates() -> Iterator[str]:
    """Yield libnvrtc of NVIDIA's packages, newest first, of a CUDA toolkit, of the system."""
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        yield from sorted(map(str, Path(folder).rglob("libnvrtc.so*")), key=_version, reverse=True)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield str(Path(os.environ[name]) / "lib64" / "libnvrtc.so")
    system = find_library("nvrtc")
    if system:
        yield system


def _version(path: str) -> list[int]:
    """Return the numbers behind a library's .so: 13 comes after 9, whatever its folder is named."""
    return [int(number) for number in re.findall(r"\d+", path.rpartition(".so")[2])]


def version(library: ctypes.CDLL) -> str:
    """Return the compiler's version, such as 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _compile(library: ctypes.CDLL, text: str, options: tuple[str, ...]) -> Cubin:
    program = ctypes.c_void_p()
    values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"nanochat.cu", 0, None, None
    )
    try:
        status = status or library.nvrtcCompileProgram(program, len(options), values)
        log = _read(library, program, "ProgramLog").decode(errors="replace").rstrip("\0\n")
        if status:
            raise CudaUnavailableError(
                f"the CUDA compiler {version(library)} failed with {options[0]}: "
                f"{log.splitlines()[0] if log else f'status {status}'}"
            )
        return Cubin(_read(library, program, "CUBIN"), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, content)
    return content.raw
