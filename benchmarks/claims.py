"""Short measurements that decide claims of docs/claims.md which no other table decides.

python -m benchmarks.claims            measure all of them
python -m benchmarks.claims step blur  measure some of them

Images that a network gets wrong as they are do not count, where nothing else is said; intervals are Wilson's, 95%.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

import unfooled as uf
from benchmarks import published, results
from unfooled import attacks
from unfooled.core.engine import last_iterate
from unfooled.stats import mean_interval, wilson
from unfooled.targets import ZOO

TABLE = "claims"
NETWORKS = {
    "mnist-cnn": lambda: ZOO["mnist-cnn"].build(),
    "mnist-cnn-robust": lambda: ZOO["mnist-cnn-robust"].build(),
    "mnist_256x2": published.mnist_256x2,
    "mnist_fastadv": published.mnist_fastadv,
    "cifar_resnet20": published.cifar_resnet20,
    "squeezenet": published.squeezenet,
}


def _scores(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(100)])


def _right(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return what the network gets right and the share of it."""
    right = _scores(net, x).argmax(1) == y
    return x[right], y[right], float(right.float().mean())


def _signs(x: Tensor, eps: float, seed: int) -> Tensor:
    """Return x with every value moved by eps up or down at random, inside the box."""
    coin = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (x + eps * coin).clamp(0, 1)


def _write(case: str, hits: int, of: int, what: str, **more: Any) -> None:
    entry = {"what": what, "published": None, "ours": hits / of, "unit": "%", "n": of, "interval": wilson(hits, of)}
    results.write(TABLE, case, entry | more)
    print(case, f"{hits}/{of}", {k: v for k, v in more.items() if isinstance(v, float | int | str)}, flush=True)


def step() -> None:
    """One gradient sign step: how many fall, how sure the network then is, and what random signs of that size do."""
    for name, data, n, word, eps, theirs in (
        ("cifar_resnet20", "cifar10", 500, "1/255", 1 / 255, None),
        ("cifar_resnet20", "cifar10", 500, "8/255", 8 / 255, None),
        ("mnist-cnn", "mnist", 1000, "0.25", 0.25, (0.894, "arXiv 1412.6572: a maxout network on MNIST")),
    ):
        net = NETWORKS[name]()
        x, y = published.images(data, slice(n))
        x, y, clean = _right(net, x, y)
        before = _scores(net, x).softmax(1).amax(1)
        after = _scores(net, last_iterate(attacks.fgsm(), net, x, y, uf.linf(eps))).softmax(1)
        wrong = after.argmax(1) != y
        noise = sum(int((_scores(net, _signs(x, eps, seed)).argmax(1) != y).sum()) for seed in range(5))
        _write(
            f"step {name} {word}",
            int(wrong.sum()),
            len(y),
            f"{name} taken in by one gradient sign step of {word}",
            published=theirs[0] if theirs else None,
            source=theirs[1] if theirs else "",
            clean=clean,
            confidence_before=float(before.mean()),
            confidence_on_errors=float(after.amax(1)[wrong].mean()),
            noise=noise / (5 * len(y)),
        )


def noise() -> None:
    """Random signs at the sizes at which docs/transfer.md compares: what carries over must fool more than this."""
    mnist = [(name, 0.2, "0.2") for name in NETWORKS if name.startswith("mnist")]
    for name, eps, word in (*mnist, ("mnist_256x2", 0.1, "0.1"), ("squeezenet", 16 / 255, "16/255")):
        net = NETWORKS[name]()
        x, y = (
            published.images("imagenet", list(range(0, 640, 20)))
            if name == "squeezenet"
            else published.images("mnist", slice(300))
        )
        own, label, _ = _right(net, x, y)
        draws = torch.stack([_scores(net, _signs(own, eps, seed)).argmax(1) != label for seed in range(10)])
        shares = draws.float().mean(0)  # [n]: draws of one image are no independent images
        what = f"{name} taken in by random signs of {word}, ten draws an image"
        _write(
            f"noise {name} {word}",
            int(draws.sum()),
            draws.numel(),
            what,
            n=len(label),
            interval=mean_interval(shares.tolist()),
        )


def pixels() -> None:
    """All pixels together against each pixel alone, at the same size."""
    net, eps = ZOO["digits-cnn"].build(), 0.1
    x, y = published.images("digits", slice(200))
    x, y, _ = _right(net, x, y)
    together = int((_scores(net, last_iterate(attacks.pgd(steps=20), net, x, y, uf.linf(eps))).argmax(1) != y).sum())
    moved = torch.eye(64).view(64, 1, 1, 8, 8) * eps
    both = torch.cat([moved, -moved])  # [128, 1, 1, 8, 8]
    alone = torch.stack([_scores(net, (x + d[0]).clamp(0, 1)).argmax(1) != y for d in both])  # [128, n]
    _write(
        "pixels digits-cnn",
        together,
        len(y),
        "digits-cnn taken in by 0.1 in all 64 pixels together",
        alone=float(alone.any(0).float().mean()),
        alone_interval=wilson(int(alone.any(0).sum()), len(y)),
    )


