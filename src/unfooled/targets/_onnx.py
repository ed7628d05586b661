"""ONNX files as targets: onnxruntime answers; where the graph is known in torch too, attacks also get its gradient."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfooled.core.access import Access
from unfooled.core.target import Target
from unfooled.errors import InputError, MissingExtra, TargetError, nearest
from unfooled.targets._graph import Graph

MAX_BYTES = 2**31 - 1
"""Largest file, with its external data: what one protocol buffer can hold."""

AGREE = 1e-4
"""How far torch's scores may be from onnxruntime's at the probes, in units of the largest score."""


def onnx(
    path: str | os.PathLike[str],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    classes: Sequence[str] | None = None,
    output: str | None = None,
    white_box: bool = True,
    name: str = "",
) -> Target:
    """Return the classifier in an ONNX file as a target.

    Every score comes from onnxruntime. Where all operators of the graph are known in torch and its scores agree with
    onnxruntime's at random points of the box, gradients come from there and every attack applies; elsewhere attacks see
    scores alone, and `target.note` says why. A file made for batches of one size is asked in batches of that size.
    Inputs are flattened or put channels last where the graph wants them so.

    The file is untrusted: it is data, nothing in it is run but ONNX's own operators, no library of others is loaded,
    and tensors outside the file must lie in its folder.

    Args:
        path: the file; needs onnx and onnxruntime.
        bounds: lowest and highest value of an input.
        mean, std: per-channel normalisation before the graph.
        classes: one name per class.
        output: which output holds the scores; found by itself where there is only one.
        white_box: False asks for scores alone.
        name: how reports call it.

    Raises:
        InputError: there is no such file, it is damaged, or it holds no classifier of one input.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    path = Path(path).expanduser()
    model, data = _load(path)
    runtime = Runtime(data, path.name, output)
    graph, note = None, "gradients were not asked for (white_box=False)"
    if white_box:
        graph, note = _in_torch(model, runtime, bounds)
    module = Onnx(runtime, graph, hashlib.sha256(data).digest())
    access = Access.GRADIENT if graph is not None else Access.SCORES
    target = Target(module, bounds=bounds, mean=mean, std=std, name=name or path.name, classes=classes, access=access)
    target.batch = runtime.batch
    target.note = "" if graph is not None else f"{path.name} is asked for its scores alone: {note}."
    return target


class Onnx(nn.Module):
    """Scores [n, k] from onnxruntime at x [n, ...], with the gradient of `graph` where there is one."""

    digest: Tensor

    def __init__(self, runtime: "Runtime", graph: Graph | None, digest: bytes) -> None:
        super().__init__()
        self.runtime, self.graph = runtime, graph
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, k]; raises TargetError when the inputs are of another shape than the file's."""
        x = self.runtime.shaped(x)
        z = torch.from_numpy(self.runtime.scores(x.detach().cpu().numpy())).to(x.device)
        if self.graph is None or not (torch.is_grad_enabled() and x.requires_grad):
            return z
        way = self.graph(x.to(self.runtime.dtype))
        way = way.reshape(z.shape)
        return z + (way - way.detach())  # onnxruntime's numbers, torch's gradient

    def extra_repr(self) -> str:
        """Return the file's name."""
        return self.runtime.name


