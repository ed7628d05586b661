"""Networks that others trained and published, rebuilt as plain torch modules from the files of the data folder.

Every network takes images [n, c, h, w] in [0, 1] (RGB where there is colour) and gives logits [n, classes];
whatever else it wants (mean and standard deviation, BGR, 0 to 255, another size) happens inside and is differentiable.
The folder is `UNFOOLED_DATA`, by default `../shared/data` beside the repository; nothing of it is part of the project.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfooled import load_data


def data_dir() -> Path:
    """Return the folder of the published data: `UNFOOLED_DATA`, or `../shared/data` beside the repository."""
    return Path(os.environ.get("UNFOOLED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


# --- images ----------------------------------------------------------------------------------------------------------


def images(name: str, rows: slice | list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return test images float32 [n, c, h, w] in [0, 1] and labels int64 [n] of a named data set.

    `rows` picks examples, of `imagenet` (the sample) before anything is decoded; its labels are 0 to 999 in the order
    of the wnids. Raises InputError for an unknown name and where the data folder is absent.
    """
    picked = slice(None) if rows is None else rows
    if name == "imagenet":
        return _imagenet(picked)
    data = load_data(name, data_dir=data_dir())
    return data.x[picked], data.y[picked]


def imagenet_names() -> list[str]:
    """Return the 1,000 class names, words separated by spaces."""
    with np.load(data_dir() / "imagenet_sample.npz", allow_pickle=False) as z:
        return [str(name).replace("_", " ") for name in z["name"]]


def _imagenet(rows: slice | list[int]) -> tuple[Tensor, Tensor]:
    from PIL import Image

    with np.load(data_dir() / "imagenet_sample.npz", allow_pickle=False) as z:
        jpeg, offsets, y = z["jpeg_bytes"], z["jpeg_offsets"], z["label"]
    pictures = [
        np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in np.arange(len(y))[rows]
    ]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255)
    return x.contiguous(), torch.from_numpy(y[rows]).long()


# --- networks --------------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """`module((x - mean) / std)` with one mean and deviation per channel."""

    def __init__(self, module: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] to logits."""
        return self.module((x - self.mean) / self.std)


class BasicBlock(nn.Module):
    """He's block for CIFAR-10 with the parameter-free shortcut (option A: every second pixel, zero channels)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inside, h, w] to [n, outside, h / stride, w / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(short, (0, 0, 0, 0, self.extra, self.extra)))


