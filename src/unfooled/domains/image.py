"""Images as files: a picture read into a target's shape, and pixels put on the 8-bit grid that a file can hold.

A file holds 256 levels a channel, attacks work between them. Rounding to the nearest level can leave the ball, and
cutting off decimals moves half of the pixels away from the original; here every pixel is rounded towards the original,
so that no norm of the change grows. An attack counts as one on files when it still fools after the file is read again.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unfooled.core import data, record
from unfooled.errors import InputError

LEVELS = 255
_ALMOST = 1e-3  # of a level: a float32 that lies this near to a level is meant to be on it
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of Pillow's mode L

Bounds = tuple[float, float]


def read_image(path: str | Path, shape: Sequence[int] | None = None, *, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Return a picture file as float32 [c, h, w] within `bounds`, every value on the 8-bit grid.

    With `shape` = (c, h, w) the picture is fitted: its shorter side is resized and the centre kept, grey is repeated
    for a colour target and colour weighted to grey for a grey one. What the file says about its origin (EXIF, ICC) is
    not kept. Raises `InputError` for a missing, damaged, animated or oversized file, and for formats but PNG, JPEG,
    WebP and BMP.
    """
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise InputError(f"The target takes inputs of shape {tuple(shape)}, not pictures of 1 or 3 channels.")
    if shape is None:
        x = data.read_image(path)
    else:
        channels, height, width = shape
        size = height if height == width else (height, width)
        plain = data.read_image(path)
        x = plain if tuple(plain.shape[1:]) == (height, width) else data.read_image(path, resize=size)
        if channels == 3 and len(x) == 1:
            x = x.expand(3, -1, -1)
        elif channels == 1 and len(x) == 3:
            x = (x * torch.tensor(_LUMA, dtype=x.dtype).view(3, 1, 1)).sum(0, keepdim=True)
    return from_levels(levels(x), bounds)


def levels(x: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Return the nearest grey levels of `x` within `bounds` as int64 0..255, of the same shape."""
    return (_unit(x, bounds) * LEVELS).round().clamp(0, LEVELS).long()


def from_levels(grey: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Return grey levels 0..255 as float32 within `bounds`."""
    low, high = bounds
    return (low + grey.double() / LEVELS * (high - low)).float()


def to_grid(x_adv: Tensor, x: Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Return `x_adv` on the 8-bit grid, each value rounded towards that of `x`; shape and bounds stay.

    For an original on the grid no value is further from it than before, so every Lp norm of the change shrinks or stays
    and the ball is kept. Where the original lies between two levels and the change reaches neither, the level nearest
    to the original is taken.
    """
    start = _unit(x, bounds) * LEVELS
    end = (_unit(x_adv, bounds) * LEVELS).clamp(0, LEVELS)
    lower, upper = torch.floor(end + _ALMOST), torch.ceil(end - _ALMOST)
    nearest = start.round()
    up, down = end > start, end < start
    grid = torch.where(up, lower, torch.where(down, upper, nearest))
    overshot = (up & (grid < start - _ALMOST)) | (down & (grid > start + _ALMOST))
    return from_levels(torch.where(overshot, nearest, grid), bounds).to(x.dtype)


def write_png(path: str | Path, x: Tensor, bounds: Bounds = (0.0, 1.0)) -> Path:
    """Write one picture [c, h, w], c = 1 or 3, as a PNG without metadata, a whole file, and return its path.

    Raises `InputError` when `x` has another number of channels or does not lie on the 8-bit grid: rounding is a
    decision about the attack and is never made in passing.
    """
    import io

    from PIL import Image

    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise InputError(f"A PNG holds 1 or 3 channels [c, h, w], not an input of shape {tuple(x.shape)}.")
    grey = levels(x, bounds)
    if float((_unit(x, bounds) * LEVELS - grey).abs().max()) > _ALMOST:
        raise InputError("This picture lies between 8-bit levels; put it on the grid with to_grid first.")
    pixels = grey.to(torch.uint8).cpu().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return record.write_bytes(Path(path), buffer.getvalue())


def _unit(x: Tensor, bounds: Bounds) -> Tensor:
    low, high = bounds
    return (x.detach().double() - low) / (high - low)
