"""What carries over: recipes between networks beside torchattacks, matrices, universal changes, patches, poses.

python -m benchmarks.transfer              measure all parts that the installed packages and data allow
python -m benchmarks.transfer recipes ...  measure some of them

Every number is a share of n images with its 95% Wilson interval; images that either network gets wrong as they are do
not count. torchattacks is run where it is installed, with the same steps, sizes and images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import unfooled as uf
from benchmarks import published, results
from unfooled import attacks
from unfooled.attacks.transfer import TransferMatrix
from unfooled.stats import wilson
from unfooled.targets import ZOO

MNIST = {
    "mnist-cnn": lambda: ZOO["mnist-cnn"].build(),
    "mnist-cnn-robust": lambda: ZOO["mnist-cnn-robust"].build(),
    "mnist_256x2": published.mnist_256x2,
    "mnist_fastadv": published.mnist_fastadv,
}
STEPS = {"steps": 10, "decay": 1.0}
RECIPES: dict[str, Callable[[Any, float], Any] | None] = {  # ours -> torchattacks' for (module, eps)
    "mi_fgsm()": lambda m, eps: _theirs("MIFGSM", m, eps),
    "ni_fgsm()": lambda m, eps: _theirs("NIFGSM", m, eps),
    "di_fgsm()": lambda m, eps: _theirs("DIFGSM", m, eps, resize_rate=0.9, diversity_prob=0.5),
    "ti_fgsm()": None,  # torchattacks' TIFGSM is written for three channels
    "si_fgsm()": None,  # only together with NI
    "composite_fgsm(diversity=0.0, kernel=1)": lambda m, eps: _theirs("SINIFGSM", m, eps, m=5),
    "vmi_fgsm()": lambda m, eps: _theirs("VMIFGSM", m, eps, N=20, beta=1.5),
    "vni_fgsm()": lambda m, eps: _theirs("VNIFGSM", m, eps, N=20, beta=1.5),
    "composite_fgsm()": None,
}


def _theirs(name: str, module: Any, eps: float, **more: Any) -> Any:
    import torchattacks

    return getattr(torchattacks, name)(module, eps=eps, alpha=eps / 10, **STEPS, **more)


def _share(hits: int, n: int) -> dict[str, Any]:
    return {"hits": hits, "n": n, "interval": list(wilson(hits, n))}


def _wrong(module: Any, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return sum(int((module(a).argmax(1) != b).sum()) for a, b in zip(x.split(32), y.split(32), strict=True))


def _right(modules: list[Any], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        fit = torch.stack([torch.cat([m(a).argmax(1) for a in x.split(32)]) == y for m in modules]).all(0)
    return x[fit], y[fit]


def _recipes(title: str, source: Any, target: Any, x: Tensor, y: Tensor, eps: float, *, recipes: list[str]) -> None:
    """Last iterates made on the source, shown to the target."""
    from unfooled.attacks.transfer import _ends

    x, y = _right([source, target], x, y)
    for recipe in recipes:
        begun = time.process_time()
        z = _ends(attacks.parse(recipe), uf.Target(source), x, y, uf.linf(eps), None, 0)
        ours = _share(_wrong(target, z, y), len(x)) | {"cpu_seconds": time.process_time() - begun}
        entry = {"kind": "recipe", "title": title, "recipe": recipe, "eps": eps, "unfooled": ours, "torchattacks": None}
        theirs = RECIPES[recipe]
        try:
            begun = time.process_time()
            torch.manual_seed(0)
            w = theirs(source, eps)(x, y) if theirs and x.shape[1] in (1, 3) else None
        except ImportError:
            w = None
        if w is not None:
            spent = time.process_time() - begun
            entry["torchattacks"] = _share(_wrong(target, w, y), len(x)) | {"cpu_seconds": spent}
        results.write("transfer", f"recipe {title} {recipe}", entry)


def recipes() -> None:
    """Every recipe between two pairs of MNIST networks."""
    x, y = published.images("mnist", slice(0, 300))
    cnn, dense = MNIST["mnist-cnn"](), MNIST["mnist_256x2"]()
    _recipes("mnist_256x2 to mnist-cnn", dense, cnn, x, y, 0.2, recipes=list(RECIPES))
    _recipes("mnist-cnn to mnist_256x2", cnn, dense, x, y, 0.1, recipes=list(RECIPES))


def imagenet() -> None:
    """The cheaper recipes from MobileNetV2 to SqueezeNet."""
    x, y = published.images("imagenet", list(range(0, 1000, 20)))
    mobile, squeeze = published.mobilenet_v2(), published.squeezenet()

    class Shifted(torch.nn.Module):
        """Class 0 of the MobileNet is the background: ImageNet's class c is its c + 1."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mobile

        def forward(self, v: Tensor) -> Tensor:
            return self.net(v)[:, 1:]

    names = ["mi_fgsm()", "ni_fgsm()", "di_fgsm()", "ti_fgsm()", "composite_fgsm(scales=1)"]
    RECIPES["composite_fgsm(scales=1)"] = None
    _recipes("MobileNetV2 to SqueezeNet (ImageNet)", Shifted(), squeeze, x[:32], y[:32], 16 / 255, recipes=names)


