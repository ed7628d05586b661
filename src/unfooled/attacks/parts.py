"""The choices that a first-order attack makes, each a frozen part with explicit per-row state.

loss (what to climb) and aim (towards which class), start (from where), move (how steps combine), rate (how long a
step is, in units of eps). Shapes: x and gradients [b, ...], everything per row [b].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import losses
from .._rows import Batch, column, where
from ..core.attack import Problem
from ..core.oracle import Answer
from ..core.threat import Ball, Threat
from ..errors import InputError, nearest

Climb = Callable[[Tensor], Tensor]

LOSSES = ("ce", "margin", "dlr")


def check_loss(name: str) -> str:
    """Return `name` when there is such a loss; raises InputError."""
    if name not in LOSSES:
        raise InputError(f"There is no loss {name!r}; use one of {', '.join(LOSSES)}.{nearest(str(name), LOSSES)}")
    return name


def check_counts(**counts: Any) -> None:
    """Raise InputError for a number of steps, restarts, targets or queries that is no whole number from 1 on."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")


def check_size(name: str, value: Any, least: float = 0.0) -> None:
    """Raise InputError for a size that is no finite number above `least`."""
    if not isinstance(value, int | float) or not least < value < math.inf:
        raise InputError(f"{name} must be a number larger than {least:g}, not {value!r}.")


def unfit_ball(x: Batch, threat: Threat, norms: Sequence[str], *, what: str = "step", bounded: bool = False) -> str:
    """Return why an attack on tensors in balls of these norms (`bounded`: of a finite eps) does not apply, or ""."""
    if not isinstance(threat, Ball) or not isinstance(x, Tensor):
        return "needs inputs that are tensors and a norm ball"
    if threat.norm.name not in norms:
        return f"has no {what} for {threat.norm.symbol}; it takes {', '.join(norms)}"
    return "needs a finite eps" if bounded and not threat.bounded else ""


def some(rows: Tensor) -> bool:
    """Whether any of the rows bool [b] may hold; the host asks only where that is no synchronisation."""
    return rows.device.type != "cpu" or bool(rows.any())


def climb(loss: str, y: Tensor, wanted: Tensor | None, *, paired: bool) -> Climb:
    """Return scores [b, k] -> [b] to climb: away from y, or towards `wanted` (`paired`: against y alone, not all)."""
    if wanted is None:
        away = {"ce": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}[loss]
        return lambda scores: away(scores, y)
    if loss == "ce":
        return lambda scores: losses.cross_entropy_targeted(scores, wanted)
    if loss == "dlr":
        return lambda scores: losses.dlr_targeted(scores, wanted, y)
    if paired:
        return lambda scores: losses.difference(scores, wanted, y)
    return lambda scores: losses.margin_targeted(scores, wanted)


@dataclass(frozen=True)
class Aim:
    """Towards which class: none (0), or at restart r the r-th most likely wrong class of `targets` ones.

    Most likely on the clean input, as published, so that no restart repeats another one's class.
    """

    targets: int = 0

    def wanted(self, p: Problem) -> Tensor | None:
        """Return the class to climb towards, int64 [b], or None; the goal's own wanted class goes first."""
        if p.to is not None or not self.targets:
            return p.to
        if p.clean is None:
            raise InputError("Aiming at classes needs the clean scores, which are not known here.")
        others = p.clean.scatter(1, p.y.view(-1, 1), -torch.inf)
        rank = (p.restart % self.targets).clamp(max=others.shape[1] - 2)
        return others.argsort(dim=1, descending=True).gather(1, rank.view(-1, 1))[:, 0]


