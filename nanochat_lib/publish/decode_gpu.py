"""How fast a GPU decodes: `python -m nanochat_lib.publish.decode_gpu --out FILE.json`.

A random model of about 300 M stored parameters and four loops (texts are noise, costs are real),
one sequence and 32, all loops, 512 tokens after a prompt of 16; a step of many launches and one
with the persistent kernel, in turn. Target: 3,000 tokens a second for one sequence on an H200.
Without a GPU it says why, and ends with 1.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

from kernels.bench_gpu.start import facts, is_refused, out_path, write
from nanochat_lib.config import ModelConfig
from nanochat_lib.hardware.planner import count_parameters

CONFIG = ModelConfig(
    vocab_size=16384, d_model=2048, n_layers=5, n_loops=4, n_heads=16, n_kv_heads=4, d_ff=6144,
    max_seq_len=1024,
)  # fmt: skip
N_TOKENS, N_REPEATS = 512, 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write tokens a second; 1 when there is no GPU."""
    out = out_path(arguments, __doc__, "file for the numbers")
    if is_refused():
        return 1
    from nanochat_lib.model.looplm import LoopLM

    report = facts() | {
        "stored_parameters": count_parameters(CONFIG).stored,
        "tokens_per_s": {str(n): _tokens_per_s(LoopLM(CONFIG), n) for n in (1, 32)},
        "repeats": N_REPEATS,
    }
    write(out, report)
    print(json.dumps(report, indent=1))
    return 0


def _tokens_per_s(model: object, n_sequences: int) -> dict[str, float]:
    """Return the median of interleaved repeats for each way to run the loops.

    Prompts and the capture of the graph are in the time.
    """
    from nanochat_lib.model.decoding.gpu import LOOPS
    from nanochat_lib.model.engine_gpu import GpuEngine

    engines = {
        loops: GpuEngine.from_model(model, max_batch=n_sequences, loops=loops) for loops in LOOPS
    }
    found = {loops: [] for loops in LOOPS}
    for _ in range(N_REPEATS + 1):
        for loops, engine in engines.items():
            found[loops].append(_timed(engine, n_sequences))
    return {loops: statistics.median(times[1:]) for loops, times in found.items()}


def _timed(engine: object, n_sequences: int) -> float:
    """Return tokens a second of one run."""
    from nanochat_lib.model.request import Sampling

    start, prompts = time.perf_counter(), [list(range(1, 17))] * n_sequences
    texts = engine.generate(prompts, Sampling(N_TOKENS))
    return sum(len(text.tokens) for text in texts) / (time.perf_counter() - start)


if __name__ == "__main__":
    raise SystemExit(main())