def _cells(title: str, matrix: TransferMatrix) -> None:
    results.write("transfer", title, {"kind": "matrix", "title": title} | matrix.to_dict())


def matrices() -> None:
    """Four networks and the mean of their logits against each other."""
    x, y = published.images("mnist", slice(0, 300))
    nets: dict[str, Any] = {name: make() for name, make in MNIST.items()}
    nets["all four"] = uf.ensemble(list(nets.values()), "mean_probabilities")
    for recipe in ("mi_fgsm()", "composite_fgsm()"):
        matrix = uf.transfer_matrix(nets, recipe, x, y, uf.linf(0.2), points="last")
        _cells(f"`{recipe}` at Linf 0.2, last iterates", matrix)
    matrix = uf.transfer_matrix(
        {k: v for k, v in nets.items() if k != "all four"},
        lambda target: attacks.universal(target, *_train(), epochs=8), x, y, uf.linf(0.2), points="all",
    )  # fmt: skip
    _cells("universal changes (SGA) at Linf 0.2, learned on 1,000 other images", matrix)


def _train() -> tuple[Tensor, uf.Ball]:
    return published.images("mnist", slice(1000, 2000))[0], uf.linf(0.2)


def universals() -> None:
    """Both ways to learn one change, on two networks, against a random one."""
    x, y = published.images("mnist", slice(0, 500))
    for name in ("mnist-cnn", "mnist_256x2"):
        net = MNIST[name]()
        for eps in (0.1, 0.2, 0.25):
            ball = uf.linf(eps)
            learn = {
                "universal()": lambda t, ball=ball: attacks.universal(t, _train()[0], ball),
                "universal_deepfool(epochs=3)": lambda t, ball=ball: attacks.universal_deepfool(
                    t, _train()[0][:300], ball, epochs=3, rate=0.99
                ),
            }
            for how, make in learn.items():
                begun = time.process_time()
                made = make(net)
                spent = time.process_time() - begun
                out = uf.run(made, net, x, y, ball)
                n = sum(s != "misclassified" for s in out.status)
                entry = {"kind": "universal", "target": name, "eps": eps, "how": how, "cpu_seconds": spent}
                results.write("transfer", f"{how} {name} {eps}", entry | _share(int(out.success.sum()), n))


def _posed(name: str, net: Any, x: Tensor, y: Tensor, calls: list[str]) -> None:
    target = attacks.posed(net, x.shape[1:])
    for call in calls:
        out = uf.run(call, target.target, target.wrap(x), y, target.threat)
        n = sum(s != "misclassified" for s in out.status)
        entry = {"kind": "pose", "target": name, "how": call, "queries": float(out.forward.sum() / max(1, n))}
        results.write("transfer", f"pose {name} {call}", entry | _share(int(out.success.sum()), n))


