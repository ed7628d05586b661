"""A network as a graph of pieces that bounds can go through, read from its code by torch.fx."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from unfooled.core.target import Preparation, flags_kept
from unfooled.core.threat import Ball
from unfooled.errors import InputError

Interval: TypeAlias = tuple[Tensor, Tensor]
"""Lowest and highest values, [n, ...] each."""

Lines: TypeAlias = tuple[Tensor, ...]
"""What the linear bounds of a piece need to know of its inputs' intervals, [n, ...] each."""

KNOWN = (
    "linear and convolutional layers, batch normalisation, ReLU, LeakyReLU, average and maximum pooling, padding, "
    "flattening, dropout, and sums of their outputs as in residual blocks"
)


class NoBounds(InputError):
    """A network, or a step of one, that bounds cannot go through."""


class Piece(ABC):
    """One step of a network: how intervals go forward through it and how linear bounds come back."""

    @abstractmethod
    def forward(self, *inputs: Interval) -> Interval:
        """Return bounds on the output for inputs within the bounds; differentiable."""

    @abstractmethod
    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return a factor [r, *in] per input and a constant [r]: at most a [r, *out] times the output.

        `shapes` are those of one example's inputs, `lines` [r, ...] what `relaxed` returned for each row's example.
        """

    def relaxed(self, low: Tensor, high: Tensor) -> Lines:
        """Return the lines for an input in [low, high]; nothing where the piece is linear."""
        return ()


@dataclass(frozen=True)
class Affine(Piece):
    """x -> layer(x), and the same layer with absolute weights and no constant, for radii.

    `transposed(a [r, *out], shape)` is the layer's transpose for inputs of that shape, in which every row is on its
    own; without it the transpose is the gradient of a forward pass.
    """

    layer: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor, torch.Size], Tensor] | None = None

    def forward(self, *inputs: Interval) -> Interval:
        """Return middle and radius through the layer."""
        ((low, high),) = inputs
        middle, radius = self.layer((low + high) / 2), self.absolute((high - low) / 2)
        return middle - radius, middle + radius

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return the transposed layer."""
        if self.transposed is not None:
            constant = self.layer(a.new_zeros((1, *shapes[0])))
            return [self.transposed(a, torch.Size((len(a), *shapes[0])))], a.flatten(1) @ constant.flatten()
        with torch.enable_grad():
            zero = a.new_zeros((len(a), *shapes[0])).requires_grad_(True)
            out = self.layer(zero)
            (factor,) = torch.autograd.grad(out, zero, a)
        return [factor], (out.detach() * a).flatten(1).sum(1)


@dataclass(frozen=True)
class Dense(Affine):
    """A linear layer, whose weights [k, d] can be read."""

    weight: Tensor = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return the transposed layer."""
        constant = a.new_zeros(len(a)) if self.bias is None else (a * self.bias).flatten(1).sum(1)
        return [a @ self.weight], constant


@dataclass(frozen=True)
class Shaped(Piece):
    """The same values of every example in another shape."""

    shape: torch.Size

    def forward(self, *inputs: Interval) -> Interval:
        """Return the bounds in the shape."""
        low, high = (v.reshape(len(v), *self.shape) for v in inputs[0])
        return low, high

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return a in the input's shape."""
        return [a.reshape(len(a), *shapes[0])], a.new_zeros(len(a))


