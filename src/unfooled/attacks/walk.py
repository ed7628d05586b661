"""Decision-based attacks along the boundary: from labels alone to the nearest point of another class.

All find some point of another class, bisect to the boundary and then explore along it: by an estimated normal
(HopSkipJump, GeoDA, CGBA), by turns in orthogonal directions (SurFree) or by a random walk (Boundary). Every row asks
one question per step and is in a phase of its own. A row that finds no start among its noises, or none of the wanted
class, is left as it is, alone; a point that an attack before found is the first start to be tried.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._rows import Batch, column, where
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..errors import InputError
from .parts import check_counts, check_size, some, unfit_ball
from .search import low_first, wave

FIND, BISECT, EXPLORE = range(3)
_TRIES = 200  # noises after which a row that found no start gives up


@dataclass
class Path:
    """A way from x0 (share 0) to `far` [b, ...] (share 1, where the goal is reached), and the bracket on it, [b] each.

    At `high` the goal is reached, at `low` it is not, or is 0: nothing failed yet, and the next question is `gap` below
    `high`. `length` is the size of far - x0.
    """

    far: Tensor
    length: Tensor
    low: Tensor
    high: Tensor
    gap: Tensor

    @classmethod
    def to(cls, p: Problem, far: Tensor, gap: Tensor | float = 0.5) -> "Path":
        """Return fresh paths to `far`."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        length = p.threat.norm.size(far - p.x0)
        zero = torch.zeros_like(length)
        return cls(far, length, zero, zero + 1, zero + gap)

    @property
    def share(self) -> Tensor:
        """The share to ask about next, [b]: the middle of a bracket, else a growing gap below what is known."""
        near = torch.maximum(self.high - self.gap, self.high / 2)
        return torch.where(self.low > 0, (self.low + self.high) / 2, near)

    def narrowed(self, at: Tensor, won: Tensor) -> "Path":
        """Return the brackets after the answers `won` bool [b] at the shares `at` [b]."""
        high, low = torch.where(won, at, self.high), torch.where(won, self.low, at)
        return replace(self, low=low, high=high, gap=self.gap * 2)

    def point(self, p: Problem, at: Tensor) -> Tensor:
        """Return the points of the box at the shares `at` [b]: `far` pulled back to that part of its distance."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        return p.threat.project(self.far, p.x0, at * self.length)

    def circle(self, p: Problem, way: Tensor, at: Tensor) -> Tensor:
        """Return the points at the shares `at` [b] of the half circle over far and x0 that bulges along `way`; L2.

        Where the point would leave the box, the ray from x0 through it is followed inside the box.
        """
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        v = p.threat.steepest(self.far - p.x0, p.x0)
        w = p.threat.steepest(way - column((way * v).flatten(1).sum(1), v) * v, p.x0)
        ray = column(at, v) * v + column((1 - at * at).clamp(min=0).sqrt(), w) * w
        return p.threat.project(p.x0 + column(100 * self.length, ray) * ray, p.x0, at * self.length)


def legal(p: Problem, x: Tensor) -> Tensor:
    """Return x inside the box, with what may not change held, [b, ...]."""
    assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
    if p.threat.mask is None and not p.threat.levels:
        return x.clamp(*p.threat.bounds)
    return p.threat.project(x, p.x0, torch.full_like(p.y, torch.inf, dtype=x.dtype))


def start(p: Problem, t: Tensor, radius: Tensor) -> Tensor:
    """Return the t-th place to look for another class, [b, ...]: the warm point, then noise of ever other grain.

    The noise is uniform or takes the ends of the box alone, in blocks of 1, 2, 4, ... values along the last two axes.
    Where a `radius` [b] is known already (else 0) it is pulled to nine tenths of that.
    """
    assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor) and isinstance(p.warm, Tensor)
    lo, hi = p.threat.bounds
    u = p.noise.uniform(t, p.x0.shape[1:], salt=1, dtype=p.x0.dtype)
    u = torch.where(column(t % 2 == 1, u), u.round(), u)
    axes = range(max(1, u.dim() - 2), u.dim())
    block = torch.ones_like(t) << p.noise.integers(t, max(u.shape[a] for a in axes).bit_length(), salt=2)
    for axis in axes:
        at = torch.arange(u.shape[axis], device=u.device)
        index = at - at % block.view(-1, 1)  # every value is that of the first in its block
        u = u.gather(axis, index.view(len(u), *(-1 if a == axis else 1 for a in range(1, u.dim()))).expand_as(u))
    warm = (t == 0) & (p.warm != p.x0).flatten(1).any(1)
    x = legal(p, where(warm, p.warm, lo + u * (hi - lo)))
    path = Path.to(p, x)
    share = 0.9 * radius / path.length.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(column(radius > 0, x), path.point(p, share.clamp(max=1)), x)


@dataclass
class WalkState:
    """Per row: queries t, `phase` and starts `tried`, int64 [b]; what the attack explores by, `own`.

    `edge` [b, ...] next to the boundary where the goal is reached, at distance `radius` [b] (0: none found yet) after a
    bisection that gained the share `gain` [b], and the `path` being bisected.
    """

    t: Tensor
    phase: Tensor
    tried: Tensor
    edge: Tensor
    radius: Tensor
    gain: Tensor
    path: Path
    own: Any


@dataclass(frozen=True, repr=False)
class Walk(Attack[WalkState]):
    """Find a start, bisect, explore, bisect, and so on; one forward pass per row and step, of which the class is used.

    Once a start is found, up to `starts` further ones (a twentieth of the queries at most) are tried a little nearer
    than the boundary that is known.
    """

    queries: int = 1000
    starts: int = 50
    norms: tuple[str, ...] = ("linf", "l2")
    access = Access.LABEL
    inside = False  # it searches outside the ball too, from where it comes nearer

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries, starts=self.starts)

    @property
    def steps(self) -> int:
        """Queries per row."""
        return self.queries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Balls in the recipe's norms on tensors, with or without an eps."""
        return unfit_ball(x, threat, self.norms, what="way")

    def init(self, p: Problem) -> WalkState:
        """Start fresh rows, which know no point of another class yet."""
        assert isinstance(p.x0, Tensor)
        zero, radius = torch.zeros_like(p.y), torch.zeros_like(p.y, dtype=p.x0.dtype)
        return WalkState(zero, zero + FIND, zero, p.x0, radius, radius + 0.5, Path.to(p, p.x0), self.fresh(p))

    def finished(self, p: Problem, s: WalkState) -> Tensor:
        """Rows that found no start."""
        return (s.radius == 0) & (s.phase == FIND) & (s.t >= _TRIES)

    def step(self, p: Problem, s: WalkState) -> tuple[WalkState, Trial]:
        """Ask about one point per row: a start, a point of the path, or what the attack explores."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        finding, bisecting, exploring = (s.phase == i for i in range(3))
        share = s.path.share
        x = p.x0
        if some(exploring):
            x = where(exploring, legal(p, self.explore(p, s)), x)
        if some(bisecting):
            x = where(bisecting, self.point(p, s, share), x)
        if some(finding):
            x = where(finding, start(p, s.t, s.radius), x)
        # the attack goes by the label; the engine sees all that was granted, to count nothing that rounding may undo
        answer = p.oracle.look(x)
        won = advantage(replace(answer, scores=None), p.y, p.to) > 0
        path = where(bisecting, s.path.narrowed(share, won), s.path)
        ended = bisecting & (path.high - path.low <= self.tolerance(p, s, path))
        radius = torch.where(ended, path.high * path.length, s.radius)
        tried = s.tried + (finding & (s.radius > 0))
        enough = tried >= min(self.starts, self.queries // 20)
        phase = torch.where(ended, torch.where(enough, EXPLORE, FIND), s.phase)
        phase = torch.where(finding & ~won & enough, EXPLORE, phase)
        after = WalkState(
            t=s.t + 1,
            phase=torch.where(finding & won, BISECT, phase),
            tried=tried,
            edge=where((finding | bisecting) & won, x, s.edge),
            radius=radius,
            gain=torch.where(ended & (s.radius > 0), (1 - radius / s.radius).clamp(0, 0.5), s.gain),
            path=where(finding & won, Path.to(p, x), path) if some(finding & won) else path,
            own=s.own,
        )
        if some(exploring | ended):
            after = self.learn(p, s, after, Round(x, won, exploring, ended))
        return after, Trial(x, answer)

    @abstractmethod
    def fresh(self, p: Problem) -> Any:
        """Return the state `own` of fresh rows."""

    @abstractmethod
    def tolerance(self, p: Problem, s: WalkState, path: Path) -> Tensor:
        """Return how narrow a bracket ends its bisection, [b]."""

    @abstractmethod
    def explore(self, p: Problem, s: WalkState) -> Tensor:
        """Return the point to ask about in exploring rows, [b, ...]; the box cuts it."""

    @abstractmethod
    def learn(self, p: Problem, s: WalkState, after: WalkState, r: "Round") -> WalkState:
        """Return the state `after` this round with what the exploring rows, and those that bisected, make of it."""

    def point(self, p: Problem, s: WalkState, at: Tensor) -> Tensor:
        """Return the points of the paths at the shares `at` [b], [b, ...]."""
        return s.path.point(p, at)


@dataclass(frozen=True)
class Round:
    """What was asked, x [b, ...]; bool [b]: did it reach the goal, which rows explored, which bisections ended."""

    x: Tensor
    won: Tensor
    exploring: Tensor
    ended: Tensor


# ---- by normals


@dataclass(frozen=True)
class Step:
    """Away from the boundary along the normal, then straight back towards x0 (HopSkipJump, Algorithm 2)."""

    leaps = True

    def far(self, p: Problem, s: WalkState) -> Tensor:
        """Return where the leap goes, [b, ...]; it may lie outside the box."""
        assert isinstance(p.threat, Ball)
        return s.edge + column(s.own.size, s.edge) * p.threat.steepest(s.own.normal, s.edge)

    def shorter(self, size: Tensor) -> Tensor:
        """Return the size of the next leap after one that missed, [b]; 0: none."""
        return size / 2


@dataclass(frozen=True)
class Around(Step):
    """From x0 along the normal, as far as the boundary is now (GeoDA); a miss asks for a better normal."""

    def far(self, p: Problem, s: WalkState) -> Tensor:
        """Return where the leap goes, [b, ...]; it may lie outside the box."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        return p.x0 + column(s.radius, p.x0) * p.threat.steepest(s.own.normal, p.x0)

    def shorter(self, size: Tensor) -> Tensor:
        """Return 0, [b]."""
        return size * 0


