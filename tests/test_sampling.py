"""Random numbers of sampled sequences: no two sequences draw from one stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nanochat_lib.model.decoding.sampling import uniform
from nanochat_lib.model.request import seeds_of


@pytest.mark.parametrize("seed", [0, 7, list(range(16))])
def test_neighbouring_sequences_share_no_random_number(seed):
    streams = [
        {float(uniform(np.uint64(s), np.uint64(t))) for t in range(256)} for s in seeds_of(seed, 16)
    ]
    assert all(not a & b for a, b in itertools.combinations(streams, 2))
