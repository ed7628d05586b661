"""Sound lower bounds on the margins of small ReLU networks over a norm ball: intervals (IBP) and lines (CROWN)."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unfooled.core.target import Target, as_target, untouched
from unfooled.core.threat import Ball, Threat
from unfooled.errors import InputError

Method = Literal["ibp", "crown"]

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POSITIVE = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.ZeroPad1d, nn.ZeroPad2d,
)  # fmt: skip
_NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ROOM = 2**24  # most values of a batch of backward rows


def margins(
    target: Target | Callable[..., Any], x: Tensor, y: Tensor, threat: Threat, *, method: Method = "crown"
) -> Tensor:
    """Return lower bounds on the score of y minus that of every other class over the threat, float64 [n, k].

    Where all of a row are positive (its own class's entry is infinite), no input of the ball and box is classified
    otherwise. "ibp": interval bounds (Gowal et al. 2018, arXiv:1810.12715). "crown": linear bounds carried from the
    last layer back to the input, the neurons before each ReLU bounded the same way, the lower line of slope 0 or 1
    (Zhang et al. 2018, arXiv:1811.00866, algorithm 1 with adaptive relaxation); never looser than intervals here.
    Computed in float64, rounding errors of which are not accounted for.

    Args:
        target: a `Target` or module: a chain (nn.Sequential, nested or not) of linear and convolutional layers, ReLU,
            LeakyReLU, batch normalisation, average pooling, padding, flattening, dropout.
        x: inputs [n, ...] within the bounds.
        y: classes int64 [n].
        threat: a ball in Linf, L2 or L1 with a finite eps and neither mask nor levels.
        method: which bounds.

    Raises:
        InputError: another kind of layer, threat or method.
    """
    if method not in ("ibp", "crown"):
        raise InputError(f"There are the methods 'ibp' and 'crown', not {method!r}.")
    model = as_target(target)
    if not isinstance(threat, Ball) or threat.norm.name == "l0" or not threat.bounded:
        raise InputError(f"Bounds need a ball in Linf, L2 or L1 with a finite eps, not {threat!r}.")
    if threat.mask is not None or threat.levels is not None:
        raise InputError("Bounds know no mask and no levels; give a plain ball, whose bounds hold for these as well.")
    ball = threat.within(model.bounds)
    with torch.inference_mode(False), torch.no_grad(), untouched(model):
        chain = _chain(model, x)
        parts = [_margins(chain, *rows, ball, method) for rows in zip(x.split(1), y.split(1), strict=True)]
    return torch.cat(parts).to(x.device)


def certified_radius(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    threat: Ball,
    *,
    upper: float = 1.0,
    steps: int = 12,
    method: Method = "crown",
) -> Tensor:
    """Return the largest radius up to `upper` that `margins` certifies, found by bisection, float64 [n].

    `threat` gives the norm; a row whose class is not y has radius 0, found to `upper` / 2 ** `steps`, from below.
    """
    found = []
    for row, label in zip(x.split(1), y.split(1), strict=True):
        low, high = 0.0, upper
        for _ in range(steps):
            middle = (low + high) / 2
            sound = margins(target, row, label, Ball(threat.norm, middle), method=method).amin() > 0
            low, high = (middle, high) if bool(sound) else (low, middle)
        found.append(low)
    return torch.tensor(found, dtype=torch.float64)


# ---- the network as a chain


@dataclass(frozen=True)
class _Affine:
    """x -> layer(x), and the same layer with absolute weights and no bias for radii."""

    layer: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Ramp:
    """x -> max(x, slope * x), 0 <= slope < 1."""

    slope: float


def _chain(target: Target, x: Tensor) -> list[_Affine | _Ramp]:
    if not isinstance(target.module, nn.Module) or target.kind != "scores":
        raise InputError("Bounds need a torch module that returns scores.")
    first: list[_Affine | _Ramp] = []
    if target.mean is not None or target.std is not None:
        shape = [-1, *[1] * (x.dim() - 2)]
        mean = torch.zeros(1).double() if target.mean is None else target.mean.double().cpu().view(shape)
        std = torch.ones(1).double() if target.std is None else target.std.double().cpu().view(shape)
        first = [_Affine(lambda v: (v - mean) / std, lambda r: r / std)]
    return first + [_link(layer) for layer in _leaves(copy.deepcopy(target.module).eval().cpu().double())]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _leaves(child)
    elif not isinstance(module, _NOTHING):
        yield module


def _link(layer: nn.Module) -> _Affine | _Ramp:
    if isinstance(layer, nn.ReLU):
        return _Ramp(0.0)
    if isinstance(layer, nn.LeakyReLU) and 0 <= layer.negative_slope < 1:
        return _Ramp(float(layer.negative_slope))
    if isinstance(layer, _POSITIVE):
        return _Affine(layer, layer)
    if isinstance(layer, _AFFINE) and getattr(layer, "padding_mode", "zeros") == "zeros":
        positive = copy.deepcopy(layer)
        positive.weight.copy_(layer.weight.abs())
        positive.bias = None
        return _Affine(layer, positive)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and layer.running_var is not None:
        gain = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
        return _Affine(layer, lambda r: r * gain.abs().view(1, -1, *[1] * (r.dim() - 2)))
    raise InputError(
        f"There are no bounds through a {type(layer).__name__}: the network must be a chain of linear and "
        "convolutional layers, ReLU, LeakyReLU, batch normalisation, average pooling, padding, flattening and dropout."
    )


# ---- the bounds


def _margins(chain: list[_Affine | _Ramp], x: Tensor, y: Tensor, ball: Ball, method: Method) -> Tensor:
    """Return the bounds [1, k] for one input [1, ...]."""
    x = x.detach().cpu().double()
    bounds: list[tuple[Tensor, Tensor]] = []  # on what goes into each ramp, in their order
    low, high = _box(x, ball)
    shapes = [x.shape[1:]]
    for at, link in enumerate(chain):
        if isinstance(link, _Ramp):
            if method == "crown":
                low, high = _tightened(chain[:at], shapes, bounds, x, ball, low, high)
            bounds.append((low, high))
            low, high = (torch.maximum(v, link.slope * v) for v in (low, high))
        else:
            low, high = _through(link, low, high)
        shapes.append(low.shape[1:])
    k = low.shape[1]
    pick = torch.nn.functional.one_hot(y.cpu().view(1), k).double() - torch.eye(k, dtype=torch.float64)  # [k, k]
    by_intervals = torch.where(pick > 0, pick * low, pick * high).sum(1)  # of the last layer's scores
    if method == "ibp":
        worst = by_intervals
    else:
        worst = torch.maximum(by_intervals, _back(pick, chain, shapes, bounds, x, ball))
    return worst.masked_fill(torch.arange(k) == y.cpu(), torch.inf)[None]


def _box(x: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    low, high = ball.bounds
    return (x - ball.eps).clamp(low, high), (x + ball.eps).clamp(low, high)


def _through(link: _Affine, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    middle, radius = link.layer((low + high) / 2), link.absolute((high - low) / 2)
    return middle - radius, middle + radius


def _tightened(
    chain: list[_Affine | _Ramp],
    shapes: list[torch.Size],
    bounds: list[tuple[Tensor, Tensor]],
    x: Tensor,
    ball: Ball,
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the intervals [1, ...] of a layer, narrowed by linear bounds where its sign is not known."""
    open_ = ((low < 0) & (high > 0)).flatten().nonzero()[:, 0]
    low, high = low.clone(), high.clone()
    numel = low.numel()
    widest = max(shape.numel() for shape in shapes)
    for some in open_.split(max(1, _ROOM // widest)):
        rows = torch.nn.functional.one_hot(some, numel).double().view(len(some), *low.shape[1:])
        both = torch.cat([rows, -rows])
        least, most = _back(both, chain, shapes, bounds, x, ball).chunk(2)
        low.view(-1)[some] = torch.maximum(low.view(-1)[some], least)
        high.view(-1)[some] = torch.minimum(high.view(-1)[some], -most)
    return low, high


def _back(
    a: Tensor,
    chain: list[_Affine | _Ramp],
    shapes: list[torch.Size],
    bounds: list[tuple[Tensor, Tensor]],
    x: Tensor,
    ball: Ball,
) -> Tensor:
    """Return lower bounds [m] on a [m, ...] times the chain's output, over the ball."""
    constant = torch.zeros(len(a), dtype=torch.float64)
    ramps = list(bounds)
    for link, shape in zip(reversed(chain), reversed(shapes[: len(chain)]), strict=True):
        if isinstance(link, _Ramp):
            a, more = _under(a, link.slope, *ramps.pop())
        else:
            a, more = _transposed(a, link.layer, shape)
        constant = constant + more
    return constant + _least(a, x, ball)


def _transposed(a: Tensor, layer: Callable[[Tensor], Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return a [m, out...] times an affine layer: the factor of its input [m, *shape] and the constant [m]."""
    with torch.enable_grad():
        zero = torch.zeros((len(a), *shape), dtype=torch.float64, requires_grad=True)
        out = layer(zero)
        (factor,) = torch.autograd.grad((out * a).sum(), zero)
    return factor, (out.detach() * a).flatten(1).sum(1)


def _under(a: Tensor, slope: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return a [m, ...] times lines under (a >= 0) and over (a < 0) a ramp on [low, high]: factor and constant [m]."""
    span = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    over = ((high - slope * low) / span).where((low < 0) & (high > 0), torch.where(low >= 0, 1.0, slope))
    shift = torch.where((low < 0) & (high > 0), (slope - over) * low, 0.0)  # the chord through (low, slope * low)
    under = torch.where(high + low > 0, 1.0, slope).where((low < 0) & (high > 0), over)
    factor = torch.where(a >= 0, under, over)
    return a * factor, (a.clamp(max=0) * shift).flatten(1).sum(1)


def _least(a: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """Return the least value [m] of a [m, ...] times z over the box around x, or the ball where that says more."""
    low, high = _box(x, ball)
    flat = a.flatten(1)
    in_box = torch.where(flat >= 0, flat * low.flatten(), flat * high.flatten()).sum(1)
    if ball.norm.name == "linf":
        return in_box
    at = flat @ x.flatten()
    size = torch.linalg.vector_norm(flat, dim=1) if ball.norm.name == "l2" else flat.abs().amax(1)
    return torch.maximum(in_box, at - ball.eps * size)