@dataclass(frozen=True)
class Total(Piece):
    """The sum of inputs of one shape, each with its sign."""

    signs: tuple[int, ...]

    def forward(self, *inputs: Interval) -> Interval:
        """Return the sums of the ends."""
        turned = [(low, high) if s > 0 else (-high, -low) for s, (low, high) in zip(self.signs, inputs, strict=True)]
        low, high = (sum(ends[1:], ends[0]) for ends in zip(*turned, strict=True))
        return low, high

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return a for every input."""
        return [s * a for s in self.signs], a.new_zeros(len(a))


@dataclass(frozen=True)
class Ramp(Piece):
    """x -> max(x, slope * x), 0 <= slope < 1."""

    slope: float

    def forward(self, *inputs: Interval) -> Interval:
        """Return the ends behind the ramp, which rises."""
        low, high = (F.leaky_relu(v, self.slope) if self.slope else F.relu(v) for v in inputs[0])
        return low, high

    def relaxed(self, low: Tensor, high: Tensor) -> Lines:
        """Return the slopes of a line under and of one over the ramp, and the latter's height at 0.

        The chord is above; below, the line of the side on which more of the interval lies (Zhang et al. 2018, table 1,
        adaptive).
        """
        open_ = (low < 0) & (high > 0)
        span = (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        over = torch.where(open_, (high - self.slope * low) / span, torch.where(low >= 0, 1.0, self.slope))
        under = torch.where(open_, torch.where(high + low > 0, 1.0, self.slope), over)
        return under, over, torch.where(open_, (self.slope - over) * low, 0.0)

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return a on the line under where it is positive, on the chord where it is negative."""
        under, over, height = lines
        return [a * torch.where(a >= 0, under, over)], (a.clamp(max=0) * height).flatten(1).sum(1)


@dataclass(frozen=True)
class Largest(Piece):
    """The largest value of every window of [n, c, h, w]; what pads is never the largest."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def forward(self, *inputs: Interval) -> Interval:
        """Return the largest of the ends."""
        low, high = (F.max_pool2d(v, self.size, self.stride, self.padding) for v in inputs[0])
        return low, high

    def relaxed(self, low: Tensor, high: Tensor) -> Lines:
        """Return whose lowest value is highest in every window, whether no other can be larger, the highest value.

        That cell's value is a lower bound on the largest, and all of it where no other can be larger; the highest value
        is an upper bound.
        """
        floor, cell = F.max_pool2d(low, self.size, self.stride, self.padding, return_indices=True)
        number = torch.arange(low[0, 0].numel(), dtype=low.dtype, device=low.device).view(1, 1, *low.shape[2:])
        highs, numbers = self._windows(high, -math.inf), self._windows(number, -1)
        other = (numbers.long() != cell[..., None]) & (highs > floor[..., None])
        return cell, ~other.any(4), highs.amax(4)

    def _windows(self, x: Tensor, filling: float) -> Tensor:
        """Return the values of every window, [n, c, oh, ow, m]."""
        rows, columns = self.padding
        padded = F.pad(x, (columns, columns, rows, rows), value=filling)
        return padded.unfold(2, self.size[0], self.stride[0]).unfold(3, self.size[1], self.stride[1]).flatten(4)

    def back(self, a: Tensor, shapes: Sequence[torch.Size], lines: Lines) -> tuple[list[Tensor], Tensor]:
        """Return a at the cells, and the highest values where a is negative and the cell is not sure."""
        cell, sure, highest = lines
        kept = torch.where((a >= 0) | sure, a, 0.0)
        factor = a.new_zeros((len(a), *shapes[0])).flatten(2)
        factor.scatter_add_(2, cell.flatten(2), kept.flatten(2))
        return [factor.view(len(a), *shapes[0])], torch.where(kept == a, 0.0, a * highest).flatten(1).sum(1)


@dataclass(frozen=True)
class Node:
    """A piece and the places of its inputs; the network's own input is place 0 and has no piece.

    `shape` is that of one example's output.
    """

    piece: Piece | None
    inputs: tuple[int, ...]
    shape: torch.Size


@dataclass(frozen=True)
class Network:
    """The nodes in the order of their work; the last one's output are the scores."""

    nodes: tuple[Node, ...]

    def intervals(self, box: Interval) -> list[Interval]:
        """Return bounds on every node's output for inputs in a box: interval bound propagation."""
        known = [box]
        for node in self.nodes[1:]:
            assert node.piece is not None
            known.append(node.piece.forward(*(known[i] for i in node.inputs)))
        return known

    def check(self, module: nn.Module, x: Tensor, *, tolerance: float) -> None:
        """Raise InputError where the network answers x otherwise than the module in eval mode does.

        The tolerance is relative to the largest score.
        """
        with flags_kept(module), torch.no_grad():
            module.eval()
            theirs, ours = module(x).double(), self.intervals((x, x))[-1][0].double()
        if not torch.allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, float(theirs.abs().max()))):
            raise NoBounds(
                f"The network read from the code of {type(module).__name__} does not answer as it does; "
                "write its forward without branches that depend on the input, and its normalisation as arithmetic."
            )

    def between(self, known: list[Interval], y: Tensor) -> Tensor:
        """Return bounds [n, k] on the score of y [n] minus every score, 0 at y, from the intervals of all nodes.

        A last linear layer is joined with the difference: of two rows of weights, not of two scores' bounds.
        """
        last = self.nodes[-1]
        if isinstance(last.piece, Dense):
            low, high = known[last.inputs[0]]
            rows = last.piece.weight[y][:, None] - last.piece.weight  # [n, k, d]
            middle, radius = (low + high) / 2, (high - low) / 2
            at = torch.einsum("nkd,nd->nk", rows, middle) - torch.einsum("nkd,nd->nk", rows.abs(), radius)
            return at if last.piece.bias is None else at + last.piece.bias[y][:, None] - last.piece.bias
        low, high = known[-1]
        return (low.gather(1, y[:, None]) - high).scatter(1, y[:, None], 0.0)


