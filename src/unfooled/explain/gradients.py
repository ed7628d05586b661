"""Whether what moves a target's answer looks like the class to people: gradients and large attacks side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unfooled.core.ask import Asker
from unfooled.core.attack import Attack, as_attack
from unfooled.core.engine import last_iterate
from unfooled.core.explanation import Explanation
from unfooled.core.pictures import show, show_signed
from unfooled.core.target import Target, untouched
from unfooled.core.threat import Ball, as_threat
from unfooled.errors import InputError
from unfooled.losses import cross_entropy_targeted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 8


@dataclass(frozen=True)
class SideBySide(Explanation):
    """Gradients and attacks of `t` targets at the inputs x [n, ...] of classes y int64 [n], aimed at `to` int64 [n].

    `gradients` [t, n, ...] raise the odds of y; `aligned` [t, n] is their cosine with the way from the mean of all
    images to the mean of y's, and `control` [t, n] with the way to the mean of the class `to` instead. `on_edges`
    [t, n] correlates the gradient's size with the contrast around each pixel of x, `control_edges` [t, n] with that of
    the image before. `images` [t, e, n, ...] are the ends of the attack within each of the `threats`, `confidences`
    [t, e, n] the target's in the class `to` there, and `changed` [t, e, n] the cosine of the change with the way from
    y's mean to that of `to`.
    """

    targets: tuple[str, ...]
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    to: Tensor = field(repr=False)
    gradients: Tensor = field(repr=False)
    aligned: Tensor = field(repr=False)
    control: Tensor = field(repr=False)
    on_edges: Tensor = field(repr=False)
    control_edges: Tensor = field(repr=False)
    threats: tuple[str, ...]
    images: Tensor = field(repr=False)
    confidences: Tensor = field(repr=False)
    changed: Tensor = field(repr=False)
    names: Sequence[str] | None
    bounds: tuple[float, float]
    forward: int
    backward: int

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, 0.2 + 0.9 * (1 + len(self.targets) * (1 + len(self.threats)))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a target and threat: the means of the alignments and of the confidence reached."""
        return [
            {
                "target": name,
                "threat": threat,
                "gradient aligned": float(self.aligned[t].mean()),
                "with another class": float(self.control[t].mean()),
                "gradient on edges": float(self.on_edges[t].mean()),
                "on another image's edges": float(self.control_edges[t].mean()),
                "change aligned": float(self.changed[t, e].mean()),
                "confidence": float(self.confidences[t, e].mean()),
                "n": len(self.x),
            }
            for t, name in enumerate(self.targets)
            for e, threat in enumerate(self.threats)
        ]

    def sentence(self) -> str:
        """Return how each target's gradients and changes align with the classes and the images."""
        parts = [
            f"{name}: gradients {float(self.aligned[t].mean()):.2f} (another class's "
            f"{float(self.control[t].mean()):.2f}), changes at {self.threats[-1]} "
            f"{float(self.changed[t, -1].mean()):.2f}, size of the gradients with the image's edges "
            f"{float(self.on_edges[t].mean()):.2f} (another image's {float(self.control_edges[t].mean()):.2f})"
            for t, name in enumerate(self.targets)
        ]
        return f"Mean cosines with the way to the class's mean over {len(self.x)} images. {'; '.join(parts)}."

    def draw(self, figure: "Figure") -> None:
        """Draw the inputs, and below for each target its gradients and what attacks made of them."""
        shown = min(len(self.x), _SHOWN)
        parts = len(self.threats) + 1
        places = figure.subplots(1 + len(self.targets) * parts, shown + 1, squeeze=False,
                                 width_ratios=[1.6, *[1] * shown])  # fmt: skip
        for line in places:
            line[0].set_axis_off()
        _say(places[0, 0], "input")
        for i in range(shown):
            show(places[0, i + 1], self.x[i], self._name(self.y[i]), bounds=self.bounds)
        for t, name in enumerate(self.targets):
            line = 1 + t * parts
            _say(places[line, 0], f"{name}\ngradient")
            for i in range(shown):
                show_signed(places[line, i + 1], self.gradients[t, i])
            for e, threat in enumerate(self.threats):
                _say(places[line + 1 + e, 0], f"{name}\n{threat}")
                for i in range(shown):
                    title = f"{self._name(self.to[i])}: {float(self.confidences[t, e, i]):.0%}"
                    show(places[line + 1 + e, i + 1], self.images[t, e, i], title, bounds=self.bounds)

    def _name(self, label: Tensor) -> str:
        return self.names[int(label)] if self.names else str(int(label))


