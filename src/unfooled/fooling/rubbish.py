"""Inputs that mean nothing, drawn blindly: how often a target is sure of them, beside natural and fooling images."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unfooled.core.ask import Asker, as_logits, confidences
from unfooled.core.explanation import COLOURS, INK, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError, nearest
from unfooled.stats import mean_interval, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Head: TypeAlias = Literal["softmax", "sigmoid", "given"]
"""How scores become confidences: one softmax over the classes, a sigmoid for every class, or as they are."""

Noise: TypeAlias = Literal["normal", "uniform"]
"""N(0, 1) in every value, without bounds, or uniform between the target's bounds."""

_BINS = 40
_VALUES_AT_ONCE = 2**22  # drawn at once: 16 MiB of float32


@dataclass(frozen=True, eq=False)
class Rubbish(Explanation):
    """What a target says of inputs that are noise.

    `confidence` [n] is the highest confidence in any class, `called` int64 [n] that class; an error is a confidence
    above `threshold`. `natural` [m] are the highest confidences on natural images, the control: a target that is sure
    of nothing makes no error either.
    """

    confidence: Tensor
    called: Tensor
    natural: Tensor | None
    classes: tuple[str, ...]
    noise: Noise
    head: Head
    threshold: float

    size: ClassVar[tuple[float, float]] = (8.6, 3.6)

    @property
    def wrong(self) -> Tensor:
        """Return where the target is sure of an input that means nothing, bool [n]."""
        return self.confidence > self.threshold

    @property
    def rate(self) -> float:
        """Return the share of errors."""
        return float(self.wrong.double().mean())

    @property
    def sure(self) -> float:
        """Return the mean confidence on errors; NaN where there are none."""
        return float(self.confidence[self.wrong].double().mean())

    def rows(self) -> list[dict[str, Any]]:
        """Return the errors of all classes together, then of each class."""
        groups = [("all", self.wrong)]
        groups += [(name, self.wrong & (self.called == k)) for k, name in enumerate(self.classes)]
        return [_errors(name, self.confidence, hit) for name, hit in groups]

    def sentence(self) -> str:
        """Return the error rate with its interval, the confidence on errors, and natural images as control."""
        low, high = wilson(int(self.wrong.sum()), len(self.wrong))
        where = {"normal": "N(0, 1)", "uniform": "the uniform distribution on the box"}[self.noise]
        said = (
            f"{self.rate:.1%} ({low:.1%} to {high:.1%}) of {len(self.wrong):,} inputs drawn from {where} are called "
            f"some class with a confidence above {self.threshold:g}"
        )
        said += f", {self.sure:.1%} on average" if bool(self.wrong.any()) else ""
        if self.natural is None:
            return said + "."
        share = float((self.natural > self.threshold).double().mean())
        return f"{said}; of {len(self.natural):,} natural images {share:.1%} are, the mean confidence there being " + (
            f"{float(self.natural.double().mean()):.1%}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the histogram of confidences, and the class of every error."""
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        groups = {"noise": self.confidence} | ({} if self.natural is None else {"natural images": self.natural})
        _histogram(left, groups)
        left.axvline(self.threshold, color=INK, lw=0.8, ls=":")
        left.set_title(f"sure of {self.rate:.1%} of the noise")
        shares = torch.bincount(self.called[self.wrong], minlength=len(self.classes)) / len(self.wrong)
        if len(self.classes) <= 20:
            right.bar(range(len(self.classes)), shares.tolist(), color=COLOURS[0])
            right.set_xticks(
                range(len(self.classes)), self.classes, rotation=45 if max(map(len, self.classes)) > 3 else 0
            )
        else:
            right.bar(range(len(self.classes)), shares.sort(descending=True).values.tolist(), color=COLOURS[0])
            right.set_xlabel("classes, most frequent first")
        right.set_ylim(0, 1.05 * max(0.01, float(shares.max())))
        right.set_ylabel("share of the noise")
        right.set_title("called, above the threshold")


@dataclass(frozen=True, eq=False)
class Sureness(Explanation):
    """The highest confidences [n] in any class for several kinds of images, "random" the first."""

    confidence: dict[str, Tensor]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind: how many images, quantiles of the confidence, the shares above 0.5 and 0.99."""
        return [
            {
                "images": name,
                "n": len(values),
                "median": float(values.double().median()),
                "mean": float(values.double().mean()),
                "largest": float(values.max()),
                "above 0.5": float((values > 0.5).double().mean()),
                "above 0.99": float((values > 0.99).double().mean()),
            }
            for name, values in self.confidence.items()
        ]

    def sentence(self) -> str:
        """Return the median confidence of random images and of every other kind."""
        first, *others = self.rows()
        said = (
            f"Random images get a median confidence of {first['median']:.1%}, {first['above 0.5']:.1%} of "
            f"{first['n']:,} one above 50%"
        )
        more = "; ".join(f"{row['images']} images {row['median']:.2%} ({row['n']:,})" for row in others)
        return said + (f"; medians of others: {more}." if more else ".")

    def draw(self, figure: "Figure") -> None:
        """Draw one histogram a kind."""
        axes = figure.subplots()
        _histogram(axes, {f"{name} ({len(values):,})": values for name, values in self.confidence.items()})


@dataclass(frozen=True, eq=False)
class Aimed(Explanation):
    """One step from noise towards every class (Goodfellow et al. 2014, appendix).

    `confidence` [n, k] is the confidence in class k after the step of size `eps` towards k, `before` [n, k] without
    it; a success is a confidence above `threshold`.
    """

    confidence: Tensor
    before: Tensor
    classes: tuple[str, ...]
    eps: float
    threshold: float

    def rows(self) -> list[dict[str, Any]]:
        """Return the share of successes of all classes together, then of each class, with and without the step."""
        hit, already = self.confidence > self.threshold, self.before > self.threshold
        columns = [("all", hit, already)]
        columns += [(name, hit[:, k], already[:, k]) for k, name in enumerate(self.classes)]
        return [
            {
                "class": name,
                "n": after.numel(),
                "share": float(after.double().mean()),
                "interval": list(
                    mean_interval(hit.double().mean(1).tolist())
                    if name == "all"
                    else wilson(int(after.sum()), len(after))
                ),
                "without the step": float(first.double().mean()),
            }
            for name, after, first in columns
        ]

    def sentence(self) -> str:
        """Return the mean success over the classes, the hardest class, and the success without the step."""
        all_of_them, *each = self.rows()
        hardest = min(each, key=lambda row: row["share"])
        return (
            f"One gradient-sign step of {self.eps:g} turns noise into a given class with a confidence above "
            f"{self.threshold:g} in {all_of_them['share']:.1%} of the draws, least often into {hardest['class']} "
            f"({hardest['share']:.1%}); without the step {all_of_them['without the step']:.1%} are called the class."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the share of successes for each class, with and without the step."""
        axes, rows = figure.subplots(), self.rows()[1:]
        at = range(len(rows))
        axes.bar([i - 0.2 for i in at], [row["share"] for row in rows], 0.4, color=COLOURS[0], label="one step")
        axes.bar(
            [i + 0.2 for i in at], [row["without the step"] for row in rows], 0.4, color=COLOURS[1], label="noise alone"
        )
        axes.set_xticks(list(at), self.classes, rotation=45 if max(map(len, self.classes)) > 3 else 0)
        axes.set_ylabel(f"share above {self.threshold:g}")
        axes.set_ylim(0, 1.12)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.legend(loc="upper right", ncols=2)


def rubbish(
    target: Target | Callable[..., object],
    shape: Sequence[int],
    *,
    n: int = 10_000,
    noise: Noise = "normal",
    head: Head = "softmax",
    threshold: float = 0.5,
    natural: Tensor | None = None,
    seed: int = 0,
) -> Rubbish:
    """Return how often a target is sure of noise (Goodfellow et al. 2014, arXiv:1412.6572, appendix A).

    The inputs are N(0, 1) in every value and are not clipped to the target's bounds, as in the paper: what is measured
    is the answer far from the data, not what an attacker could submit. `noise="uniform"` stays inside the bounds.

    Args:
        target: a `Target`, module or callable.
        shape: of one input, without the batch.
        n: inputs drawn.
        noise: "normal" or "uniform".
        head: how scores become confidences; "sigmoid" for one independent classifier a class (scores are log-odds),
            "given" for scores that are such probabilities already.
        threshold: a confidence above it is an error.
        natural: images [m, *shape] for the control.
        seed: of the draws; the same seed gives the same inputs to every target.

    Raises:
        InputError: settings that make no sense, scores that are no probabilities or not finite.
    """
    asker = Asker(target)
    if not 0 < threshold < 1:
        raise InputError(f"threshold must lie between 0 and 1, not {threshold!r}.")
    got = torch.cat([certain(asker, x, head) for x in _drawn(asker.target, shape, n, noise, seed)])  # [n, k]
    confidence, called = got.max(1)
    control = None if natural is None else certain(asker, natural, head).amax(1)
    return Rubbish(confidence, called, control, _names(asker.target, got.shape[1]), noise, head, threshold)


def random_images(
    target: Target | Callable[..., object],
    shape: Sequence[int],
    *,
    n: int = 10_000,
    compare: Mapping[str, Tensor] | None = None,
    noise: Noise = "uniform",
    head: Head = "softmax",
    seed: int = 0,
) -> Sureness:
    """Return how sure a target is of random images, the first generation of an evolution, beside other images.

    Args:
        target: a `Target`, module or callable.
        shape: of one input, without the batch.
        n: random images.
        compare: other images [m, *shape] by kind, for example `{"fooling": ..., "natural": ...}`.
        noise: "uniform" between the target's bounds, or "normal".
        head: as for `rubbish`.
        seed: of the draws.

    Raises:
        InputError: settings that make no sense, or images of another shape.
    """
    asker = Asker(target)
    found = {
        "random": torch.cat([certain(asker, x, head).amax(1) for x in _drawn(asker.target, shape, n, noise, seed)])
    }
    for name, images in (compare or {}).items():
        if tuple(images.shape[1:]) != tuple(shape) or not len(images):
            raise InputError(
                f"The {name} images have shape {tuple(images.shape)}; expected at least one of shape {tuple(shape)}."
            )
        found[name] = certain(asker, images, head).amax(1)
    return Sureness(found)


def aimed(
    target: Target | Callable[..., object],
    shape: Sequence[int],
    *,
    eps: float,
    n: int = 1000,
    head: Head = "softmax",
    threshold: float = 0.5,
    seed: int = 0,
) -> Aimed:
    """Return how often one gradient-sign step makes N(0, 1) noise a given class (arXiv:1412.6572, appendix A).

    The step is `eps * sign(gradient of log p(class))`, the sign of the paper's gradient of p without its underflow;
    the text there adds the gradient itself, the caption of its figure the sign. The paper names no eps.

    Raises:
        InputError: settings that make no sense.
    """
    if not (math.isfinite(eps) and eps > 0):
        raise InputError(f"eps must be a positive number, not {eps!r}.")
    if not 0 < threshold < 1:
        raise InputError(f"threshold must lie between 0 and 1, not {threshold!r}.")
    asker = Asker(target)
    after: list[Tensor] = []
    before: list[Tensor] = []
    for x in _drawn(asker.target, shape, n, "normal", seed):
        before.append(certain(asker, x, head))
        columns = []
        for k in range(before[-1].shape[1]):
            _, _, grad = asker.gradient(x, lambda scores, rows, k=k: _log(scores, head)[:, k])  # type: ignore[misc]
            columns.append(certain(asker, x + eps * grad.sign(), head)[:, k])
        after.append(torch.stack(columns, 1))
    got = torch.cat(after)
    return Aimed(got, torch.cat(before), _names(asker.target, got.shape[1]), eps, threshold)


def certain(asker: Asker, x: Tensor, head: Head = "softmax") -> Tensor:
    """Return the confidence in every class, [n, k], as the head says; raises InputError for what are none."""
    if head not in get_args(Head):
        raise InputError(
            f"Unknown head {head!r}: use 'softmax', 'sigmoid' or 'given'.{nearest(str(head), get_args(Head))}"
        )
    scores = asker.scores(x)
    odd = int((~scores.isfinite()).any(1).sum())
    if odd:
        raise InputError(
            f"The scores of {odd} of {len(x)} inputs are not finite; the target cannot be asked about them."
        )
    if head == "given" and bool(((scores < 0) | (scores > 1)).any()):
        raise InputError("head='given' needs scores in [0, 1]: use 'sigmoid' for log-odds or 'softmax' for logits.")
    if head == "given":
        return scores
    return confidences(scores) if head == "softmax" else scores.sigmoid()


def _log(scores: Tensor, head: Head) -> Tensor:
    if head == "given":
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return as_logits(scores).log_softmax(1) if head == "softmax" else F.logsigmoid(scores)


def _drawn(target: Target, shape: Sequence[int], n: int, noise: Noise, seed: int) -> Iterator[Tensor]:
    """Yield n inputs in parts whose size depends on the shape alone."""
    if noise not in get_args(Noise):
        raise InputError(f"Unknown noise {noise!r}: use 'normal' or 'uniform'.")
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}.")
    if not shape or min(shape) < 1:
        raise InputError(f"shape must be that of one input, such as (1, 28, 28), not {tuple(shape)}.")
    generator = torch.Generator().manual_seed(seed)
    width = max(1, _VALUES_AT_ONCE // math.prod(shape))
    low, high = target.bounds
    for at in range(0, n, width):
        size = (min(width, n - at), *shape)
        if noise == "normal":
            yield torch.randn(size, generator=generator)
        else:
            yield low + (high - low) * torch.rand(size, generator=generator)


def _names(target: Target, k: int) -> tuple[str, ...]:
    return tuple(target.classes) if target.classes and len(target.classes) == k else tuple(map(str, range(k)))


def _errors(name: str, confidence: Tensor, hit: Tensor) -> dict[str, Any]:
    count = int(hit.sum())
    return {
        "class": name,
        "n": len(hit),
        "errors": count,
        "share": count / len(hit),
        "interval": list(wilson(count, len(hit))),
        "confidence": float(confidence[hit].double().mean()) if count else None,
    }


def _histogram(axes: "Axes", groups: Mapping[str, Tensor]) -> None:
    """Draw the share of each group's images per bin of confidence, on a logarithmic scale."""
    for (name, values), colour in zip(groups.items(), COLOURS, strict=False):
        counts = torch.histc(values.double().cpu(), _BINS, 0.0, 1.0) / len(values)
        edges = [i / _BINS for i in range(_BINS + 1)]
        axes.stairs(counts.tolist(), edges, color=colour, label=name, lw=1.4, fill=False)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.005)
    axes.set_xlabel("highest confidence in any class")
    axes.set_ylabel(f"share of images per {1 / _BINS:g}")
    axes.legend(loc="best")
