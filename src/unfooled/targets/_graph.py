"""ONNX graphs in torch: the operators of common networks, so that gradients reach the input. No file is read here."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Values = list[Any]
Operator = Callable[[Values, dict[str, Any], int], Any]
"""(inputs, attributes, opset) -> one tensor, or a tuple of them."""


class Graph(nn.Module):
    """One ONNX graph of one input and one output; its initializers are buffers.

    Args:
        nodes: (operator, names of inputs, names of outputs, attributes), in order.
        constants: the initializers by name.
        given, wanted: the names of the input and of the output.
        opset: the version of the operators.

    Raises:
        NotImplementedError: an operator has no counterpart here; its message is its name.
    """

    def __init__(
        self,
        nodes: Sequence[tuple[str, Sequence[str], Sequence[str], dict[str, Any]]],
        constants: dict[str, np.ndarray],
        given: str,
        wanted: str,
        opset: int,
    ) -> None:
        super().__init__()
        missing = sorted({op for op, *_ in nodes if op not in OPERATORS})
        if missing:
            raise NotImplementedError(", ".join(missing))
        self.given, self.wanted, self.opset = given, wanted, opset
        self.nodes = [(op, list(i), list(o), _ready(a)) for op, i, o, a in nodes]
        self.names = {name: f"c{i}" for i, name in enumerate(constants)}
        for name, value in constants.items():
            self.register_buffer(self.names[name], torch.from_numpy(np.array(value)))
        self.last: dict[str, int] = {}  # where a value is used for the last time
        for at, (_, inputs, _, _) in enumerate(self.nodes):
            self.last.update(dict.fromkeys(inputs, at))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output at x [n, ...]."""
        values: dict[str, Any] = {name: getattr(self, own) for name, own in self.names.items()}
        values[self.given] = x
        for at, (op, inputs, outputs, attributes) in enumerate(self.nodes):
            out = OPERATORS[op]([values[i] if i else None for i in inputs], attributes, self.opset)
            values.update(zip(outputs, out if isinstance(out, tuple) else (out,), strict=False))
            for name in inputs:
                if name and self.last[name] == at and name != self.wanted:
                    values.pop(name, None)
        return values[self.wanted]


def _ready(attributes: dict[str, Any]) -> dict[str, Any]:
    return {k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}


def _ints(value: Any) -> list[int]:
    return [int(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else np.atleast_1d(value))]


def _at(inputs: Values, i: int) -> Any:
    return inputs[i] if i < len(inputs) else None


def _axes(inputs: Values, attributes: dict[str, Any], i: int = 1) -> list[int] | None:
    """Return axes, an input in newer operator sets and an attribute in older ones."""
    axes = attributes.get("axes")
    axes = _at(inputs, i) if axes is None else axes
    return None if axes is None else _ints(axes)


