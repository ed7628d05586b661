"""How straight networks are along a perturbation and how their boundaries lie: tables `linearity` and `geometry`.

python -m benchmarks.directions [linearity] [local] [growth] [distances] [curvature] [planes] [figures] [bird] [network]

Figures go to runs/benchmarks/directions; those that show no picture of MNIST or CIFAR-10 also to docs/images with
`figures`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import nets, published, results
from unfooled import Target, explain, losses
from unfooled.attacks import fgsm, parse
from unfooled.core.ask import Asker
from unfooled.core.data import DATASETS
from unfooled.core.engine import last_iterate
from unfooled.core.explanation import Explanation
from unfooled.core.goal import Targeted
from unfooled.core.run import run
from unfooled.core.threat import l2, linf
from unfooled.targets import ZOO

PICTURES = results.SCRATCH / "directions"
DOCS = results.FOLDER.parents[1] / "docs" / "images"

NETWORKS = {
    "mnist-cnn": "mnist",
    "mnist-cnn-robust": "mnist",
    "maxout": "mnist",
    "softmax": "mnist",
    "digits-cnn": "digits",
    "cifar_resnet20": "cifar10",
}
"""Network: its data. `softmax` is linear: the control of the whole page."""

TITLES = {
    "maxout": "maxout 240 x 2 (MNIST)",
    "softmax": "softmax regression (MNIST), the linear control",
    "cifar_resnet20": "ResNet-20 (CIFAR-10)",
    "mnist-cnn": "`mnist-cnn`",
    "mnist-cnn-robust": "`mnist-cnn-robust`",
    "digits-cnn": "`digits-cnn`",
}
RANGES = {"mnist": (0.25, 10.0), "digits": (0.25, 10.0), "cifar10": (8 / 255, 1.0)}
GOODFELLOW = "Goodfellow et al. 2014, arXiv:1412.6572"
SLOW = ("cifar_resnet20",)


@cache
def target(name: str) -> Target:
    """Return a network as a target with the names of its classes."""
    if name in ZOO:
        module: nn.Module = ZOO[name].build()
    else:
        module = published.NETWORKS[name]() if name in published.NETWORKS else nets.trained(name)
    return Target(module, name=name, classes=DATASETS[NETWORKS[name]].classes)


def right(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` test images that the network gets right."""
    x, y = published.images(NETWORKS[name], slice(0, 2 * count + 20))
    kept = (Asker(target(name)).labels(x) == y).nonzero()[:count, 0]
    return x[kept], y[kept]


