"""Intervals of rates over problems, by the bootstrap (Efron 1979).

Counts per problem go in, an interval comes out; evaluation and training show the same one.
"""

from __future__ import annotations

import numpy as np

N_RESAMPLES = 2000


def bootstrap_interval(
    successes: np.ndarray, totals: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return an interval of sum(successes) / sum(totals), drawing whole problems with return.

    Samples of one problem depend on each other, so problems are drawn, never single samples.

    Args:
        successes: (P,) of P problems: a count, or pass@k with `totals` all one.
        totals: (P,) attempts per problem, positive.
        level: coverage asked for.
        seed: of the resampling; equal seeds give equal intervals.
    """
    n_problems = len(successes)
    if n_problems == 0:
        return 0.0, 0.0
    drawn = np.random.default_rng(seed).integers(n_problems, size=(N_RESAMPLES, n_problems))
    rates = successes[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)
