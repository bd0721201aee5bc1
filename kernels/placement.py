"""Where threads run and where memory lies, on machines with several NUMA nodes.

A page of memory belongs to the node of the thread that first writes it. So each thread of a team is
bound to the processors of one node, and copies its share of the weights itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels.team import Team, share

_NODES = Path("/sys/devices/system/node")


def numa_nodes(folder: Path = _NODES) -> list[frozenset[int]]:
    """Return the processors of each NUMA node that this process may use, in the nodes' order."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    paths = sorted(folder.glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    found = [_parse_list((path / "cpulist").read_text()) & usable for path in paths]
    return [frozenset(node) for node in found if node]


def _parse_list(text: str) -> set[int]:
    """Return the numbers of a list of the kernel's, such as "0-3,8-11"."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def node_of(rank: int, size: int, nodes: Sequence[frozenset[int]]) -> frozenset[int]:
    """Return the node of a team's thread: neighbours in the team are neighbours in the machine."""
    return nodes[rank * len(nodes) // size]


def bind_to(cpus: frozenset[int]) -> None:
    """Let the calling thread run on these processors only."""
    os.sched_setaffinity(0, cpus)


def copy_share(source: np.ndarray, target: np.ndarray, team: Team) -> None:
    """Copy the row groups that this thread will read, (L, N/16, ...), so that they lie near it."""
    first, last = share(team, source.shape[1])
    target[:, first:last] = source[:, first:last]
