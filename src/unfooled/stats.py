"""Intervals for proportions and for means of shares; ROC curves and the area under them."""

import math
from collections.abc import Sequence

from .errors import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) for n = 0.

    It covers the choice of the n examples, not the strength of the attacks that were tried.
    """
    if n == 0:
        return 0.0, 1.0
    return _wilson(successes / n, n, confidence)


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


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the area under the ROC curve: how often a positive lies above a negative, a tie counting half.

    By ranks (Mann and Whitney 1947); NaN where there is none of one kind. 1/2 is what blind guessing has.
    """
    from scipy.stats import rankdata

    m, n = len(positive), len(negative)
    if not m or not n:
        return math.nan
    ranks = rankdata([*positive, *negative])[:m]
    return float((ranks.sum() - m * (m + 1) / 2) / (m * n))


def auroc_interval(area: float, positive: int, negative: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for an area under the ROC curve from so many examples of each kind.

    Wilson's for a share of the smaller number: the variance of the area is at most area (1 - area) / min(m, n)
    (Birnbaum and Klose 1957), so that it errs to the wide side, and it does not vanish at 0 and 1.
    """
    n = min(positive, negative)
    return (0.0, 1.0) if n == 0 else _wilson(area, n, confidence)


def roc(positive: Sequence[float], negative: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the ROC curve's corners: the shares of negatives and of positives above each threshold, from 0 to 1.

    Raises InputError where there is none of one kind.
    """
    import numpy as np

    if not len(positive) or not len(negative):
        raise InputError("A ROC curve needs examples of both kinds.")
    lines = np.unique([*positive, *negative])[::-1]
    shares = [1 - np.searchsorted(np.sort(side), lines, side="left") / len(side) for side in (negative, positive)]
    false, true = ([0.0, *share.tolist()] for share in shares)
    return false, true


def threshold(negative: Sequence[float], share: float) -> float:
    """Return a threshold above which at most `share` of the negatives lies: the lowest, midway to the next larger one.

    Raises InputError for a share outside (0, 1), and without negatives.
    """
    if not 0 < share < 1 or not len(negative):
        raise InputError(f"A threshold needs a share between 0 and 1 and some examples, not {share}, {len(negative)}.")
    ordered = sorted(negative)
    at = len(ordered) - 1 - math.floor(share * len(ordered) + 1e-9)
    above = next((v for v in ordered[at:] if v > ordered[at]), ordered[at])
    return (ordered[at] + above) / 2


def _wilson(p: float, n: int, confidence: float) -> tuple[float, float]:
    """Return the Wilson interval of a share p of n."""
    z = math.sqrt(2) * _erfinv(confidence)
    z2 = z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = centre - half, centre + half  # rounding errors must not move the ends of the range
    return 0.0 if p == 0 else max(0.0, low), 1.0 if p == 1 else min(1.0, high)


def _erfinv(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + p) / 2) / math.sqrt(2)