@dataclass(frozen=True)
class Circle(Step):
    """No leap, but towards x0 on the half circle over the edge and x0, in the plane of the normal (CGBA); L2."""

    leaps = False


@dataclass
class Normals:
    """Per row: normals `k` estimated so far and probes `n` of the next, int64 [b]; whether a leap is due, bool [b].

    The probes' sums `hits` [b], `plain` and `signed` [b, ...]; the `normal` [b, ...] and the `size` [b] of the leap.
    """

    k: Tensor
    n: Tensor
    leap: Tensor
    hits: Tensor
    plain: Tensor
    signed: Tensor
    normal: Tensor
    size: Tensor


@dataclass(frozen=True, repr=False)
class NormalWalk(Walk):
    """Estimate the boundary's normal from random probes around the edge, turn by it, bisect, repeat.

    A leap counts where it does on the way back to x0 just nearer than the edge is: no row ever moves away again.
    The k-th normal takes `probes` * sqrt(k) queries, and `keep` of the one before is added to it. Probes lie at
    `precision` of the distance around the edge, which is bisected to `precision` / sqrt(d).
    """

    probes: int = 30
    keep: float = 0.5
    precision: float = 0.1
    turn: Step = field(default_factory=Step)

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries, starts=self.starts, probes=self.probes)
        check_size("precision", self.precision)
        if not 0 <= self.keep <= 1:
            raise InputError(f"keep is a share of the normal before, from 0 to 1, not {self.keep!r}.")

    def fresh(self, p: Problem) -> Normals:
        """No probe yet."""
        assert isinstance(p.x0, Tensor)
        zero, none, size = torch.zeros_like(p.y), torch.zeros_like(p.x0), torch.zeros_like(p.y, dtype=p.x0.dtype)
        return Normals(zero, zero, zero > 0, size, none, none, none, size)

    def tolerance(self, p: Problem, s: WalkState, path: Path) -> Tensor:
        """As far as a probe goes along the normal."""
        return self.precision / math.sqrt(s.edge[0].numel()) * path.high

    def point(self, p: Problem, s: WalkState, at: Tensor) -> Tensor:
        """Return the points of the line or of the circle at the shares `at` [b], [b, ...]."""
        line = s.path.point(p, at)
        if self.turn.leaps:
            return line
        return torch.where(column(s.own.k > 0, line), s.path.circle(p, s.own.normal, at), line)

    def explore(self, p: Problem, s: WalkState) -> Tensor:
        """Return a probe, or the leap."""
        u = p.noise.normal(s.t, s.edge.shape[1:], salt=3, dtype=s.edge.dtype)
        probe = s.edge + column(self._reach(p, s), u) * u
        return torch.where(column(s.own.leap, u), self._leap(p, s)[1], probe)

    def _leap(self, p: Problem, s: WalkState) -> tuple[Path, Tensor]:
        """Return the path back from the leap, and the point of it that is just nearer than the edge, [b, ...]."""
        path = Path.to(p, self.turn.far(p, s))
        share = s.radius / path.length.clamp(min=torch.finfo(path.length.dtype).tiny)
        path = replace(path, high=share.clamp(max=1) - self.tolerance(p, s, path) / 4)
        return path, path.point(p, path.high)

    def _reach(self, p: Problem, s: WalkState) -> Tensor:
        assert isinstance(p.x0, Tensor)
        reach: Tensor = (s.edge - p.x0).flatten(1).norm(dim=1) * (self.precision / math.sqrt(s.edge[0].numel()))
        return reach

    def learn(self, p: Problem, s: WalkState, after: WalkState, r: Round) -> WalkState:
        """Add the probes up; the last one makes the normal, and the turn by it begins."""
        own, reach = s.own, self._reach(p, s).clamp(min=torch.finfo(r.x.dtype).tiny)
        leaping, sensing = r.exploring & own.leap, r.exploring & ~own.leap
        sign, n = torch.where(sensing, r.won.to(reach.dtype) * 2 - 1, 0.0), own.n + sensing
        moved = where(sensing, (r.x - s.edge) / column(reach, r.x), torch.zeros_like(r.x))
        hits, plain, signed = own.hits + sign, own.plain + moved, own.signed + column(sign, moved) * moved
        last = sensing & (n >= self.probes * (own.k + 1).double().sqrt())
        mean = hits / n.clamp(min=1)
        even = signed - column(torch.where(mean.abs() < 1, mean, 0.0), plain) * plain
        k = own.k + last
        size = torch.where(leaping & ~r.won, self.turn.shorter(own.size), own.size)
        size = torch.where(last, s.radius / k.clamp(min=1).to(size.dtype).sqrt(), size)
        after.own = Normals(
            k=k,
            n=torch.where(last, 0, n),
            leap=torch.where(r.exploring, last | (leaping & ~r.won & (size >= reach)), own.leap),
            hits=torch.where(last, 0.0, hits),
            plain=where(last, torch.zeros_like(plain), plain),
            signed=where(last, torch.zeros_like(signed), signed),
            normal=where(last, self.keep * own.normal + even, own.normal),
            size=size,
        )
        begins = leaping & r.won if self.turn.leaps else last
        if some(begins):
            path = self._leap(p, s)[0] if self.turn.leaps else Path.to(p, s.edge)
            path = replace(path, gap=(s.gain / 2).clamp(self.precision / math.sqrt(s.edge[0].numel()), 0.5))
            after.path = where(begins, path, after.path)
            after.phase = torch.where(begins, BISECT, after.phase)
            after.edge = where(begins & leaping, r.x, after.edge)
        after.own.leap = after.own.leap & ~begins
        return after