class Blurred(nn.Module):
    """A network behind a Gaussian blur of 5 × 5 pixels."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net = net
        line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
        plane = torch.outer(line, line)
        self.register_buffer("kernel", (plane / plane.sum()).expand(3, 1, 5, 5).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel, groups=3))


def blur() -> None:
    """A blur before the network: against examples made without it, and against examples made through it."""
    bare, word, eps = NETWORKS["cifar_resnet20"](), "4/255", 4 / 255
    images, labels = published.images("cifar10", slice(200))
    for sigma in (0.5, 1.0):
        net = Blurred(bare, sigma).eval()
        x, y, clean = _right(net, images, labels)
        recipe, ball = attacks.pgd(steps=20), uf.linf(eps)
        through = int((_scores(net, last_iterate(recipe, net, x, y, ball)).argmax(1) != y).sum())
        without = int((_scores(net, last_iterate(recipe, bare, x, y, ball)).argmax(1) != y).sum())
        _write(
            f"blur {sigma}",
            through,
            len(y),
            f"ResNet-20 behind a Gaussian blur of {sigma} pixels taken in by PGD(20) at {word} through it",
            clean=clean,
            clean_without=_right(bare, images, labels)[2],
            without=without / len(y),
            without_interval=wilson(without, len(y)),
        )


def decision() -> None:
    """Labels alone, no gradient: how near the smallest change is that they lead to, beside that of gradients."""
    x, y = published.images("mnist", slice(30))
    for name in ("mnist-cnn", "mnist-cnn-robust"):
        net = NETWORKS[name]()
        own, label, _ = _right(net, x, y)
        far = {}
        for recipe, access in (
            ("hop_skip_jump(queries=5000)", uf.Access.LABEL),
            ("ddn(steps=200)", uf.Access.GRADIENT),
        ):
            run = uf.run(recipe, net, own, label, uf.l2(), access=access)
            far[recipe] = run.distance
        by_labels, by_gradients = far.values()
        near = int((by_labels <= 3.0).sum())
        _write(
            f"decision {name}",
            near,
            len(label),
            f"{name} taken in within L2 3 by HopSkipJump, 5,000 labels an image",
            median_by_labels=float(by_labels.median()),
            median_by_gradients=float(by_gradients.median()),
            nearer_by_labels=int((by_labels < by_gradients).sum()),
        )


def panda() -> None:
    """The giant panda of the ImageNet sample: one step of 0.007 as in the paper, and three wanted classes at 2/255."""
    from examples.panda import PANDA, WANTED, fool, panda_target

    x, y = published.images("imagenet", [PANDA])
    target = panda_target()
    assert target.classes is not None
    before = target.scores(x).softmax(1)[0]
    after = target.scores(last_iterate(attacks.fgsm(), target, x, y + 1, uf.linf(0.007))).softmax(1)[0]
    one = {
        "before": float(before.max()), "before_class": target.classes[int(before.argmax())],
        "after": float(after.max()), "after_class": target.classes[int(after.argmax())],
    }  # fmt: skip
    _write(
        "panda step", int(after.argmax() != before.argmax()), 1, "MobileNetV2's panda after one step of 0.007", **one
    )
    with tempfile.TemporaryDirectory() as folder:
        for wanted in WANTED:
            single = fool(wanted, target, Path(folder) / wanted)
            _write(
                f"panda {wanted}",
                int(single.success),
                1,
                f"MobileNetV2's panda turned into a {wanted} within 2/255",
                before=single.original.confidence,
                after=single.adversarial.confidence,
                grey_levels=single.distance * 255,
                noise_fooled=single.noise_fooled,
                noise_draws=single.noise_draws,
            )


def hardened() -> None:
    """Accuracy on clean images with and without adversarial training, the same images: exact test on what differs."""
    for data in ("digits", "mnist"):
        x, y = published.images(data)
        plain, robust = (_scores(ZOO[f"{data}-cnn{end}"].build(), x).argmax(1) == y for end in ("", "-robust"))
        gained, lost = int((robust & ~plain).sum()), int((plain & ~robust).sum())
        _write(
            f"hardened {data}",
            int(robust.sum()),
            len(y),
            f"{data}: clean accuracy of the network trained adversarially",
            plain=float(plain.float().mean()),
            gained=gained,
            lost=lost,
            p_value=float(binomtest(gained, gained + lost).pvalue),
        )


PARTS = {f.__name__: f for f in (step, noise, pixels, blur, decision, panda, hardened)}


def main() -> None:
    """Measure the parts that are named, or all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        begun = time.process_time()
        PARTS[name]()
        print(f"{name}: {time.process_time() - begun:.1f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
