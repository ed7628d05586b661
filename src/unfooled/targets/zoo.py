"""The zoo: small classifiers that come with the package, each trained by `unfooled train` and each with a model card.

All are plain modules: images in [0, 1] go in, ten logits come out.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfooled.core.data import DATASETS
from unfooled.errors import InputError
from unfooled.targets.residual import cifar_cnn

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ZooEntry:
    """One shipped target: what it is, the data it was trained on, and its measured accuracies, from its card.

    `clean` and `robust` are shares of the test images, `robust` an upper bound under Linf `eps` (None: not measured).
    """

    name: str
    what: str
    data: str
    eps: float
    clean: float | None
    robust: float | None
    paper: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        return DATASETS[self.data].classes or ()

    @property
    def file(self) -> Path:
        """The weight file."""
        return WEIGHTS / f"{self.name}.safetensors"

    def card(self) -> dict[str, Any]:
        """Return the model card; raises InputError when the installation lacks it."""
        card = read_card(self.name)
        if not card:
            raise InputError(f"The model card of {self.name} is missing; reinstall unfooled.")
        return card

    def build(self, *, trained: bool = True) -> nn.Module:
        """Return the module in eval mode, with its shipped weights unless `trained` is False.

        Raises InputError when the weight file is missing or its SHA-256 is not the card's.
        """
        module = _MAKE[self.name]()
        if trained:
            from unfooled.targets._weights import fit_weights, load_weights

            if not self.file.is_file() or digest(self.file) != self.card()["weights"]["sha256"]:
                raise InputError(f"The weights of {self.name} are missing or damaged; reinstall unfooled.")
            fit_weights(module, load_weights(self.file), self.file.name)
        return module.eval()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def read_card(name: str) -> dict[str, Any]:
    """Return a shipped model card, {} when there is none."""
    path = WEIGHTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def digits_cnn() -> nn.Module:
    """Return a network for 8 x 8 images: two convolutions, 38,282 parameters, random weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mnist_cnn() -> nn.Module:
    """Return a network for 28 x 28 images: two strided convolutions, 166,406 parameters, random weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def mnist_cnn_robust() -> nn.Module:
    """Return a wider `mnist_cnn` behind a response per pixel: ramps that begin near 0.3 and 0.7; 436,718 parameters.

    A robust network for nearly black-and-white images has to ignore small changes of a pixel, and learns it sooner
    where the first layer can say so. The ramps leak, so that every pixel has a gradient and attacks see the way.
    """
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.LeakyReLU(0.05),
        nn.Conv2d(2, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    slope, begin = 4.0, torch.tensor([0.3, 0.7])
    with torch.no_grad():
        for name, value in module[0].named_parameters():
            value.copy_(torch.full_like(value, slope) if name == "weight" else -slope * begin)
    return module


_MADRY = "Madry et al. 2018, Towards deep learning models resistant to adversarial attacks, arXiv:1706.06083"
_RESNET = "He, Zhang, Ren, Sun 2016, Identity mappings in deep residual networks, arXiv:1603.05027"
_LENET = "LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition"

_MAKE: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": digits_cnn,
    "digits-cnn-robust": digits_cnn,
    "mnist-cnn": mnist_cnn,
    "mnist-cnn-robust": mnist_cnn_robust,
    "cifar-cnn": cifar_cnn,
    "cifar-cnn-robust": cifar_cnn,
}


def _entry(name: str, what: str, data: str, eps: float, paper: str) -> ZooEntry:
    card = read_card(name)
    clean, robust = (card.get(kind) or {} for kind in ("clean", "robust"))
    return ZooEntry(name, what, data, eps, clean.get("accuracy"), robust.get("accuracy"), paper)


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        _entry("digits-cnn", "small convolutional network, standard training", "digits", 0.1, _LENET),
        _entry("digits-cnn-robust", "the same network, adversarial training at linf(0.15)", "digits", 0.1, _MADRY),
        _entry("mnist-cnn", "small convolutional network, standard training", "mnist", 0.1, _LENET),
        _entry(
            "mnist-cnn-robust",
            "a wider network behind a learned response per pixel, adversarial training at linf(0.38)",
            "mnist",
            0.3,
            _MADRY,
        ),
        _entry("cifar-cnn", "small residual network, standard training", "cifar10", 3 / 255, _RESNET),
        _entry(
            "cifar-cnn-robust",
            "small residual network, adversarial training at linf(3/255)",
            "cifar10",
            3 / 255,
            _MADRY,
        ),
    )
}


def untrained(name: str, seed: int) -> nn.Module:
    """Return a zoo architecture with the initial weights of a seed; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MAKE[name]()


def table() -> str:
    """Return the zoo as a Markdown table, measured numbers from the cards."""
    rows = [
        "| target | data | parameters | clean accuracy | robust accuracy, at most | threat | suite | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in ZOO.values():
        card = entry.card()
        robust = card["robust"] or {"accuracy": None, "threat": "", "suite": "not measured", "n": 0}
        rows.append(
            f"| `{entry.name}` | {entry.data} | {card['parameters']:,} | {_percent(card['clean'])} "
            f"| {_percent(robust)} | `{robust['threat']}` | `{robust['suite']}` | {robust['n']:,} |"
        )
    return "\n".join(rows) + "\n"


def _percent(part: dict[str, Any]) -> str:
    if part["accuracy"] is None:
        return ""
    low, high = part["interval"]
    return f"{part['accuracy']:.2%} ({low:.2%} to {high:.2%})"
