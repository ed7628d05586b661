"""The adversarial spheres: two concentric spheres, a network that errs almost nowhere, and errors near every point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import betainc, betaincinv, betaln
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled._noise import text_key
from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, PALE, SOFT, Explanation
from unfooled.core.fit import Objective, fit
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.losses import margin
from unfooled.stats import wilson

from ._lines import unit
from .volume import summary, volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("quadratic", "relu", "analytic")
_LR = {"quadratic": 1e-2, "relu": 3e-4}
_BLOCK = 4096


class Quadratic(nn.Module):
    """The paper's quadratic network: scores (0, w |W x|^2 + b) for x [n, dim]; its boundary is an ellipsoid."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width, bias=False)
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 2]; class 1 is the outer sphere."""
        score = self.scale * self.hidden(x).square().sum(1) + self.shift
        return torch.stack([torch.zeros_like(score), score], 1)

    @torch.no_grad()
    def axes(self) -> tuple[Tensor, Tensor]:
        """Return alpha [dim], float64, and the axes as columns [dim, dim]: class 1 is sum alpha_i <axis_i, x>^2 > 1.

        Without an error on either sphere all alpha lie in [1 / radius^2, 1] (Gilmer et al. 2018, section 4).
        """
        weight = self.hidden.weight.double()
        values, axes = torch.linalg.eigh(weight.T @ weight)
        return values * float(self.scale) / -float(self.shift), axes


class Analytic(nn.Module):
    """The principled model: scores (0, |x|^2 - c) with c between the squared radii; it errs nowhere on the spheres."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor((1 + radius**2) / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 2]; class 1 is the outer sphere."""
        score = x.square().sum(1) - self.middle
        return torch.stack([torch.zeros_like(score), score], 1)


@dataclass(frozen=True)
class Sphere:
    """What was measured of one model on the spheres of radius 1 (class 0) and `radius` (class 1).

    It was trained on `samples` points. `errors` inner and outer of `tested` fresh points each; `logs` [replicates] are
    natural logarithms of independent unbiased estimates of the inner sphere's share of errors (`explain.volume`), nan
    where it found none; `distances` [attacked] are those from random inner points to the nearest error that the search
    on the sphere found, inf where it found none, `exact` [attacked] the true ones where they are known (else empty);
    `alpha` [dim] the quadratic form's coefficients along its axes (else empty).
    """

    model: str
    samples: int
    errors: tuple[int, int]
    tested: int
    logs: Tensor
    distances: Tensor
    exact: Tensor
    alpha: Tensor
    forward: int
    backward: int


