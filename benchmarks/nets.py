"""Networks of the experiments on MNIST: Goodfellow 2014's, Szegedy 2013's, LeNet; trained here, kept under `runs/`.

python -m benchmarks.nets [name ...]     train what is not there yet and print clean accuracies
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import published, results
from unfooled import load_data
from unfooled.core.fit import Objective, fit, standard
from unfooled.harden.reject import as_no_class

FOLDER = results.SCRATCH / "nets"


class Maxout(nn.Module):
    """The largest of `pieces` linear functions for every unit (Goodfellow et al. 2013, arXiv:1302.4389)."""

    def __init__(self, inside: int, units: int, pieces: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(inside, units * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inside] to [n, units]."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).max(2).values  # backward of amax takes twice as long


class Bells(nn.Module):
    """A shallow RBF network: p(class | x) = exp(-(x - centre)^T beta (x - centre)), beta diagonal; log-odds come out.

    Goodfellow et al. 2014, section 7, where one such unit is written with the sign inside beta. Every class is a
    classifier of its own: the probabilities do not sum to one. How it was trained the paper does not say.
    """

    def __init__(self, centres: Tensor, beta: float = 0.01) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres.flatten(1).clone())  # [k, d]
        self.log_beta = nn.Parameter(torch.full_like(self.centres, beta).log())

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, ...] to the log-odds [n, k] of each class."""
        x, beta = x.flatten(1), self.log_beta.exp()
        far = x**2 @ beta.T - 2 * x @ (beta * self.centres).T + (beta * self.centres**2).sum(1)
        far = far.clamp(min=1e-4)  # rounding; p = 0.9999
        return -far - torch.log(-torch.expm1(-far))


def independent(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Return the mean cost of one binary classifier a class, their sum (an `Objective`)."""
    scores = module(x)
    return scores.shape[1] * as_no_class(scores, y).mean()


@dataclass(frozen=True)
class Recipe:
    """How one network is made: fresh module, loss, head (as `fooling.rubbish` calls it), epochs and learning rate."""

    build: Callable[[], nn.Module]
    epochs: int
    lr: float
    objective: Objective = standard
    head: str = "softmax"
    batch_size: int = 128


def maxout(classes: int = 10, units: int = 240, dropout: tuple[float, float] = (0.2, 0.5)) -> nn.Module:
    """Return two maxout layers with dropout of shares of the input and of each layer."""
    first, rest = dropout
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(first), Maxout(784, units), nn.Dropout(rest), Maxout(units, units), nn.Dropout(rest),
        nn.Linear(units, classes),
    )  # fmt: skip


def fully_connected(*sizes: int, unit: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Return linear layers of these sizes with a nonlinearity between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), unit()]
    return nn.Sequential(*layers[:-1])


def lenet(classes: int = 10) -> nn.Module:
    """Return the LeNet of Caffe's MNIST example, as Nguyen et al. 2014 fool it: 20 and 50 filters, 500 units."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, classes),
    )  # fmt: skip


def bells() -> nn.Module:
    """Return the RBF network with every centre at the mean of its class."""
    x, y = training()
    return Bells(torch.stack([x[y == k].mean(0) for k in range(10)]))


RECIPES: dict[str, Recipe] = {
    "maxout": Recipe(maxout, 8, 1e-3),
    "maxout-sigmoid": Recipe(maxout, 8, 1e-3, independent, "sigmoid"),
    "softmax": Recipe(lambda: fully_connected(784, 10), 8, 2e-3),
    "softmax-short": Recipe(lambda: fully_connected(784, 10), 1, 1e-3),
    "rbf": Recipe(bells, 8, 1e-2, independent, "sigmoid"),
    "fc100-sigmoid": Recipe(lambda: fully_connected(784, 100, 100, 10, unit=nn.Sigmoid), 8, 3e-3),
    "fc100-relu": Recipe(lambda: fully_connected(784, 100, 100, 10), 8, 2e-3),
    "lenet": Recipe(lenet, 3, 2e-3),
}


def trained(name: str, *, seed: int = 0) -> nn.Module:
    """Return a network of `RECIPES` with its weights from `runs/`, trained on all of MNIST where there are none yet."""
    recipe = RECIPES[name]
    settings: dict[str, Any] = {"epochs": recipe.epochs, "lr": recipe.lr, "batch_size": recipe.batch_size}
    file = f"{name}-{seed}-{recipe.epochs}x{recipe.lr:g}"
    return kept(file, recipe.build, training, recipe.objective, seed=seed, **settings)[0]


def kept(
    file: str,
    build: Callable[[], nn.Module],
    data: Callable[[], tuple[Tensor, Tensor]],
    objective: Objective = standard,
    *,
    seed: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> tuple[nn.Module, float]:
    """Return a network in eval mode and the CPU seconds of its training: from `runs/`, or trained and put there.

    `settings` are those of `core.fit.Recipe`; the seed is of the initial weights, the order of rows, and dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().to(device)
    path = FOLDER / f"{file}.safetensors"
    if not path.is_file():
        began = time.process_time()
        fit(module, *data(), objective, seed=seed, **settings)
        FOLDER.mkdir(parents=True, exist_ok=True)
        state = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
        save_file(state, path, metadata={"seconds": f"{time.process_time() - began:.3f}"})
    with safe_open(path, "pt") as opened:
        seconds = float((opened.metadata() or {}).get("seconds", "nan"))
        module.load_state_dict({key: opened.get_tensor(key) for key in opened.keys()})
    return module.eval().requires_grad_(False), seconds


@cache
def training() -> tuple[Tensor, Tensor]:
    """Return the 60,000 training images [n, 1, 28, 28] and their labels."""
    data = load_data("mnist", split="train", data_dir=published.data_dir())
    return data.x, data.y


def main() -> None:
    x, y = published.images("mnist")
    for name in sys.argv[1:] or RECIPES:
        began = time.process_time()
        module = trained(name)
        right = float((module(x).argmax(1) == y).double().mean())
        print(f"{name:<16} error {1 - right:.2%}   {time.process_time() - began:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
