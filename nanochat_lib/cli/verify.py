"""What `nanochat verify` does: files in, one verdict per file out, as lines of text or JSON.

Folders are searched for `.rs` files without following links to folders, so that loops end. A file
that cannot be judged is an outcome of its own and never ends the rest: text that is not UTF-8 is a
PARSE_ERROR, an unreadable file UNJUDGED with the cause. Verdicts are written as they come; a JSON
file appears whole or not at all, and the cache keeps what was judged when the command is stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console

from nanochat_lib.cli.shared import Cluster, progress_bar, verify_config
from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.runs import REPORTS_DIR, whole_file
from nanochat_lib.rust.judging.desk import MAX_SOURCE_BYTES
from nanochat_lib.rust.verify import verify_stream

NOT_PASSED, NOT_JUDGED = 3, 4  # exit codes
_LINE_EVERY_S = 5.0  # of progress where there is no terminal


def verify(
    paths: Annotated[list[Path], typer.Argument(help=".rs files or folders of them")],
    level: Annotated[str, typer.Option(help="syntax, check, build or test")] = "test",
    json_file: Annotated[
        str, typer.Option("--json", help="write a JSON object per program here; -: print them")
    ] = "",
    workers: Annotated[
        int | None, typer.Option(min=1, help="jobs at a time; default: one per CPU")
    ] = None,
    cluster: Cluster = "",
    cache: Annotated[Path, typer.Option(help="folder of verdicts kept")] = REPORTS_DIR / ".cache",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="judge everything anew")] = False,
    allow_unsandboxed: Annotated[
        bool, typer.Option(help="judge even when no sandbox is available")
    ] = False,
) -> None:
    """Judge Rust programs by rustc in the sandbox; one line per program, as verdicts come.

    Exit codes: 0 every program passed, 3 one did not, 4 one could not be judged, 130 interrupted
    (what was judged is in the cache: the same command goes on there).
    """
    config = verify_config(cluster=cluster, allow_unsandboxed=allow_unsandboxed)
    cache_dir = None if no_cache else cache
    try:
        code = verify_files(
            paths, level, config=config, cache_dir=cache_dir, workers=workers, json_file=json_file
        )
    except KeyboardInterrupt:
        hint = "" if no_cache else "; the same command goes on from here"
        Console(stderr=True).print(f"\nnanochat: interrupted{hint}", highlight=False)
        code = 130
    raise typer.Exit(code)


def verify_files(
    paths: Sequence[Path],
    level: str,
    *,
    config: VerifyConfig,
    cache_dir: Path | None,
    workers: int | None = None,
    json_file: str = "",
) -> int:
    """Judge files and folders of files, show progress, and return the exit code.

    Args:
        paths: `.rs` files, and folders of them.
        level: syntax, check, build or test.
        config: limits, and the cluster that judges where there is one.
        cache_dir: folder of the verdict cache; None: no cache.
        workers: jobs at a time; None: one per CPU.
        json_file: where one JSON object per program and line goes; "-": standard output; empty:
            lines of text on standard output.

    Raises:
        WorkbenchError: a path that does not exist, no `.rs` file, a JSON file that cannot be
            written, or what `verify` raises.
    """
    found, unreadable = rust_files(paths)
    options = {"config": config, "cache_dir": cache_dir, "workers": workers}
    counts: Counter[Verdict] = Counter()
    n_cached = 0
    told, n = Console(stderr=True), len(found) + len(unreadable)
    bar = progress_bar("judged", n, told, every_s=_LINE_EVERY_S)
    with bar as advance, _output(json_file) as put:
        for one in _judge(found, unreadable, level, options):
            put(one)
            counts[one.verdict] += 1
            n_cached += one.cached
            advance()
    shown = ", ".join(f"{counts[one]} {one}" for one in Verdict if counts[one])
    _say(f"judged {counts.total()}: {shown}; {n_cached} from the cache")
    if counts[Verdict.UNJUDGED]:
        return NOT_JUDGED
    return 0 if counts[Verdict.PASSED] == counts.total() else NOT_PASSED


def _judge(
    files: list[Path], unreadable: dict[Path, str], level: str, options: dict[str, Any]
) -> Iterator[Verified]:
    def programs() -> Iterator[Program]:
        for path in files:
            try:
                yield Program(str(path), read_source(path))
            except OSError as error:
                unreadable[path] = error.strerror or str(error)

    yield from verify_stream(programs(), level, **options)
    for path, cause in unreadable.items():
        detail = f"cannot be read: {cause}"
        yield Verified(str(path), Verdict.UNJUDGED, Level(level), detail=detail)


def rust_files(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files named and the `.rs` files below the folders, and unreadable folders.

    Raises:
        WorkbenchError: a path that does not exist, or nothing found.
    """
    found: list[Path] = []
    unreadable: dict[Path, str] = {}

    def note(error: OSError) -> None:
        unreadable[Path(error.filename)] = error.strerror or str(error)

    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise WorkbenchError(f"There is no file or folder {_shown(path)}.")
        if not path.is_dir():
            found.append(path)
            continue
        for folder, folders, names in os.walk(path, onerror=note):
            folders.sort()
            found += [Path(folder, name) for name in sorted(names) if name.endswith(".rs")]
    if not found and not unreadable:
        raise WorkbenchError("No .rs files found in the given folders.")
    return list(dict.fromkeys(found)), unreadable


