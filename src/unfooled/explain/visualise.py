"""What a unit, a channel or a class of a target looks for: the input that makes it most active."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from unfooled._noise import Noise, row_keys
from unfooled._numbers import counted
from unfooled.core import ascent
from unfooled.core.ask import Asker, PerRow
from unfooled.core.explanation import COLOURS, PALE, Explanation
from unfooled.core.layers import shuffled, watched, weighted
from unfooled.core.pictures import show
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.parametrise.fourier import Fourier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Unit = tuple[int, ...]
"""A class, feature or channel by its number, (c,), or one neuron of a channel by its place, (c, row, column)."""

_SHOWN = 20
_RANDOM = 128
_SIZE = 0.01  # of the first random coefficients (Olah et al. 2017): nearly grey


@dataclass(frozen=True)
class Visualised(Explanation):
    """Images [k, c, h, w] that make `units` of `layer` most active, and what they reach.

    `reached` [k] is the activation at the image. Controls: `random` [k, 128] at random images with the 1/f spectrum,
    colours and contrast of natural ones; `natural` [k, n] at the data given (None: no data); `untrained` [k], how far
    the same climb goes above random images in a copy with shuffled weights, in their deviations (None: the target is no
    module with weights). `history` [steps + 1, k] is the climb.
    """

    layer: str
    units: tuple[Unit, ...]
    names: tuple[str, ...]
    images: Tensor = field(repr=False)
    reached: Tensor
    random: Tensor = field(repr=False)
    natural: Tensor | None = field(repr=False)
    untrained: Tensor | None
    bounds: tuple[float, float]
    forward: int
    backward: int
    history: Tensor = field(repr=False)

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, self._lines * 7.6 / self._wide + 2.8

    @property
    def _wide(self) -> int:
        return 5 if len(self.units) <= 10 else 10

    @property
    def _lines(self) -> int:
        return math.ceil(min(len(self.units), _SHOWN) / self._wide)

    @property
    def gains(self) -> Tensor:
        """How far above the mean of random images the climb came, in their standard deviations, [k]."""
        return _gains(self.reached, self.random)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a unit: the activation reached, and at natural and random images."""
        none = [None] * len(self.units)
        natural = none if self.natural is None else self.natural.amax(1).tolist()
        untrained = none if self.untrained is None else self.untrained.tolist()
        mean, most = self.random.mean(1).tolist(), self.random.amax(1).tolist()
        columns = zip(
            self.names, self.reached.tolist(), natural, mean, most, self.gains.tolist(), untrained, strict=True
        )
        keys = ("unit", "reached", "natural max", "random mean", "random max", "gain", "untrained gain")
        return [{"layer": self.layer, **dict(zip(keys, row, strict=True))} for row in columns]

    def sentence(self) -> str:
        """Return how far the images go beyond natural and random ones."""
        k = len(self.units)
        text = (
            f"In {self.layer}: images climbed to {counted(k, 'unit')} lie a median of "
            f"{float(self.gains.median()):.1f} standard deviations above random images"
        )
        if self.untrained is not None:
            text += f" ({float(self.untrained.median()):.1f} in a copy with shuffled weights)"
            if float(self.gains.median()) <= float(self.untrained.median()):
                text += ", so that this says no more of the target than of any network"
        if self.natural is not None:
            above = int((self.reached > self.natural.amax(1)).sum())
            text += f"; {above} of {k} exceed the most active of {self.natural.shape[1]} natural images"
        return text + "."

    def draw(self, figure: "Figure") -> None:
        """Draw the images, and below the activations that they, natural and random images reach."""
        shown = min(len(self.units), _SHOWN)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[self._lines * 7.6 / self._wide, 2.8])[:, 0]
        places = np.ravel(above.subplots(self._lines, self._wide))
        for place in places[shown:]:
            place.set_axis_off()
        for place, image, name in zip(places, self.images, self.names, strict=False):
            show(place, image, name, bounds=self.bounds)
        axes = below.subplots()
        at = np.arange(shown)
        low, high = self.random.amin(1)[:shown].cpu(), self.random.amax(1)[:shown].cpu()
        axes.vlines(at - 0.15, low, high, color=PALE, linewidth=7, label=f"{self.random.shape[1]} random images")
        if self.natural is not None:
            low, high = self.natural.amin(1)[:shown].cpu(), self.natural.amax(1)[:shown].cpu()
            label = f"{self.natural.shape[1]} natural images"
            axes.vlines(at + 0.15, low, high, color=COLOURS[1], linewidth=2, label=label)
        axes.plot(at, self.reached[:shown].cpu(), "o", color=COLOURS[0], markersize=5, label="the images above")
        axes.set_xticks(at, self.names[:shown], rotation=45 if max(map(len, self.names)) > 4 else 0)
        axes.set_xlim(-0.6, shown - 0.4)
        axes.set_ylabel("activation")
        axes.grid(axis="y")
        below.legend(loc="outside upper right", ncols=3)