class Runtime:
    """One session of onnxruntime on the CPU; without a `__dict__`, as it has nothing that could be put back."""

    __slots__ = ("_session", "batch", "dtype", "given", "maps", "name", "shape", "wanted")

    def __init__(self, data: bytes, name: str, output: str | None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("ONNX targets need onnxruntime: pip install 'unfooled[onnx]'.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            shape = [d if isinstance(d, int) and d > 0 else None for i in inputs[:1] for d in i.shape or []]
        except Exception as error:  # whatever is wrong with a file, onnxruntime has a type for it
            raise InputError(f"onnxruntime cannot run {name} ({_short(error)}).") from None
        self.name = name
        if len(inputs) != 1 or inputs[0].type not in _DTYPES:
            told = ", ".join(f"{i.name}: {i.type}" for i in inputs)
            raise InputError(f"{name} takes {told or 'nothing'}; a target takes one tensor of floating-point numbers.")
        self.given, self.dtype = inputs[0].name, _DTYPES[inputs[0].type]
        if not shape:
            raise InputError(f"{name} takes inputs without a batch axis; export it with one.")
        self.batch, self.shape = shape[0], shape[1:]
        self.wanted, self.maps = _wanted(outputs, output, name)

    def shaped(self, x: Tensor) -> Tensor:
        """Return inputs [n, ...] in the file's own layout: as they are, channels last, or with axes of size 1 moved."""
        want, have = self.shape, list(x.shape[1:])
        if len(have) == len(want) and all(w in (None, h) for w, h in zip(want, have, strict=True)):
            return x
        if len(have) == 3 and len(want) == 3:
            last = [have[1], have[2], have[0]]
            if all(w in (None, h) for w, h in zip(want, last, strict=True)):
                return x.permute(0, 2, 3, 1)
        known = [w for w in want if w is not None]
        flat = len([w for w in known if w > 1]) <= 1 or len([h for h in have if h > 1]) <= 1
        alike = flat or [w for w in known if w != 1] == [h for h in have if h != 1]
        if len(known) == len(want) and int(np.prod(known)) == int(np.prod(have)) and alike:
            return x.reshape(len(x), *known)
        told = " x ".join("any" if w is None else str(w) for w in want)
        raise TargetError(f"{self.name} takes inputs of shape {told}; these are {' x '.join(map(str, have))}.")

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the chosen output at x, in the file's layout."""
        out = self._session.run([self.wanted], {self.given: np.ascontiguousarray(x, dtype=_numpy(self.dtype))})[0]
        if self.maps:  # a list of {class: probability}
            return np.array([[row[k] for k in sorted(row)] for row in out], dtype=np.float32)
        return np.asarray(out)


_DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16}


def _numpy(dtype: torch.dtype) -> Any:
    return {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}[dtype]


def _wanted(outputs: Sequence[Any], output: str | None, name: str) -> tuple[str, bool]:
    """Return the output that holds scores and whether they come as dictionaries; raises InputError for none or many."""
    maps = "seq(map("
    fit = [o for o in outputs if o.type in _DTYPES or o.type.startswith(maps)]
    if output is not None:
        fit = [o for o in fit if o.name == output]
    known = ", ".join(f"{o.name}: {o.type}" for o in outputs)
    if not fit:
        near = nearest(output, [o.name for o in outputs]) if output is not None else ""
        raise InputError(f"{name} has no output of scores{f' named {output!r}' if output else ''}, only {known}.{near}")
    tensors = [o for o in fit if o.type in _DTYPES and len(o.shape or [0, 0]) in (1, 2)] or fit
    if len(tensors) > 1:
        named = [o for o in tensors if o.name.lower() in ("logits", "scores", "output", "probabilities")]
        if len(named) != 1:
            raise InputError(f"{name} has several outputs ({known}): say which holds the scores, output=.")
        tensors = named
    return tensors[0].name, tensors[0].type.startswith(maps)


# ---- the file


def _load(path: Path) -> tuple[Any, bytes]:
    """Return the parsed file and its bytes, tensors of its folder within; raises InputError, runs nothing."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("ONNX targets need onnx: pip install 'unfooled[onnx]'.") from None
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else [])
        raise InputError(f"There is no ONNX file at {str(path)!r}.{near}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path.name} is larger than {MAX_BYTES:,} bytes, more than an ONNX file can be.")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf has a type of its own for damage
        raise InputError(f"{path.name} is damaged or no ONNX file ({type(error).__name__}).") from None
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path.name} is damaged or no ONNX file (its graph is empty).")
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    folder = path.resolve().parent
    room = MAX_BYTES - path.stat().st_size
    for tensor in outside:
        room -= _inside(tensor, folder, path.name)
        if room < 0:
            raise InputError(f"{path.name} and its external data are larger than {MAX_BYTES:,} bytes.")
    try:
        for tensor in outside:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return model, model.SerializeToString()
    except Exception as error:
        raise InputError(f"The external data of {path.name} cannot be read ({_short(error)}).") from None


def _inside(tensor: Any, folder: Path, name: str) -> int:
    """Return the bytes that a tensor reads from a file of the folder; raises InputError for any other file."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    place = told.get("location", "")
    file = folder / place
    if not place or "\0" in place or Path(place).is_absolute() or not file.resolve().is_relative_to(folder):
        raise InputError(f"{name} wants to read outside its folder (tensor {tensor.name!r}); it was not read.")
    if not file.is_file() or file.is_symlink():
        raise InputError(f"{name} has its tensor {tensor.name!r} in {place!r}, and there is no such file beside it.")
    try:
        start, size = int(told.get("offset", 0)), file.stat().st_size
        length = int(told.get("length", size - start))
    except ValueError:
        start, length, size = -1, 0, 0
    if start < 0 or length < 0 or start + length > size:
        raise InputError(f"{name}: the external data of the tensor {tensor.name!r} do not fit its file.")
    return length


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model, those of nested graphs and functions within."""
    graphs = [model.graph]
    nodes = [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += list(graph.node)
            continue
        for a in nodes.pop().attribute:
            yield from (a.t, *a.tensors)
            for sparse in (a.sparse_tensor, *a.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [g for g in (a.g, *a.graphs) if g.node or g.initializer]


def _short(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0].rpartition(" : ")[2][:160].rstrip(". ")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


# ---- its graph in torch


def _in_torch(model: Any, runtime: Runtime, bounds: tuple[float, float]) -> tuple[Graph | None, str]:
    """Return the graph in torch when it agrees with onnxruntime, else None and why, in words."""
    if runtime.maps:
        return None, "its scores come as dictionaries"
    try:
        graph = _graph(model, runtime)
    except NotImplementedError as error:
        return None, f"its operators {error} are not known in torch here"
    except Exception as error:  # an attribute of another form than the standard's
        return None, f"its graph cannot be read ({type(error).__name__})"
    if any(d is None for d in runtime.shape):
        sizes = [
            3 if i == 0 and len(runtime.shape) == 3 and d is None else d or 32 for i, d in enumerate(runtime.shape)
        ]
    else:
        sizes = [d for d in runtime.shape if d is not None]
    lo, hi = bounds
    g = np.random.default_rng(0)
    n = runtime.batch or 8
    x = torch.from_numpy(g.uniform(lo, hi, (n, *sizes))).to(runtime.dtype)
    try:
        with torch.no_grad():
            for probe in (x, torch.full_like(x, lo), torch.full_like(x, hi), (x > (lo + hi) / 2).to(x.dtype)):
                mine, theirs = graph(probe).numpy(), runtime.scores(probe.numpy())
                if mine.shape != theirs.shape:
                    return None, "in torch its graph gives another shape"
                gap = np.abs(mine - theirs).max() / max(1e-6, np.abs(theirs).max())
                if not gap <= AGREE:
                    return None, f"in torch its scores differ by {gap:.2g} of the largest"
    except Exception as error:  # an operator used in a way that is not foreseen here
        return None, f"in torch its graph fails ({type(error).__name__})"
    return graph.eval(), ""


def _graph(model: Any, runtime: Runtime) -> Graph:
    from onnx import helper, numpy_helper

    versions = {i.domain: i.version for i in model.opset_import}
    read: Callable[[Any], np.ndarray] = numpy_helper.to_array
    nodes = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise NotImplementedError(f"{node.domain}.{node.op_type}")
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values = {k: read(v) if type(v).__name__ == "TensorProto" else v for k, v in values.items()}
        nodes.append((node.op_type, node.input, node.output, values))
    if model.graph.sparse_initializer:
        raise NotImplementedError("sparse tensors")
    constants = {t.name: read(t) for t in model.graph.initializer}
    return Graph(nodes, constants, runtime.given, runtime.wanted, versions.get("", versions.get("ai.onnx", 1)))