def _windows(
    x: Tensor, attributes: dict[str, Any], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return strides, dilations, and the padding before and after each spatial axis."""
    n = len(kernel)
    strides, dilations = (list(attributes.get(name) or [1] * n) for name in ("strides", "dilations"))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small = total // 2
            before.append(small if auto == "SAME_UPPER" else total - small)
            after.append(total - before[-1])
        return strides, dilations, before, after
    pads = list(attributes.get("pads") or [0] * (2 * n)) if auto == "NOTSET" else [0] * (2 * n)
    return strides, dilations, pads[:n], pads[n:]


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    pads = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return F.pad(x, pads, value=value) if any(pads) else x


def _conv(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, w, bias = i[0], i[1], _at(i, 2)
    strides, dilations, before, after = _windows(x, a, w.shape[2:])
    call: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[w.dim() - 2]
    even = before == after
    x = x if even else _padded(x, before, after)
    padding = before if even else [0] * len(before)
    return call(x, w, bias, strides, padding, dilations, a.get("group", 1))


def _conv_transpose(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, w, bias = i[0], i[1], _at(i, 2)
    strides, dilations, before, after = _windows(x, {**a, "auto_pad": b"NOTSET"}, w.shape[2:])
    if before != after or "output_shape" in a or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("ConvTranspose with uneven padding")
    call: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[w.dim() - 2]
    more = list(a.get("output_padding") or [0] * len(before))
    return call(x, w, bias, strides, before, more, a.get("group", 1), dilations)


def _max_pool(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, kernel = i[0], list(a["kernel_shape"])
    strides, dilations, before, after = _windows(x, a, kernel)
    call: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    x = _padded(x, before, after, -math.inf)
    return call(x, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pool(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, kernel = i[0], list(a["kernel_shape"])
    strides, dilations, before, after = _windows(x, a, kernel)
    if any(d != 1 for d in dilations):
        raise NotImplementedError("AveragePool with dilations")
    call: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    ceil = bool(a.get("ceil_mode", 0))
    out = call(_padded(x, before, after), kernel, strides, 0, ceil)
    if not any(before + after) or a.get("count_include_pad", 0):
        return out
    return out / call(_padded(torch.ones_like(x[:1, :1]), before, after), kernel, strides, 0, ceil)


def _gemm(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, w, c = i[0], i[1], _at(i, 2)
    x, w = x.T if a.get("transA") else x, w.T if a.get("transB") else w
    out = a.get("alpha", 1.0) * (x @ w)
    return out if c is None else out + a.get("beta", 1.0) * c


def _batch_norm(i: Values, a: dict[str, Any], _: int) -> Tensor:
    if a.get("training_mode"):
        raise NotImplementedError("BatchNormalization in training mode")
    x, scale, bias, mean, var = i[:5]
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _layer_norm(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x = i[0]
    axis = a.get("axis", -1) % x.dim()
    return F.layer_norm(x, list(x.shape[axis:]), i[1], _at(i, 2), a.get("epsilon", 1e-5))


def _softmax(call: Callable[..., Tensor]) -> Operator:
    def run(i: Values, a: dict[str, Any], opset: int) -> Tensor:
        x = i[0]
        if opset >= 13:
            return call(x, dim=a.get("axis", -1))
        axis = a.get("axis", 1) % x.dim()  # flattened from there on
        return call(x.reshape(math.prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return run


def _clip(i: Values, a: dict[str, Any], _: int) -> Tensor:
    low, high = (_at(i, n) if name not in a else a[name] for n, name in ((1, "min"), (2, "max")))
    x = i[0]
    x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


def _reshape(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x = i[0]
    shape = _ints(a["shape"] if "shape" in a else i[1])
    if not a.get("allowzero"):
        shape = [x.shape[n] if s == 0 else s for n, s in enumerate(shape)]
    return x.reshape(shape)


def _flatten(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x = i[0]
    axis = a.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(i: Values, a: dict[str, Any], _: int) -> Tensor:
    axes = _axes(i, a)
    return i[0].squeeze() if axes is None else i[0].squeeze(tuple(axes))


def _unsqueeze(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, axes = i[0], _axes(i, a) or []
    for axis in sorted(v % (x.dim() + len(axes)) for v in axes):
        x = x.unsqueeze(axis)
    return x


def _reduce(call: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def run(i: Values, a: dict[str, Any], _: int) -> Tensor:
        x, axes = i[0], _axes(i, a)
        if axes is None and a.get("noop_with_empty_axes"):
            return x
        every = tuple(range(x.dim()))
        return call(x, tuple(axes) if axes else every, bool(a.get("keepdims", 1)))

    return run


def _slice(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x = i[0]
    starts, ends = (_ints(a[n] if n in a else i[at]) for n, at in (("starts", 1), ("ends", 2)))
    axes = _axes(i, a, 3) or list(range(len(starts)))
    steps = _ints(i[4]) if _at(i, 4) is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        index = torch.as_tensor(list(chosen), dtype=torch.int64, device=x.device)
        x = x.narrow(axis, chosen.start, len(chosen)) if step == 1 else x.index_select(axis, index)
    return x


def _pad(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x = i[0]
    pads = _ints(a["pads"] if "pads" in a else i[1])
    value = float(a.get("value", 0.0) if _at(i, 2) is None else i[2])
    axes = [v % x.dim() for v in _ints(i[3])] if _at(i, 3) is not None else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for n, axis in enumerate(axes):
        before[axis], after[axis] = pads[n], pads[n + len(axes)]
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return _padded(x, before, after, value)
    if any(before[:2] + after[:2]) or mode not in ("reflect", "edge"):
        raise NotImplementedError(f"Pad by {mode}")
    spatial = [p for pair in zip(reversed(before[2:]), reversed(after[2:]), strict=True) for p in pair]
    return F.pad(x, spatial, mode="reflect" if mode == "reflect" else "replicate")


def _split(i: Values, a: dict[str, Any], _: int) -> tuple[Tensor, ...]:
    x, axis = i[0], a.get("axis", 0)
    sizes = a.get("split") if "split" in a else _at(i, 1)
    if sizes is not None:
        return x.split(_ints(sizes), axis)
    if "num_outputs" not in a:
        raise NotImplementedError("Split without sizes")
    return x.split(math.ceil(x.shape[axis] / a["num_outputs"]), axis)


def _gather(i: Values, a: dict[str, Any], _: int) -> Tensor:
    x, index = i[0], i[1].long().to(i[0].device)
    axis = a.get("axis", 0) % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    out = x.index_select(axis, index.reshape(-1))
    return out.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _resize(i: Values, a: dict[str, Any], opset: int) -> Tensor:
    """Nearest by whole factors and linear between half pixels: what networks use."""
    x, mode = i[0], a.get("mode", b"nearest").decode()
    scales = a.get("scales", _at(i, 1 if opset < 11 else 2))
    sizes = _at(i, 3) if opset >= 11 else None
    if sizes is not None:
        size = _ints(sizes)[2:]
    else:
        factors = scales.reshape(-1).tolist() if isinstance(scales, Tensor) else list(scales or [])
        size = [math.floor(s * f) for s, f in zip(x.shape[2:], factors[2:], strict=True)]
    if mode == "nearest" and all(t % s == 0 for t, s in zip(size, x.shape[2:], strict=True)):
        return F.interpolate(x, size, mode="nearest")
    place = a.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode == "linear" and x.dim() == 4 and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, size, mode="bilinear", align_corners=place == "align_corners")
    raise NotImplementedError(f"Resize by {mode}")


_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _div(i: Values, a: dict[str, Any], _: int) -> Tensor:
    return i[0] / i[1] if i[0].is_floating_point() else torch.div(i[0], i[1], rounding_mode="trunc")


def _constant(i: Values, a: dict[str, Any], _: int) -> Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in a:
            v = a[name]
            kind = torch.float32 if "float" in name else torch.int64
            return v if isinstance(v, Tensor) else torch.tensor(v, dtype=kind)
    raise NotImplementedError("Constant of text")


def _filled(i: Values, a: dict[str, Any], _: int) -> Tensor:
    value = a.get("value", torch.zeros(1))
    return torch.full(_ints(i[0]), value.item(), dtype=value.dtype, device=i[0].device)


def _expand(i: Values, a: dict[str, Any], _: int) -> Tensor:
    return i[0].expand(torch.broadcast_shapes(i[0].shape, tuple(_ints(i[1]))))


def _depth_to_space(i: Values, a: dict[str, Any], _: int) -> Tensor:
    if a.get("mode", b"DCR") != b"CRD":
        n, c, h, w = i[0].shape
        b = a["blocksize"]
        z = i[0].reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        return z.reshape(n, c // (b * b), h * b, w * b)
    return F.pixel_shuffle(i[0], a["blocksize"])


def _one(call: Callable[[Tensor], Tensor]) -> Operator:
    return lambda i, a, _: call(i[0])


def _pair(call: Callable[[Any, Any], Tensor]) -> Operator:
    return lambda i, a, _: call(i[0], i[1])


def _fold(call: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(i: Values, a: dict[str, Any], _: int) -> Tensor:
        out = i[0]
        for other in i[1:]:
            out = call(out, other)
        return out

    return run


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


OPERATORS: dict[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _pair(torch.add),
    "And": _pair(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda i, a, _: i[0].to(_TYPES[a["to"]]),
    "CastLike": lambda i, a, _: i[0].to(i[1].dtype),
    "Ceil": _one(torch.ceil),
    "Clip": _clip,
    "Concat": lambda i, a, _: torch.cat(list(i), a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _one(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _one(lambda x: x),
    "Elu": lambda i, a, _: F.elu(i[0], a.get("alpha", 1.0)),
    "Equal": _pair(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _one(torch.floor),
    "Gather": _gather,
    "Gelu": lambda i, a, _: F.gelu(i[0], approximate=a.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": _one(lambda x: x.mean(_spatial(x), keepdim=True)),
    "GlobalMaxPool": _one(lambda x: x.amax(_spatial(x), keepdim=True)),
    "Greater": _pair(torch.gt),
    "HardSigmoid": lambda i, a, _: (a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _one(F.hardswish),
    "Identity": _one(lambda x: x),
    "InstanceNormalization": lambda i, a, _: F.instance_norm(i[0], weight=i[1], bias=i[2], eps=a.get("epsilon", 1e-5)),
    "LRN": lambda i, a, _: F.local_response_norm(
        i[0], a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda i, a, _: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Less": _pair(torch.lt),
    "Log": _one(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _pair(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": lambda i, a, _: sum(i[1:], i[0]) / len(i),
    "Min": _fold(torch.minimum),
    "Mul": _pair(torch.mul),
    "Neg": _one(torch.neg),
    "Not": _one(torch.logical_not),
    "Or": _pair(torch.logical_or),
    "PRelu": lambda i, a, _: torch.where(i[0] >= 0, i[0], i[0] * i[1]),
    "Pad": _pad,
    "Pow": _pair(torch.pow),
    "Reciprocal": _one(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(d, k)),
    "ReduceL2": _reduce(lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k)),
    "ReduceMax": _reduce(lambda x, d, k: x.amax(d, k)),
    "ReduceMean": _reduce(lambda x, d, k: x.mean(d, k)),
    "ReduceMin": _reduce(lambda x, d, k: x.amin(d, k)),
    "ReduceSum": _reduce(lambda x, d, k: x.sum(d, k)),
    "ReduceSumSquare": _reduce(lambda x, d, k: (x * x).sum(d, k)),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": lambda i, a, _: F.selu(i[0]),
    "Shape": lambda i, a, _: torch.tensor(list(i[0].shape)[a.get("start", 0) : a.get("end")]),
    "Sigmoid": _one(torch.sigmoid),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _one(F.softplus),
    "Softsign": _one(F.softsign),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _pair(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _one(torch.tanh),
    "Tile": lambda i, a, _: i[0].tile(_ints(i[1])),
    "Transpose": lambda i, a, _: i[0].permute(a.get("perm") or list(range(i[0].dim()))[::-1]),
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": lambda i, a, _: torch.where(*i),
}