@dataclass(frozen=True)
class Start:
    """From where: 'clean', 'uniform' in the ball (L2: at a uniform distance), or 'warm'.

    The warm point is the best one of the attack or restart before.
    """

    kind: str = "clean"

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in ("clean", "uniform", "warm"):
            raise InputError(f"There is no start {self.kind!r}; use clean, uniform or warm.")

    def point(self, p: Problem) -> Tensor:
        """Return the first iterate, [b, ...]."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor) and isinstance(p.warm, Tensor)
        match self.kind:
            case "clean":
                return p.x0
            case "warm":
                return p.threat.project(p.warm, p.x0)
        if p.threat.norm.name == "l2":
            # nearly all of a ball of many dimensions lies at its surface; starts nearer to the middle break more
            return p.threat.sample(p.noise, 0, p.x0, p.threat.eps * p.noise.uniform(0, (1,), salt=9)[:, 0])
        return p.threat.sample(p.noise, 0, p.x0)


# ---- sense: how the gradient is had


@dataclass(frozen=True)
class Sense:
    """How the gradient is had.

    'exact'; 'straight': through everything that hides it (BPDA, arXiv 1802.00420); 'smooth': the mean over `samples`
    points around x, each gradient scaled to length 1, for landscapes that jump; 'transfer': that of the surrogates,
    while the target itself answers; 'nes' and 'spsa': estimated from the scores at pairs of points on both sides of x,
    normal ones (arXiv 1804.08598, Algorithm 1) or random signs (arXiv 1802.05666, Algorithm 1), `samples` questions in
    all. 'selective' and 'orthogonal' differ from 'exact' on targets that refuse by their last score: the answer and the
    refusal are climbed one at a time (arXiv 2106.15023).
    """

    kind: str = "exact"
    samples: int = 16
    radius: float = 0.25  # of the points around x, in units of eps

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in SENSES:
            raise InputError(f"There is no sense {self.kind!r}; use one of {', '.join(SENSES)}.")

    @property
    def queries(self) -> int:
        """Forward passes per row and step."""
        return 1 if self.kind in ("exact", "straight", "transfer", "selective", "orthogonal") else self.samples

    def gradient(
        self, p: Problem, x: Tensor, t: Tensor, make: Callable[[Tensor, Tensor | None], Climb], wanted: Tensor | None
    ) -> tuple[Answer, Tensor, Tensor]:
        """Return the target's answer at x, the loss [b] and a gradient [b, ...]; `make(y, wanted)` is what to climb."""
        match self.kind:
            case "transfer" if p.surrogates:
                ways = [s.gradient(x, make(p.y, wanted))[1:] for s in p.surrogates]
                grad = torch.stack([_unit(g) for _, g in ways]).mean(0)
                return p.oracle.look(x), torch.stack([v.to(x.dtype) for v, _ in ways]).mean(0), grad
            case "smooth":
                return self._smooth(p, x, t, make, wanted)
            case "nes" | "spsa":
                return self._estimate(p, x, t, make, wanted)
            case "selective" | "orthogonal":
                return p.oracle.gradient(x, make(p.y, wanted), past=self.kind)
        return p.oracle.gradient(x, make(p.y, wanted), straight=self.kind == "straight")

    def _smooth(
        self, p: Problem, x: Tensor, t: Tensor, make: Callable[[Tensor, Tensor | None], Climb], wanted: Tensor | None
    ) -> tuple[Answer, Tensor, Tensor]:
        assert isinstance(p.threat, Ball)
        m, b = self.samples, len(x)
        around = [x]
        for i in range(1, m):
            noise = p.threat.norm.sample(p.noise, t * m + i, x.shape[1:], self.radius * p.threat.eps, x.dtype)
            around.append((x + noise).clamp(*p.threat.bounds))
        many = torch.stack(around, 1).flatten(0, 1)  # [b * m, ...]
        y, to = p.y.repeat_interleave(m), None if wanted is None else wanted.repeat_interleave(m)
        answer, value, grad = p.oracle.gradient(many, make(y, to), straight=p.oracle.target.straight is not None)
        mean = _unit(grad).view(b, m, *x.shape[1:]).mean(1)
        return _every(answer, m), value.view(b, m).mean(1), mean

    def _estimate(
        self, p: Problem, x: Tensor, t: Tensor, make: Callable[[Tensor, Tensor | None], Climb], wanted: Tensor | None
    ) -> tuple[Answer, Tensor, Tensor]:
        assert isinstance(p.threat, Ball)
        pairs, b, shape = (self.samples - 1) // 2, len(x), x.shape[1:]
        m, draw = 2 * pairs + 1, p.noise.normal if self.kind == "nes" else p.noise.signs
        size = self.radius * p.threat.eps / (x[0].numel() ** 0.5 if p.threat.norm.name == "l2" else 1.0)
        u = draw(t, (pairs, *shape), salt=4, dtype=x.dtype) * size
        here = x.unsqueeze(1)
        many = torch.cat([here, here + u, here - u], 1).clamp(*p.threat.bounds)  # [b, m, ...]
        y, to = p.y.repeat_interleave(m), None if wanted is None else wanted.repeat_interleave(m)
        answer = p.oracle.scores(many.flatten(0, 1))
        assert answer.scores is not None
        value = make(y, to)(answer.scores).to(x.dtype).view(b, m).nan_to_num(0.0)
        rise = value[:, 1 : pairs + 1] - value[:, pairs + 1 :]
        across = many[:, 1 : pairs + 1] - many[:, pairs + 1 :]  # what the box left of 2 u
        grad = (across * rise.view(b, pairs, *[1] * len(shape))).sum(1)
        return _every(answer, m), value[:, 0], grad


