"""Transfer on MNIST: networks trained on disjoint halves (Szegedy et al. 2013, table 4), and model families.

python -m benchmarks.halves [halves] [families]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results, tables
from benchmarks.nets import fully_connected
from unfooled.core.fit import fit
from unfooled.core.target import Target
from unfooled.explain.transfer import Agreement, agreement, alike
from unfooled.norms import L2
from unfooled.stats import wilson
from unfooled.targets.zoo import ZOO

SEEDS = (0, 1, 2)
IMAGES = 500
ATTACK = "lbfgs()"
SOURCE = "arXiv 1312.6199, table 4"
STDDEV = 0.1

FIRST, SECOND, OTHER = "100-100-10 on half 1", "123-456-10 on half 1", "100-100-10 on half 2"


def trained(sizes: tuple[int, ...], x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Return a network of sigmoid units trained with a small weight decay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = fully_connected(*sizes, unit=nn.Sigmoid)
    fit(module, x, y, epochs=12, lr=4e-3, weight_decay=1e-2, seed=seed)
    return module.eval()


def networks(seed: int) -> dict[str, nn.Module]:
    """Return the three networks of one seed; the halves are drawn with it."""
    data = uf.load_data("mnist", split="train", data_dir=published.data_dir())
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    one, two = order[:30_000], order[30_000:]
    return {
        FIRST: trained((784, 100, 100, 10), data.x[one], data.y[one], seed),
        SECOND: trained((784, 123, 456, 10), data.x[one], data.y[one], seed + 100),
        OTHER: trained((784, 100, 100, 10), data.x[two], data.y[two], seed + 200),
    }


def amplified(x: Tensor, x_adv: Tensor, stddev: float = STDDEV) -> Tensor:
    """Return x with the changes of x_adv scaled to a root mean square of `stddev`, cut to the box."""
    change = (x_adv - x).flatten(1)
    scaled = change * (stddev / change.square().mean(1, keepdim=True).sqrt())
    return (x + scaled.view_as(x)).clamp(0, 1)


def wrong(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which inputs a network gets wrong, bool [n]."""
    with torch.no_grad():
        return module(x).argmax(1) != y


def halves() -> None:
    """Made on one network, shown to one of another shape on the same half and to its like on the other half."""
    x, y = published.images("mnist", slice(0, IMAGES))
    luck = torch.Generator().manual_seed(1)
    noisy = x + STDDEV * torch.randn(x.shape, generator=luck)
    told: dict[str, list[Tensor]] = {}
    clean: dict[str, list[Tensor]] = {}
    sizes, matrices, begun = [], [], time.process_time()
    for seed in SEEDS:
        nets = networks(seed)
        out = uf.run(ATTACK, nets[FIRST], x, y, uf.l2(math.inf), seed=seed)
        fooled = ~wrong(nets[FIRST], x, y)
        assert isinstance(out.x_adv, Tensor) and bool(out.success[fooled].all())
        sizes.append(L2.size(out.x_adv - x)[fooled] / 784**0.5)
        matrices.append(agreement(nets, {FIRST: out}, x, y, seed=seed))
        for name, net in nets.items():
            clean.setdefault(name, []).append(wrong(net, x, y))
            shaken = alike(x[fooled], out.x_adv[fooled], 4, (0.0, 1.0), seed)
            for how, points, rows in (
                ("smallest change", out.x_adv, fooled),
                ("amplified", amplified(x, out.x_adv), fooled),
                ("Gaussian noise", noisy, torch.ones_like(fooled)),
                ("Gaussian noise in the box", noisy.clamp(0, 1), torch.ones_like(fooled)),
            ):
                told.setdefault(f"{how}: {name}", []).append(wrong(net, points[rows], y[rows]))
            told.setdefault(f"random, same size: {name}", []).extend(wrong(net, part, y[fooled]) for part in shaken)
    spent = time.process_time() - begun
    size = float(torch.cat(sizes).mean())
    what = {
        "smallest change": f"the smallest changes (`{ATTACK}`)",
        "amplified": f"these changes amplified to a standard deviation of {STDDEV}",
        "Gaussian noise": f"Gaussian noise of standard deviation {STDDEV}",
        "Gaussian noise in the box": "the same noise, cut to values from 0 to 1",
        "random, same size": "random changes of the size of the smallest ones",
    }
    known: dict[str, Any] = {
        f"smallest change: {SECOND}": 0.262,
        f"smallest change: {OTHER}": 0.059,
        f"amplified: {SECOND}": 0.98,
        f"amplified: {OTHER}": 0.43,
        f"Gaussian noise: {FIRST}": "2.6–2.8%",
        f"Gaussian noise: {SECOND}": "2.6–2.8%",
        f"Gaussian noise: {OTHER}": "2.6–2.8%",
    }
    for how, words in what.items():
        for name in (FIRST, SECOND, OTHER):
            if name == FIRST and how in ("smallest change", "amplified"):
                continue
            parts = torch.cat(told[f"{how}: {name}"])
            share("halves", f"{how}: {name}", f"error of {name} on {words}", parts, known.get(f"{how}: {name}"), spent)
    for name in (FIRST, SECOND, OTHER):
        share(
            "halves",
            f"clean: {name}",
            f"error of {name} on the images as they are",
            torch.cat(clean[name]),
            None,
            spent,
        )
    entry = {"what": "mean size of the smallest changes, root mean square over the pixels", "published": 0.062}
    results.write("halves", "size", entry | {"ours": size, "unit": "", "n": sum(map(len, sizes)), "source": SOURCE})
    raw = [row for part in matrices for row in part.rows() if row["target"] != FIRST]
    for name in (SECOND, OTHER):
        rows = [r for r in raw if r["target"] == name]
        n = sum(r["n"] for r in rows)
        hits = round(sum(r["fooled"] * r["n"] for r in rows))
        same = round(sum((r["same"] or 0) * r["fooled"] * r["n"] for r in rows))
        entry = {
            "what": f"share of the changes that fool {name} too which lead it to the same wrong class",
            "published": None, "ours": same / hits, "unit": "%", "n": hits, "interval": list(wilson(same, hits)),
            "note": f"fooled {hits / n:.1%} of {n:,} where both are right before", "rows": rows, "source": SOURCE,
        }  # fmt: skip
        results.write("halves", f"same class: {name}", entry)


