"""Robust and non-robust features: data sets that hold one kind alone, and what a network learns from each.

Ilyas et al. 2019, arXiv 1905.02175: a standard network leans on features that predict the class although a small
change flips them. A robust set keeps what a hardened module sees; a relabelled set keeps nothing but what flips.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.ask import Asker
from ..core.attack import Attack, as_attack
from ..core.engine import last_iterate
from ..core.explanation import COLOURS, INK, SOFT, Explanation
from ..core.fit import Augment, fit
from ..core.result import Status
from ..core.run import auto_width, check_inputs, run
from ..core.target import Target, as_target, untouched
from ..core.threat import Threat
from ..errors import InputError, nearest
from ..norms import L2
from ..stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {
    "robust": (0.84, 0.48),
    "non-robust": (0.88, 0.0),
    "random labels": (0.63, 0.0),
    "shifted labels": (0.44, 0.0),
}
"""Clean accuracy and robust accuracy at L2 0.25 of a ResNet-50 on CIFAR-10 by the set that it was trained on (the data
sets that Ilyas et al. released)."""

PENULTIMATE = "penultimate"


@dataclass(frozen=True)
class FeatureSet(Explanation):
    """A data set made of another: inputs x [n, ...] and the labels y int64 [n] that they are to be learned with.

    `origin` [n, ...] are the images that it was made of, `truth` int64 [n] their labels, and `before` [n, ...] the
    inputs before they were changed. `residual` [n] is what the making left undone: the share of the distance between
    the representations, or what the target's confidence in the new label lacks of 1.
    """

    name: str
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    truth: Tensor = field(repr=False)
    origin: Tensor = field(repr=False)
    before: Tensor = field(repr=False)
    residual: Tensor = field(repr=False)

    size: ClassVar[tuple[float, float]] = (7.0, 2.4)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an example: its label, that of its original, the L2 size of the change, the residual."""
        columns = (self.y, self.truth, L2.size(self.x - self.before), self.residual)
        names = ("label", "truth", "change", "residual")
        return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def sentence(self) -> str:
        """Return how many inputs there are, how many have another label than their original, and what was left."""
        other = float((self.y != self.truth).double().mean())
        return (
            f"The {self.name} set has {len(self.y):,} inputs, {other:.0%} of them with another label than the image "
            f"that they were made of; a median of {float(self.residual.median()):.1%} of the way was left undone."
        )

    def unchanged(self) -> "FeatureSet":
        """Return the control: the same labels on the inputs as they were before they were changed."""
        full = torch.ones_like(self.residual)
        return FeatureSet(f"{self.name}, unchanged", self.before, self.y, self.truth, self.origin, self.before, full)

    def draw(self, figure: "Figure") -> None:
        """Draw up to eight originals above what was made of them, with their labels."""
        shown = min(8, len(self.y))
        axes = figure.subplots(2, shown, squeeze=False)
        for row, (images, labels) in enumerate(((self.origin, self.truth), (self.x, self.y))):
            for column in range(shown):
                ax = axes[row, column]
                ax.imshow(_pixels(images[column]), cmap="gray", vmin=0, vmax=1)
                ax.set_title(str(int(labels[column])), loc="center", fontsize=8)
                ax.set_xticks([])
                ax.set_yticks([])
        axes[0, 0].set_ylabel("original")
        axes[1, 0].set_ylabel(self.name)


def robust_set(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    layer: str = PENULTIMATE,
    steps: int = 100,
    lr: float = 0.5,
    seed: int = 0,
    start: Literal["other images", "noise"] = "other images",
) -> FeatureSet:
    """Return for each x [n, ...] an input that a hardened module sees as it sees x (Ilyas et al. 2019, equation 6).

    From another image, steps of L2 length `lr`, falling linearly to 0, go down the gradient of the distance between
    the representations. The paper makes 1,000 steps of length 0.1.

    Args:
        target: the hardened module, on any device.
        x, y: inputs within its bounds and their labels int64 [n].
        layer: the part of the module whose output, flattened, is the representation; "penultimate": what enters its
            last linear layer.
        steps, lr: gradients an input, and the length of the first step in units of the input.
        seed: which other image, or which noise, each input starts at.
        start: "noise" is uniform over the bounds.

    Raises:
        InputError: inputs or settings do not fit, or the module has no such layer.
    """
    return _matched("robust", target, x, y, layer, steps, lr, seed, start)


def non_robust_set(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    layer: str = PENULTIMATE,
    steps: int = 100,
    lr: float = 0.5,
    seed: int = 0,
    start: Literal["other images", "noise"] = "other images",
) -> FeatureSet:
    """Return the control of `robust_set`: the same made with a standard module, whose representation is not robust."""
    return _matched("non-robust", target, x, y, layer, steps, lr, seed, start)


