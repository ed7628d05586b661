"""Which values of an input a score depends on, and which values of a change move it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from unfooled._noise import Noise, row_keys
from unfooled._rows import column
from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.layers import copied, shuffled, weighted
from unfooled.core.pictures import show, show_signed
from unfooled.core.target import Target
from unfooled.errors import InputError, MissingExtra, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["saliency", "input_x_gradient", "integrated_gradients", "guided", "deconvolution"]
METHODS: tuple[Method, ...] = ("saliency", "input_x_gradient", "integrated_gradients", "guided", "deconvolution")

_SHOWN, _CHANGES = 6, 4
_STAGES = 6


@dataclass(frozen=True)
class Attributions(Explanation):
    """Maps [n, ...] of what each value of x [n, ...] adds to the score of `classes` int64 [n].

    `stages` names the layers from which on, up to the scores, weights were shuffled, and `correlations` [s, n] are the
    rank correlations of the maps' sizes before and after, over the values that are not 0 in both: a map that explains
    the network loses its own (Adebayo et al. 2018, cascading randomisation). `residual` [n] is what the maps miss of
    the score's change from the baseline, as a share of it (None: the method does not claim completeness). `note` says
    where a method is not itself.
    """

    method: Method
    x: Tensor = field(repr=False)
    maps: Tensor = field(repr=False)
    classes: Tensor
    names: tuple[str, ...]
    stages: tuple[str, ...]
    correlations: Tensor = field(repr=False)
    residual: Tensor | None
    bounds: tuple[float, float]
    forward: int
    backward: int
    note: str = ""

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, 2.6 + (2.4 if self.stages else 0.0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an input: its class, the residual, the correlation after all layers were shuffled."""
        last = self.correlations[-1].tolist() if self.stages else [None] * len(self.x)
        missed = [None] * len(self.x) if self.residual is None else self.residual.tolist()
        return [
            {"method": self.method, "class": int(c), "name": name, "residual": r, "correlation when shuffled": s}
            for c, name, r, s in zip(self.classes, self.names, missed, last, strict=True)
        ]

    def sentence(self) -> str:
        """Return whether the maps depend on the network, and what they leave unexplained."""
        text = f"{self.method.replace('_', ' ').capitalize()} of {len(self.x)} inputs"
        if self.stages:
            text += (
                f": with the last layer's weights shuffled the maps' rank correlation is "
                f"{float(self.correlations[0].mean()):.2f}, with all layers' {float(self.correlations[-1].mean()):.2f}"
            )
        if self.residual is not None:
            text += f"; the maps miss a median of {float(self.residual.median()):.2%} of the score's change"
        return text + "." + (f" {self.note}" if self.note else "")

    def draw(self, figure: "Figure") -> None:
        """Draw the inputs, their maps below, and the correlations under shuffled weights."""
        shown = min(len(self.x), _SHOWN)
        parts = figure.subfigures(
            2 if self.stages else 1, 1, squeeze=False, height_ratios=[2.6, 2.4][: 1 + bool(self.stages)]
        )
        places = parts[0, 0].subplots(2, shown, squeeze=False)
        for i in range(shown):
            show(places[0, i], self.x[i], self.names[i], bounds=self.bounds)
            show_signed(places[1, i], self.maps[i])
        if self.stages:
            axes = parts[1, 0].subplots()
            at = np.arange(len(self.stages))
            axes.plot(at, self.correlations.cpu().numpy(), color=COLOURS[0], linewidth=0.6, alpha=0.4)
            axes.plot(at, self.correlations.mean(1).cpu().numpy(), "o-", color=COLOURS[0])
            axes.axhline(0, color=SOFT, linewidth=0.8)
            names = [name or "the module" for name in self.stages]
            long = max(map(len, names)) > 8
            axes.set_xticks(at, names, rotation=15 if long else 0, ha="right" if long else "center")
            axes.set_xlabel("weights shuffled from this layer to the scores")
            axes.set_ylabel("rank correlation\nwith the maps above")
            axes.set_ylim(min(-0.2, float(self.correlations.min()) - 0.05), 1.02)
            axes.grid(axis="y")


