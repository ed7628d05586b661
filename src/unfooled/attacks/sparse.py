"""Sparse attacks: as few values as possible change, by however much."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._rows import Batch, column, where
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..norms import LINF
from .parts import check_counts, check_size, climb, unfit_ball
from .smallest import Best, Minimum, cosine


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
        return SigmaState(torch.zeros_like(p.y), p.x0, zero, zero, torch.full_like(best.size, self.threshold), best)

    def step(self, p: Problem, s: SigmaState) -> tuple[SigmaState, Trial]:
        """Look at x, take a step of Adam and cut small changes off; late steps prune the best point."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        answer, _, grad = p.oracle.gradient(s.x, climb("margin", p.y, p.to, paired=False))
        won = advantage(answer, p.y, p.to) > 0
        grad = p.threat.free(grad)
        first = (1 - self.trimming) * self.length
        best = s.best.seen(p, s.x, won, grad, s.t >= first)
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
        late = (s.t + 1 >= first) & best.size.isfinite()
        return SigmaState(s.t + 1, where(late, best.fewer(p), x), mean, square, threshold, best), Trial(s.x, answer)


@recipe("Cina et al. 2024, arXiv 2402.01879", ("l0",), smallest=1.01)
def sigma_zero(steps: int = 100, step_size: float = 1.0, sigma: float = 1e-3, threshold: float = 0.3) -> SigmaZero:
    """sigma-zero: gradient steps on a smooth count of the changed values; small changes are cut off."""
    return SigmaZero(length=steps, size=step_size, sigma=sigma, threshold=threshold)


@dataclass
class SaliencyState:
    """Per row: step t [b], iterate x [b, ...] and the best point."""

    t: Tensor
    x: Tensor
    best: Best


@dataclass(frozen=True, repr=False)
class Saliency(Minimum[SaliencyState]):
    """JSMA: one value per step goes to a wall of the box, the one of the largest saliency (eq. 8, eq. 9 downwards).

    Saliency is the slope of the wanted class times minus the slopes of the others together, where the first rises and
    these fall, times the room that is left; where no value has any, the slope of the margin times the room. With no
    wanted class it is the most likely wrong one at each step. `classes` of the most likely ones stand for all others.
    Once it succeeds, changes are taken out one by one.
    """

    norms: tuple[str, ...] = ("l0",)
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, classes=self.classes)

    def init(self, p: Problem) -> SaliencyState:
        """Start at the original."""
        assert isinstance(p.x0, Tensor)
        return SaliencyState(torch.zeros_like(p.y), p.x0, Best.none(p))

    def step(self, p: Problem, s: SaliencyState) -> tuple[SaliencyState, Trial]:
        """Look at x and change one value more, or after a success one less."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)

        def likely(scores: Tensor) -> Tensor:
            """The wanted class, then the most likely others, [b, c]."""
            own = p.y.view(-1, 1)
            first = scores.scatter(1, own, -torch.inf).argmax(1, keepdim=True) if p.to is None else p.to.view(-1, 1)
            rest = scores.scatter(1, own, torch.inf).scatter(1, first, -torch.inf)  # the label is always among them
            return torch.cat([first, rest.topk(min(self.classes, scores.shape[1]) - 1, dim=1).indices], 1)

        answer, z, grads = p.oracle.jacobian(s.x, likely)
        won = advantage(answer, p.y, p.to) > 0
        grads = grads.flatten(2).to(s.x.dtype)
        rival = z[:, 1:].argmax(1) + 1
        slope = grads[:, 0] - grads[torch.arange(len(rival), device=rival.device), rival]  # of the margin, [b, d]
        best = s.best.seen(p, s.x, won, p.threat.free(slope.view_as(s.x)), s.best.size.isfinite())
        up, others = (p.threat.free(g.view_as(s.x)).flatten(1) for g in (grads[:, 0], grads[:, 1:].sum(1)))
        lo, hi = p.threat.bounds
        flat, slope = s.x.flatten(1), p.threat.free(slope.view_as(s.x)).flatten(1)
        fresh = flat == p.x0.flatten(1)
        agree = (up * others < 0) & fresh
        salient = torch.where(agree, up.abs() * others.abs() * torch.where(up > 0, hi - flat, flat - lo), 0.0)
        plain = torch.where(fresh, slope.abs() * torch.where(slope > 0, hi - flat, flat - lo), 0.0)
        some = salient.amax(1, keepdim=True) > 0
        at = torch.where(some, salient, plain).argmax(1, keepdim=True)
        wall = torch.where(torch.where(some, up, slope).gather(1, at) > 0, hi, lo)
        more = torch.where((torch.where(some, salient, plain).gather(1, at) > 0), wall, flat.gather(1, at))
        x = p.threat.project(flat.scatter(1, at, more.to(flat.dtype)).view_as(s.x), p.x0, torch.inf)
        return SaliencyState(s.t + 1, where(best.size.isfinite(), best.fewer(p), x), best), Trial(s.x, answer)

    def finished(self, p: Problem, s: SaliencyState) -> Tensor:
        """Rows whose best point loses with every change that is taken out."""
        return s.best.exhausted()


@recipe("Papernot et al. 2016, arXiv 1511.07528", ("l0",), smallest=1.01)
def jsma(steps: int = 200, classes: int = 10) -> Saliency:
    """JSMA: changes one value after another by the saliency map, then takes out what was not needed."""
    return Saliency(length=steps, classes=classes)


@dataclass
class PixelState:
    """Per row: query t [b], the population's genes [b, n, g] in [0, 1] and their values [b, n]; the child [b, g]."""

    t: Tensor
    genes: Tensor
    value: Tensor


