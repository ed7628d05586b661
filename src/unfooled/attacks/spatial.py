"""Turned, shifted and zoomed images: poses as a threat, and targets that see every input in a random pose.

An image and its pose make one row (pose, pixels) of which the attacker may move the pose alone, so that every attack
of the shelf, the engine's checks and its records apply to poses as they are (Engstrom et al. 2019, arXiv 1712.02779).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._rows import Batch
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.target import Target, as_target
from ..core.threat import Ball, Threat, linf
from ..errors import InputError
from .parts import check_counts


def warp(x: Tensor, angle: Tensor, zoom: Tensor, down: Tensor, right: Tensor, fill: float = 0.0) -> Tensor:
    """Return images [b, c, h, w] turned, zoomed and shifted about their middle, bilinear, `fill` outside of them.

    `angle` [b] in radians, counter-clockwise as seen; `zoom` [b] a factor; `down` and `right` [b] in pixels.
    Differentiable in all of them.
    """
    h, w = x.shape[-2:]
    v = torch.arange(h, dtype=x.dtype, device=x.device).view(1, h, 1) - (h - 1) / 2 - down.view(-1, 1, 1)
    u = torch.arange(w, dtype=x.dtype, device=x.device).view(1, 1, w) - (w - 1) / 2 - right.view(-1, 1, 1)
    cos, sin = ((f(angle) / zoom).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    from_u, from_v = cos * u - sin * v, sin * u + cos * v  # where a pixel comes from, in pixels from the middle
    grid = torch.stack([from_u * (2 / w), from_v * (2 / h)], 3)
    return torch.nn.functional.grid_sample(x - fill, grid, align_corners=False, padding_mode="zeros") + fill


@dataclass(frozen=True)
class Poses:
    """How far images may be turned (degrees), shifted (a share of each side) and zoomed (a share: 1 -+ zoom)."""

    degrees: float = 30.0
    shift: float = 0.1
    zoom: float = 0.0

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        if not 0 <= self.degrees <= 180 or not 0 <= self.shift < 1 or not 0 <= self.zoom < 1:
            raise InputError(
                f"Poses turn by 0 to 180 degrees and shift and zoom by a share from 0 to below 1, not {self}."
            )

    def apply(self, x: Tensor, pose: Tensor, bounds: tuple[float, float]) -> Tensor:
        """Return images [b, c, h, w] in the poses [b, 4] of -1 to 1: angle, down, right, zoom; black comes in."""
        h, w = x.shape[-2:]
        angle, down, right, zoom = pose.to(x.dtype).unbind(1)
        factor = 1 + self.zoom * zoom
        moved = warp(
            x, angle * math.radians(self.degrees), factor, down * (self.shift * h), right * (self.shift * w), bounds[0]
        )
        return moved.clamp(*bounds)


# ---- the pose as what the attacker moves


class _Posed(nn.Module):
    def __init__(self, images: Target, shape: Sequence[int], poses: Poses) -> None:
        super().__init__()
        self.images, self.shape, self.poses = images, tuple(shape), poses
        self.module = images.module if isinstance(images.module, nn.Module) else None
        self.register_buffer("ranges", torch.tensor([poses.degrees, poses.shift, poses.zoom]))

    def forward(self, rows: Tensor) -> Tensor:
        return self.images.scores(self.seen(rows))

    def seen(self, rows: Tensor) -> Tensor:
        lo, hi = self.images.bounds
        pose = (rows[:, :4] - (lo + hi) / 2) * (2 / (hi - lo))
        return self.poses.apply(rows[:, 4:].view(-1, *self.shape), pose, self.images.bounds)


@dataclass(frozen=True, eq=False)
class Posed:
    """Images whose pose is attacked: attack `target` on `wrap(x)` under `threat`, and `unwrap` what comes out.

    A row is (angle, down, right, zoom, pixels ...): 4 values from the target's lowest to its highest, the middle being
    as the image is, and the image, which the threat's mask keeps as it is. `threat` is the whole range of poses.
    """

    target: Target
    shape: tuple[int, ...]
    poses: Poses

    @property
    def threat(self) -> Ball:
        """All poses: half the box on the values of the pose that have a range."""
        lo, hi = self.target.bounds
        free = torch.zeros(4 + math.prod(self.shape), dtype=torch.bool)
        free[:4] = torch.tensor(
            [self.poses.degrees > 0, self.poses.shift > 0, self.poses.shift > 0, self.poses.zoom > 0]
        )
        return linf((hi - lo) / 2, mask=free)

    def wrap(self, x: Tensor) -> Tensor:
        """Return rows [n, 4 + values] of images [n, ...] as they are."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"These are images of shape {tuple(x.shape[1:])}; the poses were made for {self.shape}.")
        middle = sum(self.target.bounds) / 2
        return torch.cat([torch.full_like(x.flatten(1)[:, :1], middle).expand(-1, 4), x.flatten(1)], 1)

    def unwrap(self, rows: Tensor) -> Tensor:
        """Return the images [n, ...] that the target sees for rows."""
        module = self.target.module
        assert isinstance(module, _Posed)
        with torch.no_grad():
            return module.seen(rows)

    def pose(self, rows: Tensor) -> Tensor:
        """Return the poses of rows, float64 [n, 4]: degrees, pixels down, pixels to the right, zoom factor."""
        lo, hi = self.target.bounds
        u = (rows[:, :4].double() - (lo + hi) / 2) * (2 / (hi - lo))
        h, w = self.shape[-2:]
        p = self.poses
        unit = torch.tensor([p.degrees, p.shift * h, p.shift * w, p.zoom], dtype=torch.float64, device=rows.device)
        return u * unit + torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=rows.device)


