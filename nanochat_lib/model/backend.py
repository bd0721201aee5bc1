"""Which engine decodes: the one front of the CPU engine and of its twin on a GPU.

In: a model and `hardware.decode_device`; out: an engine, which says in `runs_on` what it runs on.
"auto" takes the GPU where driver, compiler and kernels for it are there and the model has a shape
that they take, else the CPU; "cuda" asks for the GPU by name, and is refused where it cannot run.
No engine on a GPU is handed out before it wrote a few tokens that the CPU engine agrees with: a
GPU that computes wrongly costs speed, never a wrong result.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.cuda.driver import why_unavailable
from nanochat_lib.config import HardwareConfig, ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.model.decoding.agreement import LONG, compare, n_tokens_compared
from nanochat_lib.model.request import Decoder, Draft

if TYPE_CHECKING:  # torch takes three seconds to import
    from nanochat_lib.model.engine_gpu import GpuEngine
    from nanochat_lib.model.looplm import LoopLM

logger = logging.getLogger(__name__)

FAILURES = (WorkbenchError, RuntimeError, MemoryError)  # also of torch and of the driver
AT_MOST = {"generic": "generic", "AVX2": "avx2", "AVX512": "avx512vnni"}
PROBE = ModelConfig(vocab_size=2048, d_model=512, n_layers=2, n_loops=3, n_heads=8, d_ff=1536)
PROBE_ROWS = 16


@dataclass(frozen=True)
class Choice:
    """What decodes on this machine, and one sentence on why."""

    device: str  # "cpu" or "cuda"
    why: str


def choice_here() -> Choice:
    """Return what `decode_device = "auto"` comes to on this machine, for models of usual shape."""
    reason = why_unavailable()
    if reason:
        return Choice("cpu", reason)
    return Choice("cuda", "compared with the CPU engine whenever a model is opened")


def checked_here() -> Choice:
    """Return what `choice_here` does after opening a small random model where that is a GPU.

    `why` then holds the distances that were found.
    """
    choice = choice_here()
    if choice.device == "cpu":
        return choice
    from nanochat_lib.model.looplm import LoopLM

    try:
        sizes = {"max_batch": PROBE_ROWS, "max_seq_len": None}
        engine = _open_on_gpu(LoopLM(PROBE), sizes, None)
    except FAILURES as error:
        return Choice("cpu", _first_line(error))
    return Choice("cuda", f"decodes as the CPU engine does: {engine.agreement}")


def open_engine(
    model: LoopLM,
    hardware: HardwareConfig,
    *,
    max_batch: int = 64,
    max_seq_len: int | None = None,
    packing: str = "2bit",
    draft: Draft | None = None,
) -> Decoder:
    """Pack a model for decoding on the device that `hardware.decode_device` leads to.

    Args:
        model: what decodes.
        hardware: `decode_device`, and for the CPU `cpu_threads`, `numa_aware` and the level of
            kernels that `preferred_kernel` allows; its "CUDA" asks for what "auto" does.
        max_batch: sequences decoded at the same time.
        max_seq_len: longest prompt plus completion; by default the model's.
        packing: "2bit", or "base3" (CPU alone).
        draft: draft with fewer loops and verify with all; by default off.

    Raises:
        WorkbenchError: the model cannot be packed, or CUDA was asked for by name and cannot run.
    """
    from nanochat_lib.model.engine import Engine

    sizes, reason = {"max_batch": max_batch, "max_seq_len": max_seq_len}, ""
    if hardware.decode_device != "cpu":
        reason = why_unavailable()
        if packing != "2bit":
            reason = f"it does not read weights packed as {packing}"
        try:
            if not reason:
                return _open_on_gpu(model, sizes, draft)
        except FAILURES as error:
            reason = _first_line(error)
    if hardware.decode_device == "cuda":
        raise WorkbenchError(
            f"hardware.decode_device is cuda, and the GPU cannot decode here: {reason}. "
            "Set it to auto or cpu to decode on the CPU."
        )
    threads, numa = hardware.cpu_threads, hardware.numa_aware
    engine = Engine.from_model(
        model, **sizes, packing=packing, draft=draft, threads=threads, numa=numa
    )
    engine.use(AT_MOST.get(hardware.preferred_kernel, "amx"))
    if reason and detect_machine().gpus:
        engine.runs_on += f"; not on the GPU: {reason}"
        logger.warning("Decoding runs on the CPU: %s.", reason)
    return engine


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _open_on_gpu(model: LoopLM, sizes: dict[str, int | None], draft: Draft | None) -> GpuEngine:
    from nanochat_lib.model.engine import Engine
    from nanochat_lib.model.engine_gpu import GpuEngine

    engine, n_drafts = (
        GpuEngine.from_model(model, **sizes, draft=draft),
        draft.tokens if draft else 0,
    )
    length = min(engine.max_seq_len, LONG + n_tokens_compared(n_drafts))
    caches = {"max_batch": engine.n_rows, "max_seq_len": length}
    judge = Engine.from_weights(model.config, engine.weights, **caches)
    engine.agreement = compare(engine, judge, engine.n_rows, n_drafts)
    if engine.agreement.fault:
        raise WorkbenchError(f"its texts are not those of the CPU engine: {engine.agreement.fault}")
    logger.info("The GPU decodes as the CPU engine does: %s.", engine.agreement)
    return engine
