"""Intervals for proportions and for means of shares."""

import math
from collections.abc import Sequence


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) for n = 0.

    It covers the choice of the n examples, not the strength of the attacks that were tried.
    """
    if n == 0:
        return 0.0, 1.0
    z = math.sqrt(2) * _erfinv(confidence)
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = centre - half, centre + half  # rounding errors must not move the ends of the range
    return 0.0 if successes == 0 else max(0.0, low), 1.0 if successes == n else min(1.0, high)


def mean_interval(shares: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for the mean of shares in [0, 1], one per example; (0, 1) for none.

    Agresti and Coull 1998, carried from hits to shares: the normal interval after z^2/2 zeros and as many ones are
    added, so that equal shares do not make it vanish. For shares of 0 and 1 alone it is theirs.
    """
    if not shares:
        return 0.0, 1.0
    n, total = len(shares), math.fsum(shares)
    half = _erfinv(confidence) ** 2  # z^2 / 2
    p = (total + half) / (n + 2 * half)
    spread = math.fsum((s - p) ** 2 for s in shares) + half * (p * p + (1 - p) ** 2)
    reach = math.sqrt(2) * _erfinv(confidence) * math.sqrt(spread) / (n + 2 * half)
    return max(0.0, min(p - reach, total / n)), min(1.0, max(p + reach, total / n))


def _erfinv(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + p) / 2) / math.sqrt(2)