def posed(
    target: Target | Callable[..., Any],
    shape: Sequence[int],
    *,
    degrees: float = 30.0,
    shift: float = 0.1,
    zoom: float = 0.0,
) -> Posed:
    """Return the target as one whose images of `shape` [c, h, w] are attacked by their pose alone.

    `degrees` to either side, `shift` up to a share of each side, `zoom` a share larger or smaller. Attack it with
    `pose_grid()`, `worst_of()`, or any recipe of the shelf: `run("apgd()", p.target, p.wrap(x), y, p.threat)`.
    """
    images, poses = as_target(target), Poses(degrees, shift, zoom)
    if len(shape) != 3:
        raise InputError(f"Poses are of images [channels, height, width], not of shape {tuple(shape)}.")
    inner = Target(
        _Posed(images, shape, poses), bounds=images.bounds, name=f"{images.name} by pose", access=images.access,
        classes=images.classes, reject=images.reject,
    )  # fmt: skip
    inner.rounding = max(inner.rounding, 16.0)  # the warp of an image rounds too
    return Posed(inner, tuple(shape), poses)


@dataclass(frozen=True, repr=False)
class PoseGrid(Attack[Tensor]):
    """Every point of a grid over the few values that the threat leaves free, from end to end; one label per point."""

    points: tuple[int, ...] = (31, 5, 5)
    access = Access.LABEL

    def __post_init__(self) -> None:
        """Refuse settings that make no grid."""
        if not self.points:
            raise InputError("A grid needs at least one number of points.")
        for count in self.points:
            check_counts(points=count)

    @property
    def steps(self) -> int:
        """All points of the grid."""
        return math.prod(self.points)

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Linf balls with a finite eps and as many free values as the grid has sides."""
        return _few(x, threat) or (
            f"has a grid of {len(self.points)} values, and the threat leaves {_free(threat)} free"
            if _free(threat) != len(self.points)
            else ""
        )

    def init(self, p: Problem) -> Tensor:
        """The step counter [b]."""
        return torch.zeros_like(p.y)

    def step(self, p: Problem, s: Tensor) -> tuple[Tensor, Trial]:
        """Show the next point of the grid; a side of one point is at its middle."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor) and p.threat.mask is not None
        rest, shares = s, []
        for count in reversed(self.points):
            at = (rest % count).to(p.x0.dtype)
            shares.append(at * (2 / (count - 1)) - 1 if count > 1 else at)
            rest = rest // count
        change = torch.zeros_like(p.x0.flatten(1))
        change[:, p.threat.mask.flatten().to(change.device)] = torch.stack(shares[::-1], 1)
        x = p.threat.project(p.x0 + p.threat.eps * change.view_as(p.x0), p.x0)
        return s + 1, Trial(x, p.oracle.look(x))


