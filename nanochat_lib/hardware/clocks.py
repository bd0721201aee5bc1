"""CPU time of everything that a measurement starts, other programs included."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path


def cpu_s() -> float:
    """Return the CPU seconds of this process, the children it waited for, and its launchers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + used.ru_utime + used.ru_stime
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:  # a thread that has just ended; its children are the main thread's now
            continue
        for child in children:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total
