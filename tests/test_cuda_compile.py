"""The CUDA sources compiled for six architectures without a GPU, and what the machine code costs.

The instruction budget is the performance test that needs no GPU: at batch 1 to 32 a product is at
the memory's limit only while a multiprocessor issues few instructions per weight.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels.cuda import compiler, driver
from kernels.cuda.compiler import CudaUnavailableError, compile_cubin

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# Instructions per weight in the loop over the inputs, by kernel: batch up to 8, 16 and 32.
BUDGET = {
    "w2a8_mma_1": 0.65, "w2a8_mma_fused": 0.65, "w2a8_mma_2": 0.75, "w2a8_mma_4": 1.0,
    "loops_1": 0.65, "loops_2": 0.75, "loops_4": 1.0,
}  # fmt: skip
TENSOR_TILES = {name: 1 if name.endswith("fused") else int(name[-1]) for name in BUDGET}
WEIGHTS_OF_AN_IMMA = 16  # 512 of a tile of 16 x 32, over 32 lanes


@pytest.fixture(params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def cubin(request):
    try:
        compiler.nvrtc()
    except CudaUnavailableError as error:
        pytest.skip(f"{error} (extra cuda-check)")
    return compile_cubin(request.param, ("HEAD_SIZE=64",))  # the default, and compiled once


@pytest.fixture
def machine_code(cubin) -> dict[str, list[str]]:
    """Return the instructions of every kernel, with labels of jumps as lines of their own."""
    triton = importlib.util.find_spec("triton")
    tool = triton and Path(triton.origin).parent / "backends/nvidia/bin/nvdisasm"
    if not tool or not tool.is_file():
        pytest.skip("no disassembler: triton is not installed (extra cuda-check)")
    return _disassembled(str(tool), cubin.code)


@functools.cache
def _disassembled(tool: str, code: bytes) -> dict[str, list[str]]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    sections = re.split(r"\n\.text\.(\w+):\n", done.stdout)
    bodies = (re.split(r"\n\s+\.section", body)[0] for body in sections[2::2])
    return dict(zip(sections[1::2], map(_instructions, bodies), strict=True))


def _instructions(body: str) -> list[str]:
    found = []
    for line in body.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        code = re.search(r"/\*[0-9a-f]{4,}\*/\s+([^;]*);", line)
        if label or code:
            found.append((label or code).group(1).strip())
    return found


def _loops(code: list[str]) -> list[list[str]]:
    """Return the instructions of every loop: from a label to the jump back to it."""
    at = {line: i for i, line in enumerate(code) if line.startswith(".L_x_")}
    loops = []
    for i, line in enumerate(code):
        jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if jump and at.get(jump.group(1), i) < i:
            body = code[at[jump.group(1)] : i + 1]
            loops.append([line for line in body if not line.startswith(".L_x_")])
    return loops


@pytest.mark.parametrize("head_size", [64, 128])
def test_no_kernel_spills_and_registers_leave_room_for_its_threads(cubin, request, head_size):
    arch = request.node.callspec.params["cubin"]
    log = compile_cubin(arch, (f"HEAD_SIZE={head_size}",)).log
    kernels = re.split(r"Compiling entry function", log)[1:]
    assert len(kernels) == len(compiler.kernel_names())
    bounds = re.findall(r"__launch_bounds__\((\d+)[^)]*\)\s+(\w+)\(", compiler.source_text())
    threads = {name: int(count) for count, name in bounds}
    for text in kernels:
        name = re.search(r"'(\w+)'", text).group(1)
        assert "0 bytes spill stores, 0 bytes spill loads" in text, text
        assert " 0 bytes stack frame" in text, text
        registers = int(re.search(r"Used (\d+) registers", text).group(1))
        assert -(-registers // 8) * 8 * threads[name] <= 65_536, text
        shared = re.search(r"(\d+) bytes smem", text)
        assert int(shared.group(1) if shared else 0) <= driver.STATIC_SHARED, text


@pytest.mark.parametrize("name", BUDGET)
def test_instructions_per_weight_are_within_the_budget(machine_code, name):
    loops = [loop for loop in _loops(machine_code[name]) if any("IMMA" in line for line in loop)]
    costs = []
    for loop in loops:
        n_tiles = sum("IMMA.16832.U8.S8" in line for line in loop)
        costs.append(len(loop) / (n_tiles / TENSOR_TILES[name] * WEIGHTS_OF_AN_IMMA))
        assert n_tiles == sum("MMA" in line for line in loop)
    inner = min(costs)  # loops around it hold it, and the one for what is left over is longer
    assert 0.35 < inner <= BUDGET[name], f"{inner:.3f} instructions per weight"


@pytest.mark.parametrize("name", BUDGET)
def test_weights_are_loaded_16_bytes_at_a_time_and_nothing_goes_to_local_memory(machine_code, name):
    code = machine_code[name]
    assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)]
    inner = min((x for x in _loops(code) if any("IMMA" in y for y in x)),
                key=lambda x: len(x) / sum("IMMA" in y for y in x))  # fmt: skip
    loads = [line for line in inner if "LDG" in line]
    assert len(loads) == sum("IMMA" in line for line in inner) / 4 / TENSOR_TILES[name]
    assert all(".128" in line for line in loads)


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(["/nowhere/libnvrtc.so"]))
    compiler.nvrtc.cache_clear()
    try:
        with pytest.raises(CudaUnavailableError, match="libnvrtc was not found; install"):
            compile_cubin(90)
    finally:
        compiler.nvrtc.cache_clear()


def test_the_newest_compiler_of_nvidias_packages_is_tried_first_and_a_broken_one_left(
    tmp_path, monkeypatch
):
    """CUDA 13 keeps all libraries in cu13/lib, CUDA 12 one folder for each."""
    for name in ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13",
                 "cu13/lib/libnvrtc-builtins.so.13.0", "cu9/lib/libnvrtc.so.9"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(compiler, "find_library", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("CUDA_PATH", "/opt/cuda")
    names = [path.removeprefix(str(tmp_path)) for path in compiler._candidates()]
    assert names == [
        "/cu13/lib/libnvrtc.so.13", "/cuda_nvrtc/lib/libnvrtc.so.12", "/cu9/lib/libnvrtc.so.9",
        "/opt/cuda/lib64/libnvrtc.so",
    ]  # fmt: skip
    compiler.nvrtc.cache_clear()
    try:
        with pytest.raises(CudaUnavailableError, match="libnvrtc was not found"):
            compiler.nvrtc()
    finally:
        compiler.nvrtc.cache_clear()


def test_an_architecture_nobody_has_is_one_sentence(cubin):
    with pytest.raises(CudaUnavailableError, match="failed with --gpu-architecture=sm_35"):
        compile_cubin(35)
