"""First-order attacks: one class, seven choices; FGSM to APGD are one-line recipes of it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._rows import Batch
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.threat import Ball, Threat
from ..errors import InputError
from .parts import (
    Aim,
    Climb,
    Constant,
    Cosine,
    Inertia,
    Plain,
    Plateau,
    Raw,
    Sense,
    Start,
    check_counts,
    check_loss,
    climb,
    unfit_ball,
)


@dataclass
class GradientState:
    """The rows' iterate x [b, ...], step counter t [b], wanted class [b] or None, and the parts' memories."""

    t: Tensor
    x: Tensor
    wanted: Tensor | None
    move: Any
    rate: Any


@dataclass(frozen=True, repr=False)
class GradientAttack(Attack[GradientState]):
    """Climb a loss by projected gradient steps.

    `length` steps of one forward and one backward pass per row; the point that the last step reaches costs one more
    forward pass. `tries` restarts, each with its own luck (and, with `aim`, its own class).
    """

    length: int = 20
    tries: int = 1
    loss: str = "ce"
    aim: Aim = field(default_factory=Aim)
    start: Start = field(default_factory=lambda: Start("uniform"))
    move: Plain = field(default_factory=Plain)
    rate: Constant = field(default_factory=lambda: Constant(0.1))
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    paired: bool = True
    sense: Sense = field(default_factory=Sense, metadata={"quiet": True})

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_loss(self.loss)
        check_counts(steps=self.length, restarts=self.tries)

    @property
    def queries_per_step(self) -> int:
        """Forward passes per row and step."""
        return self.sense.queries

    @property
    def steps(self) -> int:
        """Gradients per row and restart."""
        return self.length

    def restarts(self, classes: int) -> int:
        """Tries per example; with an aim never more than there are wrong classes."""
        return min(self.tries, max(classes - 1, 1)) if self.aim.targets else self.tries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Balls with a finite eps in the recipe's norms on tensors; aims need a third class."""
        if reason := unfit_ball(x, threat, self.norms, bounded=True):
            return reason
        if self.aim.targets and classes == 2:
            return "with two classes a targeted attack is the untargeted one"
        return ""

    def init(self, p: Problem) -> GradientState:
        """Start fresh rows."""
        assert isinstance(p.threat, Ball)
        x = self.start.point(p)
        t = torch.zeros_like(p.y)
        return GradientState(t, x, self.aim.wanted(p), self.move.init(p, x), self.rate.under(p.threat).init(p, x))

    def step(self, p: Problem, s: GradientState) -> tuple[GradientState, Trial]:
        """Look at x, then move."""
        assert isinstance(p.threat, Ball)
        paired = self.paired and p.to is None  # a goal asks to beat every class, not the label alone

        def make(y: Tensor, wanted: Tensor | None) -> Climb:
            return climb(self.loss, y, wanted, paired=paired)

        answer, value, grad = self.sense.gradient(p, s.x, s.t, make, s.wanted)
        rate = self.rate.under(p.threat)
        memory, x, grad, length = rate.update(p, s.rate, s.t, self.length, s.x, value.to(s.x.dtype), grad)
        move, x = rate.mover(self.move).go(p, s.move, s.t, x, grad, length * p.threat.eps)
        return GradientState(s.t + 1, x, s.wanted, move, memory), Trial(s.x, answer)

    def last(self, p: Problem, s: GradientState) -> Tensor:
        """Return the iterate after the last step."""
        return s.x


def _classes(targets: int) -> Aim:
    check_counts(targets=targets)
    return Aim(targets)


def _rate(schedule: str, size: float | None, steps: int) -> Constant:
    if schedule not in ("constant", "cosine"):
        raise InputError(f"There is no schedule {schedule!r}; use constant or cosine.")
    check_counts(steps=steps)
    if schedule == "cosine":
        return Cosine(1.0 if size is None else size)
    return Constant(2.5 / steps if size is None else size)


