"""Smoothed inputs as a defence: robust accuracy under attacks that ignore it and that know it; table `smoothing`.

python -m benchmarks.smoothing [case ...]     the names of CASES, all of them by default
python -m benchmarks.smoothing flips          look by hand at one bit a pixel, beside the suite
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from scipy.stats import binomtest
from torch import Tensor

import unfooled as uf
from benchmarks import published, results
from unfooled.core.ask import Asker
from unfooled.core.attack import parse
from unfooled.core.engine import last_iterate
from unfooled.core.result import Evaluation
from unfooled.stats import wilson
from unfooled.targets import ZOO

TABLE = "smoothing"
IGNORING = "pgd(steps=40)"
"""Made on the bare network and shown to the defended one."""

STUDY = "google-research/selfstudy-adversarial-robustness"
PUBLISHED = {"blur": 0.05, "bits": 0.03, "resize": 0.29}
"""Robust accuracy left by the best known attack on that study's defences, CIFAR-10 at 4/255, 100 images: a blur, a
discretisation, random transforms (theirs is other random transforms than ours). A bare network there: 3%."""

WORN = (
    "blur(0.5)", "blur(1)", "blur(2)", "median(3)", "median(5)", "bits(1)", "bits(2)", "bits(3)", "bits(4)",
    "jpeg(75)", "jpeg(50)", "jpeg(25)", "resize(0.8)",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One network with its images and threat."""

    name: str
    data: str
    n: int
    eps: float
    said: str
    make: Callable[[], torch.nn.Module]


TARGETS = {
    "digits": Case("digits-cnn", "digits", 100, 0.1, "0.1", lambda: ZOO["digits-cnn"].build()),
    "mnist": Case("mnist-cnn", "mnist", 50, 0.1, "0.1", lambda: ZOO["mnist-cnn"].build()),
    "mnist0.3": Case("mnist-cnn", "mnist", 50, 0.3, "0.3", lambda: ZOO["mnist-cnn"].build()),
    "cifar10": Case("ResNet-20", "cifar10", 20, 4 / 255, "4/255", published.cifar_resnet20),
}
CASES = [f"{name} {worn}" for name in ("digits", "mnist", "cifar10") for worn in ("bare", *WORN)]
CASES += ["mnist0.3 bare", "mnist0.3 bits(1)"]


@cache
def loaded(name: str) -> tuple[uf.Target, Tensor, Tensor, Tensor]:
    """Return the bare target, images, labels, and examples made against it by an attack that knows of no defence."""
    case = TARGETS[name]
    target = uf.Target(case.make(), name=case.name)
    x, y = published.images(case.data, slice(case.n))
    return target, x, y, last_iterate(parse(IGNORING), target, x, y, uf.linf(case.eps))


def measured(name: str, worn: str) -> tuple[Evaluation, list[bool], list[bool]]:
    """Return the evaluation that knows the defence, and what is right on clean images and on those that ignore it."""
    target, x, y, ignoring = loaded(name)
    defended = target if worn == "bare" else uf.harden.wear(target, worn)
    found = uf.evaluate(defended, (x, y), threat=uf.linf(TARGETS[name].eps), suite="standard")
    asker = Asker(defended)
    clean, shown = (asker.labels(each) == y for each in (x, ignoring))
    return found, clean.tolist(), (clean & shown).tolist()


def compared(robust: list[bool], bare: list[bool]) -> str:
    """Return what a defence does to the same images, by an exact test of those that change sides (McNemar)."""
    gained = sum(now and not before for now, before in zip(robust, bare, strict=True))
    lost = sum(before and not now for now, before in zip(robust, bare, strict=True))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    said = "no difference seen" if p >= 0.05 else "helps" if gained > lost else "hurts"
    return f"{said} ({gained} images gained, {lost} lost, p = {p:.2g})"


def run(case: str) -> None:
    """Measure one row."""
    name, _, worn = case.partition(" ")
    about, began = TARGETS[name], time.process_time()
    found, clean, ignoring = measured(name, worn)
    robust = found.robust.tolist()
    entries = results.read(TABLE)
    bare = entries.get(f"{name} bare", {}).get("robust")
    drawn = found.draws > 1  # the number then averages draws, and single images have no verdict
    verdict = compared(robust, bare) if bare and worn != "bare" and not drawn else ""
    n = len(clean)
    kept = round(found.robust_accuracy * n) if drawn else sum(robust)
    entry = {
        "what": f"{about.name}{'' if worn == 'bare' else f' behind {worn}'}, Linf {about.said}, robust accuracy",
        "published": PUBLISHED.get(worn.partition("(")[0]) if name == "cifar10" else None,
        "ours": kept / n, "unit": "%", "n": n, "interval": list(wilson(kept, n)), "source": STUDY,
        "note": ("averaged over draws; on one draw " if drawn else "")
        + f"clean {sum(clean) / n:.0%}; right under examples made without the defence {sum(ignoring) / n:.0%}; "
        f"{found.status}" + (f"; {verdict}" if verdict else ""),
        "verdict": verdict, "clean": sum(clean) / n, "ignoring": sum(ignoring) / n, "robust": robust,
        "status": found.status, "reasons": found.reasons, "findings": [f.id for f in found.findings],
        "averaged_over_draws": found.robust_accuracy if found.draws > 1 else None,
        "suite": "standard", "ignoring_attack": IGNORING, "seeds": [0],
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip
    results.write(TABLE, case, entry)
    print(case, f"{kept}/{n}", entry["note"], f"{entry['cpu_seconds']} s", flush=True)


def flips() -> None:
    """Break images behind one bit a pixel by hand: of the pixels that eps can move across, flip the best, and again."""
    for name in ("digits", "mnist0.3"):
        target, x, y, _ = loaded(name)
        eps = TARGETS[name].eps
        low, high = ((x + sign * eps).clamp(0, 1).round() for sign in (-1, 1))
        stands = [_stands(target, *rows) for rows in zip(low, high, x.round(), y.tolist(), strict=True)]
        entry = results.read(TABLE)[f"{name} bits(1)"]
        differ = sum(a != b for a, b in zip(stands, entry["robust"], strict=True))
        known, hand = entry["note"].partition("; flips")[0], f"{sum(stands)} of {len(stands)}"
        note = f"{known}; flips by hand leave {hand}, {differ} images judged differently"
        results.write(TABLE, f"{name} bits(1)", entry | {"note": note, "by_hand": stands})
        print(name, note, flush=True)


def _stands(target: uf.Target, low: Tensor, high: Tensor, start: Tensor, label: int) -> bool:
    """Return whether greedy flips from `start` [c, h, w] to `low` or `high`, pixel by pixel, leave the label."""

    def lead(shown: Tensor) -> Tensor:
        scores = target.scores(shown).detach()
        own = scores[:, label].clone()
        scores[:, label] = -torch.inf
        return scores.amax(1) - own

    at = (low != high).flatten().nonzero()[:, 0]
    best, rows = float(lead(start[None])), torch.arange(len(at))
    while best <= 0 and len(at):
        tried = start.flatten().repeat(len(at), 1)
        tried[rows, at] = 1 - tried[rows, at]
        leads = lead(tried.view(-1, *start.shape))
        if float(leads.amax()) <= best:
            return True
        start, best = tried[int(leads.argmax())].view_as(start), float(leads.amax())
    return best <= 0


def main() -> None:
    """Measure the cases named, or all."""
    if sys.argv[1:] == ["flips"]:
        return flips()
    for case in sys.argv[1:] or CASES:
        run(case)


if __name__ == "__main__":
    main()
