"""Networks that may answer "none of these", trained to: what they refuse, and what attacks make of it; `abstention`.

python -m benchmarks.abstention [case ...]     such as "digits noise", "mnist sigmoids": the names of CASES
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from benchmarks import published, results
from unfooled.core.attack import parse
from unfooled.core.fit import Objective, fit
from unfooled.fooling import ascend, evolve
from unfooled.harden import RadialBasis, Sigmoids, objectives, reject
from unfooled.stats import wilson
from unfooled.targets.zoo import digits_cnn, mnist_cnn

TABLE = "abstention"
GOODFELLOW = "Goodfellow et al. 2014, arXiv:1412.6572"
RUBBISH = 2000
"""Drawn inputs of each kind of noise."""
HELD = 200
"""Training images that set thresholds alone."""


@dataclass(frozen=True)
class Task:
    """The data, the architecture by its number of outputs, and how it is trained and attacked."""

    data: str
    shape: tuple[int, int, int]
    make: Callable[[int], nn.Module]
    rows: int
    recipe: dict[str, Any]
    eps: float
    n: int
    generations: int


def _outputs(module: nn.Module, count: int) -> nn.Module:
    """Return a network of the zoo with another number of outputs."""
    assert isinstance(module, nn.Sequential)
    last = module[-1]
    assert isinstance(last, nn.Linear)
    return nn.Sequential(*list(module)[:-1], nn.Linear(last.in_features, count))


TASKS = {
    "digits": Task(
        "digits", (1, 8, 8), lambda k: _outputs(digits_cnn(), k), 800,
        {"epochs": 15, "batch_size": 32, "lr": 5e-3}, 0.1, 100, 60,
    ),
    "mnist": Task(
        "mnist", (1, 28, 28), lambda k: _outputs(mnist_cnn(), k), 10_000,
        {"epochs": 4, "batch_size": 100, "lr": 4e-3, "precision": "bf16"}, 0.1, 100, 60,
    ),
}  # fmt: skip


@cache
def training(task: str) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the training images and labels of a task, and images that set its thresholds and are not trained on."""
    about = TASKS[task]
    data = uf.load_data(about.data, split="train", data_dir=published.data_dir())
    rows = about.rows
    return (data.x[:rows], data.y[:rows]), data.x[rows : rows + HELD]


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module with the weights of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@cache
def trained(task: str, way: str) -> uf.Target:
    """Return a network trained to refuse in one way, as a target that may abstain."""
    about = TASKS[task]
    (x, y), held = training(task)
    threat = uf.linf(about.eps)
    plain = objectives.standard()
    ways: dict[str, tuple[int, Callable[[], Objective]]] = {
        "threshold": (10, lambda: plain),
        "unsure": (10, lambda: reject.abstaining(reject.noise(), reject.as_unsure)),
        "noise": (11, lambda: reject.abstaining(reject.noise())),
        "evolved": (11, lambda: reject.abstaining(first_fooled(task))),
        "both": (11, lambda: reject.abstaining(reject.together(reject.noise(), first_fooled(task)))),
        "attacked": (11, lambda: reject.abstaining(objectives.attacked(parse("pgd(steps=5)"), threat))),
        "sigmoids": (10, lambda: lambda m, x, y, ids, step: reject.as_no_class(m(x), y).mean()),
        "sigmoids-noise": (10, lambda: reject.abstaining(reject.noise(), reject.as_no_class)),
    }
    if way == "rbf":
        module: nn.Module = fresh(lambda: RadialBasis(x[0].numel(), 10))
        centres = torch.stack([x[y == k].mean(0).flatten() for k in range(10)])
        assert isinstance(module, RadialBasis)
        with torch.no_grad():
            module.centre.copy_(centres)
        fit(module, x, y, _far_from_others, **about.recipe | {"precision": "float32", "lr": 2e-2})
        module.refuse = float(torch.quantile(-module(held).detach().amax(1), 0.95))
        return uf.Target(module.eval().requires_grad_(False), reject="last", name=way)
    outputs, objective = ways[way]
    module = fresh(lambda: about.make(outputs))
    fit(module, x, y, objective(), **about.recipe)
    module.eval().requires_grad_(False)
    if way in ("threshold", "unsure"):
        return uf.Target(module, reject=min(reject.threshold(module, held), 1 - 1e-6), name=way)
    return uf.Target(Sigmoids(module) if way.startswith("sigmoids") else module, reject="last", name=way)


