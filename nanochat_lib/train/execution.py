"""How training runs on this machine: number type, compilation, threads, signals.

Decisions are made once per run and stored in its checkpoints, so that a resumed run computes what
the uninterrupted one would have.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor

from kernels.training.linear import linear, ternary
from kernels.training.operators import has_triton, kernel_errors
from nanochat_lib.config import HardwareConfig, ModelConfig, PretrainConfig
from nanochat_lib.control import LOOK_S
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.model.looplm import LoopLM, call_layer
from nanochat_lib.model.products import Int8Weights
from nanochat_lib.runs import write_atomic
from nanochat_lib.train.watch.speed import synchronize

logger = logging.getLogger(__name__)
T = TypeVar("T")

BFLOAT16_GAIN = 2.0  # autocast adds casts, so bfloat16 must multiply at least this much faster
# Compiling costs 15 to 30 s. In float32 matmuls are three quarters of an eager step and compiling
# gains a fifth (3,200 to 3,900 tokens/s, two AVX2 cores); with fast bfloat16 units they are a
# fifth of it, and compiling doubles the speed.
COMPILE_PAYS_S = {torch.float32: 300.0, torch.bfloat16: 60.0}
CLEARLY_SLOWER = 1.5
PRODUCT_ROUNDS = 6  # the first compiles
ASSUMED_FLOPS = {torch.float32: 1e11, torch.bfloat16: 4e11}  # of two cores, eager


def choose_device(hardware: HardwareConfig, rank: int = 0) -> torch.device:
    """Return the GPU of a rank when the profile has GPUs and this machine too, else the CPU.

    `cuda_math_mode = "fast"` lets float32 products on it use TF32.
    """
    if hardware.n_gpus and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = hardware.cuda_math_mode == "fast"
        return torch.device("cuda", rank)
    return torch.device("cpu")


def choose_dtype(wanted: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the autocast type: as configured, or by timing this model's own matmul in both."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    gain = _matmul_seconds(config, torch.float32) / _matmul_seconds(config, torch.bfloat16)
    return torch.bfloat16 if gain >= BFLOAT16_GAIN else torch.float32


def _matmul_seconds(config: ModelConfig, dtype: torch.dtype) -> float:
    x = torch.ones(512, config.d_model, dtype=dtype)
    weight = torch.ones(config.d_ff, config.d_model, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def choose_compile(plan: PretrainConfig, config: ModelConfig, dtype: torch.dtype) -> bool:
    """Return whether to compile the layers.

    "auto" compares the size of the run with what compiling costs. It estimates and does not
    measure, so that equal configurations decide equally.
    """
    if plan.compile == "off":
        return False
    if not find_cxx():
        logger.warning(
            "No C++ compiler was found, so training runs without torch.compile "
            "(docs/troubleshooting.md#slow-cpu-training)."
        )
        return False
    if plan.compile == "on":
        return True
    n_tokens = plan.total_steps * plan.batch_size * plan.seq_len
    return (
        6 * count_parameters(config).executed * n_tokens / ASSUMED_FLOPS[dtype]
        > COMPILE_PAYS_S[dtype]
    )


def find_cxx() -> str | None:
    """Return the C++ compiler that torch.compile would call, or None."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def compiled_layers(model: LoopLM, is_compiled: bool) -> Iterator[None]:
    """Run the model's layers compiled inside the block; evaluation outside stays eager."""
    eager = model.run_layer
    if is_compiled:
        model.run_layer = torch.compile(call_layer, dynamic=False)
    try:
        yield
    finally:
        model.run_layer = eager


def compiles(model: LoopLM, tokens: Tensor, dtype: torch.dtype) -> bool:
    """Compile on a batch of the shape of training; on failure say why in one sentence."""
    try:
        with compiled_layers(model, True), autocast(tokens.device, dtype):
            sum(h.float().sum() for h in model(tokens).hidden).backward()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        logger.warning("torch.compile failed, so training runs without it: %s", reason)
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


def choose_products(plan: PretrainConfig, model: LoopLM, dtype: torch.dtype) -> str:
    """Return "int8" or "float": how the layers multiply.

    "auto" times the model's largest product on its GPU both ways, once. The int8 side includes
    rounding activations and gradients, the other is the bare product.

    Raises:
        WorkbenchError: int8 is asked for, and this model cannot.
    """
    reason = why_no_int8(model)
    if plan.products == "int8" and reason:
        raise WorkbenchError(
            f"pretrain.products is int8, but {reason}. Take float, or auto, which finds out."
        )
    if plan.products != "auto":
        return plan.products
    device = model.head.weight.device
    if reason or device.type != "cuda" or dtype != torch.bfloat16 or not has_triton():
        return "float"
    try:
        gain = int8_gain(model.config, plan.micro_batch_size * plan.seq_len, device)
    except kernel_errors() as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        logger.warning("int8 products failed, so training runs without them: %s", line)
        return "float"
    logger.info("a product is %.2f times as fast in int8 as in bfloat16", gain)
    return "int8" if gain > 1 else "float"