def relabelled(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    attack: Attack[Any] | str,
    threat: Threat,
    *,
    labels: Literal["random", "shifted"] = "random",
    seed: int = 0,
) -> FeatureSet:
    """Return each x [n, ...] changed within the threat towards a new class, and labelled so (Ilyas et al. 2019, 3.2).

    To people all labels that differ from the truth are wrong; what a network learns from the set that holds on natural
    images are features that the change can flip. `labels` "random": any class with the same probability, the true one
    included (D_rand: the robust features say nothing); "shifted": y + 1 modulo the classes (D_det: they mislead).
    Every input is the last iterate of the attack, whether it reached its class or not.

    Raises:
        InputError: inputs, labels or settings do not fit, or the attack does not apply.
    """
    target, threat = as_target(target), threat.within(as_target(target).bounds)
    check_inputs(x, y, threat, target)
    asker = Asker(target)
    k = asker.scores(x[:1]).shape[1]
    if labels == "shifted":
        new = (y + 1) % k
    elif labels == "random":
        new = torch.randint(k, (len(y),), generator=torch.Generator().manual_seed(seed)).to(y.device)
    else:
        raise InputError(f"labels must be 'random' or 'shifted', not {labels!r}.")
    recipe, parts = as_attack(attack), []
    with torch.inference_mode(False), untouched(target):
        for rows in torch.arange(len(x)).split(auto_width(x, target.device)):
            here = x[rows].to(target.device, target.work_dtype)
            own, to = (t[rows].to(target.device) for t in (y, new))
            made = last_iterate(recipe, target, here, own, threat, seed=seed, ids=rows.numpy(), to=to)
            parts.append(made.to(x.device, x.dtype))
    made = torch.cat(parts)
    left = 1 - asker.confidences(made).gather(1, new.view(-1, 1).to(made.device))[:, 0]
    return FeatureSet(f"{labels} labels", made, new, y, x, x, left)


