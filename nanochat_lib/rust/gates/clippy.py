"""The clippy gate: which lints of the group `clippy::correctness` a program triggers.

Input: programs that rustc accepted (others have no meaning to look at). Output: a `Verified` for
each: PASSED with the lints as its diagnostics, none when it is clean; UNJUDGED with the cause when
nobody looked. As in `judging/batch.py` the programs are modules of one crate and a lint belongs to
the file it names; what `policy.py` keeps out of batches is looked at alone. `lint_batch` is a plain
function of a list, for any executor.

A program cannot silence the gate: `-W`, `-D` and even `-F` give way to `#![allow(clippy::all)]` in
the program, `--force-warn` does not. clippy sets `cfg(clippy)`, so a program that names `clippy`
other than in a lint attribute could show it a harmless half of itself, and is charged with that.
What remains: clippy does not look into code that a macro of the program writes.

Cost on two cores of a Xeon: 4.1 ms of CPU per documentation example in batches of 64, 24.5 ms
with one clippy-driver for each (1,736 programs, no finding different); 2.9 against 30.5 ms on the
short functions made from templates (200 programs).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.cache import VerdictCache
from nanochat_lib.rust.judging.policy import CRATE_OF, policy_of
from nanochat_lib.rust.sandbox import COMPILE_LIMITS, Completed, SandboxError, run_sandboxed
from nanochat_lib.rust.syntax import tokens
from nanochat_lib.rust.toolchain import Toolchain, find_toolchain

CLIPPY_VERSION = 1  # part of every cache key: raise it when a finding can change
# Capped at warnings, so that a program's own `deny` of other lints cannot end the look early.
FLAGS = ("--cap-lints=warn", "-Awarnings", "--force-warn=clippy::correctness")
ASKS_FOR_CLIPPY = "asks_for_clippy"
_LINT_ATTRIBUTE = re.compile(r"# (! )?\[ (allow|warn|deny|expect|forbid) \( [^\[\]]*\) \]")


def find_lints(
    programs: Sequence[Program],
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    toolchain: Toolchain | None = None,
    executor: Executor | None = None,
) -> list[Verified]:
    """Return clippy's look at each program, in their order.

    Args:
        programs: complete programs that compile.
        config: batch size and limits.
        cache_dir: folder of the verdict cache, which also keeps these looks; None: no cache.
        workers: threads that wait for clippy; None: one per CPU.
        toolchain: whose clippy-driver; None: the one on the PATH.
        executor: any executor of `concurrent.futures`; None: threads here.
    """
    config, toolchain = config or VerifyConfig(), toolchain or find_toolchain()
    if toolchain.clippy is None:
        why = "clippy-driver is not installed: rustup component add clippy"
        return [_unjudged(program, why) for program in programs]
    cache = VerdictCache(cache_dir) if cache_dir else None
    keys = [_cache_key(program, config, toolchain) for program in programs]
    by_key = dict(zip(keys, programs, strict=True))
    known = {k: v for k, p in by_key.items() if cache and (v := cache.get(k, p, Level.CHECK))}
    batches = list(_batches({k: p for k, p in by_key.items() if k not in known}, config.batch_size))
    look = partial(lint_batch, config=config, toolchain=toolchain)
    own_pool = ThreadPoolExecutor(workers or usable_cores()) if executor is None else None
    with own_pool or nullcontext(executor) as pool:
        looks = pool.map(look, [[by_key[key] for key in batch] for batch in batches])
        for batch, found in zip(batches, looks, strict=True):
            known |= zip(batch, found, strict=True)
            for key, one in zip(batch, found, strict=True) if cache else ():
                cache.put(key, one)
    return [
        replace(known[key], program_id=program.program_id)
        for key, program in zip(keys, programs, strict=True)
    ]


def _batches(programs: dict[str, Program], size: int) -> Iterator[list[str]]:
    """Yield keys of programs that may share a crate, and of those that may not one by one."""
    together: dict[str, list[str]] = {}
    for key, program in programs.items():
        if policy_of(program.source, program.edition).compile_alone:
            yield [key]
        else:
            together.setdefault(program.edition, []).append(key)
    for keys in together.values():
        yield from (keys[start : start + size] for start in range(0, len(keys), size))


def lint_batch(
    programs: Sequence[Program], *, config: VerifyConfig, toolchain: Toolchain
) -> list[Verified]:
    """Look at programs of one edition that may share a crate; halves, when clippy fails on all."""
    try:
        with tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as folder:
            done = _run_clippy(programs, Path(folder), config, toolchain)
    except (SandboxError, OSError) as error:
        return [_unjudged(program, str(error)) for program in programs]
    if done.ended == "exit" and done.returncode == 0:
        lints = _lints_by_file(done.stderr)
        cpu_ms = done.cpu_s * 1e3 / len(programs)
        return [
            _looked_at(program, lints.get(_file_name(number), []), done, cpu_ms)
            for number, program in enumerate(programs)
        ]
    if len(programs) == 1:
        return [_unjudged(programs[0], f"clippy-driver failed: {_cause(done)}")]
    half = len(programs) // 2
    look = partial(lint_batch, config=config, toolchain=toolchain)
    return [*look(programs[:half]), *look(programs[half:])]


def _run_clippy(
    programs: Sequence[Program], folder: Path, config: VerifyConfig, toolchain: Toolchain
) -> Completed:
    for number, program in enumerate(programs):
        (folder / _file_name(number)).write_bytes(program.source.encode())
    (folder / "clippy.toml").touch()  # the search for one ends here
    crate, root = ["--test", "--crate-name=batch"], "crate.rs"
    if len(programs) == 1:
        crate, root = [CRATE_OF[policy_of(programs[0].source).kind]], _file_name(0)
    else:
        names = (Path(_file_name(number)).stem for number in range(len(programs)))
        (folder / root).write_text("".join(f"pub mod {name};\n" for name in names))
    command = [str(toolchain.clippy), f"--edition={programs[0].edition}", *crate, *FLAGS]
    command += ["--emit=metadata", "--error-format=json", "-o", "crate", root]
    cpu_s = config.compile_cpu_s
    return run_sandboxed(
        command,
        work_dir=folder,
        profile="compile",
        limits=replace(COMPILE_LIMITS, cpu_s=cpu_s, wall_s=5 * cpu_s + 10),
        allow_unsandboxed=config.allow_unsandboxed,
        env={"CLIPPY_CONF_DIR": str(folder)},
    )


def _file_name(number: int) -> str:
    return f"program{number:04d}.rs"


def _lints_by_file(stderr: bytes) -> dict[str, list[Diagnostic]]:
    lints: dict[str, list[Diagnostic]] = {}
    for entry in _messages(stderr):
        code = (entry.get("code") or {}).get("code", "")
        spans = [span for span in entry.get("spans", []) if span["is_primary"]]
        if code.startswith("clippy::") and spans:
            place = (spans[0]["line_start"], spans[0]["column_start"])
            lint = Diagnostic("lint", code, entry["message"], *place)
            lints.setdefault(spans[0]["file_name"], []).append(lint)
    return lints


def _messages(stderr: bytes) -> Iterator[dict]:
    for line in stderr.splitlines():
        if line.startswith(b'{"$message_type":"diagnostic"'):
            yield json.loads(line)


def _cause(done: Completed) -> str:
    errors = (m["message"] for m in _messages(done.stderr) if m["level"].startswith("error"))
    return next(errors, f"{done.ended} {done.returncode}")


def _looked_at(
    program: Program, lints: Iterable[Diagnostic], done: Completed, cpu_ms: float
) -> Verified:
    lints = list(dict.fromkeys(lints))
    if asks_for_clippy(program.source):
        message = "the program can tell whether clippy looks at it"
        lints.append(Diagnostic("lint", ASKS_FOR_CLIPPY, message))
    return Verified(
        program.program_id,
        Verdict.PASSED,
        Level.CHECK,
        tuple(lints),
        sandbox=done.sandbox,
        cpu_ms=cpu_ms,
    )


def asks_for_clippy(source: str) -> bool:
    """Return whether a text names `clippy` anywhere but in an attribute such as `allow(...)`.

    A macro could carry the name from one place to another, so with macros every name counts.
    """
    texts = [t.text.removeprefix("r#") for t in tokens(source) if t.kind != "string"]
    if "clippy" not in texts or "macro_rules" in texts:
        return "clippy" in texts
    return "clippy" in _LINT_ATTRIBUTE.sub("", " ".join(texts)).split(" ")


def _unjudged(program: Program, why: str) -> Verified:
    return Verified(program.program_id, Verdict.UNJUDGED, Level.CHECK, detail=why)


def _cache_key(program: Program, config: VerifyConfig, toolchain: Toolchain) -> str:
    parts = ("clippy", CLIPPY_VERSION, FLAGS, program.source, program.edition)
    parts += (config.compile_cpu_s, toolchain.version, toolchain.host)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
