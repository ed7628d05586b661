"""Inputs that mean nothing and Goodfellow 2014's networks, measured: tables `rubbish`, `rounds` and `agreement`.

python -m benchmarks.rubbish [case ...]     rubbish, agreement, rounds-digits-direct, ...: the names of CASES
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import nets, published, results
from unfooled import Target, fooling
from unfooled.core.ask import Asker
from unfooled.core.data import load_data
from unfooled.core.explanation import Explanation
from unfooled.fooling.rubbish import Head, certain
from unfooled.stats import wilson
from unfooled.targets import ZOO
from unfooled.targets.train import TRAINING
from unfooled.targets.zoo import untrained

PICTURES = results.SCRATCH / "rubbish"
MNIST, DIGITS, CIFAR = (1, 28, 28), (1, 8, 8), (3, 32, 32)
RUNS = 5


def write(table: str, case: str, entry: dict[str, Any]) -> None:
    """Put one case into its table and print it."""
    results.write(table, case, {"source": "Goodfellow et al. 2014, arXiv:1412.6572"} | entry)
    print(f"{table}/{case}: {entry['what']}: {entry['published']} {entry['ours']} {entry.get('note', '')}", flush=True)


def picture(name: str, made: Explanation) -> None:
    """Keep the figure of a measurement under `runs/`."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.png").write_bytes(made.image())


@cache
def network(name: str) -> nn.Module:
    """Return a network of the zoo, of others, or of this folder by its name."""
    if name in ZOO:
        return ZOO[name].build()
    return published.NETWORKS[name]() if name in published.NETWORKS else nets.trained(name)


def head(name: str) -> Head:
    """Return how a network's scores become confidences."""
    return "sigmoid" if name in nets.RECIPES and nets.RECIPES[name].head == "sigmoid" else "softmax"


def percent(value: float | None) -> str:
    """Return a share in words of a note."""
    return "none" if value is None else f"{value:.1%}"


# ---- noise

NOISE: dict[str, tuple[str, float | None, str]] = {
    "maxout": ("maxout 240 x 2, softmax", 0.9835, "92.8%"),
    "maxout-sigmoid": ("the same with independent sigmoids", 0.68, "87.9%"),
    "softmax": ("softmax regression", 0.598, "70.8%"),
    "softmax-short": ("softmax regression after one epoch", 0.598, "70.8%"),
    "rbf": ("shallow RBF network", 0.0, "none"),
    "mnist-cnn": ("mnist-cnn", None, ""),
    "mnist-cnn-robust": ("mnist-cnn-robust", None, ""),
    "digits-cnn": ("digits-cnn", None, ""),
    "digits-cnn-robust": ("digits-cnn-robust", None, ""),
}


def rubbish() -> None:
    """Measure the rubbish test on every network."""
    for name, (title, share, sure) in NOISE.items():
        shape, data = (DIGITS, "digits") if name.startswith("digits") else (MNIST, "mnist")
        x, y = published.images(data)
        got = fooling.rubbish(Target(network(name), name=name), shape, head=head(name), natural=x)
        clean = float((Asker(network(name)).labels(x) != y).double().mean())
        assert got.natural is not None
        natural = float((got.natural > got.threshold).double().mean())
        note = f"confidence on errors {percent(got.rows()[0]['confidence'])}" + (f" (paper {sure})" if sure else "")
        note += f"; {natural:.1%} of natural images above 0.5, clean error {clean:.2%}"
        if name == "maxout":
            most = max(got.rows()[1:], key=lambda row: row["errors"])
            least = min(got.rows()[1:], key=lambda row: row["errors"])
            note += (
                f"; called {most['class']} most often, {most['errors'] / got.rows()[0]['errors']:.1%} of the errors "
                f"(paper: 5, 45.3%), {least['class']} least, {least['errors']} times (paper: 8, never)"
            )
        _noise_row(name, f"N(0, I) called some class, {title}", share, got, note)
    net = network("cifar_resnet20")
    scales = {
        "cifar_resnet20": (net, "N(0, I) in [0, 1] units", "about four times the spread that it normalises to"),
        "cifar_resnet20-normalised": (
            net.module,
            "N(0, I) in its normalised units",
            "normalised pixels have deviation 1",
        ),
    }
    for case, (module, what, scale) in scales.items():
        got = fooling.rubbish(Target(module, name="ResNet-20"), CIFAR, n=1000)
        counts = sorted(((row["errors"], row["class"]) for row in got.rows()[1:]), reverse=True)
        note = f"paper: a convolutional maxout net; confidence on errors {percent(got.rows()[0]['confidence'])}"
        note += " (paper 84.4%)"
        note += f"; {scale}; {counts[0][0] / max(1, got.rows()[0]['errors']):.1%} of the errors are one class"
        _noise_row(case, f"ResNet-20 on CIFAR-10, {what}", 0.934, got, note)