class IntervalBound:
    """Differentiable interval bounds for training: `(module, x, y, ball) -> [b, k]`, in the module's own precision.

    They bound the score of y minus every score from below over the ball's box, 0 at y itself (Gowal et al. 2018,
    arXiv:1810.12715): what `harden.certified.certified` takes. A module's code is read when it first comes; its weights
    and running statistics are followed, since they bound what it answers in eval mode, whatever mode it is in.
    """

    def __init__(self) -> None:
        self._read: tuple[nn.Module, Network] | None = None

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        """Return the bounds [b, k]; raises InputError for a network without bounds."""
        if self._read is None or self._read[0] is not module:
            network = read(module, x)
            network.check(module, x[:8], tolerance=0.05)  # as far apart as bfloat16 may be
            self._read = (module, network)
        low, high = ball.bounds
        network, box = self._read[1], ((x - ball.eps).clamp(low, high), (x + ball.eps).clamp(low, high))
        return network.between(network.intervals(box), y)


def read(module: nn.Module, x: Tensor) -> Network:
    """Return the network of a module that takes inputs like x [n, ...]; raises InputError for what has no bounds.

    It keeps the module's own weights, and follows them when they are trained. Batch normalisation is taken with its
    running statistics and dropout as nothing, whatever the module's mode.
    """
    held = nn.Sequential(module)  # a root is entered, and a layer must not be
    try:
        graph = _Tracer().trace(held)
    except Exception as error:  # whatever a forward does with what stands for its input
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, fx.proxy.TraceError) or "Proxy" in why:  # fx's words for values that are not known yet
            why = "its steps depend on the values that it computes"
        raise NoBounds(
            f"The code of {type(module).__name__} cannot be read as a plain network ({why}); bounds go through {KNOWN}."
        ) from error
    with torch.no_grad():
        return _Reader(fx.GraphModule(held, graph)).network(torch.cat([x[:1], x[:1]]))


