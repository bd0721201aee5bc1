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

import numpy as np

from kernels.cuda.driver import why_unavailable
from nanochat_lib.config import HardwareConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.model.request import Decoder, Draft, Sampling

if TYPE_CHECKING:  # torch takes three seconds to import
    from nanochat_lib.model.engine import Engine
    from nanochat_lib.model.looplm import LoopLM

logger = logging.getLogger(__name__)

N_TOKENS = 4  # of each text that is compared
LENGTHS = (1, 3, 8)  # of the prompts, in turn; the first is long, so that attention is shared out
LONG = 150
# A token may fall behind the best by this share of the logits' spread. Keys and values in float16,
# and codes that fall on the other side of a half, move logits by up to 0.01 of it.
LOGIT_LIMIT = 0.2
EXIT_THRESHOLD = 0.55  # a fresh gate reaches 0.5, or k/R, where rounding would decide
ENTROPY_LIMIT = 0.1  # nats; by the same causes up to 0.005 on trained models


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
    return Choice("cuda", "checked against the CPU whenever a model is opened")


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
        hardware: `decode_device`, and for the CPU `cpu_threads` and `numa_aware`.
        max_batch: sequences decoded at the same time.
        max_seq_len: longest prompt plus completion; by default the model's.
        packing: "2bit", or "base3" (CPU alone).
        draft: draft with fewer loops and verify with all (CPU alone).

    Raises:
        WorkbenchError: the model cannot be packed, or CUDA was asked for by name and cannot run.
    """
    from nanochat_lib.model.engine import Engine

    sizes, reason = {"max_batch": max_batch, "max_seq_len": max_seq_len}, ""
    if hardware.decode_device != "cpu":
        reason = _lacking(packing, draft) or why_unavailable()
        try:
            if not reason:
                return _open_on_gpu(model, sizes)
        except (WorkbenchError, RuntimeError) as error:  # of torch and of the driver
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if hardware.decode_device == "cuda":
        raise WorkbenchError(
            f"hardware.decode_device is cuda, and the GPU cannot decode here: {reason}. "
            "Set it to auto or cpu to decode on the CPU."
        )
    threads, numa = hardware.cpu_threads, hardware.numa_aware
    engine = Engine.from_model(
        model, **sizes, packing=packing, draft=draft, threads=threads, numa=numa
    )
    if reason and detect_machine().gpus:
        engine.runs_on += f"; not on the GPU: {reason}"
        logger.warning("Decoding runs on the CPU: %s.", reason)
    return engine


def _lacking(packing: str, draft: Draft | None) -> str:
    """Return which wish the GPU engine cannot fulfil; empty when none."""
    if draft is not None:
        return "it does not draft"
    if packing != "2bit":
        return f"it does not read weights packed as {packing}"
    return ""


def _open_on_gpu(model: LoopLM, sizes: dict[str, int | None]) -> Decoder:
    from nanochat_lib.model.engine import Engine
    from nanochat_lib.model.engine_gpu import GpuEngine

    engine = GpuEngine.from_model(model, **sizes)
    length = min(engine.max_seq_len, LONG + N_TOKENS)
    caches = {"max_batch": engine.n_rows, "max_seq_len": length}
    judge = Engine.from_weights(model.config, engine.weights, **caches)
    if reason := disagreement(engine, judge, engine.n_rows):
        raise WorkbenchError(f"its texts are not those of the CPU engine: {reason}")
    return engine


def disagreement(engine: Decoder, judge: Engine, n_texts: int) -> str:
    """Return where an engine's tokens are not what the CPU engine computes; empty when nowhere.

    Greedy tokens must have the best logits, sampled ones be among the best `top_k`, entropies
    agree, and with early exit most first tokens leave at the same loop. `n_texts` are written at
    once: as many as the engine has rows, so that every row is looked at.
    """
    rng = np.random.default_rng(0)
    lengths = [LENGTHS[i % len(LENGTHS)] if i else LONG for i in range(n_texts)]
    room = max(judge.max_seq_len + 1 - N_TOKENS, 1)
    prompts = [rng.integers(0, judge.config.vocab_size, min(n, room)).tolist() for n in lengths]
    for name, sampling in {
        "greedy": Sampling(N_TOKENS, temperature=0, top_k=1),
        "sampled": Sampling(N_TOKENS, top_k=4),
    }.items():
        for prompt, one in zip(prompts, engine.generate(prompts, sampling), strict=True):
            n_tokens = min(N_TOKENS, judge.max_seq_len - len(prompt) + 1)
            if len(one.tokens) != n_tokens:
                return f"{len(one.tokens)} {name} tokens, not {n_tokens}"
            if not all(0 <= token < judge.config.vocab_size for token in one.tokens):
                return f"a {name} token is none of the vocabulary"
            logits = judge.logits([*prompt, *one.tokens[:-1]])[len(prompt) - 1 :]
            behind, apart = _distances(logits, one.tokens, one.token_entropy, sampling.top_k)
            if not behind <= LOGIT_LIMIT:
                return f"a {name} token's logit is {behind:.2f} standard deviations too low"
            if not apart <= ENTROPY_LIMIT:
                return f"the entropy of a {name} token is {apart:.2f} nats off"
    leaving = Sampling(1, temperature=0, exit_threshold=EXIT_THRESHOLD)
    pairs = zip(engine.generate(prompts, leaving), judge.generate(prompts, leaving), strict=True)
    n_equal = sum(one.exit_loops == other.exit_loops for one, other in pairs)
    if 4 * n_equal < 3 * len(prompts):
        return f"{len(prompts) - n_equal} of {len(prompts)} tokens leave at another loop"
    return ""


def _distances(
    logits: np.ndarray, tokens: list[int], entropy: list[float], top_k: int
) -> tuple[float, float]:
    """Return how far tokens fall behind the best k, in spreads, and entropies (nats) are off."""
    rows = logits.astype(np.float64)
    kth = np.sort(rows, axis=1)[:, -min(top_k, rows.shape[1])]
    behind = (kth - rows[np.arange(len(rows)), tokens]) / rows.std(axis=1)
    log_p = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    apart = np.abs(-(np.exp(log_p) * log_p).sum(axis=1) - entropy)
    return float(behind.max()), float(apart.max())