# ---- by turns


@dataclass
class Turns:
    """Per row: the directions in their `order` int64 [b, d], how many were taken, k int64 [b], and on which `side` [b].

    `angle` [b] is the turn to try first.
    """

    order: Tensor
    k: Tensor
    side: Tensor
    angle: Tensor


@dataclass(frozen=True, repr=False)
class TurnWalk(Walk):
    """Turn the edge around x0 in one direction after the other, as far as it comes nearer; two-sided, L2.

    The directions are the waves of the cosine transform, which are orthogonal, low ones first. A turn goes along the
    half circle over the edge and x0; a bisection ends at a quarter of what it gains.
    """

    norms: tuple[str, ...] = ("l2",)

    def fresh(self, p: Problem) -> Turns:
        """All directions lie ahead."""
        assert isinstance(p.x0, Tensor)
        one = torch.ones_like(p.y, dtype=p.x0.dtype)
        return Turns(low_first(p.noise, p.x0), torch.zeros_like(p.y), one, one * 0.3)

    def tolerance(self, p: Problem, s: WalkState, path: Path) -> Tensor:
        """A thousandth of the distance, or a quarter of the gain of a turn."""
        return torch.where(s.own.k > 0, ((1 - path.high) / 4).clamp(min=1e-6), path.high * 1e-3)

    def _way(self, s: WalkState) -> Tensor:
        own = s.own
        index = own.order.gather(1, ((own.k - 1) % own.order.shape[1]).clamp(min=0).view(-1, 1))[:, 0]
        return column(own.side, s.edge) * wave(index, s.edge)

    def point(self, p: Problem, s: WalkState, at: Tensor) -> Tensor:
        """Return the points of the line or of the circle at the shares `at` [b], [b, ...]."""
        line = s.path.point(p, at)
        return torch.where(column(s.own.k > 0, line), s.path.circle(p, self._way(s), at), line)

    def explore(self, p: Problem, s: WalkState) -> Tensor:
        """Return the edge after a turn by the angle."""
        return Path.to(p, s.edge).circle(p, self._way(s), s.own.angle.cos())

    def learn(self, p: Problem, s: WalkState, after: WalkState, r: Round) -> WalkState:
        """Bisect from a turn that did; else try the other side, then the next direction with a smaller angle."""
        own, cos = s.own, s.own.angle.cos()
        begins = r.exploring & r.won
        path = replace(Path.to(p, s.edge), high=cos, gap=1 - cos)
        after.path, after.phase = where(begins, path, after.path), torch.where(begins, BISECT, after.phase)
        after.edge = where(begins, r.x, after.edge)
        lost = r.exploring & ~r.won & (own.side < 0)
        over = lost | (r.ended & (after.phase == EXPLORE))
        change = torch.where(lost, self.shrink, torch.where(begins, self.grow, 1.0)).to(own.angle.dtype)
        after.own = replace(
            own,
            k=own.k + over,
            side=torch.where(over, 1.0, torch.where(r.exploring & ~r.won, -own.side, own.side)),
            angle=(own.angle * change).clamp(2e-3, 1.2),
        )
        return after

    shrink: float = 0.8
    grow: float = 1.25