def _noise_row(case: str, what: str, share: float | None, got: Any, note: str) -> None:
    first = got.rows()[0]
    entry = {"what": what, "published": share, "ours": got.rate, "unit": "%", "n": first["n"]}
    entry |= {"interval": first["interval"], "note": note, "rows": got.rows(), "sentence": got.sentence()}
    write("rubbish", case, entry)
    picture(f"noise-{case}", got)


def step() -> None:
    """Measure one gradient-sign step from noise towards every class on CIFAR-10."""
    net = network("cifar_resnet20")
    classes = list(load_data("cifar10", data_dir=published.data_dir()).classes or ())
    got = {eps: fooling.aimed(Target(net.module, classes=classes), CIFAR, eps=eps, n=50) for eps in (0.25, 0.5, 1.0)}
    best = max(got.values(), key=lambda one: one.rows()[0]["share"])
    rows = best.rows()
    tried = ", ".join(f"{eps:g}: {one.rows()[0]['share']:.1%}" for eps, one in got.items())
    hardest = min(rows[1:], key=lambda row: row["share"])
    note = f"eps in normalised units: {tried}; hardest class {hardest['class']} {hardest['share']:.1%} "
    note += f"(paper: airplane 24.7%); without the step {rows[0]['without the step']:.1%}; the paper names no eps"
    entry = {"what": "ResNet-20, one gradient-sign step turns noise into a given class", "published": 0.753}
    entry |= {"ours": rows[0]["share"], "unit": "%", "n": rows[0]["n"], "interval": rows[0]["interval"]}
    write("rubbish", "step-cifar_resnet20", entry | {"note": note, "rows": {str(e): o.rows() for e, o in got.items()}})
    picture("step", best)


# ---- fooling images: random ones beside them, transfer, blur, removal


