"""Sparse attacks: as few values as possible change, by however much."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._rows import column, where
from ..core.attack import Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball
from ..norms import LINF
from .parts import check_counts, check_size, climb
from .smallest import Minimum, cosine, masked


@dataclass
class Best:
    """The row's smallest success x [b, ...], how many values it changes [b], its gradient, and failures since [b]."""

    x: Tensor
    count: Tensor
    grad: Tensor
    fails: Tensor

    @classmethod
    def none(cls, p: Problem) -> "Best":
        """Nothing was found yet."""
        assert isinstance(p.x0, Tensor)
        count = torch.full_like(p.x0.reshape(len(p.x0), -1)[:, 0], torch.inf)
        return cls(p.x0, count, torch.zeros_like(p.x0), torch.zeros_like(p.y))

    def seen(self, p: Problem, x: Tensor, won: Tensor, grad: Tensor) -> "Best":
        """Return the best after x was shown."""
        assert isinstance(p.x0, Tensor)
        count = (x != p.x0).flatten(1).sum(1).to(x.dtype)
        better = won & (count < self.count)
        new = Best(x, count, grad, torch.zeros_like(self.fails))
        kept: Best = where(better, new, replace(self, fails=self.fails + 1))
        return kept

    def pruned(self, p: Problem) -> Tensor:
        """Return a point with one change less, [b, ...]: by turns every change is undone, the least useful first.

        The first try changes the values that gain most by the gradient, wherever they are; then, change after change,
        the others are first taken to the wall of the box, then left as they are.
        """
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        grad, x0 = self.grad.flatten(1), p.x0.flatten(1)
        change = self.x.flatten(1) - x0
        reach = torch.where(grad > 0, hi - x0, torch.where(grad < 0, lo - x0, 0.0))  # [b, d]
        most = _rank(-grad * reach) < (self.count - 1).view(-1, 1)
        turn = ((self.fails - 1).clamp(min=0) // 2) % self.count.clamp(1, change.shape[1]).long()
        useful = _rank(torch.where(change != 0, grad * change, torch.inf)) != turn.view(-1, 1)
        pushed = torch.where((self.fails % 2 == 1).view(-1, 1) & (reach != 0), reach, change)
        fewer = torch.where(useful & (change != 0), pushed, 0.0)
        z = x0 + torch.where((self.fails == 0).view(-1, 1), torch.where(most, reach, 0.0), fewer)
        return p.threat.project(z.view_as(p.x0).clamp(lo, hi), p.x0, torch.inf)


def _rank(values: Tensor) -> Tensor:
    """Return the place of each value [b, d] in its row, from 0 for the smallest."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


@dataclass
class SigmaState:
    """Per row: step t [b], iterate x [b, ...], Adam's two means [b, ...], the threshold [b], and the best point."""

    t: Tensor
    x: Tensor
    mean: Tensor
    square: Tensor
    threshold: Tensor
    best: Best


@dataclass(frozen=True, repr=False)
class SigmaZero(Minimum[SigmaState]):
    """Adam on the hinge of the margin plus a smooth count of the changes; small changes are cut off (Algorithm 1).

    `threshold` is where the cut begins, in units of the box; it grows with every success and falls with every failure.
    The last `trimming` of the steps take changes out of the best point one by one.
    """

    norms: tuple[str, ...] = ("l0",)
    size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    trimming: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length)
        check_size("step_size", self.size)
        check_size("sigma", self.sigma)
        check_size("threshold", self.threshold)

    def init(self, p: Problem) -> SigmaState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor)
        zero, best = torch.zeros_like(p.x0), Best.none(p)
        return SigmaState(torch.zeros_like(p.y), p.x0, zero, zero, torch.full_like(best.count, self.threshold), best)

    def step(self, p: Problem, s: SigmaState) -> tuple[SigmaState, Trial]:
        """Look at x, take a step of Adam and cut small changes off; late steps prune the best point."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        answer, _, grad = p.oracle.gradient(s.x, climb("margin", p.y, p.to, paired=False))
        won = advantage(answer, p.y, p.to) > 0
        grad = masked(p, grad)
        best = s.best.seen(p, s.x, won, grad)
        d = (s.x - p.x0) / (hi - lo)
        few = (
            2 * d * self.sigma / (d.square() + self.sigma).square() / d[0].numel()
        )  # of the mean of d^2 / (d^2 + sigma)
        down = torch.where(column(won, grad), 0.0, -grad * (hi - lo)) + few
        down = down / column(LINF.size(down).clamp(min=1e-12), down)
        mean, square = 0.9 * s.mean + 0.1 * down, 0.999 * s.square + 0.001 * down.square()
        k = column(s.t + 1, d).to(d.dtype)
        rate = cosine(s.t, self.length, self.size, self.size / 10, s.threshold)
        move = (mean / (1 - 0.9**k)) / ((square / (1 - 0.999**k)).sqrt() + 1e-8)
        d = ((p.x0 + (d - column(rate, d) * move) * (hi - lo)).clamp(lo, hi) - p.x0) / (hi - lo)
        threshold = (s.threshold + 0.01 * rate * torch.where(won, 1.0, -1.0)).clamp(0, 1)
        x = p.x0 + torch.where(d.abs() < column(threshold, d), 0.0, d) * (hi - lo)
        x = p.threat.project(x.clamp(lo, hi), p.x0, torch.inf)
        late = (s.t + 1 >= (1 - self.trimming) * self.length) & best.count.isfinite()
        return SigmaState(s.t + 1, where(late, best.pruned(p), x), mean, square, threshold, best), Trial(s.x, answer)


@recipe("Cina et al. 2024, arXiv 2402.01879", ("l0",), smallest=1.01)
def sigma_zero(steps: int = 100, step_size: float = 1.0, sigma: float = 1e-3, threshold: float = 0.3) -> SigmaZero:
    """sigma-zero: gradient steps on a smooth count of the changed values; small changes are cut off."""
    return SigmaZero(length=steps, size=step_size, sigma=sigma, threshold=threshold)