def poses() -> None:
    """Turns of 30 degrees and shifts of a tenth of the side."""
    x, y = published.images("mnist", slice(0, 300))
    calls = ["worst_of(10)", "pose_grid()", "apgd(steps=30, loss='margin')"]
    for name in ("mnist-cnn", "mnist-cnn-robust"):
        _posed(name, MNIST[name](), x, y, calls)
    x, y = published.images("cifar10", slice(0, 150))
    _posed("cifar_resnet20", published.cifar_resnet20(), x, y, calls)


def patches() -> None:
    """Learned and random patches at fresh random places, one look an image."""
    for name, size, side, net, first in (
        ("mnist-cnn", 500, 9, MNIST["mnist-cnn"](), None),
        ("cifar_resnet20", 400, 9, published.cifar_resnet20(), None),
        ("cifar_resnet20", 400, 9, published.cifar_resnet20(), 3),
    ):
        x, y = published.images("mnist" if "mnist" in name else "cifar10", slice(0, size))
        cut = size // 2
        made = attacks.learn_patch(net, x[:cut], y[:cut], side=side, steps=300, to=first)
        chance = attacks.patch(_random(x.shape[1], side))
        for how, patch in (("learned", made), ("random", chance)):
            goal = None if first is None else uf.Targeted(first)
            out = uf.run(patch, net, x[cut:], y[cut:], patch.threat, goal=goal)
            n = sum(s in ("broken", "survived") for s in out.status)
            title = f"{name}, {side} pixels across of {x.shape[-1]}" + (
                "" if first is None else f", towards class {first}"
            )
            entry = {"kind": "patch", "title": title, "how": how}
            results.write("transfer", f"patch {title} {how}", entry | _share(int(out.success.sum()), n))


def _random(channels: int, side: int) -> str:
    from unfooled.attacks.learned import kept

    return kept(torch.rand(channels, side, side, generator=torch.Generator().manual_seed(1)))


def substitutes() -> None:
    """Substitutes that learned from so many labels, and what the composite recipe on them does to the target."""
    x, y = published.images("mnist", slice(0, 300))
    seeds = published.images("mnist", slice(1000, 1150))[0]
    net = MNIST["mnist-cnn"]()
    for queries in (150, 600, 2400):
        for augment in ("none", "noise", "jacobian") if queries > 150 else ("none",):
            made = attacks.substitute(net, seeds, queries=queries, augment=augment, classes=10)
            asked = 150 if augment == "none" else queries
            with torch.no_grad():
                agree = int((made.scores(x).argmax(1) == net(x).argmax(1)).sum())
            out = uf.run("composite_fgsm()", net, x, y, uf.linf(0.2), surrogates=[made], access=uf.Access.LABEL)
            n = sum(s != "misclassified" for s in out.status)
            entry = {"kind": "substitute", "asked": asked, "augment": augment, "agree": agree / len(x)}
            if augment != "none" or queries == 150:
                results.write("transfer", f"substitute {augment} {queries}", entry | _share(int(out.success.sum()), n))


def ensembles() -> None:
    """The vote of three networks attacked through one member at a time, through all, and jointly."""
    x, y = published.images("mnist", slice(0, 300))
    members: dict[str, Any] = {k: MNIST[k]() for k in ("mnist-cnn", "mnist_256x2", "mnist_fastadv")}
    vote = uf.ensemble(members, "vote", name="vote")
    ways: dict[str, list[Any] | None] = {k: [m] for k, m in members.items()}
    for rule in ("mean_logits", "mean_probabilities", "mean_gradients"):
        ways[f"all three, {rule}"] = list(members.values())
    ways["the vote itself, white-box"] = None
    for recipe in ("mi_fgsm", "composite_fgsm"):
        for way, lenders in ways.items():
            rule = way.partition(", ")[2] if way.startswith("all three") else "mean_logits"
            out = uf.run(f"{recipe}(combine={rule!r})", vote, x, y, uf.linf(0.2), surrogates=lenders or ())
            n = sum(s != "misclassified" for s in out.status)
            entry = {"kind": "ensemble", "recipe": recipe, "through": way}
            results.write("transfer", f"ensemble {recipe} {way}", entry | _share(int(out.success.sum()), n))


