"""How figures show inputs and shares: any input as an image, a confidence with as many nines as it has."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def picture(x: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> np.ndarray[Any, Any]:
    """Return one input [c, h, w], or of any shape, as matplotlib shows it: [h, w] or [h, w, 3], the box as [0, 1].

    Of other numbers of channels than 1, 3 and 4 the mean is shown; a vector becomes the squarest rectangle.
    """
    values = ((x.detach().float().cpu() - bounds[0]) / (bounds[1] - bounds[0])).clamp(0, 1)
    if values.dim() == 3:
        return np.asarray(values.movedim(0, -1) if len(values) in (3, 4) else values.mean(0))
    if values.dim() == 2:
        return np.asarray(values)
    side = max(i for i in range(1, math.isqrt(values.numel()) + 1) if values.numel() % i == 0)
    return np.asarray(values.reshape(side, -1))


def show(axes: "Axes", x: Tensor, title: str = "", *, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
    """Draw one input without axes, its title above."""
    axes.set_axis_off()
    axes.imshow(picture(x, bounds), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8, loc="center")


def show_signed(axes: "Axes", x: Tensor, title: str = "", *, most: float | None = None) -> None:
    """Draw numbers of both signs, summed over channels: blue below 0, white at 0, red above, full at `most`."""
    axes.set_axis_off()
    values = x.detach().float().cpu()
    values = values.sum(0) if values.dim() == 3 else values
    most = float(values.abs().max()) if most is None else most
    axes.imshow(picture(values, (-most or -1.0, most or 1.0)), cmap="RdBu_r", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8, loc="center")


def percent(share: float) -> str:
    """Return a share in percent with as many nines as it has, at most six."""
    for digits in (1, 2, 3, 4):
        text = f"{share:.{digits}%}"
        if not text.startswith("100"):
            return text
    return ">99.9999%"
