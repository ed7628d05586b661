"""Score-based random search: Square (arXiv 1912.00049), vectorised over rows that are at different steps."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .._noise import Noise
from .._rows import Batch, where
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.oracle import Answer
from ..core.threat import Ball, Threat
from ..errors import InputError
from .parts import check_counts, check_size, unfit_ball


@lru_cache
def _schedule(device: torch.device) -> Tensor:
    """After how many of 10,000 queries the squares' area halves, int64 [9]."""
    return torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], device=device)


@dataclass
class SquareState:
    """The best point x [b, ...] by lead [b], the row's own query counter t [b], and the corners of its set.

    `low` and `high` [b, ...] are x0 -+ eps inside the box (Linf; x0 itself elsewhere): a Linf square takes its values
    from them, so that no candidate needs a projection.
    """

    t: Tensor
    x: Tensor
    lead: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, repr=False)
class Square(Attack[SquareState]):
    """Square: random square-shaped changes, kept when the margin grows; one forward pass per row and step.

    Inputs of other ranks are read as images: [b, d] as one row of d pixels, [b, h, w] as one channel, higher ranks with
    all leading axes as channels. `p_init` is the first share of pixels that a square covers.
    """

    queries: int = 5000
    p_init: float = 0.8
    start: str = "stripes"
    access = Access.SCORES

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries)
        check_size("p_init", self.p_init)
        if self.p_init > 1:
            raise InputError(f"p_init is a share of the pixels, 1 at most, not {self.p_init}.")
        if self.start not in ("stripes", "warm"):
            raise InputError(f"There is no start {self.start!r} for square; use stripes or warm.")

    @property
    def steps(self) -> int:
        """Queries per row."""
        return self.queries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Linf and L2 balls with a finite eps on tensors."""
        return unfit_ball(x, threat, ("linf", "l2"), what="squares", bounded=True)

    def init(self, p: Problem) -> SquareState:
        """Start fresh rows at stripes (Linf) or bumps (L2), which the first step looks at, or at the warm point."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball) and isinstance(p.warm, Tensor)
        t, low, high = torch.zeros_like(p.y), p.x0, p.x0
        if p.threat.norm.name == "linf":
            low, high = (p.threat.project(p.x0 + d, p.x0) for d in (-p.threat.eps, p.threat.eps))
            _, c, _, w = (image := _image(low)).shape
            up = p.noise.signs(0, (c, 1, w), salt=1) > 0
            x = torch.where(up, _image(high), image).view_as(p.x0)
        else:
            x = p.threat.project(p.x0 + _tiles(p).view_as(p.x0), p.x0)
        if self.start == "warm" and p.scores is not None and p.oracle.target.draws == 1:
            lead = advantage(Answer(p.scores, p.y), p.y, p.to).to(p.x0.dtype)
            return SquareState(t + 1, p.threat.project(p.warm, p.x0), lead, low, high)
        if self.start == "warm":
            x = p.threat.project(p.warm, p.x0)
        return SquareState(t, x, torch.full_like(p.y, -torch.inf, dtype=p.x0.dtype), low, high)

    def step(self, p: Problem, s: SquareState) -> tuple[SquareState, Trial]:
        """Propose, ask, keep where better."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        if p.threat.norm.name == "linf":
            x = self._linf(p, s)
        else:
            moved = p.threat.project(p.x0 + self._l2(p, _image(s.x - p.x0), s.t).view_as(p.x0), p.x0)
            x = where(s.t > 0, moved, s.x)
        answer = p.oracle.scores(x)
        lead = advantage(answer, p.y, p.to).to(s.lead.dtype)
        better = lead > s.lead
        best, lead = where(better, x, s.x), torch.where(better, lead, s.lead)
        return replace(s, t=s.t + 1, x=best, lead=lead), Trial(x, answer)

    def _side(self, t: Tensor, pixels: int, least: int) -> Tensor:
        """The squares' side at query t, [b]: the published schedule of halvings, scaled to `queries`."""
        scaled = t * 10000 // self.queries
        halvings = torch.bucketize(scaled, _schedule(t.device))
        return (self.p_init * 0.5 ** halvings.double() * pixels).sqrt().round().long().clamp(min=least)

    def _linf(self, p: Problem, s: SquareState) -> Tensor:
        """One square of +-eps per channel; at the first step none."""
        low, high, x = _image(s.low), _image(s.high), _image(s.x)
        _, c, h, w = x.shape
        height, width, top, left = self._window(p, s.t, h, w, 1)
        rows, columns = _mask(h, top, height), _mask(w, left, width)
        up = p.noise.signs(s.t, (c, 1, 1), salt=2) > 0
        rows &= (s.t > 0).view(-1, 1)
        inside = rows.view(-1, 1, h, 1) & columns.view(-1, 1, 1, w)
        return torch.where(inside & up, high, torch.where(inside, low, x)).view_as(s.x)

    def _window(
        self, p: Problem, t: Tensor, h: int, w: int, least: int, salt: int = 3
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A square's height, width, top and left, [b] each; flat inputs get a stretch of the same area.

        From `least` pixels on; where that is more than one, sides are odd: the bumps of L2 have a middle.
        """
        side = self._side(t, h * w, least)
        side = side if least == 1 else side | 1
        height, width = side.clamp(max=h), side.clamp(max=w)
        if h == 1:
            width = side.square().clamp(min=1, max=w)
        elif w == 1:
            height = side.square().clamp(min=1, max=h)
        return height, width, p.noise.integers(t, h - height + 1, salt), p.noise.integers(t, w - width + 1, salt + 1)

    def _l2(self, p: Problem, delta: Tensor, t: Tensor) -> Tensor:
        """The mass of one window moves into a bump in another one."""
        assert isinstance(p.threat, Ball)
        b, c, h, w = delta.shape
        eps = p.threat.eps
        least = min(3, h, w) if min(h, w) > 1 else 1
        height, width, top, left = self._window(p, t, h, w, least)
        top2, left2 = p.noise.integers(t, h - height + 1, 5), p.noise.integers(t, w - width + 1, 6)
        here = _mask(h, top, height).view(b, 1, h, 1) & _mask(w, left, width).view(b, 1, 1, w)
        there = _mask(h, top2, height).view(b, 1, h, 1) & _mask(w, left2, width).view(b, 1, 1, w)
        bump = _bump_at(height, width, top, left, h, w, p.noise.integers(t, 2, 7), delta.dtype)  # [b, 1, h, w]
        bump = bump * p.noise.signs(t, (c, 1, 1), salt=2, dtype=delta.dtype)
        old = torch.where(here, delta, 0.0)
        new = bump + old / _length(old, (2, 3)).clamp(min=1e-10)
        moved = _length(torch.where(here | there, delta, 0.0), (2, 3)).square()  # [b, c, 1, 1]
        spare = (eps**2 - _length(delta, (1, 2, 3)).square()).clamp(min=0) / c
        new = torch.where(here, new, 0.0)
        new = new / _length(new, (2, 3)).clamp(min=1e-10) * (spare + moved).sqrt()
        later = torch.where(here, new, torch.where(there, 0.0, delta))
        return later / _length(later, (1, 2, 3)).clamp(min=1e-10) * eps


def _tiles(p: Problem) -> Tensor:
    """Bumps of random signs all over the image, of length eps, [b, c, h, w]."""
    assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
    image = _image(p.x0)
    _, c, h, w = image.shape
    side = max(min(h, w) // 5, 1)
    down, across = -(-h // side), -(-w // side)
    tiles = _bumps(side, side, image.dtype).to(image.device).repeat(1, down, across)[0, :h, :w]
    signs = p.noise.signs(0, (c, down, across), salt=1, dtype=image.dtype)
    full = tiles * signs.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :h, :w]
    return full / _length(full, (1, 2, 3)).clamp(min=1e-10) * p.threat.eps


def _image(d: Tensor) -> Tensor:
    """Read rows of any rank as images [b, c, h, w]."""
    match d.dim():
        case 1 | 2:
            return d.reshape(len(d), 1, 1, -1)
        case 3:
            return d.unsqueeze(1)
    return d.reshape(len(d), -1, *d.shape[-2:])


def wave(index: Tensor, like: Tensor) -> Tensor:
    """Return the waves `index` int64 [b] of the orthonormal cosine transform (DCT-II) per channel, shaped as `like`."""
    b, c, h, w = _image(like).shape
    channel, place = index // (h * w), index % (h * w)
    rows, columns = _cosine(h, place // w, like), _cosine(w, place % w, like)
    here = (torch.arange(c, device=index.device) == channel.view(-1, 1)).to(like.dtype)
    return (here.view(b, c, 1, 1) * rows.view(b, 1, h, 1) * columns.view(b, 1, 1, w)).view_as(like)


def _cosine(size: int, k: Tensor, like: Tensor) -> Tensor:
    at = torch.arange(size, device=k.device, dtype=like.dtype) + 0.5
    k = k.view(-1, 1).to(like.dtype)
    return torch.cos(k * at * (torch.pi / size)) * torch.where(k > 0, 2.0, 1.0).div(size).sqrt().to(like.dtype)


def low_first(noise: Noise, x: Tensor, spread: float = 0.3) -> Tensor:
    """Return the waves of x [b, ...] by rising frequency, shuffled over `spread` of the range, int64 [b, d]."""
    _, c, h, w = _image(x).shape
    down, across = torch.arange(h, device=x.device) / h, torch.arange(w, device=x.device) / w
    frequency = torch.maximum(down.view(1, h, 1), across.view(1, 1, w)).expand(c, h, w).reshape(1, -1)
    return (frequency + spread * noise.uniform(0, (c * h * w,), salt=9)).argsort(dim=1)


def _length(d: Tensor, axes: tuple[int, ...]) -> Tensor:
    return d.square().sum(axes, keepdim=True).sqrt()


def _mask(size: int, start: Tensor, length: Tensor) -> Tensor:
    """True on [start, start + length) of `size` places, [b, size]."""
    at = torch.arange(size, device=start.device)
    return (at >= start.view(-1, 1)) & (at < (start + length).view(-1, 1))


def _bump_at(
    height: Tensor, width: Tensor, top: Tensor, left: Tensor, h: int, w: int, turned: Tensor, dtype: torch.dtype
) -> Tensor:
    """Each row's bump at its place, [b, 1, h, w]; zero outside its window."""
    sizes = torch.stack([height, width], 1)
    kinds, which = torch.unique(sizes, dim=0, return_inverse=True)
    table = torch.zeros(2 * len(kinds), h, w, dtype=dtype, device=height.device)
    for k, (tall, wide) in enumerate(kinds.tolist()):
        table[2 * k : 2 * k + 2, :tall, :wide] = _bumps(tall, wide, dtype).to(table.device)
    index = which * 2 + turned
    i = (torch.arange(h, device=top.device).view(1, -1, 1) - top.view(-1, 1, 1)).clamp(min=0)
    j = (torch.arange(w, device=top.device).view(1, 1, -1) - left.view(-1, 1, 1)).clamp(min=0)
    inside = _mask(h, top, height).unsqueeze(2) & _mask(w, left, width).unsqueeze(1)
    return torch.where(inside, table[index.view(-1, 1, 1), i, j], 0.0).unsqueeze(1)


@lru_cache(maxsize=256)
def _bumps(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Two pyramids side by side of opposite signs and length 1, lying and standing, [2, height, width]."""

    def pyramid(a: int, b: int) -> Tensor:
        out = torch.zeros(a, b, dtype=dtype)
        row, col = a // 2, b // 2
        for ring in range(max(a // 2 + 1, b // 2 + 1)):
            side = 2 * ring + 1
            out[max(row, 0) : min(row + side, a), max(col, 0) : min(col + side, b)] += 1 / (ring + 1) ** 2
            row, col = row - 1, col - 1
        return out / float(out.norm())

    def halves(a: int, b: int) -> Tensor:
        if a < 2:
            return pyramid(a, b)
        pair = torch.cat([pyramid(a // 2, b), -pyramid(a - a // 2, b)])
        return pair / float(pair.norm())

    return torch.stack([halves(height, width), halves(width, height).T])


@recipe(
    "Andriushchenko et al. 2020, arXiv 1912.00049",
    ("linf", "l2"),
    Access.SCORES,
    factor=1.5,
    reason="a random search is judged by its queries, not by the optimum",
)
def square(queries: int = 5000, p_init: float = 0.8, start: str = "stripes") -> Square:
    """Square: score-based random search with square-shaped changes; no gradient needed."""
    return Square(queries=queries, p_init=p_init, start=start)
