"""Objectives for what is to be certified: interval bounds on small ReLU networks, and noise for smoothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor, nn

from unfooled.core import fit
from unfooled.core.threat import Ball
from unfooled.errors import InputError

from .objectives import step_noise, telling

Bound: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Ball], Tensor]
"""`(module, x, y, ball) -> [b, k]`: differentiable lower bounds on the score of y minus every score, 0 at y itself."""


@telling
def certified(bound: Bound, threat: Ball, *, kappa: float = 0.5, warm: int = 0, ramp: int = 0) -> fit.Objective:
    """Return k J(z, y) + (1 - k) J(worst z, y) (IBP, Gowal et al. 2018, arXiv:1810.12715, eq. 12 and section 4).

    z are the scores at x, the worst z those of the ball's bounds: `core.network.IntervalBound` gives them. For
    `warm` steps the radius is 0 and k is 1; over the next `ramp` steps the radius grows linearly to the threat's eps
    and k falls to `kappa`. What has been trained so is certified by the same bounds, or tighter ones.

    Raises:
        InputError: the threat has no finite eps, or kappa lies outside [0, 1].
    """
    if not threat.bounded:
        raise InputError(f"Training for certificates needs a threat with a finite eps, not {threat!r}.")
    if not 0 <= kappa <= 1:
        raise InputError(f"kappa is the share of the plain loss at the end, from 0 to 1, not {kappa}.")

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        grown = min(1.0, max(0, step + 1 - warm) / max(1, ramp))
        clean, share = fit.cross_entropy(module(x), y), 1 - (1 - kappa) * grown
        if share == 1:
            return clean
        worst = bound(module, x, y, replace(threat, eps=threat.eps * grown))
        return share * clean + (1 - share) * fit.cross_entropy(-worst, y)

    return objective


@telling
def gaussian(sigma: float, *, seed: int = 0) -> fit.Objective:
    """Return the mean cross-entropy at x plus N(0, sigma^2), not clipped (Cohen et al. 2019, arXiv:1902.02918).

    What the base classifier of randomised smoothing is trained with. The noise belongs to (seed, the row's place in the
    data, step). Raises InputError for a sigma of 0 or less.
    """
    if not sigma > 0:
        raise InputError(f"sigma is the size of the noise, larger than 0, not {sigma}.")

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return x + sigma * step_noise(seed, ids, "gaussian", step, x).normal(0, x.shape[1:], dtype=x.dtype)

    return fit.adversarial(perturb)


def sigma_for(threat: Ball) -> float:
    """Return the noise for an L2 eps: half of it, so that eps is certified where 97.8% of the copies agree.

    Raises InputError for another norm: smoothing by Gaussian noise certifies L2.
    """
    if threat.norm.name != "l2" or not threat.bounded:
        raise InputError(f"Gaussian noise is for threats in L2 with a finite eps, such as l2(0.5), not {threat!r}.")
    return threat.eps / 2
