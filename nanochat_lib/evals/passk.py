"""pass@k without bias, and bootstrap intervals over problems.

Counts of judged and passing samples per problem go in, rates go out. A sample that could not be
judged is in neither count. Letters: P problems.

Source: Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), eq. 1.
"""

from __future__ import annotations

import numpy as np

N_RESAMPLES = 2000


def pass_at_k(n_samples: int, n_correct: int, k: int) -> float:
    """Return the chance that at least one of `k` samples, drawn without return, is correct.

    It is 1 - C(n - c, k) / C(n, k). The quotient is a product of k factors below one, so no
    binomial coefficient is ever formed and nothing overflows.

    Args:
        n_samples: samples of the problem, at least `k`.
        n_correct: how many of them passed.

    Example: n = 3, c = 1, k = 2: of the three pairs one has no correct sample, so 2/3.
    """
    if not 0 <= n_correct <= n_samples or not 1 <= k <= n_samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= n and 0 <= c <= n: n={n_samples}, c={n_correct}"
        )
    n_wrong = n_samples - n_correct
    if k > n_wrong:
        return 1.0
    drawn = np.arange(k)
    return float(1.0 - np.prod((n_wrong - drawn) / (n_samples - drawn)))


def bootstrap_interval(
    successes: np.ndarray, totals: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return an interval of sum(successes) / sum(totals), drawing whole problems with return.

    Samples of one problem depend on each other, so problems are drawn, never single samples.

    Args:
        successes: (P,) successes per problem: a count, or pass@k with `totals` all one.
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
