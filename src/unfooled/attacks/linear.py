"""Attacks that step onto the linearised boundary: DeepFool, SuperDeepFool, FAB and targeted FAB.

Each asks the door for differences of scores and their gradients; the step onto the nearest of the hyperplanes, inside
the box, is `Norm.reach`.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._rows import Batch, column, where
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.oracle import Answer
from ..core.threat import Ball, Threat
from .parts import Aim, check_counts, check_size, some, unfit_ball

_SHORT = 10  # steps of DeepFool that the box may cut off
_PATIENCE = 3  # projections in a row without gain that end SuperDeepFool
_GAIN = 1e-4  # a projection that brings less than this share no longer pays


@dataclass
class LinearState:
    """Per row: step counter t [b], the point to show next x [b, ...], and whether it is done, bool [b]."""

    t: Tensor
    x: Tensor
    done: Tensor


@dataclass
class SeekState(LinearState):
    """Per row also the distance [b] of the nearest success, the wanted class [b], and successes [b] without gain."""

    best: Tensor
    wanted: Tensor | None = None
    idle: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Linear(Attack[LinearState]):
    """What these attacks share: norms, how many classes are looked at, and the planes around a point."""

    length: int = 50
    classes: int = 10
    norms: tuple[str, ...] = ("linf", "l2")
    inside = False  # the way to the boundary may lead outside the ball and back

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, classes=self.classes)

    @property
    def steps(self) -> int:
        """Looks at the planes per row and restart."""
        return self.length

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Norm balls, with or without an eps, on tensors."""
        return unfit_ball(x, threat, self.norms)

    def init(self, p: Problem) -> LinearState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor)
        return LinearState(torch.zeros_like(p.y), p.x0, torch.zeros_like(p.y, dtype=torch.bool))

    def finished(self, p: Problem, s: LinearState) -> Tensor:
        """Return which rows have crossed the boundary, bool [b]."""
        return s.done

    def planes(self, p: Problem, x: Tensor, wanted: Tensor | None = None) -> tuple[Answer, Tensor, Tensor]:
        """Return the answer at x, by how much the classes beat the label z [b, c], and the gradients [b, c, ...].

        The classes are the likeliest wrong ones on the clean input, `classes` with the label. With a `wanted` class [b]
        it is the only one, and with a goal it has to beat the best of the others.
        """
        if p.to is not None:
            to = p.to.view(-1, 1)
            return p.oracle.jacobian(x, to, lambda scores: scores.scatter(1, to, -torch.inf).argmax(1))
        if wanted is not None:
            return p.oracle.jacobian(x, wanted.view(-1, 1), p.y)

        def likeliest(scores: Tensor) -> Tensor:
            clean = scores if p.clean is None else p.clean.to(scores.dtype)
            others = clean.scatter(1, p.y.view(-1, 1), -torch.inf)
            return others.topk(max(min(self.classes, scores.shape[1]) - 1, 1), dim=1).indices

        return p.oracle.jacobian(x, likeliest, p.y)