@dataclass(frozen=True, repr=False)
class OnePixel(Attack[PixelState]):
    """Differential evolution over places and colours of a few pixels, one query per row and step.

    A candidate is, per pixel, its place and its values. Every child r1 + 0.5 (r2 - r3) of the population meets the
    father of its number, and the better one stays. As many pixels as the ball allows, `pixels` at most; where it does
    not allow a whole pixel of all channels, single values.
    """

    queries: int = 2000
    pixels: int = 5
    population: int = 50
    access = Access.SCORES

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries, pixels=self.pixels, population=self.population)

    @property
    def steps(self) -> int:
        """Queries per row."""
        return self.queries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """L0 balls with a finite eps on tensors."""
        return unfit_ball(x, threat, ("l0",), bounded=True)

    def _layout(self, p: Problem) -> tuple[int, tuple[int, ...], int]:
        """Return how many values a pixel has, the sizes of the places' axes, and how many pixels change."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        shape = tuple(p.x0.shape[1:])
        deep = len(shape) >= 3 and p.threat.eps >= shape[0]
        channels, places = (shape[0], shape[1:]) if deep else (1, shape)
        return channels, places, max(1, min(int(min(p.threat.eps, 1e9)) // channels, self.pixels))

    def init(self, p: Problem) -> PixelState:
        """Draw the population: places uniform, values normal around the middle of the box, as published."""
        assert isinstance(p.x0, Tensor)
        channels, places, pixels = self._layout(p)
        shape = (self.population, pixels)
        at = p.noise.uniform(0, (*shape, len(places)), dtype=p.x0.dtype)
        values = (0.5 + 0.5 * p.noise.normal(0, (*shape, channels), salt=1, dtype=p.x0.dtype)).clamp(0, 1)
        genes = torch.cat([at, values], 3).flatten(2)
        return PixelState(torch.zeros_like(p.y), genes, torch.full_like(genes[:, :, 0], -torch.inf))

    def step(self, p: Problem, s: PixelState) -> tuple[PixelState, Trial]:
        """Show one candidate: of the first population, then a child."""
        assert isinstance(p.x0, Tensor)
        n, (channels, places, pixels) = self.population, self._layout(p)
        row = torch.arange(len(s.t), device=s.t.device)
        father = s.t % n
        a, b, c = (s.genes[row, p.noise.integers(s.t + 1, n, salt=2 + i)] for i in range(3))
        child = (a + 0.5 * (b - c)).view(len(row), pixels, -1)
        at, values = child[..., : len(places)] % 1, child[..., len(places) :].clamp(0, 1)
        child = torch.where((s.t < n).view(-1, 1), s.genes[row, father], torch.cat([at, values], 2).flatten(1))
        x = self._painted(p, child.view(len(row), pixels, -1), channels, places)
        answer = p.oracle.scores(x)
        assert answer.scores is not None
        value = climb("margin", p.y, p.to, paired=False)(answer.scores).to(s.value.dtype).nan_to_num(nan=-torch.inf)
        better = value >= s.value[row, father]
        mine = torch.nn.functional.one_hot(father, n).bool() & better.view(-1, 1)
        genes = torch.where(mine.unsqueeze(2), child.unsqueeze(1), s.genes)
        return PixelState(s.t + 1, genes, torch.where(mine, value.view(-1, 1), s.value)), Trial(x, answer)

    @staticmethod
    def _painted(p: Problem, genes: Tensor, channels: int, places: tuple[int, ...]) -> Tensor:
        """Return the originals with the pixels of `genes` [b, pixels, axes + channels] painted, [b, ...]."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        x = p.x0.reshape(len(p.x0), channels, -1)
        for i in range(genes.shape[1]):
            at = torch.zeros_like(p.y)
            for axis, size in enumerate(places):
                at = at * size + (genes[:, i, axis] * size).long().clamp(max=size - 1)
            values = lo + (hi - lo) * genes[:, i, len(places) :]
            x = x.scatter(2, at.view(-1, 1, 1).expand(-1, channels, 1), values.unsqueeze(2))
        return p.threat.project(x.view_as(p.x0).clamp(lo, hi), p.x0)


@recipe("Su, Vargas, Sakurai 2019, arXiv 1710.08864", ("l0",), Access.SCORES)
def one_pixel(queries: int = 2000, pixels: int = 5, population: int = 50) -> OnePixel:
    """One-pixel: differential evolution over the places and colours of a few pixels; asks for scores alone."""
    return OnePixel(queries=queries, pixels=pixels, population=population)
