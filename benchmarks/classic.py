"""The numbers of Goodfellow, Shlens and Szegedy 2014 on MNIST, trained and measured anew: table `classic`.

python -m benchmarks.classic [case ...] [--seeds 0,1,2] [--units 1600] [--device cuda]     case: a name of CASES

Networks are trained once and kept under `runs/`. A case that is run again with more seeds rewrites its rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import unfooled as uf
from benchmarks import nets, published, results
from unfooled import attacks
from unfooled.core.augment import augment
from unfooled.core.fit import Objective, standard
from unfooled.harden.objectives import adversarial, mixed, noised
from unfooled.stats import mean_interval
from unfooled.targets.zoo import untrained

SOURCE = "Goodfellow et al. 2014, arXiv:1412.6572"
EPS = 0.25
SUITE, SUITE_IMAGES, SUITE_EPS = "quick", 1000, (0.1, EPS)
REPLICATES = 4000

TRAINED: dict[str, Any] = {"batch_size": 250, "lr": 2e-3, "ema": 0.999, "precision": "bf16"}
"""Settings of `core.fit.Recipe` that all maxout networks share: AdamW, one cycle."""


SHIFTED: dict[str, Any] = {"augment": augment("shifts(1)")}
DROPPED = (0.0, 0.1)
"""Shares of the input and of each layer that dropout takes where images are shifted."""


@dataclass(frozen=True)
class Kind:
    """One way to train: what it is called in the table, its objective for a seed, its epochs, and what differs."""

    words: str
    objective: Callable[[int], Objective]
    epochs: int
    dropout: tuple[float, float] = (0.2, 0.5)
    more: dict[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "plain": Kind("without adversarial training", lambda seed: standard, 60),
    "mixed": Kind("with adversarial training", lambda seed: mixed(attacks.fgsm(), uf.linf(EPS), seed=seed), 60),
    "corners": Kind(
        f"trained on pixels moved by ±{EPS}", lambda seed: noised(uf.linf(EPS), corners=True, seed=seed), 4
    ),
    "uniform": Kind(f"trained on noise from U(-{EPS}, {EPS})", lambda seed: noised(uf.linf(EPS), seed=seed), 4),
    "l1-0.0025": Kind("with L1 weight decay of .0025 on the first layer", lambda seed: shrunk(0.0025), 3),
    "l1-0.00025": Kind("with a tenth of that decay", lambda seed: shrunk(0.00025), 3),
    "l1-0": Kind("without decay, as long", lambda seed: standard, 3),
    "plain-shifted": Kind(
        "images shifted by up to a pixel, without adversarial training", lambda seed: standard, 80, DROPPED, SHIFTED
    ),
    "mixed-shifted": Kind(
        "images shifted by up to a pixel, with adversarial training",
        lambda seed: mixed(attacks.fgsm(), uf.linf(EPS), seed=seed), 80, DROPPED, SHIFTED,
    ),
}  # fmt: skip
CONVOLUTIONAL = {"plain": 24, "mixed": 24}
"""Epochs of the convolutional networks by kind."""


@dataclass(frozen=True)
class Setup:
    """What one call measures: which seeds of networks of how many units, where."""

    seeds: tuple[int, ...] = (0,)
    units: int = 240
    device: str = "cpu"

    @property
    def title(self) -> str:
        """What the networks are called."""
        return f"maxout {self.units} x 2"

    def case(self, name: str) -> str:
        """Return the name of a row; those of the published size have no suffix."""
        return name if self.units == 240 else f"{name}-{self.units}"

    def networks(self, kind: str) -> list[Network]:
        """Return the networks of one kind, one a seed, trained where there are none yet."""
        each, epochs = KINDS[kind], KINDS[kind].epochs
        made = []
        for seed in self.seeds:
            module, seconds = nets.kept(
                f"classic-{kind}-{self.units}-{seed}-{epochs}",
                lambda: nets.maxout(units=self.units, dropout=each.dropout), nets.training,
                each.objective(seed), seed=seed, device=self.device, epochs=epochs, **TRAINED, **each.more,
            )  # fmt: skip
            made.append(Network(module, seconds, epochs, self.device))
        return made

    def convolutional(self, kind: str) -> list[Network]:
        """Return the convolutional networks of one kind, one a seed."""
        epochs = CONVOLUTIONAL[kind]
        made = []
        for seed in self.seeds:
            module, seconds = nets.kept(
                f"classic-{kind}-convolutional-{seed}-{epochs}", partial(untrained, "mnist-cnn", seed),
                nets.training, KINDS[kind].objective(seed), seed=seed, device=self.device, epochs=epochs, **TRAINED,
            )  # fmt: skip
            made.append(Network(module, seconds, epochs, self.device))
        return made


@dataclass(frozen=True)
class Network:
    """A trained network, the CPU seconds of its training and its epochs."""

    module: nn.Module
    seconds: float
    epochs: int
    device: str

    def stepped(self, x: Tensor, y: Tensor, eps: float = EPS) -> Tensor:
        """Return x after one gradient sign step of eps inside [0, 1]."""
        parts = zip(x.split(1000), y.split(1000), strict=True)
        threat, fgsm, device = uf.linf(eps), attacks.fgsm(), self.device
        return torch.cat([
            uf.last_iterate(fgsm, self.module, a.to(device), b.to(device), threat).cpu() for a, b in parts
        ])  # fmt: skip

    def errors(self, x: Tensor, y: Tensor) -> Errors:
        """Return what the network gets wrong of x, and how sure it is."""
        with torch.no_grad():
            p = torch.cat([self.module(part.to(self.device)).softmax(1).cpu() for part in x.split(1000)])
        return Errors(p.argmax(1) != y, p.amax(1).double())


@dataclass(frozen=True)
class Errors:
    """Which of n inputs a network gets wrong, bool [n], and its confidence in its answers [n]."""

    wrong: Tensor
    sure: Tensor

    @property
    def share(self) -> float:
        """The share of wrong answers."""
        return float(self.wrong.double().mean())

    @property
    def confidence(self) -> float:
        """The mean confidence in wrong answers, NaN where there is none."""
        return float(self.sure[self.wrong].mean())


def shrunk(coefficient: float) -> Objective:
    """Return the cross-entropy plus `coefficient` times the sum of the first layer's absolute weights."""

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        first = next(part for part in module.modules() if isinstance(part, nn.Linear))
        return standard(module, x, y, ids, step) + coefficient * first.weight.abs().sum()

    return objective