def why_no_int8(model: LoopLM) -> str:
    """Return why the layers of a model cannot multiply in int8, or nothing."""
    if not model.config.ternary:
        return "model.ternary is false, so its weights have no codes"
    if any(hasattr(parameter, "device_mesh") for parameter in model.layers.parameters()):
        return "its layers are split over processes (DTensor), which the int8 kernels do not know"
    return ""


def int8_gain(config: ModelConfig, n_tokens: int, device: torch.device) -> float:
    """Return the time of a product in bfloat16 over that in int8, forward and backward."""
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device, dtype=torch.bfloat16)
    n, k = config.d_ff, config.d_model
    x, grad = random(n_tokens, k).requires_grad_(), random(n_tokens, n)
    plain, codes = random(n, k).requires_grad_(), ternary(random(n, k).requires_grad_())
    sides = {
        "float": lambda: torch.nn.functional.linear(x, plain),
        "int8": lambda: linear(x, [codes])[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(PRODUCT_ROUNDS):
        for name, side in sides.items():
            synchronize(device)
            start = time.perf_counter()
            side().backward(grad)
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return min(seconds["float"]) / min(seconds["int8"])


@contextmanager
def int8_products(model: LoopLM, is_int8: bool) -> Iterator[None]:
    """Let the layers multiply in int8 inside the block, by weights quantised once, on entry.

    So all loops and micro-batches of a step share them, and the block must end before the
    optimiser changes the masters.
    """
    before = model.weights_of
    if is_int8:
        codes = {layer: Int8Weights.of(layer) for layer in model.layers}
        model.weights_of = codes.__getitem__
    try:
        yield
    finally:
        model.weights_of = before


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context of a type; float32 switches it off."""
    enabled = dtype == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def cpu_threads(n_threads: int, folder: Path) -> Iterator[int]:
    """Compute with `n_threads`, at most one for each core, inside the block; then restore.

    The number is kept in the stage's folder: a run that is resumed there takes it again.

    Where other programs use the cores, threads spend their time waiting for each other: 12 small
    steps took 76 s with two threads and about 1 s with one. So one is taken when it is clearly
    faster. A run that is resumed must not choose anew: sums in another order change its last bits.
    """
    before, kept = torch.get_num_threads(), folder / "threads.json"
    n_threads = max(1, min(n_threads, usable_cores()))
    if kept.exists():
        n_threads = int(kept.read_text())
    elif n_threads > 1 and _busy_seconds(n_threads) > CLEARLY_SLOWER * _busy_seconds(1):
        logger.warning(
            "The cores are busy: %d threads wait for each other, one runs "
            "(docs/troubleshooting.md#slow-cpu-training).",
            n_threads,
        )
        n_threads = 1
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, str(n_threads))
    torch.set_num_threads(n_threads)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(before)


def _busy_seconds(n_threads: int) -> float:
    """Return the seconds of a few hundred parallel regions as small as those of training."""
    torch.set_num_threads(n_threads)
    x, weight = torch.ones(512, 256), torch.ones(256, 256)
    torch.mm(x, weight)  # starts the threads
    start = time.perf_counter()
    for _ in range(60):
        x.add(torch.mm(x, weight)).amax(-1)
    return time.perf_counter() - start


@contextmanager
def signals_set(event: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set `event` inside the block instead of tearing a step apart.

    Only the main thread may install handlers; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Abandoned(Exception):
    """Work was left behind, because somebody asked for a stop."""


def result_unless_stopped(job: futures.Future[T], is_stopping: Callable[[], bool]) -> T:
    """Wait for work that changes nothing, and leave it behind when a stop is wanted.

    Its thread runs on for the seconds that the work takes; nobody looks at what it returns.

    Raises:
        Abandoned: `is_stopping` said so before the work was done.
    """
    while True:
        try:
            return job.result(timeout=LOOK_S)
        except futures.TimeoutError:
            if job.done():
                raise  # the work's own
            if is_stopping():
                raise Abandoned from None
