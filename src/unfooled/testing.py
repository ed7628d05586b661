"""For tests of attacks and threats: targets with closed-form answers, a counting spy, the laws of a projection.

Everything here is NumPy and SciPy in float64 and shares no formula with `norms`, so that an error there cannot hide
here. Attack authors need `Linear`, `linear_points` and `linear_distance`: an attack must succeed just above the exact
distance and can never succeed below it.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from .errors import InputError

Box = tuple[float, float]
Projection = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(v [b, ...], x [b, ...], eps [b]) -> [b, ...]: the point of the set around x that is nearest to v."""

_NORMS = ("linf", "l2", "l1", "l0")


class Linear(nn.Module):
    """scores = W x + b for inputs [n, ...] with d values each; W [k, d], b [k].

    Each row is summed on its own, without a matrix product: its bits do not depend on the other rows of the batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @classmethod
    def random(
        cls, shape: Sequence[int], classes: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> "Linear":
        """Return a target for inputs of `shape`, normal weights, with its classes about equally likely in [0, 1]."""
        g = np.random.default_rng(seed)
        w = g.standard_normal((classes, math.prod(shape)))
        b = -w.sum(1) / 2 + 0.1 * g.standard_normal(classes)  # all scores are near 0 in the middle of the box
        return cls(torch.from_numpy(w).to(dtype), torch.from_numpy(b).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, k]."""
        return (x.reshape(len(x), 1, -1) * self.weight).sum(-1) + self.bias