def difference(one: Tensor, other: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of one - other, bool [seeds, n], and its 95% bootstrap interval over both seeds and images.

    Seeds and images are drawn again with replacement, independently (Owen 2007, the pigeonhole bootstrap); the same
    images and the same places of seeds are drawn for both sides.
    """
    gaps = one.double() - other.double()
    luck = torch.Generator().manual_seed(seed)
    s, n = gaps.shape
    drawn = []
    for _ in range(REPLICATES):
        rows = torch.randint(s, (s,), generator=luck)
        images = torch.randint(n, (n,), generator=luck)
        drawn.append(gaps[rows].mean(0)[images].mean())
    low, high = torch.stack(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(gaps.mean()), low, high


def said(low: float, high: float) -> str:
    """Return what an interval says of the claim that the difference is positive."""
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


# ---- rows


def write(setup: Setup, case: str, what: str, ours: Any, n: int, made: list[Network], **more: Any) -> None:
    """Put one row into the table and print it."""
    known = [f"seed{'s' if len(setup.seeds) > 1 else ''} {', '.join(map(str, setup.seeds))}", more.pop("note", "")]
    entry: dict[str, Any] = {
        "what": what, "published": None, "ours": ours, "unit": "%", "n": n, "note": "; ".join(filter(None, known)),
        "source": SOURCE, "seeds": list(setup.seeds), "recipe": dict(TRAINED),
        "epochs": sorted({net.epochs for net in made}), "cpu_seconds": [round(net.seconds) for net in made],
    }  # fmt: skip
    results.write("classic", setup.case(case), entry | more)
    print(f"{setup.case(case)}: {what}: {more.get('published')} {ours} {entry['note']}", flush=True)


def small(value: float) -> float:
    """Return a share in percent, rounded to what ten thousand images tell apart."""
    return round(100 * value, 3)


def clean_row(setup: Setup, case: str, what: str, looks: list[Errors], made: list[Network], **more: Any) -> None:
    """Write the error on clean images: the mean over the seeds, and an interval over the images."""
    low, high = mean_interval(torch.stack([look.wrong for look in looks]).double().mean(0).tolist())
    shares = [look.share for look in looks]
    note = f"{', '.join(f'{s:.2%}' for s in shares)}; {made[0].epochs} epochs, {_minutes(made)} CPU minutes a network"
    write(
        setup, case, what, small(sum(shares) / len(shares)), len(looks[0].wrong), made, unit="% of images",
        interval=[small(low), small(high)], by_seed=shares, **(more | {"note": _joined(note, more.get("note", ""))}),
    )  # fmt: skip


def step_row(setup: Setup, case: str, what: str, looks: list[Errors], made: list[Network], **more: Any) -> None:
    """Write the error on stepped images: the mean over the seeds, and an interval over the images."""
    shares = [look.share for look in looks]
    interval = mean_interval(torch.stack([look.wrong for look in looks]).double().mean(0).tolist())
    note = _joined(_each(shares), more.pop("note", ""))
    ours = sum(shares) / len(shares)
    write(
        setup, case, what, ours, len(looks[0].wrong), made, interval=list(interval), by_seed=shares, note=note, **more
    )


def sure_row(setup: Setup, case: str, what: str, looks: list[Errors], made: list[Network], **more: Any) -> None:
    """Write the mean confidence on errors; n counts the errors of all seeds."""
    levels = [look.confidence for look in looks]
    count = sum(int(look.wrong.sum()) for look in looks)
    write(setup, case, what, sum(levels) / len(levels), count, made, by_seed=levels, note=_each(levels), **more)


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.1%}" for value in values) if len(values) > 1 else ""


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _minutes(made: list[Network]) -> str:
    return f"{sum(net.seconds for net in made) / len(made) / 60:.1f}"


# ---- cases


PUBLISHED: dict[tuple[str, int], dict[str, float]] = {
    ("plain", 240): {"clean": 0.94, "fgsm": 0.894, "confidence": 0.976},
    ("mixed", 240): {"clean": 0.84, "fgsm": 0.179, "confidence": 0.814},
    ("corners", 240): {"fgsm": 0.862, "confidence": 0.973},
    ("uniform", 240): {"fgsm": 0.904, "confidence": 0.978},
    ("plain", 1600): {"clean": 1.14},
    ("mixed", 1600): {"clean": 0.782},
}
"""Of each kind and number of units; clean errors in percent."""


def alone(setup: Setup, kind: str) -> None:
    """Measure the networks of one kind: on clean images, under FGSM, and how sure they are of those errors."""
    x, y = published.images("mnist")
    made, words = setup.networks(kind), f"{setup.title}, {KINDS[kind].words}"
    known = PUBLISHED.get((kind, setup.units), {})
    clean_row(
        setup, f"clean-{kind}", f"error, {words}", [net.errors(x, y) for net in made], made,
        published=known.get("clean"),
    )  # fmt: skip
    looks = [net.errors(net.stepped(x, y), y) for net in made]
    random = [net.errors(signed(x), y) for net in made]
    step_row(
        setup, f"fgsm-{kind}", f"error under FGSM {EPS}, {words}", looks, made, published=known.get("fgsm"),
        note=f"under random signs of {EPS} {_mean(random):.1%}",
    )  # fmt: skip
    sure_row(
        setup, f"confidence-{kind}", f"confidence on these errors, {words}", looks, made,
        published=known.get("confidence"),
    )  # fmt: skip


def signed(x: Tensor) -> Tensor:
    """Return x with every value moved by eps up or down at random, inside [0, 1]: the control of FGSM."""
    up = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return (x + torch.where(up, EPS, -EPS)).clamp(0, 1)


def gain_row(setup: Setup, case: str, title: str, plain: list[Network], hard: list[Network], **more: Any) -> None:
    """Write the clean error that adversarial training takes away, paired by image and seed, in percentage points."""
    x, y = published.images("mnist")
    without, trained = (torch.stack([net.errors(x, y).wrong for net in made]) for made in (plain, hard))
    gap, low, high = difference(without, trained)
    by_seed = [small(float(row)) for row in (without.double() - trained.double()).mean(1)]
    verdict = said(low, high) if len(setup.seeds) > 1 else "undecided with one seed"
    write(
        setup, case, f"error that adversarial training takes away, paired, {title}", small(gap), len(y), plain + hard,
        unit="points", interval=[small(low), small(high)], by_seed=by_seed, verdict=verdict,
        note=f"{', '.join(f'{g:+.2f}' for g in by_seed)}; {plain[0].epochs} epochs without, {hard[0].epochs} with; "
        f"bootstrap over seeds and images; that it improves clean accuracy is {verdict} at this length", **more,
    )  # fmt: skip


def shifted(setup: Setup) -> None:
    """Measure both ways of training where every image is shifted by up to a pixel, with less dropout."""
    for kind in ("plain-shifted", "mixed-shifted"):
        alone(setup, kind)
    plain, hard = setup.networks("plain-shifted"), setup.networks("mixed-shifted")
    gain_row(setup, "gain-shifted", f"{setup.title}, images shifted", plain, hard)


def compared(setup: Setup) -> None:
    """Measure what adversarial training gains on clean images, and each network on the other's examples."""
    x, y = published.images("mnist")
    plain, hard = setup.networks("plain"), setup.networks("mixed")
    gain_row(setup, "gain", setup.title, plain, hard, published={240: 0.1, 1600: 0.358}.get(setup.units))
    for case, shown, source, theirs, what in (
        ("old-on-new", hard, plain, 0.196, "with adversarial training on examples made without it"),
        ("new-on-old", plain, hard, 0.409, "without adversarial training on examples made with it"),
    ):
        looks = [net.errors(other.stepped(x, y), y) for net, other in zip(shown, source, strict=True)]
        known = theirs if setup.units == 240 else None
        what = f"error under FGSM {EPS}, {setup.title}, {what}"
        step_row(setup, f"transfer-{case}", what, looks, shown, published=known)


def decay(setup: Setup) -> None:
    """Measure the other control: L1 weight decay on the first layer."""
    x, y = published.images("mnist")
    for kind, theirs in (("l1-0.0025", "stuck above 5%"), ("l1-0.00025", None), ("l1-0", None)):
        made = setup.networks(kind)
        train = [net.errors(*nets.training()) for net in made]
        clean, hard = [net.errors(x, y) for net in made], [net.errors(net.stepped(x, y), y) for net in made]
        note = f"test error {_mean(clean):.2%}, under FGSM {EPS} {_mean(hard):.1%}"
        what = f"training error, {setup.title}, {KINDS[kind].words}"
        clean_row(setup, kind, what, train, made, published=theirs, note=note)


def _mean(looks: list[Errors]) -> float:
    return sum(look.share for look in looks) / len(looks)


class Signed(nn.Module):
    """Logistic regression as scores of two classes: z = w . x + b of the second, the first's is its negative."""

    def __init__(self, numel: int = 784) -> None:
        super().__init__()
        self.linear = nn.Linear(numel, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, ...] to [n, 2], whose softmax is the logistic of z."""
        z = self.linear(x.flatten(1)) / 2
        return torch.cat([-z, z], 1)


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the threes and sevens alone, the sevens as class 1."""
    chosen = (y == 3) | (y == 7)
    return x[chosen], (y[chosen] == 7).long()


def logistic(setup: Setup) -> None:
    """Measure logistic regression on 3 against 7, whose worst case within the ball is known exactly."""
    x, y = pair(*published.images("mnist"))
    ways: dict[str, tuple[str, Objective]] = {
        "plain": ("", standard), "trained": (", trained on it", adversarial(attacks.fgsm(), uf.linf(EPS))),
    }  # fmt: skip
    for kind, (words, objective) in ways.items():
        settings: dict[str, Any] = {"epochs": 30, "lr": 1e-3, "batch_size": 128}
        made = [
            Network(*nets.kept(f"classic-logistic-{kind}-{seed}", Signed, lambda: pair(*nets.training()), objective,
                               seed=seed, **settings), settings["epochs"], "cpu")
            for seed in setup.seeds
        ]  # fmt: skip
        clean, hard = [net.errors(x, y) for net in made], [net.errors(net.stepped(x, y), y) for net in made]
        free = []
        for net in made:
            scores = net.module(x)
            margin = (scores[:, 1] - scores[:, 0]) * (2 * y - 1)
            reach = EPS * net.module.get_parameter("linear.weight").abs().sum()
            free.append(float((margin <= reach).double().mean()))
        what = "logistic regression, 3 against 7"
        known: dict[str, Any] = {"published": 1.6} if kind == "plain" else {}
        clean_row(setup, f"logistic-clean-{kind}", f"error, {what}{words}", clean, made, **known, recipe=settings)
        known = {"published": 0.99} if kind == "plain" else {}
        step_row(
            setup, f"logistic-fgsm-{kind}", f"error under FGSM {EPS}, the worst case, {what}{words}", hard, made,
            **known, recipe=settings, note=f"where changes may leave [0, 1]: {sum(free) / len(free):.1%}",
        )  # fmt: skip


def suite(setup: Setup) -> None:
    """Measure the maxout networks under attacks of many steps."""
    judged(setup, "", setup.title, {kind: setup.networks(kind) for kind in ("plain", "mixed")})


def convolutional(setup: Setup) -> None:
    """Measure a convolutional network as the maxout ones: clean, under FGSM, and under attacks of many steps."""
    x, y = published.images("mnist")
    made = {kind: setup.convolutional(kind) for kind in CONVOLUTIONAL}
    for kind, each in made.items():
        words = f"convolutional network, {KINDS[kind].words}"
        clean_row(setup, f"cnn-clean-{kind}", f"error, {words}", [net.errors(x, y) for net in each], each)
        looks = [net.errors(net.stepped(x, y), y) for net in each]
        step_row(setup, f"cnn-fgsm-{kind}", f"error under FGSM {EPS}, {words}", looks, each)
    gain_row(setup, "cnn-gain", "convolutional network", *made.values())
    judged(setup, "cnn-", "convolutional network", made)


def judged(setup: Setup, prefix: str, title: str, made: dict[str, list[Network]]) -> None:
    """Write the robust accuracy of networks under the suite at every eps, one row a kind."""
    x, y = published.images("mnist", slice(SUITE_IMAGES))
    for kind, each in made.items():
        for eps in SUITE_EPS:
            stepped = [net.errors(net.stepped(x, y, eps), y).share for net in each]
            found = [uf.evaluate(net.module, x, y, uf.linf(eps), suite=SUITE, seed=0) for net in each]
            shares = [got.robust_accuracy for got in found]
            first = [got.attacks[0].robust_accuracy_after for got in found]
            robust = torch.stack([got.robust for got in found]).double().mean(0)
            status = ", ".join(dict.fromkeys(got.status for got in found))
            reasons = dict.fromkeys(reason for got in found for reason in got.reasons)
            note = _joined(
                _each(shares), f"under FGSM {1 - sum(stepped) / len(stepped):.1%}",
                f"after {found[0].attacks[0].name} alone {sum(first) / len(first):.1%}", status,
            )  # fmt: skip
            write(
                setup, f"{prefix}suite-{kind}-{eps:g}",
                f"accuracy at most, suite `{SUITE}`, Linf {eps:g}, {title}, {KINDS[kind].words}",
                sum(shares) / len(shares), len(y), each, interval=list(mean_interval(robust.tolist())), by_seed=shares,
                status=[got.status for got in found], reasons=list(reasons), suite=SUITE, note=note,
            )  # fmt: skip


CASES: dict[str, Callable[[Setup], None]] = {
    **{kind: partial(alone, kind=kind) for kind in ("plain", "mixed", "corners", "uniform")},
    "compared": compared, "shifted": shifted, "decay": decay, "logistic": logistic, "suite": suite,
    "convolutional": convolutional,
}  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Run the named cases, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classic")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="case")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--units", type=int, default=240)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(words)
    setup = Setup(tuple(int(seed) for seed in asked.seeds.split(",")), asked.units, asked.device)
    for case in asked.cases or CASES:
        CASES[case](setup)


if __name__ == "__main__":
    main()