@cache
def evolved(name: str, encoding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return fooling images [10 * RUNS, ...] of a network, their classes and its confidence in them."""
    shape = DIGITS if name.startswith("digits") else MNIST
    found = [
        fooling.evolve(network(name), shape, encoding=encoding, generations=300, until=0.9999, seed=seed)
        for seed in range(RUNS)
    ]
    images, classes, sure = (
        torch.cat([getattr(e, part) for e in found]) for part in ("images", "classes", "confidence")
    )
    return images, classes, sure


def random() -> None:
    """Set random images beside fooling and natural ones."""
    for name in ("mnist-cnn", "mnist-cnn-robust", "maxout", "lenet", "digits-cnn", "digits-cnn-robust"):
        shape, data = (DIGITS, "digits") if name.startswith("digits") else (MNIST, "mnist")
        others = {"fooling": torch.cat([evolved(name, e)[0] for e in ("direct", "cppn")])}
        others["natural"] = published.images(data)[0]
        got = fooling.random_images(network(name), shape, compare=others)
        _random_row(name, "low on ImageNet", got)
    got = fooling.random_images(
        network("cifar_resnet20"), CIFAR, n=2000, compare={"natural": published.images("cifar10")[0]}
    )
    _random_row("cifar_resnet20", "low on ImageNet", got)


def random_imagenet() -> None:
    """Set random images beside natural ones on a network of 1,001 classes."""
    natural = published.images("imagenet", list(range(0, 1000, 10)))[0]
    got = fooling.random_images(network("mobilenet_v2"), (3, 224, 224), n=100, compare={"natural": natural})
    _random_row("mobilenet_v2", "low", got)


def _random_row(name: str, said: str, got: fooling.Sureness) -> None:
    first, *others = got.rows()
    note = f"{first['above 0.5']:.1%} above 0.5, {first['above 0.99']:.1%} above 0.99"
    note += "".join(f"; {row['images']} images {row['median']:.2%} ({row['n']:,})" for row in others)
    entry = {"what": f"median confidence in random images U[0, 1], {name}", "published": said, "ours": first["median"]}
    entry |= {"unit": "%", "n": first["n"], "note": note, "rows": got.rows(), "source": "Nguyen et al. 2014"}
    write("rubbish", f"random-{name}", entry)
    picture(f"random-{name}", got)


CARRIED = ("mnist-cnn", "mnist-cnn-robust", "maxout", "mnist_256x2", "lenet")


def carried() -> None:
    """Show the fooling images of one network to the others."""
    for encoding in ("direct", "cppn"):
        for name in CARRIED:
            images, classes, sure = evolved(name, encoding)
            got = fooling.carried_over(images, classes, {other: network(other) for other in CARRIED})
            rows = {row["target"]: row for row in got.rows()}
            others = [row for other, row in rows.items() if other != name]
            mean = sum(row["called the class"] for row in others) / len(others)
            note = f"its own median confidence {float(sure.median()):.2%}; the class is seen by " + ", ".join(
                f"{row['target']} {row['called the class']:.0%} ({row['mean confidence']:.0%} sure)" for row in others
            )
            note += f"; pixels shuffled at most {max(row['pixels shuffled'] for row in others):.0%}"
            note += "; mnist_256x2 was trained to scores of 0 and 1, so that its softmax stays below 30%"
            entry = {"what": f"{encoding} images made for {name}, called that class by four others", "published": None}
            entry |= {"ours": mean, "unit": "%", "n": len(images), "note": note, "rows": got.rows()}
            write("rubbish", f"carried-{encoding}-{name}", entry | {"source": "Nguyen et al. 2014"})
            picture(f"carried-{encoding}-{name}", got)


SIGMAS = (0, 0.5, 1, 1.5, 2, 2.5, 3)


def blurred() -> None:
    """Blur fooling images; the network itself, the hardened one and another judge them."""
    natural = _head_of("mnist", 1000)
    for encoding in ("direct", "cppn"):
        images, classes, _ = evolved("mnist-cnn", encoding)
        got = {
            judge: fooling.blurred(network(judge), images, classes, SIGMAS, natural=natural)
            for judge in ("mnist-cnn", "mnist-cnn-robust", "maxout")
        }
        note = "; ".join(f"judged by {judge}: {_by_sigma(one)}" for judge, one in got.items())
        seen = {row["sigma"]: row["called the class"] for row in got["mnist-cnn-robust"].rows()}
        entry = {"what": f"{encoding} images made for mnist-cnn, blurred: the class is seen by mnist-cnn-robust"}
        entry |= {"published": "digits come to be seen (claim)", "n": len(images), "note": note}
        entry |= {"ours": ", ".join(f"{seen[s]:.0%} at {s}" for s in (0, 1, 2, 3)), "unit": ""}
        entry |= {"rows": {judge: one.rows() for judge, one in got.items()}, "source": "Nguyen et al. 2014"}
        write("rubbish", f"blurred-{encoding}", entry)
        for judge, one in got.items():
            picture(f"blurred-{encoding}-{judge}", one)
        _gallery(encoding, images, classes)


def _by_sigma(got: fooling.Blurred) -> str:
    """Return the shares called the wanted class, and what controls say at two pixels."""
    rows = got.rows()
    shares = ", ".join(f"{row['called the class']:.0%} at {row['sigma']:g}" for row in rows)
    two = rows[SIGMAS.index(2)]
    return f"{shares} (at 2: pixels shuffled {two['pixels shuffled']:.0%}, natural images {two['natural images']:.0%})"


def ablated() -> None:
    """Take parts of fooling images away."""
    natural = _head_of("mnist", 1000)
    for encoding in ("direct", "cppn"):
        images, classes, _ = evolved("mnist-cnn", encoding)
        got = fooling.ablated(network("mnist-cnn"), images, classes, natural=natural)
        rows = {(row["images"], row["removed"]): row for row in got.rows()}
        one = rows["fooling", "one patch greyed, mean"]
        note = "; ".join(
            f"{removed} {rows['fooling', removed]['after']:.0%} (natural {rows['natural', removed]['after']:.0%})"
            for removed in (
                "one patch greyed, worst",
                "one patch shuffled, mean",
                "centre greyed",
                "as many others greyed",
            )
        )
        note += f"; natural, one patch greyed {rows['natural', 'one patch greyed, mean']['after']:.0%}"
        entry = {"what": f"{encoding} images made for mnist-cnn, mean confidence with one of 16 patches greyed"}
        entry |= {"published": "little lost", "ours": one["after"], "unit": "%", "n": len(images), "note": note}
        write("rubbish", f"ablated-{encoding}", entry | {"rows": got.rows(), "source": "Nguyen et al. 2014"})
        picture(f"ablated-{encoding}", got)


def _head_of(data: str, n: int) -> tuple[Tensor, Tensor]:
    return published.images(data, slice(n))


def _gallery(encoding: str, images: Tensor, classes: Tensor) -> None:
    """Draw the images of the first run as they are and blurred."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (sigma, line) in enumerate(zip((0, 1, 2, 3), figure.subplots(4, 10), strict=True)):
        shown = fooling.low_pass(images[:10], sigma)
        for axes, image, label in zip(line, shown, classes[:10].tolist(), strict=True):
            axes.imshow(image[0].numpy(), cmap="gray")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(str(label))
        line[0].set_ylabel(f"sigma {sigma}")
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"blurred-gallery-{encoding}.png", dpi=120)