def _every(answer: Answer, m: int) -> Answer:
    """Return the answers to every m-th input alone."""
    first = Answer(*(None if a is None else a[::m] for a in (answer.scores, answer.label, answer.accepted)))  # type: ignore[arg-type]
    return first if answer.votes is None else replace(first, votes=answer.votes[::m], draws=answer.draws)


SENSES = ("exact", "straight", "smooth", "transfer", "nes", "spsa", "selective", "orthogonal")


def _unit(grad: Tensor) -> Tensor:
    size = grad.reshape(len(grad), -1).norm(dim=1)
    return grad / column(size.clamp(min=torch.finfo(grad.dtype).tiny), grad)


# ---- move: how this step joins the steps before


@dataclass(frozen=True)
class Plain:
    """The step alone."""

    def init(self, p: Problem, x: Tensor) -> Any:
        """No memory."""
        return None

    def go(self, p: Problem, s: Any, t: Tensor, x: Tensor, grad: Tensor, length: Tensor) -> tuple[Any, Tensor]:
        """Return project(x + length * steepest(grad))."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        return s, p.threat.project(x + column(length, x) * p.threat.steepest(grad, x), p.x0)


@dataclass(frozen=True)
class Raw(Plain):
    """Along the gradient itself, scaled to length 1 in the threat's norm: gradient descent on the pixels."""

    def go(self, p: Problem, s: Any, t: Tensor, x: Tensor, grad: Tensor, length: Tensor) -> tuple[Any, Tensor]:
        """Return project(x + length * grad / norm(grad))."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        unit = grad / column(p.threat.norm.size(grad).clamp(min=torch.finfo(grad.dtype).tiny), grad)
        return s, p.threat.project(x + column(length, x) * unit, p.x0)


@dataclass(frozen=True)
class Momentum(Plain):
    """Accumulated gradients, each divided by its mean absolute value (MI-FGSM, Dong et al. 2018, eq. 6)."""

    decay: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a decay that is no number."""
        check_size("decay", self.decay, least=-math.inf)

    def init(self, p: Problem, x: Tensor) -> Tensor:
        """The accumulated gradient [b, ...]."""
        return torch.zeros_like(x)

    def go(self, p: Problem, s: Any, t: Tensor, x: Tensor, grad: Tensor, length: Tensor) -> tuple[Any, Tensor]:
        """Return the memory and project(x + length * steepest(memory))."""
        mean = grad.reshape(len(grad), -1).abs().mean(1).clamp(min=torch.finfo(grad.dtype).tiny)
        s = self.decay * s + grad / column(mean, grad)
        return s, super().go(p, None, t, x, s, length)[1]