def share(table: str, case: str, what: str, parts: Tensor, known: Any, seconds: float) -> None:
    """Write one share of all seeds and images."""
    hits, n = int(parts.sum()), len(parts)
    entry = {
        "what": what, "published": known, "ours": hits / n, "unit": "%", "n": n, "interval": list(wilson(hits, n)),
        "note": f"{len(SEEDS)} seeds", "source": SOURCE, "cpu_seconds": round(seconds),
    }  # fmt: skip
    results.write(table, case, entry)


# ---- model families

EPS = 2.0
"""L2 radius of all attacks on the families."""

GRADIENT, SCORES, LABELS = "bim(steps=40, step_size=0.1)", "square(queries=500)", "hop_skip_jump(queries=500)"


def families() -> dict[str, tuple[Any, str, int]]:
    """Return by name each target, the attack that its access allows, and how many images are attacked."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    data = uf.load_data("mnist", split="train", data_dir=published.data_dir())
    flat, y = data.x.flatten(1).numpy(), data.y.numpy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        softmax = fully_connected(784, 10)
    fit(softmax, data.x, data.y, epochs=8, lr=2e-3)

    def fitted(estimator: Any, n: int, name: str) -> Target:
        return uf.targets.sklearn(estimator.fit(flat[:n], y[:n]), name=name)

    return {
        "softmax regression": (softmax.eval(), GRADIENT, 300),
        "256x2": (published.mnist_256x2(), GRADIENT, 300),
        "mnist-cnn": (ZOO["mnist-cnn"].build(), GRADIENT, 300),
        "RBF SVM": (fitted(SVC(C=5, gamma=0.02), 3000, "RBF SVM"), SCORES, 60),
        "5 nearest neighbours": (fitted(KNeighborsClassifier(5), 5000, "5 nearest neighbours"), LABELS, 60),
        "forest": (fitted(RandomForestClassifier(100, random_state=0), 20_000, "forest"), LABELS, 60),
        "decision tree": (fitted(DecisionTreeClassifier(random_state=0), 20_000, "decision tree"), LABELS, 60),
    }


def family_matrix() -> Agreement:
    """Attack every family by what it allows and show the points that fool it to all the others."""
    x, y = published.images("mnist", slice(0, 300))
    made = families()
    targets = {name: target for name, (target, _, _) in made.items()}
    parts = []
    for name, (target, attack, n) in made.items():
        begun = time.process_time()
        out = uf.run(attack, target, x[:n], y[:n], uf.l2(EPS))
        one = agreement(targets, {name: out}, x[:n], y[:n], draws=1)
        parts += one.sources
        rows = one.rows()
        others = [r for r in rows if r["target"] != name and r["n"]]
        told = [f"{r['target']} {r['fooled']:.0%}" + (f" ({r['same']:.0%})" if r["same"] else "") for r in others]
        mean, noise = (sum(r[k] for r in others) / len(others) for k in ("fooled", "noise"))
        right = sum(s != "misclassified" for s in out.status)
        entry = {
            "what": f"made on {name} with `{attack}` at L2 {EPS}: fooled (of these into the same wrong class)",
            "published": None, "ours": ", ".join(told) or "none", "unit": "", "n": int(out.success.sum()),
            "note": f"fools its source on {int(out.success.sum())} of {right}; others {mean:.0%} on average, "
                    f"random changes of the same size {noise:.1%}",
            "rows": rows, "cpu_seconds": round(time.process_time() - begun), "source": SOURCE,
        }  # fmt: skip
        results.write("halves", f"family: {name}", entry)
    return Agreement(tuple(parts))


def matrix() -> None:
    """Measure the families and draw the matrix."""
    (tables.ROOT / "docs" / "images" / "explain-families.png").write_bytes(family_matrix().image(dpi=110))


PARTS: dict[str, Callable[[], None]] = {"halves": halves, "families": matrix}


def main() -> None:
    """Measure the parts named on the command line, by default all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
