"""On and off the data manifold: where a perturbation lies.

A manifold is a projection learned from data: PCA (one flat subspace) or a small autoencoder (a surface, flat only near
each point). Shares are of the squared L2 norm, so that the parts add up to 1 and a random direction has in a subspace
of k of d dimensions the share k / d on average.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp

from ..core.ask import Asker
from ..core.explanation import COLOURS, INK, Explanation
from ..core.fit import fit
from ..core.target import Target
from ..errors import InputError
from ..losses import margin
from ..norms import L2
from ..stats import mean_interval
from ._lines import check_pairs, energy, normal_like, part_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- manifolds


@dataclass(frozen=True, eq=False)
class Manifold(ABC):
    """Where data of one example's `shape` lie: a surface of `dims` dimensions.

    `kept` is the share of the data's variance that survives the projection, on data that it was not learned from
    where the maker held some back.
    """

    name: str
    shape: tuple[int, ...]
    dims: int
    kept: float

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return the point of the manifold for each x [n, ...], of the same shape."""

    @abstractmethod
    def basis(self, x: Tensor) -> Tensor:
        """Return orthonormal tangents at the manifold's point for each x [n, ...]: [n, d, k], or [1, d, k] if flat."""

    def split(self, x: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of a change [n, ...] of x [n, ...] along the manifold at x and perpendicular to it."""
        self.check(x)
        on = _onto(self.basis(x), change.flatten(1)).view_as(change)
        return on, change - on

    @property
    def share(self) -> float:
        """The share dims / d of a random direction that lies along the manifold, in the mean (closed form)."""
        return self.dims / math.prod(self.shape)

    def check(self, x: Tensor) -> None:
        """Raise InputError when x is not of the manifold's shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"The manifold was learned from examples of shape {self.shape} but these have {tuple(x.shape[1:])}; "
                "learn one from data of the same shape."
            )


@dataclass(frozen=True, eq=False)
class Flat(Manifold):
    """The affine subspace through `centre` [d] along the orthonormal columns of `axes` [d, k]."""

    centre: Tensor
    axes: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest point of the subspace for each x [n, ...]."""
        self.check(x)
        centre, axes = self.centre.to(x), self.axes.to(x)
        return (centre + _onto(axes[None], x.flatten(1) - centre)).view_as(x)

    def basis(self, x: Tensor) -> Tensor:
        """Return the axes, [1, d, k]: the same everywhere."""
        return self.axes.to(x)[None]


@dataclass(frozen=True, eq=False)
class Curved(Manifold):
    """The image of a decoder; `encoder` maps [n, d] to [n, k] and `decoder` back."""

    encoder: nn.Module
    decoder: nn.Module

    def project(self, x: Tensor) -> Tensor:
        """Return what the autoencoder makes of each x [n, ...]: a point of the surface, not always the nearest."""
        self.check(x)
        with torch.no_grad():
            y: Tensor = self.decoder(self.encoder(x.flatten(1).to(self._like)))
        return y.to(x).view_as(x)

    def basis(self, x: Tensor) -> Tensor:
        """Return the span of the decoder's Jacobian at the code of each x, orthonormal, [n, d, k]."""
        with torch.no_grad():
            codes = self.encoder(x.flatten(1).to(self._like))
            slopes = torch.stack([self._along(codes, at) for at in range(self.dims)], 2)  # [n, d, k]
            return torch.linalg.qr(slopes).Q.to(x)

    def _along(self, codes: Tensor, at: int) -> Tensor:
        """Return the derivative of the decoder by one value of its codes [n, k], [n, d]."""
        step = torch.zeros_like(codes)
        step[:, at] = 1
        with torch.enable_grad():  # forward-mode derivatives would do, but importing them warns
            slope: Tensor = jvp(self.decoder, codes, step)[1]
        return slope

    @property
    def _like(self) -> Tensor:
        return next(self.decoder.parameters())