def read_source(path: Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 become surrogates, a PARSE_ERROR later.

    No more is read than shows that a file is too large to be judged.

    Raises:
        OSError: it cannot be read, or is no regular file (a pipe would be waited for).
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    with path.open("rb") as file:
        return file.read(4 * MAX_SOURCE_BYTES + 4).decode("utf-8", "surrogateescape")


def json_row(verified: Verified) -> dict[str, Any]:
    """Return a verdict as a JSON-ready dictionary."""
    return {
        "path": verified.program_id,
        "level": verified.level,
        "verdict": verified.verdict,
        "codes": list(verified.codes),
        "diagnostics": [_json_diagnostic(one) for one in verified.diagnostics],
        "detail": verified.detail,
        "sandbox": verified.sandbox,
        "cpu_ms": round(verified.cpu_ms, 3),
        "cached": verified.cached,
        "n_tests": verified.n_tests,
    }


def _json_diagnostic(one: Diagnostic) -> dict[str, Any]:
    start = {"line": one.line, "column": one.column}
    span = {"start": start, "end": {"line": one.end_line, "column": one.end_column}}
    named = {"code": one.code, "level": one.level, "message": one.message}
    return named | {"span": span if one.line else None}


# --- Output -------------------------------------------------------------------------------------


@contextmanager
def _output(json_file: str) -> Iterator[Callable[[Verified], None]]:
    """Yield a function that writes one verdict; a file appears only when the block has ended."""
    if not json_file or json_file == "-":
        as_line = _json_line if json_file else _text_line
        yield lambda one: _write_line(sys.stdout.buffer, as_line(one))
        return
    try:
        with whole_file(Path(json_file)) as file:
            yield lambda one: _write_line(file, _json_line(one))
    except OSError as error:
        raise WorkbenchError(f"{json_file} cannot be written: {error}.") from error


def _write_line(file: BinaryIO, line: str) -> None:
    file.write(line.encode("utf-8", "replace") + b"\n")
    file.flush()


def _json_line(one: Verified) -> str:
    return json.dumps(json_row(one))


def _text_line(one: Verified) -> str:
    return f"{one.verdict:15} {_shown(one.program_id)} {' '.join(one.codes) or one.detail}".rstrip()


def _shown(path: Path | str) -> str:
    """Return a path that any terminal can print."""
    return os.fsencode(path).decode("utf-8", "replace")


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
