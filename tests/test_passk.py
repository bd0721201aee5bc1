"""pass@k against enumeration of every draw; bootstrap intervals against theory."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from nanochat_lib.intervals import bootstrap_interval
from nanochat_lib.passk import pass_at_k


def _by_enumeration(n_samples: int, n_correct: int, k: int) -> float:
    draws = list(combinations(range(n_samples), k))
    hits = sum(any(sample < n_correct for sample in draw) for draw in draws)
    return hits / len(draws)


def test_pass_at_k_equals_the_share_of_all_draws_with_a_correct_sample() -> None:
    for n_samples in range(1, 9):
        for n_correct in range(n_samples + 1):
            for k in range(1, n_samples + 1):
                wanted = _by_enumeration(n_samples, n_correct, k)
                assert pass_at_k(n_samples, n_correct, k) == pytest.approx(wanted, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow() -> None:
    n_samples, n_correct, k = 20_000, 37, 1_000
    missed = Fraction(1)
    for i in range(n_correct):  # every correct sample lies outside of the draw
        missed *= Fraction(n_samples - k - i, n_samples - i)
    assert pass_at_k(n_samples, n_correct, k) == pytest.approx(float(1 - missed), rel=1e-9)


@pytest.mark.parametrize("counts", [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(*counts)


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).random(400)
    low, high = bootstrap_interval(values, np.ones(400))
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        passed = rng.binomial(8, rng.beta(2, 2, size=60))  # mean of the rates: 0.5
        low, high = bootstrap_interval(passed, np.full(60, 8), seed=trial)
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_problems_are_drawn_whole() -> None:
    """Ten samples that agree are one observation: the interval must be as wide as for one."""
    once = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    ten_times = bootstrap_interval(once * 10, np.full(8, 10))
    assert ten_times == bootstrap_interval(once, np.ones(8))


def test_equal_seeds_give_equal_intervals() -> None:
    values, ones = np.array([0.0, 1.0, 0.5, 0.25]), np.ones(4)
    assert bootstrap_interval(values, ones, seed=1) == bootstrap_interval(values, ones, seed=1)
    assert bootstrap_interval(np.array([]), np.array([])) == (0.0, 0.0)
    assert bootstrap_interval(np.array([2]), np.array([4])) == (0.5, 0.5)
