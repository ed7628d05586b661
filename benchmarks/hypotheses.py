"""Where perturbations lie, and which explanation of the literature stands on which target.

python -m benchmarks.hypotheses [case ...]     such as manifold/digits-cnn or patches/ResNet-20; all without a name

Tables `manifold` and `hypotheses`; figures go to runs/benchmarks/hypotheses/.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import nets, published, results
from unfooled.attacks import deepfool, fgsm, pgd
from unfooled.core.attack import Attack
from unfooled.core.fit import fit
from unfooled.explain import hypotheses as room
from unfooled.explain.manifold import CONTROL, FREE, OFF, ON, RANDOM, Manifold
from unfooled.explain.verdicts import Hypothesis, Prediction, Verdicts, verdicts
from unfooled.targets import ZOO
from unfooled.targets.zoo import untrained

FIGURES = results.SCRATCH / "hypotheses"
IMAGES = results.FOLDER.parents[1] / "docs" / "images"
"""Figures that a page shows; none shows an image of a data set."""


@dataclass(frozen=True)
class Case:
    """One target with its data: `images` to attack, `learned` rows of the training data, sizes of the manifolds."""

    name: str
    data: str
    eps: float
    images: int
    learned: int
    curved: int
    nearest: Attack[Any]

    def target(self) -> uf.Target:
        """Return the network as a target."""
        module = ZOO[self.name].build() if self.name in ZOO else published.cifar_resnet20()
        return uf.Target(module, name=self.name)

    def seen(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the test images that are attacked."""
        return published.images(self.data, slice(n or self.images))


NEAREST = uf.attacks.ddn()
CASES = {
    case.name: case
    for case in (
        Case("digits-cnn", "digits", 0.1, 300, 1000, 8, NEAREST),
        Case("digits-cnn-robust", "digits", 0.1, 300, 1000, 8, NEAREST),
        Case("mnist-cnn", "mnist", 0.1, 200, 10_000, 16, NEAREST),
        Case("mnist-cnn-robust", "mnist", 0.3, 200, 10_000, 16, NEAREST),
        Case("ResNet-20", "cifar10", 1 / 255, 32, 2000, 0, deepfool()),
    )
}


@cache
def training(data: str, n: int) -> tuple[Tensor, Tensor]:
    """Return the first rows of the training data."""
    found = uf.load_data(data, split="train", limit=n, data_dir=published.data_dir())
    return found.x, found.y


