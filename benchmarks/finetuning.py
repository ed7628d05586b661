"""Fine-tuning on universal perturbations, in rounds, after Moosavi-Dezfooli et al. 2017, section 4.

python -m benchmarks.finetuning [fresh] [stored] [pgd] [standard] [draw]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import results
from unfooled.attacks import universal
from unfooled.core.attack import parse
from unfooled.core.explanation import COLOURS, Explanation
from unfooled.core.fit import Objective, fit
from unfooled.harden import objectives
from unfooled.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THREAT = uf.linf(0.2)
ROUNDS, TRAINED, LEARNED, VISITS, TESTED = 5, 20_000, 2_000, 5, 1_000
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "harden-universal.png"
PUBLISHED = {"before": 0.937, "fresh 1": 0.762, "fresh 5": 0.80}
"""VGG-F on ImageNet, Linf 10/255: before, after the first five epochs, and at the end of the rounds."""

CURVES: dict[str, tuple[str, Callable[[list[Tensor]], Objective], int]] = {
    "fresh": ("trained on a fresh perturbation a round", lambda old: objectives.planted(old[-1:], THREAT), TRAINED),
    "stored": ("trained on all perturbations so far", lambda old: objectives.planted(old, THREAT), TRAINED),
    "pgd": (
        "control: PGD training, the same passes",
        lambda old: objectives.adversarial(parse("pgd(steps=7, step_size=0.3)"), THREAT),
        (TRAINED + LEARNED * VISITS) // 8,
    ),
    "standard": ("control: more plain training", lambda old: objectives.standard(), TRAINED),
}


@dataclass(frozen=True)
class Fooling(Explanation):
    """Fooling rate of a freshly learned perturbation after each round, by how the rounds train."""

    curves: dict[str, list[int]]
    n: int

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict a round and curve."""
        return [
            {"curve": name, "round": at, "fooled": hits / self.n}
            for name, found in self.curves.items()
            for at, hits in enumerate(found)
        ]

    def sentence(self) -> str:
        """Return how far the rates fell, the control beside them."""
        parts = [f"{name} {found[0] / self.n:.1%} to {found[-1] / self.n:.1%}" for name, found in self.curves.items()]
        return f"Fooling rates on {self.n} images before and after the rounds: {', '.join(parts)}."

    def draw(self, figure: Figure) -> None:
        """Draw the rate against the round."""
        axes = figure.subplots()
        for (name, found), colour in zip(self.curves.items(), COLOURS, strict=False):
            axes.plot(
                range(len(found)), [100 * hits / self.n for hits in found], "o-", color=colour, label=CURVES[name][0]
            )
        axes.set(xlabel="rounds of fine-tuning", ylabel="images fooled by a fresh perturbation, %", ylim=(0, 100))
        axes.set_title(f"mnist-cnn, {THREAT!r}, {self.n} test images")
        axes.legend(loc="upper right")


def curve(name: str) -> None:
    """Run the rounds of one curve and write a row after every one."""
    doc, objective, rows = CURVES[name]
    train, test = uf.load_data("mnist", split="train"), uf.load_data("mnist", limit=TESTED)
    module = uf.targets.resolve("mnist-cnn").module
    assert isinstance(module, nn.Module)
    old, fooled, first, right = list[Tensor](), list[int](), list[int](), list[int]()
    began = time.process_time()
    for at in range(ROUNDS + 1):
        if at:
            here = slice((at - 1) * rows % (len(train) - rows), None)
            fit(
                module.requires_grad_(), train.x[here][:rows], train.y[here][:rows], objective(old), epochs=1, lr=1e-3,
                seed=at, schedule="cosine", precision="bf16", channels_last=True,
            )  # fmt: skip
            module.eval()
        old.append(universal(module, train.x[:LEARNED], THREAT, epochs=VISITS, batch_size=100, seed=at).delta)
        with torch.no_grad():
            clean = module(test.x).argmax(1)
            fresh, begun = (module(THREAT.project(test.x + d, test.x)).argmax(1) for d in (old[-1], old[0]))
        fooled.append(int((fresh != clean).sum()))
        first.append(int((begun != clean).sum()))
        right.append(int((clean == test.y).sum()))
        print(name, at, fooled[-1], first[-1], right[-1], f"{time.process_time() - began:.0f} s", flush=True)
        if at or name == "fresh":
            write(name, doc, at, fooled, first, right, time.process_time() - began)


def write(name: str, doc: str, at: int, fooled: list[int], first: list[int], right: list[int], seconds: float) -> None:
    """Write the row of one round."""
    known = PUBLISHED.get(f"{name} {at}" if at else "before")
    told = f"after round {at}, {doc}" if at else "before any"
    stored = f"; the first perturbation fools {first[-1] / TESTED:.1%}" if at else ""
    results.write(
        "finetuning",
        f"{name}, round {at}",
        {
            "what": f"fooling rate of a freshly learned perturbation {told}",
            "published": known, "ours": fooled[-1] / TESTED, "unit": "%", "n": TESTED,
            "interval": list(wilson(fooled[-1], TESTED)), "note": f"clean {right[-1] / TESTED:.1%}{stored}",
            "source": "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401", "fooled": fooled, "first": first,
            "clean": right, "seconds": seconds, "seed": 0, "threat": repr(THREAT), "trained_on": CURVES[name][2],
        },
    )  # fmt: skip


def drawn() -> Fooling:
    """Return the curves that were measured."""
    entries = results.read("finetuning")
    return Fooling(
        {name: entries[f"{name}, round {ROUNDS}"]["fooled"] for name in CURVES if f"{name}, round {ROUNDS}" in entries},
        TESTED,
    )


def main() -> None:
    for name in sys.argv[1:] or [*CURVES, "draw"]:
        if name == "draw":
            PICTURE.write_bytes(drawn().image())
        else:
            curve(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
