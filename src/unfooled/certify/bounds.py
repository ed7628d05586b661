"""Sound lower bounds on the margins of small ReLU networks over a norm ball: intervals (IBP) and lines (CROWN)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unfooled.core.network import Interval, Lines, Network, NoBounds, Node, Ramp, read, scaled
from unfooled.core.run import check_inputs
from unfooled.core.target import Target, as_target, untouched
from unfooled.core.threat import Ball, Threat
from unfooled.errors import InputError

Method = Literal["ibp", "crown"]

_ROOM = 2**20  # most values of a batch of backward rows; with four times as many a CPU takes twice as long
_AGREE = 1e-6  # by which the network that was read may differ from the module, in float64


def margins(
    target: Target | Callable[..., Any], x: Tensor, y: Tensor, threat: Threat, *, method: Method = "crown"
) -> Tensor:
    """Return lower bounds on the score of y minus that of every other class over the threat, float64 [n, k].

    Where all of a row are positive (its own class's entry is infinite), no input of the ball and box is classified
    otherwise. "ibp": interval bounds, the last layer joined with the difference (Gowal et al. 2018, arXiv:1810.12715).
    "crown": linear bounds carried from the last layer back to the input, the neurons before each ReLU bounded the same
    way, the lower line of slope 0 or 1 (Zhang et al. 2018, arXiv:1811.00866, algorithm 1 with adaptive relaxation);
    never looser than intervals here. Computed in float64 on the module's device, rounding errors of which are not
    accounted for.

    Args:
        target: a `Target` or module that torch.fx can read: linear and convolutional layers, batch normalisation, ReLU,
            LeakyReLU, average and maximum pooling, padding, flattening, dropout, and sums as in residual blocks.
        x: inputs [n, ...] within the bounds.
        y: classes int64 [n].
        threat: a ball in Linf, L2 or L1 with a finite eps and neither mask nor levels.
        method: which bounds.

    Raises:
        InputError: another kind of network, threat or method; inputs that are none or not within the target's bounds.
    """
    asked = _Asked.of(target, x, y, threat, method)
    if not threat.bounded:
        raise InputError(f"Bounds need a ball with a finite eps, not {threat!r}.")
    eps = torch.full((len(x),), threat.eps, dtype=torch.float64)  # type: ignore[attr-defined]
    with torch.inference_mode(False), torch.no_grad():
        return asked.margins(eps).to(x.device)


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
    Raises InputError as `margins`.
    """
    asked = _Asked.of(target, x, y, threat, method)
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), upper, dtype=torch.float64)
    with torch.inference_mode(False), torch.no_grad():
        for _ in range(steps):
            middle = (low + high) / 2
            sound = asked.margins(middle).amin(1).cpu() > 0
            low, high = torch.where(sound, middle, low), torch.where(sound, high, middle)
    return low


# ---- what is asked


def check(x: Tensor, threat: Threat, target: Target, y: Tensor | None = None) -> None:
    """Raise InputError where nothing is certain: no inputs, or some that the target's bounds do not hold."""
    if not isinstance(x, Tensor) or x.dim() < 1 or not len(x):
        raise InputError("A certificate is about a tensor of inputs [n, ...], n at least 1; one input is x[None].")
    check_inputs(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, threat, target)


@dataclass(frozen=True)
class _Region:
    """The inputs that may be submitted instead of x [n, ...]: a ball of radius eps [n, 1, ...] in a norm, and a box."""

    x: Tensor
    eps: Tensor
    norm: str
    bounds: tuple[float, float]

    def box(self) -> Interval:
        """Return the smallest box around it."""
        low, high = self.bounds
        return (self.x - self.eps).clamp(low, high), (self.x + self.eps).clamp(low, high)

    def least(self, a: Tensor, owner: Tensor) -> Tensor:
        """Return lower bounds [r] on a [r, ...] times the inputs of the region of example `owner` int64 [r]."""
        low, high = (v[owner] for v in self.box())
        in_box = torch.where(a >= 0, a * low, a * high).flatten(1).sum(1)
        if self.norm == "linf":
            return in_box
        flat = a.flatten(1)
        at = (flat * self.x[owner].flatten(1)).sum(1)
        size = torch.linalg.vector_norm(flat, dim=1) if self.norm == "l2" else flat.abs().amax(1)
        return torch.maximum(in_box, at - self.eps.flatten()[owner] * size)


