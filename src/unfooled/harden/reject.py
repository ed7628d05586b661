"""Abstention that is trained: networks that may answer "none of these", and how well they tell when to.

What a network should refuse comes in as an argument: images (fooling images, another data set), noise, or whatever a
function makes of a batch, such as adversarial examples (`objectives.attacked`).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled._noise import Noise, row_keys
from unfooled._rows import sent
from unfooled.core import fit
from unfooled.core.ask import Asker, confidences
from unfooled.core.explanation import COLOURS, Explanation
from unfooled.core.target import Target, as_target
from unfooled.errors import InputError
from unfooled.stats import auroc, auroc_interval, wilson

from .objectives import telling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Outliers: TypeAlias = fit.Perturb
"""`(module, x [b, ...], y, ids, step) -> outliers [m, ...]`: what should be refused, made for every batch anew."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(scores [b, k], y int64 [b]) -> [b]`, where y is NONE for what should be refused."""

NONE = -1
SURE = 0.99


def as_class(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy [b] with the last score as the class of rubbish (Nguyen et al. 2014, 1412.1897)."""
    return F.cross_entropy(scores, torch.where(y == NONE, scores.shape[1] - 1, y), reduction="none")


def as_no_class(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean cost [b] of one binary classifier a class, none of which should know rubbish.

    The sigmoid head of Goodfellow et al. 2014 (arXiv:1412.6572, appendix A); wear it behind `Sigmoids`.
    """
    k = scores.shape[1]
    wanted = F.one_hot(torch.where(y == NONE, k, y), k + 1)[:, :k].to(scores)
    return F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").mean(1)


def as_unsure(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy [b], for rubbish against equal shares (Outlier Exposure, arXiv:1812.04606, eq. 1).

    The network then refuses by a threshold on its confidence (`threshold`).
    """
    flat = scores.logsumexp(1) - scores.mean(1)
    return torch.where(y == NONE, flat, F.cross_entropy(scores, y.clamp(min=0), reduction="none"))


@telling
def abstaining(outliers: Tensor | Outliers, loss: Loss = as_class, *, weight: float = 0.5) -> fit.Objective:
    """Return the mean loss on the batch plus `weight` times that on outliers, which should be refused (an objective).

    Args:
        outliers: images [m, ...], drawn half as many as the batch has at every step; or what makes them.
        loss: how refusing is learned: `as_class`, `as_no_class`, `as_unsure`.
        weight: of the outliers' mean loss (0.5: Hendrycks et al. 2019, section 4.3).

    Raises:
        InputError: no outliers, a weight that is no positive number.

    Refusing is learned where the outliers are: of rubbish that does not resemble them nothing is promised.
    """
    if not weight > 0:
        raise InputError(f"weight must be larger than 0, not {weight}: without it nothing is learned from outliers.")
    make = drawn(outliers) if isinstance(outliers, Tensor) else outliers

    def objective(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        rubbish = make(module, x, y, ids, step).to(x)
        scores = module(torch.cat([x, rubbish]))
        known, unknown = scores[: len(x)], scores[len(x) :]
        refused = torch.full((len(rubbish),), NONE, device=y.device)
        return loss(known, y).mean() + weight * loss(unknown, refused).mean()

    return objective


def drawn(images: Tensor) -> Outliers:
    """Return outliers drawn from images [m, ...], half as many as the batch has; raises InputError for none."""
    if not len(images):
        raise InputError("Abstaining is learned from outliers; give at least one.")

    def make(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return sent(images[sent(torch.randint(len(images), (_half(x),)), images.device)], x.device).to(x.dtype)

    return make


def noise(bounds: tuple[float, float] = (0.0, 1.0), *, seed: int = 0) -> Outliers:
    """Return outliers that are noise, half as many as the batch has: every second one N(0, 1), else uniform in bounds.

    The draws belong to (seed, the row's place in the data, step).
    """
    lo, hi = bounds

    def make(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        few = ids[: _half(x)]
        luck = Noise(sent(torch.from_numpy(row_keys(seed, few.cpu().numpy(), "outliers")), x.device))
        flat = lo + (hi - lo) * luck.uniform(step, x.shape[1:], 1, x.dtype)
        normal = luck.normal(step, x.shape[1:], 2, x.dtype)
        even = (torch.arange(len(few), device=x.device) % 2 == 0).view(-1, *[1] * (x.dim() - 1))
        return torch.where(even, normal, flat)

    return make


def together(*sources: Tensor | Outliers) -> Outliers:
    """Return the outliers of several sources, one after the other in every batch."""
    makers = [drawn(each) if isinstance(each, Tensor) else each for each in sources]

    def make(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        return torch.cat([each(module, x, y, ids, step) for each in makers])

    return make


def threshold(target: Target | Callable[..., Any], x: Tensor, *, rejected: float = 0.05) -> float:
    """Return the confidence below which `rejected` of natural images x [n, ...] lie: give it to `Target(reject=)`.

    Raises:
        InputError: a share outside (0, 1), a target that is so sure of all images that no confidence tells them apart.
    """
    if not 0 < rejected < 1:
        raise InputError(f"rejected is a share between 0 and 1, not {rejected}.")
    found = float(torch.quantile(Asker(target).confidences(x).double().amax(1), rejected))
    if not found < 1:
        raise InputError("The target is completely sure of these images: no confidence refuses some of them alone.")
    return found


@dataclass(frozen=True, eq=False)
class Abstention(Explanation):
    """What a target that may abstain does with natural images and with outliers, by kind; "natural" is the first.

    `doubt` [n] is what it refuses by (higher: sooner), `accepted` bool [n] whether it answers, `sure` [n] its highest
    confidence in a class; `right` bool [n] are the natural images called right, accepted or not.
    """

    target: str
    doubt: dict[str, Tensor] = field(repr=False)
    accepted: dict[str, Tensor] = field(repr=False)
    sure: dict[str, Tensor] = field(repr=False)
    right: Tensor = field(repr=False)

    @property
    def clean(self) -> float:
        """The share of natural images that are right and accepted."""
        return float((self.right & self.accepted["natural"]).double().mean())

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind: the share answered, the share called a class above 99%, and how well it is told."""
        return [self._row(kind) for kind in self.doubt]

    def _row(self, kind: str) -> dict[str, Any]:
        answered, n = self.accepted[kind], len(self.accepted[kind])
        sure = answered & (self.sure[kind] > SURE)
        natural, these = self.doubt["natural"].tolist(), self.doubt[kind].tolist()
        area = None if kind == "natural" else auroc(these, natural)
        return {
            "images": kind,
            "n": n,
            "answered": float(answered.double().mean()),
            "interval": list(wilson(int(answered.sum()), n)),
            "called a class above 99%": float(sure.double().mean()),
            "sure interval": list(wilson(int(sure.sum()), n)),
            "AUROC": area,
            "AUROC interval": None if area is None else list(auroc_interval(area, n, len(natural))),
        }

    def sentence(self) -> str:
        """Return what is answered of natural images, the control, and of each kind of outliers."""
        first, *others = self.rows()
        said = (
            f"{self.target} answers {first['answered']:.1%} of {first['n']:,} natural images, "
            f"{self.clean:.1%} right and accepted"
        )
        more = "; ".join(
            f"{row['images']}: {row['answered']:.1%} answered, {row['called a class above 99%']:.1%} called a class "
            f"above 99%, AUROC {row['AUROC']:.3f} (n = {row['n']:,})"
            for row in others
        )
        return f"{said}. Of what it should refuse: {more}." if more else f"{said}."

    def draw(self, figure: "Figure") -> None:
        """Draw for each kind the share answered, and called a class above 99%."""
        axes, rows = figure.subplots(), self.rows()[::-1]
        at = range(len(rows))
        axes.barh([i + 0.2 for i in at], [100 * r["answered"] for r in rows], 0.38, color=COLOURS[0], label="answered")
        axes.barh([i - 0.2 for i in at], [100 * r["called a class above 99%"] for r in rows], 0.38, color=COLOURS[1],
                  label="called a class above 99%")  # fmt: skip
        for i, row in enumerate(rows):
            if row["AUROC"] is not None:
                axes.text(101, i, f"AUROC {row['AUROC']:.3f}", va="center", fontsize=8)
        axes.set_yticks(list(at), [f"{row['images']} ({row['n']:,})" for row in rows])
        axes.set(xlim=(0, 122), xlabel="share of images, %", xticks=range(0, 101, 20))
        axes.set_title(self.target)
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.06), ncols=2)


def judged(
    target: Target | Callable[..., Any], x: Tensor, y: Tensor, outliers: Mapping[str, Tensor] | None = None
) -> Abstention:
    """Return how well a target refuses, on natural images x [n, ...] with labels y int64 [n] and on outliers by kind.

    Give outliers that it was not trained on, and fooling images that were made against this very target. What an
    attack that knows of the refusal does to natural images, `evaluate` says (`reject=`).

    Raises:
        InputError: outliers of another shape, labels that are not as many as images.
    """
    asked = as_target(target)
    whole = copy.copy(asked)
    whole.reject = None  # its last score is asked for as well
    asker = Asker(whole)
    if len(x) != len(y):
        raise InputError(f"Give as many labels as images, not {len(y)} and {len(x)}.")
    doubt: dict[str, Tensor] = {}
    accepted: dict[str, Tensor] = {}
    sure: dict[str, Tensor] = {}
    for kind, images in {"natural": x, **(outliers or {})}.items():
        if images.shape[1:] != x.shape[1:]:
            raise InputError(
                f"The {kind} have shape {tuple(images.shape[1:])}, natural images {tuple(x.shape[1:])}; give the same."
            )
        scores = asker.scores(images)
        classes, answered = asked.split(scores)
        certain = confidences(scores)[:, : classes.shape[1]].amax(1)
        accepted[kind] = torch.ones_like(certain, dtype=torch.bool) if answered is None else answered
        doubt[kind] = scores[:, -1] - classes.amax(1) if asked.reject == "last" else -certain
        sure[kind] = certain
        if kind == "natural":
            right = classes.argmax(1) == y.to(classes.device)
    return Abstention(asked.name, doubt, accepted, sure, right)


def _half(x: Tensor) -> int:
    return max(1, len(x) // 2)