def pca(data: Tensor, dims: int | None = None, *, variance: float = 0.95) -> Flat:
    """Return the subspace of the data [n, ...] of the `dims` largest variances, or of a share of the variance.

    `kept` is measured on the same data. Raises InputError for fewer than two examples, a share outside (0, 1], or more
    dims than the data span.
    """
    _check_data(data)
    flat = data.flatten(1).double()
    n, d = flat.shape
    if not 0 < variance <= 1:
        raise InputError(f"variance={variance} is no share of the variance: give a number above 0 and at most 1.")
    centre = flat.mean(0)
    centred = flat - centre
    small = centred @ centred.T if n < d else centred.T @ centred  # the smaller of the two Gram matrices
    values, vectors = (t.flip(-1) for t in torch.linalg.eigh(small))
    rank = int((values > values[0] * 1e-10).sum())
    shares = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    k = int((shares < variance - 1e-12).sum()) + 1 if dims is None else dims
    if not 1 <= k <= (rank if dims is not None else d):
        raise InputError(f"dims={k} but the data span {rank} dimensions: ask for 1 to {rank}.")
    k = min(k, rank)
    axes = vectors[:, :k] if n >= d else centred.T @ vectors[:, :k] / values[:k].sqrt()
    kept = float(shares[k - 1])
    return Flat(f"PCA, {k} of {d} dimensions", tuple(data.shape[1:]), k, kept, centre.float(), axes.float())


