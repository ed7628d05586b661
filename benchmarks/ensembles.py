"""Ensembles by vote and by mean under attacks that know them, beside Goodfellow et al. 2014's twelve maxout networks.

python -m benchmarks.ensembles [case ...]     fgsm (or fgsm-3), cost, mnist, digits; networks are trained once
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import nets, published, results
from unfooled.attacks import parse
from unfooled.core.ask import Asker
from unfooled.core.engine import last_iterate
from unfooled.core.target import Target
from unfooled.stats import wilson
from unfooled.targets.zoo import digits_cnn

SIZES = (1, 2, 4, 8, 12)
STEPS = 20  # of the attacks whose cost is compared, on every member
IMAGES = {"fgsm": 500, "cost": 150, "mnist": 100, "digits": 100}


@dataclass(frozen=True)
class Kind:
    """How a member is made: its data set, a fresh module, and how it is trained (in bfloat16)."""

    data: str
    what: str
    build: Callable[[], nn.Module]
    epochs: int
    lr: float
    batch_size: int

    learned: int

    def told(self) -> str:
        """Return the recipe in words."""
        return (
            f"{self.what}, {self.epochs} epoch(s) of {self.learned:,} images, AdamW at lr {self.lr:g}, batches of "
            f"{self.batch_size}, bf16"
        )


KINDS = {
    "mnist": Kind("mnist", "two layers of 240 maxout units with dropout", nets.maxout, 5, 2e-3, 256, 60_000),
    "digits": Kind("digits", "the architecture of digits-cnn", digits_cnn, 20, 5e-3, 64, 1000),
}


def member(name: str, seed: int) -> nn.Module:
    """Return the member of this seed, from `runs/` where it was trained before."""
    kind = KINDS[name]
    return nets.kept(
        f"member-{name}-{seed}-{kind.epochs}x{kind.lr:g}", kind.build, lambda: _data(name, "train", kind.learned),
        seed=seed, epochs=kind.epochs, lr=kind.lr, batch_size=kind.batch_size, precision="bf16",
    )[0]  # fmt: skip


def _data(name: str, split: str, first: int) -> tuple[Tensor, Tensor]:
    data = uf.load_data(name, split=split, limit=first, data_dir=str(published.data_dir()))
    return data.x, data.y


class OneByOne(nn.Module):
    """Members that answer in turns: each for `calls` forward passes in a row, then the next."""

    def __init__(self, members: list[nn.Module], calls: int) -> None:
        super().__init__()
        self.members, self.calls, self.asked = nn.ModuleList(members), calls, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the member whose turn it is."""
        at = self.asked // self.calls % len(self.members)
        self.asked += 1
        scores: Tensor = self.members[at](x)
        return scores


class AnyOne(nn.Module):
    """An ensemble of which one member, drawn anew for every forward pass, answers."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of a member drawn from the global random state."""
        scores: Tensor = self.members[int(torch.randint(len(self.members), ()))](x)
        return scores


def entry(
    what: str, hits: int, n: int, *, paper: float | str | None = None, note: str = "", **raw: Any
) -> dict[str, Any]:
    """Return a table's row for a share of n."""
    return {
        "what": what, "published": paper, "ours": hits / n, "unit": "%", "n": n, "interval": list(wilson(hits, n)),
        "note": note, "source": "Goodfellow et al. 2014, arXiv:1412.6572, section 9" if paper else "", **raw,
    }  # fmt: skip


def fgsm(most: int) -> None:
    """Write Goodfellow's experiment: FGSM of eps 0.25 through the ensemble, and through one member."""
    x, y = _data("mnist", "test", IMAGES["fgsm"])
    members = [member("mnist", 0), member("mnist", 1), nets.trained("maxout")]
    members += [member("mnist", seed) for seed in range(2, most - 1)]
    ball, attack, told = uf.linf(0.25), parse("fgsm()"), KINDS["mnist"].told()
    for k in [size for size in (1, 3, 12) if size <= most]:
        whole = uf.ensemble(members[:k], "mean_probabilities")
        wrong = {
            "clean": Asker(whole).labels(x) != y,
            "whole": Asker(whole).labels(last_iterate(attack, whole, x, y, ball)) != y,
        }
        singles = [Asker(whole).labels(last_iterate(attack, Target(m), x, y, ball)) != y for m in members[: min(k, 3)]]
        n, what = len(x), f"{k} maxout network{'s' if k > 1 else ''} (mean of probabilities)"
        results.write("ensembles", f"fgsm-{k}-clean", entry(
            f"MNIST, {what}: clean error", int(wrong["clean"].sum()), n,
            note=f"{told}" + ("; the third 8 epochs in float32" if k > 2 else "")))  # fmt: skip
        results.write("ensembles", f"fgsm-{k}-whole", entry(
            f"MNIST, {what}: error under FGSM eps 0.25 on the whole", int(wrong["whole"].sum()), n,
            paper={1: 0.894, 3: "91.1% (12 networks)", 12: 0.911}[k]))  # fmt: skip
        if k > 1:
            each = [int(s.sum()) for s in singles]
            results.write("ensembles", f"fgsm-{k}-one", entry(
                f"MNIST, {what}: error under FGSM eps 0.25 on one member", round(sum(each) / len(each)), n,
                paper={3: "87.9% (12 networks)", 12: 0.879}[k],
                note=f"mean over {len(each)} attacked members", each=each))  # fmt: skip
        print(k, {w: float(v.double().mean()) for w, v in wrong.items()}, [float(s.double().mean()) for s in singles])