@dataclass(frozen=True)
class _Asked:
    """A network that was read and checked, in float64, with the examples that are asked about."""

    network: Network
    x: Tensor
    y: Tensor
    norm: str
    bounds: tuple[float, float]
    method: Method

    @classmethod
    def of(cls, target: Target | Callable[..., Any], x: Tensor, y: Tensor, threat: Threat, method: Method) -> "_Asked":
        """Check everything but the size of the threat; raises InputError."""
        if method not in ("ibp", "crown"):
            raise InputError(f"There are the methods 'ibp' and 'crown', not {method!r}.")
        model = as_target(target)
        if not isinstance(threat, Ball) or threat.norm.name not in ("linf", "l2", "l1"):
            raise InputError(f"Bounds need a ball in Linf, L2 or L1, not {threat!r}.")
        check(x, threat, model, y)
        if threat.mask is not None or threat.levels is not None:
            raise InputError("Bounds know no mask and no levels: give a plain ball, which holds all that these allow.")
        if not isinstance(model.module, nn.Module) or model.kind != "scores":
            raise NoBounds("Bounds need a torch module that returns scores.")
        if model.reject is not None:
            raise InputError("Bounds need a target that always answers: give it without its reject option.")
        with torch.inference_mode(False), torch.no_grad(), untouched(model):
            x = x.detach().to(model.device, torch.float64)
            module = copy.deepcopy(model.module).eval().double()
            network = read(module, x)
            network.check(module, _prepared(model, x), tolerance=_AGREE)
        network = _normalised(model, network, x)
        return cls(network, x, y.to(model.device), threat.norm.name, threat.within(model.bounds).bounds, method)

    def margins(self, eps: Tensor) -> Tensor:
        """Return the bounds [n, k] for a radius eps [n] of each example's own."""
        k, widest = self.network.nodes[-1].shape[0], max(node.shape.numel() for node in self.network.nodes)
        parts = []
        for rows in torch.arange(len(self.x), device=self.x.device).split(max(1, _ROOM // (k * widest))):
            radii = eps.to(self.x.device)[rows].view(-1, *[1] * (self.x.dim() - 1))
            region = _Region(self.x[rows], radii, self.norm, self.bounds)
            bound = _by_intervals if self.method == "ibp" else _by_lines
            parts.append(bound(self.network, region, self.y[rows]))
        own = torch.arange(k, device=self.y.device) == self.y[:, None]
        return torch.cat(parts).masked_fill(own, torch.inf)


def _prepared(model: Target, x: Tensor) -> Tensor:
    for value, sign in ((model.mean, -1), (model.std, 0)):
        if value is not None:
            value = value.double().view(-1, *[1] * (x.dim() - 2))
            x = x - value if sign else x / value
    return x


def _normalised(model: Target, network: Network, x: Tensor) -> Network:
    """Return the network behind the target's normalisation."""
    if model.mean is None and model.std is None:
        return network
    shape = [-1, *[1] * (x.dim() - 2)]
    mean = 0.0 if model.mean is None else model.mean.double().view(shape)
    scale = 1.0 if model.std is None else 1 / model.std.double().view(shape)
    begin, *rest = network.nodes
    moved = [Node(node.piece, tuple(i + 1 for i in node.inputs), node.shape) for node in rest]
    return Network((begin, Node(scaled(scale, -mean * scale), (0,), begin.shape), *moved))


# ---- the bounds


def _by_intervals(network: Network, region: _Region, y: Tensor) -> Tensor:
    return network.between(network.intervals(region.box()), y)


def _by_lines(network: Network, region: _Region, y: Tensor) -> Tensor:
    known: list[Interval] = [region.box()]
    lines: list[Lines] = [()]
    for node in network.nodes[1:]:
        assert node.piece is not None
        if isinstance(node.piece, Ramp):
            (at,) = node.inputs
            known[at] = _narrowed(network, region, lines, at, *known[at])
        inputs = [known[i] for i in node.inputs]
        lines.append(node.piece.relaxed(*inputs[0]))
        known.append(node.piece.forward(*inputs))
    n, k = known[-1][0].shape
    one = torch.eye(k, dtype=torch.float64, device=y.device)
    rows = (one[y][:, None] - one).flatten(0, 1)  # [n * k, k]
    owner = torch.arange(n, device=y.device).repeat_interleave(k)
    return torch.maximum(network.between(known, y), _back(network, region, lines, rows, owner).view(n, k))


def _narrowed(network: Network, region: _Region, lines: list[Lines], at: int, low: Tensor, high: Tensor) -> Interval:
    """Return the bounds [n, ...] of the node at a place, narrowed by lines where the sign is not known."""
    if at == 0:
        return low, high
    shape, widest = low.shape[1:], max(node.shape.numel() for node in network.nodes[: at + 1])
    low, high = low.flatten(1).clone(), high.flatten(1).clone()
    for owner, unit in (some.T for some in ((low < 0) & (high > 0)).nonzero().split(max(1, _ROOM // widest // 2))):
        rows = low.new_zeros(len(owner), low.shape[1])
        rows[torch.arange(len(owner), device=rows.device), unit] = 1
        both = torch.cat([rows, -rows]).view(-1, *shape)
        least, most = _back(network, region, lines, both, torch.cat([owner, owner]), at).chunk(2)
        low[owner, unit] = torch.maximum(low[owner, unit], least)
        high[owner, unit] = torch.minimum(high[owner, unit], -most)
    return low.view(-1, *shape), high.view(-1, *shape)


def _back(
    network: Network, region: _Region, lines: list[Lines], a: Tensor, owner: Tensor, at: int | None = None
) -> Tensor:
    """Return lower bounds [r] on a [r, ...] times the output of the node at a place (the last) over the region.

    Row r is about example owner[r].
    """
    last = len(network.nodes) - 1 if at is None else at
    factors, constant = {last: a}, a.new_zeros(len(a))
    for place in range(last, 0, -1):
        node, factor = network.nodes[place], factors.pop(place, None)
        if factor is None:
            continue
        assert node.piece is not None
        shapes = [network.nodes[i].shape for i in node.inputs]
        parts, more = node.piece.back(factor, shapes, tuple(v[owner] for v in lines[place]))
        constant = constant + more
        for i, part in zip(node.inputs, parts, strict=True):
            factors[i] = factors[i] + part if i in factors else part
    return constant + region.least(factors[0], owner)