# ---- at random


@dataclass(frozen=True, repr=False)
class RandomWalk(Walk):
    """A random step at the same distance and one towards x0, kept where the goal is still reached; L2.

    The state is the two steps' lengths as shares of the distance, [b, 2]: both grow with successes and shrink without.
    """

    norms: tuple[str, ...] = ("l2",)

    def fresh(self, p: Problem) -> Tensor:
        """Return the first lengths."""
        assert isinstance(p.x0, Tensor)
        return torch.full((len(p.y), 2), 0.1, dtype=p.x0.dtype, device=p.y.device)

    def tolerance(self, p: Problem, s: WalkState, path: Path) -> Tensor:
        """A hundredth of the distance."""
        return path.high * 1e-2

    def explore(self, p: Problem, s: WalkState) -> Tensor:
        """Return the edge after both steps; every fifth question is about the first alone."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        around, ahead = s.own.unbind(1)
        v = p.threat.steepest(s.edge - p.x0, p.x0)
        u = p.noise.normal(s.t, v.shape[1:], salt=3, dtype=v.dtype)
        u = p.threat.steepest(u - column((u * v).flatten(1).sum(1), v) * v, p.x0)
        ray = p.threat.steepest(v + column(around, u) * u, p.x0)
        return p.x0 + column(s.radius * (1 - torch.where(s.t % 5 == 0, 0.0, ahead)), ray) * ray

    def learn(self, p: Problem, s: WalkState, after: WalkState, r: Round) -> WalkState:
        """Go where it won, and adapt that step's length."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        asked = s.t % 5 == 0
        kept = r.exploring & r.won
        after.edge = where(kept, r.x, after.edge)
        after.radius = torch.where(kept, p.threat.norm.size(r.x - p.x0), after.radius)
        rate = torch.stack([torch.where(r.won, 1.15, 1 / 1.15), torch.where(r.won, 1.2, 1.2**-0.33)], 1).to(s.own.dtype)
        turn = r.exploring.view(-1, 1) & torch.stack([asked, ~asked], 1)
        after.own = torch.where(turn, (s.own * rate).clamp(1e-6, 1.0), s.own)
        after.own[:, 1].clamp_(max=0.5)
        return after