def cost() -> None:
    """Write what a joint and a sequential attack break for the same number of members' gradients, against size."""
    x, y = _data("digits", "test", IMAGES["cost"])
    members, ball = [member("digits", seed) for seed in range(12)], uf.linf(0.1)
    for k in SIZES:
        whole = uf.ensemble(members[:k], "mean_logits")
        right = Asker(whole).labels(x) == y
        broken, seconds = {}, {}
        ways = {
            "joint": (whole, STEPS),
            "one after another": (Target(OneByOne(members[:k], STEPS)), k * STEPS),
            "in turns": (Target(OneByOne(members[:k], 1)), k * STEPS),
        }
        for way, (target, steps) in ways.items():
            began = time.process_time()
            made = last_iterate(parse(f"pgd(steps={steps}, step_size={2.5 / STEPS})"), target, x, y, ball)
            seconds[way] = time.process_time() - began
            broken[way] = int((right & (Asker(whole).labels(made) != y)).sum())
        n = int(right.sum())
        told = "; ".join(f"{way} {b / n:.1%} ({low:.0%}–{high:.0%})" for way, b in broken.items()
                         for low, high in [wilson(b, n)])  # fmt: skip
        results.write("ensembles", f"cost-{k}", {
            "what": f"digits, mean logits of {k}, Linf 0.1: broken by PGD on all at once, on one after another, on one "
            "a step in turns", "published": None, "ours": told, "unit": "", "n": n, "source": "",
            "note": f"{STEPS * k} gradients of members an image each way; "
            f"{seconds['joint'] / len(x) * 1000:.1f}, {seconds['one after another'] / len(x) * 1000:.1f}, "
            f"{seconds['in turns'] / len(x) * 1000:.1f} CPU ms an image",
            "broken": broken, "seconds": seconds, "seeds": list(range(k)),
        })  # fmt: skip
        print(k, told, seconds, flush=True)


def robust(name: str) -> None:
    """Write the robust accuracy of ensembles under suite quick at the zoo's eps."""
    x, y = _data(name, "test", IMAGES[name])
    members, ball = [member(name, seed) for seed in range(12)], uf.linf(0.1)
    told = {"mnist": "MNIST maxout", "digits": "digits"}[name]
    known: dict[int, Tensor] = {}
    for k, rule in ((1, "mean_logits"), (3, "mean_logits"), (3, "vote"), (12, "mean_logits"), (12, "vote"), (3, "any")):
        rows = slice(0, 40 if rule == "any" else len(x))
        target = Target(AnyOne(members[:k])) if rule == "any" else uf.ensemble(members[:k], rule)
        began = time.process_time()
        found = uf.evaluate(target, x[rows], y[rows], threat=ball, suite="quick")
        spent = time.process_time() - began
        note = f"{found.status}; clean {found.clean_accuracy:.1%}; {spent:.0f} CPU s"
        if rule == "mean_logits":
            known[k] = found.x_adv
        if rule == "vote":  # what breaks the mean, shown to the vote
            shown = Asker(target).labels(known[k]) != y
            worst = found.robust & ~shown
            note += f"; with what breaks the mean of logits shown to the vote {float(worst.double().mean()):.1%}"
        note += "".join(f"; {f.id} {f.title}" for f in found.findings if f.consequence in ("suspect", "escalated"))
        names = {"mean_logits": "mean of logits", "vote": "majority vote", "any": "a random member an answer"}
        results.write("ensembles", f"robust-{name}-{k}-{rule}", entry(
            f"{told}, {k} network{'s' if k > 1 else ''}, {names[rule] if k > 1 else 'alone'}: robust accuracy at "
            "Linf 0.1, suite quick", round(found.robust_accuracy * found.n), found.n, note=note,
            paper=None, clean=found.clean_accuracy, status=found.status, seeds=list(range(k)), cpu_seconds=spent,
            broken_by={a.name: a.broken for a in found.attacks}))  # fmt: skip
        print(name, k, rule, found.robust_accuracy, note, flush=True)


CASES: dict[str, Callable[[], None]] = {
    "fgsm": lambda: fgsm(12),
    "fgsm-3": lambda: fgsm(3),
    "cost": cost,
    "mnist": lambda: robust("mnist"),
    "digits": lambda: robust("digits"),
}


def main() -> None:
    for case in sys.argv[1:] or CASES:
        CASES[case]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
