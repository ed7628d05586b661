"""What measures along lines, planes and changes share: points in parts, random directions, checks, names, colours."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unfooled._noise import Noise, example_ids, row_keys
from unfooled.core.target import Target
from unfooled.errors import InputError

_ROOM = 2**23
"""Most values of made points that exist at once."""

_FULL = 256


def asked(ask: Callable[[Tensor], Tensor], count: int, make: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return `ask(make(rows))` over the rows 0 to count - 1, made in parts of a few million values.

    `like` [b, ...] tells the device and the size of one row.
    """
    part = max(1, _ROOM // max(1, like[:1].numel()))
    part -= part % _FULL if part > _FULL else 0  # parts end where batches end
    return torch.cat([ask(make(rows)) for rows in torch.arange(count, device=like.device).split(part)])


def random_directions(x: Tensor, count: int, seed: int, what: str) -> Tensor:
    """Return `count` normal directions of length 1 (L2) for every example of x [n, ...], [n, count, ...]."""
    keys = torch.from_numpy(row_keys(seed, example_ids(x), what)).to(x.device)
    drawn = Noise(keys).normal(0, (count, math.prod(x.shape[1:])), dtype=x.dtype)
    return (drawn / lengths(drawn)[..., None].clamp(min=torch.finfo(x.dtype).tiny)).view(len(x), count, *x.shape[1:])


def lengths(d: Tensor) -> Tensor:
    """Return the L2 length along the last axis, in float64 and back."""
    size: Tensor = torch.linalg.vector_norm(d.double(), dim=-1)
    return size.to(d.dtype)


def unit(g: Tensor) -> Tensor:
    """Return the rows of g [n, d] at L2 length 1; a row of zeros stays one."""
    return g / g.norm(dim=1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)


def check_rows(x: Tensor, what: str = "x") -> Tensor:
    """Return x as floats; raises InputError unless it is a batch [n, ...] of finite numbers."""
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x) or not x.is_floating_point():
        raise InputError(
            f"{what} must be floating-point examples [n, ...] with n of at least 1; one example is x[None]."
        )
    if not bool(x.isfinite().all()):
        raise InputError(f"{what} contains values that are not finite; leave those examples out or mend them.")
    return x.detach()


def check_like(d: Tensor, x: Tensor, what: str) -> Tensor:
    """Return d [n, ...] in the dtype of x and on its device; raises InputError when the shapes differ."""
    if not isinstance(d, Tensor) or d.shape != x.shape:
        shape = tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__
        raise InputError(f"{what} must have the shape {tuple(x.shape)} of x, not {shape}.")
    return check_rows(d.to(x.device, x.dtype), what)


def short(name: str, most: int = 18) -> str:
    """Return a name that fits into a legend."""
    return name if len(name) <= most else name[: most - 1].rstrip(" ,") + "…"


def colours_of(shown: Sequence[int], count: int) -> dict[int, tuple[float, float, float]]:
    """Return an RGB colour in [0, 1] for each shown class: its own of up to ten classes, of more by its place."""
    base = np.array(
        [
            [0x4E, 0x79, 0xA7], [0xF2, 0x8E, 0x2B], [0x59, 0xA1, 0x4F], [0xE1, 0x57, 0x59], [0xB0, 0x7A, 0xA1],
            [0xED, 0xC9, 0x48], [0x76, 0xB7, 0xB2], [0x86, 0xC5, 0xF0], [0x9C, 0x75, 0x5F], [0x8C, 0x93, 0x9B],
        ]
    ) / 255  # fmt: skip
    colours = {}
    for place, label in enumerate(shown):
        at = label if count <= len(base) else place
        r, g, b = (base[at % len(base)] * (1 - 0.3 * (at // len(base) % 3))).tolist()
        colours[label] = (r, g, b)
    return colours


def excess(z: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return how far the farthest value of each row of z [b, ...] lies outside the box, [b]."""
    return torch.maximum(bounds[0] - z, z - bounds[1]).flatten(1).amax(1).clamp(min=0)


def class_names(target: Target, least: int) -> tuple[str, ...]:
    """Return the names of all classes, numbers for those without one, at least `least` of them."""
    return tuple(target.class_name(j) for j in range(max(least, len(target.classes or ()))))


def check_pairs(x: Tensor, x_adv: Tensor) -> None:
    """Raise InputError unless x and x_adv [n, ...] have one shape and every row is changed."""
    if x.shape != x_adv.shape or x.dim() < 2 or len(x) == 0:
        raise InputError(f"x and x_adv must be of one shape [n, ...], not {tuple(x.shape)} and {tuple(x_adv.shape)}.")
    if bool((energy(x_adv - x) == 0).any()):
        raise InputError("Some rows of x_adv equal x: give only the examples that an attack changed.")


def normal_like(shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
    """Return normal draws in the dtype and on the device of `like`, drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)


def part_of(part: Tensor, whole: Tensor) -> Tensor:
    """Return the share of the squared norm of each row of `whole` that lies in `part`, float64 [n]."""
    return (energy(part) / energy(whole)).clamp(0, 1)


def energy(v: Tensor) -> Tensor:
    """Return the squared L2 norm of each row of v [n, ...], float64."""
    return v.flatten(1).double().square().sum(1)
