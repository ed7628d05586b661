"""Pictures of fooling images: what each class's image looks like, and how the target's confidence in them grew."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..core.explanation import COLOURS, INK, PALE, SOFT, Explanation
from ..core.pictures import picture
from ..errors import InputError
from .ascent import Ascended

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .evolve import Evolution

MOST = 60
"""Images that a gallery shows at most."""

_COLUMNS = 10
_CELL = (1.0, 1.42)  # inches: an image and the three lines under it
_LEFT = 0.25  # inches beside them
_HEAD = 0.4  # inches for the title of a block of rows


Run: TypeAlias = "Evolution | Ascended"
"""What a gallery shows."""


@dataclass(frozen=True, eq=False)
class Gallery(Explanation):
    """Images that a target is sure of, the surest of each run; one block of pictures per run.

    Attributes:
        runs: evolutions or ascents of picture-shaped inputs [c, h, w] with one or three channels.
        most: images shown in all, shared among the runs.
    """

    runs: tuple[Run, ...]
    most: int = MOST

    def shown(self) -> list[Tensor]:
        """Return for each run the places of the images that are drawn, in the order of their classes, int64 [m]."""
        few = max(1, self.most // len(self.runs))
        return [_log_odds(run).argsort(descending=True, stable=True)[:few].sort().values for run in self.runs]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per image drawn; an ascent has no generation."""
        return [
            {
                "run": number,
                "target": run.target,
                "encoding": _encoding(run),
                "class": int(run.classes[i]),
                "name": run.names[i],
                "confidence": float(_log_odds(run)[i].sigmoid()),
                "generation": _generation(run, i),
            }
            for number, (run, places) in enumerate(zip(self.runs, self.shown(), strict=True))
            for i in places.tolist()
        ]

    def sentence(self) -> str:
        """Return what each run says."""
        return " ".join(run.sentence() for run in self.runs)

    def draw(self, figure: "Figure") -> None:
        """Draw every image with its class, confidence and generation."""
        from matplotlib.gridspec import GridSpec

        shown = self.shown()
        width = min(_COLUMNS, max(map(len, shown)))
        lines = [math.ceil(len(places) / width) for places in shown]
        total, across = sum(n * _CELL[1] + _HEAD for n in lines), max(6.0, width * _CELL[0] + 2 * _LEFT)
        figure.set_layout_engine("none")
        figure.set_size_inches(across, total)
        top = total
        for run, places, n in zip(self.runs, shown, lines, strict=True):
            figure.text(_LEFT / across, (top - 0.12) / total, _title(run, len(places)), fontsize=9, color=INK, va="top")
            bottom = top - _HEAD - n * _CELL[1]
            grid = GridSpec(
                n, width, figure, left=_LEFT / across, right=(_LEFT + width * _CELL[0]) / across,
                top=(top - _HEAD) / total, bottom=bottom / total, hspace=0, wspace=0.08,
            )  # fmt: skip
            for cell, i in enumerate(places.tolist()):
                _picture(figure.add_subplot(grid[cell // width, cell % width]), run, i)
            top = bottom


def gallery(*runs: Run, most: int = MOST) -> Gallery:
    """Return the gallery of one or several evolutions or ascents, such as both encodings or five seeds.

    Raises InputError when there are none or their inputs are no pictures of one or three channels.
    """
    if not runs or most < 1:
        raise InputError("A gallery needs at least one run and one image.")
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
        low, middle, high = run.curve.T
        axes.plot(generations, middle, color=colour, lw=1.6, label=f"{run.encoding}: median class" if first else None)
        axes.fill_between(
            generations, low, high, color=colour, alpha=0.3 / len(runs), lw=0,
            label=f"{run.encoding}: lowest to highest class" if first else None,
        )  # fmt: skip
    sure = math.log(9999)
    axes.axhline(sure, color=SOFT, lw=0.8, ls="--")
    values = torch.cat([run.curve[run.curve.isfinite()] for run in runs])
    low, high = max(float(values.min()), -8 * _DECADE), max(float(values.max()), sure)
    step = 2 ** max(1, math.ceil(math.log2((high - low) / _DECADE / 8)))
    decades = range(math.ceil(low / _DECADE / step) * step, math.floor(high / _DECADE) + 1, step)
    axes.set_yticks([n * _DECADE for n in decades], [_nines(n) for n in decades])
    axes.set_ylim(low - 0.5, high + 0.5)
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


_DECADE = math.log(10)


def _nines(n: int) -> str:
    """Return the confidence whose odds are about 10^n: n nines."""
    if n == 0:
        return "50%"
    if abs(n) > 6:
        return f"$10^{{{n}}}$" if n < 0 else f"$1-10^{{-{n}}}$"
    return f"{100 * (10.0**n if n < 0 else 1 - 10.0**-n):.6f}".rstrip("0").rstrip(".") + "%"


def _log_odds(run: Run) -> Tensor:
    if isinstance(run, Ascended):
        p = run.confidences.double().cpu()
        return p.log() - torch.log1p(-p.clamp(max=1 - 1e-15))
    return run.log_odds


def _encoding(run: Run) -> str:
    return f"gradient ({run.regulariser})" if isinstance(run, Ascended) else run.encoding


def _generation(run: Run, i: int) -> int | None:
    return None if isinstance(run, Ascended) else int(run.found[i])


def _title(run: Run, shown: int) -> str:
    some = (
        f"{len(run.classes)} classes" if shown == len(run.classes) else f"{shown} surest of {len(run.classes)} classes"
    )
    if isinstance(run, Ascended):
        return f"{run.target}, gradient ascent ({run.regulariser}): {some} after {len(run.history) - 1} steps"
    part = f"{run.target}, {run.encoding} encoding, seed {run.seed}: {some} after "
    return part + f"{run.generations} generations of {run.population} images"


def _picture(axes: "Axes", run: Run, i: int) -> None:
    axes.imshow(picture(run.images[i], run.bounds), cmap="gray", vmin=0, vmax=1)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(PALE)
    name = run.names[i].split(",")[0]
    said = [name if len(name) <= 15 else f"{name[:14]}…", share(float(_log_odds(run)[i]))]
    if not isinstance(run, Ascended):
        said.append(f"gen. {int(run.found[i])}")
    axes.set_xlabel("\n".join(said), fontsize=7, labelpad=3, color=INK, linespacing=1.25)
