"""What goes wrong in adversarial training, provoked through `harden.fit`; and how large a network it takes.

python -m benchmarks.collapse [one-step] [overfitting] [infinite] [capacity] [draw]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import results
from unfooled import harden
from unfooled.core.attack import parse
from unfooled.core.fit import Objective, Recipe, fit
from unfooled.core.threat import Ball
from unfooled.harden import objectives
from unfooled.harden.trainer import Hardened, Line
from unfooled.stats import wilson
from unfooled.targets.zoo import untrained

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "harden-collapse.png"
PGD, FGSM = "pgd(steps=7, step_size=0.3)", "fgsm()"


def judged(module: nn.Module, data: str, threat: Ball, n: int) -> dict[str, Any]:
    """Return clean and robust hits of a network on the first n test images under the suite `standard`."""
    found = uf.evaluate(module.eval(), data, threat=threat, suite="standard", limit=n)
    return {"n": n, "clean": round(found.clean_accuracy * n), "robust": round(found.robust_accuracy * n)}


def share(table: str, case: str, what: str, hits: int, n: int, note: str, **raw: Any) -> None:
    """Write a row that is a share with its interval."""
    row = {"what": what, "published": None, "ours": hits / n, "unit": "%", "n": n, "interval": list(wilson(hits, n))}
    results.write(table, case, row | {"note": note, "source": "", "seed": 0, **raw})
    print(table, case, f"{hits / n:.1%}", note, flush=True)


# ---- one-step training of a robust network


ONE_STEP = uf.linf(0.4)  # the network stands at 0.3
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "fgsm": lambda: objectives.adversarial(parse(FGSM), ONE_STEP),
    "n-fgsm": lambda: objectives.noisy_step(ONE_STEP),
    "gradalign": lambda: objectives.aligned(objectives.adversarial(parse(FGSM), ONE_STEP), ONE_STEP, weight=2.0),
    "pgd": lambda: objectives.adversarial(parse(PGD), ONE_STEP),
}


def one_step() -> None:
    """Go on training the robust MNIST network of the zoo with one-step examples, and with what should not collapse."""
    train = uf.load_data("mnist", split="train", limit=3000)
    for name, objective in OBJECTIVES.items():
        module, began = uf.targets.resolve("mnist-cnn-robust").module.requires_grad_(), time.process_time()
        recipe = Recipe(epochs=6, batch_size=64, lr=5e-3, precision="bf16", channels_last=True)
        done = harden.fit(module, (train.x, train.y), objective(), threat=ONE_STEP, recipe=recipe, validation=100)
        last, seconds = done.lines[-1], time.process_time() - began
        print(name, done.sentence(), flush=True)
        kept = judged(module, "mnist", ONE_STEP, 100)
        alarm = f"; alarm in epoch {last.epoch}, training ended" if "catastrophic" in last.alarm else "; no such alarm"
        share(
            "collapse", f"one-step, {name}, last",
            f"`{name}` training of a robust network, mnist, {ONE_STEP!r}: last epoch under {done.judge}",
            round(last.strong * done.n), done.n, f"{last.weak:.1%} under one step, clean {last.clean:.1%}{alarm}",
            lines=done.rows(), alarms=list(done.alarms), seconds=seconds, settings=done.settings,
        )  # fmt: skip
        share(
            "collapse", f"one-step, {name}, kept",
            f"the same, epoch {done.chosen} that was kept, suite `standard`", kept["robust"], kept["n"],
            f"clean {kept['clean'] / kept['n']:.1%}; {len(done.lines)} epochs, {seconds:.0f} CPU s",
        )  # fmt: skip


# ---- many epochs on few images


OVERFITTED = uf.linf(0.15)


def overfitted(**changed: Any) -> tuple[nn.Module, Hardened, float]:
    """Return a network after forty epochs of PGD training on 200 digits, how that went, and CPU seconds."""
    data, began = uf.load_data("digits", split="train"), time.process_time()
    module = untrained("digits-cnn", 0)
    recipe = Recipe(epochs=40, batch_size=32, lr=5e-3, schedule="constant", ema=changed.pop("ema", 0.0))
    done = harden.fit(
        module, (data.x[:200], data.y[:200]), objectives.adversarial(parse(PGD), OVERFITTED),
        threat=OVERFITTED, recipe=recipe, validation=(data.x[200:300], data.y[200:300]), **changed,
    )  # fmt: skip
    return module, done, time.process_time() - began


def overfitting() -> None:
    """Compare the best epoch, the last one, and the last one's average of weights."""
    for name, settings in (
        ("best", {}),
        ("last", {"choose": "last"}),
        ("last, ema 0.99", {"choose": "last", "ema": 0.99}),
    ):
        module, done, seconds = overfitted(**settings)
        print(name, done.sentence(), flush=True)
        kept, at = judged(module, "digits", OVERFITTED, 100), done.best
        told = next((f"; said in epoch {line.epoch}" for line in done.lines if "robust" in line.alarm), "; no alarm")
        share(
            "collapse", f"overfitting, {name}",
            f"PGD training on 200 digits for 40 epochs, {OVERFITTED!r}, {name} epoch, suite `standard`",
            kept["robust"], kept["n"],
            f"epoch {done.chosen}: training loss {at.loss:.3f}; clean {kept['clean'] / kept['n']:.1%}"
            f"{told}; {seconds:.0f} CPU s",
            lines=done.rows(), alarms=list(done.alarms), settings=done.settings,
        )  # fmt: skip


