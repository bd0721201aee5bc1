"""Run the shipped CUDA sources on the CPU: g++ and shim.h instead of NVRTC and a GPU."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from kernels.cuda.compiler import source_text

_HERE = Path(__file__).parent
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(const (\w+) ')
_WRAPPER = """
extern "C" const char* run_{name}(const {args}* args, const int* sizes) {{
    return shim_run([](const void* p) {{ {name}(*(const {args}*)p); }}, args, sizes);
}}
"""


class Shim:
    """The kernels of the shipped sources, to be launched like those on a GPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.seed = 1  # of the order in which threads run
        self.launched: list[str] = []  # names, oldest first

    def allow(self, *arrays: np.ndarray) -> None:
        """Let kernels read weights from these arrays and from nowhere else."""
        self.library.shim_allow(None, ctypes.c_size_t(0))
        for array in arrays:
            self.library.shim_allow(
                ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            )

    def launch(
        self, name: str, args: ctypes.Structure, grid: int, block: int, *, shared: int = 0,
        together: bool = False,
    ) -> None:  # fmt: skip
        """Run one kernel to its end."""
        self.launched.append(name)
        sizes = (ctypes.c_int * 5)(grid, block, shared, self.seed, together)
        run = getattr(self.library, f"run_{name}")
        run.restype = ctypes.c_char_p
        trouble = run(ctypes.byref(args), sizes)
        assert trouble is None, f"{name}: {trouble.decode()}"

    def resident(self, name: str, block: int, shared: int) -> int:
        """Return how many blocks run together: as if a GPU had room for three."""
        return 3


def compiled(tail: str = "", defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile all sources, wrappers and `tail` by g++; skip the test when there is none.

    Equal sources are compiled once and loaded anew: each library has seeds and limits of its own.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the CUDA sources cannot run on the CPU")
    with tempfile.TemporaryDirectory(prefix="cuda-shim-") as folder:
        library = Path(folder) / "shim.so"
        library.write_bytes(_machine_code(compiler, tail, defines))
        return ctypes.CDLL(str(library))


@functools.cache
def _machine_code(compiler: str, tail: str, defines: tuple[str, ...]) -> bytes:
    text = source_text()
    wrappers = "".join(_WRAPPER.format(name=n, args=a) for n, a in _KERNEL.findall(text))
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
    options.append("-U_FORTIFY_SOURCE")  # which forbids jumps between stacks
    options += [f"-D{define}" for define in defines]
    with tempfile.TemporaryDirectory(prefix="cuda-shim-") as folder:
        program, library = Path(folder) / "shim.cpp", Path(folder) / "shim.so"
        program.write_text(f'#include "{_HERE}/shim.h"\n{text}\n{wrappers}\n{tail}')
        command = [compiler, *options, "-o", str(library), str(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        return library.read_bytes()


@functools.cache
def shim() -> Shim:
    """Return the sources compiled once for all tests."""
    return Shim(compiled())
