"""How fast a GPU decodes: `python -m nanochat_lib.publish.decode_gpu --out FILE.json`.

512 tokens after a short prompt: by a step of many launches and by the persistent kernel, for one
sequence and for 32, drawn and greedy, with all loops, leaving early, and with drafts, where as many
sequences as a pass has rows for are written. First comes how far the texts are from those of the
CPU engine. All ways take turns; graphs are captured before, and prompts are in the time. Under two
minutes on an H200; where time runs out fewer repeats are timed, and their number is told. A way
that fails is a row with its reason; `--loops graph` leaves the persistent kernel alone.

The model is random, of about 300 M stored parameters and four loops: costs are real, texts are
noise. Such a model accepts hardly a draft and its gate knows nothing, so its drafts show what
drafting costs, not what it gains: `tokens_per_pass` is near 1. `--checkpoint FOLDER` times a
trained model, where drafts and exits mean something. Target: 3,000 tokens a second for one sequence
on an H200. Without a GPU it says why, and ends with 1.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.bench_gpu.start import Row, facts, is_refused, parser_of, write
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.model.decoding.agreement import LONG, compare, n_tokens_compared
from nanochat_lib.model.request import Draft, Generation, Sampling

if TYPE_CHECKING:  # torch takes three seconds to import
    from nanochat_lib.model.engine_gpu import GpuEngine
    from nanochat_lib.model.looplm import LoopLM

CONFIG = ModelConfig(
    vocab_size=16384, d_model=2048, n_layers=5, n_loops=4, n_heads=16, n_kv_heads=4, d_ff=6144,
    max_seq_len=1024,
)  # fmt: skip
PROMPT = "/// Returns the largest of three numbers.\npub fn "
IDS = tuple(range(1, 17))  # of a model without a tokenizer
LOOPS = ("graph", "persistent")
SEQUENCES, DRAFT, EXIT_THRESHOLD = (1, 32), Draft(1, 4), 0.7
Engines = dict[tuple[int, bool], "GpuEngine"]  # by sequences, and by whether they draft
N_TOKENS, N_REPEATS, MAX_SECONDS = 512, 5, 90.0
TARGET = 3000.0  # tokens/s of the random model, one sequence, all loops, drawn


@dataclass(frozen=True)
class Way:
    """One way to decode."""

    sequences: int
    loops: str
    temperature: float = 1.0
    exit_threshold: float = 1.0
    draft_tokens: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 when there is no GPU, or no such checkpoint."""
    parser = parser_of(__doc__, "file for the numbers")
    parser.add_argument("--checkpoint", type=Path, help="a trained model, in place of a random one")
    parser.add_argument("--loops", choices=LOOPS, help="this alone; by default both")
    options = parser.parse_args(arguments)
    if is_refused():
        return 1
    try:
        model, prompt = _model(options.checkpoint)
        engines = open_engines(model)
    except WorkbenchError as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 1
    agreement = agreements(engines)
    rows = measure(engines, prompt, (options.loops,) if options.loops else LOOPS)
    report = facts() | {
        "model": str(options.checkpoint.name if options.checkpoint else "random"),
        "stored_parameters": count_parameters(model.config).stored,
        "agreement": agreement,
        "rows": rows,
        "checks": checks(rows) if options.checkpoint is None else [],
    }
    write(options.out, report)
    print(format_report(report))
    return 0