class _Tracer(fx.Tracer):
    """Leaves hooks out: they may count rows, and are no part of the network."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take a target's normalisation as one step, as torch's own layers are."""
        return isinstance(m, Preparation) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Enter a module by its forward, unless it is a leaf."""
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        return m.forward(*args, **kwargs)


@dataclass(frozen=True)
class _Seen:
    """What depends on the input: its place in the network, and its value for two inputs."""

    place: int
    value: Tensor


class _Reader(fx.Interpreter):
    """Goes through a graph once with two inputs, which gives the shapes, and notes the pieces on the way."""

    def network(self, x: Tensor) -> Network:
        self.extra_traceback = False  # it would go into the sentences
        self.nodes = [Node(None, (), x.shape[1:])]
        end = self.run(_Seen(0, x), enable_io_processing=False)
        if not isinstance(end, _Seen) or end.value.dim() != 2 or end.value.shape[1] < 2:
            raise NoBounds("Bounds need a network that returns one tensor of scores, of two classes or more.")
        if end.place != len(self.nodes) - 1:  # the last node's output are the scores
            self._note(Total((1,)), end)
        return Network(tuple(self.nodes))

    def run_node(self, n: fx.Node) -> Any:
        """Take a step; one in place may not change what another step reads."""
        if self._in_place(n):
            changed = n.args[0]
            while isinstance(changed, fx.Node):
                if len(changed.users) > 1:
                    raise _refused("a step in place on what is used elsewhere as well")
                changed = changed.args[0] if changed.op != "placeholder" and _name(changed) in _VIEWS else None
        return super().run_node(n)

    def _in_place(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return bool(getattr(self.fetch_attr(str(n.target)), "inplace", False))
        name = _name(n)
        return name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv") or bool(n.kwargs.get("inplace"))

    def _note(self, piece: Piece, *inputs: _Seen) -> _Seen:
        value, _ = piece.forward(*((seen.value, seen.value) for seen in inputs))
        self.nodes.append(Node(piece, tuple(seen.place for seen in inputs), value.shape[1:]))
        return _Seen(len(self.nodes) - 1, value)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a layer."""
        layer = self.fetch_attr(target)
        if len(args) != 1 or kwargs or not isinstance(args[0], _Seen):
            raise _refused(f"a {type(layer).__name__} of several inputs")
        if isinstance(layer, nn.Flatten | nn.Unflatten):
            return self._note(_shaped(f"a {type(layer).__name__}", layer(args[0].value)), args[0])
        try:
            piece = _layer(layer)
        except NoBounds as error:
            name = str(target).partition(".")[2]  # within the module itself, which is what is held
            raise NoBounds(f"Layer {name!r}: {error}" if name else str(error)) from None
        return self._note(piece, args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a function."""
        return self._called(getattr(target, "__name__", str(target)), target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a tensor's method."""
        return self._called(str(target), getattr(Tensor, str(target)), args, kwargs)

    def _called(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside: list[_Seen] = []
        fx.node.map_aggregate((args, kwargs), lambda v: inside.append(v) if isinstance(v, _Seen) else None)
        if not inside:
            return function(*args, **kwargs)
        seen = [each for each in args if isinstance(each, _Seen)]
        if len(seen) != len(inside):
            raise _refused(f"a {name}")
        first, rest = args[0], args[1:]
        if name == "getattr" and rest[0] not in _KNOWN_BEFORE:  # .data and .T are values, not what is known of them
            raise _refused(f"a .{rest[0]}")
        if name in _ASKED:
            return function(first.value, *rest, **kwargs)
        if name in _SUMS and not kwargs:
            return self._sum(_SUMS[name], *args)
        if name in ("mul", "truediv") and len(seen) == 1 and (name == "mul" or first is seen[0]):
            other = rest[0] if first is seen[0] else first
            return self._same_shape(scaled(other if name == "mul" else 1 / other, 0.0), seen[0])
        if len(seen) > 1 or first is not seen[0]:
            raise _refused(f"a {name} of several inputs")
        if name in _SAME:
            return self._note(Total((-1 if name == "neg" else 1,)), first)
        if name in ("relu", "relu_"):
            return self._note(Ramp(0.0), first)
        if name == "leaky_relu":
            return self._note(_ramp(nn.LeakyReLU(*rest, **kwargs)), first)
        if name == "max_pool2d":
            return self._note(_largest(nn.MaxPool2d(*rest, **kwargs)), first)
        if name in _MOVED or name in _MEANS:
            piece = _shaped(f"a {name}", function(first.value, *rest, **kwargs))
            return self._note(piece if name in _MOVED else _positive(lambda v: function(v, *rest, **kwargs)), first)
        raise _refused(f"a {name}")

    def _sum(self, sign: int, a: Any, b: Any) -> _Seen:
        if not isinstance(b, _Seen):
            return self._same_shape(scaled(1.0, sign * b), a)
        if not isinstance(a, _Seen):
            return self._same_shape(scaled(float(sign), a), b)
        if a.value.shape != b.value.shape:
            raise _refused("a sum of different shapes")
        return self._note(Total((1, sign)), a, b)

    def _same_shape(self, piece: Piece, seen: _Seen) -> _Seen:
        noted = self._note(piece, seen)
        if noted.value.shape != seen.value.shape:
            raise _refused("arithmetic that changes the shape")
        return noted


def _name(n: fx.Node) -> str:
    """Return the bare name of what a step calls."""
    return str(getattr(n.target, "__name__", n.target))


_ASKED = ("size", "dim", "getattr")
_KNOWN_BEFORE = ("shape", "ndim", "dtype", "device", "is_cuda")
_SUMS = {"add": 1, "iadd": 1, "add_": 1, "sub": -1, "isub": -1, "sub_": -1}
_SAME = ("float", "double", "contiguous", "clone", "dropout", "dropout2d", "neg")
_MOVED = ("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze")
_VIEWS = (*_MOVED, "float", "double", "contiguous", "dropout", "dropout2d", "getitem", "transpose", "permute")
_MEANS = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean")
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POSITIVE = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.ZeroPad1d, nn.ZeroPad2d,
)  # fmt: skip
_BY_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _layer(layer: nn.Module) -> Piece:
    """Return the piece that a layer is."""
    if isinstance(layer, _NOTHING):
        return Total((1,))
    if isinstance(layer, Preparation):
        return Affine(layer, layer.spread)
    if isinstance(layer, nn.ReLU):
        return Ramp(0.0)
    if isinstance(layer, nn.LeakyReLU):
        return _ramp(layer)
    if isinstance(layer, nn.MaxPool2d):
        return _largest(layer)
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight, layer.bias
        return Dense(layer, lambda r: F.linear(r, weight.abs()), weight=weight, bias=bias)
    if isinstance(layer, _POSITIVE):
        return _positive(layer)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode == "zeros":
        return _convolution(layer)
    if isinstance(layer, _BY_BATCH):
        if layer.running_var is None:
            raise _refused(f"a {type(layer).__name__} without running statistics, whose answer depends on the batch")
        return _normalisation(layer)
    raise _refused(f"a {type(layer).__name__}")


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Piece:
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[layer.weight.dim() - 2]
    rest: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    turned: Any = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}[layer.weight.dim() - 2]
    return Affine(
        lambda v: convolve(v, layer.weight, layer.bias, *rest),
        lambda r: convolve(r, layer.weight.abs(), None, *rest),
        None if isinstance(layer.padding, str) else lambda a, shape: turned(shape, layer.weight, a, *rest),
    )


