"""Pictures of fooling images: what each class's image looks like, and how the target's confidence in them grew."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.explanation import COLOURS, INK, PALE, SOFT, Explanation
from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .evolve import Evolution

MOST = 60
"""Images that a gallery shows at most."""

_COLUMNS = 10
_CELL = (1.0, 1.42)  # inches: an image and the three lines under it
_HEAD = 0.4  # inches for the title of a block of rows


@dataclass(frozen=True, eq=False)
class Gallery(Explanation):
    """Images that a target is sure of, the surest `most` of each run; one block of rows per run.

    Attributes:
        runs: evolutions of picture-shaped inputs [c, h, w] with one or three channels.
        most: images shown in all, shared among the runs.
    """

    runs: tuple["Evolution", ...]
    most: int = MOST

    def shown(self) -> list[Tensor]:
        """Return for each run the places of the images that are drawn, in the order of their classes, int64 [m]."""
        share_ = max(1, self.most // len(self.runs))
        return [run.log_odds.argsort(descending=True, stable=True)[:share_].sort().values for run in self.runs]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per image drawn."""
        return [
            {"run": number, "target": run.target, "seed": run.seed, **run.rows()[i]}
            for number, (run, places) in enumerate(zip(self.runs, self.shown(), strict=True))
            for i in places.tolist()
        ]

    def sentence(self) -> str:
        """Return what each run says."""
        return " ".join(run.sentence() for run in self.runs)

    def draw(self, figure: "Figure") -> None:
        """Draw every image with its class, confidence and generation."""
        from matplotlib.gridspec import GridSpec

        blocks = [math.ceil(len(places) / _COLUMNS) for places in self.shown()]
        width = min(_COLUMNS, max(len(places) for places in self.shown()))
        tall = [rows * _CELL[1] + _HEAD for rows in blocks]
        figure.set_layout_engine("none")
        figure.set_size_inches(max(6.0, width * _CELL[0] + 0.5), sum(tall))
        total, left, across = sum(tall), 0.25, figure.get_figwidth()
        top = total
        for run, places, rows, high in zip(self.runs, self.shown(), blocks, tall, strict=True):
            figure.text(left / across, (top - 0.12) / total, _title(run), fontsize=9, color=INK, va="top")
            grid = GridSpec(
                rows, width, figure,
                left=left / across, right=(left + width * _CELL[0]) / across,
                top=(top - _HEAD) / total, bottom=(top - high) / total, hspace=0, wspace=0.08,
            )  # fmt: skip
            for cell, i in enumerate(places.tolist()):
                _picture(figure.add_subplot(grid[cell // width, cell % width]), run, i)
            top -= high


def gallery(*runs: "Evolution", most: int = MOST) -> Gallery:
    """Return the gallery of one or several evolutions, such as both encodings or five seeds.

    Raises InputError when there are none or their inputs are no pictures of one or three channels.
    """
    if not runs or most < 1:
        raise InputError("A gallery needs at least one evolution and one image.")
    for run in runs:
        if run.images.dim() != 4 or run.images.shape[1] not in (1, 3):
            raise InputError(
                f"Inputs of shape {tuple(run.images.shape[1:])} are no pictures of one or three channels, "
                "so there is no gallery of them."
            )
    return Gallery(tuple(runs), most)


@dataclass(frozen=True, eq=False)
class Curves(Explanation):
    """How sure the target was of the elites after each generation, for one or several evolutions."""

    runs: tuple["Evolution", ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per run and generation: lowest, median and highest confidence, and how many are sure."""
        return [
            {
                "run": number,
                "encoding": run.encoding,
                "seed": run.seed,
                "generation": generation,
                **dict(zip(("lowest", "median", "highest"), confidence, strict=True)),
                "sure": sure,
            }
            for number, run in enumerate(self.runs)
            for generation, (confidence, sure) in enumerate(
                zip(run.curve.sigmoid().tolist(), run.sure.tolist(), strict=True)
            )
        ]

    def sentence(self) -> str:
        """Return what each run says."""
        return " ".join(run.sentence() for run in self.runs)

    def draw(self, figure: "Figure") -> None:
        """Draw median and range over the generations."""
        draw_curves(figure, self.runs)


def curves(*runs: "Evolution") -> Curves:
    """Return the fitness curves of one or several evolutions; raises InputError when there are none."""
    if not runs:
        raise InputError("Curves need at least one evolution.")
    return Curves(tuple(runs))


def draw_curves(figure: "Figure", runs: Sequence["Evolution"]) -> None:
    """Draw for each encoding the median and the range of the elites' confidences over the generations."""
    axes = figure.subplots()
    encodings = list(dict.fromkeys(run.encoding for run in runs))
    for run in runs:
        colour = COLOURS[encodings.index(run.encoding)]
        first = next(other for other in runs if other.encoding == run.encoding) is run
        generations = torch.arange(len(run.curve))
        low, middle, high = run.curve.clamp(*_SHOWN).T
        axes.plot(generations, middle, color=colour, lw=1.6, label=f"{run.encoding}: median class" if first else None)
        axes.fill_between(
            generations, low, high, color=colour, alpha=0.3 / len(runs), lw=0,
            label=f"{run.encoding}: lowest to highest class" if first else None,
        )  # fmt: skip
    sure = _odds(0.9999)
    axes.axhline(sure, color=SOFT, lw=0.8, ls="--")
    axes.set_yticks([_odds(p) for p in _TICKS], [_percent(p) for p in _TICKS])
    bottom = min(float(run.curve.clamp(*_SHOWN).min()) for run in runs)
    top = max(sure + 1, max(float(run.curve.clamp(*_SHOWN).max()) for run in runs))
    axes.set_ylim(max(bottom, _odds(1e-6)) - 0.5, min(top, _odds(1 - 1e-8)) + 0.5)
    axes.set_xlim(0, max(1, max(run.generations for run in runs)))
    axes.set_xlabel("generation")
    axes.set_ylabel("confidence in the image's class (log-odds scale)")
    axes.grid(axis="y", color=PALE, lw=0.6)
    axes.set_axisbelow(True)
    names = list(dict.fromkeys(run.target for run in runs))
    axes.set_title(f"Fooling images for {', '.join(names)}: confidence of the best image of each class")
    axes.legend(loc="lower right")


def share(log_odds: float) -> str:
    """Return a confidence in percent, with as many nines as it needs: 50.0%, 99.2%, 99.993%; never rounded up."""
    missing = 1 / (1 + math.exp(min(log_odds, 700.0)))  # 1 - p
    if missing < 1e-6:
        return ">99.9999%"
    digits = 1 if missing >= 0.1 else max(1, math.ceil(-math.log10(missing) - 2 - 1e-9))
    return f"{math.floor((1 - missing) * 10 ** (digits + 2) + 1e-6) / 10**digits:.{digits}f}%"


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.8f}".rstrip("0").rstrip(".") + "%"


def _odds(confidence: float) -> float:
    return math.log(confidence) - math.log1p(-confidence)


_TICKS = (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999, 0.99999999)
_SHOWN = (_odds(1e-7), _odds(1 - 1e-9))


def _title(run: "Evolution") -> str:
    part = f"{run.target}, {run.encoding} encoding, seed {run.seed}: "
    few = f", {MOST} surest shown" if len(run.classes) > MOST else ""
    return part + f"{len(run.classes)} classes after {run.generations} generations of {run.population} images{few}"


def _picture(axes: "Axes", run: "Evolution", i: int) -> None:
    low, high = run.bounds
    unit = ((run.images[i].float() - low) / (high - low)).clamp(0, 1)
    axes.imshow(unit.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, aspect="equal")
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(PALE)
    name = run.names[i].split(",")[0]
    name = name if len(name) <= 16 else f"{name[:15]}…"
    said = f"{name}\n{share(float(run.log_odds[i]))}\ngen. {int(run.found[i])}"
    axes.set_xlabel(said, fontsize=7, labelpad=3, color=INK, linespacing=1.25)
