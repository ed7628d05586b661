"""Threats: the set of inputs that the attacker may submit instead of x."""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._noise import Noise
from .._numbers import parse_number
from .._rows import Batch, column
from ..errors import InputError, nearest
from ..norms import NORMS, Bounds, Norm, Radius


class Threat(ABC):
    """What the attacker may submit instead of x; rows of `x_adv` and `x` belong together."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether the first success ends the search (a fixed budget), or the smallest change is asked for."""

    @abstractmethod
    def check(self, x: Batch) -> None:
        """Raise InputError when the threat does not apply to inputs like `x`."""

    @abstractmethod
    def distance(self, x_adv: Batch, x: Batch) -> Tensor:
        """Return the size of the change, [b]."""

    @abstractmethod
    def contains(self, x_adv: Batch, x: Batch) -> Tensor:
        """Return whether the attacker may submit `x_adv` instead of `x`, bool [b]."""

    def settle(self, x_adv: Batch, x: Batch) -> Batch:
        """Return the point of the set that is stored for `x_adv`: the same, or moved inside by rounding errors."""
        return x_adv

    def within(self, bounds: Bounds) -> "Threat":
        """Return the threat with the target's bounds filled in."""
        return self


@dataclass(frozen=True)
class Ball(Threat):
    """All points of the box within `eps` of x in a norm.

    `eps` is in the units of the input (inputs in [0, 1]: 8/255 is eight grey levels); 0 allows nothing and is legal;
    infinity asks attacks for the smallest change. `bounds` is filled in from the target. With `levels` (255 for 8-bit
    images) only points whose values lie on that many even steps of the box may be submitted; with a `mask`, bool of one
    example's shape, only the values that it marks may change.
    """

    norm: Norm
    eps: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    levels: int | None = field(default=None, repr=False)
    mask: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an eps that is no radius and a mask that is none."""
        if not self.eps >= 0:
            raise InputError(f"eps must be 0 or larger, not {self.eps}.")
        if self.mask is not None and (not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool):
            raise InputError("mask must be a bool tensor of one example's shape, True where values may change.")

    def __repr__(self) -> str:
        """Return what users write, exactly: linf(8/255), l2(0.5); of a mask how much it leaves free, and its hash."""
        levels = round(self.eps * 255) if self.bounded and self.norm.name == "linf" else 0
        radius = "" if math.isinf(self.eps) else repr(float(self.eps)).removesuffix(".0")
        parts = [f"{levels}/255" if levels and levels / 255 == self.eps and levels % 255 else radius]
        if self.mask is not None:
            digest = hashlib.sha256(self.mask.cpu().numpy().tobytes()).hexdigest()[:8]
            parts.append(f"mask=<{int(self.mask.sum())} of {self.mask.numel()} values, {digest}>")
        return f"{self.norm}({', '.join(p for p in parts if p)})"

    @property
    def bounded(self) -> bool:
        """True for a finite eps."""
        return math.isfinite(self.eps)

    def within(self, bounds: Bounds) -> "Ball":
        """Return the ball inside the box `bounds`."""
        return replace(self, bounds=bounds)

    def check(self, x: Batch) -> None:
        """Raise InputError when x is no tensor of finite numbers within the bounds."""
        if not isinstance(x, Tensor):
            raise InputError(f"{self!r} needs inputs that are tensors; these are {type(x).__name__}s.")
        if self.mask is not None and self.mask.shape != x.shape[1:]:
            raise InputError(
                f"The mask has shape {tuple(self.mask.shape)} but one example {tuple(x.shape[1:])}; they must be equal."
            )

    def _held(self, z: Tensor, x: Tensor) -> Tensor:
        """Return z with the values of x [b, ...] where the mask lets nothing change."""
        return z if self.mask is None else torch.where(self.mask.to(z.device), z, x.to(z.dtype))

    def distance(self, x_adv: Batch, x: Batch) -> Tensor:
        """Return norm(x_adv - x) in float64, [b]."""
        assert isinstance(x_adv, Tensor) and isinstance(x, Tensor)
        return self.norm.size(x_adv.double() - x.double())

    def contains(self, x_adv: Batch, x: Batch) -> Tensor:
        """Return whether x_adv is finite, inside the box, and inside the ball up to 1e-6 of eps, in float64, [b]."""
        assert isinstance(x_adv, Tensor)
        lo, hi = self.bounds
        flat = x_adv.reshape(len(x_adv), -1)
        in_box = ((flat >= lo) & (flat <= hi)).all(1)  # NaN fails both comparisons
        if self.mask is not None:
            assert isinstance(x, Tensor)
            in_box &= (self._held(x_adv, x) == x_adv).flatten(1).all(1)
        return in_box & (self.distance(x_adv, x) <= self.eps * (1 + 1e-6))

    def settle(self, x_adv: Batch, x: Batch) -> Batch:
        """Return x_adv projected in float64 and rounded to its dtype without leaving the ball, [b, ...]."""
        assert isinstance(x_adv, Tensor) and isinstance(x, Tensor)
        origin = x.double()
        exact = self.norm.project(self._held(x_adv.double(), origin), origin, self.eps, self.bounds)
        z = exact.to(x_adv.dtype)
        if self.levels:
            return self._on_levels(z, x, self.eps)
        change = (z.double() - origin).abs()
        limit = self.eps if self.norm.name == "linf" else (exact - origin).abs()  # per value: no norm grows then
        outward = (change > limit) & column(self.distance(z, x) > self.eps, z)
        return torch.where(outward, torch.nextafter(z, x.to(z.dtype)), z)

    def project(self, x_adv: Tensor, x: Tensor, radius: Radius | None = None) -> Tensor:
        """Return the nearest point of ball and box together, [b, ...]; `radius` [b] replaces eps."""
        r = self.eps if radius is None else radius
        z = self.norm.project(self._held(x_adv, x), x, r, self.bounds)
        return self._on_levels(z, x, r) if self.levels else z

    def _on_levels(self, z: Tensor, x: Tensor, radius: Radius) -> Tensor:
        """Return z [b, ...], a point of the ball, on the nearest levels (Linf) or those towards x, where it stays."""
        assert self.levels
        lo, hi = self.bounds
        scale, origin = self.levels / (hi - lo), x.double()
        k = ((z.double() - lo) * scale).round()
        if self.norm.name == "linf":
            r = column(radius.double(), origin) if isinstance(radius, Tensor) and radius.dim() else radius
            k = k.clamp(((origin - r - lo) * scale - 1e-4).ceil(), ((origin + r - lo) * scale + 1e-4).floor())
        else:
            near, at = (z.double() - lo) * scale, (origin - lo) * scale
            k = torch.where(near >= at, (near + 1e-4).floor(), (near - 1e-4).ceil())
        return self._held(lo + (k.clamp(0, self.levels).to(z.dtype) / self.levels) * (hi - lo), x)

    def free(self, g: Tensor) -> Tensor:
        """Return g [b, ...] with zeros where the mask lets nothing change."""
        return self._held(g, torch.zeros_like(g))

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the norm's unit step of largest increase at x, [b, ...]; sparse norms leave out what meets the box."""
        if self.norm.name in ("l1", "l0"):
            lo, hi = self.bounds
            g = torch.where(((g > 0) & (x >= hi)) | ((g < 0) & (x <= lo)), 0.0, g)
        g = self.free(g)
        return self.norm.steepest(g)

    def sample(self, noise: Noise, step: Tensor | int, x: Tensor, radius: Radius | None = None) -> Tensor:
        """Return a point drawn uniformly from the ball around x, then projected on the box, [b, ...]."""
        r = self.eps if radius is None else radius
        return self.project(x + self.norm.sample(noise, step, x.shape[1:], r, x.dtype), x, radius)


