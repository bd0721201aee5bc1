"""Run compiled kernels on a GPU through the driver's own library, on torch's current stream.

In: the sources (compiler.py) and argument structs (structs.py). torch owns the GPU's context, its
memory and its streams; a launch is an ordinary one, so torch.cuda.graph captures it. A missing GPU,
driver or compiler is one sentence, in `why_unavailable` or a `CudaUnavailableError`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

from kernels.cuda.compiler import CudaUnavailableError, compile_cubin, kernel_names, nvrtc
from kernels.cuda.products import Device

OLDEST = 80  # compute capability 8.0: the first with this shape of integer tensor operation
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
STATIC_SHARED = 4 << 10  # no kernel declares more by itself (a test reads the compiler's log)


@functools.cache
def why_unavailable() -> str:
    """Return why no CUDA kernel can run here, one sentence; empty when one can.

    Asks the driver before torch, which takes seconds to import.
    """
    try:
        count = ctypes.c_int()
        status = _driver().cuInit(0) or _driver().cuDeviceGetCount(ctypes.byref(count))
        if status not in (0, _NO_DEVICE):
            return f"no GPU: the CUDA driver does not start (its error {status})"
        if status or not count:
            return "no GPU: the CUDA driver finds no device"
        nvrtc()
    except CudaUnavailableError as error:
        return str(error)
    import torch

    if not torch.cuda.is_available():
        return "no GPU for torch: this build of it has no CUDA, or another than the driver's"
    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor < OLDEST:
        return f"no usable GPU: compute capability {major}.{minor} found, 8.0 needed"
    return ""


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        reason = "no GPU: the CUDA driver (libcuda.so.1) was not found"
        raise CudaUnavailableError(reason) from None


@functools.cache
def program(index: int, defines: tuple[str, ...] = ()) -> Program:
    """Return the kernels for GPU `index`, compiled and loaded once a process.

    Raises:
        CudaUnavailableError: there is no GPU, driver or compiler; the reason is one sentence.
    """
    return Program(index, defines)


@functools.cache
def device(index: int) -> Device:
    """Return the numbers of GPU `index` that plans depend on."""
    import torch

    found = torch.cuda.get_device_properties(index)
    most = found.shared_memory_per_block_optin - STATIC_SHARED
    return Device(found.multi_processor_count, most)


class Program:
    """The compiled sources on one GPU; a `Launcher`."""

    def __init__(self, index: int, defines: tuple[str, ...]) -> None:
        import torch

        reason = why_unavailable()
        if reason:
            raise CudaUnavailableError(f"CUDA kernels cannot run: {reason}.")
        self.index = index
        self._stream = torch.cuda.current_stream
        major, minor = torch.cuda.get_device_capability(index)
        self._cubin = compile_cubin(major * 10 + minor, defines)
        self._context, self._module = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(index):
            torch.zeros(1, device="cuda")  # makes torch's context, which the module belongs to
            _check(_driver().cuCtxGetCurrent(ctypes.byref(self._context)))
            _check(_driver().cuModuleLoadData(ctypes.byref(self._module), self._cubin.code))
            # All now: loading one while a graph is captured might not be allowed.
            self._functions = {name: self._load(name) for name in kernel_names()}

    def launch(
        self, name: str, args: ctypes.Structure, grid: int, block: int, *, shared: int = 0,
        together: bool = False,
    ) -> None:  # fmt: skip
        """Launch the kernel `name` on torch's current stream of this GPU.

        Args:
            together: blocks wait for each other, so all must run at the same time: at most as many
                as `resident` tells.

        Raises:
            RuntimeError: the driver refused; the text names its error.
        """
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        stream = ctypes.c_void_p(self._stream(self.index).cuda_stream)
        sizes = (grid, 1, 1, block, 1, 1, shared, stream, parameters)
        with self._current():
            if together:
                _check(_driver().cuLaunchCooperativeKernel(self._functions[name], *sizes))
            else:
                _check(_driver().cuLaunchKernel(self._functions[name], *sizes, None))

    def resident(self, name: str, block: int, shared: int) -> int:
        """Return how many blocks of a kernel this GPU runs at the same time."""
        count, size = ctypes.c_int(), ctypes.c_size_t(shared)
        with self._current():
            ask = _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor
            _check(ask(ctypes.byref(count), self._functions[name], block, size))
        return count.value * device(self.index).n_multiprocessors

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Make torch's context of this GPU the thread's."""
        _check(_driver().cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            _driver().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _load(self, name: str) -> ctypes.c_void_p:
        """Look a kernel up, and let its blocks have all shared memory there is."""
        found, most = ctypes.c_void_p(), device(self.index).max_shared
        _check(_driver().cuModuleGetFunction(ctypes.byref(found), self._module, name.encode()))
        _check(_driver().cuFuncSetAttribute(found, _MAX_DYNAMIC_SHARED, most))
        return found


def _check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({status})")
