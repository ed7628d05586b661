"""Minimum-norm attacks that weigh the size of the change against a loss: L-BFGS (Szegedy) and Carlini-Wagner.

Both run the same rounds: minimise for one weight, look whether anything was found, halve the bracket of weights. The
best point of all rounds is then pulled towards the original, into ever smaller balls. Rows are in different rounds at
the same time.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import losses
from .._rows import Batch, column, where
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from .parts import check_counts, check_size, unfit_ball

_PULLS = 10  # bisections between the original and the best point


@dataclass
class PenaltyState:
    """Per row: step t, step within the round i and round r [b]; the point to show next x [b, ...].

    `weight` [b] and the largest one that failed `low` and smallest one that did `high`; the nearest success `best`
    [b, ...] with its `size` [b]; whether this round had one, `won` bool [b]; the share of it known to fail,
    `short` [b]; the pulls so far [b]; and the minimiser's own memory.
    """

    t: Tensor
    i: Tensor
    r: Tensor
    x: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor
    best: Tensor
    size: Tensor
    won: Tensor
    short: Tensor
    pulls: Tensor
    inner: Any


@dataclass(frozen=True, repr=False)
class Penalty(Attack[PenaltyState]):
    """`searches` rounds of `length` steps, one forward and one backward pass each, and a few pulls at the end."""

    length: int = 100
    searches: int = 9
    norms: tuple[str, ...] = ("l2",)
    inside = False

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, searches=self.searches)

    @property
    def steps(self) -> int:
        """Gradients per row."""
        return self.length * self.searches + _PULLS

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Norm balls, with or without an eps, on tensors."""
        return unfit_ball(x, threat, self.norms)

    def init(self, p: Problem) -> PenaltyState:
        """Start at the original; the first step finds the first weight."""
        assert isinstance(p.x0, Tensor)
        count, zero = torch.zeros_like(p.y), torch.zeros_like(p.x0.flatten(1)[:, 0])
        far, no = zero + torch.inf, torch.zeros_like(p.y, dtype=torch.bool)
        inner = self.fresh(p, p.x0)
        return PenaltyState(count, count, count, p.x0, zero, zero, far, p.x0, far, no, zero, count, inner)

    def finished(self, p: Problem, s: PenaltyState) -> Tensor:
        """Return which rows are through their rounds and pulls, bool [b]; where nothing was found none are made."""
        return (s.r >= self.searches) & ((s.pulls >= _PULLS) | s.size.isinf())

    def step(self, p: Problem, s: PenaltyState) -> tuple[PenaltyState, Trial]:
        """Look at x; minimise further, or begin the next round, or pull."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        answer, value, grad = p.oracle.gradient(s.x, lambda scores: self.climb(p, scores))
        grad = p.threat.free(grad)
        value = value.to(grad.dtype)
        lead = advantage(answer, p.y, p.to)
        won, size = lead > 0, p.threat.norm.size(s.x - p.x0)
        nearer = won & (size < s.size)
        best, found = where(nearer, s.x, s.best), torch.where(nearer, size, s.size)
        weight = torch.where(s.t == 0, self.first(p, -lead.to(grad.dtype), grad), s.weight)

        inner, x, still = self.descend(p, replace(s, weight=weight), value, grad)
        pulling = s.r >= self.searches
        over = ~pulling & ((s.i + 1 >= self.length) | still)
        any_won = s.won | (won & self.within(p, weight, size))
        low = torch.where(over & ~any_won, weight, s.low)
        high = torch.where(over & any_won, weight, s.high)
        # both ends known: between them; else four times as much, or a quarter
        between = torch.where(high.isinf(), low * 4, torch.where(low > 0, (low * high).sqrt(), high / 4))
        r = s.r + over
        # the share of the way to the best point at which the next pull looks
        short = torch.where(pulling, torch.where(nearer, s.short / ((1 + s.short) / 2), (1 + s.short) / 2), 0.0)
        pulled = p.threat.project(best, p.x0, (1 + short) / 2 * found)
        begin = self.begin(p, between, best, found)
        inner = where(over, self.fresh(p, begin), inner)
        x = where(r >= self.searches, pulled, where(over, begin, x))
        trial = Trial(s.x, answer)
        s = PenaltyState(
            t=s.t + 1,
            i=torch.where(over, 0, s.i + 1),
            r=r,
            x=x,
            weight=torch.where(over, between, weight),
            low=low,
            high=high,
            best=best,
            size=found,
            won=any_won & ~over,
            short=short,
            pulls=s.pulls + pulling,
            inner=inner,
        )
        return s, trial

    def climb(self, p: Problem, scores: Tensor) -> Tensor:
        """Return what to climb, [b]."""
        raise NotImplementedError

    def first(self, p: Problem, gap: Tensor, grad: Tensor) -> Tensor:
        """Return the first weight [b]: the one that would do if the target were linear, from the margin still to go.

        Minimising |d|^2 - weight * <g, d> ends at d = weight * g / 2, which gains the gap where weight = 2 gap / |g|^2.
        """
        size = grad.flatten(1).square().sum(1)
        return 2 * gap.clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).tiny) + torch.finfo(size.dtype).tiny

    def within(self, p: Problem, weight: Tensor, size: Tensor) -> Tensor | bool:
        """Return whether a success of this size says that the weight is enough, bool [b]."""
        return True

    def begin(self, p: Problem, weight: Tensor, best: Tensor, size: Tensor) -> Tensor:
        """Return where a round begins, [b, ...]."""
        assert isinstance(p.x0, Tensor)
        return p.x0

    def fresh(self, p: Problem, x: Tensor) -> Any:
        """Return the minimiser's memory at the beginning of a round."""
        raise NotImplementedError

    def descend(self, p: Problem, s: PenaltyState, value: Tensor, grad: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Return the minimiser's memory, the next point [b, ...], and where nothing is gained any more, bool [b]."""
        raise NotImplementedError


@dataclass
class QuasiNewton:
    """Per row: the accepted point x with its objective f [b] and gradient g [b, d], the direction and its length.

    `s`, `y` [b, m, d] are the last m moves and changes of the gradient, `rho` [b, m] their inverse products (0: none).
    """

    x: Tensor
    f: Tensor
    g: Tensor
    direction: Tensor
    length: Tensor
    s: Tensor
    y: Tensor
    rho: Tensor


@dataclass(frozen=True, repr=False)
class LBFGS(Penalty):
    """Szegedy's attack: the cross-entropy of being wrong plus the squared L2 size, by L-BFGS within the box."""

    length: int = 20
    memory: int = 6

    def climb(self, p: Problem, scores: Tensor) -> Tensor:
        """Return the log-probability of any other class, or of the wanted one, [b]."""
        others = math.log(max(scores.shape[1] - 1, 1))
        if p.to is not None:
            return -softplus(-losses.cross_entropy_targeted(scores, p.to) + others)
        return -softplus(-losses.cross_entropy(scores, p.y) - others)

    def fresh(self, p: Problem, x: Tensor) -> QuasiNewton:
        """Nothing is known of the curvature."""
        flat = x.flatten(1)
        zero = torch.zeros_like(flat)
        pairs = torch.zeros_like(flat).unsqueeze(1).repeat(1, self.memory, 1)
        far = torch.full_like(flat[:, 0], torch.inf)
        return QuasiNewton(flat, far, zero, zero, torch.ones_like(far), pairs, pairs, torch.zeros_like(pairs[..., 0]))

    def descend(self, p: Problem, s: PenaltyState, value: Tensor, grad: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Accept the point where it is lower (Armijo) and go on along a new direction, or halve the step."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        q: QuasiNewton = s.inner
        x, origin = s.x.flatten(1), p.x0.flatten(1)
        weight = s.weight.view(-1, 1)
        f = (x - origin).square().sum(1) - s.weight * value
        g = 2 * (x - origin) - weight * grad.flatten(1)
        move, turn = x - q.x, g - q.g
        gain = torch.where(q.f.isinf(), 0.0, (q.g * move).sum(1))
        lower = q.f.isinf() | (f <= q.f + 1e-4 * gain)
        curved = (move * turn).sum(1)
        keep = (lower & q.f.isfinite() & (curved > 1e-10 * turn.square().sum(1))).view(-1, 1)
        inverse = torch.where(keep[:, 0], 1 / torch.where(keep[:, 0], curved, 1.0), 0.0)
        moves, turns = (
            torch.where(keep[..., None], torch.cat([old[:, 1:], new[:, None]], 1), old)
            for old, new in ((q.s, move), (q.y, turn))
        )
        rho = torch.where(keep, torch.cat([q.rho[:, 1:], inverse.view(-1, 1)], 1), q.rho)
        accepted = QuasiNewton(x, f, g, q.direction, torch.ones_like(f), moves, turns, rho)
        q = where(lower, accepted, replace(q, length=q.length / 2))
        lo, hi = p.threat.bounds
        held = ((q.x <= lo) & (q.g > 0)) | ((q.x >= hi) & (q.g < 0))  # at a wall, and the descent leads through it
        fresh = torch.where(held, 0.0, _two_loops(q, torch.where(held, 0.0, q.g)))
        uphill = (fresh * q.g).sum(1, keepdim=True) >= 0
        fresh = torch.where(uphill, torch.where(held, 0.0, -q.g / 2), fresh)
        q = replace(q, direction=torch.where(lower.view(-1, 1), fresh, q.direction))
        to = (q.x + q.length.view(-1, 1) * q.direction).clamp(lo, hi)
        tiny = 1e-4 * (q.x - origin).norm(dim=1) + 1e-7 * (hi - lo)
        return q, to.view_as(p.x0), (to - q.x).norm(dim=1) <= tiny


def _two_loops(q: QuasiNewton, g: Tensor) -> Tensor:
    """Return minus the inverse Hessian times g, [b, d]; the first guess is 1/2, the curvature of the squared size."""
    v, shares = g, []
    for k in reversed(range(q.rho.shape[1])):
        a = q.rho[:, k] * (q.s[:, k] * v).sum(1)
        shares.append(a)
        v = v - a.view(-1, 1) * q.y[:, k]
    size = q.y[:, -1].square().sum(1) * q.rho[:, -1]
    v = v * torch.where(size > 0, 1 / size.clamp(min=torch.finfo(size.dtype).tiny), 0.5).view(-1, 1)
    for k, a in zip(range(q.rho.shape[1]), reversed(shares), strict=True):
        v = v + q.s[:, k] * (a - q.rho[:, k] * (q.y[:, k] * v).sum(1)).view(-1, 1)
    return -v


@dataclass
class Moments:
    """Adam's two running means of the gradient, [b, ...]."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, repr=False)
class CarliniWagner(Penalty):
    """Carlini and Wagner: the hinge of the margin, weighed against the size (L2) or what exceeds a limit (Linf).

    By Adam, with steps that fall to 0 within a round, on the points themselves: through the published change of
    variables (tanh) values at a wall of the box have no gradient and never leave it.
    """

    size: float = 0.02
    norms: tuple[str, ...] = ("linf", "l2")

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, searches=self.searches)
        check_size("step_size", self.size)

    def climb(self, p: Problem, scores: Tensor) -> Tensor:
        """Return the margin, [b]."""
        return losses.margin(scores, p.y) if p.to is None else losses.margin_targeted(scores, p.to)

    def first(self, p: Problem, gap: Tensor, grad: Tensor) -> Tensor:
        """Return the first weight (L2) or limit (Linf), [b], from the linearised distance."""
        assert isinstance(p.threat, Ball)
        if p.threat.norm.name == "l2":
            return 1.5 * super().first(p, gap, grad)
        rise = grad.flatten(1).abs().sum(1)
        return gap.clamp(min=0) / rise.clamp(min=torch.finfo(rise.dtype).tiny) + torch.finfo(rise.dtype).tiny

    def within(self, p: Problem, weight: Tensor, size: Tensor) -> Tensor | bool:
        """Return whether a success of this size keeps the limit (Linf), bool [b]."""
        assert isinstance(p.threat, Ball)
        return size <= 1.02 * weight if p.threat.norm.name == "linf" else True

    def fresh(self, p: Problem, x: Tensor) -> Moments:
        """Nothing has been seen."""
        return Moments(torch.zeros_like(x), torch.zeros_like(x))

    def descend(self, p: Problem, s: PenaltyState, value: Tensor, grad: Tensor) -> tuple[Any, Tensor, Tensor]:
        """One step of Adam on the size and, where the goal is not reached, the weighted hinge."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        change = s.x - p.x0
        hinge = column(value <= 0, grad) * grad
        if p.threat.norm.name == "l2":
            g = 2 * change - column(s.weight, grad) * hinge
        else:
            most = hinge.flatten(1).abs().amax(1).clamp(min=torch.finfo(grad.dtype).tiny)
            g = change.sign() * (change.abs() > column(s.weight, change)) - 0.5 * hinge / column(most, grad)
        m = Moments(torch.lerp(g, s.inner.first, 0.9), torch.lerp(g.square(), s.inner.second, 0.999))
        i = column(s.i + 1, g).to(g.dtype)
        unit = (m.first / (1 - 0.9**i)) / ((m.second / (1 - 0.999**i)).sqrt() + torch.finfo(g.dtype).tiny)
        lo, hi = p.threat.bounds
        fall = 0.5 * (1 + torch.cos(i * (math.pi / self.length)))
        x = (s.x - self.size * (hi - lo) * fall * unit).clamp(lo, hi)
        return m, x, torch.zeros_like(s.won)


@recipe("Szegedy et al. 2013, arXiv 1312.6199", ("l2",), smallest=1.01)
def lbfgs(steps: int = 20, searches: int = 9) -> LBFGS:
    """L-BFGS: the smallest change by box-constrained L-BFGS, with a line search over the weight of the loss."""
    return LBFGS(length=steps, searches=searches)


@recipe(
    "Carlini, Wagner 2017, arXiv 1608.04644",
    ("linf", "l2"),
    reason="a hundred steps of Adam end 1 to 3% away from the optimum of their round",
    smallest=1.03,
)
def cw(steps: int = 100, searches: int = 9, step_size: float = 0.02) -> CarliniWagner:
    """Carlini-Wagner: the margin's hinge against the size of the change, `searches` rounds of `steps` of Adam."""
    return CarliniWagner(length=steps, searches=searches, size=step_size)
