"""Fooling images by gradient ascent: from noise or grey to any class, with and without what makes images natural."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from unfooled._noise import Noise, row_keys
from unfooled.core import ascent
from unfooled.core.ask import Asker, as_logits
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.pictures import percent, show
from unfooled.core.target import Target
from unfooled.errors import InputError, nearest
from unfooled.losses import cross_entropy_targeted
from unfooled.parametrise.fourier import Fourier, Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 20
_RANDOM = 256
_VALUES = 2**24  # of images that climb together: 64 MiB, a few times over


@dataclass(frozen=True)
class Recipe:
    """What an ascent climbs over and what it does between its steps."""

    fourier: bool = False
    optimiser: Literal["adam", "normalised"] = "adam"
    regularisers: tuple[ascent.Regulariser, ...] = ()
    transforms: tuple[ascent.Transform, ...] = ()


def _recipes(middle: float, width: float, size: int) -> dict[str, Recipe]:
    """Return the ways to regularise, for a box of this middle and width and images of `size` pixels."""
    decay = ascent.decay(0.1, middle)
    robust = ascent.wobble(jitter=size / 14, rotate=10.0, scale=1.1)
    return {
        "none": Recipe(),
        "l2": Recipe(optimiser="normalised", regularisers=(decay,)),
        "tv": Recipe(optimiser="normalised", regularisers=(decay, ascent.total_variation(0.02 * width, 0.1 * width))),
        "blur": Recipe(optimiser="normalised", regularisers=(decay, ascent.blur(0.15 * size**0.5, every=4))),
        "fourier": Recipe(fourier=True, regularisers=(ascent.decay(0.1),)),
        "robust": Recipe(fourier=True, regularisers=(ascent.decay(0.1),), transforms=(robust,)),
    }


REGULARISERS = tuple(_recipes(0.5, 1.0, 28))
"""none: pixels alone. l2: decay to grey. tv: total variation. blur: decay and a blur every fourth step (Yosinski et al.
2015). fourier: over Fourier coefficients and decorrelated colours (Olah et al. 2017). robust: fourier, and confident
under small shifts, rotations and scalings."""


@dataclass(frozen=True)
class Ascended(Explanation):
    """Images [k, ...] climbed to one class each, `classes` int64 [k] named `names`, of `count` classes in all.

    `confidences` [k] is the target's in each image's class; `history` [steps + 1, k] is the logarithm of the class's
    probability against the mean of the others' at every step. The control `random` holds the largest confidence of each
    of 256 uniformly random images.
    """

    images: Tensor = field(repr=False)
    classes: Tensor
    names: tuple[str, ...]
    confidences: Tensor
    history: Tensor = field(repr=False)
    random: Tensor = field(repr=False)
    regulariser: str
    target: str
    forward: int
    backward: int
    count: int
    bounds: tuple[float, float]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a class: its confidence, and the step at which the climb first passed 99.99%."""
        sure = self.history >= self._log_odds(0.9999)
        return [
            {
                "class": int(c),
                "name": name,
                "confidence": float(p),
                "steps to 99.99%": int(passed.int().argmax()) if bool(passed.any()) else None,
                "regulariser": self.regulariser,
            }
            for c, name, p, passed in zip(self.classes, self.names, self.confidences, sure.T, strict=True)
        ]

    def sentence(self) -> str:
        """Return how many classes are reached, and what random images get."""
        count, k = int((self.confidences > 0.9999).sum()), len(self.classes)
        return (
            f"Gradient ascent ({self.regulariser}) reaches more than 99.99% confidence in {count} of {k} classes "
            f"(median {percent(float(self.confidences.median()))}); of {len(self.random)} random images the "
            f"median largest confidence is {float(self.random.median()):.1%}."
        )

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, 2.4 + 1.35 * math.ceil(min(len(self.images), _SHOWN) / 5)

    def draw(self, figure: "Figure") -> None:
        """Draw the images with their confidences, and the climb below."""
        shown = min(len(self.images), _SHOWN)
        lines = math.ceil(shown / 5)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.35 * lines, 2.2])[:, 0]
        places = np.ravel(above.subplots(lines, min(shown, 5)))
        for place in places[shown:]:
            place.set_axis_off()
        for place, image, name, p in zip(places, self.images, self.names, self.confidences, strict=False):
            show(place, image, f"{name}: {percent(float(p))}", bounds=self.bounds)
        axes = below.subplots()
        odds = self.history[:, :_SHOWN].float().cpu()
        axes.plot(odds.numpy(), color=COLOURS[0], linewidth=0.8, alpha=0.6)
        axes.axhline(self._log_odds(0.9999), color=SOFT, linewidth=0.8, linestyle="--")
        axes.annotate("99.99%", (1, self._log_odds(0.9999)), (-2, 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", fontsize=8, color=SOFT)  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("log-odds of the class\nagainst the mean other")
        axes.grid(axis="y")

    def _log_odds(self, confidence: float) -> float:
        return log_odds(confidence, self.count)


def ascend(
    target: Target | Callable[..., object],
    shape: Sequence[int],
    classes: Sequence[int | str] | Literal["all"] = "all",
    *,
    steps: int = 200,
    regulariser: str = "none",
    until: float = 1.0,
    lr: float = 0.05,
    seed: int = 0,
    start: Literal["noise", "grey"] = "noise",
    batch_size: int | str = "auto",
) -> Ascended:
    """Climb from noise or grey to an image of every class (Nguyen et al. 2015, arXiv 1412.1897, section on gradients).

    What is climbed is the logarithm of the class's odds, up to the confidence `until` (1: as far as the steps go), by
    Adam or, against decay, by steps along the gradient; `lr` is in shares of the box (pixels) or in Fourier
    coefficients. `shape` is that of one input; regularisers other than none and l2 need images (c, h, w). Each
    class has its own luck: its image does not depend on the other classes.

    Raises:
        InputError: an unknown class, regulariser or start, `until` outside (0, 1], a shape that the target or
            the regulariser does not take.
    """
    asker = Asker(target, batch_size=batch_size)
    lo, hi = asker.target.bounds
    recipes = _recipes((lo + hi) / 2, hi - lo, min(shape[-2:]) if len(shape) > 1 else 1)
    if regulariser not in recipes:
        raise InputError(
            f"There is no regulariser {regulariser!r}; use one of {', '.join(recipes)}.{nearest(regulariser, recipes)}"
        )
    if start not in ("noise", "grey"):
        raise InputError(f"An ascent starts from 'noise' or 'grey', not from {start!r}.")
    if not 0 < until <= 1:
        raise InputError(f"until must be a confidence above 0 and at most 1, not {until}.")
    if regulariser not in ("none", "l2") and len(shape) != 3:
        raise InputError(f"The regulariser {regulariser!r} needs images (c, h, w), not the shape {tuple(shape)}.")
    device, dtype = asker.target.device, asker.target.work_dtype
    count = _classes_of(asker, shape)
    wanted = chosen(classes, count, asker.target.classes).to(device)
    recipe, enough = recipes[regulariser], log_odds(until, count)
    way = Fourier(shape, asker.target.bounds) if recipe.fourier else Pixels(asker.target.bounds)
    room = max(1, _VALUES // math.prod(shape))

    def noise_of(ids: Tensor, what: str) -> Noise:
        return Noise(torch.from_numpy(row_keys(seed, ids.cpu().numpy(), what)).to(device))

    def climbed(some: Tensor) -> ascent.Ascent:
        noise = noise_of(some, "ascend")
        if start == "noise":
            x = lo + (hi - lo) * noise.uniform(0, shape, dtype=dtype)
        else:
            x = torch.full((len(some), *shape), (lo + hi) / 2, dtype=dtype, device=device)
        return ascent.ascend(
            asker,
            lambda scores, rows: cross_entropy_targeted(as_logits(scores), some[rows]).clamp(max=enough),
            way.encode(x),
            way.decode,
            steps=steps,
            noise=noise,
            settle=way.settle,
            optimiser=recipe.optimiser,
            lr=lr if recipe.fourier else lr * (hi - lo),
            regularisers=recipe.regularisers,
            transforms=recipe.transforms,
        )

    climbs = [climbed(some) for some in wanted.split(room)]
    images = torch.cat([climb.x for climb in climbs])
    sure = asker.confidences(images).gather(1, wanted.view(-1, 1))[:, 0]
    control = [
        asker.confidences(lo + (hi - lo) * noise_of(ids, "random images").uniform(0, shape, dtype=dtype)).amax(1)
        for ids in torch.arange(_RANDOM).split(room)
    ]
    return Ascended(
        images=images, classes=wanted, names=tuple(map(asker.target.class_name, wanted.tolist())), confidences=sure,
        history=torch.cat([climb.history for climb in climbs], 1), random=torch.cat(control),
        regulariser=regulariser, target=asker.target.name, forward=asker.forward, backward=asker.backward, count=count,
        bounds=asker.target.bounds,
    )  # fmt: skip


def chosen(classes: Sequence[int | str] | str, count: int, names: Sequence[str] | None) -> Tensor:
    """Return the classes, given by number or name or as "all", int64 [k]; raises InputError for unknown ones."""
    if isinstance(classes, str):
        if classes == "all":
            return torch.arange(count)
        classes = [classes]
    known = {name: i for i, name in enumerate(names or ())}
    found = []
    for one in classes:
        if isinstance(one, str) and not one.isdecimal() and one not in known:
            raise InputError(f"The target has no class {one!r}.{nearest(one, known)}")
        number = known[one] if isinstance(one, str) and one in known else int(one)
        if not 0 <= number < count:
            raise InputError(f"The target has {count} classes, numbered from 0: there is no class {number}.")
        found.append(number)
    if not found:
        raise InputError("Name at least one class, or 'all'.")
    return torch.tensor(found)


def log_odds(confidence: float, count: int) -> float:
    """Return the logarithm of a class's probability against the mean of the other count - 1 classes'."""
    return math.log(confidence * max(count - 1, 1) / (1 - confidence)) if confidence < 1 else math.inf


def _classes_of(asker: Asker, shape: Sequence[int]) -> int:
    """Return how many classes the target has; raises InputError when it takes no inputs of this shape."""
    lo, hi = asker.target.bounds
    grey = torch.full((1, *shape), (lo + hi) / 2, device=asker.target.device, dtype=asker.target.work_dtype)
    return asker.scores(grey).shape[1]