@cache
def manifolds(data: str, n: int, curved: int) -> list[Manifold]:
    """Return the PCA of 95% of the variance and, where `curved` is not 0, an autoencoder of so many dimensions."""
    x, _ = training(data, n)
    found: list[Manifold] = [uf.explain.pca(x, variance=0.95)]
    if curved:
        epochs = max(10, 40_000 // len(x))
        found.append(uf.explain.autoencoder(x, curved, width=128 if data == "digits" else 256, epochs=epochs))
    return found


def picture(explanation: Any, name: str, folder: Path = FIGURES) -> None:
    """Write a figure as a PNG file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.replace(' ', '_')}.png").write_bytes(explanation.image())


# ---- where perturbations lie


def measure_manifold(case: Case) -> None:
    """Measure shares of the smallest changes along manifolds, and distances along and off them."""
    target, (x, y) = case.target(), case.seen()
    changed, natural = smallest(case, target), published.images(case.data, slice(1000))
    for manifold in manifolds(case.data, case.learned, case.curved):
        kind = manifold.name.partition(",")[0]
        share = uf.explain.off_manifold(*changed, manifold, natural=natural)
        picture(share, f"share_{case.name}_{kind}")
        by = {row["change"]: row for row in share.rows()}
        first = by["adversarial"]
        entry(
            "manifold", f"{case.name}: share, {kind}",
            f"{case.name}: share of the smallest change along the data manifold ({manifold.name})",
            first["on"], len(share.on), [first["low"], first["high"]],
            f"random direction {manifold.share:.1%} (measured {by[RANDOM]['on']:.1%}); natural differences "
            f"{by['natural, same class']['on']:.1%} within a class, {by['natural, other class']['on']:.1%} between; "
            f"the manifold keeps {manifold.kept:.1%} of the variance", "Shamir 2021", rows=share.rows(),
        )  # fmt: skip
        ways = uf.explain.dimples(target, x, y, manifold)
        picture(ways, f"ways_{case.name}_{kind}")
        if case.name == "digits-cnn" and kind == "PCA":
            picture(ways, "manifold-digits", IMAGES)
        times = {row["way"]: row for row in ways.rows()}
        free, along, off, drawn = (times[way] for way in (FREE, ON, OFF, CONTROL))
        entry(
            "manifold", f"{case.name}: distance, {kind}",
            f"{case.name}: median distance along the manifold over that in a random subspace of as many dimensions "
            f"({manifold.name})", along["median"] / drawn["median"], along["n"],
            None, f"L2: any change {free['median']:.3g}, along {along['median']:.3g}, off {off['median']:.3g}, random "
            f"subspace {drawn['median']:.3g}; linear targets of these gradients: along "
            f"{along['linear_times_free'] * free['median']:.3g}, off {off['linear_times_free'] * free['median']:.3g}",
            "Shamir 2021", unit="times", rows=ways.rows(),
        )  # fmt: skip


def smallest(case: Case, target: uf.Target) -> tuple[Tensor, Tensor]:
    """Return the images that were fooled, and what fooled them with the smallest change found."""
    x, y = case.seen()
    found = uf.run(case.nearest, target, x, y, uf.l2(), seed=0)
    assert isinstance(found.x_adv, Tensor)
    return x[found.success], found.x_adv[found.success]


def measure_waves(case: Case) -> None:
    """Measure the frequencies of the smallest changes, what strided layers fold back, and shifts by one pixel."""
    began = time.process_time()
    target = case.target()
    waves = uf.explain.spectrum(*smallest(case, target))
    picture(waves, f"spectrum_{case.name}")
    high = waves.high()
    entry(
        "manifold", f"{case.name}: spectrum",
        f"{case.name}: power of the smallest change above half the Nyquist frequency",
        float(high.mean()), len(high), list(uf.stats.mean_interval(high.tolist())),
        f"images {float(waves.high('images').mean()):.1%}, white noise {waves.white:.1%}; "
        f"{float(waves.constant.mean()):.1%} of the change is the same on all pixels", "", rows=waves.rows(),
    )  # fmt: skip
    folds = uf.explain.aliasing(target, case.seen(4 * case.images)[0])
    picture(folds, f"aliasing_{case.name}")
    *layers, shift = folds.rows()
    means = folds.folded.mean(1)
    each = "; ".join(f"layer {r['what']} {r['value']:.1%} (white noise {r['control']:.1%})" for r in layers)
    entry(
        "manifold", f"{case.name}: aliasing", f"{case.name}: power that strided layers fold back, mean of layers",
        float(means.mean()), len(means), list(uf.stats.mean_interval(means.tolist())),
        f"{each}; a shift by one pixel changes {shift['value']:.1%} of the classes, noise of its size "
        f"{shift['control']:.1%}", "Grabinski 2022", rows=folds.rows(), seconds=time.process_time() - began,
    )  # fmt: skip


def entry(
    table: str,
    key: str,
    what: str,
    ours: float | str,
    n: int,
    interval: list[float] | None,
    note: str,
    source: str,
    *,
    unit: str = "%",
    **more: Any,
) -> None:
    """Write one row of a table."""
    row = {"what": what, "published": None, "ours": ours, "unit": unit, "n": n, "note": note, "source": source}
    results.write(table, key, row | ({"interval": interval} if interval else {}) | plain(more))


def plain(value: Any) -> Any:
    """Return the value with None for what JSON cannot say."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
    return value


# ---- hypotheses


def small_net(seed: int, shape: tuple[int, ...], width: int = 16) -> nn.Module:
    """Return two convolutions and two linear layers for images of any shape; the stride of the first is the side's."""
    channels, side, _ = shape
    first = 2 if side > 14 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=first, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        features = layers(torch.zeros(1, *shape)).shape[1]
        return layers.extend([nn.Linear(features, 4 * width), nn.ReLU(), nn.Linear(4 * width, 10)])


def linear_net(seed: int, shape: tuple[int, ...]) -> nn.Module:
    """Return one linear layer: a target that is bound to places."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10))


SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 25, "lr": 5e-3, "batch_size": 64},
    "mnist": {"epochs": 4, "lr": 3e-3, "batch_size": 128},
    "cifar10": {"epochs": 5, "lr": 1e-3, "batch_size": 128},
}
SWEEPS = {"digits": (60, 250, 1000), "mnist": (500, 2000, 8000)}
MOVED = {"digits": 1.0, "mnist": 2.0}
"""L2 radii of the changes that carry features to new labels: about twice the median smallest change."""


def by_overfitting(case: Case) -> Hypothesis:
    """Train the target's architecture again on halves, fewer rows and other widths."""
    shape, sizes = SHAPES[case.data], SWEEPS[case.data]
    return room.by_overfitting(
        partial(untrained, case.name), training(case.data, sizes[-1]), case.seen(), pgd(steps=20), uf.linf(case.eps),
        nearest=deepfool(), sizes=sizes, capacities=[partial(small_net, shape=shape, width=w) for w in (4, 16, 48)],
        training=SETTINGS[case.data], name=f"{case.name}, trained again",
    )  # fmt: skip


def by_linearity(case: Case) -> Hypothesis:
    """Ask the target along one gradient; on MNIST an RBF network is the contrast."""
    contrast = uf.Target(nets.trained("rbf")) if case.name == "mnist-cnn" else None
    return room.by_linearity(
        case.target(), *case.seen(), uf.linf(case.eps), one=fgsm(), many=pgd(steps=20), nearest=case.nearest,
        contrast=contrast,
    )  # fmt: skip


def by_dimension(case: Case) -> Hypothesis:
    """Train small networks on the same images with fewer pixels."""
    return room.by_dimension(
        small_net, training(case.data, SWEEPS[case.data][-1]), case.seen(), nearest=deepfool(),
        training=SETTINGS[case.data], name=f"small networks on {case.data}",
    )  # fmt: skip


def by_features(case: Case) -> Hypothesis:
    """Relabel changed images and train the target's architecture on them."""
    data = training(case.data, 1000 if case.data == "digits" else 6000)
    return room.by_features(
        case.target(), partial(untrained, case.name), data, published.images(case.data, slice(797)), pgd(steps=20),
        uf.l2(MOVED[case.data]), training=SETTINGS[case.data],
        name=f"{case.name}, changes of L2 size {MOVED[case.data]:g}",
    )  # fmt: skip


def by_patches(case: Case) -> Hypothesis:
    """Shuffle patches of natural and of fooling images; a linear network is the control."""
    target, shape = case.target(), SHAPES[case.data]
    bound = linear_net(0, shape)
    fit(bound, *training(case.data, case.learned), **SETTINGS[case.data])
    n = 200 if case.data == "cifar10" else 797
    return room.by_patches(target, *case.seen(n), bound=bound.eval(), fooling=noise_that_fools(target, shape))


def noise_that_fools(target: uf.Target, shape: tuple[int, ...]) -> Tensor:
    """Return what gradient ascent from noise makes of each class, twice, where the target is 99% sure."""
    noise = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.arange(20) % 10
    made = uf.last_iterate(pgd(steps=60), target, noise, wanted, uf.linf(0.5), to=wanted)
    sure = target.scores(made).softmax(1).gather(1, wanted[:, None])[:, 0] > 0.99
    return made[sure]


def by_dimples(case: Case) -> Hypothesis:
    """Look along and off the autoencoder's surface, or the PCA where there is none."""
    manifold = manifolds(case.data, case.learned, case.curved)[-1]
    return room.by_dimples(case.target(), *case.seen(), manifold, nearest=case.nearest)


EVERY = tuple(CASES)
HYPOTHESES: dict[str, tuple[Callable[[Case], Hypothesis], tuple[str, ...]]] = {
    "overfitting": (by_overfitting, ("digits-cnn", "mnist-cnn")),
    "linearity": (by_linearity, EVERY),
    "dimension": (by_dimension, ("digits-cnn", "mnist-cnn")),
    "features": (by_features, ("digits-cnn", "mnist-cnn")),
    "patches": (by_patches, EVERY),
    "dimpled manifold": (by_dimples, EVERY),
}


def measure_hypothesis(name: str, case: Case) -> None:
    """Measure one hypothesis on one target and write its row."""
    began = time.process_time()
    found = HYPOTHESES[name][0](case)
    picture(found, f"{name}_{case.name}")
    entry(
        "hypotheses", f"{name}/{case.name}", f"{name}: {found.target}", found.verdict,
        max(p.n for p in found.predictions), None, found.measurement, found.source, unit="", claim=found.claim,
        rule=found.prediction, rows=found.rows(), series=found.series, seconds=time.process_time() - began,
    )  # fmt: skip


def recorded() -> Verdicts:
    """Return all measured hypotheses from the results, for the figure of verdicts."""
    found = []
    for key, row in results.read("hypotheses").items():
        name, target = key.split("/")
        predictions = []
        for r in row["rows"]:
            rule = next(rule for rule in RULES[name].values() if rule.what.split("{")[0] in r["prediction"])
            numbers = (math.nan if r[k] is None else r[k] for k in ("value", "low", "high"))
            predictions.append(Prediction(rule, *numbers, r["n"]))
        found.append(Hypothesis(name, target, tuple(predictions), {}))
    return verdicts(found)


RULES = {
    "overfitting": room.OVERFITTING, "linearity": room.LINEARITY, "dimension": room.DIMENSION,
    "features": room.FEATURES, "patches": room.PATCHES, "dimpled manifold": room.DIMPLED,
}  # fmt: skip


def main() -> None:
    """Measure the named cases, or all."""
    cases: dict[str, Callable[[], None]] = {
        f"{table}/{name}": partial(measure, case)
        for table, measure in (("manifold", measure_manifold), ("waves", measure_waves))
        for name, case in CASES.items()
    }
    for name, (_, targets) in HYPOTHESES.items():
        cases |= {f"{name}/{target}": partial(measure_hypothesis, name, CASES[target]) for target in targets}
    for wanted in sys.argv[1:] or cases:
        began = time.process_time()
        cases[wanted]()
        print(f"{wanted}: {time.process_time() - began:.0f} CPU seconds", flush=True)
    picture(recorded(), "hypotheses", IMAGES)


if __name__ == "__main__":
    main()
