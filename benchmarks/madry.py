"""Robust MNIST within Linf 0.3 on a CPU: which radius a short training should have, and the network that ships.

python -m benchmarks.madry try [eps ...]      short trainings within several radii, scored at 0.3
python -m benchmarks.madry [case ...]         measure the network of the zoo
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from unfooled.attacks import parse
from unfooled.core.result import Status
from unfooled.stats import wilson
from unfooled.targets import resolve, train
from unfooled.targets.train import TRAINING
from unfooled.targets.zoo import ZOO, untrained

EPS = 0.3
NAME = "mnist-cnn-robust"
SCORED_BY = ("apgd(steps=40)", "apgd_targeted(steps=40, targets=3)", "square(queries=1000)")
RADII = (0.3, 0.34, 0.38, 0.42)
SHORT: dict[str, Any] = {"epochs": 4, "limit": 20_000, "ramp": 1.0}
HELD = 500
"""The last of the training images: short trainings are scored on them, so that the test images choose nothing."""
PUBLISHED = "Croce and Hein 2020, arXiv:2003.01690, table 2"


def short(eps: float) -> None:
    """Train the network of the zoo for a minute or two within eps and score it at EPS on images that it did not see."""
    data = uf.load_data("mnist", split="train", data_dir=published.data_dir())
    recipe = replace(TRAINING[NAME], eps=eps, **SHORT)
    module, begun = untrained(NAME, 0), time.process_time()
    recipe.fit(module, data.take(recipe.limit), seed=0)
    spent, x, y = time.process_time() - begun, data.x[-HELD:], data.y[-HELD:]
    out = uf.run(list(SCORED_BY), module.eval(), x, y, uf.linf(EPS))
    share(
        f"short, within {eps:g}", f"trained within {eps:g} for {recipe.epochs} epochs, Linf 0.3",
        standing(out.status), HELD, source="this project",
        note=f"{HELD} training images that it did not see; {spent:.0f} CPU s, {recipe.limit:,} images; clean "
        f"{right(module, x, y) / HELD:.1%}",
        cpu_seconds=spent, recipe=asdict(recipe), attacks=SCORED_BY,
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
    """Robust accuracy at 0.3 under the whole suite on the first images, beside what was published under AutoAttack."""
    under_standard("standard 0.3", "", slice(1000))


def whole() -> None:
    """The same on all test images, which published numbers are about: an hour."""
    under_standard("standard 0.3, whole", ", all test images", slice(None))


def under_standard(case: str, which: str, rows: slice) -> None:
    """Write robust accuracy at 0.3 under the whole suite."""
    x, y = published.images("mnist", rows)
    begun = time.process_time()
    got = uf.evaluate(shipped(), x, y, uf.linf(EPS), suite="standard")
    share(case, f"`{NAME}` within Linf 0.3, suite `standard`{which}", int(got.robust.sum()), len(y),
          said="Madry 88.5%, TRADES 92.8%, best 96.3%", source=PUBLISHED,
          note=f"{cost()}; {sum(r.forward for r in got.attacks):,} forward passes; verdict {got.status}",
          verdict=got.status, evaluation_seconds=time.process_time() - begun)  # fmt: skip


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


CASES = {f.__name__: f for f in (robust, whole, clean, radii, labels_alone, picture, digits)}


def main() -> None:
    """Train shortly, or measure the cases that are named, or all."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words[:1] == ["try"]:
        for eps in map(float, words[1:] or RADII):
            short(eps)
        return
    for name in words or CASES:
        begun = time.process_time()
        CASES[name]()
        print(f"{name}: {time.process_time() - begun:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