class ResNet20(nn.Module):
    """ResNet-20 for 32 x 32 images: three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [n, 3, 32, 32] to logits [n, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def cifar_resnet20() -> nn.Module:
    """Return the CIFAR-10 ResNet-20 (Idelbayev's `pytorch_resnet_cifar10`), mean and deviation inside."""
    state = _torch_file("cifar_resnet20-12fca82f.th")["state_dict"]
    net = ResNet20()
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=False)
    return _frozen(Normalised(net, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def mnist_fastadv() -> nn.Module:
    """Return the MNIST network trained with fast FGSM at Linf 0.3 (Wong et al. 2020, `fast_adversarial`)."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    net.load_state_dict(_torch_file("mnist_fastadv_fgsm.pth"))
    return _frozen(net)


def mnist_256x2() -> nn.Module:
    """Return the plain MNIST network 784-256-256-10 of the verification competition (VNN-COMP, `mnist_fc`)."""
    weights = onnx_weights(gzip.decompress((data_dir() / "models" / "mnist-net_256x2.onnx.gz").read_bytes()))
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    names = {f"{place}.{part}": f"layers.{place - 1}.{part}" for place in (1, 3, 5) for part in ("weight", "bias")}
    net.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return _frozen(net)


class MobileNetV2(nn.Module):
    """A quantised TFLite MobileNetV2 computed in float32: weights times their scale, no rounding in between."""

    def __init__(self, operations: list[dict[str, Any]], weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.operations = [op for op in operations if op["op"] not in ("RESHAPE", "SOFTMAX")]
        self.last = self.operations[-1]["out"]
        for name, (weight, bias) in weights.items():
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB images [n, 3, 224, 224] in [0, 1] to logits [n, 1001]; class 0 is "background"."""
        made = {"t1": (x * 255 - 128) / 128}
        for op in self.operations:
            made[op["out"]] = self._computed(op, [made[name] for name in op["in"]])
        return made[self.last].flatten(1)

    def _computed(self, op: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        if op["op"] == "AVERAGE_POOL_2D":
            return F.avg_pool2d(x, op["k"])
        if op["op"] == "ADD":
            out = x + inputs[1]
        else:
            weight, bias = getattr(self, f"{op['w']}_weight"), getattr(self, f"{op['w']}_bias")
            groups = x.shape[1] if op["op"] == "DEPTHWISE_CONV_2D" else 1
            x = F.pad(x, _same(x.shape[-1], weight.shape[-1], op["stride"]) * 2)
            out = F.conv2d(x, weight, bias, op["stride"], groups=groups)
        return F.relu6(out) if op["act"] == "relu6" else out


def mobilenet_v2() -> nn.Module:
    """Return the ImageNet MobileNetV2 1.0 224 (1,001 classes: ImageNet's class c is output c + 1)."""
    with np.load(data_dir() / "models" / "imagenet_mobilenet_v2_1.0_224.npz", allow_pickle=False) as z:
        operations = json.loads(z["meta"].item())["ops"]
        weights = {}
        for op in operations:
            if "w" in op:
                scale, zero = z[f"{op['w']}_ws"]
                weight = torch.from_numpy(scale * (z[f"{op['w']}_w"].astype(np.float64) - zero)).float()
                order = (3, 0, 1, 2) if op["op"] == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)  # to [out, in, h, w]
                bias = torch.from_numpy(z[f"{op['w']}_bs"] * z[f"{op['w']}_b"]).float()
                weights[op["w"]] = (weight.permute(order).contiguous(), bias)
    return _frozen(MobileNetV2(operations, weights))


class SqueezeNet(nn.Module):
    """A Caffe SqueezeNet 1.0 from its graph: BGR in 0 to 255 minus the means, 227 x 227, pooling that rounds up."""

    def __init__(self, graph: list[dict[str, Any]], weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.graph = [node for node in graph if node["type"] != "Dropout"]
        for name, (weight, bias) in weights.items():
            self.register_buffer(f"{name}_weight".replace(".", "_"), weight)
            self.register_buffer(f"{name}_bias".replace(".", "_"), bias)
        self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB images [n, 3, h, w] in [0, 1] to logits [n, 1000]."""
        x = F.interpolate(x, (227, 227), mode="bilinear", align_corners=False)
        made = {"data": x.flip(1) * 255 - self.mean}
        for node in self.graph:
            out = self._computed(node, [made[name] for name in node["bottom"]])
            made[node["top"][0]] = out
        return out.flatten(1)

    def _computed(self, node: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        if node["type"] == "Convolution":
            name = node["name"].replace(".", "_")
            weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
            return F.conv2d(x, weight, bias, node["stride"], node["pad"])
        if node["type"] == "ReLU":
            return F.relu(x)
        if node["type"] == "Concat":
            return torch.cat(inputs, 1)
        if node["pool"] == "AVE":
            return x.mean((2, 3))
        return F.max_pool2d(x, node["k"], node["stride"], node["pad"], ceil_mode=True)


def squeezenet() -> nn.Module:
    """Return the ImageNet SqueezeNet 1.0 of Deep Compression (Han et al. 2016), 1,000 classes."""
    with np.load(data_dir() / "models" / "imagenet_squeezenet_v1.0_deepcompressed.npz", allow_pickle=False) as z:
        graph = json.loads(z["meta"].item())["graph"]
        names = [node["name"] for node in graph if node["type"] == "Convolution"]
        weights = {
            name: (
                torch.from_numpy(z[f"{name}_codebook"][z[f"{name}_code"]]).float(),
                torch.from_numpy(z[f"{name}_bias"]).float(),
            )
            for name in names
        }
    return _frozen(SqueezeNet(graph, weights))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet20": cifar_resnet20,
    "mnist_fastadv": mnist_fastadv,
    "mnist_256x2": mnist_256x2,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet": squeezenet,
}


# --- reading ---------------------------------------------------------------------------------------------------------


def onnx_weights(model: bytes) -> dict[str, Tensor]:
    """Return the float32 initialisers of an ONNX model by name, read from the protobuf wire format directly.

    Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.initializer 5, TensorProto.dims 1,
    data_type 2, name 8, raw_data 9. Raises ValueError for initialisers that are not raw float32.
    """
    weights = {}
    for field, graph in _fields(model):
        if field == 7 and isinstance(graph, bytes):
            for part, tensor in _fields(graph):
                if part == 5 and isinstance(tensor, bytes):
                    name, value = _onnx_tensor(tensor)
                    weights[name] = value
    return weights


def _onnx_tensor(message: bytes) -> tuple[str, Tensor]:
    found = list(_fields(message))
    dims = [value for field, value in found if field == 1 and isinstance(value, int)]
    single = {field: value for field, value in found if field != 1}
    name, raw = single.get(8), single.get(9)
    if single.get(2) != 1 or not isinstance(name, bytes) or not isinstance(raw, bytes):
        raise ValueError("This reader knows raw float32 initialisers only; export the model with raw data.")
    return name.decode(), torch.from_numpy(np.frombuffer(raw, "<f4").reshape(dims).copy())


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk one protobuf message: (field number, varint or bytes)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding: what is missing, the odd pixel at the end."""
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def _torch_file(name: str) -> dict[str, Any]:
    loaded = torch.load(data_dir() / "models" / name, map_location="cpu", weights_only=True)
    return dict(loaded)


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