def gradient_signs(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the sign of the gradient of the loss at x, which FGSM follows; zero gradients become +1."""
    _, _, slope = Asker(target(name)).gradient(x, lambda scores, rows: losses.cross_entropy(scores, y[rows]))
    return torch.where(slope == 0, 1.0, slope.sign())


def smallest(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and the nearest L2 adversarial examples that DDN finds, where it finds them."""
    found = run("ddn(steps=100)", target(name), x, y, l2())
    return x[found.success], y[found.success], found.x_adv[found.success]


def interval(values: Tensor) -> list[float]:
    """Return the 95% bootstrap interval of the median over examples."""
    drawn = np.random.default_rng(0).choice(values.numpy(), (2000, len(values)))
    return [float(v) for v in np.quantile(np.median(drawn, 1), [0.025, 0.975])]


def write(table: str, case: str, entry: dict[str, Any]) -> None:
    """Put one case into its table and print it."""
    results.write(table, case, entry)
    print(f"{table}/{case}: {entry['what']}: {entry['published']} {entry['ours']} {entry.get('note', '')}", flush=True)


def picture(name: str, made: Explanation, *, page: bool = False) -> None:
    """Keep the figure of a measurement under runs/, and for the page under docs/images."""
    for folder in (PICTURES, *([DOCS] if page else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(made.image(dpi=110))


def linearity(names: list[str]) -> None:
    for name in names:
        n, control = (20, 4) if name in SLOW else (100, 10)
        x, y = right(name, n)
        signs = gradient_signs(name, x, y)
        for reach in RANGES[NETWORKS[name]]:
            began = time.process_time()
            made = explain.logits_along(target(name), x, signs, reach=reach, control=control)
            wide = reach >= 1
            pieces = 2 if wide else 0
            each = made.fit[..., pieces].median(1).values
            words = "three joined pieces" if wide else "one line"
            random = float(made.random_fit[..., pieces].median())
            write("linearity", f"{name} {reach:.3g}", {
                "what": f"R² of {words} for a logit, eps from {-reach:.3g} to {reach:.3g} along the sign of the "
                f"gradient, {TITLES[name]}",
                "published": "piecewise linear" if name == "maxout" and wide else None,
                "ours": round(float(each.median()), 4), "unit": "", "n": len(x), "interval": interval(each),
                "note": f"one logit in twenty is below {float(made.fit[..., pieces].quantile(0.05)):.3f}; "
                + (f"one line {float(made.fit[..., 0].median()):.3f}; " if wide else "")
                + f"along random directions {random:.3f}; another class wins on {float(made.wrong.mean()):.0%} of the "
                f"line (random: {float(made.random_wrong.mean()):.0%})",
                "source": f"{GOODFELLOW}, Fig. 4",
                "r2_line": float(made.fit[..., 0].median()), "r2_pieces": float(made.fit[..., 2].median()),
                "r2_line_random": float(made.random_fit[..., 0].median()),
                "r2_pieces_random": float(made.random_fit[..., 2].median()),
                "wrong": float(made.wrong.mean()), "wrong_random": float(made.random_wrong.mean()),
                "residual": float(made.residual[..., pieces].median()), "seconds": time.process_time() - began,
            })  # fmt: skip
            picture(f"logits-{name}-{reach:.3g}", made)
            if name == "maxout" and wide:
                fours(made, y)


def fours(made: Any, y: Tensor) -> None:
    """Write the logit of class 4 at eps = +10, which Goodfellow's figure shows for one four."""
    ends = made.scores[y == 4, -1, 4]
    write("linearity", "maxout class 4 at 10", {
        "what": "logit of class 4 at eps = +10 for fours, maxout 240 x 2 (MNIST)", "published": "about -400 (one four)",
        "ours": float(ends.median()), "unit": "", "n": len(ends), "interval": interval(ends),
        "note": f"from {float(ends.min()):.0f} to {float(ends.max()):.0f}", "source": f"{GOODFELLOW}, Fig. 4",
    })  # fmt: skip


def local(names: list[str]) -> None:
    for name in names:
        x, y = right(name, 16 if name in SLOW else 64)
        made = explain.local_linearity(target(name), x, y)
        at = int((made.eps - 0.03).abs().argmin())
        ours, theirs = made.remainder[0, at], float(made.remainder[2, at].median())
        same, other = made.at_effect(0), made.at_effect(2)
        write("linearity", f"{name} local", {
            "what": f"what a linear expansion in x misses of a step of 3% along the gradient, {TITLES[name]}",
            "published": "less than in the parameters" if name == "maxout" else None,
            "ours": round(float(ours.median()), 5), "unit": "%", "n": len(x), "interval": interval(ours),
            "note": f"in the parameters {theirs:.1%}; where the linear part foretells half the spread of the logits "
            f"{same:.0%} in x, {other:.0%} in the parameters",
            "source": f"{GOODFELLOW}, sections 3 and 8", "input": float(ours.median()), "parameters": theirs,
            "input_same_effect": same, "parameters_same_effect": other, "rows": made.rows(),
        })  # fmt: skip
        picture(f"local-{name}", made)


def growth(names: list[str]) -> None:
    made = explain.growth(fgsm(), targets=16)
    for case, values, words, told in (
        ("growth", made.attacked, "FGSM", 1.0),
        ("growth random", made.random, "random signs of the same size", 0.5),
    ):
        write("linearity", case, {
            "what": f"exponent s of the change n^s of a linear score in n = 16 to 16,384 dimensions, {words}",
            "published": told, "ours": round(made.slope(values), 3), "unit": "", "n": values.numel(),
            "note": f"largest relative difference from the closed form eps ‖w‖₁: {made.error:.0e}" if told == 1 else
            "closed form eps ‖w‖₂", "source": f"{GOODFELLOW}, section 3", "rows": made.rows(),
        })  # fmt: skip
    picture("explain-growth", made, page=True)


def distances(names: list[str]) -> None:
    for name in names:
        n, lines = (24, 20) if name in SLOW else (40, 60)
        x, _, x_adv = smallest(name, *right(name, n))
        began = time.process_time()
        made = explain.distances(target(name), x, x_adv, directions=lines, tolerance=0.01)
        write("geometry", f"{name} distances", {
            "what": f"median L2 distance to the boundary along random lines over that along DDN's, {TITLES[name]}",
            "published": f"grows as sqrt(d) = {made.dimension**0.5:.1f}", "ours": float(made.ratio.median()),
            "unit": "times", "n": len(x), "interval": interval(made.ratio),
            "note": f"one flat boundary: {made.predicted:.1f}; adversarial {float(made.adversarial.median()):.3g}, "
            f"random {float(made.random.median()):.3g}; {float(made.random.isfinite().double().mean()):.0%} of the "
            f"lines meet a boundary within {made.upper:.3g}",
            "source": "Fawzi et al. 2016, arXiv:1608.08967", "lines": lines, "flat": made.predicted,
            "seconds": time.process_time() - began,
        })  # fmt: skip
        picture(f"distances-{name}", made)


def curvature(names: list[str]) -> None:
    for name in names:
        x, _, x_adv = smallest(name, *right(name, 24 if name in SLOW else 60))
        made = explain.curvature(target(name), x, x_adv)
        mean = made.mean * made.distance
        most, least = (made.principal[:, i] * made.distance for i in (0, -1))
        write("geometry", f"{name} curvature", {
            "what": f"mean curvature of the boundary times its distance (a ball around the image: 1), {TITLES[name]}",
            "published": "flat along most directions" if name == "cifar_resnet20" else None,
            "ours": float(mean.median()), "unit": "", "n": len(x), "interval": interval(mean),
            "note": f"extreme directions {float(least.median()):.2g} to {float(most.median()):.2g} (medians); finite "
            f"step of half the distance", "source": "Fawzi et al. 2017, arXiv:1705.09552",
            "mean": float(made.mean.median()), "largest": float(most.median()), "smallest": float(least.median()),
            "asymmetry": float(made.asymmetry.median()),
        })  # fmt: skip
        picture(f"curvature-{name}", made)


def planes(names: list[str]) -> None:
    for name in names:
        x, _, x_adv = smallest(name, *right(name, 4 if name in SLOW else 20))
        shares = []
        for i in range(len(x)):
            away = float((x_adv[i] - x[i]).norm())
            made = explain.slice_towards(target(name), x[i : i + 1], x_adv[i : i + 1], radius=10 * away, points=50)
            shares.append(1 - made.shares().get(made.label, 0.0))
        other = torch.tensor(shares)
        write("geometry", f"{name} planes", {
            "what": "share of the plane adversarial × random that is not the image's class, within ten adversarial "
            f"distances, {TITLES[name]}",
            "published": None, "ours": float(other.median()), "unit": "%", "n": len(x), "interval": interval(other),
            "note": f"one flat boundary across: 45%; from {float(other.min()):.0%} to {float(other.max()):.0%}",
            "source": "", "flat": 0.45, "shares": shares,
        })  # fmt: skip


def figures(names: list[str]) -> None:
    x, y = right("maxout", 60)
    four = (y == 4).nonzero()[:1, 0]
    page = explain.logits_along(target("maxout"), x[four], gradient_signs("maxout", x[four], y[four]), reach=10)
    picture("explain-logits", page, page=True)
    x, y = right("cifar_resnet20", 1)
    signs = gradient_signs("cifar_resnet20", x, y)
    picture("explain-logits-resnet20", explain.logits_along(target("cifar_resnet20"), x, signs, reach=1), page=True)
    for name in ("mnist-cnn", "mnist-cnn-robust", "digits-cnn"):
        x, _, x_adv = smallest(name, *right(name, 12))
        i = slice(1, 2)
        away = float((x_adv[i] - x[i]).norm())
        picture(f"slice-{name}", explain.slice_towards(target(name), x[i], x_adv[i], radius=10 * away))
        picture(f"slice-{name}-cut", explain.slice_towards(target(name), x[i], x_adv[i], radius=10 * away, clamp=True))
    x, y = right("mnist-cnn", 20)
    began = time.process_time()
    named = {f"a {int(y[i])}": x[i : i + 1] for i in (0, 1, 4)}
    three = explain.slice_through(target("mnist-cnn"), named)
    print(f"a slice of 200 x 200 points: {time.process_time() - began:.2f} CPU seconds", flush=True)
    picture("explain-slice", three, page=True)
    picture("explain-belonging", belonging("digits-cnn", 3, 0.2, points=200), page=True)


def bird(names: list[str]) -> None:
    made = belonging("cifar_resnet20", 2, 8 / 255, points=120)
    print(made.sentence(), flush=True)
    picture("bird", made)
    if made.plane is not None:
        picture("bird-plane", made.plane)
    total = sum(len(group.images) for group in made.groups if not group.people)
    rows = {row["group"]: row for row in made.rows()}
    fooled, noise = rows["fooling images"], rows["uniform noise"]
    write("geometry", "bird", {
        "what": "images that nobody calls a bird and ResNet-20 does: adversarial others within Linf 8/255",
        "published": None, "ours": rows["adversarial others"]["share"], "unit": "%",
        "n": rows["adversarial others"]["n"],
        "note": f"fooling images from noise {fooled['share']:.0%} of {fooled['n']}, uniform noise {noise['share']:.0%} "
        f"of {noise['n']}; natural images of other classes {rows['natural, not bird']['share']:.1%} of "
        f"{rows['natural, not bird']['n']}; of {rows['natural bird']['n']} natural birds it finds "
        f"{rows['natural bird']['share']:.0%}, of adversarial ones {rows['adversarial bird']['share']:.0%}",
        "source": "", "rows": made.rows(), "outsiders": total,
    })  # fmt: skip


def belonging(name: str, label: int, eps: float, *, points: int) -> Any:
    """Return what belongs to a class: natural images, noise, ascended noise, and adversarial images of both sides."""
    x, y = published.images(NETWORKS[name], slice(0, 300))
    own, others = (y == label).nonzero()[:40, 0], (y != label).nonzero()[:40, 0]
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(200, *x.shape[1:], generator=g)
    wanted = torch.full((40,), label)
    into = run("pgd(steps=20)", target(name), x[others], y[others], linf(eps), goal=Targeted(to=wanted)).best
    out = run("pgd(steps=20)", target(name), x[own], y[own], linf(eps)).best
    ascended = last_iterate(
        parse("pgd(steps=40)"), target(name), noise[:40], (wanted + 1) % 10, linf(1.0), to=wanted
    )  # fmt: skip
    word = target(name).classes[label]
    return explain.belonging(
        target(name), label, x, y, points=points, insiders={f"adversarial {word}": out},
        outsiders={"adversarial others": into, "fooling images": ascended, "uniform noise": noise},
    )  # fmt: skip


CASES: dict[str, Callable[[list[str]], None]] = {
    "growth": growth,
    "linearity": linearity,
    "local": local,
    "distances": distances,
    "curvature": curvature,
    "planes": planes,
    "figures": figures,
    "bird": bird,
}


def main() -> None:
    names = [word for word in sys.argv[1:] if word in NETWORKS] or list(NETWORKS)
    for case in [word for word in sys.argv[1:] if word not in NETWORKS] or CASES:
        began = time.process_time()
        CASES[case](names)
        print(f"{case}: {time.process_time() - began:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
