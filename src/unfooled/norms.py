"""Norms: size, exact projection on ball and box together, steepest direction, uniform sample, dual name.

Shapes: inputs `v`, `x`, gradients `g` are [b, ...]; `eps` is a float or one radius per row [b]; `bounds` is (lo, hi).
Everything is written on rows, without loops over examples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ._noise import Noise
from ._rows import column

Bounds = tuple[float, float]
Radius = float | Tensor


def _radius(eps: Radius, like: Tensor) -> Tensor:
    """Return eps as [b, 1, ...] (or a scalar tensor) in the dtype of `like`."""
    r = torch.as_tensor(eps, dtype=like.dtype, device=like.device)
    return column(r, like) if r.dim() else r


def _flat(t: Tensor) -> Tensor:
    return t.flatten(1) if t.dim() > 1 else t.unsqueeze(1)


class Norm(ABC):
    """One of the field's four distances between an input and its perturbed copy."""

    name: str
    dual: str
    symbol: str

    def __repr__(self) -> str:
        """Return the name that users write, such as 'linf'."""
        return self.name

    @abstractmethod
    def size(self, d: Tensor) -> Tensor:
        """Return the norm of each row of `d` [b, ...] as [b]."""

    @abstractmethod
    def project(self, v: Tensor, x: Tensor, eps: Radius, bounds: Bounds) -> Tensor:
        """Return the point nearest (Euclidean) to `v` in {z: norm(z - x) <= eps, lo <= z <= hi}, [b, ...]."""

    @abstractmethod
    def steepest(self, g: Tensor) -> Tensor:
        """Return the unit step d [b, ...] of largest <g, d>; a zero gradient gives a zero step."""

    @abstractmethod
    def reach(self, w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """Return the smallest change d [b, ...] with <w, d> >= gap [b] and x + d in the box.

        Where the box holds no such change, the one of largest <w, d>; zero where the gap is 0 or less (Croce and Hein
        2020, arXiv 1907.02044, eq. 4-6, as one sort per row).
        """

    @abstractmethod
    def sample(self, noise: Noise, step: Tensor | int, shape: Sequence[int], eps: Radius, dtype: torch.dtype) -> Tensor:
        """Return one draw per row, uniform in the ball of radius eps around 0 (the box is not looked at)."""


class _Linf(Norm):
    name, dual, symbol = "linf", "l1", "Linf"

    def size(self, d: Tensor) -> Tensor:
        return _flat(d).abs().amax(1)

    def project(self, v: Tensor, x: Tensor, eps: Radius, bounds: Bounds) -> Tensor:
        r = _radius(eps, x)
        return torch.minimum(torch.maximum(v, x - r), x + r).clamp_(*bounds)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign()

    def reach(self, w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        return _filled(w, gap, x, bounds, torch.ones_like(_flat(w)))

    def sample(self, noise: Noise, step: Tensor | int, shape: Sequence[int], eps: Radius, dtype: torch.dtype) -> Tensor:
        u = noise.uniform(step, shape, dtype=dtype)
        return (u * 2 - 1) * _radius(eps, u)


class _L2(Norm):
    name, dual, symbol = "l2", "l2", "L2"

    def size(self, d: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(_flat(d), dim=1)
        return length

    def project(self, v: Tensor, x: Tensor, eps: Radius, bounds: Bounds) -> Tensor:
        # The solution is x + clip(s * d, room) with one scale s per row; |.| grows with s, and the fixed-point
        # iteration below only ever adds coordinates to the clipped set, so it ends exactly (no bisection).
        d = _flat(v - x)
        size, room = d.abs(), _room(d, x, bounds)
        r2 = torch.as_tensor(eps, dtype=d.dtype, device=d.device).square().expand(len(d))
        clipped = size >= room  # where s = 1 already meets the box
        inside = (torch.minimum(size, room).square().sum(1) <= r2).view(-1, 1)
        s = _ratio(r2, size.square().sum(1)).sqrt().clamp(max=1.0).view(-1, 1)
        for _ in range(32):
            held = clipped & (s * size >= room)
            rest = torch.where(held, 0.0, size).square().sum(1)
            left = (r2 - torch.where(held, room, 0.0).square().sum(1)).clamp(min=0)
            larger = _ratio(left, rest).sqrt().clamp(max=1.0).view(-1, 1)
            if d.device.type == "cpu" and not bool((larger > s * (1 + 1e-7)).any()):  # elsewhere a look costs a sync
                break
            s = torch.maximum(s, larger)
        s = torch.where(inside, 1.0, s)
        z = torch.copysign(torch.minimum(s * size, room), d)
        return (x + z.view_as(x)).clamp_(*bounds)

    def steepest(self, g: Tensor) -> Tensor:
        top = (
            _flat(g).abs().amax(1).clamp(min=torch.finfo(g.dtype).tiny)
        )  # no absolute epsilon: tiny gradients step too
        g = g / column(top, g)
        return g / column(self.size(g).clamp(min=0.5), g)

    def reach(self, w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        return _filled(w, gap, x, bounds, _flat(w).abs())

    def sample(self, noise: Noise, step: Tensor | int, shape: Sequence[int], eps: Radius, dtype: torch.dtype) -> Tensor:
        g = noise.normal(step, shape, dtype=dtype)
        u = noise.uniform(step, (1,), salt=1, dtype=dtype)[:, 0] ** (1 / max(1, math.prod(shape)))
        return g * column(u / self.size(g).clamp(min=1e-12), g) * _radius(eps, g)


class _L1(Norm):
    name, dual, symbol = "l1", "linf", "L1"

    def size(self, d: Tensor) -> Tensor:
        return _flat(d).abs().sum(1)

    def project(self, v: Tensor, x: Tensor, eps: Radius, bounds: Bounds) -> Tensor:
        # Solution |z_i| = clip(|d_i| - t, 0, room_i) with one threshold t >= 0 per row (Croce and Hein 2021,
        # arXiv 2103.01208, Prop. 2.1): piecewise linear in t, solved exactly by sorting its 2d breakpoints.
        d = _flat(v - x)
        size, room = d.abs(), _room(d, x, bounds)
        r = torch.as_tensor(eps, dtype=d.dtype, device=d.device).expand(len(d))
        low = (size - room).clamp(min=0)  # below this t the coordinate is held at its room
        points, order = torch.cat([low, size], 1).sort(dim=1, descending=True)
        slope = torch.where(order < d.shape[1], -1.0, 1.0).to(d.dtype).cumsum(1)  # falling t: +1 past size, -1 past low
        gaps = torch.cat([points[:, :-1] - points[:, 1:], torch.zeros_like(points[:, :1])], 1)
        total = (slope * gaps).cumsum(1)  # mass at the next smaller breakpoint
        before = (total <= r.view(-1, 1)).sum(1)  # number of segments that fit wholly
        k = before.clamp(max=points.shape[1] - 1).view(-1, 1)
        mass = torch.cat([torch.zeros_like(total[:, :1]), total], 1).gather(1, k)
        t = points.gather(1, k) - (r.view(-1, 1) - mass) / slope.gather(1, k).clamp(min=1)
        fits = torch.minimum(size, room).sum(1, keepdim=True) <= r.view(-1, 1)
        t = torch.where(fits, 0.0, t.clamp(min=0))
        z = torch.copysign(torch.minimum((size - t).clamp(min=0), room), d)
        return (x + z.view_as(x)).clamp_(*bounds)

    def steepest(self, g: Tensor) -> Tensor:
        f = _flat(g)
        top = f.abs().argmax(1, keepdim=True)
        return torch.zeros_like(f).scatter(1, top, f.gather(1, top).sign()).view_as(g)

    def reach(self, w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        f, room = _flat(w), _room(_flat(w), x, bounds)
        return _greedy(f, gap, room, f.abs()).view_as(x)

    def sample(self, noise: Noise, step: Tensor | int, shape: Sequence[int], eps: Radius, dtype: torch.dtype) -> Tensor:
        e = -(1 - noise.uniform(step, shape, salt=1, dtype=dtype)).log()
        last = -(1 - noise.uniform(step, (1,), salt=2, dtype=dtype)[:, 0]).log()
        e = e / column(_flat(e).sum(1) + last.clamp(min=1e-12), e)
        return e * noise.signs(step, shape, dtype=dtype) * _radius(eps, e)


class _L0(Norm):
    name, dual, symbol = "l0", "none", "L0"

    def size(self, d: Tensor) -> Tensor:
        return (_flat(d) != 0).sum(1).to(d.dtype)

    def project(self, v: Tensor, x: Tensor, eps: Radius, bounds: Bounds) -> Tensor:
        # Keep the floor(eps) coordinates whose change, cut to the box, brings the point nearest to v.
        d = _flat(v - x)
        kept = torch.copysign(torch.minimum(d.abs(), _room(d, x, bounds)), d)
        gain = d.square() - (d - kept).square()
        count = torch.as_tensor(eps, device=d.device).clamp(max=d.shape[1]).floor().long().expand(len(d)).view(-1, 1)
        rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (x + torch.where(rank < count, kept, 0.0).view_as(x)).clamp_(*bounds)

    def steepest(self, g: Tensor) -> Tensor:
        # No bounded unit step exists; the gradient scaled to mean size 1 leaves the choice to the projection.
        mean = _flat(g).abs().mean(1).clamp(min=torch.finfo(g.dtype).tiny)
        return g / column(mean, g)

    def reach(self, w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        f, room = _flat(w), _room(_flat(w), x, bounds)
        return _greedy(f, gap, room, f.abs() * room).view_as(x)

    def sample(self, noise: Noise, step: Tensor | int, shape: Sequence[int], eps: Radius, dtype: torch.dtype) -> Tensor:
        u = _flat(noise.uniform(step, shape, salt=1, dtype=dtype))
        count = torch.as_tensor(eps, device=u.device).clamp(max=u.shape[1]).floor().long().expand(len(u)).view(-1, 1)
        chosen = u.argsort(dim=1).argsort(dim=1) < count
        values = _flat(noise.uniform(step, shape, dtype=dtype)) * 2 - 1
        return torch.where(chosen, values, 0.0).view(len(u), *shape)


def _room(d: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
    """How far each coordinate may move in the direction of `d` [b, m] before it meets the box."""
    f = _flat(x)
    return torch.where(d >= 0, bounds[1] - f, f - bounds[0]).clamp_(min=0)


def _filled(w: Tensor, gap: Tensor, x: Tensor, bounds: Bounds, speed: Tensor) -> Tensor:
    """Return d = sign(w) min(s * speed, room) [b, ...] with the smallest s at which <w, d> >= gap [b]."""
    f, room = _flat(w), _room(_flat(w), x, bounds)
    a = f.abs()
    stop, order = torch.where(a > 0, room / speed.clamp(min=torch.finfo(f.dtype).tiny), 0.0).sort(dim=1)
    full = (a * room).gather(1, order).cumsum(1)  # what the values give that meet the box up to here
    rise = (a * speed).gather(1, order)
    rest = rise.flip(1).cumsum(1).flip(1)  # the slope of those that do not meet it before here
    gain = full + stop * (rest - rise)
    goal = gap.view(-1, 1).to(f.dtype)
    k = (gain < goal).sum(1, keepdim=True).clamp(max=f.shape[1] - 1)
    before = torch.where(k > 0, full.gather(1, (k - 1).clamp(min=0)), 0.0)
    s = ((goal - before) / rest.gather(1, k).clamp(min=torch.finfo(f.dtype).tiny)).clamp(min=0)
    s = torch.where(goal > 0, s.minimum(stop[:, -1:]), 0.0)
    return torch.copysign(torch.where(a > 0, torch.minimum(s * speed, room), 0.0), f).view_as(x)


def _greedy(f: Tensor, gap: Tensor, room: Tensor, key: Tensor) -> Tensor:
    """Return d [b, m] that moves values by their whole room, largest key first, until <f, d> reaches gap [b]."""
    a = f.abs()
    order = key.argsort(dim=1, descending=True, stable=True)
    gains = (a * room).gather(1, order)
    before = gains.cumsum(1) - gains
    left = (gap.view(-1, 1).to(f.dtype) - before).clamp(min=0)
    share = torch.where(gains > 0, left / gains.clamp(min=torch.finfo(f.dtype).tiny), 0.0).clamp(max=1.0)
    return torch.copysign(torch.zeros_like(f).scatter(1, order, share) * room, f)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with 0 / 0 = inf: nothing is left to scale."""
    return torch.where(b > 0, a / b.clamp(min=torch.finfo(b.dtype).tiny), torch.inf)


LINF, L2, L1, L0 = _Linf(), _L2(), _L1(), _L0()
NORMS: dict[str, Norm] = {norm.name: norm for norm in (LINF, L2, L1, L0)}
