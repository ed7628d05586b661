"""Climbing on inputs and looking inside, measured: table `visual`, pictures under `runs/benchmarks/visual`.

python -m benchmarks.visual [ascent] [meaning] [inside] [gradients] [maps] [change] [nearest] [imagenet] [pages]
python -m benchmarks.visual ascent/mnist-cnn inside/cifar_resnet20 ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from torch import Tensor

from benchmarks import published, results, tables
from unfooled import Target, attacks, explain, fooling, linf, load_data, run
from unfooled.core.ask import Asker
from unfooled.core.explanation import Explanation
from unfooled.core.pictures import percent
from unfooled.explain.attribution import METHODS
from unfooled.fooling.ascent import REGULARISERS
from unfooled.stats import wilson
from unfooled.targets import ZOO

PICTURES = results.SCRATCH / "visual"
SHAPES = {"mnist": (1, 28, 28), "digits": (1, 8, 8), "cifar10": (3, 32, 32)}
TARGETS = {
    "mnist-cnn": "mnist", "mnist-cnn-robust": "mnist", "mnist_fastadv": "mnist", "mnist_256x2": "mnist",
    "digits-cnn": "digits", "digits-cnn-robust": "digits", "cifar_resnet20": "cifar10",
}  # fmt: skip
WORDS = {
    "mnist_fastadv": "fast adversarial CNN (MNIST)", "mnist_256x2": "256x2 (MNIST)",
    "cifar_resnet20": "ResNet-20 (CIFAR-10)", "mobilenet_v2": "MobileNetV2 (ImageNet)",
}  # fmt: skip


def write(case: str, entry: dict[str, Any]) -> None:
    """Put one case into the table and print it."""
    results.write("visual", case, entry)
    print(f"{case}: {entry['what']}: {entry['published']} {entry['ours']} {entry.get('note', '')}", flush=True)


def picture(name: str, made: Explanation) -> None:
    """Keep the figure of a measurement under `runs/`."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.png").write_bytes(made.image(dpi=110))


@cache
def target(name: str) -> Target:
    """Return a network by its name, with the names of its classes."""
    if name == "mobilenet_v2":
        return Target(published.mobilenet_v2(), name=name, classes=["background", *published.imagenet_names()])
    module = ZOO[name].build() if name in ZOO else published.NETWORKS[name]()
    names = load_data(TARGETS[name], data_dir=published.data_dir(), limit=1).classes
    return Target(module, name=name, classes=names)


def called(name: str) -> str:
    """Return how the table calls a network."""
    return WORDS.get(name, f"`{name}`")


