"""Choosing the next token: temperature, top-k, top-p, entropy, and per-sequence random numbers.

Jitted parts of the decode program; in: logits (V,) float32; out: a distribution, or a token. The
random number of a token is a hash of its sequence's seed and its place, so a sequence's text does
not depend on the sequences decoded beside it. Ties at the border of top-k or top-p are all kept.
"""

from __future__ import annotations

import numpy as np

from kernels.compile import jit

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # few bits: n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_ONE, _HALF = np.float32(1), np.float32(0.5)
_C3, _C4 = np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@jit
def exp32(x):
    """Return exp(x) in float32 within 2 units in the last place, clamped to [e^-87, e^88].

    exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, and a Taylor polynomial for exp(r): unlike a call
    into the C library, a loop over it becomes vector code.
    """
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    tail = _C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7)))
    power = _ONE + (r + r * r * (_HALF + r * tail))
    return power * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit
def uniform(seed, counter):
    """Return a number in [0, 1): the splitmix64 hash of (seed, counter)."""
    state = seed + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return np.float64(state >> np.uint64(11)) / 9007199254740992.0


@jit
def token_entropy(logits, probability):
    """Return the entropy in nats of softmax(logits); `probability` (V,) is scratch."""
    largest = _softmax_parts(logits, _ONE, probability)
    total, weighted = 0.0, 0.0
    for token in range(len(logits)):
        total += probability[token]
        weighted += np.float64(probability[token]) * (logits[token] - largest)
    return np.log(total) - weighted / total


@jit
def most_likely(logits):
    """Return the token with the largest logit, the first of equals."""
    best = 0
    for token in range(1, len(logits)):
        if logits[token] > logits[best]:
            best = token
    return best


@jit
def distribution(logits, temperature, top, probability, candidate):
    """Write to `probability` (V,) the distribution that tokens are drawn from; sums to 1.

    `top` is top_k and top_p, where 0 and 1 keep all tokens; top_p applies to what top_k left.
    temperature is above 0.
    """
    top_k, top_p = top
    _softmax_parts(logits, np.float32(1 / temperature), probability)
    lowest = np.float32(0)
    if 0 < top_k < len(logits):
        lowest = _kth_largest(probability, top_k)
    if top_p < 1:
        lowest = max(lowest, _nucleus_border(probability, lowest, top_p, candidate))
    total = 0.0
    for token in range(len(logits)):
        if probability[token] < lowest:
            probability[token] = 0
        total += probability[token]
    inverse = np.float32(1 / total)
    for token in range(len(logits)):
        probability[token] *= inverse


@jit
def draw(probability, chance):
    """Return a token drawn with `chance` in [0, 1)."""
    left, last = chance, 0
    for token in range(len(probability)):
        if probability[token] > 0:
            last = token
            left -= probability[token]
            if left < 0:
                break
    return last  # rounding may leave a crumb


@jit
def draw_difference(wanted, kept, chance):
    """Return a token drawn from max(wanted - kept, 0), of two distributions."""
    total = 0.0
    for token in range(len(wanted)):
        total += max(wanted[token] - kept[token], np.float32(0))
    left, last = chance * total, 0
    for token in range(len(wanted)):
        more = wanted[token] - kept[token]
        if more > 0:
            last = token
            left -= more
            if left < 0:
                break
    return last


@jit
def _softmax_parts(logits, inverse_temperature, probability):
    """Write exp((logit - largest) / temperature); return the largest logit."""
    largest = logits[0]
    for token in range(len(logits)):
        largest = max(largest, logits[token])
    for token in range(len(logits)):
        probability[token] = exp32((logits[token] - largest) * inverse_temperature)
    return largest


@jit
def _kth_largest(probability, k):
    """Return the k-th largest value by bisection over bit patterns (ordered for floats >= 0)."""
    bits = probability.view(np.int32)
    low, high = np.int32(0), np.int32(0x3F800000)  # 0.0 and 1.0
    while low < high:
        middle = np.int32(low + (high - low + 1) // 2)
        count = 0
        for token in range(len(bits)):
            count += bits[token] >= middle
        if count >= k:
            low = middle
        else:
            high = np.int32(middle - 1)
    return np.int32(low).view(np.float32)


@jit
def _nucleus_border(probability, lowest, top_p, candidate):
    """Return the smallest value in the smallest set of tokens that holds `top_p` of the mass.

    Tokens below (1 - top_p) / V of the mass together hold less than 1 - top_p, so none is needed:
    the bisection runs over the few that remain.
    """
    total = 0.0
    for token in range(len(probability)):
        if probability[token] >= lowest:
            total += probability[token]
    floor = max(np.float64(lowest), (1 - top_p) * total / len(probability))
    n = 0
    for token in range(len(probability)):
        if probability[token] >= floor:
            candidate[n] = probability[token]
            n += 1
    bits = candidate.view(np.int32)
    low, high = np.int32(0), np.int32(0x3F800000)
    while low < high:
        middle = np.int32(low + (high - low + 1) // 2)
        mass = 0.0
        for i in range(n):
            if bits[i] >= middle:
                mass += candidate[i]
        if mass >= top_p * total:
            low = middle
        else:
            high = np.int32(middle - 1)
    return np.int32(low).view(np.float32)
