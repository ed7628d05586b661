"""What is measured on what: each case names a network, its images and the radius, chosen so that some rows survive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks import published
from unfooled.targets import ZOO


@dataclass(frozen=True)
class Case:
    """One target with its images; `title` and `radius` are what the table prints, `eps` is in [0, 1] units."""

    title: str
    data: str
    radius: str
    eps: float
    network: Callable[[], nn.Module]
    images: Callable[[], tuple[Tensor, Tensor]]
    batch_size: int = 250


def _imagenet_with_background() -> tuple[Tensor, Tensor]:
    x, y = published.images("imagenet", list(range(0, 1000, 62))[:16])
    return x, y + 1


def _zoo(name: str, title: str, n: int) -> Case:
    entry = ZOO[name]
    return Case(
        title, {"digits": "digits", "mnist": "MNIST"}[entry.data], f"{entry.eps:g}", entry.eps,
        entry.build, lambda: published.images(entry.data, slice(n)),
    )  # fmt: skip


CASES: dict[str, Case] = {
    "digits-cnn": _zoo("digits-cnn", "digits-cnn", 797),
    "digits-cnn-robust": _zoo("digits-cnn-robust", "digits-cnn-robust", 797),
    "mnist-cnn": _zoo("mnist-cnn", "mnist-cnn", 1000),
    "mnist-cnn-robust": _zoo("mnist-cnn-robust", "mnist-cnn-robust", 500),
    "mnist_256x2": Case(
        "256x2", "MNIST", "0.03", 0.03, published.mnist_256x2, lambda: published.images("mnist", slice(1000))
    ),
    "mnist_fastadv": Case(
        "fast adversarial CNN", "MNIST", "0.3", 0.3,
        published.mnist_fastadv, lambda: published.images("mnist", slice(500)),
    ),
    "cifar_resnet20": Case(
        "ResNet-20", "CIFAR-10", "1/255", 1 / 255,
        published.cifar_resnet20, lambda: published.images("cifar10", slice(100)),
    ),
    "mobilenet_v2": Case(
        "MobileNetV2", "ImageNet sample", "0.15/255", 0.15 / 255,
        published.mobilenet_v2, _imagenet_with_background, batch_size=16,
    ),
}  # fmt: skip
