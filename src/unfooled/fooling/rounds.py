"""Taking fooling images back: train with them as a class of their own, evolve new ones, and so on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, Explanation
from unfooled.core.fit import Schedule, fit
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Evolve: TypeAlias = Callable[[Target, int], tuple[Tensor, Tensor]]
"""`(target, seed) -> images [m, ...], confidences [m]` in the classes that they were evolved for."""


@dataclass(frozen=True, eq=False)
class Round:
    """One training and the evolution after it.

    `trained_on` different fooling images were in the extra class; `accuracy` is the share of the natural test images
    called right, the extra class among the answers, `turned_away` the share put into it, `refused` the share of all
    earlier fooling images put there (None without any). `confidence` [m] is what the fresh `images` [m, ...] reach.
    """

    trained_on: int
    accuracy: float
    turned_away: float
    refused: float | None
    images: Tensor
    confidence: Tensor


@dataclass(frozen=True, eq=False)
class Rounds(Explanation):
    """What a fresh evolution reaches after each training; the first is the network without fooling images.

    `n_test` is how many natural images the accuracies are of.
    """

    each: tuple[Round, ...]
    n_test: int

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a round."""
        return [
            {
                "round": i,
                "trained on fooling images": one.trained_on,
                "evolved": len(one.images),
                "median confidence": float(one.confidence.double().median()),
                "lowest confidence": float(one.confidence.min()),
                "highest confidence": float(one.confidence.max()),
                "clean accuracy": one.accuracy,
                "interval": list(wilson(round(one.accuracy * self.n_test), self.n_test)),
                "natural images refused": one.turned_away,
                "old fooling images refused": one.refused,
            }
            for i, one in enumerate(self.each)
        ]

    def sentence(self) -> str:
        """Return the median confidence before and after, how many old images are refused, and the clean accuracy."""
        first, last = self.rows()[0], self.rows()[-1]
        said = (
            f"A fresh evolution reaches a median confidence of {first['median confidence']:.2%} against the plain "
            f"network and {last['median confidence']:.2%} after {last['round']} rounds of retraining"
        )
        if last["old fooling images refused"] is None:
            return said + "."
        return (
            f"{said}, although {last['old fooling images refused']:.1%} of the older fooling images are refused; "
            f"clean accuracy {first['clean accuracy']:.2%} and {last['clean accuracy']:.2%}, with "
            f"{last['natural images refused']:.2%} of natural images refused."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw confidence, accuracy and refusals against the round."""
        axes, rows = figure.subplots(), self.rows()
        at = [row["round"] for row in rows]
        low, high = ([row[key] for row in rows] for key in ("lowest confidence", "highest confidence"))
        axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.15, lw=0, label="its lowest to its highest")
        for key, colour, line in (
            ("median confidence", 0, "-"),
            ("clean accuracy", 2, "-"),
            ("old fooling images refused", 1, "--"),
        ):
            found = [(row["round"], row[key]) for row in rows if row[key] is not None]
            label = "median confidence of a fresh evolution" if colour == 0 else key
            axes.plot(*zip(*found, strict=True), line, marker="o", ms=3.5, color=COLOURS[colour], label=label)
        axes.set_xticks(at)
        axes.set_xlabel("rounds of retraining with fooling images as a class")
        axes.set_ylabel("confidence, share of images")
        axes.set_ylim(-0.02, 1.04)
        axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))


def rounds(
    make_module: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    evolve: Evolve,
    *,
    test: tuple[Tensor, Tensor],
    rounds: int = 5,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 1e-3,
    ema: float = 0.0,
    schedule: Schedule = "onecycle",
    seed: int = 0,
    on_round: Callable[[Round], None] | None = None,
) -> Rounds:
    """Retrain with fooling images as one more class and evolve anew, several times (Nguyen et al. 2014).

    arXiv:1412.1897. Round 0 trains the k classes of y alone. Every later round trains a new network of k + 1 classes
    from fresh weights on x and all fooling images so far, labelled k and repeated until they are as many as a class
    has on average; then images are evolved against it. The networks of all rounds differ in weights and order.

    Args:
        make_module: from the number of classes to a module with fresh weights. It is called under a seed.
        x: training images [n, ...].
        y: int64 [n], classes 0 to k - 1.
        evolve: makes fooling images for the classes 0 to k - 1 of a target; the class k, where there is one, must not
            be aimed at.
        test: natural images [j, ...] and labels int64 [j].
        rounds: of retraining.
        epochs, batch_size, lr, ema, schedule: as for `core.fit.fit`, every round.
        seed: of weights, order and evolutions.
        on_round: called with what is known after every round.

    Raises:
        InputError: settings, data or evolved images that do not fit.
    """
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, not {rounds}.")
    if len(x) != len(y) or not len(x) or y.is_floating_point():
        raise InputError(f"x and y must be as many images as integer labels, at least one, not {len(x)} and {len(y)}.")
    if len(test[0]) != len(test[1]) or not len(test[0]):
        raise InputError(f"test must be as many images as labels, not {len(test[0])} and {len(test[1])}.")
    k = int(y.max()) + 1
    known: list[Tensor] = []
    found: list[Round] = []
    for i in range(rounds + 1):
        module = _fresh(make_module, k + (i > 0), seed + i)
        rows, labels = _joined(x, y, known, k)
        fit(
            module, rows, labels, epochs=epochs, batch_size=batch_size, lr=lr, ema=ema, schedule=schedule, seed=seed + i
        )
        target = Target(module.eval().requires_grad_(False))
        asker = Asker(target)
        answers = asker.labels(test[0])
        refused = float((asker.labels(torch.cat(known)) == k).double().mean()) if known else None
        images, sure = evolve(target, seed + i)
        if tuple(images.shape[1:]) != tuple(x.shape[1:]) or sure.shape != (len(images),) or not len(images):
            raise InputError(
                f"evolve returned images of shape {tuple(images.shape)} and confidences of shape {tuple(sure.shape)}; "
                f"expected [m, {', '.join(map(str, x.shape[1:]))}] and [m]."
            )
        found.append(
            Round(
                trained_on=sum(map(len, known)),
                accuracy=float((answers == test[1]).double().mean()),
                turned_away=float((answers == k).double().mean()),
                refused=refused,
                images=images.detach().to(x),
                confidence=sure.detach().cpu(),
            )
        )
        known.append(found[-1].images)
        if on_round:
            on_round(found[-1])
    return Rounds(tuple(found), len(test[0]))


def _fresh(make_module: Callable[[int], nn.Module], classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_module(classes)


def _joined(x: Tensor, y: Tensor, known: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the images and labels of one round: the fooling images are repeated to the size of an average class."""
    if not known:
        return x, y
    images = torch.cat(known)
    wanted = max(len(images), len(x) // k)
    images = images[torch.arange(wanted, device=x.device) % len(images)]
    return torch.cat([x, images]), torch.cat([y, torch.full((wanted,), k, dtype=y.dtype, device=y.device)])