def autoencoder(
    data: Tensor, dims: int = 16, *, width: int = 128, epochs: int = 20, lr: float = 3e-3, seed: int = 0
) -> Curved:
    """Return the surface that a small autoencoder (d, `width`, `dims`, `width`, d; GELU) learns from data [n, ...].

    The last tenth of the data is held back, and `kept` is measured there. Raises InputError for fewer than 20 examples
    or settings that make no network.
    """
    _check_data(data, least=20)
    flat = data.flatten(1).float()
    n, d = flat.shape
    if not 1 <= dims < d or width < 1:
        raise InputError(f"dims={dims} and width={width} make no bottleneck: give 1 to {d - 1} dims and a width of 1+.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(d, width), nn.GELU(), nn.Linear(width, dims))
        last = nn.Linear(width, d)
        decoder = nn.Sequential(nn.Linear(dims, width), nn.GELU(), last)
    learned, held = flat[: -(n // 10)], flat[-(n // 10) :]
    with torch.no_grad():
        last.bias.copy_(learned.mean(0))
    both = nn.Sequential(encoder, decoder).to(flat.device)
    nothing = torch.zeros(len(learned), dtype=torch.int64)
    fit(both, learned, nothing, _reconstruction, epochs=epochs, lr=lr, seed=seed)
    both.eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        kept = 1 - float((both(held) - held).square().sum() / (held - held.mean(0)).square().sum())
    return Curved(f"autoencoder, {dims} of {d} dimensions", tuple(data.shape[1:]), dims, kept, encoder, decoder)


def _reconstruction(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    return (module(x) - x).square().sum(1).mean()


def _check_data(data: Tensor, least: int = 2) -> None:
    if not isinstance(data, Tensor) or data.dim() < 2 or not data.is_floating_point() or len(data) < least:
        raise InputError(f"A manifold is learned from at least {least} examples: give a float tensor [n, ...].")
    if not bool(data.isfinite().all()):
        raise InputError("The data contain values that are not finite; leave those examples out or mend them.")


def _onto(basis: Tensor, v: Tensor) -> Tensor:
    """Return the part of v [n, d] in the span of orthonormal columns [n or 1, d, k]."""
    if len(basis) == 1:
        return v @ basis[0] @ basis[0].T
    return (basis @ (basis.mT @ v[..., None]))[..., 0]


# ---- on and off the manifold


@dataclass(frozen=True, eq=False)
class OffManifold(Explanation):
    """How much of a change lies along the data manifold.

    `on` float64 [n] is each perturbation's share along the manifold (1 - on lies perpendicular); `controls` holds the
    same of changes that nobody meant to fool with, [m] each; `expected` is what a random direction has in the mean.
    """

    manifold: str
    dims: int
    inputs: int
    kept: float
    expected: float
    on: Tensor
    controls: dict[str, Tensor]

    size = (7.0, 2.8)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for the perturbations and one for each control."""
        return [
            {
                "change": name,
                "on": float(shares.mean()),
                "off": 1 - float(shares.mean()),
                "low": mean_interval(shares.tolist())[0],
                "high": mean_interval(shares.tolist())[1],
                "times_random": float(shares.mean()) / self.expected,
                "n": len(shares),
                "manifold": self.manifold,
            }
            for name, shares in self._all().items()
        ]

    def sentence(self) -> str:
        """Say how the perturbation compares with a random direction and with natural differences."""
        mean = float(self.on.mean())
        natural = [f"{float(s.mean()):.0%} of {name}" for name, s in self.controls.items() if name != RANDOM]
        beside = f" and {' and '.join(natural)}" if natural else ""
        return (
            f"{1 - mean:.0%} of the perturbation (squared L2) lies off the data manifold ({self.manifold}); along it "
            f"lie {mean:.0%}, against {self.expected:.1%} of a random direction{beside}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the mean share along the manifold of each kind of change."""
        ax = figure.subplots()
        rows = self.rows()
        for at, row in enumerate(rows):
            colour = COLOURS[0] if at == 0 else COLOURS[9]
            ax.barh(at, row["on"], color=colour, height=0.6)
            end = row["on"]
            if row["n"] > 1:  # one share has no interval
                ax.plot([row["low"], row["high"]], [at, at], color=INK, lw=1)
                end = max(end, row["high"])
            ax.text(end + 0.015, at, f"{row['on']:.1%}", va="center", fontsize=8)
        ax.axvline(self.expected, color=COLOURS[1], lw=1, ls="--")
        ax.text(self.expected + 0.008, len(rows) - 0.52, "random direction, dims / d", color=COLOURS[1], fontsize=8)
        ax.set_yticks(range(len(rows)), [row["change"] for row in rows])
        ax.set_ylim(len(rows) - 0.35, -0.5)
        ax.set_xlim(0, 1.12)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        ax.set_xlabel("share of the squared change along the manifold")
        ax.set_title(self.manifold)

    def _all(self) -> dict[str, Tensor]:
        return {"adversarial": self.on} | self.controls


RANDOM = "random, same size"
"""The control every share is set against."""

_DRAWN = 64  # random changes at least, however few the examples


def off_manifold(
    x: Tensor,
    x_adv: Tensor,
    manifold: Manifold,
    *,
    natural: tuple[Tensor, Tensor] | None = None,
    pairs: int = 512,
    seed: int = 0,
) -> OffManifold:
    """Return how much of x_adv - x [n, ...] lies along and off the manifold, with controls.

    The controls are random changes of the same norm and, where `natural` images [m, ...] with labels int64 [m] are
    given, differences between two of them of the same class and of different classes (`pairs` each). That
    adversarial changes leave the manifold: Shamir et al. 2021, arXiv:2106.10151, section 4. A linear manifold of the
    whole data set holds more directions than the data have around any one point.

    Raises InputError for shapes that do not fit and for rows without a change.
    """
    check_pairs(x, x_adv)
    change = x_adv - x
    around = x.repeat_interleave(max(1, _DRAWN // len(x)), 0)
    noise = normal_like(tuple(around.shape), x, seed)
    controls = {RANDOM: part_of(manifold.split(around, noise)[0], noise)}
    if natural is not None:
        for name, (first, second) in _natural_pairs(*natural, pairs=pairs, seed=seed).items():
            difference = second - first
            controls[name] = part_of(manifold.split(first, difference)[0], difference)
    return OffManifold(
        manifold.name,
        manifold.dims,
        math.prod(manifold.shape),
        manifold.kept,
        manifold.share,
        part_of(manifold.split(x, change)[0], change),
        controls,
    )


def _natural_pairs(images: Tensor, labels: Tensor, *, pairs: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pairs of different images [m, ...] of one class and of two classes, at most `pairs` of each."""
    if len(images) != len(labels) or len(images) < 2:
        raise InputError(f"natural needs at least two images with a label each, not {len(images)} and {len(labels)}.")
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(images), (2, 16 * pairs), generator=g)
    same = labels.cpu()[first] == labels.cpu()[second]
    kinds = {"natural, same class": same & (first != second), "natural, other class": ~same}
    found = {}
    for name, fits in kinds.items():
        rows = fits.nonzero()[:pairs, 0]
        a, b = images[first[rows]], images[second[rows]]
        apart = energy(b - a) > 0
        if bool(apart.any()):
            found[name] = (a[apart], b[apart])
    return found


# ---- the dimpled manifold


@dataclass(frozen=True, eq=False)
class Dimples(Explanation):
    """The distance to the nearest other class along and off the manifold, and the size of the gradient there.

    `distances` float64 [n] by way (inf where none was found), `share` float64 [n] the gradient's share along the
    manifold, `steepness` its size per dimension along the manifold and off it, root mean square, [n] each.
    """

    manifold: str
    dims: int
    inputs: int
    distances: dict[str, Tensor]
    share: Tensor
    steepness: dict[str, Tensor]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a way: its median distance, also in units of the free distance, and what linearity predicts.

        A linear target needs 1 / sqrt(s) times the free distance where a share s of its gradient is allowed.
        """
        share, d, k = float(self.share.mean()), self.inputs, self.dims
        allowed = {FREE: 1.0, OFF: 1 - share, ON: share, CONTROL: k / d}
        dimensions = {FREE: d, OFF: d - k, ON: k, CONTROL: k}
        free = float(self.distances[FREE].median())
        return [
            {
                "way": way,
                "dimensions": dimensions[way],
                "median": float(found.median()),
                "times_free": float(found.median()) / free if free else math.nan,
                "linear_times_free": 1 / math.sqrt(allowed[way]) if allowed[way] > 0 else math.inf,
                "found": float(found.isfinite().double().mean()),
                "gradient_share": allowed[way],
                "n": len(found),
                "manifold": self.manifold,
            }
            for way, found in self.distances.items()
        ]

    def sentence(self) -> str:
        """Say how far the boundary is along and off the manifold, against a random subspace of as many dimensions."""
        by = {row["way"]: row for row in self.rows()}
        on, off = (float(self.steepness[way].median()) for way in (ON, OFF))
        return (
            f"The nearest other class is {by[OFF]['times_free']:.2f} times the free distance away off the manifold and "
            f"{by[ON]['times_free']:.2f} times along it ({self.manifold}); a random subspace of as many dimensions "
            f"needs {by[CONTROL]['times_free']:.2f} times. Per dimension the gradient is {on / off:.2f} times as large "
            "along the manifold as off it."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the share of images with another class within a distance, one line a way."""
        ax = figure.subplots()
        for at, (way, found) in enumerate(self.distances.items()):
            ranked = found.sort().values
            shares = torch.arange(1, len(ranked) + 1) / len(ranked)
            here = ranked.isfinite()
            style = "--" if way == CONTROL else "-"
            ax.step(ranked[here].tolist(), shares[here].tolist(), style, where="post", color=COLOURS[at], label=way)
        finite = torch.cat([found[found.isfinite()] for found in self.distances.values()])
        ax.set_xlim(0, float(finite.quantile(0.95)) if len(finite) else 1.0)
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("L2 distance of the change")
        ax.set_ylabel("share of images with another class")
        ax.set_title(self.manifold)
        ax.grid(visible=True)
        ax.legend(loc="lower right")


FREE, OFF, ON, CONTROL = "any change", "off the manifold", "along the manifold", "random subspace, same dimensions"
"""The ways in which a change may go."""


def dimples(
    target: Target | Callable[..., object], x: Tensor, y: Tensor, manifold: Manifold, *, steps: int = 60, seed: int = 0
) -> Dimples:
    """Return how near another class is along the manifold, off it, and with no restriction.

    Only images that the target gets right are looked at. All ways, and a random subspace of as many dimensions as the
    manifold, are searched by the same walk (`nearest_within`), which may leave the box of the inputs: a box would cost
    changes along the manifold more, since they cannot be clipped. If there are dimples (Shamir et al. 2021,
    arXiv:2106.10151), the gradient is larger off the manifold per dimension, changes off it suffice and those along it
    are far longer.

    Raises InputError for shapes that do not fit, and where the target gets no image right.
    """
    asker = Asker(target)
    manifold.check(x)
    right = asker.labels(x) == y.to(x.device)
    if not bool(right.any()):
        raise InputError("The target gets none of these images right: give images and labels of its own classes.")
    x, y = x[right], y.to(x.device)[right]
    tangents = manifold.basis(x)
    d, k = math.prod(manifold.shape), manifold.dims
    drawn = torch.linalg.qr(normal_like((d, k), tangents, seed)).Q[None]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        FREE: lambda v: v,
        OFF: lambda v: v - _onto(tangents, v),
        ON: lambda v: _onto(tangents, v),
        CONTROL: lambda v: _onto(drawn, v),
    }
    _, _, grad = asker.gradient(x, lambda scores, rows: margin(scores, y.to(scores.device)[rows]))
    flat = grad.flatten(1)
    on, off = ways[ON](flat), ways[OFF](flat)
    return Dimples(
        manifold.name,
        k,
        d,
        {way: nearest_within(asker, x, y, keep, steps=steps) for way, keep in ways.items()},
        part_of(on, flat),
        {ON: (energy(on) / k).sqrt(), OFF: (energy(off) / max(d - k, 1)).sqrt()},
    )


def nearest_within(asker: Asker, x: Tensor, y: Tensor, keep: Callable[[Tensor], Tensor], *, steps: int = 60) -> Tensor:
    """Return the L2 length of the smallest change found that leaves class y [n], float64 [n], inf where none was.

    `keep` projects changes [n, d] onto the linear subspace that they may use. The walk is that of DDN (Rony et al.
    2019, arXiv:1811.09600) on the margin: unit gradient steps, a radius that shrinks at each success and grows at each
    failure; the last ten looks bisect along the best direction. An upper bound, and exact on linear targets.
    """
    own = x.flatten(1)
    change = best = torch.zeros_like(own)
    radius = torch.zeros_like(own[:, 0])
    size = torch.full_like(radius, torch.inf)

    def look(scores: Tensor, rows: Tensor) -> Tensor:
        return margin(scores, y.to(scores.device)[rows])

    for step in range(steps):
        _, value, grad = asker.gradient((own + change).view_as(x), look)
        length = L2.size(change)
        better = (value > 0) & (length < size)
        best = torch.where(better[:, None], change, best)
        size = torch.where(better, length, size)
        slope = keep(grad.flatten(1))
        steep = L2.size(slope)
        ease = 0.5 * (1 + math.cos(math.pi * step / steps))
        if step == 0:
            radius = torch.where(steep > 0, (-value).clamp(min=0) / steep.clamp(min=1e-30), 0.0)
        else:
            factor = 0.002 + 0.3 * ease
            radius = torch.where(value > 0, radius * (1 - factor), radius * (1 + factor))
        unit = L2.steepest(slope)
        moved = change + (0.05 + 0.95 * ease) * radius[:, None] * unit
        change = L2.steepest(moved) * radius[:, None]
    found = size.isfinite()
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    for _ in range(10):
        middle = (low + high) / 2
        out = margin(asker.scores((own + middle[:, None] * best).view_as(x)), y) > 0
        low, high = torch.where(out, low, middle), torch.where(out, middle, high)
    return torch.where(found, size * high, torch.inf).double()


# ---- frequencies


# ---- aliasing