class Spy(nn.Module):
    """Wraps a target and counts what it sees: `calls`, and `forward` and `backward` in rows."""

    def __init__(self, module: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.calls = self.forward_rows = self.backward_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the wrapped target's scores [n, k]."""
        self.calls += 1
        scores = self.module(x)
        self.forward_rows += len(x)
        if scores.requires_grad:
            scores.register_hook(self._went_back)
        return scores

    def _went_back(self, grad: Tensor) -> None:
        self.backward_rows += len(grad)


# ---- exact distances to the boundary of a linear target


def halfspace_distance(c: np.ndarray, gap: float, room: np.ndarray, norm: str) -> float:
    """Return the smallest norm of a change d [m] with <c, d> >= gap and |d_i| <= room_i; infinity when there is none.

    `room` [m] is how far each value may move in the direction of c's sign. Linf: every value moves by the same
    amount until it meets its room; L2: in proportion to |c| (water-filling); L1: largest |c| first; L0: largest
    |c| * room first.
    """
    a, room = np.abs(np.asarray(c, dtype=np.float64)), np.asarray(room, dtype=np.float64)
    if gap <= 0:
        return 0.0
    used = a > 0
    a, room = a[used], room[used]
    if not len(a) or (a * room).sum() < gap:
        return math.inf
    if norm in ("l1", "l0"):
        order = np.argsort(-a if norm == "l1" else -a * room, kind="stable")
        left, cost = gap, 0.0
        for i in order:
            if a[i] * room[i] >= left:
                return cost + (left / a[i] if norm == "l1" else 1.0)
            left -= a[i] * room[i]
            cost += room[i] if norm == "l1" else 1.0
        return cost  # only by rounding
    # d_i = min(s * speed_i, room_i) for one s >= 0: the gain grows piecewise linearly with s
    speed = np.ones_like(a) if norm == "linf" else a
    stop = room / speed
    order = np.argsort(stop)
    slope = float((a * speed).sum())
    s = gain = 0.0
    for i in order:
        if gain + slope * (stop[i] - s) >= gap:
            break
        gain += slope * (stop[i] - s)
        s = float(stop[i])
        slope -= float(a[i] * speed[i])
    s = min(s + (gap - gain) / max(slope, 1e-300), float(stop.max()))
    d = np.minimum(s * speed, room)
    return float(d.max() if norm == "linf" else np.sqrt((d * d).sum()))


def linear_distance(
    target: Linear, x: Tensor, y: Tensor, norm: str, bounds: Box | None = (0.0, 1.0), to: int | None = None
) -> np.ndarray:
    """Return the exact distance from each x [n, ...] to the nearest tie of the label y [n] with another class, [n].

    With `bounds` inside the box, without them (None) in the whole space; `to` looks at the tie with that class alone.
    Exact for two classes; for more, the smallest over the other classes: beyond it some class beats y.
    """
    if norm not in _NORMS:
        raise InputError(f"There is no norm {norm!r}; use one of {', '.join(_NORMS)}.")
    w = target.weight.detach().double().cpu().numpy()
    b = target.bias.detach().double().cpu().numpy()
    rows = x.detach().double().cpu().reshape(len(x), -1).numpy()
    found = np.full(len(rows), np.inf)
    for i, (row, own) in enumerate(zip(rows, y.tolist(), strict=True)):
        for j in range(len(w)) if to is None else [to]:
            if j == own:
                continue
            c = w[j] - w[own]
            gap = -(c @ row + b[j] - b[own])
            room = np.full_like(row, np.inf)
            if bounds is not None:
                room = np.where(c > 0, bounds[1] - row, row - bounds[0])
            found[i] = min(found[i], halfspace_distance(c, gap, room, norm))
    return found


def linear_points(
    target: Linear, shape: Sequence[int], n: int, norm: str, distance: float, *, bounds: Box = (0.0, 1.0), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return x [n, *shape] in the box and labels y [n], each exactly `distance` away from the nearest other class.

    In every second example most values start at a wall of the box, so that the box binds in about half of them.
    For L0, whose distance jumps, it is the smallest whole number of values that must change, `distance` rounded up, and
    a little more than the values before could do.

    Raises:
        InputError: no such points were found; the target's box holds none so far from the boundary.
    """
    g = np.random.default_rng(seed)
    lo, hi = bounds
    w = target.weight.detach().double().cpu().numpy()
    points: list[Tensor] = []
    labels: list[Tensor] = []
    for _ in range(100 * n):
        own, other = g.choice(len(w), 2, replace=False)
        uphill = np.sign(w[own] - w[other]).reshape(shape)
        walls = g.random(shape) < (0.4 if len(points) % 2 else 0.0)
        wall = np.where(g.random(shape) < 0.5, 0.0, 1.0)
        if len(points) % 2:  # the value that counts most cannot move
            most = np.unravel_index(np.abs(w[own] - w[other]).argmax(), shape)
            walls[most], wall[most] = True, float(uphill[most] < 0)
        ends = [np.where(walls, wall, 0.5 + side * g.uniform(0.05, 0.15, shape) * uphill) for side in (1, -1)]
        a, z = (torch.from_numpy(lo + (hi - lo) * end[None]).to(target.weight) for end in ends)
        y = target(a).argmax(1).detach()
        if bool(target(z).argmax(1) == y) or linear_distance(target, a, y, norm, bounds)[0] < distance:
            continue
        near, far = 0.0, 1.0  # share of z in the mixture: far enough at `near`, not at `far`
        while far - near > 1e-9:
            middle = (near + far) / 2
            if linear_distance(target, torch.lerp(a, z, middle), y, norm, bounds)[0] >= distance:
                near = middle
            else:
                far = middle
        if norm == "l0":  # off the jump, where the last bit decides
            near *= 0.98
            if linear_distance(target, torch.lerp(a, z, near), y, norm, bounds)[0] != math.ceil(distance):
                continue
        points.append(torch.lerp(a, z, near))
        labels.append(y)
        if len(points) == n:
            return torch.cat(points), torch.cat(labels)
    raise InputError(f"No {n} points at {norm} distance {distance} of this target were found; ask for a smaller one.")


# ---- projections: an independent reference, and the four laws


def reference_project(norm: str, v: np.ndarray, x: np.ndarray, eps: float, bounds: Box) -> np.ndarray:
    """Return the point nearest to one row v [m] in {z: norm(z - x) <= eps, lo <= z <= hi}, float64 [m].

    From the optimality conditions: shrink v towards x (L2) or by soft thresholding (L1), cut to the box, and find the
    multiplier by Brent's method; L0 tries all sets of coordinates (m <= 12).
    """
    v, x = np.asarray(v, dtype=np.float64), np.asarray(x, dtype=np.float64)
    lo, hi = bounds
    if norm == "linf":
        return np.clip(np.clip(v, x - eps, x + eps), lo, hi)
    if norm == "l0":
        best, count = np.clip(x, lo, hi), int(min(eps, len(x)))
        for size in range(1, count + 1):
            for chosen in itertools.combinations(range(len(x)), size):
                z = x.copy()
                z[list(chosen)] = np.clip(v, lo, hi)[list(chosen)]
                if ((z - v) ** 2).sum() < ((best - v) ** 2).sum():
                    best = z
        return best

    def point(m: float) -> np.ndarray:
        d = v - x
        d = d / (1 + m) if norm == "l2" else np.sign(d) * np.maximum(np.abs(d) - m, 0)
        return np.clip(x + d, lo, hi)

    def excess(m: float) -> float:
        d = point(m) - x
        return float(np.sqrt((d * d).sum()) if norm == "l2" else np.abs(d).sum()) - eps

    if excess(0.0) <= 0:
        return point(0.0)
    if eps == 0:
        return np.clip(x, lo, hi)
    top = 1.0
    while excess(top) > 0:
        top *= 4
    return point(float(brentq(excess, 0.0, top, xtol=1e-300, rtol=1e-15, maxiter=1000)))


def size_of(norm: str, d: np.ndarray) -> np.ndarray:
    """Return the norm of each row of d [b, m], float64 [b]."""
    d = np.abs(np.asarray(d, dtype=np.float64))
    match norm:
        case "linf":
            return d.max(1, initial=0.0)
        case "l2":
            top = np.maximum(d.max(1, initial=0.0), 1e-300)
            return top * np.sqrt(((d / top[:, None]) ** 2).sum(1))
        case "l1":
            return d.sum(1)
    return (d > 0).sum(1).astype(np.float64)


def feasible_points(norm: str, x: np.ndarray, eps: np.ndarray, bounds: Box, count: int, seed: int = 0) -> np.ndarray:
    """Return points of ball and box together, float64 [count, b, m]: inside, on the ball, in its corners, sparse."""
    g = np.random.default_rng(seed)
    x = np.asarray(x, dtype=np.float64)
    lo, hi = bounds
    b, m = x.shape
    out = np.empty((count, b, m))
    for i in range(count):
        d = g.uniform(lo, hi, x.shape) - x if i % 2 else g.choice([lo, hi], x.shape) - x
        if i % 3:  # few coordinates move
            d = d * (g.random(x.shape) < g.random())
        if norm == "l0":
            rank = np.argsort(np.argsort(-np.abs(d) * g.random(x.shape), axis=1), axis=1)
            d = np.where(rank < np.floor(np.minimum(eps, m))[:, None], d, 0.0)
        elif norm == "linf":
            d = np.clip(d, -eps[:, None], eps[:, None])
        else:
            size = size_of(norm, d)
            d = d * np.minimum(1.0, eps / np.maximum(size, 1e-300))[:, None]
        out[i] = np.clip(x + d, lo, hi)
    return out


def _rows(t: Tensor) -> np.ndarray:
    return t.detach().double().cpu().reshape(len(t), -1).numpy()


def check_inside(project: Projection, norm: str, v: Tensor, x: Tensor, eps: Tensor, bounds: Box) -> None:
    """Assert the first law: what was projected is finite, in the ball (up to the dtype's rounding) and in the box."""
    z = project(v, x, eps)
    assert z.shape == x.shape and z.dtype == x.dtype
    assert bool(z.isfinite().all()), "the projection is not finite"
    limit = torch.tensor(bounds, dtype=x.dtype)
    assert bool((z >= limit[0]).all()) and bool((z <= limit[1]).all()), "the projection leaves the box"
    slack = 0.0 if norm == "l0" else _slack(norm, v, x, bounds)
    over = size_of(norm, _rows(z) - _rows(x)) - _rows(eps.reshape(-1, 1))[:, 0] - slack
    assert (over <= 0).all(), f"row {int(over.argmax())} leaves the ball by {over.max():.3g}"


def check_identity_inside(project: Projection, norm: str, v: Tensor, x: Tensor, eps: Tensor, bounds: Box) -> None:
    """Assert the second law: rows of v that lie in ball and box stay where they are."""
    rows, limits = _rows(v), _rows(eps.reshape(-1, 1))[:, 0]
    inside = (size_of(norm, rows - _rows(x)) <= limits) & (rows >= bounds[0]).all(1) & (rows <= bounds[1]).all(1)
    moved = np.abs(_rows(project(v, x, eps)) - rows).max(1, initial=0.0)
    worst = np.where(inside, moved, 0.0)
    assert (worst <= _slack(norm, v, x, bounds)).all(), (
        f"row {int(worst.argmax())} was inside and moved {worst.max():.3g}"
    )


def check_idempotent(project: Projection, norm: str, v: Tensor, x: Tensor, eps: Tensor, bounds: Box) -> None:
    """Assert the third law: projecting twice is projecting once."""
    once = project(v, x, eps)
    moved = np.abs(_rows(project(once, x, eps)) - _rows(once)).max(1, initial=0.0)
    assert (moved <= _slack(norm, v, x, bounds)).all(), f"row {int(moved.argmax())} moved again by {moved.max():.3g}"


def check_nearest(
    project: Projection, norm: str, v: Tensor, x: Tensor, eps: Tensor, bounds: Box, count: int = 60, seed: int = 0
) -> None:
    """Assert the fourth law: no point of the set is nearer to v, neither random ones nor `reference_project`'s.

    For the convex balls by the variational inequality <v - z, u - z> <= 0 for every u of the set, which also sees
    points that are only slightly too far; for L0 by comparing distances with random points alone.
    """
    z, goal, limits = _rows(project(v, x, eps)), _rows(v), _rows(eps.reshape(-1, 1))[:, 0]
    others = list(feasible_points(norm, _rows(x), limits, bounds, count, seed))
    if norm != "l0" and len(goal):
        rows = zip(goal, _rows(x), limits, strict=True)
        others.append(np.stack([reference_project(norm, row, origin, r, bounds) for row, origin, r in rows]))
    for u in others:
        if norm == "l0":
            worse = ((goal - z) ** 2).sum(1) - ((goal - u) ** 2).sum(1)
            scale = ((goal - u) ** 2).sum(1)
        else:
            worse = ((goal - z) * (u - z)).sum(1)
            scale = np.abs(goal - z).sum(1)
        over = worse - scale * 4 * _slack(norm, v, x, bounds) - 1e-12
        assert (over <= 0).all(), f"row {int(over.argmax())}: a point of the set is nearer ({worse.max():.3g})"


LAWS: tuple[Callable[[Projection, str, Tensor, Tensor, Tensor, Box], None], ...] = (
    check_inside,
    check_identity_inside,
    check_idempotent,
    check_nearest,
)


def _slack(norm: str, v: Tensor, x: Tensor, bounds: Box) -> float:
    """What rounding in x's dtype may do to the norm of a change of m values of the size of the box and of v."""
    m = max(1, x[0].numel()) if len(x) else 1
    grow = {"linf": 1.0, "l2": math.sqrt(m), "l1": float(m), "l0": 1.0}[norm]
    size = max(abs(bounds[0]), abs(bounds[1]), float(v.abs().max()) if v.numel() else 0.0)
    return 2 * grow * torch.finfo(x.dtype).eps * size