def _far_from_others(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
    """Return the cost of one classifier a class whose probability is exp(-distance), [] (1412.6572, section 7)."""
    far = -module(x).clamp(max=-1e-4)
    own = F.one_hot(y, far.shape[1]).bool()
    return torch.where(own, far, -torch.log(-torch.expm1(-far))).sum(1).mean()


@cache
def first_fooled(task: str) -> Tensor:
    """Return fooling images of the plain network: evolved pixels and patterns, two runs each."""
    return fooled(trained(task, "threshold"), task, seeds=(0, 1))["evolved"]


def fooled(target: uf.Target, task: str, seeds: tuple[int, ...] = (10,)) -> dict[str, Tensor]:
    """Return fooling images made against this very target, whose refusal is one of the classes that compete."""
    about = TASKS[task]
    asked = uf.Target(target.module, name=target.name)
    found = [
        evolve(
            asked, about.shape, encoding=encoding, classes=range(10), generations=about.generations, until=0.9999,
            population=64, seed=seed,
        ).images
        for encoding in ("direct", "cppn")
        for seed in seeds
    ]  # fmt: skip
    climbed = [ascend(asked, about.shape, range(10), steps=100, seed=seed).images for seed in seeds]
    return {"evolved": torch.cat(found), "climbed": torch.cat(climbed)}


def others(task: str) -> dict[str, Tensor]:
    """Return images that belong to no class, none of which was trained on."""
    about, luck = TASKS[task], torch.Generator().manual_seed(99)
    x = published.images(about.data)[0][:500]
    cifar = published.images("cifar10", slice(500))[0].mean(1, keepdim=True)
    size = about.shape[1]
    at = (32 - size) // 2
    return {
        "N(0, 1)": torch.randn(RUBBISH, *about.shape, generator=luck),
        "uniform noise": torch.rand(RUBBISH, *about.shape, generator=luck),
        "inverted": 1 - x,
        "CIFAR-10 crops": cifar[:, :, at : at + size, at : at + size],
    }


TITLES = {
    "threshold": "softmax, 5% refused by confidence",
    "unsure": "Outlier Exposure on noise, 5% refused by confidence",
    "noise": "rubbish class trained on noise",
    "evolved": "rubbish class trained on evolved images",
    "both": "rubbish class trained on noise and evolved images",
    "attacked": "rubbish class trained on adversarial examples",
    "sigmoids": "one sigmoid a class",
    "sigmoids-noise": "one sigmoid a class, noise as no class",
    "rbf": "RBF network, 5% refused by distance",
}
RUBBISH_PUBLISHED = {"threshold": 0.9835, "sigmoids": 0.68, "rbf": 0.0}
"""Goodfellow et al. 2014, MNIST: N(0, I) called some class above 0.5 by maxout with softmax, with sigmoids, by RBF."""
CASES = [f"{task} {way}" for task in TASKS for way in TITLES]


def run(case: str) -> None:
    """Train one network, show it what it should refuse, make fooling images against it, and attack it."""
    task, way = case.split()
    about, began = TASKS[task], time.process_time()
    target = trained(task, way)
    taught = time.process_time() - began
    x, y = published.images(about.data)
    kinds = others(task) | fooled(target, task)
    if way != "threshold":
        kinds["evolved before"] = first_fooled(task)
    found = reject.judged(target, x, y, kinds)
    rows = {row["images"]: row for row in found.rows()}
    called = sure_of(way, target.module, about.shape)
    raw = {"seeds": [0], "rows": found.rows(), "sentence": found.sentence(), "clean_right_accepted": found.clean}
    raw |= {
        "training_cpu_seconds": round(taught, 1),
        "recipe": about.recipe,
        "training_rows": len(training(task)[0][1]),
    }
    title = f"{task}, {TITLES[way]}"
    told = "; ".join(
        f"{kind} {row['answered']:.0%}" + (f" (AUROC {row['AUROC']:.3f})" if row["AUROC"] is not None else "")
        for kind, row in rows.items()
    )
    _write(
        f"{case} rubbish", f"{title}: N(0, I) called some class above 0.5", int(called.sum()), RUBBISH,
        published=RUBBISH_PUBLISHED.get(way) if task == "mnist" else None, source=GOODFELLOW,
        note=f"answered: {told}", **raw,
    )  # fmt: skip
    images = {kind: rows[kind] for kind in ("evolved", "climbed")}
    sure = sum(round(row["called a class above 99%"] * row["n"]) for row in images.values())
    before = rows.get("evolved before")
    note = ", ".join(f"{kind} {row['called a class above 99%']:.0%} of {row['n']}" for kind, row in images.items())
    note += f"; those that fooled the plain network: {before['called a class above 99%']:.0%}" if before else ""
    _write(
        f"{case} fooling", f"{title}: fooling images made against it, called a class above 99%", sure,
        sum(row["n"] for row in images.values()), published=None, note=note,
    )  # fmt: skip
    attacked = uf.evaluate(
        target, (x[: about.n], y[: about.n]), threat=uf.linf(about.eps), suite="quick",
    )  # fmt: skip
    told_of = attacked.rejection
    assert told_of is not None
    _write(
        f"{case} attacked", f"{title}: right and accepted under attack, Linf {about.eps:g}",
        round(told_of.right * attacked.n), attacked.n, published=None,
        note=f"before {told_of.clean_right:.0%}, on all {len(x):,} test images {found.clean:.1%}; under attack "
        f"{told_of.rejected:.0%} refused, {told_of.wrong['wrong_accepted']:.0%} wrong and accepted; suite quick, "
        f"{attacked.status}",
        findings=[f.id for f in attacked.findings], seeds=[0],
        cpu_seconds=round(time.process_time() - began, 1),
    )  # fmt: skip


def sure_of(way: str, module: Any, shape: tuple[int, int, int]) -> Tensor:
    """Return which of N(0, I) inputs some class is believed of above one half, as the head says it, bool [RUBBISH]."""
    if way == "rbf":  # p = exp(-distance) a class, before it may refuse
        asked, head = uf.Target(lambda x: module(x)[:, :10].exp(), name=way), "given"
    elif way.startswith("sigmoids"):
        asked, head = uf.Target(module.module, name=way), "sigmoid"
    else:
        asked, head = uf.Target(module, name=way), "softmax"
    found = uf.fooling.rubbish(asked, shape, n=RUBBISH, head=head)
    return (found.confidence > 0.5) & (found.called < 10)


def _write(case: str, what: str, count: int, n: int, **more: Any) -> None:
    entry = {"what": what, "ours": count / n, "unit": "%", "n": n, "interval": list(wilson(count, n))}
    results.write(TABLE, case, entry | more)
    print(case, f"{count}/{n}", more["note"], flush=True)


def main() -> None:
    """Measure the cases named, or all."""
    for case in sys.argv[1:] or CASES:
        run(case)


if __name__ == "__main__":
    main()