# ---- rounds of retraining


def rounds(data: str, encoding: str, *, count: int, epochs: int, ema: float) -> None:
    """Retrain a zoo architecture with fooling images for several rounds, on at most 12,000 training images.

    Whether what a fresh evolution no longer finds is gone or only harder to find: a longer evolution and
    gradient ascent against the last network.
    """
    name = {"digits": "digits-cnn", "mnist": "mnist-cnn"}[data]
    recipe, train = TRAINING[name], load_data(data, split="train", data_dir=published.data_dir()).take(12_000)
    shape = tuple(train.x.shape[1:])

    def make(classes: int) -> nn.Module:
        module = untrained(name, int(torch.randint(2**31, ()).item()))
        assert isinstance(module, nn.Sequential)
        module[-1] = nn.Linear(module[-1].in_features, classes)
        return module

    seen: list[Target] = []

    def evolve(target: Target, seed: int) -> tuple[Tensor, Tensor]:
        seen.append(target)
        found = [
            fooling.evolve(
                target,
                shape,
                encoding=encoding,
                classes=range(10),
                generations=150,
                population=128,
                seed=100 * seed + i,
            )
            for i in range(2)
        ]
        return torch.cat([e.images for e in found]), torch.cat([e.confidence for e in found])

    began = time.process_time()
    got = fooling.rounds(
        make, train.x, train.y, evolve, test=published.images(data), rounds=count,
        epochs=epochs, lr=recipe.lr, batch_size=recipe.batch_size, ema=ema,
        on_round=lambda one: print(f"  {data} {encoding}: {float(one.confidence.median()):.4%}", flush=True),
    )  # fmt: skip
    rows = got.rows()
    medians = " ".join(f"{100 * row['median confidence']:.6g}" for row in rows)
    note = (
        f"medians by round, %: {medians}; lowest of the last {rows[-1]['lowest confidence']:.2%}; older fooling images "
    )
    note += f"refused {percent(rows[-1]['old fooling images refused'])}, natural ones "
    note += f"{rows[-1]['natural images refused']:.2%}; clean accuracy {rows[0]['clean accuracy']:.2%} before, "
    note += f"{rows[-1]['clean accuracy']:.2%} after"
    longer = fooling.evolve(
        seen[-1], shape, encoding=encoding, classes=range(10), generations=1000, population=128, seed=9
    )
    climbed = fooling.ascend(seen[-1], shape, list(range(10)), seed=9)
    found = {
        "1,000 generations": float(longer.confidence.median()),
        "gradient ascent": float(climbed.confidences.median()),
    }
    note += "; against the last network " + ", ".join(f"{way} {share:.2%}" for way, share in found.items())
    entry = {
        "what": f"{name}, {encoding}: median confidence of 150 fresh generations after {count} rounds",
        "n": len(got.each[-1].images),
    }
    entry |= {"published": "99.99% (MNIST), 11.7% (ImageNet, cppn)", "ours": rows[-1]["median confidence"], "unit": "%"}
    entry |= {
        "found": found,
        "note": note,
        "rows": rows,
        "seconds": time.process_time() - began,
        "source": "Nguyen et al. 2014",
    }
    write("rounds", f"{data}-{encoding}", entry)
    picture(f"rounds-{data}-{encoding}", got)