def visualise(
    target: Target | Callable[..., object],
    layer: str | None = None,
    units: Sequence[int | Unit] | Literal["all"] = "all",
    *,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    steps: int = 128,
    lr: float = 0.05,
    decay: float = 0.1,
    transforms: Sequence[ascent.Transform] | None = None,
    colours: Tensor | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Visualised:
    """Climb to the images (c, h, w) that most activate units of a named module (Olah et al. 2017, Distill).

    `layer` None: the scores, whose units are the classes. `units` are numbers of channels, whose activation is the mean
    over all places, or places of single neurons (channel, row, column). The climb goes over Fourier coefficients, which
    lose the share `decay` a step (0: nothing; images become black and white), and decorrelated colours (`colours`: see
    `colour_root`); every step sees the image shifted, turned and scaled a little, or as `transforms` say ([]: as it
    is). `data` [n, c, h, w] are natural images to compare with; `shape` may be left out then. Each unit has its own
    luck: its image does not depend on the other units.

    Raises:
        InputError: an unknown layer (the nearest names are offered) or unit, a layer that runs several times, or
            neither shape nor data.
    """
    asker = Asker(target, batch_size=batch_size)
    shape = tuple(data.shape[1:]) if shape is None and data is not None else shape
    if shape is None or len(shape) != 3:
        raise InputError("Say what images to make: shape=(channels, height, width), or data= natural images of it.")
    if data is not None and tuple(data.shape[1:]) != tuple(shape):
        raise InputError(f"The natural images have the shape {tuple(data.shape[1:])}, not {tuple(shape)}.")
    if transforms is None:
        transforms = [ascent.wobble(jitter=min(shape[1:]) / 14, rotate=8.0, scale=1.1)]
    way = Fourier(shape, asker.target.bounds, colours)
    device, dtype = asker.target.device, asker.target.work_dtype
    luck = _noise(seed, np.arange(_RANDOM), "random images", device)
    random = way.decode(way.drawn(luck, dtype=dtype))
    wanted = _wanted(asker, layer, units, random[:1])
    keys = np.array([sum(v * 1_000_003**i for i, v in enumerate(u)) for u in wanted])
    own = _noise(seed, keys, f"visualise {layer}", device)

    def climbed(one: Asker) -> ascent.Ascent:
        with ExitStack() as hooks:
            return ascent.ascend(
                one, _objective(one.target, layer, wanted, hooks), _SIZE * own.normal(0, way.parameters, dtype=dtype),
                way.decode, steps=steps, noise=own, lr=lr, regularisers=[ascent.decay(decay)], transforms=transforms,
            )  # fmt: skip

    climb, at_random = climbed(asker), _measured(asker, layer, wanted, random)
    untrained = None
    if names := weighted(asker.target):
        twin = Asker(shuffled(asker.target, names, seed), batch_size=batch_size)
        untrained = _gains(climbed(twin).value, _measured(twin, layer, wanted, random))
    natural = None if data is None else _measured(asker, layer, wanted, data.to(device, dtype))
    known = asker.target.classes
    return Visualised(
        layer=_called(layer), units=wanted, images=climb.x, reached=climb.value, random=at_random, natural=natural,
        untrained=untrained,
        names=tuple(known[u[0]] if layer is None and known else ", ".join(map(str, u)) for u in wanted),
        bounds=asker.target.bounds, forward=asker.forward, backward=asker.backward, history=climb.history,
    )  # fmt: skip


def _objective(target: Target, layer: str | None, units: tuple[Unit, ...], hooks: ExitStack) -> PerRow:
    """Return what is climbed: for row i the mean activation of unit i over the places it has."""
    watch = None if layer is None else hooks.enter_context(watched(target, layer))
    places = torch.tensor(units).to(target.device)

    def objective(scores: Tensor, rows: Tensor) -> Tensor:
        got = scores if watch is None else watch.taken(len(scores))
        place: tuple[Any, ...] = (torch.arange(len(got), device=got.device), *places[rows].T)
        return _mean(got[place])

    return objective


def _measured(asker: Asker, layer: str | None, units: tuple[Unit, ...], x: Tensor) -> Tensor:
    """Return the activation of every unit at every x [n, ...], [k, n]."""
    parts = []
    with ExitStack() as hooks:
        watch = None if layer is None else hooks.enter_context(watched(asker.target, layer))
        for part in asker.split(x):
            got = asker.scores(part)
            got = got if watch is None else watch.taken(len(part)).to(part.device)
            parts.append(torch.stack([_mean(got.movedim(0, -1)[u].movedim(-1, 0)) for u in units]))
    return torch.cat(parts, 1)


def _wanted(asker: Asker, layer: str | None, units: Sequence[int | Unit] | str, x: Tensor) -> tuple[Unit, ...]:
    """Return the units asked for; raises InputError where the layer does not have them or takes no such images."""
    if layer is None:
        shape = asker.scores(x).shape[1:]
    else:
        with watched(asker.target, layer) as watch:
            asker.scores(x)
            shape = watch.taken(len(x)).shape[1:]
    if not len(shape):
        raise InputError(f"The layer {layer!r} gives one number for each input, not units.")
    if isinstance(units, str):
        if units != "all":
            raise InputError(f"Units are numbers, tuples of them or 'all', not {units!r}.")
        return tuple((i,) for i in range(shape[0]))
    listed = tuple(u if isinstance(u, tuple) else (u,) for u in units)
    alike = len({len(u) for u in listed}) == 1 and len(listed[0]) in (1, len(shape))
    if not alike or any(not 0 <= v < size for u in listed for v, size in zip(u, shape, strict=False)):
        raise InputError(
            f"There are no units {list(units)} in {_called(layer)}, of shape {tuple(shape)}: name channels by their "
            "numbers, or neurons by their places along every axis."
        )
    return listed


def _mean(active: Tensor) -> Tensor:
    """Return the mean over all places of activations [n, ...], [n]."""
    wide = active if active.dtype == torch.float64 else active.float()
    return wide.reshape(len(wide), -1).mean(1)


def _noise(seed: int, ids: np.ndarray, what: str, device: torch.device) -> Noise:
    return Noise(torch.from_numpy(row_keys(seed, ids, what)).to(device))


def _gains(reached: Tensor, random: Tensor) -> Tensor:
    return (reached - random.mean(1)) / random.std(1).clamp(min=1e-12)


def _called(layer: str | None) -> str:
    return f"layer {layer}" if layer else "the scores"