def _model(checkpoint: Path | None) -> tuple[LoopLM, list[int]]:
    """Return what decodes, and what it goes on from."""
    from nanochat_lib.data.tokenizer import encode_prompt, load_tokenizer
    from nanochat_lib.model.checkpoint import load_checkpoint
    from nanochat_lib.model.looplm import LoopLM

    if checkpoint is None:
        return LoopLM(CONFIG), list(IDS)
    found = load_checkpoint(checkpoint)
    if found.tokenizer_path is None:
        return found.model, list(IDS)
    prompt = encode_prompt(load_tokenizer(found.tokenizer_path), PROMPT)
    return found.model, prompt[: found.config.max_seq_len // 2]


def measure(engines: Engines, prompt: list[int], loops: Sequence[str] = LOOPS) -> list[Row]:
    """Return a row for every way: tokens a second, median of interleaved repeats."""
    times: dict[Way, list[float]] = {way: [] for key in engines for way in _ways(*key, loops)}
    texts: dict[Way, list[Generation]] = {}
    faults: dict[Way, str] = {}
    began = time.monotonic()
    for n_round in range(N_REPEATS + 1):  # the first captures, and is left out
        if n_round > 1 and time.monotonic() - began > MAX_SECONDS:
            break
        for way in [way for way in times if way not in faults]:
            engine = engines[way.sequences, bool(way.draft_tokens)]
            try:
                texts[way], seconds = _timed(engine, way, prompt)
                times[way].append(seconds)
            except RuntimeError as error:  # of torch and of the driver
                faults[way] = _first_line(error)
    rows = []
    for way, seconds in times.items():
        row = _row(way, texts[way], seconds[1:]) if len(seconds) > 1 else asdict(way)
        rows.append(row | ({"note": faults[way]} if way in faults else {}))
    return rows


def agreements(engines: Engines) -> Row:
    """Return how far the texts of one sequence are from the CPU engine's, plain and with drafts."""
    from nanochat_lib.model.engine import Engine

    found = {}
    for name, is_drafting in (("plain", False), ("drafting", True)):
        engine, n_drafts = engines.get((1, is_drafting)), DRAFT.tokens * is_drafting
        if engine is not None:
            length = min(engine.max_seq_len, LONG + n_tokens_compared(n_drafts))
            sizes = {"max_batch": 1, "max_seq_len": length}
            judge = Engine.from_weights(engine.config, engine.weights, **sizes)
            try:
                found[name] = asdict(compare(engine, judge, 1, n_drafts))
            except RuntimeError as error:
                found[name] = {"fault": _first_line(error)}
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def open_engines(model: LoopLM) -> Engines:
    """Return engines by sequences and by whether they draft, of weights that were packed once."""
    from nanochat_lib.model.decoding.packed import load_weights, new_weights
    from nanochat_lib.model.engine_gpu import GpuEngine

    config, found = model.config, {}
    weights = new_weights(config, config.max_seq_len, "2bit")
    load_weights(weights, model, "2bit")
    for n in SEQUENCES:
        found[n, False] = GpuEngine.from_weights(config, weights, n)
        if config.n_loops > 1:
            engine = GpuEngine.from_weights(config, weights, n, DRAFT)
            found[engine.n_rows, True] = engine
            if engine.n_rows != n:  # to compare with
                found[engine.n_rows, False] = GpuEngine.from_weights(config, weights, engine.n_rows)
    return found


def _ways(n: int, is_drafting: bool, loops: Sequence[str]) -> list[Way]:
    """Return the ways of one engine."""
    found = []
    for kind in loops:
        if is_drafting:
            found.append(Way(n, kind, temperature=0, draft_tokens=DRAFT.tokens))
            continue
        found.append(Way(n, kind, temperature=0))
        if n in SEQUENCES:
            found += [Way(n, kind), Way(n, kind, exit_threshold=EXIT_THRESHOLD)]
    return found


def _timed(engine: GpuEngine, way: Way, prompt: list[int]) -> tuple[list[Generation], float]:
    """Return the texts of one run, and its seconds."""
    engine.use(way.loops)
    n_tokens = min(N_TOKENS, engine.max_seq_len - len(prompt))
    sampling = Sampling(n_tokens, way.temperature, exit_threshold=way.exit_threshold)
    start = time.perf_counter()
    texts = engine.generate([prompt] * way.sequences, sampling)  # waits for the GPU
    return texts, time.perf_counter() - start


def _row(way: Way, texts: list[Generation], seconds: list[float]) -> Row:
    n_tokens, passes = sum(len(text.tokens) for text in texts), sum(text.passes for text in texts)
    loops = [loop for text in texts for loop in text.exit_loops]
    found = {
        "tokens_per_s": n_tokens / statistics.median(seconds),
        "n_tokens": n_tokens,
        "repeats": len(seconds),
        "mean_loops": statistics.mean(loops),
    }
    if way.draft_tokens:
        # Of the tokens that a pass could have given; a pass gives one where all drafts are refused.
        share = n_tokens / passes / way.draft_tokens
        found |= {"tokens_per_pass": n_tokens / passes, "of_drafted": share}
        found |= {"passes_per_token": passes / n_tokens}
    return asdict(way) | found


def checks(rows: list[Row]) -> list[Row]:
    """Return the target beside the better way to run the loops; nothing where none was timed."""
    wanted = [asdict(Way(1, loops)) for loops in LOOPS]
    speeds = [
        row["tokens_per_s"]
        for row in rows
        if "tokens_per_s" in row and {name: row[name] for name in wanted[0]} in wanted
    ]
    if not speeds:
        return []
    value = max(speeds)
    what = "one sequence, all loops, tokens/s"
    return [{"what": what, "value": value, "target": TARGET, "met": value >= TARGET}]


def format_report(report: Row) -> str:
    """Return rows and checks as aligned text."""
    lines = [f"{report['gpu']}, {report['model']}, {report['stored_parameters'] / 1e6:.0f} M"]
    for row in report["rows"]:
        text = f"{row['sequences']:>3} sequences {row['loops']:10} "
        text += "drawn " if row["temperature"] else "greedy"
        text += f" drafts of {row['draft_tokens']}" if row["draft_tokens"] else " " * 12
        if "note" in row:
            text += f" failed: {row['note']}"
        if "repeats" not in row:
            lines.append(text)
            continue
        text += f" {row['tokens_per_s']:10.0f} tokens/s, {row['mean_loops']:.2f} loops"
        if row["draft_tokens"]:
            text += f", {row['tokens_per_pass']:.2f} tokens a pass"
        lines.append(f"{text} (n = {row['repeats']})")
    for check in report["checks"]:
        met = "met" if check["met"] else "NOT MET"
        lines.append(f"{check['what']}: {check['value']:.0f}, target {check['target']:.0f} {met}")
    for name, found in report["agreement"].items():
        lines.append(
            f"{name}, beside the CPU engine: {found['fault'] or 'within its limits'} {found}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
