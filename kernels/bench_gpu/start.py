"""How a measurement on a GPU begins and ends: its arguments, the refusal, where it ran, its file.

Shared by this benchmark and by that of decoding (nanochat_lib/publish/decode_gpu.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kernels.cuda.driver import why_unavailable

Row = dict[str, Any]


def parser_of(doc: str, what: str) -> argparse.ArgumentParser:
    """Return a parser that knows --out; `doc` is the program's description, `what` the option's."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help=what)
    return parser


def is_refused() -> bool:
    """Return whether there is no GPU to measure on, and say why."""
    reason = why_unavailable()
    if reason:
        print(f"Nothing was measured: {reason}.", file=sys.stderr)
    return bool(reason)


def facts() -> Row:
    """Return what the numbers were measured on, and by which sources."""
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": f"{found.major}.{found.minor}",
        "n_multiprocessors": found.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit, and "+ changes" where files differ from it; empty outside a checkout."""
    head = _git("rev-parse", "HEAD")
    return f"{head} + changes" if head and _git("status", "--porcelain", "-uno") else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def write(path: Path, report: Row) -> None:
    """Write a report as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("w") as file:
        json.dump(report, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
