"""Score-based attacks: gradients that are estimated from scores (NES, SPSA), and one direction at a time (SimBA)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._rows import Batch, column, where
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.goal import advantage
from ..core.threat import Ball, Threat
from ..errors import InputError
from .gradient import GradientAttack
from .parts import Cosine, Momentum, Sense, Start, check_counts, check_size, unfit_ball
from .search import low_first, wave


@dataclass(frozen=True, repr=False)
class EstimatedAttack(GradientAttack):
    """Climb a loss by steps along a gradient that is estimated from scores."""

    access = Access.SCORES
    inside = False  # the pairs around a point may lie outside the ball


def _estimated(
    kind: str, queries: int, samples: int, radius: float, step_size: float, decay: float, loss: str
) -> EstimatedAttack:
    check_counts(queries=queries, samples=samples)
    check_size("radius", radius)
    if samples % 2 == 0 or not 3 <= samples < queries:
        raise InputError(f"samples are the point and pairs around it, an odd number from 3 to queries, not {samples}.")
    return EstimatedAttack(
        length=(queries - 1) // samples,  # the last iterate costs one more
        loss=loss,
        start=Start("clean"),
        move=Momentum(decay),
        rate=Cosine(step_size),
        norms=("linf", "l2"),
        sense=Sense(kind, samples, radius),
    )


_REASON = "an estimated gradient is judged by its queries, not by the optimum"


@recipe("Ilyas et al. 2018, arXiv 1804.08598", ("linf", "l2"), Access.SCORES, factor=1.2, reason=_REASON)
def nes(
    queries: int = 2000,
    samples: int = 21,
    radius: float = 0.1,
    step_size: float = 0.5,
    decay: float = 0.95,
    loss: str = "margin",
) -> EstimatedAttack:
    """NES: projected steps along a gradient estimated from scores at normal pairs; `queries` are never exceeded."""
    return _estimated("nes", queries, samples, radius, step_size, decay, loss)


@recipe("Uesato et al. 2018, arXiv 1802.05666", ("linf", "l2"), Access.SCORES, factor=1.2, reason=_REASON)
def spsa(
    queries: int = 2000,
    samples: int = 21,
    radius: float = 0.1,
    step_size: float = 0.5,
    decay: float = 0.95,
    loss: str = "margin",
) -> EstimatedAttack:
    """SPSA: projected steps along a gradient estimated from scores at pairs of random signs."""
    return _estimated("spsa", queries, samples, radius, step_size, decay, loss)


@dataclass
class SimbaState:
    """Per row: queries t and place k in the `order` int64 [b, d] of the directions; x [b, ...] and its lead [b].

    `side` [b] is the sign to try, `size` [b] the step in units of eps.
    """

    t: Tensor
    k: Tensor
    order: Tensor
    x: Tensor
    lead: Tensor
    side: Tensor
    size: Tensor


@dataclass(frozen=True, repr=False)
class Simba(Attack[SimbaState]):
    """One pixel or one wave of the cosine transform at a time, up or down, kept where the margin grows.

    A round takes every direction once, waves from low to high; after a round the step is halved. `step_size` is in
    units of eps: by default 1 under Linf, and 3 / sqrt(d) under L2, where d steps add up to three times the ball.
    """

    queries: int = 2000
    step_size: float | None = None
    basis: str = "pixel"
    access = Access.SCORES

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(queries=self.queries)
        if self.step_size is not None:
            check_size("step_size", self.step_size)
        if self.basis not in ("dct", "pixel"):
            raise InputError(f"There is no basis {self.basis!r} for simba; use dct or pixel.")

    @property
    def steps(self) -> int:
        """Queries per row."""
        return self.queries

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Linf and L2 balls with a finite eps on tensors."""
        return unfit_ball(x, threat, ("linf", "l2"), bounded=True)

    def init(self, p: Problem) -> SimbaState:
        """Start fresh rows at the original, whose scores are asked for first."""
        assert isinstance(p.x0, Tensor) and isinstance(p.threat, Ball)
        zero, one = torch.zeros_like(p.y), torch.ones_like(p.y, dtype=p.x0.dtype)
        size = min(1.0, 3 / math.sqrt(p.x0[0].numel())) if p.threat.norm.name == "l2" else 1.0
        size = size if self.step_size is None else self.step_size
        spread = 0.3 if self.basis == "dct" else 100.0  # pixels have no order
        order = low_first(p.noise, p.x0, spread)
        return SimbaState(zero, zero, order, p.x0, one - torch.inf, one, one * size)

    def step(self, p: Problem, s: SimbaState) -> tuple[SimbaState, Trial]:
        """Ask about one side of one direction; keep it, try the other side, or go on."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        d = s.order.shape[1]
        index = s.order.gather(1, (s.k % d).view(-1, 1))[:, 0]
        if self.basis == "dct":
            way = wave(index, s.x)
        else:
            way = torch.zeros_like(s.x).flatten(1).scatter(1, index.view(-1, 1), 1.0).view_as(s.x)
        if p.threat.norm.name == "linf":  # the largest value moves by the step
            way = way / column(way.flatten(1).abs().amax(1), way)
        x = p.threat.project(s.x + column(s.side * s.size * p.threat.eps, way) * way, p.x0)
        first = s.t == 0
        x = where(first, p.x0, x)
        answer = p.oracle.scores(x)
        lead = advantage(answer, p.y, p.to).to(s.lead.dtype)
        better = lead > s.lead
        over = ~first & (better | (s.side < 0))
        k = s.k + over
        ends = over & (k % d == 0)
        s = replace(
            s,
            t=s.t + 1,
            k=k,
            x=where(better, x, s.x),
            lead=torch.where(better, lead, s.lead),
            side=torch.where(over | first, 1.0, -s.side),
            size=torch.where(ends, s.size / 2, s.size),
        )
        return s, Trial(x, answer)


@recipe("Guo et al. 2019, arXiv 1905.07121", ("linf", "l2"), Access.SCORES)
def simba(queries: int = 2000, step_size: float | None = None, basis: str = "pixel") -> Simba:
    """SimBA: one pixel or one wave (basis='dct') at a time, up or down, kept where the margin grows."""
    return Simba(queries, step_size, basis)
