"""Randomised smoothing: the class that a target gives to most noisy copies of an input, and how far that holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binomtest, norm
from torch import Tensor

from unfooled._noise import Noise, example_ids, row_keys
from unfooled.core.ask import Asker
from unfooled.core.target import Target
from unfooled.core.threat import Ball
from unfooled.errors import InputError
from unfooled.norms import NORMS
from unfooled.stats import wilson

from .bounds import check

ABSTAIN = -1
_ROOM = 2**24  # most values of noisy copies at once


@dataclass(frozen=True)
class Smoothed:
    """What the smoothed classifier says of n inputs, and how far it is certain to say it.

    `label` int64 [n] (-1: it abstains), `radius` float64 [n] the L2 radius within which no input has another label (0
    where it abstains), `p_lower` float64 [n] the lower confidence bound on the share of noisy copies of that class,
    `counts` int64 [n, k] the answers that the bound was computed from. Each row's certificate is wrong with a
    probability of at most `alpha`, over the draws.
    """

    label: Tensor
    radius: Tensor
    p_lower: Tensor
    counts: Tensor
    sigma: float
    n: int
    alpha: float
    forward: int

    def __str__(self) -> str:
        """Return what is certain of how many, how far, and with what probability it is wrong."""
        sure = self.radius[self.label != ABSTAIN]
        of = f"{len(sure)} of {len(self.label)} inputs"
        told = f"The smoothed classifier (sigma = {self.sigma:g}) answers {of} for certain"
        if len(sure):
            low, middle, high = sure.min(), sure.median(), sure.max()
            told += f", within L2 radii from {low:.3g} to {high:.3g} (median {middle:.3g})"
        told += f", and abstains on {len(self.label) - len(sure)}."
        return f"{told} A certificate of {self.n:,} draws is wrong with a probability of at most {self.alpha:g}."

    __repr__ = __str__

    def certified_accuracy(self, y: Tensor, eps: float) -> tuple[float, tuple[float, float]]:
        """Return the share of rows that are right for certain within L2 `eps`, with its 95% interval (Wilson)."""
        right = (self.label == y.cpu()) & (self.radius >= eps) & (self.label != ABSTAIN)
        k, n = int(right.sum()), len(right)
        return k / max(1, n), wilson(k, n)


def smoothed(
    target: Target | Callable[..., Any],
    x: Tensor,
    *,
    sigma: float,
    n: int = 10_000,
    n0: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
) -> Smoothed:
    """Return label and certified L2 radius of the smoothed target at x [m, ...] (Cohen et al. 2019, CERTIFY).

    The smoothed target answers the class that the target gives most often to x + N(0, sigma^2). `n0` draws choose the
    class, `n` others bound its share from below (Clopper and Pearson, one-sided, 1 - alpha); the radius is sigma times
    the normal quantile of that bound (arXiv:1902.02918, theorem 1 and section 3.2.2), nothing where it is at most 1/2.

    Noisy copies leave the target's box: they are not clipped. The noise belongs to the example and the seed; label
    access is enough. n0 + n forward passes a row.

    Raises:
        InputError: sigma, n, n0 or alpha out of range, inputs that are none or not within the target's bounds, or a
            target that may refuse to answer.
    """
    asker = _checked(target, x, sigma, n, n0, alpha)
    first, counts = _votes(asker, x, sigma, n0, seed, "choose"), _votes(asker, x, sigma, n, seed, "estimate")
    k = max(first.shape[1], counts.shape[1])
    first, counts = (torch.nn.functional.pad(c, (0, k - c.shape[1])) for c in (first, counts))
    top = first.argmax(1)
    hits = counts.gather(1, top[:, None])[:, 0].numpy()
    lower = np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), n - hits + 1), 0.0)
    sure = lower > 0.5
    radius = np.where(sure, sigma * norm.ppf(np.where(sure, lower, 0.5)), 0.0)
    return Smoothed(
        torch.where(torch.from_numpy(sure), top, ABSTAIN), torch.from_numpy(radius), torch.from_numpy(lower), counts,
        sigma, n, alpha, asker.forward,
    )  # fmt: skip


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """Return the radius that `smoothed` certifies where all of n draws agree: it certifies none that is larger."""
    agreed = alpha ** (1 / n)
    return float(sigma * norm.ppf(agreed)) if agreed > 0.5 else 0.0


def draws_for(radius: float, sigma: float, alpha: float) -> float:
    """Return the least n of which the largest radius is this one: a whole number, or infinity."""
    each = float(norm.logcdf(radius / sigma))
    return math.ceil(math.log(alpha) / each) if each < 0 else math.inf


def predict(
    target: Target | Callable[..., Any], x: Tensor, *, sigma: float, n: int = 1000, alpha: float = 0.001, seed: int = 0
) -> Tensor:
    """Return the smoothed target's labels int64 [m], -1 where the first two classes are too close (PREDICT, ibid.).

    A label is wrong with a probability of at most `alpha` over the draws (Hung and Fithian 2019, two-sided test).
    Raises InputError as `smoothed`.
    """
    counts = _votes(_checked(target, x, sigma, n, 1, alpha), x, sigma, n, seed, "predict")
    two = torch.nn.functional.pad(counts, (0, max(0, 2 - counts.shape[1]))).topk(2, 1)
    p = [binomtest(a, a + b).pvalue if a + b else 1.0 for a, b in two.values.tolist()]
    return torch.where(torch.tensor(p) <= alpha, two.indices[:, 0], ABSTAIN)


def _checked(target: Target | Callable[..., Any], x: Tensor, sigma: float, n: int, n0: int, alpha: float) -> Asker:
    """Return who asks the target; raises InputError for all that has no certificate."""
    if not 0 < sigma < math.inf or n < 1 or n0 < 1 or not 0 < alpha < 1:
        raise InputError(
            f"sigma must be larger than 0 and finite, n and n0 at least 1, alpha between 0 and 1, not sigma={sigma}, "
            f"n={n}, n0={n0}, alpha={alpha}."
        )
    asker = Asker(target)
    if asker.target.reject is not None:
        raise InputError("Smoothing needs a target that always answers: give it without its reject option.")
    check(x, Ball(NORMS["l2"]), asker.target)
    return asker


def _votes(asker: Asker, x: Tensor, sigma: float, draws: int, seed: int, what: str) -> Tensor:
    """Return how often each class is the answer to noisy copies of x [m, ...], int64 [m, k]."""
    numel = max(1, x[0].numel())
    keys = torch.from_numpy(row_keys(seed, example_ids(x), f"smoothing {what}")).to(x.device)
    counts = torch.zeros((len(x), 0), dtype=torch.int64)
    chunk = max(1, min(draws, _ROOM // (numel * len(x))))
    for at in range(0, draws, chunk):
        these = min(chunk, draws - at)
        step = torch.arange(at, at + these, device=x.device).repeat(len(x))
        noise = Noise(keys.repeat_interleave(these)).normal(step, (numel,), dtype=x.dtype)
        copies = x.flatten(1).repeat_interleave(these, 0) + sigma * noise  # [m * these, d]
        label = asker.labels(copies.view(-1, *x.shape[1:])).view(len(x), these).cpu()
        k = max(counts.shape[1], int(label.max()) + 1)
        counts = torch.nn.functional.pad(counts, (0, k - counts.shape[1]))
        counts += torch.nn.functional.one_hot(label, k).sum(1)
    return counts
