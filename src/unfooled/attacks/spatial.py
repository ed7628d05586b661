"""Turned, shifted and zoomed images: threats whose free values are an angle and a shift, and targets seen through luck.

An image and its pose make one row (pose, pixels) of which the attacker may move the pose alone, so that every attack
of the shelf, the engine's checks and its records apply to poses as they are.
"""

import math

import torch
from torch import Tensor


def warp(x: Tensor, angle: Tensor, zoom: Tensor, down: Tensor, right: Tensor, fill: float = 0.0) -> Tensor:
    """Return images [b, c, h, w] turned, zoomed and shifted about their middle, bilinear, `fill` outside of them.

    `angle` [b] in radians, counter-clockwise as seen; `zoom` [b] a factor; `down` and `right` [b] in pixels.
    Differentiable in all of them.
    """
    h, w = x.shape[-2:]
    v = torch.arange(h, dtype=x.dtype, device=x.device).view(1, h, 1) - (h - 1) / 2 - down.view(-1, 1, 1)
    u = torch.arange(w, dtype=x.dtype, device=x.device).view(1, 1, w) - (w - 1) / 2 - right.view(-1, 1, 1)
    cos, sin = ((f(angle) / zoom).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    from_u, from_v = cos * u - sin * v, sin * u + cos * v  # where a pixel comes from, in pixels from the middle
    grid = torch.stack([from_u * (2 / w), from_v * (2 / h)], 3)
    return torch.nn.functional.grid_sample(x - fill, grid, align_corners=False, padding_mode="zeros") + fill


def radians(degrees: float) -> float:
    """Return degrees as radians."""
    return degrees * math.pi / 180
