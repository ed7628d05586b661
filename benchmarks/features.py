"""Robust and non-robust features after Ilyas et al. 2019, at the scale of one core.

python -m benchmarks.features [cifar10] [mnist]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import results
from unfooled.core.attack import parse
from unfooled.core.fit import Augment, Objective, fit, standard
from unfooled.core.threat import Ball
from unfooled.explain.features import PUBLISHED, FeatureSet, non_robust_set, relabelled, robust_set, useful_and_robust
from unfooled.harden.objectives import adversarial
from unfooled.stats import wilson
from unfooled.targets.zoo import untrained


def small_cnn(seed: int) -> nn.Module:
    """Return a network for 32 x 32 colour images: three strided convolutions with batch norm, 109,018 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths, layers = (3, 24, 48, 96), list[nn.Module]()
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 10))
    return module.to(memory_format=torch.channels_last)


def flips(x: Tensor, luck: torch.Generator) -> Tensor:
    """Return x [b, c, h, w], half of it mirrored."""
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=luck) < 0.5, x.flip(3), x)


@dataclass(frozen=True)
class Setting:
    """How the experiment runs on one data set; radii are L2 in units of images in [0, 1].

    The relabelled sets are made within `moved`, as the paper's, and once more within `farther`: a small network is hard
    to turn with the paper's radius.
    """

    data: str
    learned: int
    net: Callable[[int], nn.Module]
    hardened: Ball
    moved: Ball
    farther: Ball
    tested: Ball
    test_images: int = 1000
    epochs: int = 10
    lr: float = 4e-3
    weight_decay: float = 0.02
    augment: Augment | None = None
    harden_with: str = "pgd(steps=3)"
    harden_epochs: int = 10
    relabel_with: str = "pgd(steps=15)"
    matched: int = 15_000
    match_steps: int = 30
    match_lr: float = 1.0
    seeds: tuple[int, ...] = (0, 1)
    published: bool = False

    @property
    def fitted(self) -> dict[str, Any]:
        """How every network is trained."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "augment": self.augment}


SETTINGS = {
    "cifar10": Setting(
        "cifar10", 40_000, small_cnn, uf.l2(0.5), uf.l2(0.5), uf.l2(1), uf.l2(0.25), augment=flips, published=True
    ),
    "mnist": Setting(
        "mnist", 20_000, lambda seed: untrained("mnist-cnn", seed), uf.l2(2), uf.l2(2), uf.l2(3), uf.l2(1),
        epochs=6, lr=3e-3, weight_decay=0.0, harden_with="pgd(steps=5)", match_lr=1.5,
    ),
}  # fmt: skip
MEASURE = ("apgd(steps=40)", "apgd_targeted(steps=40, targets=3)")


@dataclass
class Study:
    """One run of a setting: its data, and what was measured so far by name and seed."""

    setting: Setting
    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    found: dict[str, dict[int, dict[str, int]]]

    @classmethod
    def of(cls, setting: Setting) -> Study:
        """Load the data."""
        train = uf.load_data(setting.data, split="train", limit=setting.learned)
        test = uf.load_data(setting.data, limit=setting.test_images)
        return cls(setting, train.x, train.y, (test.x, test.y), {})

    def trained(self, objective: Objective, epochs: int) -> nn.Module:
        """Return a network trained on the natural images."""
        module = self.setting.net(0)
        fit(module, self.x, self.y, objective, epochs=epochs, seed=0, **self.setting.fitted)
        return module.eval()

    def measure_target(self, name: str, module: nn.Module, seconds: float) -> None:
        """Write the accuracies of a network that the sets are made with."""
        out = uf.run(list(MEASURE), module, *self.test, self.setting.tested)
        counts = {
            "clean": sum(s != "misclassified" for s in out.status),
            "robust": sum(s == "survived" for s in out.status),
        }
        self.found[name] = {0: counts}
        self.write(name, f"trained on the natural images, {name}", self.setting.learned, seconds, "")

    def learn(self, part: FeatureSet, seed: int, seconds: float) -> None:
        """Train on a set with one seed and write what all seeds so far give."""
        s, begun = self.setting, time.process_time()
        out = useful_and_robust(
            [part], s.net, *self.test, list(MEASURE), s.tested, epochs=s.epochs, seeds=(seed,), **s.fitted
        )  # fmt: skip
        counts = {"clean": int(out.clean), "robust": int(out.robust)}
        self.found.setdefault(part.name, {})[seed] = counts
        left = f"median residual {float(part.residual.median()):.2f}" if "unchanged" not in part.name else ""
        spent = seconds + time.process_time() - begun
        self.write(part.name, f"trained on the {part.name} set", len(part.y), spent, left)

    def write(self, name: str, what: str, learned: int, seconds: float, note: str) -> None:
        """Write one row for clean and one for robust accuracy."""
        s, by_seed = self.setting, self.found[name]
        n = len(self.test[1]) * len(by_seed)
        for kind, under in (("clean", "clean accuracy"), ("robust", f"accuracy under {s.tested!r}")):
            hits = sum(counts[kind] for counts in by_seed.values())
            known = PUBLISHED.get(name) if s.published else None
            results.write(
                "features",
                f"{s.data}, {name}, {kind}",
                {
                    "what": f"{s.data}: {under}, {what}",
                    "published": None if known is None else known[kind == "robust"],
                    "ours": hits / n,
                    "unit": "%",
                    "n": n,
                    "interval": list(wilson(hits, n)),
                    "note": "; ".join(
                        filter(None, [f"{learned:,} images", f"seeds {', '.join(map(str, by_seed))}", note])
                    ),
                    "source": "arXiv 1905.02175",
                    "by_seed": {str(seed): counts[kind] for seed, counts in by_seed.items()},
                    "learned": learned,
                    "attack": list(MEASURE),
                    "cpu_seconds": round(seconds),
                },
            )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the work returns, and the CPU seconds that it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def study(setting: Setting) -> None:
    """Train the two networks, make the four sets with them and learn from each; then again with further seeds."""
    s, this = setting, Study.of(setting)
    hard = adversarial(parse(s.harden_with), s.hardened)
    plain, spent = timed(lambda: this.trained(standard, s.epochs))
    this.measure_target("standard", plain, spent)
    sets: list[FeatureSet] = []

    def made(make: Callable[[], FeatureSet]) -> None:
        part, seconds = timed(make)
        sets.append(part)
        results.SCRATCH.mkdir(parents=True, exist_ok=True)
        (results.SCRATCH / f"{s.data}, {part.name}.png").write_bytes(part.image())
        this.learn(part, s.seeds[0], seconds)

    def moved(labels: Any, ball: Ball) -> FeatureSet:
        part = relabelled(plain, this.x, this.y, s.relabel_with, ball, labels=labels)
        return part if ball == s.moved else replace(part, name=f"{part.name} at {ball!r}")

    for labels in ("random", "shifted"):
        made(partial(moved, labels, s.moved))
    hardened, spent = timed(lambda: this.trained(hard, s.harden_epochs))
    this.measure_target(f"hardened at {s.hardened!r}", hardened, spent)
    matching: dict[str, Any] = {"steps": s.match_steps, "lr": s.match_lr}
    some = (this.x[: s.matched], this.y[: s.matched])
    made(lambda: robust_set(hardened, *some, **matching))
    made(lambda: non_robust_set(plain, *some, **matching))
    made(sets[1].unchanged)
    for labels in ("random", "shifted"):
        made(partial(moved, labels, s.farther))
    for seed in s.seeds[1:]:
        for part in sets:
            this.learn(part, seed, 0.0)


def main() -> None:
    """Run the settings named on the command line, by default all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or SETTINGS:
        study(SETTINGS[name])


if __name__ == "__main__":
    main()
