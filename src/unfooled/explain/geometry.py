"""Where the boundary of a class lies and how it bends: distances along lines, curvature."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unfooled.core.access import Access
from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, INK, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError

from ._lines import asked, check_like, check_rows, class_names, lengths, random_directions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MEDIAN_COSINE = 0.6745
"""Median of |cos| times sqrt(d) between a random and a fixed direction in many dimensions d: that of |N(0, 1)|."""


@dataclass(frozen=True)
class Distances(Explanation):
    """How far the label of n examples reaches along m random lines and along the adversarial direction, in L2.

    `random` [n, m] is the distance to the first other label along each line, the nearer of its two senses, infinite
    where none was met within `upper`; `adversarial` [n] the same along the adversarial direction. `dimension` is that
    of an input.
    """

    random: Tensor
    adversarial: Tensor
    upper: float
    dimension: int

    size: ClassVar[tuple[float, float]] = (7.0, 3.8)

    @property
    def ratio(self) -> Tensor:
        """The median distance along random lines over the adversarial one, [n]."""
        return self.random.median(1).values / self.adversarial

    @property
    def predicted(self) -> float:
        """That ratio for a single flat boundary at the adversarial distance: sqrt(d) over the median of |N(0, 1)|."""
        return self.dimension**0.5 / MEDIAN_COSINE

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an example: both distances, their ratio, and the flat boundary's."""
        return [
            {
                "example": i,
                "adversarial_l2": float(self.adversarial[i]),
                "random_median_l2": float(self.random[i].median()),
                "random_nearest_l2": float(self.random[i].min()),
                "random_met": float(self.random[i].isfinite().double().mean()),
                "ratio": float(self.ratio[i]),
                "flat_ratio": self.predicted,
            }
            for i in range(len(self.random))
        ]

    def sentence(self) -> str:
        """Return the median ratio beside that of a flat boundary, and on how many lines no boundary was met."""
        met = float(self.random.isfinite().double().mean())
        near, ratio = float(self.adversarial.median()), float(self.ratio.median())
        said = (
            f"The boundary is {near:.3g} away (L2, median) along the adversarial direction and {ratio:.3g} times as far"
            f" along a random line; one flat boundary at that distance in {self.dimension:,} dimensions would be "
            f"{self.predicted:.3g} times as far"
        )
        return f"{said}. On {met:.0%} of the lines a boundary was met within {self.upper:.3g}."

    def draw(self, figure: "Figure") -> None:
        """Draw the distances along random lines in units of the adversarial one, and the flat boundary's."""
        axes = figure.subplots()
        relative = (self.random / self.adversarial[:, None]).flatten()
        found = relative[relative.isfinite()].clamp(min=1e-3)
        edges = np.geomspace(0.5, 2 * max(float(found.max()) if len(found) else 1.0, 2 * self.predicted), 60)
        axes.hist(found.numpy(), bins=edges.tolist(), color=COLOURS[0], alpha=0.75, label="random lines")
        axes.axvline(1, color=COLOURS[1], linewidth=2, label="adversarial direction")
        flat = self.predicted
        axes.axvline(flat, color=INK, linewidth=1, linestyle="dashed", label=f"one flat boundary, median {flat:.3g}")
        lost = 1 - len(found) / relative.numel()
        axes.plot([], [], " ", label=f"no boundary met: {lost:.0%} of the lines")
        axes.set_xscale("log")
        axes.set_xlabel("distance to the boundary / adversarial distance (L2)")
        axes.set_ylabel(f"lines ({relative.numel():,} in all)")
        axes.set_title("How far the label reaches: random lines against the adversarial direction")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def distances(
    target: Target | Callable[..., Any],
    x: Tensor,
    x_adv: Tensor,
    *,
    directions: int | Tensor = 100,
    upper: float | None = None,
    points: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Distances:
    """Return how far the label reaches along random lines and along x_adv - x, by labels alone.

    Every ray is scanned outwards at points in geometric progression until the label changes, then bisected, all rays at
    once; a region thinner than the step of the scan (a fifth of the distance at 40 points) can be stepped over. Points
    may leave the target's box. For a linear target of two classes the distance along a unit direction v is
    |margin| / |<w, v>|, so that random lines are about sqrt(d) times longer (Fawzi et al. 2016, arXiv 1608.08967).

    Args:
        target: whom to ask; labels are enough.
        x: examples, float [n, ...].
        x_adv: an adversarial example of each, [n, ...]; its direction alone counts.
        directions: how many random (normal) lines per example, or directions [m, ...] for all examples.
        upper: how far to look, L2; by default the diagonal of the box.
        points: points of the scan, from a thousandth of `upper` on.
        tolerance: relative, of the bisection.
        seed: of the random directions.
        batch_size: rows a call, or "auto".

    Raises:
        InputError: shapes do not fit, or a direction is zero.
    """
    x = check_rows(x)
    towards = check_like(x_adv, x, "x_adv") - x
    asker = Asker(target, access=Access.LABEL, batch_size=batch_size)
    lo, hi = asker.target.bounds
    n, d = len(x), x[0].numel()
    upper = d**0.5 * (hi - lo) if upper is None else float(upper)
    if not upper > 0 or points < 2 or not 0 < tolerance < 1:
        raise InputError("upper must be above 0, points at least 2, and tolerance between 0 and 1.")
    lines = _lines_of(directions, x, seed)  # [n, m, d]
    towards = _unit(towards.flatten(1), "The adversarial direction")
    rays = torch.cat([lines, -lines, towards[:, None]], 1)  # [n, 2 m + 1, d]
    m, each = lines.shape[1], rays.shape[1]
    found = _first_change(asker, x, rays.flatten(0, 1), each, upper, points, tolerance).view(n, each).cpu()
    return Distances(
        random=torch.minimum(found[:, :m], found[:, m : 2 * m]), adversarial=found[:, -1], upper=upper, dimension=d
    )


def _lines_of(directions: int | Tensor, x: Tensor, seed: int) -> Tensor:
    if isinstance(directions, int):
        if directions < 1:
            raise InputError(f"directions must be at least 1, not {directions}.")
        return random_directions(x, directions, seed, "distances").flatten(2)
    if directions.shape[1:] != x.shape[1:] or not len(directions):
        raise InputError(f"directions must have the shape [m, {', '.join(map(str, x.shape[1:]))}] of examples.")
    given = check_rows(directions.to(x.device, x.dtype), "directions").flatten(1)
    return _unit(given, "A direction").expand(len(x), -1, -1)


def _unit(d: Tensor, what: str) -> Tensor:
    """Return the rows of d [n, m] at length 1; raises InputError where one is zero."""
    size = lengths(d)
    if not bool((size > 0).all()):
        raise InputError(f"{what} is zero everywhere; leave examples out that were not changed.")
    return d / size[:, None]


def _first_change(
    asker: Asker, x: Tensor, rays: Tensor, each: int, upper: float, points: int, tolerance: float
) -> Tensor:
    """Return the distance [q] of the first other label along the rays [q, d], `each` per example of x; inf: none."""
    own, flat = asker.labels(x), x.flatten(1)
    t = torch.logspace(-3, 0, points, device=x.device, dtype=torch.float64) * upper

    def other(ray: Tensor, at: Tensor) -> Tensor:
        def make(rows: Tensor) -> Tensor:
            r = ray[rows]
            return (flat[r // each] + at[rows, None].to(x.dtype) * rays[r]).view(-1, *x.shape[1:])

        return asked(asker.labels, len(ray), make, x) != own[ray // each]

    first = torch.full((len(rays),), points, device=x.device)
    for block in torch.arange(points, device=x.device).split(_BLOCK):
        left = (first == points).nonzero()[:, 0]
        if not len(left):
            break
        k = len(block)
        changed = other(left.repeat_interleave(k), t[block].repeat(len(left))).view(-1, k)
        hit = changed.any(1)
        first[left[hit]] = block[changed[hit].int().argmax(1)]
    met = (first < points).nonzero()[:, 0]
    far = t[first[met]]
    near = torch.where(first[met] > 0, t[(first[met] - 1).clamp(min=0)], 0.0)
    for _ in range(math.ceil(-math.log2(tolerance))):
        if not len(met):
            break
        middle = (near + far) / 2
        beyond = other(met, middle)
        near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
    out = torch.full((len(rays),), torch.inf, device=x.device, dtype=torch.float64)
    out[met] = far
    return out.float()


_BLOCK = 5
"""Points of a scan that are asked at once: rays that met the boundary are not followed farther."""


@dataclass(frozen=True)
class Curvature(Explanation):
    """How the boundary between two classes bends at a boundary point of each of n examples; curvatures in 1 / L2.

    `distance` [n] is that of the boundary point from its example, `own` and `other` int64 [n] the classes that meet
    there. `directional` [n, m] are normal curvatures along random tangent directions, `principal` [n, s] Ritz values
    (largest first) whose ends approach the largest and smallest principal curvature. Positive: the own class's region
    is convex there, as a ball around the example would be (curvature 1 / distance). `step` [n] is the finite step of
    the differences, `asymmetry` [n] how far the differenced Hessian is from symmetric (0: a quadratic function),
    `offset` [n] |f_own - f_other| / ||gradient|| left at the point.
    """

    distance: Tensor
    own: Tensor
    other: Tensor
    directional: Tensor
    principal: Tensor
    step: Tensor
    asymmetry: Tensor
    offset: Tensor
    names: tuple[str, ...]

    size: ClassVar[tuple[float, float]] = (8.6, 3.8)

    @property
    def mean(self) -> Tensor:
        """The mean curvature, [n]: the mean over random tangent directions."""
        return self.directional.mean(1)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an example, curvatures as such and in units of 1 / distance."""
        return [
            {
                "example": i,
                "from": self.names[int(self.own[i])],
                "to": self.names[int(self.other[i])],
                "distance_l2": float(self.distance[i]),
                "mean": float(self.mean[i]),
                "largest": float(self.principal[i, 0]),
                "smallest": float(self.principal[i, -1]),
                "mean_relative": float(self.mean[i] * self.distance[i]),
                "largest_relative": float(self.principal[i, 0] * self.distance[i]),
                "smallest_relative": float(self.principal[i, -1] * self.distance[i]),
                "asymmetry": float(self.asymmetry[i]),
                "offset_l2": float(self.offset[i]),
            }
            for i in range(len(self.distance))
        ]

    def sentence(self) -> str:
        """Return typical and extreme curvature beside the ball's, and what the differences leave."""
        mean = float((self.mean * self.distance).median())
        most, least = (float((self.principal[:, i] * self.distance).median()) for i in (0, -1))
        return (
            f"In units of a ball around the example that touches the boundary there (1), the boundary's curvature is "
            f"{mean:.2g} on average over directions and between {least:.2g} and {most:.2g} along its extreme ones "
            f"(medians over {len(self.distance)} boundary points); differences over a finite step, whose Hessian is "
            f"{float(self.asymmetry.median()):.0%} asymmetric."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw curvatures along random directions, and the profile of the extreme ones, in units of 1 / distance."""
        left, right = figure.subplots(1, 2)
        scale = self.distance[:, None]
        values = (self.directional * scale).flatten().numpy()
        reach = max(1.2, float(np.abs(values).max()) * 1.05)
        left.hist(values, bins=np.linspace(-reach, reach, 61).tolist(), color=COLOURS[0])
        left.axvline(1, color=COLOURS[1], linewidth=1.5)
        left.annotate("ball", (1, 1), xycoords=("data", "axes fraction"), xytext=(-4, -3), textcoords="offset points",
                      color=COLOURS[1], ha="right", va="top")  # fmt: skip
        left.set_xlabel("curvature × distance")
        left.set_ylabel("directions")
        left.set_title("Random tangent directions")
        profile = self.principal * scale
        rank = list(range(1, profile.shape[1] + 1))
        low, middle, high = (profile.quantile(q, 0).tolist() for q in (0.25, 0.5, 0.75))
        right.fill_between(rank, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        right.plot(rank, middle, color=COLOURS[0], marker="o", markersize=3)
        right.axhline(1, color=COLOURS[1], linewidth=1.5)
        right.axhline(0, color=INK, linewidth=0.8, linestyle="dashed")
        right.set_yscale("symlog", linthresh=1)
        right.set_xlabel("rank of the direction")
        right.set_title("Extreme directions (median, quartiles)")
        right.grid(axis="y")


def curvature(
    target: Target | Callable[..., Any],
    x: Tensor,
    x_adv: Tensor,
    *,
    directions: int = 32,
    step: float = 0.5,
    iterations: int = 16,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Curvature:
    """Return the curvature of the boundary where the segment from x to x_adv first crosses it.

    With F = f_own - f_other and v a unit vector of the tangent space, the normal curvature is
    -v' H v / ||grad F|| (Fawzi et al. 2017, arXiv 1705.09552; the sign here makes a convex region positive). Networks
    of ReLU have no Hessian but kinks, so that it is measured over a finite step h: along random directions by
    (F(z + hv) + F(z - hv) - 2 F(z)) / h², for the extreme ones by the Lanczos subspace of differenced gradients.
    Exact for quadratic F: 1 / r on a sphere of radius r, 0 on a plane.

    Args:
        target: whom to ask; its gradients are needed.
        x: examples, float [n, ...].
        x_adv: a point of another label for each, [n, ...].
        directions: random tangent directions per point.
        step: h as a share of the boundary point's distance from x.
        iterations: size of the Lanczos subspace, cut to d - 1.
        seed: of the directions.
        batch_size: rows a call, or "auto".

    Raises:
        InputError: shapes do not fit, or x_adv has the label of x.
    """
    x = check_rows(x)
    x_adv = check_like(x_adv, x, "x_adv")
    if not step > 0 or directions < 1 or iterations < 1:
        raise InputError("step must be above 0, directions and iterations at least 1.")
    if x[0].numel() < 2:
        raise InputError("A boundary bends in two dimensions or more; these examples have one.")
    asker = Asker(target, batch_size=batch_size)
    own = asker.labels(x)
    z, other = _crossing(asker, x, x_adv, own)
    n, flat = len(x), z.flatten(1)

    def gap(points: Tensor) -> Tensor:
        """Return F at points [n, c, d], [n, c]."""
        scores = asked(asker.scores, points.shape[0] * points.shape[1],
                       lambda rows: points.flatten(0, 1)[rows].view(-1, *x.shape[1:]), x)  # fmt: skip
        scores = scores.view(n, points.shape[1], -1)
        pair = torch.stack([own, other], 1)[:, None].expand(-1, points.shape[1], -1)
        both = scores.double().gather(2, pair)
        return both[..., 0] - both[..., 1]

    def slope(points: Tensor) -> Tensor:
        """Return the gradient of F at points [b n, d], [b n, d]."""
        b = len(points) // n

        def value(scores: Tensor, rows: Tensor) -> Tensor:
            pair = [c.repeat(b).to(rows.device)[rows].to(scores.device) for c in (own, other)]
            first, second = (scores.gather(1, c[:, None])[:, 0] for c in pair)
            return first - second

        return asker.gradient(points.view(-1, *x.shape[1:]), value)[2].flatten(1)

    grad = slope(flat)
    length = lengths(grad).clamp(min=1e-30)
    normal = grad / length[:, None]
    away = lengths((z - x).flatten(1))
    h = (step * away).clamp(min=1e-6)

    drawn = random_directions(x, directions + 1, seed, "curvature").flatten(2)
    tangent = drawn - (drawn @ normal[:, :, None]) * normal[:, None]
    tangent = tangent / lengths(tangent)[..., None].clamp(min=1e-30)
    move = h[:, None, None] * tangent[:, 1:]
    middle = gap(flat[:, None])
    bent = gap(flat[:, None] + move) + gap(flat[:, None] - move) - 2 * middle
    directional = -bent / (h.double().square() * length.double())[:, None]

    def hessian(v: Tensor) -> Tensor:
        """Return minus the differenced Hessian over ||grad F|| times v, in the tangent space, [n, d]."""
        ahead, behind = slope(torch.cat([flat + h[:, None] * v, flat - h[:, None] * v])).split(n)
        out = (behind - ahead) / (2 * h * length)[:, None]
        return out - (out * normal).sum(1, keepdim=True) * normal

    principal, asymmetry = _ritz(hessian, tangent[:, 0], normal, iterations, seed)
    return Curvature(
        distance=away.cpu(), own=own.cpu(), other=other.cpu(), directional=directional.float().cpu(),
        principal=principal.cpu(), step=h.cpu(), asymmetry=asymmetry.cpu(),
        offset=(middle[:, 0].abs() / length).float().cpu(),
        names=class_names(asker.target, 1 + int(torch.cat([own, other]).max())),
    )  # fmt: skip


def _crossing(asker: Asker, x: Tensor, x_adv: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points of the segments where the label changes, [n, ...], and the class beyond, int64 [n]."""
    if bool((asker.labels(x_adv) == own).any()):
        raise InputError("x_adv has the label of x in at least one row; give points of another label.")
    near, far = (torch.full((len(x),), v, device=x.device, dtype=torch.float64) for v in (0.0, 1.0))
    shape = (-1, *[1] * (x.dim() - 1))
    for _ in range(24):
        middle = (near + far) / 2
        beyond = asker.labels(x + middle.to(x.dtype).view(shape) * (x_adv - x)) != own
        near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
    z = x + far.to(x.dtype).view(shape) * (x_adv - x)
    label = asker.labels(z)
    if bool((label == own).any()):  # rounding of the last halving
        z = x + (far * (1 + 1e-6)).clamp(max=1.0).to(x.dtype).view(shape) * (x_adv - x)
        label = asker.labels(z)
    return z, label


def _ritz(
    apply: Callable[[Tensor], Tensor], start: Tensor, normal: Tensor, iterations: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return Ritz values [n, s], largest first, of a linear map on the space across `normal`, and its asymmetry [n].

    Lanczos vectors with full orthogonalisation, one per step and row; where the subspace is used up (a sphere has one
    curvature) a fresh random direction goes on.
    """
    n, d = start.shape
    size = min(iterations, d - 1)
    fresh = torch.randn(size, d, generator=torch.Generator().manual_seed(seed)).to(start)
    basis, images = start[:, None], []
    for i in range(size):
        images.append(apply(basis[:, i]))
        if i + 1 == size:
            break
        step = _across(images[-1], basis, normal)
        small = lengths(step) < 1e-3 * lengths(images[-1]).clamp(min=1e-12)
        step = torch.where(small[:, None], _across(fresh[i].expand(n, -1), basis, normal), step)
        basis = torch.cat([basis, (step / lengths(step)[:, None].clamp(min=1e-30))[:, None]], 1)
    matrix = basis.double() @ torch.stack(images, 1).double().mT  # [n, s, s]
    even = (matrix + matrix.mT) / 2
    odd = (matrix - matrix.mT).flatten(1).norm(dim=1) / (2 * even.flatten(1).norm(dim=1)).clamp(min=1e-30)
    return torch.linalg.eigvalsh(even).flip(1).float(), odd.float()


def _across(v: Tensor, basis: Tensor, normal: Tensor) -> Tensor:
    """Return what of v [n, d] is orthogonal to the basis [n, s, d] and the normal [n, d]."""
    for _ in range(2):  # once more for what rounding left
        v = v - (v * normal).sum(1, keepdim=True) * normal
        v = v - ((basis @ v[:, :, None]) * basis).sum(1)
    return v