def images(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Return the first n test images of the data that a network is for, and their labels."""
    return published.images(TARGETS[name], slice(n))


def picked(names: Iterable[str], only: str) -> list[str]:
    """Return the names that were asked for: all of them, or one."""
    return [name for name in names if only in ("", name)]


def around(values: Tensor) -> list[float]:
    """Return the 95% normal interval around the mean of values [n]."""
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    return [float(values.mean()) - half, float(values.mean()) + half]


def ascent(only: str = "") -> None:
    """Confidences of images climbed from noise, with and without regularisers (claim A063)."""
    for name in picked(("mnist-cnn", "mnist-cnn-robust", "digits-cnn", "digits-cnn-robust", "cifar_resnet20"), only):
        found, begun = {}, time.perf_counter()
        for regulariser in REGULARISERS:
            made = fooling.ascend(target(name), SHAPES[TARGETS[name]], steps=200, regulariser=regulariser)
            picture(f"ascent-{name}-{regulariser}", made)
            found[regulariser] = made
        sure = {key: int((made.confidences > 0.9999).sum()) for key, made in found.items()}
        plain = found["none"]
        first = sorted(row["steps to 99.99%"] if row["steps to 99.99%"] is not None else 201 for row in plain.rows())
        rest = ", ".join(f"{key} {sure[key]} ({percent(float(found[key].confidences.min()))})" for key in sure)
        write(f"ascent {name}", {
            "what": f"classes of ten above 99.99% by gradient ascent from noise, {called(name)}",
            "published": "99.99%, unrecognisable", "ours": sure["none"], "unit": "", "n": 10,
            "source": "Nguyen et al. 2015",
            "note": f"steps: median {first[5]}, most {first[-1]}; random images get "
                    f"{float(plain.random.median()):.0%}; by regulariser, with the least confidence: {rest}",
            "confidences": {key: made.confidences.tolist() for key, made in found.items()},
            "forward": plain.forward, "backward": plain.backward, "seconds": time.perf_counter() - begun,
        })  # fmt: skip


def meaning(only: str = "") -> None:
    """Whether another network reads the climbed images as the class too: a measure of what they mean."""
    twins = {
        "mnist-cnn": ("mnist_256x2", "mnist-cnn-robust", "mnist_fastadv"),
        "mnist-cnn-robust": ("mnist-cnn", "mnist_256x2", "mnist_fastadv"),
        "digits-cnn": ("digits-cnn-robust",), "digits-cnn-robust": ("digits-cnn",),
    }  # fmt: skip
    for name in picked(twins, only):
        others = [Asker(target(other)) for other in twins[name]]
        total = 5 * 10 * len(others)

        def agreed(regulariser: str, until: float, name: str = name, others: list[Asker] = others) -> int:
            same = 0
            for seed in range(5):
                made = fooling.ascend(
                    target(name), SHAPES[TARGETS[name]], steps=100, lr=0.01 if until < 1 else 0.05,
                    regulariser=regulariser, until=until, seed=seed,
                )  # fmt: skip
                same += sum(int((other.labels(made.images) == made.classes).sum()) for other in others)
            return same

        just = {regulariser: agreed(regulariser, 0.9999) for regulariser in REGULARISERS}
        far = agreed("none", 1.0)
        write(f"meaning {name}", {
            "what": f"images climbed from noise to 99.99% on {called(name)}, no regulariser, that "
                    f"{'others call' if len(others) > 1 else 'its twin calls'} the same class",
            "published": None, "ours": just["none"] / total, "unit": "%", "n": total,
            "interval": wilson(just["none"], total), "source": "",
            "note": ", ".join(f"{key} {same / total:.0%}" for key, same in just.items() if key != "none")
                    + f"; none, as far as 100 larger steps go {far / total:.0%}; "
                    + f"others: {', '.join(called(other) for other in twins[name])}; chance 10%",
            "agreed": just,
        })  # fmt: skip


def inside(only: str = "") -> None:
    """What units reach against natural images, random ones and a copy with shuffled weights."""
    cases: tuple[tuple[str, str | None, Any], ...] = (
        ("mnist-cnn", None, "all"), ("mnist-cnn", "2", range(20)), ("mnist-cnn-robust", None, "all"),
        ("digits-cnn", None, "all"), ("cifar_resnet20", None, "all"), ("cifar_resnet20", "module.layer2", range(20)),
    )  # fmt: skip
    for name, layer, units in cases:
        if only not in ("", name, f"{name}:{layer}"):
            continue
        x, _ = images(name, 500)
        begun = time.perf_counter()
        made = explain.visualise(target(name), layer, units, data=x)
        picture(f"inside-{name}-{layer or 'scores'}", made)
        assert made.natural is not None and made.untrained is not None
        natural = (made.natural.amax(1) - made.random.mean(1)) / made.random.std(1)
        above = int((made.reached > made.natural.amax(1)).sum())
        k = len(made.units)
        where = "classes" if layer is None else f"channels of layer {layer}"
        write(f"inside {name} {layer or 'scores'}", {
            "what": f"visualised {where} that pass the most active of 500 natural images, {called(name)}",
            "published": None, "ours": above / k, "unit": "%", "n": k, "interval": wilson(above, k),
            "source": "Olah et al. 2017",
            "note": f"median {float(made.gains.median()):.0f} deviations above random images, the most active natural "
                    f"one {float(natural.median()):.0f}; in a copy with shuffled weights "
                    f"{float(made.untrained.median()):.0f}",
            "rows": made.rows(), "seconds": time.perf_counter() - begun,
        })  # fmt: skip


def gradients(only: str = "") -> None:
    """Whether gradients of hardened targets look like the class: alignment of standard and hardened ones."""
    for data, names, threats in (
        ("mnist", ("mnist-cnn", "mnist_256x2", "mnist-cnn-robust", "mnist_fastadv"), ["linf(0.3)", "linf(0.4)"]),
        ("digits", ("digits-cnn", "digits-cnn-robust"), ["linf(0.3)", "linf(0.4)"]),
    ):
        if data not in picked([data], only):
            continue
        x, y = published.images(data, slice(300))
        made = explain.gradients_side_by_side(
            {name: target(name) for name in names}, x, y, threats=threats, attack=attacks.pgd(steps=40)
        )
        picture(f"gradients-{data}", made)
        for t, name in enumerate(names):
            hardened = name in ("mnist-cnn-robust", "mnist_fastadv", "digits-cnn-robust")
            on, off = float(made.on_edges[t].mean()), float(made.control_edges[t].mean())
            write(f"gradients {name}", {
                "what": f"correlation of the input gradient's size with the image's edges, {called(name)}",
                "published": "looks like the class" if hardened else "looks like noise", "ours": on, "unit": "",
                "n": len(x), "interval": around(made.on_edges[t]), "source": "Tsipras et al. 2019",
                "note": f"with another image's edges {off:.2f}; cosine with the way to the class's mean "
                        f"{float(made.aligned[t].mean()):.2f} (another class's {float(made.control[t].mean()):.2f}); "
                        f"targeted change at linf(0.4) {float(made.changed[t, 1].mean()):.2f}, confidence "
                        f"{float(made.confidences[t, 1].mean()):.0%}",
            })  # fmt: skip


def maps(only: str = "") -> None:
    """Cascading randomisation of Adebayo 2018: do attribution maps depend on the network?"""
    told = {
        "saliency": "sensitive", "input_x_gradient": "input dominates", "integrated_gradients": "input dominates",
        "guided": "hardly changes in higher layers", "deconvolution": None,
    }  # fmt: skip
    for name in picked(("mnist-cnn", "cifar_resnet20"), only):
        n = 50 if name in ZOO else 8
        x, y = images(name, n)
        for method in METHODS if name in ZOO else METHODS[:3]:
            made = explain.attributions(target(name), x, y, method, steps=32)
            picture(f"maps-{name}-{method}", made)
            stages = made.correlations.mean(1).tolist()
            note = f"with the last layer shuffled {stages[0]:.2f}"
            if made.residual is not None:
                note += f"; integrated gradients miss {float(made.residual.median()):.2%} of the score (median)"
            write(f"maps {name} {method}", {
                "what": f"rank correlation of {method.replace('_', ' ')} maps when all weights are shuffled, "
                        f"{called(name)}",
                "published": told[method], "ours": stages[-1], "unit": "", "n": n,
                "interval": around(made.correlations[-1]), "source": "Adebayo et al. 2018",
                "note": note,
                "stages": dict(zip(made.stages, stages, strict=True)),
            })  # fmt: skip


def change(only: str = "") -> None:
    """How concentrated the effect of a perturbation is, and what its order matters."""
    sizes = {"mnist-cnn": 0.1, "mnist-cnn-robust": 0.4, "digits-cnn": 0.1, "cifar_resnet20": 2 / 255}
    for name in picked(sizes, only):
        eps = sizes[name]
        x, y = images(name, 100 if name in ZOO else 40)
        got = run("pgd(steps=40)", target(name), x, y, linf(eps))
        broken = got.success
        made = explain.change_attribution(target(name), x[broken], got.x_adv[broken], y[broken], steps=32)
        picture(f"change-{name}", made)
        part = (made.shuffled.abs() / made.moved.abs()).median()
        write(f"change {name}", {
            "what": f"share of the values that carries half of what PGD at Linf {eps:.3g} moves, {called(name)}",
            "published": None, "ours": float(made.share.median()), "unit": "%", "n": len(made.x), "source": "",
            "interval": [float(made.share.quantile(q)) for q in (0.25, 0.75)],
            "note": f"quartiles; the same change with its values shuffled moves {float(part):.0%} as far; first order "
                    f"says {float((made.first.flatten(1).sum(1) / made.moved).median()):.0%}; the maps miss "
                    f"{float(made.residual.median()):.2%}",
        })  # fmt: skip


def nearest(only: str = "") -> None:
    """Whose company adversarial examples keep: labels of the nearest training examples in features and pixels."""
    for name in picked(("mnist-cnn", "digits-cnn"), only):
        eps, m = 0.1, 20_000 if name == "mnist-cnn" else 1_000
        x, y = images(name, 200)
        got = run("pgd(steps=40)", target(name), x, y, linf(eps))
        x, y, x_adv = x[got.success], y[got.success], got.x_adv[got.success]
        data = load_data(TARGETS[name], data_dir=published.data_dir(), split="train", limit=m)
        clean, fooled = (explain.nearest_examples(target(name), part, data.x, data.y) for part in (x, x_adv))
        picture(f"nearest-{name}", fooled)
        own = float((fooled.labels == y.view(-1, 1)).float().mean())
        answer, pixels = fooled.agreeing
        write(f"nearest {name}", {
            "what": f"nearest five of {len(data.x):,} training examples in features with the wrong answer's label, "
                    f"PGD at Linf {eps:g} on {called(name)}",
            "published": None, "ours": answer, "unit": "%", "n": 5 * len(x), "source": "",
            "note": f"with the right label {own:.0%}; in pixels {pixels:.0%} have the wrong one; of the clean images "
                    f"{clean.agreeing[0]:.0%} in features and {clean.agreeing[1]:.0%} in pixels have the answer's",
        })  # fmt: skip


def imagenet(only: str = "") -> None:
    """A few ImageNet classes, climbed with and without what makes images natural."""
    words = ["goldfish", "flamingo", "pretzel", "strawberry", "bullfrog"]
    names = published.imagenet_names()
    classes = [next(i + 1 for i, name in enumerate(names) if word in name.lower()) for word in words]
    net, begun = target("mobilenet_v2"), time.perf_counter()
    for regulariser, steps in (("none", 12), ("robust", 60)):
        if regulariser not in picked([regulariser], only):
            continue
        made = fooling.ascend(net, (3, 224, 224), classes, steps=steps, regulariser=regulariser, start="grey")
        picture(f"imagenet-{regulariser}", made)
        sure = int((made.confidences > 0.99).sum())
        write(f"imagenet {regulariser}", {
            "what": f"classes of {len(classes)} above 99% by gradient ascent from grey ({regulariser}, {steps} steps), "
                    f"{called('mobilenet_v2')}",
            "published": None, "ours": sure, "unit": "", "n": len(classes), "source": "Nguyen et al. 2015",
            "note": f"least {percent(float(made.confidences.min()))}; random images {float(made.random.median()):.1%}",
            "seconds": time.perf_counter() - begun,
        })  # fmt: skip


def pages(only: str = "") -> None:
    """The pictures of docs/explain.md; none of them shows an image of a data set."""
    noise = fooling.ascend(target("mnist-cnn"), SHAPES["mnist"], steps=40, lr=0.01, until=0.9999)
    classes = explain.visualise(target("cifar_resnet20"), data=images("cifar_resnet20", 500)[0])
    for name, made in {"ascent": noise, "visualise": classes}.items():
        (tables.ROOT / "docs" / "images" / f"explain-{name}.png").write_bytes(made.image(dpi=110))


CASES: dict[str, Callable[[str], None]] = {
    "ascent": ascent, "meaning": meaning, "inside": inside, "gradients": gradients, "maps": maps, "change": change,
    "nearest": nearest, "imagenet": imagenet, "pages": pages,
}  # fmt: skip


def main(words: list[str]) -> None:
    """Run the named cases, all of them without names."""
    for word in words or CASES:
        case, _, only = word.partition("/")
        CASES[case](only)


if __name__ == "__main__":
    main(sys.argv[1:])
