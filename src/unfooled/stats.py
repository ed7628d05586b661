"""Intervals for proportions."""

import math


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


def _erfinv(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + p) / 2) / math.sqrt(2)