_REASON = "what labels tell is judged by the queries, not by the optimum; more come nearer"


@recipe(
    "Chen, Jordan, Wainwright 2019, arXiv 1904.02144",
    ("linf", "l2"),
    Access.LABEL,
    factor=1.3,
    smallest=1.3,
    reason=_REASON,
)
def hop_skip_jump(
    queries: int = 1000, probes: int = 30, keep: float = 0.8, precision: float = 0.1, starts: int = 50
) -> NormalWalk:
    """HopSkipJump: along the boundary by its estimated normal to the smallest change; asks for labels alone."""
    return NormalWalk(queries, starts, probes=probes, keep=keep, precision=precision)


@recipe("Reza et al. 2023, arXiv 2308.03163", ("l2",), Access.LABEL, factor=1.2, smallest=1.2, reason=_REASON)
def cgba(
    queries: int = 1000, probes: int = 30, keep: float = 0.5, precision: float = 0.05, starts: int = 50
) -> NormalWalk:
    """CGBA: as HopSkipJump, but back on a half circle from the edge to x0; asks for labels alone."""
    return NormalWalk(queries, starts, ("l2",), probes=probes, keep=keep, precision=precision, turn=Circle())


@recipe(
    "Rahmati et al. 2020, arXiv 2003.06468", ("linf", "l2"), Access.LABEL, factor=1.25, smallest=1.25, reason=_REASON
)
def geoda(
    queries: int = 1000, probes: int = 30, keep: float = 0.9, precision: float = 0.1, starts: int = 50
) -> NormalWalk:
    """GeoDA: from x0 along the estimated normal of a boundary that is taken for flat; asks for labels alone."""
    return NormalWalk(queries, starts, probes=probes, keep=keep, precision=precision, turn=Around())


@recipe(
    "Maho, Furon, Le Merrer 2021, arXiv 2011.12807", ("l2",), Access.LABEL, factor=1.1, smallest=1.1, reason=_REASON
)
def surfree(queries: int = 1000, starts: int = 50) -> TurnWalk:
    """SurFree: turns towards x0 in one orthogonal direction after the other; asks for labels alone."""
    return TurnWalk(queries, starts)


@recipe(
    "Brendel, Rauber, Bethge 2018, arXiv 1712.04248", ("l2",), Access.LABEL, factor=1.25, smallest=1.25, reason=_REASON
)
def boundary(queries: int = 1000, starts: int = 50) -> RandomWalk:
    """Boundary attack: a random walk along the boundary and towards x0; asks for labels alone."""
    return RandomWalk(queries, starts)