def gradients_side_by_side(
    targets: Mapping[str, Target | Callable[..., object]],
    x: Tensor,
    y: Tensor,
    *,
    threats: Sequence[Ball | str],
    attack: Attack[Any] | str,
    to: Tensor | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> SideBySide:
    """Set input gradients and attacks with a large eps of several targets side by side, and measure their alignment.

    Those of adversarially trained networks look like the classes to people (Madry et al. 2018, fig. 12; Tsipras et al.
    2019, arXiv 1805.12152, section 3; Santurkar et al. 2019, arXiv 1906.09453). The measures are the cosine with the
    way to the class's mean image, and the correlation of the gradient's size with the image's own contrast, the range
    of values in the 3 x 3 pixels around each. `attack` goes from x [n, c, h, w] towards `to` int64 [n] (None: the class
    after y) within every one of `threats`, all its steps. Class means are those of `data`, images and labels (None: x
    and y).

    Raises:
        InputError: no targets or threats, targets with different bounds, or a class of y or `to` without images.
    """
    if not targets or not threats:
        raise InputError("Side by side needs at least one target and one threat.")
    askers = {name: Asker(target) for name, target in targets.items()}
    bounds = {asker.target.bounds for asker in askers.values()}
    if len(bounds) > 1 or x.dim() != 4 or y.shape != (len(x),) or len(x) < 2:
        raise InputError("The targets must have the same bounds, x two images [n, c, h, w] or more, y their labels.")
    recipe = as_attack(attack)
    balls = [as_threat(threat) for threat in threats]
    means, edges = _means(*(data or (x, y))), _contrast(x.detach().float().cpu())
    to = (y + 1) % len(means) if to is None else to
    if not bool(means[y].isfinite().all() and means[to].isfinite().all()):
        raise InputError("A class of y or `to` has no image to take a mean of: give more in data=.")
    middle = means.nanmean(0)
    found: dict[str, list[Tensor]] = {
        key: [] for key in ("gradients", "aligned", "control", "on", "off", "images", "sure", "changed")
    }
    for asker in askers.values():
        here, labels = x.detach().to(asker.target.device, asker.target.work_dtype), y.to(asker.target.device)
        aims = to.to(asker.target.device)
        grad = asker.gradient(here, lambda scores, rows, labels=labels: cross_entropy_targeted(scores, labels[rows]))[2]  # type: ignore[misc]
        ends = torch.stack([_attacked(asker, recipe, here, labels, aims, ball, seed) for ball in balls])
        sure = [asker.confidences(end).gather(1, aims.view(-1, 1))[:, 0].cpu() for end in ends]
        grad, ends = grad.cpu(), ends.cpu()
        found["gradients"].append(grad)
        found["aligned"].append(_cosine(grad, means[y] - middle))
        found["control"].append(_cosine(grad, means[to] - middle))
        found["on"].append(_correlation(grad.abs().sum(1), edges))
        found["off"].append(_correlation(grad.abs().sum(1), edges.roll(1, 0)))
        found["images"].append(ends)
        found["sure"].append(torch.stack(sure))
        found["changed"].append(torch.stack([_cosine(end - here.cpu(), means[to] - means[y]) for end in ends]))
    got = {key: torch.stack(parts) for key, parts in found.items()}
    first = next(iter(askers.values())).target
    return SideBySide(
        targets=tuple(askers), x=x.cpu(), y=y.cpu(), to=to.cpu(), threats=tuple(repr(ball) for ball in balls),
        gradients=got["gradients"], aligned=got["aligned"], control=got["control"], on_edges=got["on"],
        control_edges=got["off"], images=got["images"], confidences=got["sure"], changed=got["changed"],
        names=first.classes, bounds=first.bounds, forward=sum(asker.forward for asker in askers.values()),
        backward=sum(asker.backward for asker in askers.values()),
    )  # fmt: skip


def _attacked(asker: Asker, attack: Attack[Any], x: Tensor, y: Tensor, to: Tensor, ball: Ball, seed: int) -> Tensor:
    """Return the attack's last iterates towards the classes `to`, [n, ...]."""
    parts = []
    with torch.inference_mode(False), untouched(asker.target):
        for at in torch.arange(len(x), device=x.device).split(len(asker.split(x)[0])):
            ids = at.cpu().numpy()
            parts.append(last_iterate(attack, asker.target, x[at], y[at], ball, seed=seed, ids=ids, to=to[at]))
    return torch.cat(parts)


def _means(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean image of every class, [k, ...]; not a number where a class has none."""
    k = int(y.max()) + 1
    sums = torch.zeros(k, *x.shape[1:]).index_add_(0, y.cpu(), x.detach().float().cpu())
    return sums / torch.bincount(y.cpu(), minlength=k).view(-1, *[1] * (x.dim() - 1))


def _contrast(x: Tensor) -> Tensor:
    """Return the range of values in the 3 x 3 pixels around each pixel of x [n, c, h, w], summed over channels."""
    most, least = (torch.nn.functional.max_pool2d(sign * x, 3, 1, 1) for sign in (1, -1))
    return (most + least).sum(1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return _cosine(*(t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (a, b)))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def _say(axes: Any, text: str) -> None:
    axes.text(1.0, 0.5, text, ha="right", va="center", fontsize=8, transform=axes.transAxes)