def _normalisation(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Piece:
    """Return the layer as it is in eval mode, with the running statistics that it has when it is asked."""

    def asked(v: Tensor) -> Tensor:
        return F.batch_norm(v, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)

    def absolute(r: Tensor) -> Tensor:
        assert layer.running_var is not None
        scale = (layer.running_var + layer.eps).rsqrt()
        gain = scale if layer.weight is None else scale * layer.weight
        return r * gain.abs().view(1, -1, *[1] * (r.dim() - 2))

    return Affine(asked, absolute)


def _ramp(layer: nn.LeakyReLU) -> Piece:
    if not 0 <= layer.negative_slope < 1:
        raise _refused(f"a LeakyReLU of slope {layer.negative_slope:g}")
    return Ramp(float(layer.negative_slope))


def _largest(layer: nn.MaxPool2d) -> Piece:
    if layer.ceil_mode or layer.return_indices or layer.dilation not in (1, (1, 1)):
        raise _refused("maximum pooling that rounds up, is dilated or returns its indices")
    given: list[Any] = [layer.kernel_size, layer.stride, layer.padding]
    return Largest(*((v, v) if isinstance(v, int) else tuple(v) for v in given))


def _shaped(what: str, value: Tensor) -> Piece:
    """Return the piece that makes `value` of the reader's two inputs."""
    if value.dim() == 0 or len(value) != 2:
        raise _refused(f"{what} that mixes examples")
    return Shaped(value.shape[1:])


def _positive(layer: Callable[[Tensor], Tensor]) -> Piece:
    """Return the piece of a linear map without a constant whose weights are all positive."""
    return Affine(layer, layer)


def scaled(factor: Any, shift: Any) -> Piece:
    """Return the piece x -> factor * x + shift, value by value."""
    return Affine(lambda v: v * factor + shift, lambda r: r * abs(factor))


def _refused(what: str) -> NoBounds:
    return NoBounds(f"There are no bounds through {what}: bounds go through {KNOWN}.")
