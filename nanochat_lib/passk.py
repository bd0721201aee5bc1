"""pass@k without bias.

Counts of judged and passing samples of a problem go in, a rate goes out. A sample that could not be
judged is in neither count.

Source: Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), eq. 1.
"""

from __future__ import annotations

import numpy as np


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
