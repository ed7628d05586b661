"""The zoo's pair of CIFAR-10 networks: the same network trained plainly and hardened, clean and attacked.

python -m benchmarks.pair [clean] [card] ["linf(8/255)"] ["l2(0.5)"]

Neither network was trained on the last 5,000 training images.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor

import unfooled as uf
from benchmarks import results
from unfooled.stats import mean_interval, wilson
from unfooled.targets import ZOO
from unfooled.targets.train import TRAINING

PAIR = {"standard": "cifar-cnn", "hardened": "cifar-cnn-robust"}
THREATS = ("linf(8/255)", "l2(0.5)")
HELD = 5000


def images() -> dict[str, tuple[Tensor, Tensor]]:
    """Return by name the images that neither network was trained on, and their labels."""
    test, train = uf.load_data("cifar10", split="test"), uf.load_data("cifar10", split="train")
    return {
        f"the {len(test):,} test images": (test.x, test.y),
        f"{HELD:,} held-out training images": (train.x[-HELD:].clone(), train.y[-HELD:].clone()),
    }


@torch.no_grad()
def right(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Return bool [n], where the network of the zoo is right."""
    module = ZOO[name].build()
    return torch.cat([module(some).argmax(1) == label for some, label in zip(x.split(500), y.split(500), strict=True)])


def trained(name: str) -> str:
    """Return how a network was trained, as a table's note."""
    recipe, card = TRAINING[name], ZOO[name].card()
    how = f"`{recipe.attack}` at linf({255 * recipe.eps:g}/255), " if recipe.attack else ""
    return (
        f"{how}{recipe.epochs} epochs of {card['data']['train']['n']:,} images, seed {card['training']['seed']}, "
        f"{card['training_seconds']:,} CPU seconds of one thread"
    )


def put(case: str, what: str, share: float, n: int, interval: tuple[float, float], note: str, **more: Any) -> None:
    """Write a row of the table."""
    entry = {"what": what, "published": None, "ours": share, "unit": "%", "n": n, "interval": list(interval)}
    results.write("pair", case, entry | {"note": note, "source": ""} | more)


def clean() -> None:
    """Measure clean accuracies and their paired difference (claim A038)."""
    for where, (x, y) in images().items():
        hits = {kind: right(name, x, y) for kind, name in PAIR.items()}
        for kind, name in PAIR.items():
            k, n = int(hits[kind].sum()), len(y)
            put(
                f"clean, {kind}, {where}",
                f"clean accuracy of `{name}` on {where}",
                k / n,
                n,
                wilson(k, n),
                trained(name),
            )
        lost = int((hits["standard"] & ~hits["hardened"]).sum())
        gained = int((hits["hardened"] & ~hits["standard"]).sum())
        low, high = mean_interval(((1 + hits["hardened"].double() - hits["standard"].double()) / 2).tolist())
        put(
            f"difference, {where}", f"clean accuracy, hardened less standard, on {where}", (gained - lost) / n, n,
            (2 * low - 1, 2 * high - 1), f"paired: {gained} images gained, {lost} lost; a seed each",
            gained=gained, lost=lost,
        )  # fmt: skip


def card() -> None:
    """Write down what the model cards say about robust accuracy."""
    for kind, name in PAIR.items():
        found = ZOO[name].card()["robust"]
        put(
            f"card, {kind}", f"robust accuracy, at most, of `{name}` under `{found['threat']}`", found["accuracy"],
            found["n"], found["interval"], f"suite {found['suite']}, from the model card", attacks=found["attacks"],
        )  # fmt: skip


def attacked(threat: str) -> None:
    """Measure the robust accuracy of both on the test images."""
    test = uf.load_data("cifar10", split="test")
    for kind, name in PAIR.items():
        begun = time.process_time()
        found = uf.evaluate(name, test, threat=threat, suite="standard")
        put(
            f"{threat}, {kind}", f"robust accuracy, at most, of `{name}` under `{threat}`", found.robust_accuracy,
            found.n, found.robust_interval, f"suite standard, verdict {found.status}",
            forward=found.forward_total, backward=found.backward_total, cpu_seconds=time.process_time() - begun,
        )  # fmt: skip


def main() -> None:
    """Measure what the command line names, by default all."""
    torch.set_num_threads(1)
    for case in sys.argv[1:] or ("clean", "card", *THREATS):
        {"clean": clean, "card": card}.get(case, lambda threat=case: attacked(threat))()


if __name__ == "__main__":
    main()
