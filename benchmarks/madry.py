"""Robust MNIST within Linf 0.3 on a CPU: what each idea gives in a short training, and the network that ships.

python -m benchmarks.madry try [name ...]     short trainings, scored
python -m benchmarks.madry [case ...]         measure the network of the zoo
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from unfooled.attacks import parse
from unfooled.core.augment import augment
from unfooled.core.fit import Objective, fit
from unfooled.core.result import Status
from unfooled.harden.objectives import adversarial
from unfooled.stats import wilson
from unfooled.targets import resolve, train
from unfooled.targets.train import TRAINING
from unfooled.targets.zoo import ZOO

EPS = 0.3
NAME = "mnist-cnn-robust"
PGD8 = "pgd(steps=8, step_size=0.3)"
SCORED_BY = ("apgd(steps=40)", "apgd_targeted(steps=40, targets=3)", "square(queries=1000)")
PUBLISHED = "Croce and Hein 2020, arXiv:2003.01690, table 2"


def network(
    *,
    ramps: Sequence[float] = (0.3, 0.7),
    slope: float = 4.0,
    leak: float = 0.05,
    widths: tuple[int, int, int] = (16, 32, 100),
) -> nn.Module:
    """Return two strided convolutions and two linear layers behind leaky ramps of the pixel, weights of seed 0."""
    first, second, hidden = widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        front = [nn.Conv2d(1, len(ramps), 1), nn.LeakyReLU(leak)] if ramps else []
        module = nn.Sequential(
            *front,
            nn.Conv2d(max(1, len(ramps)), first, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(first, second, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(49 * second, hidden), nn.ReLU(), nn.Linear(hidden, 10),
        )  # fmt: skip
    if front:
        with torch.no_grad():
            for name, value in front[0].named_parameters():
                value.copy_(torch.full_like(value, slope) if name == "weight" else -slope * torch.tensor(ramps))
    return module


Make = Callable[[int], Objective]
"""Steps an epoch -> objective."""


def pgd(attack: str = PGD8, eps: float = EPS) -> Make:
    """Return PGD training whose radius grows over the given steps."""
    return lambda ramp: adversarial(parse(attack), uf.linf(eps), ramp=ramp)


@dataclass(frozen=True)
class Trial:
    """A short training: what is different from PGD training of the small network."""

    what: str
    build: Callable[[], nn.Module] = network
    make: Make = field(default_factory=pgd)
    epochs: int = 4
    augment: str = ""
    learned: int = 20_000
    ramp: int = 1


TRIALS = {
    "PGD": Trial("PGD training of the network of 166,666 parameters"),
    "leak": Trial("its ramps leak 0.02 instead of 0.05", lambda: network(leak=0.02)),
    "ramps": Trial("four ramps, at 0.2, 0.4, 0.6, 0.8", lambda: network(ramps=(0.2, 0.4, 0.6, 0.8))),
    "wide": Trial("twice as many channels, 128 hidden units", lambda: network(widths=(32, 64, 128))),
    "few": Trial("PGD training on half the images, twice as often", epochs=8, learned=10_000, ramp=2),
    "few, shifts": Trial("the same, images shifted by up to a pixel", epochs=8, learned=10_000, ramp=2,
                         augment="shifts(1)"),
    **{
        f"wide, {eps}": Trial(f"the wide network trained within {eps}", lambda: network(widths=(32, 64, 128)),
                              pgd(eps=eps))
        for eps in (0.34, 0.38, 0.42)
    },
}  # fmt: skip
HELD = 500
"""The last of the training images: trials are scored on them, so that the test images choose nothing."""
SHORT: dict[str, Any] = {
    "batch_size": 128, "lr": 2e-3, "ema": 0.995, "precision": "bf16", "channels_last": True, "seed": 0,
}  # fmt: skip


def short(name: str) -> None:
    """Train one network for about a minute of CPU time and score it on training images that it did not see."""
    trial = TRIALS[name]
    data = uf.load_data("mnist", split="train", data_dir=published.data_dir())
    train, x, y = data.take(trial.learned), data.x[-HELD:], data.y[-HELD:]
    module, begun = trial.build(), time.process_time()
    ramp = trial.ramp * (trial.learned // SHORT["batch_size"])
    fit(
        module, train.x, train.y, trial.make(ramp), epochs=trial.epochs,
        augment=augment(trial.augment) if trial.augment else None, **SHORT,
    )  # fmt: skip
    spent = time.process_time() - begun
    out = uf.run(list(SCORED_BY), module.eval(), x, y, uf.linf(EPS))
    write_short(name, standing(out.status), right(module, x, y), spent)


def write_short(name: str, robust: int, clean: int, spent: float) -> None:
    """Write the row of a short training: of HELD images so many stay right under attack, so many without."""
    trial = TRIALS[name]
    share(
        "short, " + name, f"in about a minute: {trial.what}", robust, HELD, source="this project",
        note=f"{spent:.0f} CPU s, {trial.learned:,} images, {trial.epochs} epochs; clean {clean / HELD:.1%}",
        cpu_seconds=spent, clean=clean / HELD, recipe=SHORT | {"epochs": trial.epochs}, learned=trial.learned,
        attacks=SCORED_BY,
    )  # fmt: skip


def standing(status: Sequence[Status]) -> int:
    """Return how many were right and stayed so."""
    return sum(s is Status.SURVIVED for s in status)


@torch.no_grad()
def right(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return how many images are read right."""
    return sum(int((module(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))


def share(case: str, what: str, hits: int, n: int, *, note: str, source: str, said: Any = None, **raw: Any) -> None:
    """Write one row whose value is a share."""
    entry = {
        "what": what, "published": said, "ours": hits / n, "unit": "%", "n": n, "interval": list(wilson(hits, n)),
        "note": note, "source": source, "seeds": [0],
    }  # fmt: skip
    results.write("madry", case, entry | raw)


def shipped() -> nn.Module:
    """Return the network of the zoo."""
    return ZOO[NAME].build()


def cost() -> str:
    """Return what training it took, from its card."""
    card = ZOO[NAME].card()
    how = card["training"]
    return f"{card['training_seconds']:,} CPU s of training, {how['epochs']} epochs, {card['parameters']:,} parameters"


def robust() -> None:
    """Robust accuracy at 0.3 under the whole suite, beside what was published under AutoAttack."""
    x, y = published.images("mnist", slice(1000))
    begun = time.process_time()
    got = uf.evaluate(shipped(), x, y, uf.linf(EPS), suite="standard")
    share("standard 0.3", f"`{NAME}` within Linf 0.3, suite `standard`", int(got.robust.sum()), len(y),
          said="Madry 88.5%, TRADES 92.8%, best 96.3%", source=PUBLISHED,
          note=f"{cost()}; verdict {got.status}", verdict=got.status,
          evaluation_seconds=time.process_time() - begun)  # fmt: skip


def clean() -> None:
    """Accuracy on all test images as they are."""
    x, y = published.images("mnist")
    share("clean", f"`{NAME}`, clean accuracy", right(shipped(), x, y), len(y),
          said="Madry 98.5%, TRADES 99.5%, best 99.3%", source=PUBLISHED, note="all test images")  # fmt: skip


def radii() -> None:
    """Robust accuracy at smaller and larger radii than it was trained for, under the quick suite."""
    x, y = published.images("mnist", slice(1000))
    for eps in (0.1, 0.2, 0.4):
        got = uf.evaluate(shipped(), x, y, uf.linf(eps), suite="quick")
        share(f"quick {eps}", f"`{NAME}` within Linf {eps}, suite `quick`", int(got.robust.sum()), len(y),
              note=f"verdict {got.status}", source="this project", verdict=got.status)  # fmt: skip


def labels_alone() -> None:
    """Labels alone: within Linf 0.3, and the smallest L2 change beside that of gradients."""
    net, (x, y) = shipped(), published.images("mnist", slice(100))
    for attack in ("ray(queries=5000)", "hop_skip_jump(queries=5000)"):
        out = uf.run(attack, net, x, y, uf.linf(EPS), access=uf.Access.LABEL)
        share(f"labels, {attack}", f"`{NAME}` within Linf 0.3, `{attack}`", standing(out.status), len(y),
              note="labels alone", source="arXiv:1706.06083")  # fmt: skip
    out = uf.run("square(queries=5000)", net, x, y, uf.linf(EPS), access=uf.Access.SCORES)
    share("scores, square", f"`{NAME}` within Linf 0.3, `square(queries=5000)`", standing(out.status), len(y),
          note="scores alone; published with 5,000 and more", said="Madry 88.3%, TRADES 92.6%",
          source="arXiv:1912.00049")  # fmt: skip
    x, y = x[:50], y[:50]
    own = net(x).argmax(1) == y
    x, y = x[own], y[own]
    far = {
        attack: uf.run(attack, net, x, y, uf.l2(), access=access).distance
        for attack, access in (
            ("boundary(queries=5000)", uf.Access.LABEL), ("hop_skip_jump(queries=5000)", uf.Access.LABEL),
            ("ddn(steps=200)", uf.Access.GRADIENT),
        )
    }  # fmt: skip
    by_gradients = far["ddn(steps=200)"]
    for attack, d in far.items():
        results.write("madry", f"L2, {attack}", {
            "what": f"`{NAME}`: median smallest L2 change, `{attack}`", "published": None,
            "ours": float(d.median()), "unit": "", "n": len(y), "source": "this project", "seeds": [0],
            "note": f"within 1.5: {int((d <= 1.5).sum())}, within 3: {int((d <= 3).sum())}; nearer than gradients lead "
                    f"on {int((d < by_gradients).sum())} of {len(y)}",
            "distances": [round(v, 4) for v in d.tolist()],
        })  # fmt: skip


def picture() -> None:
    """Digits and what they become within L2 4, kept under `runs/`: whom they look like needs people."""
    from PIL import Image

    net, (x, y) = shipped(), published.images("mnist", slice(10))
    moved = uf.last_iterate(parse("pgd(steps=100, step_size=0.05)"), net, x, y, uf.l2(4.0), seed=0)
    seen = net(moved).softmax(1).max(1)
    rows = torch.cat([torch.cat(list(v[:, 0]), 1) for v in (x, moved)], 0)
    results.SCRATCH.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((rows * 255).round().to(torch.uint8).numpy()).resize((10 * 112, 2 * 112), 0)
    image.save(results.SCRATCH / "madry L2 4.png")
    print("called", seen.indices.tolist(), "instead of", y.tolist())


DIGITS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "shifts": {"augment": "shifts(1)"},
}


def digits() -> None:
    """Other recipes of the same cost for the hardened network on digits, two seeds each."""
    data = uf.load_data("digits")
    for name, changed in DIGITS.items():
        found, spent = {}, 0.0
        for seed in (0, 1):
            with TemporaryDirectory() as out:
                recipe = replace(TRAINING["digits-cnn-robust"], **changed)
                spent += train("digits-cnn-robust", out=out, seed=seed, recipe=recipe)["training_seconds"]
                target = resolve("digits-cnn-robust", weights=Path(out) / "digits-cnn-robust.safetensors")
            found[seed] = int(uf.evaluate(target, data, threat=uf.linf(0.1), suite="standard").robust.sum())
        write_digits(name, found, len(data), spent)


def write_digits(name: str, found: dict[int, int], n: int, spent: float) -> None:
    """Write the row of a recipe: how many test digits stay right under attack, by seed."""
    hits, total = sum(found.values()), n * len(found)
    results.write("madry", f"digits, {name}", {
        "what": f"`digits-cnn-robust` within Linf 0.1, suite `standard`: {name}", "published": None,
        "ours": hits / total, "unit": "%", "n": total, "interval": list(wilson(hits, total)), "source": "this project",
        "note": f"seeds {' and '.join(f'{seed}: {right / n:.1%}' for seed, right in found.items())}",
        "seeds": list(found), "cpu_seconds": spent, "changed": DIGITS[name],
    })  # fmt: skip


CASES = {f.__name__: f for f in (robust, clean, radii, labels_alone, picture, digits)}


def main() -> None:
    """Train shortly, or measure the cases that are named, or all."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    todo, known = (words[1:] or list(TRIALS), None) if words[:1] == ["try"] else (words or list(CASES), CASES)
    for name in todo:
        begun = time.process_time()
        short(name) if known is None else known[name]()
        print(f"{name}: {time.process_time() - begun:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