@recipe("Goodfellow, Shlens, Szegedy 2014, arXiv 1412.6572", ("linf", "l2"))
def fgsm(loss: str = "ce") -> GradientAttack:
    """FGSM: one step of length eps along the sign of the gradient (L2: along the gradient)."""
    return GradientAttack(length=1, loss=loss, start=Start("clean"), rate=Constant(1.0), norms=("linf", "l2"))


@recipe("Szegedy et al. 2013, arXiv 1312.6199; Simonyan et al. 2013, arXiv 1312.6034", ("linf", "l2"))
def pixel_gradient(steps: int = 100, step_size: float = 0.1, loss: str = "ce") -> GradientAttack:
    """Gradient descent on the pixels: towards the wanted class, or away from the label, along the plain gradient."""
    return GradientAttack(
        length=steps, loss=loss, start=Start("clean"), move=Raw(), rate=Constant(step_size), norms=("linf", "l2")
    )


@recipe("Kurakin, Goodfellow, Bengio 2016, arXiv 1607.02533", ("linf", "l2"))
def bim(steps: int = 10, step_size: float = 0.25, loss: str = "ce") -> GradientAttack:
    """BIM (iterative FGSM): FGSM repeated from the clean input, step_size in units of eps."""
    return GradientAttack(length=steps, loss=loss, start=Start("clean"), rate=Constant(step_size), norms=("linf", "l2"))


@recipe("Madry et al. 2018, arXiv 1706.06083", ("linf", "l2", "l1"))
def pgd(
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "ce",
    start: str = "uniform",
    schedule: str = "constant",
    sense: str = "exact",
) -> GradientAttack:
    """PGD: projected gradient steps from a random point of the ball.

    `step_size` is in units of eps: 2.5 / steps by default, or with schedule='cosine' 1, falling to 0.
    """
    return GradientAttack(
        length=steps,
        tries=restarts,
        loss=loss,
        start=Start(start),
        rate=_rate(schedule, step_size, steps),
        sense=Sense(sense),
    )


@recipe("Madry et al. 2018, arXiv 1706.06083; targets as in Croce, Hein 2020, arXiv 2003.01690", ("linf", "l2", "l1"))
def pgd_targeted(
    steps: int = 20,
    targets: int = 9,
    step_size: float | None = None,
    loss: str = "dlr",
    start: str = "uniform",
    schedule: str = "constant",
    sense: str = "exact",
) -> GradientAttack:
    """Targeted PGD: one run towards each of the most likely wrong classes."""
    rate = _rate(schedule, step_size, steps)
    return GradientAttack(
        length=steps,
        tries=targets,
        loss=loss,
        aim=_classes(targets),
        start=Start(start),
        rate=rate,
        sense=Sense(sense),
    )


@recipe("Croce, Hein 2020, arXiv 2003.01690; L1: 2021, arXiv 2103.01208", ("linf", "l2", "l1"))
def apgd(
    steps: int = 100, restarts: int = 1, loss: str = "ce", start: str = "uniform", sense: str = "exact"
) -> GradientAttack:
    """APGD: PGD with momentum whose step halves where the loss stops growing; no step size to choose."""
    return GradientAttack(
        length=steps,
        tries=restarts,
        loss=loss,
        start=Start(start),
        move=Inertia(),
        rate=Plateau(),
        sense=Sense(sense),
    )


@recipe("Croce, Hein 2020, arXiv 2003.01690 (APGD-T)", ("linf", "l2", "l1"))
def apgd_targeted(
    steps: int = 100, targets: int = 9, loss: str = "dlr", start: str = "uniform", sense: str = "exact"
) -> GradientAttack:
    """Targeted APGD: one run towards each of the most likely wrong classes."""
    return GradientAttack(
        length=steps,
        tries=targets,
        loss=loss,
        aim=_classes(targets),
        start=Start(start),
        move=Inertia(),
        rate=Plateau(),
        sense=Sense(sense),
    )