# ---- a loss that is not finite


def infinite() -> None:
    """Train softmax regression at a rate so large that its scores overflow."""
    data = uf.load_data("digits", split="train", limit=400)  # 300 are trained on
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    ball = uf.linf(0.05)
    recipe = Recipe(epochs=10, batch_size=32, lr=8e36, optimizer="sgd")
    done = harden.fit(
        module, (data.x, data.y), objectives.adversarial(parse(FGSM), ball), threat=ball, recipe=recipe,
        validation=100,
    )  # fmt: skip
    print(done.sentence(), flush=True)
    best = done.best
    results.write(
        "collapse",
        "not finite",
        {
            "what": f"softmax regression on digits at lr {recipe.lr:g}: times the loss was not finite and rolled back",
            "published": None, "ours": sum("not finite" in alarm for alarm in done.alarms), "unit": "", "n": done.n,
            "note": (
                f"{done.alarms[0] if done.alarms else 'no alarm'} Ended with {len(done.lines)} epochs; kept epoch "
                f"{done.chosen}, clean {best.clean:.1%}, {best.strong:.1%} under {done.judge} at {done.threat}"
            ),
            "source": "", "alarms": list(done.alarms), "lines": done.rows(), "seed": 0, "settings": done.settings,
        },
    )  # fmt: skip


# ---- width and data


CAPACITY = uf.linf(0.15)
STEPS = 190  # of 32 images, for every network and every share of the data


def wide(width: float, seed: int = 0) -> nn.Module:
    """Return digits-cnn with `width` times its filters and units."""
    a, b, c = (round(width * units) for units in (16, 32, 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * b, c), nn.ReLU(), nn.Linear(c, 10),
        )  # fmt: skip


def grown(width: float, x: Tensor, y: Tensor, how: str) -> None:
    """Train one network on some of the data and write its row."""
    objective = objectives.standard() if how == "standard" else objectives.adversarial(
        parse(PGD), CAPACITY, ramp=STEPS // 10
    )  # fmt: skip
    module, began = wide(width), time.process_time()
    epochs = round(STEPS / math.ceil(len(x) / 32))
    fit(module, x, y, objective, epochs=epochs, batch_size=32, lr=4e-3, ema=0.95)
    seconds, size = time.process_time() - began, sum(p.numel() for p in module.parameters())
    found = judged(module, "digits", CAPACITY, 100)
    share(
        "capacity", f"width {width:g}, {len(x)} images, {how}",
        f"digits, {CAPACITY!r}, {how} training, width {width:g} ({size:,} parameters), {len(x)} images: robust",
        found["robust"], found["n"],
        f"clean {found['clean'] / found['n']:.1%}; {epochs} epochs, {seconds:.1f} CPU s",
        clean=found["clean"], robust=found["robust"], parameters=size, images=len(x), epochs=epochs, suite="standard",
    )  # fmt: skip


def capacity() -> None:
    """Measure width at all images, then the share of images at width 1, both with as many steps."""
    data = uf.load_data("digits", split="train")
    for width, images in ((0.25, 1000), (1, 1000), (0.5, 1000), (2, 1000), (1, 125), (1, 500), (1, 250)):
        for how in ("pgd", "standard"):
            grown(width, data.x[:images], data.y[:images], how)


def draw() -> None:
    """Draw the curve of the training that overfits, with its alarm."""
    entry = results.read("collapse")["overfitting, last"]
    lines = tuple(Line(**{k: v for k, v in line.items() if k != "chosen"}) for line in entry["lines"])
    asked = {name: entry["settings"][name] for name in ("judge", "weak", "threat")}
    chosen = max(lines, key=lambda line: line.strong).epoch
    PICTURE.write_bytes(Hardened(lines, chosen, tuple(entry["alarms"]), "adversarial", 100, **asked).image())


CASES: dict[str, Callable[[], None]] = {
    "one-step": one_step, "overfitting": overfitting, "infinite": infinite, "capacity": capacity, "draw": draw,
}  # fmt: skip


def main() -> None:
    for name in sys.argv[1:] or CASES:
        CASES[name]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