def attributions(
    target: Target | Callable[..., object],
    x: Tensor,
    classes: Tensor,
    method: Method = "integrated_gradients",
    *,
    baseline: Tensor | None = None,
    steps: int = 64,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Attributions:
    """Return what each value of x [n, ...] adds to the score of `classes` int64 [n], with respect to x as it is given.

    saliency: the gradient (Simonyan et al. 2014). input_x_gradient: times the value. integrated_gradients: times the
    change from `baseline` [...] (None: the lowest value of the box), gradients averaged over `steps` midpoints between
    (Sundararajan et al. 2017, eq. 1). guided (Springenberg et al. 2015) and deconvolution (Zeiler and Fergus 2014):
    gradients that pass ReLUs their own way, through captum (extra `explain`) and for `torch.nn.ReLU` modules alone.

    Raises:
        InputError: an unknown method, or classes and inputs that do not fit together.
        MissingExtra: captum is not installed.
    """
    if method not in METHODS:
        raise InputError(
            f"There is no attribution {method!r}; use one of {', '.join(METHODS)}.{nearest(method, METHODS)}"
        )
    asker = Asker(target, batch_size=batch_size)
    x, classes = _checked(asker, x, classes)
    zero = torch.full_like(x[0], asker.target.bounds[0]) if baseline is None else baseline.to(x)
    if zero.shape != x.shape[1:]:
        raise InputError(f"The baseline has the shape {tuple(zero.shape)}, the inputs {tuple(x.shape[1:])}.")
    maps = _maps(asker, x, classes, method, zero, steps)
    residual = None
    if method == "integrated_gradients":
        moved = _score(asker, x, classes) - _score(asker, zero.expand_as(x), classes)
        residual = _missed(maps, moved)
    names = weighted(asker.target)
    at = np.unique(np.linspace(len(names) - 1, 0, min(_STAGES, len(names))).round().astype(int))[::-1]
    correlations = []
    for first in at:
        twin = Asker(shuffled(asker.target, names[first:], seed), batch_size=batch_size)
        correlations.append(_rank_correlation(maps, _maps(twin, x, classes, method, zero, steps)))
    known = asker.target.classes
    note = ""
    if method in ("guided", "deconvolution"):
        relus = sum(isinstance(m, nn.ReLU) for m in _modules(asker.target))
        note = "" if relus else f"The target has no torch.nn.ReLU modules: its {method} maps are plain gradients."
    return Attributions(
        method=method, x=x, maps=maps, classes=classes, stages=tuple(names[i] for i in at), residual=residual,
        names=tuple(known[int(c)] if known else str(int(c)) for c in classes),
        correlations=torch.stack(correlations) if correlations else maps.new_zeros(0, len(x)),
        bounds=asker.target.bounds, forward=asker.forward, backward=asker.backward, note=note,
    )  # fmt: skip


@dataclass(frozen=True)
class ChangeAttribution(Explanation):
    """Which values of the change from x to x_adv [n, ...] move the score of `to` against that of `y`, int64 [n] each.

    `maps` [n, ...] are integrated gradients along the straight path, which add up to `moved` [n] but for `residual` [n]
    (a share of it); `first` [n, ...] is the gradient at x times the change. `share` [n] is the smallest share of the
    values that carries half of the move. The control `shuffled` [n] is how far the same change moves the score when its
    values are shuffled over the input.
    """

    x: Tensor = field(repr=False)
    x_adv: Tensor = field(repr=False)
    maps: Tensor = field(repr=False)
    first: Tensor = field(repr=False)
    y: Tensor
    to: Tensor
    moved: Tensor
    residual: Tensor
    share: Tensor
    shuffled: Tensor
    names: tuple[tuple[str, str], ...]
    bounds: tuple[float, float]
    forward: int
    backward: int

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, 0.3 + 1.85 * min(len(self.x), _CHANGES)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an input: how far its change moves the score, and what the maps say of it."""
        first = self.first.flatten(1).sum(1).tolist()
        columns = zip(
            self.names, self.moved.tolist(), first, self.residual.tolist(), self.share.tolist(), self.shuffled.tolist(),
            strict=True,
        )  # fmt: skip
        return [
            {
                "from": names[0], "to": names[1], "moved": moved, "first order": linear, "residual": residual,
                "share for half": share, "moved when shuffled": shuffled,
            }
            for names, moved, linear, residual, share, shuffled in columns
        ]  # fmt: skip

    def sentence(self) -> str:
        """Return how concentrated the change's effect is, and what its direction matters."""
        part = self.shuffled.abs() / self.moved.abs().clamp(min=1e-12)
        of = f" (median of {len(self.x)})" if len(self.x) > 1 else ""
        return (
            f"The change moves the wrong class's score against the right one's by {float(self.moved.median()):.2f}"
            f"{of}; half of that comes from {float(self.share.median()):.1%} of the values. The same change with its "
            f"values shuffled moves it {float(part.median()):.1%} as far; the maps miss "
            f"{float(self.residual.median()):.2%} of the move."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw each input, what it became, the change, and what each of its values did."""
        shown = min(len(self.x), _CHANGES)
        places = figure.subplots(shown, 4, squeeze=False)
        change = self.x_adv - self.x
        for i in range(shown):
            show(places[i, 0], self.x[i], self.names[i][0], bounds=self.bounds)
            show(places[i, 1], self.x_adv[i], self.names[i][1], bounds=self.bounds)
            show_signed(places[i, 2], change[i], "the change" if i == 0 else "")
            show_signed(places[i, 3], self.maps[i], "what it adds to the margin" if i == 0 else "")


def change_attribution(
    target: Target | Callable[..., object],
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    to: Tensor | None = None,
    steps: int = 64,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> ChangeAttribution:
    """Attribute the move of a score from x to x_adv [n, ...] to the values that changed.

    The score is that of `to` int64 [n] (None: the best class other than y at x_adv) less that of y int64 [n]. Maps are
    integrated gradients with x as the baseline (Sundararajan et al. 2017): they add up to the move, up to the error of
    `steps` midpoints.

    Raises:
        InputError: inputs and classes that do not fit together.
    """
    asker = Asker(target, batch_size=batch_size)
    x, y = _checked(asker, x, y)
    if x_adv.shape != x.shape:
        raise InputError(f"x_adv has the shape {tuple(x_adv.shape)}, x {tuple(x.shape)}: they go row by row.")
    x_adv = x_adv.detach().to(x)
    scores = asker.scores(x_adv)
    own = y.view(-1, 1)
    to = scores.scatter(1, own, -torch.inf).argmax(1) if to is None else _checked(asker, x, to)[1]

    def margin(scores: Tensor, rows: Tensor) -> Tensor:
        return (scores.gather(1, to[rows].view(-1, 1)) - scores.gather(1, y[rows].view(-1, 1)))[:, 0]

    change = x_adv - x
    maps = change * _mean_gradient(asker, x, x_adv, margin, steps)
    first = change * asker.gradient(x, margin)[2]
    moved = asker.value(x_adv, margin) - asker.value(x, margin)
    noise = Noise(torch.from_numpy(row_keys(seed, np.arange(len(x)), "shuffled change")).to(x.device))
    order = noise.uniform(0, (change[0].numel(),)).argsort(1)
    mixed = change.flatten(1).gather(1, order).view_as(change)
    shuffled_move = asker.value((x + mixed).clamp(*asker.target.bounds), margin) - asker.value(x, margin)
    known = asker.target.classes
    name = (lambda c: known[c]) if known else str
    return ChangeAttribution(
        x=x, x_adv=x_adv, maps=maps, first=first, y=y, to=to, moved=moved, residual=_missed(maps, moved),
        share=_share_of_half(maps, moved), shuffled=shuffled_move, bounds=asker.target.bounds,
        names=tuple((name(a), name(b)) for a, b in zip(y.tolist(), to.tolist(), strict=True)),
        forward=asker.forward, backward=asker.backward,
    )  # fmt: skip


def _maps(asker: Asker, x: Tensor, classes: Tensor, method: Method, zero: Tensor, steps: int) -> Tensor:
    def score(scores: Tensor, rows: Tensor) -> Tensor:
        return scores.gather(1, classes[rows].view(-1, 1))[:, 0]

    if method in ("guided", "deconvolution"):
        return _through_captum(asker, x, classes, method)
    if method == "integrated_gradients":
        return (x - zero) * _mean_gradient(asker, zero.expand_as(x), x, score, steps)
    grad = asker.gradient(x, score)[2]
    return grad * x if method == "input_x_gradient" else grad


def _mean_gradient(asker: Asker, a: Tensor, b: Tensor, value: Callable[[Tensor, Tensor], Tensor], steps: int) -> Tensor:
    """Return the mean gradient of `value` at the midpoints of `steps` equal parts of the way from a to b [n, ...]."""
    if steps < 1:
        raise InputError(f"A path needs at least one step, not {steps}.")
    n, total = len(a), torch.zeros_like(a)
    at = (torch.arange(steps, device=a.device, dtype=a.dtype) + 0.5) / steps
    for part in at.split(max(1, 256 // n)):
        share = column(part.repeat_interleave(n), a)
        points = torch.cat([a] * len(part)) + share * torch.cat([b - a] * len(part))
        grad = asker.gradient(points, lambda scores, rows: value(scores, rows % n))[2]
        total += grad.view(len(part), *a.shape).sum(0)
    return total / steps


class _Scores(nn.Module):
    """The scores of a target whose module is visible to hooks."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        if isinstance(target.module, nn.Module):
            self.module = target.module

    def forward(self, x: Tensor) -> Tensor:
        return self.target.split(self.target.scores(x))[0]


def _through_captum(asker: Asker, x: Tensor, classes: Tensor, method: Method) -> Tensor:
    try:
        from captum.attr import Deconvolution, GuidedBackprop
    except ImportError:
        raise MissingExtra("Guided gradients and deconvolution need captum: pip install 'unfooled[explain]'.") from None
    twin = copied(asker.target)
    way = (GuidedBackprop if method == "guided" else Deconvolution)(_Scores(twin))
    parts = []
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
        warnings.simplefilter("ignore")  # captum warns that it sets hooks on ReLUs, which the copy is for
        for rows, labels in zip(asker.split(x), asker.split(classes), strict=True):
            parts.append(way.attribute(rows.detach().clone().requires_grad_(True), target=labels).detach())
    asker.oracle.forward += len(x)
    asker.oracle.backward += len(x)
    return torch.cat(parts)


def _modules(target: Target) -> list[nn.Module]:
    return list(target.module.modules()) if isinstance(target.module, nn.Module) else []


def _checked(asker: Asker, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and classes on the target's device; raises InputError where they do not fit together."""
    if not isinstance(classes, Tensor) or classes.shape != (len(x),) or classes.is_floating_point() or not len(x):
        raise InputError(f"There must be one class number for each of at least one input: int64 [{len(x)}].")
    x = x.detach().to(asker.target.device, asker.target.work_dtype)
    count = asker.scores(x[:1]).shape[1]
    if not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise InputError(f"The target has {count} classes, numbered from 0; there is no {int(classes.max())}.")
    return x, classes.to(x.device)


def _score(asker: Asker, x: Tensor, classes: Tensor) -> Tensor:
    return asker.scores(x).gather(1, classes.view(-1, 1))[:, 0]


def _missed(maps: Tensor, moved: Tensor) -> Tensor:
    return (maps.flatten(1).sum(1) - moved).abs() / moved.abs().clamp(min=1e-6)


def _share_of_half(maps: Tensor, moved: Tensor) -> Tensor:
    """Return the smallest share of the values whose attributions add up to half of the move, [n]."""
    towards = maps.flatten(1) * moved.sign().view(-1, 1)
    most = towards.sort(dim=1, descending=True).values.cumsum(1)
    reached = most >= 0.5 * moved.abs().view(-1, 1)
    first = torch.where(reached.any(1), reached.int().argmax(1) + 1, towards.shape[1])
    return first / towards.shape[1]


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation of the sizes of two maps [n, ...] over values that are not 0 in both, [n].

    Values that are 0 in both, as products with black pixels are, say nothing of the network. 0 where a map is constant.
    """
    sizes = [t.flatten(1).abs().double().cpu().numpy() for t in (a, b)]
    silent = (sizes[0] == 0) & (sizes[1] == 0)
    ranks = [rankdata(np.where(silent, np.inf, size), axis=1) for size in sizes]  # behind all others
    told = np.maximum((~silent).sum(1, keepdims=True), 1)
    p, q = (np.where(silent, 0.0, r - np.where(silent, 0.0, r).sum(1, keepdims=True) / told) for r in ranks)
    size = np.sqrt((p**2).sum(1) * (q**2).sum(1))
    return torch.from_numpy((p * q).sum(1) / np.where(size > 0, size, 1.0)).to(a)