@dataclass(frozen=True)
class Inertia(Plain):
    """A share of the last move is kept (APGD, Croce and Hein 2020, arXiv 2003.01690, Algorithm 1 line 7)."""

    share: float = 0.75

    def init(self, p: Problem, x: Tensor) -> Tensor:
        """The iterate before [b, ...]."""
        return x

    def go(self, p: Problem, s: Any, t: Tensor, x: Tensor, grad: Tensor, length: Tensor) -> tuple[Any, Tensor]:
        """Return x and project(x + share * (z - x) + (1 - share) * (x - before)), z the plain step."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        z = super().go(p, None, t, x, grad, length)[1]
        mixed = torch.lerp(x, z, self.share).add_(x - s, alpha=1 - self.share)
        return x, where(t > 0, p.threat.project(mixed, p.x0), z)


# ---- rate: how long a step is, in units of eps


@dataclass(frozen=True)
class Constant:
    """The same length at every step."""

    size: float

    def __post_init__(self) -> None:
        """Refuse steps that lead nowhere or back."""
        check_size("step_size", self.size)

    def under(self, threat: Ball) -> "Constant":
        """Return the rule for this threat."""
        return self

    def mover(self, move: Plain) -> Plain:
        """Return how steps of this length are made; the attack's own move unless the rule brings one."""
        return move

    def init(self, p: Problem, x: Tensor) -> Any:
        """No memory."""
        return None

    def update(
        self, p: Problem, s: Any, t: Tensor, steps: int, x: Tensor, value: Tensor, grad: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return memory, x and gradient to move from, and the length [b] in units of eps."""
        return s, x, grad, torch.full_like(value, self.size)


@dataclass(frozen=True)
class Cosine(Constant):
    """From `size` down to 0 along half a cosine."""

    def update(
        self, p: Problem, s: Any, t: Tensor, steps: int, x: Tensor, value: Tensor, grad: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return memory, x and gradient to move from, and the length [b] in units of eps."""
        return s, x, grad, (self.size * 0.5) * (1 + torch.cos(t.to(value.dtype) * (math.pi / steps)))


@dataclass
class PlateauState:
    """Best point by loss [b, ...] with its gradient, and the counts of the plateau rule [b]."""

    x: Tensor
    grad: Tensor
    best: Tensor
    last: Tensor
    ups: Tensor
    length: Tensor
    best_then: Tensor
    reduced: Tensor


@dataclass(frozen=True)
class Plateau(Constant):
    """Halve the step and go back to the best point where the loss stopped growing (arXiv 2003.01690, section 3.1)."""

    size: float = 2.0
    rho: float = 0.75

    def under(self, threat: Ball) -> Constant:
        """For L1 the sparse rule of arXiv 2103.01208."""
        return SparsePlateau(1.0) if threat.norm.name == "l1" else self

    def init(self, p: Problem, x: Tensor) -> PlateauState:
        """Nothing seen yet."""
        low, zero = (
            torch.full_like(p.noise.keys, 0, dtype=x.dtype) - torch.inf,
            torch.zeros_like(p.noise.keys, dtype=x.dtype),
        )
        return PlateauState(x, torch.zeros_like(x), low, low, zero, zero + self.size, low, zero.bool() | True)

    def update(
        self, p: Problem, s: PlateauState, t: Tensor, steps: int, x: Tensor, value: Tensor, grad: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return memory, x and gradient to move from, and the length [b] in units of eps."""
        value = value.to(s.best.dtype)
        better = value > s.best
        best = torch.where(better, value, s.best)
        s = replace(
            s,
            x=where(better, x, s.x),
            grad=where(better, grad, s.grad),
            best=best,
            last=value,
            ups=s.ups + ((value > s.last) & (t > 0)),
        )
        interval = _checkpoints(steps, t.device)[t.clamp(max=steps)]
        due = interval > 0
        stuck = s.ups <= self.rho * interval
        flat = ~s.reduced & (s.best_then >= s.best)
        back = due & (stuck | flat)
        s = replace(
            s,
            length=torch.where(back, s.length / 2, s.length),
            ups=torch.where(due, 0.0, s.ups),
            best_then=torch.where(due, s.best, s.best_then),
            reduced=torch.where(due, stuck | flat, s.reduced),
        )
        return s, where(back, s.x, x), where(back, s.grad, grad), s.length


@lru_cache
def _checkpoints(steps: int, device: torch.device) -> Tensor:
    """At step t the number of steps since the last checkpoint when t is one, else 0, [steps + 1]."""
    gap, least, shrink = (max(int(f * steps), 1) for f in (0.22, 0.06, 0.03))
    marks, t = torch.zeros(steps + 1), 0
    while t + gap <= steps:
        t += gap
        marks[t] = gap
        gap = max(gap - shrink, least)
    return marks.to(device)


@dataclass
class SparseState:
    """Best point by loss [b, ...] and its gradient; the `share` [b] of coordinates to move, the `count` [b] moved."""

    x: Tensor
    grad: Tensor
    best: Tensor
    length: Tensor
    share: Tensor
    count: Tensor


@dataclass(frozen=True)
class SparsePlateau(Constant):
    """Steps along the signs of the largest gradients, as many as the best point's sparsity asks (arXiv 2103.01208)."""

    def mover(self, move: Plain) -> Plain:
        """Sparse steps are made without inertia."""
        return Raw()

    def init(self, p: Problem, x: Tensor) -> SparseState:
        """Start with a fifth of the coordinates, or what the start point already moved, over 1.5."""
        assert isinstance(p.x0, Tensor)
        moved = (x - p.x0).reshape(len(x), -1).ne(0).sum(1).to(x.dtype)
        d = x[0].numel() if len(x) else 1
        share = torch.where(moved > 0, moved / d / 1.5, 0.2)
        zero = torch.zeros_like(moved)
        return SparseState(
            x, torch.zeros_like(x), zero - torch.inf, zero + self.size, share, torch.where(moved > 0, moved, float(d))
        )

    def update(
        self, p: Problem, s: SparseState, t: Tensor, steps: int, x: Tensor, value: Tensor, grad: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return memory, x, a sparse gradient of equal sizes, and the length [b] in units of eps."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        value = value.to(s.best.dtype)
        better = value > s.best
        s = replace(
            s, x=where(better, x, s.x), grad=where(better, grad, s.grad), best=torch.where(better, value, s.best)
        )
        d = x[0].numel()
        due = (t > 0) & (t % max(int(0.04 * steps), 1) == 0)
        moved = (s.x - p.x0).reshape(len(x), -1).ne(0).sum(1).to(x.dtype)
        sparser = moved / s.count.clamp(min=1) < 0.95
        shorter = (s.length / 1.5).clamp(min=self.size / 10)
        s = replace(
            s,
            share=torch.where(due, moved / d / 1.5, s.share),
            count=torch.where(due, moved, s.count),
            length=torch.where(due, torch.where(sparser, torch.full_like(s.length, self.size), shorter), s.length),
        )
        back = due & sparser
        x, grad = where(back, s.x, x), where(back, s.grad, grad)
        lo, hi = p.threat.bounds
        free = torch.where(((grad > 0) & (x >= hi)) | ((grad < 0) & (x <= lo)), 0.0, grad).reshape(len(x), -1)
        rank = (s.share * d).long().clamp(1, d) - 1
        least = free.abs().sort(dim=1, descending=True).values.gather(1, rank.view(-1, 1))
        return s, x, torch.where((free.abs() >= least) & (free != 0), free.sign(), 0.0).view_as(x), s.length
