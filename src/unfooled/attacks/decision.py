"""Decision-based attacks ask for the class alone. RayS (arXiv 2006.12792), over rows at different steps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._rows import Batch, column
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..errors import InputError
from .parts import check_counts, unfit_ball

_PRECISION = 1e-3  # of the radius, in units of eps, at which a binary search ends


@dataclass
class RayState:
    """Per row: query counter t [b], the best signs [b, d] and the radius [b] at which they succeed (inf: nowhere yet).

    `block` [b] counts the flips tried; `low` and `high` [b] bracket a binary search for the flipped signs, `flipped`
    [b, d]; `searching` bool [b] says whether one is under way.
    """

    t: Tensor
    signs: Tensor
    radius: Tensor
    flipped: Tensor
    block: Tensor
    low: Tensor
    high: Tensor
    searching: Tensor


@dataclass(frozen=True, repr=False)
class Ray(Attack[RayState]):
    """RayS: the direction of signs along which the boundary is nearest, found by flipping ever smaller blocks.

    Every flip is tried at the radius that is known to do; where it succeeds a binary search finds the new radius. One
    forward pass per row and step; the answer's class is all that is used. `start` 'warm' begins with the signs of the
    best point of the attacks before.
    """

    queries: int = 1000
    start: str = "warm"
    access = Access.LABEL
    inside = False  # it searches outside the ball too, from where it comes nearer

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries)
        if self.start not in ("ones", "warm"):
            raise InputError(f"There is no start {self.start!r} for rays; use ones or warm.")

    @property
    def steps(self) -> int:
        """Queries per row."""
        return self.queries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Linf and L2 balls with a finite eps on tensors."""
        return unfit_ball(x, threat, ("linf", "l2"), what="rays", bounded=True)

    def init(self, p: Problem) -> RayState:
        """Start at the signs of the warm point's change, ones where there is none."""
        assert isinstance(p.x0, Tensor) and isinstance(p.warm, Tensor)
        signs = torch.ones_like(p.x0).flatten(1)
        if self.start == "warm":
            change = (p.warm - p.x0).flatten(1)
            signs = torch.where(change < 0, -1.0, signs)
        zero = torch.zeros_like(p.x0.flatten(1)[:, 0])
        no = torch.zeros_like(p.y, dtype=torch.bool)
        return RayState(torch.zeros_like(p.y), signs, zero + torch.inf, signs, torch.zeros_like(p.y), zero, zero, no)

    def step(self, p: Problem, s: RayState) -> tuple[RayState, Trial]:
        """Show one point per row: a flip at the known radius, or the middle of a binary search."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        lo, hi = p.threat.bounds
        eps, d = max(p.threat.eps, 1e-30), s.signs.shape[1]
        unit = eps if p.threat.norm.name == "linf" else eps / d**0.5  # radius 1: the whole of eps
        most = torch.as_tensor((hi - lo) / unit, dtype=s.radius.dtype, device=s.radius.device)
        known = torch.where(s.radius.isfinite(), s.radius, most)
        signs = torch.where(s.searching.view(-1, 1), s.flipped, self._flip(s, d))
        first = s.t == 0
        signs = torch.where(first.view(-1, 1), s.signs, signs)
        # the radius asked: the whole ball first; a flip where the best is known to succeed, just below it
        at = torch.where(s.searching, (s.low + s.high) / 2, known * (1 - _PRECISION))
        at = torch.where(first, 1.0, at)
        x = (p.x0 + column(at * unit, p.x0) * signs.view_as(p.x0)).clamp(lo, hi)
        inside = at <= 1
        x = torch.where(column(inside, x), p.threat.project(x, p.x0), x)
        answer = p.oracle.label(x)
        won = advantage(answer, p.y, p.to) > 0
        # a binary search goes on; a flip that succeeded begins one; one that failed goes to the next block
        high = torch.where(s.searching, torch.where(won, at, s.high), at)
        low = torch.where(s.searching, torch.where(won, s.low, at), 0.0)
        begins = ~s.searching & won
        goes_on = s.searching & (high - low > _PRECISION)
        ends = s.searching & ~goes_on
        better = ends & (high < known)
        s = replace(
            s,
            t=s.t + 1,
            signs=torch.where((better | begins).view(-1, 1), signs, s.signs),
            radius=torch.where(better | begins, torch.where(begins, at, high), s.radius),
            flipped=signs,
            block=torch.where(ends | (~s.searching & ~won), s.block + 1, s.block),
            low=low,
            high=high,
            searching=begins | goes_on,
        )
        return s, Trial(x, answer)

    @staticmethod
    def _flip(s: RayState, d: int) -> Tensor:
        """Return the signs with the row's next block flipped: one of 1, then of 2, 4, ... equal parts, [b, d]."""
        levels = max(1, (d - 1).bit_length() + 1)
        total = (1 << levels) - 1
        k = s.block % total
        level = (k + 1).double().log2().floor().long()
        parts = torch.ones_like(k) << level
        index = k + 1 - parts
        size = (d + parts - 1) // parts
        at = torch.arange(d, device=s.signs.device)
        chosen = (at >= (index * size).view(-1, 1)) & (at < ((index + 1) * size).view(-1, 1))
        return torch.where(chosen, -s.signs, s.signs)


@recipe(
    "Chen, Gu 2020, arXiv 2006.12792",
    ("linf", "l2"),
    Access.LABEL,
    factor=1.5,
    reason="a search over directions of signs is judged by its queries, not by the optimum",
)
def ray(queries: int = 1000, start: str = "warm") -> Ray:
    """RayS: decision-based search for the direction of signs with the nearest boundary; asks for labels alone."""
    return Ray(queries=queries, start=start)
