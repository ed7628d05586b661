"""Minimum-norm attacks that walk along the boundary: a radius that shrinks at every success, or a price on distance."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .._rows import Batch, column, where
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..norms import L1, L2, NORMS
from .parts import Climb, check_counts, check_size, climb, unfit_ball

S = TypeVar("S")
SPARSE = 0.4  # of the box, the mean step of a value at first: sparse points are found by going far and cutting back


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
        return unfit_ball(x, threat, self.norms)


def free(p: Problem, x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient [b, ...] without what may not change or the box stops."""
    assert isinstance(p.threat, Ball)
    lo, hi = p.threat.bounds
    return p.threat.free(torch.where(((grad > 0) & (x >= hi)) | ((grad < 0) & (x <= lo)), 0.0, grad))


def direction(p: Problem, t: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient at length 1 in L2, [b, ...]; where it is zero a random direction."""
    unit = L2.steepest(grad)
    stuck = L2.size(unit) == 0
    return torch.where(column(stuck, grad), L2.steepest(p.noise.normal(t, grad.shape[1:], dtype=grad.dtype)), unit)


def cosine(t: Tensor, steps: int, first: float, final: float, like: Tensor) -> Tensor:
    """From `first` down to `final` along half a cosine, [b]."""
    return final + (first - final) * 0.5 * (1 + torch.cos(t.to(like.dtype) * (math.pi / max(steps, 1))))


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
class Best:
    """The row's smallest success x [b, ...], its size [b], the gradient there, and the failed trims since, [b]."""

    x: Tensor
    size: Tensor
    grad: Tensor
    fails: Tensor

    @classmethod
    def none(cls, p: Problem) -> "Best":
        """Nothing was found yet."""
        assert isinstance(p.x0, Tensor)
        size = torch.full_like(p.x0.reshape(len(p.x0), -1)[:, 0], torch.inf)
        return cls(p.x0, size, torch.zeros_like(p.x0), torch.zeros_like(p.y))

    def seen(self, p: Problem, x: Tensor, won: Tensor, grad: Tensor, trimmed: Tensor | None = None) -> "Best":
        """Return the best after x was shown; `trimmed` bool [b] says where x was made by `fewer`."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        size = p.threat.norm.size(x - p.x0)
        fails = self.fails if trimmed is None else self.fails + trimmed
        new: Best = where(
            won & (size < self.size), Best(x, size, grad, torch.zeros_like(fails)), replace(self, fails=fails)
        )
        return new

    def exhausted(self) -> Tensor:
        """Whether every change was tried to be undone since the last success, bool [b]."""
        return self.fails > 2 * self.size + 1

    def fewer(self, p: Problem) -> Tensor:
        """Return a point with fewer changes, [b, ...]. For L0.

        By turns, and from the start after every success: one change less, at the values that gain most by the gradient;
        the useful three quarters of the changes; all changes but one, the least useful first, the others once taken to
        the wall of the box and once as they are.
        """
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        grad, x0 = self.grad.flatten(1), p.x0.flatten(1)
        change, size, fails = self.x.flatten(1) - x0, self.size.view(-1, 1), self.fails.view(-1, 1)
        reach = torch.where(grad > 0, hi - x0, torch.where(grad < 0, lo - x0, 0.0))  # [b, d]
        use = _rank(torch.where(change != 0, grad * change, torch.inf))  # changes first, the least useful at 0
        turn = ((fails - 2).clamp(min=0) // 2) % size.clamp(1, change.shape[1]).long()
        kept = torch.where(fails == 1, use >= size - (0.75 * size).floor(), use != turn) & (change != 0)
        pushed = (fails > 1) & (fails % 2 == 0) & (reach != 0)
        rest = torch.where(kept, torch.where(pushed, reach, change), 0.0)
        z = x0 + torch.where(fails == 0, torch.where(_rank(-grad * reach) < size - 1, reach, 0.0), rest)
        return p.threat.project(z.view_as(p.x0).clamp(lo, hi), p.x0, torch.inf)


def _rank(values: Tensor) -> Tensor:
    """Return the place of each value [b, d] in its row, from 0 for the smallest."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


@dataclass
class RadiusState:
    """Per row: step t [b], iterate x [b, ...], its radius [b], and the smallest success."""

    t: Tensor
    x: Tensor
    radius: Tensor
    best: Best


@dataclass(frozen=True, repr=False)
class Radius(Minimum[RadiusState]):
    """Climb within a ball whose radius shrinks by a share after every success and grows after every failure.

    `size` and `gamma` (first, final): length of the steps in L2 (1; for L1 and L0 by SPARSE), and the share. With
    `start` the radius begins there (DDN); without, until the first success it is where the boundary should be by the
    gradient (FMN, Algorithm 1). For L0 it is a number of values and changes by one at least; the last fifth of the
    steps takes changes out of the best point.
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
        best, width = Best.none(p), p.threat.bounds[1] - p.threat.bounds[0]
        first = 0.0 if self.start is None else self.start * width
        return RadiusState(torch.zeros_like(p.y), p.x0, torch.full_like(best.size, first), best)

    def step(self, p: Problem, s: RadiusState) -> tuple[RadiusState, Trial]:
        """Look at x, set the radius, step and project."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        answer, value, grad = p.oracle.gradient(s.x, drawn(p, s.t, self.length))
        won, sparse = advantage(answer, p.y, p.to) > 0, p.threat.norm.name == "l0"
        size, trims = p.threat.norm.size(s.x - p.x0), 0.8 * self.length
        best = s.best.seen(p, s.x, won, p.threat.free(grad), s.t >= trims)
        grad = free(p, s.x, grad)
        radius = self._radius(p, s, won, size, best.size, value.to(size.dtype), grad)
        radius = torch.minimum(radius, farthest(p))
        first = self.size or (SPARSE * p.x0[0].numel() ** 0.5 if p.threat.norm.name in ("l1", "l0") else 1.0)
        alpha = cosine(s.t, self.length, first, 0.01 * first, size) * (p.threat.bounds[1] - p.threat.bounds[0])
        z = p.threat.project(s.x + column(alpha, s.x) * direction(p, s.t, grad), p.x0, radius)
        if sparse:
            z = where((s.t + 1 >= trims) & best.size.isfinite(), best.fewer(p), z)
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


@dataclass
class PricedState:
    """Per row: step t [b], iterate x [b, ...], the method's memory, the smallest success, and a radius [b].

    The radius is that of the walk along the boundary at the end.
    """

    t: Tensor
    x: Tensor
    memory: Any
    best: Best
    radius: Tensor


@dataclass(frozen=True, repr=False)
class Priced(Minimum[PricedState], ABC):
    """Distance has a price beside the loss; in the last `tail` steps the best point is walked along the boundary.

    A method says how its memory begins and how it moves on from x. The walk is that of FMN, in small steps: it brings
    the point onto the boundary, where a price alone comes only near. In L2 half the steps do.
    """

    tail: int = 20
    loss: ClassVar[str] = "ce"

    @abstractmethod
    def begin(self, p: Problem) -> Any:
        """Return the memory of fresh rows."""

    @abstractmethod
    def move(self, p: Problem, s: PricedState, won: Tensor, value: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        """Return memory and next point after the loss `value` [b] and its gradient were seen at s.x."""

    def priced(self, p: Problem) -> int:
        """How many steps come before the walk."""
        assert isinstance(p.threat, Ball)
        return max(1, self.length - (self.tail // 2 if p.threat.norm.name == "l2" else self.tail))

    def init(self, p: Problem) -> PricedState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor)
        best = Best.none(p)
        return PricedState(torch.zeros_like(p.y), p.x0, self.begin(p), best, best.size)

    def step(self, p: Problem, s: PricedState) -> tuple[PricedState, Trial]:
        """Look at x and move on, by price or along the boundary."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        first = self.priced(p)
        begins, late = s.t + 1 == first, s.t + 1 >= first
        price, margin = (climb(name, p.y, p.to, paired=False) for name in (self.loss, "margin"))
        answer, value, grad = p.oracle.gradient(s.x, lambda z: torch.where(s.t < first, price(z), margin(z)))
        won, grad, value = advantage(answer, p.y, p.to) > 0, p.threat.free(grad), value.to(s.x.dtype)
        s = replace(s, best=s.best.seen(p, s.x, won, grad))
        size = s.best.size
        memory, x = self.move(p, s, won, value, grad)
        left = (s.t - first).clamp(min=0)
        gamma = cosine(left, self.length - first, 0.02, 0.0005, size)
        uphill = free(p, s.x, grad)
        spare = value.abs() / NORMS[p.threat.norm.dual].size(uphill).clamp(min=torch.finfo(grad.dtype).tiny)
        less = torch.maximum(torch.minimum(size * (1 - gamma), size - spare / 2), size / 2)
        less = torch.where(begins, size * (1 - gamma), less)
        radius = torch.where(won | begins, less, torch.minimum(s.radius * (1 + gamma), size))
        alpha = cosine(left, self.length - first, 5.0, 0.1, size) * L2.size(s.best.x - p.x0)
        step = column(torch.where(begins, 0.0, alpha), s.x) * direction(p, s.t, uphill)
        walked = p.threat.project(where(begins, s.best.x, s.x) + step, p.x0, radius)
        x = where(late & size.isfinite(), walked, x)
        return PricedState(s.t + 1, x, memory, s.best, radius), Trial(s.x, answer)

    def last(self, p: Problem, s: PricedState) -> Tensor:
        """Return the point after the last step, inside the ball."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        return p.threat.project(s.x, p.x0)


@dataclass(frozen=True, repr=False)
class ElasticNet(Priced):
    """EAD: FISTA on c * loss + the squared L2 size, with soft thresholding for L1 (Algorithm 1).

    Every `run` steps the weight c of the loss changes: ten times larger until a run succeeds, then by halving. The loss
    is cross-entropy, which sees every class (the paper: the margin), and counts until the answer is wrong. The smallest
    L1 size is kept (the paper's L1 rule).
    """

    run: int = 100
    size: float = 0.05
    beta: float = 0.01
    weight: float = 0.01

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        for name, value in (("step_size", self.size), ("beta", self.beta), ("weight", self.weight)):
            check_size(name, value)

    def begin(self, p: Problem) -> Any:
        """The weight [b] with its bracket, whether this run succeeded, and FISTA's point before [b, ...]."""
        assert isinstance(p.x0, Tensor)
        zero = torch.zeros_like(p.x0.reshape(len(p.x0), -1)[:, 0])
        return zero + self.weight, zero, zero + torch.inf, zero > 0, p.x0

    def move(self, p: Problem, s: PricedState, won: Tensor, value: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        """Return the next point by FISTA; at the end of a run the next weight, and the original."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        c, low, high, succeeded, before = s.memory
        k = (s.t % self.run).to(c.dtype)
        rate = self.size * (1 - k / self.run).sqrt()
        d = (s.x - p.x0) / (hi - lo)
        down = 2 * d - torch.where(column(won, d), 0.0, column(c, d) * grad * (hi - lo))
        d = d - column(rate, d) * down
        d = torch.copysign((d.abs() - self.beta).clamp(min=0), d)
        z = p.threat.project(p.x0 + d * (hi - lo), p.x0, torch.inf)
        x = (z + column(k / (k + 3), z) * (z - before)).clamp(lo, hi)
        succeeded = succeeded | won
        ends = (s.t + 1) % self.run == 0
        high, low = torch.where(ends & succeeded, c, high), torch.where(ends & ~succeeded, c, low)
        c = torch.where(ends, torch.where(high.isinf(), c * 10, (low + high) / 2), c)
        return (c, low, high, succeeded & ~ends, where(ends, p.x0, z)), where(ends, p.x0, x)


@recipe("Chen et al. 2018, arXiv 1709.04114", ("l1",), smallest=1.01)
def ead(
    steps: int = 50, searches: int = 6, step_size: float = 0.05, beta: float = 0.01, weight: float = 0.01
) -> ElasticNet:
    """EAD: elastic net, L1 and L2 at once, with a search over the weight of the loss."""
    check_counts(steps=steps, searches=searches)
    return ElasticNet(
        length=steps * (searches + 1), norms=("l1",), tail=steps, run=steps, size=step_size, beta=beta, weight=weight
    )


@dataclass(frozen=True, repr=False)
class Multiplier(Priced):
    """ALMA: RMSprop on size + P(constraint), with multiplier and penalty weight per row (Algorithm 1).

    The constraint is that minus the difference of logits ratio is below 0; P is the smooth penalty that the paper
    chose (P2). `reach` is how far the first step goes, in the norm and in units of the box.
    """

    reach: float | None = None
    loss: ClassVar[str] = "dlr"

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length)
        if self.reach is not None:
            check_size("reach", self.reach)

    def begin(self, p: Problem) -> Any:
        """RMSprop's two means [b, ...]; multiplier, weight, length of steps, constraint before, first success [b]."""
        assert isinstance(p.x0, Tensor)
        one = torch.ones_like(p.x0.reshape(len(p.x0), -1)[:, 0])
        return torch.ones_like(p.x0), torch.zeros_like(p.x0), one, one, one, one * torch.inf, one * self.length

    def move(self, p: Problem, s: PricedState, won: Tensor, value: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        """Return the next point, by the penalty's slope at the constraint."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        norm, (lo, hi) = p.threat.norm, p.threat.bounds
        square, mean, mu, rho, length, before, found = s.memory
        y, d = 1e-4 - value, (s.x - p.x0) / (hi - lo)
        found = torch.where(won & (found >= self.length), s.t.to(y.dtype), found)
        stuck = (s.t > 0) & ((s.t + 1) % 10 == 0) & (found >= self.length) & (y >= 0.95 * before)
        rho = torch.where(stuck, 1.2 * rho, rho)
        before = torch.where((s.t == 0) | ((s.t + 1) % 10 == 0), y, before)
        mu = torch.where(s.t > 0, (0.9 * mu + 0.1 * _slope(y, rho, mu)).clamp(1e-6, 1e12), mu)
        size = norm.size(d)
        near = d.sign() if norm.name == "l1" else d / column(size.clamp(min=1e-12), d)
        down = near - column(_slope(y, rho, mu), d) * grad * (hi - lo)
        reach = (0.1 if norm.name == "l2" else 0.5) if self.reach is None else self.reach
        square = 0.9 * square + 0.1 * down.square()
        step = down / (square.sqrt() + 1e-8)
        first, scaled = (norm.size(free(p, s.x, -v)) for v in (down, step))  # a huge first slope must not set the pace
        length = torch.where(s.t == 0, reach / torch.minimum(first, 3 * scaled).clamp(min=1e-12), length)
        mean = 0.9 * mean + step
        rest = (self.priced(p) - found).clamp(min=1)
        rate = length * 0.01 ** ((s.t - found).clamp(min=0) / rest)
        x = p.threat.project(p.x0 + (d - column(rate, d) * mean) * (hi - lo), p.x0, torch.inf)
        return (square, mean, mu, rho, length, before, found), x


def _slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """The derivative of the penalty P2 (Birgin, Castillo, Martinez 2005) at the constraint y [b]."""
    inside = mu / (1 - rho * y.clamp(max=0)).square()
    return torch.where(y >= 0, mu + 2 * mu * rho * y + 0.5 * rho.square() * y.square(), inside)


@recipe("Rony et al. 2021, arXiv 2011.11857", ("l2", "l1"), smallest=1.01)
def alma(steps: int = 300, reach: float | None = None) -> Multiplier:
    """ALMA: augmented Lagrangian; the price of a constraint that does not hold rises by itself."""
    check_counts(steps=steps)
    return Multiplier(length=steps, norms=("l2", "l1"), tail=max(1, steps // 5), reach=reach)


@dataclass(frozen=True, repr=False)
class PrimalDual(Priced):
    """PDPGD: proximal Adam on the size and the loss; their ratio follows whether the answer is wrong (Algorithm 2)."""

    size: float = 0.1
    dual: float = 0.1
    ratio: float = 0.01

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length)
        for name, value in (("step_size", self.size), ("dual_step_size", self.dual), ("ratio", self.ratio)):
            check_size(name, value)

    def begin(self, p: Problem) -> Any:
        """Adam's two means [b, ...], the logarithm of the loss's price [b] and the running share of the size [b]."""
        assert isinstance(p.x0, Tensor)
        price = torch.full_like(p.x0.reshape(len(p.x0), -1)[:, 0], -math.log(self.ratio))
        return torch.zeros_like(p.x0), torch.zeros_like(p.x0), price, torch.sigmoid(-price)

    def move(self, p: Problem, s: PricedState, won: Tensor, value: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        """Return the next point by one proximal step, with the size's price where Adam's scale is longest."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        mean, square, price, share = s.memory
        down = torch.where(column(won, grad), 0.0, -grad * (hi - lo) * column(torch.sigmoid(-value), grad))
        mean, square = 0.9 * mean + 0.1 * down, 0.999 * square + 0.001 * down.square()
        k = column(s.t + 1, mean).to(mean.dtype)
        scale = (square / (1 - 0.999**k)).sqrt() + 1e-8
        part = s.t.to(price.dtype) / self.priced(p)
        rate = self.size * 0.01**part
        r = (s.x - p.x0) / (hi - lo) - column(rate, mean) * mean / (1 - 0.9**k) / scale
        r = (p.threat.project(p.x0 + r * (hi - lo), p.x0, torch.inf) - p.x0) / (hi - lo)
        top = scale.flatten(1).amax(1)
        weight = share / (1 - share) * rate / top
        z = r
        for _ in range(5):  # the proximal step in Adam's metric, by proximal gradient steps (arXiv 1910.10094)
            z = _shrunk(p.threat.norm.name, (r - z) * scale / column(top, z) + z, weight)
        x = p.threat.project(p.x0 + z * (hi - lo), p.x0, torch.inf)
        pace = self.dual * (1 - 0.9 * part)
        price = (price + torch.where(won, -pace, pace)).clamp(-13.8, 13.8)
        return (mean, square, price, 0.9 * share + 0.1 * torch.sigmoid(-price)), x


def _shrunk(norm: str, v: Tensor, weight: Tensor) -> Tensor:
    """The proximal step of weight [b] times the norm at v [b, ...]."""
    w = column(weight, v)
    if norm == "l1":
        return torch.copysign((v.abs() - w).clamp(min=0), v)
    if norm == "l2":
        return v * (1 - w / column(L2.size(v).clamp(min=1e-12), v)).clamp(min=0)
    return v - L1.project(v, torch.zeros_like(v), weight, (-math.inf, math.inf))  # by Moreau: the dual ball


@recipe("Matyasko, Chau 2021, arXiv 2106.01538", ("linf", "l2", "l1"), smallest=1.01)
def pdpgd(steps: int = 300, step_size: float = 0.1, dual_step_size: float = 0.1, ratio: float = 0.01) -> PrimalDual:
    """PDPGD: descends on size and loss together; the price of the loss falls where the answer is wrong."""
    check_counts(steps=steps)
    return PrimalDual(
        length=steps,
        norms=("linf", "l2", "l1"),
        tail=max(1, steps // 5),
        size=step_size,
        dual=dual_step_size,
        ratio=ratio,
    )
