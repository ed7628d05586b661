"""How much of the neighbourhood of an image is fooled: random directions, subspaces, gradient-aligned directions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from scipy.special import betainc
from torch import Tensor

from unfooled._noise import Noise, example_ids, row_keys
from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, PALE, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.losses import margin
from unfooled.stats import mean_interval, wilson

from ._lines import asked, check_rows, random_directions, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Asked: TypeAlias = Target | Callable[..., object]
Norm: TypeAlias = Literal["linf", "l2"]

_ROOM = 2**24  # most values of the bases that exist at once


@dataclass(frozen=True)
class Directions(Explanation):
    """How far random directions lead before the answer changes, and the gradient's direction as the control.

    `first` [n, directions] and `gradient` [n] are the first of `distances` [s] (in `norm`) at which the label is no
    longer y, inf where none is. Images that the target gets wrong are left out.
    """

    target: str
    norm: str
    distances: Tensor
    first: Tensor
    gradient: Tensor
    left_out: int
    forward: int
    backward: int

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a distance: the share of random directions that are adversarial by then, and its interval.

        With several images the interval is for the mean of their shares (the directions of one image are no
        independent images), with one image Wilson's. `images` is the share of images with at least one such direction,
        `gradient` the share that the gradient's direction has fooled by then.
        """
        rows = []
        for distance in self.distances.tolist():
            hit = self.first <= distance
            per_image = hit.double().mean(1).tolist()
            interval = mean_interval(per_image) if len(hit) > 1 else wilson(int(hit.sum()), hit.numel())
            rows.append(
                {
                    "distance": distance,
                    "share": sum(per_image) / len(per_image),
                    "interval": list(interval),
                    "images": float(hit.any(1).double().mean()),
                    "gradient": float((self.gradient <= distance).double().mean()),
                    "n": len(hit),
                    "directions": hit.shape[1],
                }
            )
        return rows

    def sentence(self) -> str:
        """Say what share of random directions is adversarial within the radius, against the gradient's direction."""
        last = self.rows()[-1]
        low, high = last["interval"]
        return (
            f"Within {_named(self.norm)} {last['distance']:.4g}, {last['share']:.2%} of {last['directions']:,} random "
            f"directions around each of {last['n']} images change what {self.target} says (95% interval {low:.2%} to "
            f"{high:.2%}); the gradient's direction does for {last['gradient']:.1%} of the images."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw both shares over the distance."""
        rows = self.rows()
        axes = figure.subplots()
        at = [row["distance"] for row in rows]
        low, high = ([row["interval"][side] for row in rows] for side in (0, 1))
        axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(at, [row["share"] for row in rows], color=COLOURS[0], label="random directions")
        axes.plot(at, [row["gradient"] for row in rows], color=COLOURS[1], label="the gradient's direction")
        axes.set(xlabel=f"{_named(self.norm)} distance", ylabel="share that is adversarial by then", ylim=(-0.02, 1.02))
        axes.grid(visible=True, color=PALE)
        axes.set_title(f"{self.target}: how far random directions lead")
        axes.legend(loc="best")


@dataclass(frozen=True)
class Subspaces(Explanation):
    """Which random subspaces around images hold an adversarial point within eps.

    `found` bool [dims, n, subspaces] is what the search found: a lower bound. `whole` bool [n] is the same search
    without a subspace. `linear` [dims, n] is the share of random subspaces that would hold one if the target were
    linear with the gradient and margin it has at the image (nan for subspaces that are not random or not L2).
    """

    target: str
    norm: str
    eps: float
    kind: str
    dims: tuple[int, ...]
    found: Tensor
    whole: Tensor
    linear: Tensor
    left_out: int
    forward: int
    backward: int

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a dimension: share of subspaces with an adversarial point, interval, and both controls."""
        rows = []
        for i, k in enumerate(self.dims):
            hit = self.found[i]
            per_image = hit.double().mean(1).tolist()
            interval = mean_interval(per_image) if len(hit) > 1 else wilson(int(hit.sum()), hit.numel())
            rows.append(
                {
                    "dimension": k,
                    "share": sum(per_image) / len(per_image),
                    "interval": list(interval),
                    "linear": float(self.linear[i].mean()),
                    "whole": float(self.whole.double().mean()),
                    "n": len(hit),
                    "subspaces": hit.shape[1],
                }
            )
        return rows

    def sentence(self) -> str:
        """Say how the share grows with the dimension, against the whole space."""
        rows = self.rows()
        grows = ", ".join(f"{row['share']:.1%} of {row['dimension']}-dimensional ones" for row in rows)
        return (
            f"Within {_named(self.norm)} {self.eps:g} of {rows[0]['n']} images, an adversarial point of {self.target} "
            f"was found in {grows} ({self.kind} subspaces); the same search in the whole space finds one for "
            f"{rows[0]['whole']:.1%} of the images."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the share over the dimension."""
        rows = self.rows()
        axes = figure.subplots()
        at = list(self.dims)
        low, high = ([row["interval"][side] for row in rows] for side in (0, 1))
        axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(at, [row["share"] for row in rows], "o-", ms=4, color=COLOURS[0], label=f"{self.kind} subspaces")
        if not bool(self.linear.isnan().any()):
            linear = [row["linear"] for row in rows]
            axes.plot(at, linear, "s--", ms=3, color=COLOURS[2], label="if the target were linear there")
        axes.axhline(rows[0]["whole"], color=COLOURS[1], lw=1.2, label="the whole space")
        axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="dimension of the subspace")
        axes.set_xticks(at, [str(k) for k in at])
        axes.minorticks_off()
        axes.set_ylabel("share with an adversarial point")
        axes.grid(visible=True, color=PALE)
        axes.set_title(f"{self.target}: subspaces around images, {_named(self.norm)} {self.eps:g}")
        axes.legend(loc="best")


@dataclass(frozen=True)
class Aligned(Explanation):
    """How many orthogonal directions around an image are adversarial together (Tramèr et al. 2017, GAAS).

    `adversarial` int64 [n, counts] is how many of k orthogonal directions of length eps, each at cosine 1 / sqrt(k) to
    the gradient, are adversarial; `control` [n, counts] how many of k random directions of the same length.
    """

    target: str
    eps: float
    counts: tuple[int, ...]
    adversarial: Tensor
    control: Tensor
    left_out: int
    forward: int
    backward: int

    @property
    def dimension(self) -> Tensor:
        """The largest k of which all directions are adversarial, int64 [n]; 0 where none is."""
        counts = torch.tensor(self.counts)
        return torch.where(self.adversarial == counts, counts, 0).amax(1)

    @property
    def most(self) -> Tensor:
        """The most adversarial directions found at once, int64 [n]."""
        return self.adversarial.amax(1)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per k: share of images for which all k are adversarial, mean number that are, the control."""
        rows = []
        for i, k in enumerate(self.counts):
            every = self.adversarial[:, i] == k
            rows.append(
                {
                    "directions": k,
                    "all": float(every.double().mean()),
                    "interval": list(wilson(int(every.sum()), len(every))),
                    "adversarial": float(self.adversarial[:, i].double().mean()),
                    "control": float(self.control[:, i].double().mean()),
                    "n": len(every),
                }
            )
        return rows

    def sentence(self) -> str:
        """Say how many dimensions are adversarial on average, against random directions."""
        last = self.rows()[-1]
        return (
            f"Around {last['n']} images, L2 {self.eps:g}: on average {self.most.double().mean():.1f} orthogonal "
            f"directions are adversarial for {self.target} at once, and {self.dimension.double().mean():.1f} when all "
            f"that were tried together must be; of {last['directions']} random directions {last['control']:.2f} are."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the number of adversarial directions over the number tried."""
        rows = self.rows()
        axes = figure.subplots()
        axes.plot(self.counts, self.counts, color=PALE, lw=1.2, label="all of them")
        found, control = ([row[key] for row in rows] for key in ("adversarial", "control"))
        axes.plot(self.counts, found, "o-", ms=4, color=COLOURS[0], label="aligned with the gradient")
        axes.plot(self.counts, control, "s--", ms=3, color=COLOURS[1], label="random directions")
        axes.set_ylim(-0.02 * max(found), 1.25 * max(found) + 1)
        axes.set_xlabel("orthogonal directions tried")
        axes.set_ylabel("adversarial ones, mean over images")
        axes.grid(visible=True, color=PALE)
        axes.set_title(f"{self.target}: adversarial directions at L2 {self.eps:g}")
        axes.legend(loc="upper left")


def directions(
    target: Asked,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    n: int = 200,
    norm: Norm = "l2",
    along: int = 10,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Directions:
    """Measure which share of random directions around x [b, ...] with labels y [b] is adversarial within `radius`.

    `n` directions an image, uniform on the sphere (L2) or random signs (Linf), followed to `along` equal distances up
    to `radius`; every point is cut to the target's bounds. The control is the gradient of the margin (L2) or its sign.

    Raises:
        InputError: bad images, labels or settings, or no image that the target gets right.
    """
    if n < 1 or along < 1:
        raise InputError(f"n and along must be at least 1, not {n} and {along}.")
    asker, x, y, left_out = _begin(target, x, y, radius, norm, batch_size)
    distances = radius * torch.arange(1, along + 1, dtype=x.dtype, device=x.device) / along
    if norm == "l2":
        drawn = random_directions(x, n, seed, "directions")
    else:
        drawn = Noise(_keys(x, seed, "directions")).signs(0, (n, *x.shape[1:]), dtype=x.dtype)
    _, _, g = asker.gradient(x, lambda scores, rows: margin(scores, y[rows]))
    rise = g.sign() if norm == "linf" else unit(g.flatten(1)).view_as(g)
    ways = torch.cat([drawn, rise[:, None]], 1)  # [b, n + 1, ...]
    shape, bounds = (len(x), n + 1, along), asker.target.bounds

    def points(rows: Tensor) -> Tensor:
        image, way, step = _unravel(rows, shape)
        reach = distances[step].view(-1, *([1] * (x.dim() - 1)))
        return (x[image] + reach * ways[image, way]).clamp(*bounds)

    labels = asked(asker.labels, math.prod(shape), points, x).view(shape)
    reached = torch.where(labels != y.view(-1, 1, 1), distances, math.inf).amin(2).cpu()
    return Directions(
        asker.target.name, norm, distances.cpu(), reached[:, :n], reached[:, n], left_out, asker.forward, asker.backward
    )


def subspaces(
    target: Asked,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    dims: Sequence[int] = (1, 2, 5, 10, 20, 50),
    n: int = 20,
    kind: Literal["random", "gradient"] | Tensor = "random",
    norm: Norm = "l2",
    steps: int = 20,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Subspaces:
    """Measure which share of k-dimensional subspaces around x [b, ...] holds an adversarial point within eps.

    Subspaces are "random" (uniform), spanned by the "gradient" of the margin at x and at k - 1 random points within
    eps, or by the first k rows of a given basis [k_max, ...] (then one an image). The search climbs the margin by
    `steps` normalised steps along the gradient within the subspace, the first to the full radius, so it is exact for
    linear targets; points are cut to the target's bounds, which cannot take them farther from x. What it does not find
    may yet be there.

    For a linear target, L2 and no bounds the share is P(B >= (margin / (eps |w|))^2) with B ~ Beta(k/2, (m - k)/2).

    Raises:
        InputError: bad images, labels or settings, or no image that the target gets right.
    """
    asker, x, y, left_out = _begin(target, x, y, eps, norm, batch_size)
    m = x[0].numel()
    sizes = tuple(int(k) for k in dims)
    given = kind if isinstance(kind, Tensor) else None
    if given is not None and given.flatten(1).shape[1] != m:
        raise InputError(f"The basis must have rows of the size of an input, {m} values, not {given[0].numel()}.")
    room = m if given is None else min(m, len(given))
    if not sizes or min(sizes) < 1 or max(sizes) > room or n < 1 or steps < 1:
        raise InputError(
            f"dims must lie between 1 and {room}, and n and steps be at least 1; got {sizes}, {n}, {steps}."
        )
    if given is None and kind not in ("random", "gradient"):
        raise InputError(f"kind must be 'random', 'gradient' or a basis, not {kind!r}.")
    each = n if given is None else 1
    found = torch.stack(
        [
            _searched(asker, x, y, _basis(asker, x, y, k, each, kind, eps, seed), k, each, eps, norm, steps)
            for k in sizes
        ]
    )
    value, g = _margin(asker, x, y)
    whole = _climb(asker, x, y, lambda grad: grad, eps, norm, steps)
    linear = torch.full((len(sizes), len(x)), math.nan, dtype=torch.float64)
    if norm == "l2" and given is None and kind == "random":
        need = ((-value / (eps * g.flatten(1).norm(dim=1))).double().cpu() ** 2).clamp(max=1).numpy()
        for i, k in enumerate(sizes):
            linear[i] = torch.from_numpy(1 - betainc(k / 2, (m - k) / 2, need)) if k < m else torch.tensor(need < 1)
    return Subspaces(
        target=asker.target.name,
        norm=norm,
        eps=eps,
        kind="given" if given is not None else str(kind),
        dims=sizes,
        found=found.cpu(),
        whole=whole.cpu(),
        linear=linear,
        left_out=left_out,
        forward=asker.forward,
        backward=asker.backward,
    )


def gaas(
    target: Asked,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    counts: Sequence[int] = (1, 2, 3, 5, 8, 12, 16, 20, 25, 32, 40, 50, 64),
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Aligned:
    """Count orthogonal adversarial directions around x [b, ...] (gradient-aligned adversarial subspace, L2).

    k orthogonal unit directions can at best all have the cosine 1 / sqrt(k) to the gradient (Tramèr et al. 2017,
    arXiv 1704.03453); such ones are built, random otherwise, and x + eps r_i is asked, cut to the bounds. For
    a linear target all are adversarial just when k <= (eps |g| / margin)^2. The paper reports a mean of about 44 found
    on a fully connected MNIST network and 15 on a convolutional one, of which about 25 and 2 transfer to another.

    Raises:
        InputError: bad images, labels or settings, or no image that the target gets right.
    """
    asker, x, y, left_out = _begin(target, x, y, eps, "l2", batch_size)
    m = x[0].numel()
    sizes = tuple(int(k) for k in counts)
    if not sizes or min(sizes) < 1 or max(sizes) > m:
        raise InputError(f"counts must lie between 1 and the {m} values of an input, not {sizes}.")
    _, g = _margin(asker, x, y)
    noise = Noise(_keys(x, seed, "gaas"))
    frame = noise.normal(0, (m, max(sizes)), dtype=x.dtype)
    frame[:, :, 0] = unit(g.flatten(1))
    frame = torch.linalg.qr(frame).Q  # the first column is the gradient's direction, up to its sign
    frame[:, :, 0] = unit(g.flatten(1))
    free = random_directions(x, max(sizes), seed, "gaas control")
    stray = _fooled(asker, x, y, eps * free.flatten(2))  # [b, max]
    aligned = []
    for k in sizes:
        r = (frame[:, :, :k] @ _even(k).to(frame)).transpose(1, 2)  # [b, k, m]
        aligned.append(_fooled(asker, x, y, eps * r).sum(1))
    control = [stray[:, :k].sum(1) for k in sizes]
    return Aligned(
        target=asker.target.name,
        eps=eps,
        counts=sizes,
        adversarial=torch.stack(aligned, 1).cpu(),
        control=torch.stack(control, 1).cpu(),
        left_out=left_out,
        forward=asker.forward,
        backward=asker.backward,
    )


def _begin(
    target: Asked, x: Tensor, y: Tensor, eps: float, norm: str, batch_size: int | str
) -> tuple[Asker, Tensor, Tensor, int]:
    """Return the asker and the images that the target gets right, on its device, with the number left out."""
    if norm not in ("linf", "l2"):
        raise InputError(f"norm must be 'linf' or 'l2', not {norm!r}.")
    if not 0 < eps < math.inf:
        raise InputError(f"The radius must be positive and finite, not {eps}.")
    asker = Asker(target, batch_size=batch_size)
    x = check_rows(x).to(asker.target.device, asker.target.work_dtype)
    if not isinstance(y, Tensor) or y.shape != (len(x),):
        raise InputError(f"y must hold one label for each of the {len(x)} images.")
    y = y.to(x.device, torch.int64)
    right = asker.labels(x) == y
    if not bool(right.any()):
        raise InputError("The target gets none of these images right: there is no answer to be changed.")
    return asker, x[right], y[right], int((~right).sum())


def _margin(asker: Asker, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin [b] (positive: adversarial) and its gradient [b, ...]."""
    _, value, grad = asker.gradient(x, lambda scores, rows: margin(scores, y[rows]))
    return value, grad


def _fooled(asker: Asker, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """Return bool [b, k]: whether x + d, d [b, k, m], cut to the bounds, is not called y."""
    k, bounds = d.shape[1], asker.target.bounds

    def points(rows: Tensor) -> Tensor:
        return (x[rows // k] + d[rows // k, rows % k].view(-1, *x.shape[1:])).clamp(*bounds)

    return asked(asker.labels, len(x) * k, points, x).view(len(x), k) != y.view(-1, 1)


def _basis(
    asker: Asker, x: Tensor, y: Tensor, k: int, n: int, kind: str | Tensor, eps: float, seed: int
) -> Callable[[Tensor], Tensor]:
    """Return rows (places among images x subspaces) -> orthonormal bases [rows, m, k]."""
    m = x[0].numel()
    if isinstance(kind, Tensor):
        given = torch.linalg.qr(kind.flatten(1)[:k].T.to(x)).Q
        return lambda rows: given.expand(len(rows), m, k)
    keys = _keys(x, seed, f"subspaces {k}")

    def drawn(rows: Tensor) -> Tensor:
        return Noise(keys[rows // n]).normal(rows % n, (m, k), dtype=x.dtype)

    def around(rows: Tensor) -> Tensor:
        offsets = drawn(rows).transpose(1, 2)  # [rows, k, m]
        offsets = eps * offsets / offsets.norm(dim=2, keepdim=True)
        offsets[:, 0] = 0
        image = (rows // n).repeat_interleave(k)
        at = (x[image] + offsets.reshape(-1, *x.shape[1:])).clamp(*asker.target.bounds)
        return _margin(asker, at, y[image])[1].reshape(len(rows), k, m).transpose(1, 2)

    span = drawn if kind == "random" else around
    return lambda rows: torch.linalg.qr(span(rows)).Q


def _searched(
    asker: Asker,
    x: Tensor,
    y: Tensor,
    basis: Callable[[Tensor], Tensor],
    k: int,
    n: int,
    eps: float,
    norm: str,
    steps: int,
) -> Tensor:
    """Return bool [b, n]: whether the search within each subspace found an adversarial point."""
    part = max(1, _ROOM // (x[0].numel() * k))
    found = []
    for rows in torch.arange(len(x) * n, device=x.device).split(part):
        q = basis(rows)

        def within(grad: Tensor, q: Tensor = q) -> Tensor:
            return (q @ (q.transpose(1, 2) @ grad.flatten(1)[..., None]))[..., 0].view_as(grad)

        found.append(_climb(asker, x[rows // n], y[rows // n], within, eps, norm, steps))
    return torch.cat(found).view(len(x), n)


def _climb(
    asker: Asker, x: Tensor, y: Tensor, within: Callable[[Tensor], Tensor], eps: float, norm: str, steps: int
) -> Tensor:
    """Return bool [b]: whether a normalised climb of the margin, its steps kept in a subspace, became adversarial.

    Steps shrink from twice eps, so that the first ends on the ball; the change is scaled back into the ball (the L2
    projection, and for Linf what a subspace allows).
    """
    lo, hi = asker.target.bounds
    d = torch.zeros_like(x)
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(steps):
        value, grad = _margin(asker, (x + d).clamp(lo, hi), y)
        found |= value > 0
        if bool(found.all()):
            return found
        inside = (x + d >= lo) & (x + d <= hi)
        rise = within(torch.where(inside, grad, 0.0)).flatten(1)
        size = rise.norm(dim=1, keepdim=True) if norm == "l2" else rise.abs().amax(1, keepdim=True)
        move = 2 * eps * (1 - step / steps) * rise / size.clamp(min=torch.finfo(rise.dtype).tiny)
        d = d + move.view_as(d)
        reach = d.flatten(1).norm(dim=1) if norm == "l2" else d.flatten(1).abs().amax(1)
        d = d * (eps / reach.clamp(min=eps)).view(-1, *([1] * (x.dim() - 1)))
    return found | (asker.value((x + d).clamp(lo, hi), lambda scores, rows: margin(scores, y[rows])) > 0)


def _even(k: int) -> Tensor:
    """Return an orthogonal matrix [k, k] whose first row is 1 / sqrt(k) throughout (Householder), float64."""
    even = torch.full((k,), 1 / math.sqrt(k), dtype=torch.float64)
    v = even.clone()
    v[0] -= 1
    length = v.square().sum()
    return torch.eye(k, dtype=torch.float64) - (2 * torch.outer(v, v) / length if k > 1 else 0)


def _keys(x: Tensor, seed: int, what: str) -> Tensor:
    return torch.from_numpy(row_keys(seed, example_ids(x), what)).to(x.device)


def _unravel(rows: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    return rows // (shape[1] * shape[2]), rows // shape[2] % shape[1], rows % shape[2]


def _named(norm: str) -> str:
    return {"linf": "Linf", "l2": "L2"}[norm]
