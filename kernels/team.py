"""Several threads running one jitted program: shares of the work, and a barrier between steps.

Every thread of a team runs the same program on its own copies of what is small, computes its share
of the rows of a matrix product into a shared buffer, and waits for the others. A wait that lasts
gives the core away, so that a busy machine slows a team down but does not stop it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import simd
from kernels.compile import inline, jit

_SPINS = 2000  # looks at the others before giving the core away: about 50 us
_WORD = ir.IntType(64)


class Team(NamedTuple):
    """What one thread of a team knows."""

    rank: int
    size: int
    arrivals: np.ndarray  # int64 (1,), shared by the team, 0 at the start
    waits: np.ndarray  # int64 (1,), of this thread, 0 at the start


def new_team(size: int) -> list[Team]:
    """Return the members of a team of `size` threads; each is for one thread."""
    arrivals = np.zeros(64, np.int64)  # a cache line of its own, and the next ones too
    return [Team(rank, size, arrivals[8:9], np.zeros(64, np.int64)[8:9]) for rank in range(size)]


@inline
def share(team, n):
    """Return which of n pieces of work are this thread's: from the first to before the second."""
    return n * team.rank // team.size, n * (team.rank + 1) // team.size


@jit
def wait(team):
    """Return when all threads of the team have called this as often; what they wrote is visible."""
    if team.size == 1:
        return
    team.waits[0] += 1
    wanted = team.waits[0] * team.size
    arrived = _arrive(team.arrivals) + 1
    spins = 0
    while arrived < wanted:
        spins += 1
        if spins > _SPINS:
            _give_way()
        arrived = _arrived(team.arrivals)


def _counter(context, builder, signature, args):
    zero = ir.Constant(_WORD, 0)
    return simd.address(context, builder, signature.args[0], args[0], zero, _WORD)


@intrinsic
def _arrive(typingctx, arrivals):
    """Add one to the counter and return what it was."""

    def generate(context, builder, signature, args):
        counter = _counter(context, builder, signature, args)
        return builder.atomic_rmw("add", counter, ir.Constant(_WORD, 1), "seq_cst")

    return types.int64(arrivals), generate


@intrinsic
def _arrived(typingctx, arrivals):
    """Return the counter, after a moment in which the core leaves the memory alone."""

    def generate(context, builder, signature, args):
        pause = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
        )
        builder.call(pause, [])
        return builder.load_atomic(_counter(context, builder, signature, args), "acquire", 8)

    return types.int64(arrivals), generate


@intrinsic
def _give_way(typingctx):
    """Let another thread have the core."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_yield")
        return builder.sext(builder.call(function, []), _WORD)

    return types.int64(), generate