def _nearest(p: Problem, x: Tensor, z: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return z [b] and gradient [b, ...] of the class whose linearised boundary is nearest to x, inside the box.

    A plane that the box does not let x reach counts as far away as the whole box and more.
    """
    assert isinstance(p.threat, Ball)
    if z.shape[1] == 1:
        return z[:, 0], grads[:, 0]
    ball = p.threat
    free = ball.steepest(grads.flatten(0, 1), x.repeat_interleave(z.shape[1], 0)).view_as(grads)
    rise = (free * grads).flatten(2).sum(2)  # the dual norm of each gradient, [b, c]
    far = torch.where(rise > 0, z.abs() / rise.clamp(min=torch.finfo(rise.dtype).tiny), torch.inf)
    k = far.argmin(1)
    rows = torch.arange(len(x), device=x.device)
    return z[rows, k], grads[rows, k]


def _onto(p: Problem, x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Return the smallest step [b, ...] from x onto the plane z + <w, d> = 0, from either side, inside the box."""
    assert isinstance(p.threat, Ball)
    ball = p.threat
    w = ball.free(w)
    size = w.flatten(1).abs().amax(1).clamp(min=torch.finfo(w.dtype).tiny)
    side = torch.where(z > 0, -1.0, 1.0) / size  # scaled: gradients may be tiny
    return ball.norm.reach(w * column(side, w), z.abs() / size, x, ball.bounds)


@dataclass(frozen=True, repr=False)
class DeepFool(Linear):
    """Newton steps onto the nearest linearised boundary until the class changes."""

    overshoot: float = 0.005

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, classes=self.classes)
        check_size("overshoot", self.overshoot)

    def step(self, p: Problem, s: LinearState) -> tuple[LinearState, Trial]:
        """Look, and go on where the class is still the old one."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        answer, z, grads = self.planes(p, s.x)
        done = s.done | (advantage(answer, p.y, p.to) > 0)
        # the overshoot is one of the whole change: taken of each step alone, Newton's last ones end on the boundary
        z, w = _nearest(p, s.x, z, grads)
        # as published the box cuts the step off: it falls short, and the planes are looked at anew, which ends nearer;
        # where that takes long, the step goes on inside the box
        unit = p.threat.steepest(w, s.x)
        rise = (unit * w).flatten(1).sum(1)
        cut = column(z.abs() / rise.clamp(min=torch.finfo(rise.dtype).tiny), unit) * unit
        late = s.t >= _SHORT
        total = s.x - p.x0 + (where(late, _onto(p, s.x, z, w), cut) if some(late) else cut)
        x = (p.x0 + (1 + self.overshoot) * total).clamp(*p.threat.bounds)
        return LinearState(s.t + 1, where(done, s.x, x), done), Trial(s.x, answer)


@dataclass(frozen=True, repr=False)
class SuperDeepFool(DeepFool):
    """DeepFool whose points on the boundary are projected onto its normal through the original."""

    norms: tuple[str, ...] = ("l2",)
    overshoot: float = 0.003

    def init(self, p: Problem) -> SeekState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor)
        no, far = torch.zeros_like(p.y, dtype=torch.bool), torch.full_like(p.x0.flatten(1)[:, 0], torch.inf)
        return SeekState(torch.zeros_like(p.y), p.x0, no, far, idle=torch.zeros_like(p.y))

    def step(self, p: Problem, s: LinearState) -> tuple[LinearState, Trial]:
        """Step onto the boundary; where it is crossed, back along its normal there, seen from the original."""
        assert isinstance(s, SeekState) and isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        assert s.idle is not None
        answer, z, grads = self.planes(p, s.x)
        crossed = advantage(answer, p.y, p.to) > 0
        z, w = _crossing(p, s.x, z, grads, crossed)
        change = (s.x - p.x0).flatten(1)
        # the plane through the crossed boundary as seen from the original: its nearest point lies along the normal
        gap = (w.flatten(1) * change).sum(1) - z
        unit = w.flatten(1).abs().amax(1).clamp(min=torch.finfo(w.dtype).tiny)
        along = p.threat.norm.reach(p.threat.free(w) / column(unit, w), gap / unit, p.x0, p.threat.bounds)
        total = where(crossed, along, s.x - p.x0 + _onto(p, s.x, z, w))
        x = (p.x0 + (1 + self.overshoot) * total).clamp(*p.threat.bounds)
        size = change.norm(dim=1)
        gained = size <= (1 - _GAIN) * s.best
        idle = torch.where(crossed, torch.where(gained, 0, s.idle + 1), s.idle)
        best = torch.where(crossed, s.best.minimum(size), s.best)
        return SeekState(s.t + 1, x, idle >= _PATIENCE, best, idle=idle), Trial(s.x, answer)


def _crossing(p: Problem, x: Tensor, z: Tensor, grads: Tensor, crossed: Tensor) -> tuple[Tensor, Tensor]:
    """Return z [b] and gradient [b, ...] of the class that leads where it was crossed, elsewhere of the nearest."""
    near_z, near_w = _nearest(p, x, z, grads)
    top = z.argmax(1)
    rows = torch.arange(len(x), device=x.device)
    return torch.where(crossed, z[rows, top], near_z), where(crossed, grads[rows, top], near_w)


@dataclass(frozen=True, repr=False)
class Fab(Linear):
    """FAB: steps onto the linearised boundary, drawn towards the original, and back from every success."""

    length: int = 100
    tries: int = 1
    aim: Aim = field(default_factory=Aim)
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    alpha: float = 0.1  # the most that the original draws
    eta: float = 1.05  # how far beyond the plane a step goes
    beta: float = 0.9  # what is left of the change after a success

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, restarts=self.tries, classes=self.classes)

    def restarts(self, classes: int) -> int:
        """Tries per example; with an aim never more than there are wrong classes."""
        return min(self.tries, max(classes - 1, 1)) if self.aim.targets else self.tries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Norm balls on tensors; aims need a third class."""
        if self.aim.targets and classes == 2:
            return "with two classes a targeted attack is the untargeted one"
        return super().unfit(x, threat, classes)

    def init(self, p: Problem) -> SeekState:
        """Start at the original; untargeted restarts start nearby."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        x = p.x0
        if self.tries > 1 and not self.aim.targets:
            radius = 0.5 * (p.threat.eps if p.threat.bounded else _reached(p))
            x = where(p.restart > 0, p.threat.sample(p.noise, 0, p.x0, radius), x)
        no = torch.zeros_like(p.y, dtype=torch.bool)
        wanted = None if p.to is not None else self.aim.wanted(p)
        return SeekState(torch.zeros_like(p.y), x, no, torch.full_like(x.flatten(1)[:, 0], torch.inf), wanted)

    def step(self, p: Problem, s: LinearState) -> tuple[LinearState, Trial]:
        """Look at x; step onto the nearest plane from there and from the original, and mix the two."""
        assert isinstance(s, SeekState) and isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        ball = p.threat
        answer, z, grads = self.planes(p, s.x, s.wanted)
        won = advantage(answer, p.y, p.to) > 0
        size = ball.norm.size(s.x - p.x0)
        best = torch.where(won, torch.minimum(s.best, size), s.best)
        z, w = _crossing(p, s.x, z, grads, won & (z.shape[1] > 1))
        # after a success nearer to the original than any before, go back towards it; the plane moves along
        back = column(torch.where(won & (size < s.best), self.beta, 1.0), s.x)
        x = p.x0 + back * (s.x - p.x0)
        z = z + (w * (x - s.x)).flatten(1).sum(1)
        mine = _onto(p, x, z, w)
        theirs = _onto(p, p.x0, z + (w * (p.x0 - x)).flatten(1).sum(1), w)
        a, b = ball.norm.size(mine), ball.norm.size(theirs)
        share = column((a / (a + b).clamp(min=torch.finfo(a.dtype).tiny)).clamp(max=self.alpha), x)
        moved = (1 - share) * (x + self.eta * mine) + share * (p.x0 + self.eta * theirs)
        x = ball.project(moved, p.x0, torch.inf)
        return replace(s, t=s.t + 1, x=x, best=best), Trial(s.x, answer)


def _reached(p: Problem) -> Tensor:
    """Return how far away the best point so far is, [b]; at first a tenth of the box in every value."""
    assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor) and isinstance(p.warm, Tensor)
    far = p.threat.norm.size(p.warm - p.x0)
    lo, hi = p.threat.bounds
    return torch.where(far > 0, far, p.threat.norm.size(torch.full_like(p.x0, 0.1 * (hi - lo))))


@recipe(
    "Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv 1511.04599",
    ("linf", "l2"),
    smallest=1.01,
)
def deepfool(steps: int = 50, classes: int = 10, overshoot: float = 0.005) -> DeepFool:
    """DeepFool: Newton steps onto the nearest linearised boundary; one forward, `classes` - 1 backward a step.

    The published overshoot is 0.02; as it is taken of the whole change here, a smaller one crosses as surely.
    """
    return DeepFool(length=steps, classes=classes, overshoot=overshoot)


@recipe("Abdollahpoor et al. 2023, arXiv 2303.12481", ("l2",), smallest=1.01)
def superdeepfool(steps: int = 50, classes: int = 10, overshoot: float = 0.003) -> SuperDeepFool:
    """SuperDeepFool: DeepFool alternating with projections onto the boundary's normal through the original."""
    return SuperDeepFool(length=steps, classes=classes, overshoot=overshoot)


@recipe("Croce, Hein 2020, arXiv 1907.02044", ("linf", "l2", "l1"), smallest=1.01)
def fab(steps: int = 100, restarts: int = 1, classes: int = 10) -> Fab:
    """FAB: steps onto the linearised boundary, drawn towards the original, for the smallest change."""
    return Fab(length=steps, tries=restarts, classes=classes)


@recipe("Croce, Hein 2020, arXiv 1907.02044 (FAB-T)", ("linf", "l2", "l1"), smallest=1.01)
def fab_targeted(steps: int = 100, targets: int = 9) -> Fab:
    """Targeted FAB: one run towards each of the most likely wrong classes, one backward pass a step."""
    check_counts(targets=targets)
    return Fab(length=steps, tries=targets, aim=Aim(targets))