@dataclass(frozen=True)
class Spheres(Explanation):
    """The adversarial spheres experiment (Gilmer et al. 2018, arXiv 1801.02774): one `Sphere` a model."""

    dim: int
    radius: float
    models: tuple[Sphere, ...]

    size = (9.0, 4.0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a model.

        `log10_error` is the inner sphere's error rate (estimate, then its 95% interval), nan where no error was found;
        `found` the share of random inner points around which the search found an error on the sphere, `distance` the
        mean distance to it, `exact` the true mean where known; `bound` what the mean can be at most given the error
        rate, from the cap of that share, which is the set of errors farthest from all points; `axes_wrong` how many
        alpha make errors on one of the spheres.
        """
        return [self._row(sphere) for sphere in self.models]

    def _row(self, sphere: Sphere) -> dict[str, Any]:
        found = sphere.distances.isfinite()
        estimate, low, high, _ = (v / math.log(10) for v in summary(sphere.logs))
        wrong = (sphere.alpha > 1) | (sphere.alpha < self.radius**-2)
        return {
            "model": sphere.model,
            "samples": sphere.samples,
            "errors_inner": sphere.errors[0],
            "errors_outer": sphere.errors[1],
            "tested": sphere.tested,
            "error_interval": list(wilson(sphere.errors[0], sphere.tested)),
            "log10_error": estimate,
            "log10_low": low,
            "log10_high": high,
            "attacked": len(found),
            "found": float(found.double().mean()),
            "distance": float(sphere.distances[found].mean()) if bool(found.any()) else math.nan,
            "exact": float(sphere.exact.mean()) if len(sphere.exact) else math.nan,
            "bound": cap_distance(10**estimate, self.dim) if math.isfinite(estimate) else math.nan,
            "axes": len(sphere.alpha),
            "axes_wrong": int(wrong.sum()),
        }

    def sentence(self) -> str:
        """Say how rare errors are, how near they are all the same, and what the principled model does."""
        parts = []
        for row in self.rows():
            if row["found"] == 0:
                parts.append(f"the {row['model']} model errs on none of them and no search finds an error")
                continue
            rate = f" (share 10^{row['log10_error']:.1f})" if math.isfinite(row["log10_error"]) else ""
            axes = f", with {row['axes_wrong']} of {row['axes']} axes wrong" if row["axes"] else ""
            bound = f" (at most {row['bound']:.2f} is possible)" if math.isfinite(row["bound"]) else ""
            parts.append(
                f"the {row['model']} network, trained on {row['samples']:,}, errs on {row['errors_inner']} inner ones"
                f"{rate}{axes}, yet an error on "
                f"the sphere was found for {row['found']:.0%} of random points, on average {row['distance']:.2f} away"
                f"{bound}"
            )
        first = self.models[0]
        return f"Of {first.tested:,} fresh points of each sphere in {self.dim} dimensions: {'; '.join(parts)}."

    def draw(self, figure: "Figure") -> None:
        """Draw the axes' coefficients, and the mean distance to an error over the error rate beside the bound."""
        left, right = figure.subplots(1, 2)
        left.axhspan(self.radius**-2, 1, color=PALE, label="no error possible")
        for i, sphere in enumerate(self.models):
            if len(sphere.alpha):
                left.plot(sphere.alpha.sort(descending=True).values, color=COLOURS[i], lw=1.8, label=sphere.model)
        left.set(xlabel="axis, in order", ylabel="coefficient alpha", title="Axes of the boundary's ellipsoid")
        left.legend(loc="best")
        known = [(i, row) for i, row in enumerate(self.rows()) if math.isfinite(row["bound"])]
        least = min([row["log10_error"] for _, row in known], default=-6.0)
        rates = np.linspace(1.15 * least - 1, -0.5, 60)
        right.plot(rates, [cap_distance(10**r, self.dim) for r in rates], color=SOFT, lw=1.2, label="at most (cap)")
        for i, row in known:
            right.plot(row["log10_error"], row["distance"], "o", color=COLOURS[i], label=f"{row['model']}: found")
            if math.isfinite(row["exact"]):
                right.plot(row["log10_error"], row["exact"], "x", color=COLOURS[i], label=f"{row['model']}: exact")
        right.set(xlabel="log10 of the error rate", ylabel="mean distance to an error", title="Rare, and near")
        right.set_ylim(bottom=0)
        right.grid(visible=True, color=PALE)
        right.legend(loc="best")


def spheres(
    *,
    dim: int = 500,
    radius: float = 1.3,
    samples: int = 200_000,
    width: int = 1000,
    tested: int = 100_000,
    attacked: int = 100,
    models: Sequence[str] = MODELS,
    lr: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Spheres:
    """Train networks to tell two concentric spheres apart, and look for errors on the inner one.

    "quadratic" has one hidden layer of squares, "relu" two layers of ReLU, both of `width`; every step of `fit` draws
    50 fresh points, `samples` in all (the paper: 50 million, which this is a scaled-down copy of). "analytic" is not
    trained: the norm and a threshold, the control. `lr` None is 0.01 for the quadratic and 0.0003 for the ReLU network.
    The search climbs the margin along the sphere from random points and then pulls the error it found towards the
    point; for the quadratic network the nearest error is computed too.

    Raises:
        InputError: settings that make no sense, an unknown model.
    """
    if unknown := [name for name in models if name not in MODELS] or ([] if models else ["none"]):
        raise InputError(f"models must be some of {', '.join(MODELS)}, not {unknown[0]!r}.")
    if dim < 3 or not radius > 1 or min(samples, width, tested, attacked) < 1:
        raise InputError(
            f"Spheres need dim of 3 at least, radius above 1 and positive counts, not dim={dim}, radius={radius}, "
            f"samples={samples}, width={width}, tested={tested}, attacked={attacked}."
        )
    found = []
    for name in models:
        module = _module(name, dim, radius, width, seed).to(device)
        points = 0 if name == "analytic" else samples
        if points:
            y = torch.arange(points) % 2
            fit(
                module,
                torch.zeros(points, 1),
                y,
                online(dim, radius, seed),
                epochs=1,
                batch_size=50,
                lr=lr or _LR[name],
                seed=seed,
            )
        found.append(
            measured(module, dim, radius, name=name, samples=points, tested=tested, attacked=attacked, seed=seed)
        )
    return Spheres(dim, radius, tuple(found))


def online(dim: int, radius: float, seed: int) -> Objective:
    """Return the mean cross-entropy on fresh points of the spheres; the images that `fit` hands over are not used."""

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        points = on_sphere(len(y), dim, f"train {seed} {step}", y.device)
        return F.cross_entropy(module(points * torch.where(y == 1, radius, 1.0).view(-1, 1)), y)

    return objective


def on_sphere(n: int, dim: int, what: str, device: torch.device) -> Tensor:
    """Return n uniform points [n, dim] of the unit sphere; the text `what` is their seed."""
    u = torch.randn(n, dim, generator=torch.Generator(device=device).manual_seed(text_key(what)), device=device)
    return u / u.norm(dim=1, keepdim=True)


def measured(
    module: nn.Module,
    dim: int,
    radius: float,
    *,
    name: str,
    tested: int,
    attacked: int,
    samples: int = 0,
    seed: int = 0,
) -> Sphere:
    """Return test errors, the share of errors, and distances to the nearest found error of a module with 2 classes."""
    target = Target(module, bounds=(-radius, radius), name=name)
    asker = Asker(target)
    errors = [0, 0]
    for at in range(0, tested, _BLOCK):
        points = on_sphere(min(_BLOCK, tested - at), dim, f"test {seed} {at}", target.device)
        for label, size in enumerate((1.0, radius)):
            errors[label] += int((asker.labels(size * points) != label).sum())
    x = on_sphere(attacked, dim, f"attack {seed}", target.device)
    distances = nearest_errors(asker, x)
    logs = torch.full((10,), math.nan, dtype=torch.float64)
    share = None
    if bool(distances.isfinite().any()):
        share = volume(
            target, (dim,), of=1, confidence=0.5, over="sphere", radius=1.0, particles=100, check=1, seed=seed
        )
        logs = share.logs[:, 0, 0]
    alpha, exact = torch.empty(0), torch.empty(0)
    if isinstance(module, Quadratic):
        alpha, axes = module.axes()
        exact = ellipsoid_distances(alpha, x.double() @ axes).cpu()
    return Sphere(
        model=name,
        samples=samples,
        errors=(errors[0], errors[1]),
        tested=tested,
        logs=logs,
        distances=distances.cpu(),
        exact=exact,
        alpha=alpha.cpu(),
        forward=asker.forward + (share.forward if share else 0),
        backward=asker.backward,
    )


def nearest_errors(asker: Asker, x: Tensor, *, steps: int = 300, step_size: float = 0.02, pulls: int = 40) -> Tensor:
    """Return distances [n] from points x [n, dim] of the unit sphere to errors on it (label not 0), inf: none found.

    Steps of `step_size` climb the margin along the sphere; then each error is pulled towards x: the nearest point to x
    on the sphere where the margin, linear at the error, is 0 (the cap's edge), and on the way there the nearest error
    that halving finds. Every distance is one of an error that was seen: none is smaller than the truth.
    """
    zero = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def value_and_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        _, value, grad = asker.gradient(z, lambda scores, rows: margin(scores, zero[rows]))
        return value, grad

    z = x.clone()
    for _ in range(steps):
        value, grad = value_and_gradient(z)
        open_ = (value <= 0).view(-1, 1)
        if not bool(open_.any()):
            break
        along = grad - (grad * z).sum(1, keepdim=True) * z
        along = along / along.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        z = torch.where(open_, unit(z + step_size * along), z)
    error = asker.labels(z) != 0
    best = z
    for _ in range(pulls):
        value, grad = value_and_gradient(best)
        goal = _cap_edge(x, grad, (grad * best).sum(1) - value)
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)  # towards the error
        for _ in range(12):
            half = (low + high) / 2
            wrong = asker.labels(unit(torch.lerp(goal, best, half.view(-1, 1)))) != 0
            low, high = torch.where(wrong, low, half), torch.where(wrong, half, high)
        nearer = unit(torch.lerp(goal, best, high.view(-1, 1)))
        better = error & (asker.labels(nearer) != 0) & ((nearer - x).norm(dim=1) < (best - x).norm(dim=1))
        best = torch.where(better.view(-1, 1), nearer, best)
        if not bool(better.any()):
            break
    return torch.where(error, (best - x).norm(dim=1), math.inf)


def ellipsoid_distances(alpha: Tensor, x: Tensor) -> Tensor:
    """Return the distances [n] from unit vectors x [n, dim] to the nearest unit z with sum alpha_i z_i^2 >= 1.

    x in the coordinates of the axes. On the unit sphere the bound is the cone sum a_i z_i^2 >= 0 with a = alpha - 1,
    whose nearest direction is z_i ~ x_i / (1 - t a_i) with the one t in (0, 1 / max a) that lies on it: a secular
    equation, solved by halving. Infinity where no alpha exceeds 1, 0 where x is an error already.
    """
    a, top = alpha - 1, float(alpha.max()) - 1
    inside = (a * x.square()).sum(1) < 0
    if top <= 0:
        return torch.where(inside, math.inf, 0.0).to(x)
    low, high = torch.zeros(len(x), dtype=x.dtype), torch.full((len(x),), 1 / top, dtype=x.dtype)
    low, high = low.to(x.device), high.to(x.device)
    for _ in range(200):
        t = (low + high) / 2
        z = x / (1 - t.view(-1, 1) * a)
        short = (a * z.square()).sum(1) < 0
        low, high = torch.where(short, t, low), torch.where(short, high, t)
    z = unit(x / (1 - low.view(-1, 1) * a))
    return torch.where(inside, (z - x).norm(dim=1), 0.0)


def cap_distance(share: float, dim: int) -> float:
    """Return the mean distance from a uniform point of the unit sphere to the cap of measure `share`.

    Of all sets of that measure the cap lies farthest away on average (isoperimetry), so this bounds the mean distance
    to the nearest error of every model with that error rate (Gilmer et al. 2018, theorem 5.1). Exact, by quadrature;
    about -Phi^-1(share) / sqrt(dim) for small shares.
    """
    if not 0 < share < 1:
        raise InputError(f"The share of errors must lie between 0 and 1, not {share}.")
    edge = cap_angle(share, dim)
    log_norm = betaln((dim - 1) / 2, 0.5)  # of the density sin(angle)^(dim - 2) on [0, pi]

    def weighed(angle: float) -> float:
        return 2 * math.sin((angle - edge) / 2) * math.exp((dim - 2) * math.log(math.sin(angle)) - log_norm)

    reach = 12 / math.sqrt(dim)  # beyond it lies less than 1e-30 of the sphere
    low, high = max(edge, math.pi / 2 - reach, 1e-12), min(math.pi / 2 + reach, math.pi - 1e-12)
    return float(quad(weighed, low, high, limit=200)[0]) if low < high else 0.0


def cap_angle(share: float, dim: int) -> float:
    """Return the angle from the pole at which the cap of measure `share` of the unit sphere ends."""
    half = min(share, 1 - share)
    sine = math.sqrt(float(betaincinv((dim - 1) / 2, 0.5, 2 * half)))
    return math.asin(sine) if share <= 0.5 else math.pi - math.asin(sine)


def cap_share(angle: float, dim: int) -> float:
    """Return the measure of the cap that ends at `angle` from the pole: the inverse of `cap_angle`."""
    half = 0.5 * float(betainc((dim - 1) / 2, 0.5, math.sin(angle) ** 2))
    return half if angle <= math.pi / 2 else 1 - half


def _module(name: str, dim: int, radius: float, width: int, seed: int) -> nn.Module:
    make: dict[str, Callable[[], nn.Module]] = {
        "quadratic": lambda: Quadratic(dim, width),
        "relu": lambda: nn.Sequential(
            nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        ),
        "analytic": lambda: Analytic(radius),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make[name]()


def _cap_edge(x: Tensor, w: Tensor, bound: Tensor) -> Tensor:
    """Return the unit vectors nearest to unit x [n, dim] with <w, z> = bound [n], or the nearest to that plane."""
    size = w.norm(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    w = w / size
    a = (bound.view(-1, 1) / size).clamp(-1, 1)
    across = unit(x - (x * w).sum(1, keepdim=True) * w)
    return a * w + (1 - a * a).sqrt() * across