@dataclass(frozen=True, repr=False)
class WorstOf(Attack[Tensor]):
    """Points drawn uniformly from the ball, one label each."""

    looks: int = 10
    access = Access.LABEL

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(looks=self.looks)

    @property
    def steps(self) -> int:
        """Draws per row."""
        return self.looks

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Balls with a finite eps that leave few values free: among many, chance finds nothing."""
        return _few(x, threat)

    def init(self, p: Problem) -> Tensor:
        """The step counter [b]."""
        return torch.zeros_like(p.y)

    def step(self, p: Problem, s: Tensor) -> tuple[Tensor, Trial]:
        """Show the next draw."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        x = p.threat.sample(p.noise, s, p.x0)
        return s + 1, Trial(x, p.oracle.look(x))


@recipe("Engstrom et al. 2019, arXiv 1712.02779", (), Access.LABEL)
def pose_grid(points: tuple[int, ...] = (31, 5, 5)) -> PoseGrid:
    """Grid search over poses: so many angles, shifts down and shifts right (and zooms), ends included."""
    return PoseGrid(points=tuple(points))


@recipe("Engstrom et al. 2019, arXiv 1712.02779 (worst-of-k)", (), Access.LABEL)
def worst_of(looks: int = 10) -> WorstOf:
    """The worst of so many random poses."""
    return WorstOf(looks=looks)


def _free(threat: Threat) -> int:
    return int(threat.mask.sum()) if isinstance(threat, Ball) and threat.mask is not None else -1


def _few(x: Batch, threat: Threat) -> str:
    if not isinstance(threat, Ball) or not isinstance(x, Tensor):
        return "needs inputs that are tensors and a norm ball"
    if threat.norm.name != "linf":
        return f"has no points for {threat.norm.symbol}; it takes linf"
    if not 1 <= _free(threat) <= 16:
        return "needs a threat whose mask leaves 1 to 16 values free, such as posed(...).threat"
    return "" if threat.bounded else "needs a finite eps"


# ---- the pose as luck: expectation over transformation


class _Moving(nn.Module):
    def __init__(self, images: Target, poses: Poses) -> None:
        super().__init__()
        self.images, self.poses = images, poses
        self.module = images.module if isinstance(images.module, nn.Module) else None
        self.register_buffer("ranges", torch.tensor([poses.degrees, poses.shift, poses.zoom]))

    def forward(self, x: Tensor) -> Tensor:
        pose = torch.rand(len(x), 4, device=x.device, dtype=x.dtype) * 2 - 1
        return self.images.scores(self.poses.apply(x, pose, self.images.bounds))


def moving(
    target: Target | Callable[..., Any],
    *,
    degrees: float = 30.0,
    shift: float = 0.1,
    zoom: float = 0.0,
    draws: int = 16,
) -> Target:
    """Return the target as a camera that moves sees it: every look is at a new random pose, an answer is of `draws`.

    Attacks climb the loss of the mean scores over the draws (expectation over transformation, Athalye et al. 2018,
    arXiv 1707.07397), and what they find counts where it holds over fresh draws: an object that fools on the move.
    """
    check_counts(draws=draws)
    images = as_target(target)
    out = Target(
        _Moving(images, Poses(degrees, shift, zoom)), bounds=images.bounds, name=f"{images.name} on the move",
        access=images.access, classes=images.classes, reject=images.reject,
    )  # fmt: skip
    out.draws = draws
    return out