@dataclass(frozen=True)
class UsefulAndRobust(Explanation):
    """What networks that learned from each of `sets` do on natural test images.

    `clean` and `robust` int64 [sets, seeds] count the `tested` images that are right as they are, and right still under
    the attack; `learned` is how many examples each set has, `classes` the number of classes.
    """

    sets: tuple[str, ...]
    learned: tuple[int, ...]
    seeds: tuple[int, ...]
    clean: Tensor
    robust: Tensor
    tested: int
    classes: int
    attack: str
    threat: str

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a set: accuracies over all seeds, the paper's beside them, and chance.

        The 95% intervals cover the choice of test images, which all seeds share, not the luck of training.
        """
        out = []
        for i, (name, learned) in enumerate(zip(self.sets, self.learned, strict=True)):
            row: dict[str, Any] = {"set": name, "learned": learned, "tested": self.tested, "seeds": len(self.seeds)}
            for what, counts, place in (("clean", self.clean, 0), ("robust", self.robust, 1)):
                share = int(counts[i].sum()) / (self.tested * len(self.seeds))
                low, high = wilson(round(share * self.tested), self.tested)
                row |= {what: share, f"{what}_low": low, f"{what}_high": high}
                row[f"{what}_published"] = PUBLISHED[name][place] if name in PUBLISHED else None
            out.append(row | {"chance": 1 / self.classes})
        return out

    def sentence(self) -> str:
        """Return every set's accuracies beside chance."""
        found = [f"{r['set']} {r['clean']:.0%} ({r['robust']:.0%} under attack)" for r in self.rows()]
        return (
            f"Accuracy on {self.tested:,} natural test images after training on each set: {', '.join(found)}; "
            f"chance is {1 / self.classes:.0%}, the attack {self.attack} at {self.threat}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw two bars a set, clean and under attack, with the published values as diamonds."""
        rows = self.rows()
        ax = figure.subplots()
        for what, shift, colour, label in (
            ("clean", -0.2, COLOURS[0], "clean"),
            ("robust", 0.2, COLOURS[1], f"under attack, {self.threat}"),
        ):
            at = [i + shift for i in range(len(rows))]
            share = [100 * r[what] for r in rows]
            ends = [
                [100 * (r[what] - r[f"{what}_low"]) for r in rows],
                [100 * (r[f"{what}_high"] - r[what]) for r in rows],
            ]
            ax.barh(at, share, 0.36, xerr=ends, color=colour, ecolor=SOFT, error_kw={"lw": 1}, label=label)
            known = [(100 * r[f"{what}_published"], a) for r, a in zip(rows, at, strict=True)
                     if r[f"{what}_published"] is not None]  # fmt: skip
            if known:
                name = "published (ResNet-50, CIFAR-10)" if what == "clean" else None
                ax.plot(*zip(*known, strict=True), "D", color=INK, mfc="white", ms=5, label=name, clip_on=False)
        ax.axvline(100 / self.classes, color=SOFT, lw=1, ls=":", label="chance")
        ax.set_yticks(range(len(rows)), [r["set"] for r in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel("accuracy on natural test images, %")
        ax.set_title("What is learned from each set")
        figure.legend(loc="outside lower center", ncols=4)


def useful_and_robust(
    sets: Sequence[FeatureSet],
    make: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    attack: Attack[Any] | str | Sequence[Attack[Any] | str],
    threat: Threat,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    augment: Augment | None = None,
    seeds: Sequence[int] = (0,),
) -> UsefulAndRobust:
    """Train a fresh module on every set and measure it on natural images (Ilyas et al. 2019, figure 2 and table 1).

    Put `set.unchanged()` beside a set to see what its labels alone teach.

    Args:
        sets: what to learn from; their inputs have the shape of x.
        make: an untrained module of a seed.
        x, y: natural test images within (0, 1) and their labels int64 [m].
        attack, threat: what robust accuracy is measured with; it is an upper bound, as strong as the attack.
        epochs, batch_size, lr, weight_decay, augment: as for `core.fit.fit`.
        seeds: one training of every set for each.

    Raises:
        InputError: no set, or data and settings that cannot be trained on or attacked.
    """
    if not sets or not seeds:
        raise InputError("Learning needs at least one set and one seed.")
    clean, robust, k = [], [], 2
    for part in sets:
        for seed in seeds:
            module = make(seed)
            fit(module, part.x, part.y, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed,
                weight_decay=weight_decay, augment=augment)  # fmt: skip
            out = run(attack, module, x, y, threat, seed=seed)
            clean.append(sum(s != Status.MISCLASSIFIED for s in out.status))
            robust.append(sum(s == Status.SURVIVED for s in out.status))
            k = out.classes
    shape = (len(sets), len(seeds))
    return UsefulAndRobust(
        sets=tuple(s.name for s in sets),
        learned=tuple(len(s.y) for s in sets),
        seeds=tuple(seeds),
        clean=torch.tensor(clean).view(shape),
        robust=torch.tensor(robust).view(shape),
        tested=len(y),
        classes=k,
        attack=str(attack) if isinstance(attack, Attack | str) else ", ".join(map(str, attack)),
        threat=repr(threat),
    )


# ---- inputs of a given representation


def _matched(
    name: str,
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    layer: str,
    steps: int,
    lr: float,
    seed: int,
    start: str,
) -> FeatureSet:
    target = as_target(target)
    if steps < 1 or not lr > 0:
        raise InputError(f"steps must be at least 1 and lr positive, not steps={steps}, lr={lr}.")
    if y.shape != (len(x),) or len(x) < 2:
        raise InputError(f"Matching needs at least two inputs and a label for each, not {len(x)} and {len(y)}.")
    before = _beginning(x, start, seed, target.bounds)
    width = auto_width(x, target.device)
    asker, made, residual = Asker(target, batch_size=width), [], []
    with _watched(target, layer) as seen:
        for like, begun in zip(x.split(width), before.split(width), strict=True):
            asker.scores(like)
            goal = seen.pop()
            asker.scores(begun)
            far = L2.size(seen.pop() - goal)

            def gap(_: Tensor, rows: Tensor, goal: Tensor = goal) -> Tensor:
                return (seen.pop() - goal).square().sum(1)

            z = begun
            for t in range(steps):
                grad = asker.gradient(z, gap)[2].to(z.dtype)
                z = (z - lr * (1 - t / steps) * L2.steepest(grad)).clamp(*target.bounds)
            asker.scores(z)
            left = L2.size(seen.pop() - goal)
            made.append(z)
            residual.append(torch.where(far > 0, left / far, 0.0).to(x.device))
    return FeatureSet(name, torch.cat(made), y, y, x, before, torch.cat(residual))


def _beginning(x: Tensor, start: str, seed: int, bounds: tuple[float, float]) -> Tensor:
    """Return where the search for each x begins: at another image, or at noise, [n, ...]."""
    luck = torch.Generator().manual_seed(seed)
    if start == "other images":
        order = torch.randperm(len(x), generator=luck)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all images: none stays in its place
        return x[other.to(x.device)]
    if start == "noise":
        noise = torch.rand(x.shape, generator=luck).to(x.device, x.dtype)
        return bounds[0] + (bounds[1] - bounds[0]) * noise
    raise InputError(f"start must be 'other images' or 'noise', not {start!r}.")


@contextmanager
def _watched(target: Target, layer: str) -> Iterator[list[Tensor]]:
    """Yield a list that gets the representation [b, f] of every batch that goes through the target."""
    module, seen = target.module, list[Tensor]()
    if not isinstance(module, nn.Module):
        raise InputError(f"A {type(module).__name__} has no layers; representations need a torch module.")
    parts = dict(module.named_modules())
    if layer == PENULTIMATE:
        linear = [m for m in parts.values() if isinstance(m, nn.Linear)]
        if not linear:
            raise InputError(f"The module has no linear layer; name a layer of {', '.join(filter(None, parts))}.")
        hook = linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    elif layer in parts:
        hook = parts[layer].register_forward_hook(lambda _, given, out: seen.append(out.flatten(1)))
    else:
        raise InputError(f"The module has no layer {layer!r}.{nearest(layer, parts)}")
    try:
        yield seen
    finally:
        hook.remove()


def _pixels(image: Tensor) -> Any:
    """Return one image [c, h, w] or [h, w] as an array [h, w] or [h, w, 3], a vector as one line."""
    image = image.detach().cpu().float()
    if image.dim() == 1:
        return image.view(1, -1).numpy()
    if image.dim() == 2:
        return image.numpy()
    return (image[0] if len(image) != 3 else image.permute(1, 2, 0)).clamp(0, 1).numpy()