def linf(eps: float = math.inf, *, mask: Tensor | None = None) -> Ball:
    """Every coordinate may change by at most eps; `mask` bool [...] marks those that may change at all."""
    return Ball(NORMS["linf"], float(eps), mask=mask)


def l2(eps: float = math.inf, *, mask: Tensor | None = None) -> Ball:
    """The Euclidean length of the change is at most eps; `mask` bool [...] marks what may change at all."""
    return Ball(NORMS["l2"], float(eps), mask=mask)


def l1(eps: float = math.inf, *, mask: Tensor | None = None) -> Ball:
    """The absolute changes add up to at most eps; `mask` bool [...] marks what may change at all."""
    return Ball(NORMS["l1"], float(eps), mask=mask)


def l0(eps: float = math.inf, *, mask: Tensor | None = None) -> Ball:
    """At most eps coordinates change; `mask` bool [...] marks those that may change at all."""
    return Ball(NORMS["l0"], float(eps), mask=mask)


def as_threat(threat: "Ball | str") -> "Ball":
    """Return a threat that may be written as a text; raises InputError as `parse_threat`."""
    return parse_threat(threat) if isinstance(threat, str) else threat


def parse_threat(text: str) -> Ball:
    """Read a threat as users write it: 'linf(8/255)', 'l2(0.5)', 'l2()' (smallest change); raises InputError."""
    name, bracket, rest = text.strip().partition("(")
    name = name.strip().lower()
    if name not in NORMS or not bracket or not rest.endswith(")"):
        raise InputError(
            f"{text!r} is no threat; write for example linf(8/255), l2(0.5), l1(12) or l0(10)."
            + ("" if name in NORMS else nearest(name, NORMS))
        )
    inner = rest[:-1].strip().removeprefix("eps=")
    return Ball(NORMS[name], parse_number(inner) if inner else math.inf)
