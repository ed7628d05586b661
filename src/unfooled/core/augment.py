"""Augmentation: random changes of a batch of images that keep their labels, drawn from one generator on the CPU.

Every part is a `core.fit.Augment`, `(x [b, c, h, w], generator) -> x`, works where x lies, and draws a few numbers
a row. `augment("flips+crops(2)")` reads them by name, one after another.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unfooled._rows import sent
from unfooled.errors import InputError, nearest


class Augmentation(ABC):
    """A random change of images; prints as it is written: `crops(2)`."""

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w] changed row by row."""

    def __str__(self) -> str:
        """Return the text that `augment` reads."""
        settings = ", ".join(str(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return type(self).__name__.lower() + (f"({settings})" if settings else "")


@dataclass(frozen=True)
class Flips(Augmentation):
    """Every image mirrored left to right with probability one half."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w], half of the rows mirrored."""
        _must_be_images(x)
        chosen = _draw(2, len(x), generator, x) == 1
        return torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x)


@dataclass(frozen=True)
class Crops(Augmentation):
    """Every image enlarged by `pad` mirrored pixels on all sides, then cut to its size at a random place."""

    pad: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w], moved by up to `pad` pixels; raises InputError for a pad as long as the image."""
        _must_be_images(x)
        if self.pad >= min(x.shape[-2:]):
            raise InputError(
                f"{self} mirrors more pixels than an image of {x.shape[-2]} x {x.shape[-1]} has; give fewer."
            )
        return _windows(x, self.pad, "reflect", generator)


@dataclass(frozen=True)
class Shifts(Augmentation):
    """Every image moved by up to `most` pixels up, down, left and right; zeros come in."""

    most: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w], moved by up to `most` pixels."""
        _must_be_images(x)
        return _windows(x, self.most, "constant", generator)


@dataclass(frozen=True)
class Cutout(Augmentation):
    """A square of `side` pixels around a random pixel of every image takes the image's mean colour.

    DeVries and Taylor 2017, arXiv:1708.04552: squares at the rim are cut off by it.
    """

    side: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w] with a square of each image gone."""
        _must_be_images(x)
        rows, columns = (
            (torch.arange(n, device=x.device) - _draw(n, len(x), generator, x)[:, None] + self.side // 2) // self.side
            == 0
            for n in x.shape[-2:]
        )  # [b, h] and [b, w]: where the square is
        gone = (rows[:, :, None] & columns[:, None, :])[:, None]
        return torch.where(gone, x.mean((-2, -1), keepdim=True), x)


@dataclass(frozen=True)
class Chain(Augmentation):
    """Several augmentations, the first first."""

    parts: tuple[Augmentation, ...]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x [b, c, h, w] after every part."""
        for part in self.parts:
            x = part(x, generator)
        return x

    def __str__(self) -> str:
        """Return the text that `augment` reads."""
        return "+".join(map(str, self.parts))


PARTS: dict[str, type[Augmentation]] = {"flips": Flips, "crops": Crops, "shifts": Shifts, "cutout": Cutout}
"""The augmentations by name; all but flips take a number of pixels."""


def augment(text: str) -> Augmentation:
    """Read augmentations such as "flips+crops(2)", applied from left to right; raises InputError."""
    parts = [_part(word.strip()) for word in text.split("+")]
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _part(word: str) -> Augmentation:
    read = re.fullmatch(r"([a-z]+)(?:\((\d+)\))?", word)
    name, pixels = (read[1], read[2]) if read else (word, None)
    if name not in PARTS:
        raise InputError(
            f"There is no augmentation {word!r}: join flips, crops(2), shifts(2) and cutout(8) by +."
            f"{nearest(name, PARTS)}"
        )
    kind = PARTS[name]
    if (pixels is None) == bool(fields(kind)) or (pixels is not None and int(pixels) < 1):  # type: ignore[arg-type]
        raise InputError(f"{word!r}: write flips without a number, and crops, shifts and cutout with pixels from 1.")
    return kind(*(() if pixels is None else (int(pixels),)))


def _must_be_images(x: Tensor) -> None:
    if x.dim() != 4:
        raise InputError(f"Images are [n, c, h, w]; inputs of shape {tuple(x.shape)} cannot be cut, moved or mirrored.")


def _draw(n: int, rows: int, generator: torch.Generator, x: Tensor) -> Tensor:
    """Return int64 [rows] below n, drawn on the CPU, where x lies."""
    return sent(torch.randint(0, n, (rows,), generator=generator), x.device)


def _windows(x: Tensor, pad: int, fill: Literal["reflect", "constant"], generator: torch.Generator) -> Tensor:
    """Return x [b, c, h, w] padded on all sides and cut to its size again, at a random place for every row."""
    padded = F.pad(x, (pad, pad, pad, pad), mode=fill)
    rows, columns = (
        _draw(2 * pad + 1, len(x), generator, x)[:, None] + torch.arange(n, device=x.device) for n in x.shape[-2:]
    )
    return padded.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3])).gather(
        3, columns[:, None, None, :].expand(-1, x.shape[1], x.shape[2], -1)
    )