# ---- agreement


def fast_gradient_sign(name: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return x + eps * sign of the gradient of the network's own training cost, not clipped, as the paper has it."""

    def cost(scores: Tensor, rows: Tensor) -> Tensor:
        if head(name) == "softmax":
            return F.cross_entropy(scores, y[rows], reduction="none")
        hot = F.one_hot(y[rows], scores.shape[1]).to(scores)
        return F.binary_cross_entropy_with_logits(scores, hot, reduction="none").sum(1)

    return x + eps * Asker(network(name)).gradient(x, cost)[2].sign()


def agreement() -> None:
    """Measure FGSM at 0.25 on each network, and whether others give maxout's examples maxout's class."""
    x, y = published.images("mnist")
    says: dict[str, Tensor] = {}
    attacked = fast_gradient_sign("maxout", x, y, 0.25)
    figures = {"maxout": (0.894, "97.6%"), "softmax": (0.999, "79.3%"), "rbf": (0.554, "1.2%")}
    titles = {"maxout": "maxout 240 x 2", "softmax": "softmax regression", "rbf": "shallow RBF network"}
    for name, (share, sure) in figures.items():
        asker = Asker(network(name))
        says[name] = asker.labels(attacked)
        own = fast_gradient_sign(name, x, y, 0.25)
        got, clean = certain(asker, own, head(name)), certain(asker, x, head(name))
        wrong = got.argmax(1) != y
        boxed = float((asker.labels(own.clamp(0, 1)) != y).double().mean())
        note = f"confidence on errors {percent(float(got.amax(1)[wrong].mean()))} (paper {sure}); clean error "
        note += (
            f"{float((clean.argmax(1) != y).double().mean()):.2%}, clean confidence {float(clean.amax(1).mean()):.1%}"
        )
        note += " (paper 60.6%)" if name == "rbf" else ""
        note += f"; clipped to [0, 1], error {boxed:.1%}"
        _share("fgsm-" + name, f"error of {titles[name]} on its own FGSM examples, eps 0.25", share, wrong, note)
    fooled = says["maxout"] != y
    for name, share, both in (("softmax", 0.546, 0.846), ("rbf", 0.160, 0.543)):
        same, wrong = says[name] == says["maxout"], says[name] != y
        note = f"{titles[name]} calls {float(wrong[fooled].double().mean()):.1%} of them wrong; paired at random "
        note += f"{_chance(says[name][fooled], says['maxout'][fooled]):.1%} would agree"
        _share(f"agree-{name}", f"maxout's FGSM errors: {titles[name]} gives maxout's class", share, same[fooled], note)
        _share(
            f"both-{name}", f"both wrong: {titles[name]} gives maxout's class", both, same[fooled & wrong],
            f"by chance {_chance(says[name][fooled & wrong], says['maxout'][fooled & wrong]):.1%}",
        )  # fmt: skip
    wrong = (says["softmax"] != y) & (says["rbf"] != y)
    _share(
        "rbf-softmax", "maxout's FGSM examples, both wrong: the RBF network gives softmax regression's class", 0.536,
        (says["rbf"] == says["softmax"])[wrong], "",
    )  # fmt: skip


def _chance(a: Tensor, b: Tensor) -> float:
    """Return how often two lists of answers would agree if they were paired at random."""
    return float((torch.bincount(a, minlength=10).double() * torch.bincount(b, minlength=10)).sum() / (len(a) * len(b)))


def _share(case: str, what: str, published_share: float, hits: Tensor, note: str) -> None:
    entry = {"what": what, "published": published_share, "ours": float(hits.double().mean()), "unit": "%"}
    write(
        "agreement", case, entry | {"n": len(hits), "interval": list(wilson(int(hits.sum()), len(hits))), "note": note}
    )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case for case in (rubbish, step, random, random_imagenet, carried, blurred, ablated, agreement)
}
CASES |= {
    f"rounds-digits-{encoding}": partial(rounds, "digits", encoding, count=8, epochs=30, ema=0.99)
    for encoding in ("direct", "cppn")
}
CASES |= {
    f"rounds-mnist-{encoding}": partial(rounds, "mnist", encoding, count=3, epochs=3, ema=0.0)
    for encoding in ("direct", "cppn")
}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        CASES[name]()


if __name__ == "__main__":
    main()
