"""Minimum-norm attacks that walk along the boundary: a radius that shrinks at every success, or a price on distance."""

import math
from abc import ABC
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .._rows import Batch, column
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..norms import L2, NORMS
from .parts import Climb, check_counts, check_size, climb

S = TypeVar("S")


@dataclass(frozen=True, repr=False)
class Minimum(Attack[S], ABC):
    """A search for the smallest change in `length` steps of one forward and one backward pass per row.

    Sizes are for inputs in [0, 1] and scale with the box. Points outside a finite eps are shown too: the boundary is
    walked along from both sides.
    """

    length: int = 100
    norms: tuple[str, ...] = ("l2",)
    inside = False

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length)

    @property
    def steps(self) -> int:
        """Gradients per row."""
        return self.length

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Balls in the recipe's norms on tensors, with an eps or without."""
        if not isinstance(threat, Ball) or not isinstance(x, Tensor):
            return "needs inputs that are tensors and a norm ball"
        if threat.norm.name not in self.norms:
            return f"has no step for {threat.norm.symbol}; it takes {', '.join(self.norms)}"
        return ""


def masked(p: Problem, grad: Tensor) -> Tensor:
    """Return the gradient [b, ...] without the values that may not change."""
    assert isinstance(p.threat, Ball)
    return grad if p.threat.mask is None else torch.where(p.threat.mask.to(grad.device), grad, 0.0)


def free(p: Problem, x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient [b, ...] without what may not change or the box stops."""
    assert isinstance(p.threat, Ball)
    lo, hi = p.threat.bounds
    return masked(p, torch.where(((grad > 0) & (x >= hi)) | ((grad < 0) & (x <= lo)), 0.0, grad))


def direction(p: Problem, t: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient at length 1 in L2, [b, ...]; where it is zero a random direction."""
    unit = L2.steepest(grad)
    stuck = L2.size(unit) == 0
    return torch.where(column(stuck, grad), L2.steepest(p.noise.normal(t, grad.shape[1:], dtype=grad.dtype)), unit)


def cosine(t: Tensor, steps: int, first: float, final: float, like: Tensor) -> Tensor:
    """From `first` down to `final` along half a cosine, [b]."""
    return final + (first - final) * 0.5 * (1 + torch.cos(t.to(like.dtype) * (math.pi / steps)))


def farthest(p: Problem) -> Tensor:
    """Return the distance of the box's farthest corner, [b]: no radius needs to be larger."""
    assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
    lo, hi = p.threat.bounds
    return p.threat.norm.size(torch.maximum(p.x0 - lo, hi - p.x0))


def drawn(p: Problem, t: Tensor, steps: int) -> Climb:
    """Return what to climb: cross-entropy, which sees every class, and in the second half the margin alone.

    The nearest class need not be the most likely one at the start; and where several classes are near, the point of
    the boundary that is best by cross-entropy is not the nearest one.
    """
    early, late = (climb(loss, p.y, p.to, paired=False) for loss in ("ce", "margin"))
    return lambda scores: torch.where(2 * t < steps, early(scores), late(scores))


@dataclass
class RadiusState:
    """Per row: step t [b], iterate x [b, ...], its radius [b], and the size of the smallest success so far [b]."""

    t: Tensor
    x: Tensor
    radius: Tensor
    best: Tensor


@dataclass(frozen=True, repr=False)
class Radius(Minimum[RadiusState]):
    """Climb within a ball whose radius shrinks by a share after every success and grows after every failure.

    `size` and `gamma` (first, final): length of the steps in L2, and the share. With `start` the radius begins there
    (DDN); without, until the first success it is where the boundary should be by the gradient (FMN, Algorithm 1). For
    L0 it is a number of values and changes by one at least.
    """

    size: float | None = None
    gamma: tuple[float, float] = (0.05, 0.001)
    start: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length)
        check_size("gamma", self.gamma[0])
        if self.size is not None:
            check_size("step_size", self.size)

    def init(self, p: Problem) -> RadiusState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        none = torch.full_like(p.x0.reshape(len(p.x0), -1)[:, 0], torch.inf)
        width = p.threat.bounds[1] - p.threat.bounds[0]
        first = 0.0 if self.start is None else self.start * width
        return RadiusState(torch.zeros_like(p.y), p.x0, torch.full_like(none, first), none)

    def step(self, p: Problem, s: RadiusState) -> tuple[RadiusState, Trial]:
        """Look at x, set the radius, step and project."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        answer, value, grad = p.oracle.gradient(s.x, drawn(p, s.t, self.length))
        won = advantage(answer, p.y, p.to) > 0
        size = p.threat.norm.size(s.x - p.x0)
        best = torch.where(won, torch.minimum(size, s.best), s.best)
        grad = free(p, s.x, grad)
        radius = torch.minimum(self._radius(p, s, won, size, best, value.to(size.dtype), grad), farthest(p))
        first = (3.0 if p.threat.norm.name in ("l1", "l0") else 1.0) if self.size is None else self.size
        alpha = cosine(s.t, self.length, first, 0.01 * first, size) * (p.threat.bounds[1] - p.threat.bounds[0])
        z = p.threat.project(s.x + column(alpha, s.x) * direction(p, s.t, grad), p.x0, radius)
        return RadiusState(s.t + 1, z, radius, best), Trial(s.x, answer)

    def _radius(
        self, p: Problem, s: RadiusState, won: Tensor, size: Tensor, best: Tensor, value: Tensor, grad: Tensor
    ) -> Tensor:
        """Return the next radius, [b]."""
        assert isinstance(p.threat, Ball)
        gamma = cosine(s.t, self.length, *self.gamma, size)
        less, more = torch.minimum(s.radius * (1 - gamma), best), s.radius * (1 + gamma)
        if p.threat.norm.name == "l0":
            less, more = torch.minimum(less.floor(), best - 1).clamp(min=1), torch.maximum(more.floor(), s.radius + 1)
        elif self.start is None:
            slope = NORMS[p.threat.norm.dual].size(grad).clamp(min=torch.finfo(grad.dtype).tiny)
            # a little beyond where the boundary should be: what only comes nearer never crosses it
            more = torch.where(best.isinf(), (size + value.abs() / slope) * (1 + gamma), more)
        return torch.where(won, less, more)

    def last(self, p: Problem, s: RadiusState) -> Tensor:
        """Return the iterate after the last step, where it is worth a look: inside the ball."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        return p.threat.project(s.x, p.x0)


@recipe("Rony et al. 2019, arXiv 1811.09600", ("l2",), smallest=1.01)
def ddn(steps: int = 100, step_size: float = 1.0, gamma: float = 0.05) -> Radius:
    """DDN: climb in a ball whose radius shrinks after a success and grows after a failure."""
    return Radius(length=steps, size=step_size, gamma=(gamma, gamma), start=1.0)


@recipe("Pintor et al. 2021, arXiv 2102.12827", ("linf", "l2", "l1", "l0"), smallest=1.01)
def fmn(steps: int = 100, step_size: float | None = None, gamma: float = 0.05) -> Radius:
    """FMN: climb in a ball of any norm whose radius follows the boundary; both get finer as the steps run out."""
    return Radius(length=steps, norms=("linf", "l2", "l1", "l0"), size=step_size, gamma=(gamma, 0.001))
