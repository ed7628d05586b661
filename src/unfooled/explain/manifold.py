"""On and off the data manifold, in frequency, and beyond Nyquist: where a perturbation lies.

A manifold is a projection learned from data: PCA (one flat subspace) or a small autoencoder (a surface, flat only near
each point). Shares are of the squared L2 norm, so that the parts add up to 1 and a random direction has in a subspace
of k of d dimensions the share k / d on average.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jvp

from ..core.ask import Asker, confidences
from ..core.explanation import COLOURS, INK, SOFT, Explanation
from ..core.fit import fit
from ..core.target import Target
from ..errors import InputError
from ..losses import margin
from ..norms import L2
from ..stats import mean_interval

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


def _energy(v: Tensor) -> Tensor:
    """Return the squared L2 norm of each row of v [n, ...], float64."""
    return v.flatten(1).double().square().sum(1)


def _part(part: Tensor, whole: Tensor) -> Tensor:
    """Return the share of the squared norm of each row of `whole` that lies in `part`, float64 [n]."""
    return (_energy(part) / _energy(whole)).clamp(0, 1)


def _normal(shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
    """Return normal draws in the dtype and on the device of `like`, drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _check_pairs(x: Tensor, x_adv: Tensor) -> None:
    if x.shape != x_adv.shape or x.dim() < 2 or len(x) == 0:
        raise InputError(f"x and x_adv must be of one shape [n, ...], not {tuple(x.shape)} and {tuple(x_adv.shape)}.")
    if bool((_energy(x_adv - x) == 0).any()):
        raise InputError("Some rows of x_adv equal x: give only the examples that an attack changed.")


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
            ax.plot([row["low"], row["high"]], [at, at], color=INK, lw=1)
            ax.text(max(row["on"], row["high"]) + 0.015, at, f"{row['on']:.1%}", va="center", fontsize=8)
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
    _check_pairs(x, x_adv)
    change = x_adv - x
    noise = _normal(tuple(x.shape), x, seed)
    controls = {RANDOM: _part(manifold.split(x, noise)[0], noise)}
    if natural is not None:
        for name, (first, second) in _natural_pairs(*natural, pairs=pairs, seed=seed).items():
            difference = second - first
            controls[name] = _part(manifold.split(first, difference)[0], difference)
    return OffManifold(
        manifold.name,
        manifold.dims,
        math.prod(manifold.shape),
        manifold.kept,
        manifold.share,
        _part(manifold.split(x, change)[0], change),
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
        apart = _energy(b - a) > 0
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
    drawn = torch.linalg.qr(_normal((d, k), tangents, seed)).Q[None]
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
        _part(on, flat),
        {ON: (_energy(on) / k).sqrt(), OFF: (_energy(off) / max(d - k, 1)).sqrt()},
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


@dataclass(frozen=True, eq=False)
class Spectrum(Explanation):
    """Power by radial frequency, without the constant part.

    `radius` [r] in cycles per pixel; `counts` [r] Fourier coefficients in each ring; `shares` float64 [n, r] of the
    power by what was looked at; `constant` float64 [n] the share of the perturbation's power in the constant part.
    """

    radius: Tensor
    counts: Tensor
    shares: dict[str, Tensor]
    constant: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind and ring; `times_white` is the power per coefficient against white noise's."""
        white = (self.counts / self.counts.sum()).double()
        return [
            {
                "kind": kind,
                "radius": float(self.radius[at]),
                "share": float(mean[at]),
                "times_white": float(mean[at] / white[at]),
                "coefficients": int(self.counts[at]),
                "n": len(shares),
            }
            for kind, shares in self.shares.items()
            for mean in [shares.mean(0)]
            for at in range(len(self.radius))
        ]

    def high(self, kind: str = "adversarial") -> Tensor:
        """Return the share of each row's power above half the Nyquist frequency (0.25 cycles per pixel), [n]."""
        return self.shares[kind][:, self.radius > 0.25].sum(1)

    @property
    def white(self) -> float:
        """The share of white noise above 0.25 cycles per pixel, in the mean (closed form: the coefficients' share)."""
        return float(self.counts[self.radius > 0.25].sum() / self.counts.sum())

    def sentence(self) -> str:
        """Say how much of the perturbation is fine, against the images and white noise."""
        return (
            f"{float(self.high().mean()):.0%} of the perturbation's power lies above half the Nyquist frequency, "
            f"against {float(self.high('images').mean()):.0%} of the images' and {self.white:.0%} of white noise "
            f"({float(self.high('white noise').mean()):.0%} measured)."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the power per coefficient by radius, white noise being 1."""
        ax = figure.subplots()
        white = (self.counts / self.counts.sum()).double()
        for (kind, shares), colour in zip(self.shares.items(), (COLOURS[0], COLOURS[2], COLOURS[9]), strict=True):
            part = shares / white
            middle = part.mean(0)
            ax.plot(self.radius.tolist(), middle.tolist(), "o-", ms=3, color=colour, label=kind)
            if len(part) > 4:
                low, high = part.quantile(torch.tensor([0.1, 0.9], dtype=part.dtype, device=part.device), dim=0)
                ax.fill_between(self.radius.tolist(), low.tolist(), high.tolist(), color=colour, alpha=0.15, lw=0)
        ax.axvline(0.5, color=SOFT, lw=0.8, ls=":")
        ax.text(0.495, 0.98, "Nyquist along the axes", transform=ax.get_xaxis_transform(), ha="right", va="top",
                rotation=90, fontsize=8, color=SOFT)  # fmt: skip
        ax.set_yscale("log")
        floor = float(self.shares["adversarial"].mean(0).div(white).min())
        ax.set_ylim(bottom=max(min(floor / 3, 0.05), 1e-4))
        ax.set_xlabel("frequency (cycles per pixel)")
        ax.set_ylabel("power per coefficient, white noise = 1")
        ax.grid(visible=True)
        ax.legend()


def spectrum(x: Tensor, x_adv: Tensor, *, seed: int = 0) -> Spectrum:
    """Return the radial power spectrum of x_adv - x [n, c, h, w] beside that of the images and of white noise.

    Rings are one step of the shorter side's frequency wide; the mean of every channel is taken out first. Raises
    InputError for anything but images and for rows without a change.
    """
    _check_pairs(x, x_adv)
    _check_images(x)
    rings, counts = _rings(x.shape[-2], x.shape[-1], x.device)
    change = x_adv - x
    flat = change - change.mean((-2, -1), keepdim=True)
    kinds = {"adversarial": change, "images": x, "white noise": _normal(tuple(x.shape), x, seed)}
    return Spectrum(
        torch.arange(1, len(counts), device=x.device) / min(x.shape[-2:]),
        counts[1:],
        {kind: _by_ring(images, rings, len(counts)) for kind, images in kinds.items()},
        1 - _part(flat, change),
    )


def _check_images(x: Tensor) -> None:
    if x.dim() != 4 or min(x.shape[-2:]) < 4:
        raise InputError(f"Frequencies are those of images [n, c, h, w] of 4 x 4 pixels or more, not {tuple(x.shape)}.")


def _frequencies(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return |frequency| in cycles per pixel along height [h, 1] and width [1, w]."""
    return torch.fft.fftfreq(h, device=device).abs()[:, None], torch.fft.fftfreq(w, device=device).abs()[None]


def _rings(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ring of each Fourier coefficient, int64 [h * w], and the number of coefficients of each ring [r]."""
    fy, fx = _frequencies(h, w, device)
    rings = ((fy.square() + fx.square()).sqrt() * min(h, w)).round().long()
    rings.view(-1)[1:].clamp_(min=1)  # the constant alone is ring 0, however long one side is
    return rings.flatten(), torch.bincount(rings.flatten())


def _by_ring(x: Tensor, rings: Tensor, count: int) -> Tensor:
    """Return the share of the power of x [n, c, h, w] in each ring but the constant one, float64 [n, count - 1]."""
    power = torch.fft.fft2(x.double()).abs().square().sum(1).flatten(1)  # [n, h * w]
    sums = power.new_zeros(len(x), count).index_add_(1, rings, power)[:, 1:]
    return sums / sums.sum(1, keepdim=True).clamp(min=1e-300)


# ---- aliasing


@dataclass(frozen=True, eq=False)
class Aliasing(Explanation):
    """What strided layers fold back, and what a shift by one pixel does.

    `layers` holds the names with strides; `folded` float64 [n, l] the share of each layer's power (without the
    constant) beyond the Nyquist frequency of its stride; `white` [l] that share of white noise; `changed` and
    `control` bool [n, 4] whether the predicted class changes under each shift and under a random change of the shift's
    L2 size; `confidence` float64 [n, 2] in the first answer before and in the mean after the shifts.
    """

    layers: tuple[str, ...]
    folded: Tensor
    white: Tensor
    changed: Tensor
    control: Tensor
    confidence: Tensor

    size = (7.0, 3.4)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a strided layer and one for the shifts; `white` and `control` are what each is set against."""
        n = len(self.changed)
        rows: list[dict[str, Any]] = [
            {
                "what": name,
                "measure": "power folded back",
                "value": float(self.folded[:, at].mean()),
                "low": mean_interval(self.folded[:, at].tolist())[0],
                "high": mean_interval(self.folded[:, at].tolist())[1],
                "control": float(self.white[at]),
                "n": n,
            }
            for at, name in enumerate(self.layers)
        ]
        moved, other = self.changed.double().mean(1), self.control.double().mean(1)
        low, high = mean_interval(moved.tolist())
        what = {"what": "shift by one pixel", "measure": "class changed", "value": float(moved.mean())}
        return [*rows, what | {"low": low, "high": high, "control": float(other.mean()), "n": n}]

    def sentence(self) -> str:
        """Say what is folded back against white noise, and how often a shift changes the class."""
        shift = self.rows()[-1]
        moved = (
            f"A shift by one pixel changes the class of {shift['value']:.1%} of the answers, "
            f"a random change of the same size {shift['control']:.1%}."
        )
        if not self.layers:
            return f"No strided layer was found to measure. {moved}"
        worst = int(self.folded.mean(0).argmax())
        return (
            f"Strided layers fold {float(self.folded.mean()):.0%} of their power back from beyond Nyquist, at most "
            f"{float(self.folded[:, worst].mean()):.0%} ({self.layers[worst]}), where white noise would have "
            f"{float(self.white[worst]):.0%}. {moved}"
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the folded share of each layer, and the classes changed by shifts, beside their controls."""
        ax = figure.subplots()
        rows = self.rows()
        for at, row in enumerate(rows):
            ax.barh(at, row["value"], height=0.55, color=COLOURS[0] if at < len(self.layers) else COLOURS[3])
            ax.plot([row["low"], row["high"]], [at, at], color=INK, lw=1)
            ax.plot([row["control"]] * 2, [at - 0.34, at + 0.34], color=COLOURS[1], lw=2)
            ax.text(row["high"] + 0.012, at, f"{row['value']:.1%}", va="center", fontsize=8)
        ax.plot([], [], color=COLOURS[1], lw=2, label="control: white noise; random change of the shift's size")
        ax.set_yticks(range(len(rows)), [f"{row['what']}:\n{row['measure']}" for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(0, 1.05 * max(max(row["high"], row["control"]) for row in rows) + 0.08)
        ax.set_xlabel("share")
        figure.legend(loc="outside upper left")


def aliasing(target: Target | Callable[..., object], x: Tensor, *, seed: int = 0) -> Aliasing:
    """Return how much power each strided convolution or pooling of the target folds back on x [n, c, h, w].

    Each such layer is asked for its response at stride 1, and what lies beyond the Nyquist frequency of its true
    stride is what subsampling folds onto lower frequencies (Grabinski et al. 2022, arXiv:2204.00491, measure the same
    excess). Strides that are no layer, such as slices, are not seen; a target that is no module has no layers. Shifts
    repeat the edge. Raises InputError for anything but images.
    """
    _check_images(x)
    asker = Asker(target)
    found: dict[str, list[Tensor]] = {}
    white: dict[str, float] = {}
    with _folding(asker.target.module, found, white):
        clean = confidences(asker.scores(x))
    label = clean.argmax(1)
    shifted = torch.stack([_shift(x, dy, dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))], 1)  # [n, 4, c, h, w]
    noise = _normal(tuple(shifted.shape), x, seed)
    sizes = (_energy((shifted - x[:, None]).flatten(0, 1)) / _energy(noise.flatten(0, 1))).sqrt().to(x.dtype)
    lo, hi = asker.target.bounds
    random = (x[:, None] + noise * sizes.view(len(x), 4, 1, 1, 1)).clamp(lo, hi)
    after, beside = (confidences(asker.scores(t.flatten(0, 1))).view(len(x), 4, -1) for t in (shifted, random))
    own = torch.stack([clean.gather(1, label[:, None])[:, 0], after.gather(2, label.view(-1, 1, 1).expand(-1, 4, 1))
                       .mean((1, 2))], 1)  # fmt: skip
    return Aliasing(
        tuple(found),
        torch.stack([torch.cat(parts) for parts in found.values()], 1) if found else x.new_zeros(len(x), 0).double(),
        torch.tensor(list(white.values()), dtype=torch.float64),
        after.argmax(2) != label[:, None],
        beside.argmax(2) != label[:, None],
        own.double(),
    )


@contextmanager
def _folding(module: object, found: dict[str, list[Tensor]], white: dict[str, float]) -> Iterator[None]:
    """Measure every strided layer of the module, in the order of use, while the block runs."""
    hooks = []
    uses: dict[str, int] = {}
    if isinstance(module, nn.Module):
        hooks.append(module.register_forward_pre_hook(lambda *_: uses.clear()))
        for name, layer in module.named_modules():
            strides = _strides(layer)
            if max(strides) > 1:
                label = f"{name or type(layer).__name__} (stride {max(strides)})"
                hooks.append(layer.register_forward_hook(_measure(label, strides, uses, found, white)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _strides(layer: nn.Module) -> tuple[int, int]:
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1, 1
    stride = layer.stride
    return (stride, stride) if isinstance(stride, int) else (int(stride[0]), int(stride[1]))


def _measure(
    label: str,
    strides: tuple[int, int],
    uses: dict[str, int],
    found: dict[str, list[Tensor]],
    white: dict[str, float],
) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dense: Any = copy.copy(layer)
        dense.stride = (1, 1)
        with torch.no_grad():
            response: Tensor = dense.forward(inputs[0])  # past the hooks
            share, expected = _beyond(response, strides)
        uses[label] = uses.get(label, 0) + 1
        name = label if uses[label] == 1 else f"{label}, use {uses[label]}"  # one pool may serve several places
        found.setdefault(name, []).append(share.cpu())
        white[name] = expected

    return hook


def _beyond(response: Tensor, strides: tuple[int, int]) -> tuple[Tensor, float]:
    """Return the share of power beyond Nyquist [n], the constant left out, and the share of coefficients there."""
    fy, fx = _frequencies(response.shape[-2], response.shape[-1], response.device)
    beyond = (fy > 0.5 / strides[0] + 1e-6) | (fx > 0.5 / strides[1] + 1e-6)  # [h, w]
    power = torch.fft.fft2(response.double()).abs().square().sum(1)
    power[:, 0, 0] = 0
    total = power.sum((1, 2))
    return power[:, beyond].sum(1) / total.clamp(min=1e-300), int(beyond.sum()) / (beyond.numel() - 1)


def _shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """Return the images [n, c, h, w] moved by one pixel, the edge repeated."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
