"""Every way to harden at the same number of forward-backward passes, judged by the suite `standard`.

python -m benchmarks.recipes [digits|mnist] [way ...]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import unfooled as uf
from benchmarks import results
from unfooled.core.data import Data
from unfooled.core.fit import fit
from unfooled.core.threat import Ball
from unfooled.evaluate.hardened import fresh_universals
from unfooled.harden.recipes import WAYS, Way
from unfooled.stats import wilson
from unfooled.targets.zoo import untrained

RAMP = 0.1  # share of all steps over which the radius grows


@dataclass(frozen=True)
class Setting:
    """What every way is given: data, network, threat and passes; each seed is judged on `judged` images of its own."""

    data: str
    net: Callable[[int], nn.Module]
    threat: Ball
    passes: int
    ways: tuple[str, ...]
    seeds: int = 1
    judged: int = 100
    batch_size: int = 128
    lr: float = 2e-3
    precision: str = "bf16"


SETTINGS = {
    "digits": Setting(
        "digits", lambda seed: untrained("digits-cnn", seed), uf.linf(0.15), 96_000,
        ("pgd", "n-fgsm", "nuat", "trades", "fgsm-rs", "gradalign", "free", "mart", "awp", "mixed", "universal",
         "standard", "noise", "dropout"), 3, 265, batch_size=32, lr=4e-3, precision="float32",
    ),
    "mnist": Setting(
        "mnist", lambda seed: untrained("mnist-cnn", seed), uf.linf(0.2), 480_000,
        ("n-fgsm", "pgd", "fgsm-rs", "trades", "nuat", "mixed", "standard"), judged=300,
    ),
}  # fmt: skip


def plan(way: Way, passes: int, n: int) -> tuple[int, int]:
    """Return epochs and rows of an epoch that cost a way as nearly `passes` as whole rows allow."""
    visits = passes // way.passes
    epochs = math.ceil(visits / n)
    return epochs, visits // epochs


def trained(setting: Setting, way: Way, train: Data, seed: int) -> tuple[nn.Module, float, int, int]:
    """Return a network trained one way, its CPU seconds, epochs and rows."""
    epochs, rows = plan(way, setting.passes, len(train))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:rows]
    x, y = train.x[order], train.y[order]
    replays = way.recipe.get("replays", 1)
    steps = replays * math.ceil(rows / setting.batch_size)
    rounds = fresh_universals(Data(x, y, train.name), setting.threat, steps=steps, seed=seed)
    objective = way.objective(setting.threat, seed=seed, ramp=round(RAMP * epochs * steps), rounds=rounds)
    module, began = setting.net(seed), time.process_time()
    fit(
        module, x, y, objective, epochs=epochs, batch_size=setting.batch_size, lr=setting.lr, seed=seed,
        ema=1 - 1 / (1 + 0.1 * epochs * steps), precision=setting.precision,
        channels_last=setting.precision == "bf16", **way.recipe,
    )  # fmt: skip
    return module.eval(), time.process_time() - began, epochs, rows


def measured(setting: Setting, way: Way, train: Data, test: Data, at: int) -> None:
    """Train one way with the seed `at`, judge it on that seed's own test images, and add it to the way's row."""
    case = f"{setting.data}, {way.name}"
    module, seconds, epochs, rows = trained(setting, way, train, at)
    own = slice(at * setting.judged, (at + 1) * setting.judged)
    found = uf.evaluate(module, (test.x[own], test.y[own]), threat=setting.threat, suite="standard", seed=at)
    before = results.read("recipes").get(case, {}) if at else {}
    clean, robust, spent = (
        [*before.get(name, []), value]
        for name, value in (
            ("clean", round(found.clean_accuracy * setting.judged)),
            ("robust", round(found.robust_accuracy * setting.judged)),
            ("seconds", seconds),
        )
    )
    print(case, at, clean[-1], robust[-1], f"{seconds:.1f} s", flush=True)
    seeds = len(robust)
    n = setting.judged * seeds
    results.write(
        "recipes",
        case,
        {
            "what": f"{setting.data}, robust accuracy under {setting.threat!r}, `{way.name}`",
            "published": None,
            "ours": sum(robust) / n, "unit": "%", "n": n, "interval": list(wilson(sum(robust), n)),
            "note": (
                f"clean {sum(clean) / n:.1%}; {epochs} epoch{'s' if epochs > 1 else ''} of {rows:,} images, "
                f"{sum(spent) / seeds:.1f} CPU s; {seeds} seed{'s' if seeds > 1 else ''}"
            ),
            "source": way.paper, "clean": clean, "robust": robust, "seconds": spent, "seeds": list(range(seeds)),
            "passes": setting.passes, "suite": "standard", "epochs": epochs, "rows": rows, "lr": setting.lr,
            "batch_size": setting.batch_size, "precision": setting.precision,
        },
    )  # fmt: skip


def as_good_as_the_best(setting: str) -> list[str]:
    """Return the ways of a setting whose interval reaches the best one's value, best first."""
    entries = {k: e for k, e in results.read("recipes").items() if k.startswith(f"{setting}, ")}
    ranked: list[tuple[str, dict[str, Any]]] = sorted(entries.items(), key=lambda pair: -pair[1]["ours"])
    return [k.split(", ")[1] for k, e in ranked if e["interval"][1] >= ranked[0][1]["ours"]]


def main(words: Iterable[str]) -> None:
    given = list(words)
    names = [w for w in given if w in SETTINGS] or list(SETTINGS)
    for setting in (SETTINGS[name] for name in names):
        train, test = uf.load_data(setting.data, split="train"), uf.load_data(setting.data)
        for seed in range(setting.seeds):
            for name in [w for w in given if w in WAYS] or setting.ways:
                measured(setting, WAYS[name], train, test, seed)
        print(setting.data, "as good as the best:", ", ".join(as_good_as_the_best(setting.data)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