PARTS: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (recipes, matrices, universals, poses, patches, substitutes, ensembles, imagenet)
}


# ---- tables


def percent(part: dict[str, Any] | None) -> str:
    """Return a share with its interval and n."""
    if part is None:
        return ""
    low, high = part["interval"]
    return f"{part['hits'] / part['n']:.1%} ({100 * low:.0f}-{high:.0%}) of {part['n']}"


def table() -> str:
    """All parts, each under its heading."""
    from benchmarks.tables import markdown, origin

    entries = results.read("transfer")
    of: dict[str, list[dict[str, Any]]] = {}
    for entry in entries.values():
        of.setdefault(entry["kind"], []).append(entry)
    parts: list[str] = []
    for title in dict.fromkeys(e["title"] for e in of.get("recipe", [])):
        found = [e for e in of["recipe"] if e["title"] == title]
        rows = [[f"`{e['recipe']}`", percent(e["unfooled"]), percent(e["torchattacks"]),
                 f"{e['unfooled']['cpu_seconds']:.3g}",
                 f"{e['torchattacks']['cpu_seconds']:.3g}" if e["torchattacks"] else ""] for e in found]  # fmt: skip
        parts.append(f"### {title}, Linf {found[0]['eps']:.3g}, last iterates of 10 steps")
        parts.append(markdown(("recipe", "fools", "torchattacks", "CPU seconds", "torchattacks"), rows, left=1))
    for entry in of.get("matrix", []):
        names = list(dict.fromkeys(c["target"] for c in entry["cells"]))
        lines: dict[str, list[str]] = {}
        for c in entry["cells"]:
            share = "-" if c["rate"] is None else f"{c['rate']:.0%}"
            same = "-" if c["same_rate"] is None else f"{c['same_rate']:.0%}"
            low, high = c["interval"]
            lines.setdefault(c["source"], []).append(f"{share} [{100 * low:.0f}-{100 * high:.0f}] ({same})")
        parts.append(f"### From row to column: {entry['title']}")
        parts.append(markdown(("made on", *names), [[f"`{s}`", *cells] for s, cells in lines.items()], left=1))
        counts = sorted({c["n"] for c in entry["cells"]})
        parts.append(f"Fooling rate [95% interval] (same wrong class), n {counts[0]} to {counts[-1]} per pair.")
    simple = {
        "universal": ("One change for all inputs", ("target", "Linf", "learned by", "fools", "CPU seconds to learn"), 3,
                      lambda e: [e["target"], f"{e['eps']:g}", f"`{e['how']}`", percent(e), f"{e['cpu_seconds']:.3g}"]),
        "patch": ("Patches at fresh random places, one look an image", ("target", "patch", "fools"), 2,
                  lambda e: [e["title"], e["how"], percent(e)]),
        "pose": ("Turned up to 30 degrees, shifted up to a tenth", ("target", "attack", "fools", "looks an image"),
                 2, lambda e: [e["target"], f"`{e['how']}`", percent(e), f"{e['queries']:.0f}"]),
        "substitute": ("A substitute of mnist-cnn from labels, `composite_fgsm()` on it at Linf 0.2",
                       ("labels asked for", "further points", "agrees on test images", "fools the target"), 2,
                       lambda e: [str(e["asked"]), e["augment"], f"{e['agree']:.1%}", percent(e)]),
        "ensemble": ("The vote of three networks at Linf 0.2", ("recipe", "gradients of", "fools the vote"), 2,
                     lambda e: [f"`{e['recipe']}`", e["through"], percent(e)]),
    }  # fmt: skip
    for kind, (title, head, left, row) in simple.items():
        if kind in of:
            parts += [f"### {title}", markdown(head, [row(e) for e in of[kind]], left=left)]
    return "\n\n".join([*parts, origin(entries)])


def main() -> None:
    """Measure the parts named on the command line, by default all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
