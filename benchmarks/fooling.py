"""Fooling images by evolution: confidence, generations, seconds and diversity, beside Nguyen et al. 2014.

`python -m benchmarks.fooling [case ...]`; figures go to runs/benchmarks/fooling (they show what networks of MNIST,
CIFAR-10 and ImageNet take for their classes), the digits' gallery to docs/images.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import published, results
from unfooled import Target, fooling
from unfooled.core.data import DATASETS
from unfooled.fooling import Evolution
from unfooled.fooling.evolve import Generation
from unfooled.fooling.gallery import share
from unfooled.targets import ZOO

FIGURES = results.SCRATCH / "fooling"
PAGE = Path(__file__).parents[1] / "docs" / "images"
WORDS = {"direct": "pixels", "cppn": "pattern networks"}


@dataclass(frozen=True)
class Case:
    """One target; `runs` independent searches of `generations`, or as many as fit into `seconds` of CPU."""

    title: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    generations: int = 200
    population: int = 256
    runs: int = 5
    seconds: float | None = None
    names: Callable[[], list[str]] | None = None
    published: tuple[str | None, str | None] = (None, None)
    """Confidence of the original for pixels and for pattern networks, of other networks for the same data."""


def _with_background() -> list[str]:
    return ["background", *published.imagenet_names()]


_MNIST = ("99.99%, about 200 generations", "99.99%, about 200 generations")
_IMAGENET = ("about 21.6%, about 20,000 generations", "88.1%, about 5,000 generations")

CASES = {
    "digits-cnn": Case("digits, digits-cnn", ZOO["digits-cnn"].build, (1, 8, 8)),
    "digits-cnn-robust": Case("digits, digits-cnn-robust", ZOO["digits-cnn-robust"].build, (1, 8, 8)),
    "mnist-cnn": Case("MNIST, mnist-cnn", ZOO["mnist-cnn"].build, (1, 28, 28), published=_MNIST),
    "mnist-cnn-robust": Case("MNIST, mnist-cnn-robust", ZOO["mnist-cnn-robust"].build, (1, 28, 28), runs=3),
    "cifar_resnet20": Case(
        "CIFAR-10, ResNet-20", published.cifar_resnet20, (3, 32, 32), generations=150, population=128, runs=1,
        names=lambda: list(DATASETS["cifar10"].classes or ()),
    ),
    "mobilenet_v2": Case(
        "ImageNet, MobileNetV2", published.mobilenet_v2, (3, 224, 224), generations=10**6, population=64, runs=1,
        seconds=12.0, names=_with_background, published=_IMAGENET,
    ),
}  # fmt: skip


@dataclass
class Clock:
    """Watches a search: wall and CPU seconds until every class was sure, and the end of its time."""

    limit: float | None
    sure: tuple[float, float] | None = None
    burnt: float = 0.0

    def __post_init__(self) -> None:
        self.begun = time.monotonic(), time.process_time()

    def __call__(self, g: Generation) -> None:
        wall, self.burnt = time.monotonic() - self.begun[0], time.process_time() - self.begun[1]
        if self.sure is None and g.sure == g.classes:
            self.sure = wall, self.burnt
        if self.limit is not None and self.burnt > self.limit:
            raise KeyboardInterrupt  # what was found by then is what there is


def measure(name: str, kind: str) -> None:
    """Run one case with one encoding and write its rows and figures; with both done, what joins them."""
    case, target = CASES[name], _target(name)
    fooling.evolve(target, case.shape, encoding=kind, generations=1, population=2)  # libraries load outside the clock
    FIGURES.mkdir(parents=True, exist_ok=True)
    runs, clocks = [], []
    for seed in range(case.runs):
        _archive(name, kind, seed).unlink(missing_ok=True)
        clock = Clock(case.seconds)
        run = fooling.evolve(
            target, case.shape, encoding=kind, generations=case.generations, population=case.population, seed=seed,
            archive=_archive(name, kind, seed), on_generation=clock,
        )  # fmt: skip
        runs.append(run)
        clocks.append((clock.sure, clock.burnt))
        print(f"{name}: {run.sentence()} {run.seconds:.1f} s, {clock.burnt:.1f} s of CPU", flush=True)
    results.write("fooling", f"{name} {kind}", _row(case, kind, runs, clocks))
    if case.runs > 1:
        results.write("fooling", f"{name} {kind} diversity", _spread(case, kind, runs))
    _figures(f"{name}-{kind}", runs)
    if all(_archive(name, other, 0).exists() for other in WORDS):
        _join(name)


def _target(name: str) -> Target:
    case = CASES[name]
    return Target(case.network(), name=name, classes=case.names() if case.names else None)


def _archive(name: str, kind: str, seed: int) -> Path:
    return FIGURES / f"{name}-{kind}-{seed}.safetensors"


def _join(name: str) -> None:
    """Draw both encodings into one picture, and add their seconds up."""
    case, target = CASES[name], _target(name)
    both = [
        fooling.evolve(target, case.shape, encoding=kind, generations=0, population=case.population,
                       archive=_archive(name, kind, 0))
        for kind in WORDS
    ]  # fmt: skip
    _figures(name, both)
    if name == "digits-cnn":
        PAGE.mkdir(exist_ok=True)
        (PAGE / "fooling-digits.png").write_bytes(fooling.gallery(*both).image(dpi=90))
    if name == "mnist-cnn":
        entries = results.read("fooling")
        clocks = [entries[f"{name} {kind}"]["seconds_to_all"] for kind in WORDS]
        results.write("fooling", f"{name} seconds", _seconds(case, clocks))


def _row(case: Case, kind: str, runs: list[Evolution], clocks: list[Any]) -> dict[str, Any]:
    """Return the row of one target and encoding: the median confidence of all classes of all runs."""
    odds = torch.cat([run.log_odds for run in runs])
    classes, reached = len(runs[0].classes), [run.all_sure for run in runs]
    done = [g for g in reached if g is not None]
    rate = sum(run.forward for run in runs) / sum(cpu for _, cpu in clocks)
    if len(done) == len(runs):
        said = f"all {classes} above 99.99% after {_spread_of(done)} generations"
    else:
        sure = _spread_of([int(run.sure[-1]) for run in runs])
        said = f"{sure} of {classes} classes above 99.99%"
    random = float(torch.cat([run.control for run in runs]).median())
    after = _spread_of([run.generations for run in runs])
    return {
        "what": f"{case.title}, {WORDS[kind]}: median confidence of a class's image after {after} generations "
        f"of {case.population}",
        "published": dict(zip(WORDS, case.published, strict=True))[kind],
        "ours": share(float(odds.median())),
        "unit": "",
        "n": len(odds),
        "note": f"{said}; lowest {share(float(odds.min()))}, highest {share(float(odds.max()))}; "
        f"{rate:,.0f} images a second of CPU; highest confidence in the random first images: median {random:.1%}",
        "source": "Nguyen 2014",
        "median": float(odds.median().sigmoid()),
        "lowest": float(odds.min().sigmoid()),
        "highest": float(odds.max().sigmoid()),
        "log_odds_median": float(odds.median()),
        "generations_to_all": reached,
        "forward": [run.forward for run in runs],
        "wall_seconds": [round(run.seconds, 2) for run in runs],
        "cpu_seconds": [round(cpu, 2) for _, cpu in clocks],
        "seconds_to_all": [sure and [round(s, 2) for s in sure] for sure, _ in clocks],
        "random_median": random,
        "images_per_cpu_second": rate,
        "images_per_second": statistics.median(run.images_per_second for run in runs),
    }


def _spread_of(values: list[int]) -> str:
    middle = statistics.median_low(values)
    return f"{middle:,}" if len(set(values)) == 1 else f"{middle:,} ({min(values):,}–{max(values):,})"


def _spread(case: Case, kind: str, runs: list[Evolution]) -> dict[str, Any]:
    found = fooling.diversity(runs)
    return {
        "what": f"{case.title}, {WORDS[kind]}: distance of two runs' images of one class, root mean square per pixel",
        "published": None,
        "ours": float(found.distance.mean()),
        "unit": "",
        "n": len(found.classes) * len(runs) * (len(runs) - 1) // 2,
        "note": f"images of different classes {float(found.other.mean()):.3g}, random images {found.control:.3g}",
        "source": "",
        "control": found.control,
        "other": float(found.other.mean()),
    }


def _seconds(case: Case, clocks: list[Any]) -> dict[str, Any]:
    """Return the row of how long both encodings together take until every class is above 99.99%."""
    pairs = [pair for pair in zip(*clocks, strict=True) if all(pair)]
    wall = sorted(a[0] + b[0] for a, b in pairs)
    cpu = sorted(a[1] + b[1] for a, b in pairs)
    return {
        "what": f"{case.title}: seconds until all classes are above 99.99%, both encodings one after the other",
        "published": "about 300 s for 200 generations of one, four cores",
        "ours": statistics.median(wall),
        "unit": "s",
        "interval": [wall[0], wall[-1]],
        "n": len(pairs),
        "note": f"one thread, a shared machine; {statistics.median(cpu):.1f} s of CPU ({cpu[0]:.1f}–{cpu[-1]:.1f})",
        "source": "Evolving-AI-Lab/fooling README",
        "cpu": cpu,
    }


def _figures(name: str, runs: list[Evolution]) -> None:
    (FIGURES / f"{name}.png").write_bytes(fooling.gallery(*runs).image())
    (FIGURES / f"{name}-curve.png").write_bytes(fooling.curves(*runs).image())


def main() -> None:
    """Run what is named (mnist-cnn, mnist-cnn/cppn), or all."""
    torch.set_num_threads(1)
    for word in sys.argv[1:] or CASES:
        name, _, kind = word.partition("/")
        for each in [kind] if kind else WORDS:
            measure(name, each)


if __name__ == "__main__":
    main()
