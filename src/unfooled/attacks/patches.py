"""Adversarial patches: one picture that is pasted into others at a random place, angle and size (Brown et al. 2017)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._rows import Batch
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, recipe
from ..core.oracle import Oracle
from ..core.run import check_inputs
from ..core.target import Target, as_target, untouched
from ..core.threat import Ball, Threat, l0
from ..errors import InputError
from .learned import kept, load_tensor, look_up, save_tensor
from .parts import check_counts, check_loss, check_size, climb
from .spatial import warp


@dataclass(frozen=True, repr=False)
class Patch(Attack[Tensor]):
    """A learned patch, shown to every input at `looks` fresh random places; one look each, the first success counts.

    Turned by up to `degrees`, its side larger or smaller by up to the share `zoom`; a `disc`, or the whole square. The
    rate over inputs and places is that of one look: `looks` 1. The patch lies wholly inside the image.
    """

    sha: str = ""
    looks: int = 1
    degrees: float = 20.0
    zoom: float = 0.1
    disc: bool = True
    access = Access.LABEL
    inside = False  # how many values it covers depends on the place: the threat decides

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(looks=self.looks)
        if not 0 <= self.degrees <= 180 or not 0 <= self.zoom < 1:
            raise InputError("A patch turns by 0 to 180 degrees and is zoomed by a share from 0 to below 1.")

    @property
    def picture(self) -> Tensor:
        """The patch, float32 [c, side, side]."""
        return look_up(self.sha).clone()

    @property
    def steps(self) -> int:
        """Places per row."""
        return self.looks

    @property
    def reach(self) -> float:
        """The side in pixels, at its largest and turned worst, of what is pasted."""
        side = look_up(self.sha).shape[-1] * (1 + self.zoom)
        turn = math.radians(min(self.degrees, 45.0))
        return side if self.disc else side * (math.cos(turn) + math.sin(turn))

    @property
    def threat(self) -> Ball:
        """Any values in as many places as the patch can cover: an L0 ball."""
        side = look_up(self.sha).shape[-1] * (1 + self.zoom) + 2  # bilinear edges reach one pixel further
        area = math.pi / 4 * (side + 1) ** 2 if self.disc else side**2 + 2 * side
        return l0(math.ceil(area) * look_up(self.sha).shape[0])

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """L0 balls on images that are larger than the patch and of its channels."""
        if not isinstance(threat, Ball) or not isinstance(x, Tensor):
            return "needs inputs that are tensors and a norm ball"
        if threat.norm.name != "l0":
            return f"replaces values, and {threat.norm.symbol} limits changes; it takes l0"
        c, shape = len(look_up(self.sha)), tuple(x.shape[1:])
        if x.dim() != 4 or x.shape[1] != c or min(x.shape[2:]) < self.reach:
            return f"pastes a patch of {c} channels and up to {self.reach:.0f} pixels into images, not {shape}"
        return ""

    def init(self, p: Problem) -> Tensor:
        """The step counter [b]."""
        return torch.zeros_like(p.y)

    def step(self, p: Problem, s: Tensor) -> tuple[Tensor, Trial]:
        """Show the patch at the next place."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        where = p.noise.uniform(s, (4,), dtype=p.x0.dtype) * 2 - 1
        x = self.paste(p.x0, look_up(self.sha).to(p.x0), where).clamp(*p.threat.bounds)
        return s + 1, Trial(x, p.oracle.look(x))

    def paste(self, x: Tensor, picture: Tensor, where: Tensor) -> Tensor:
        """Return images [b, c, h, w] with the picture [c, k, k] at `where` [b, 4] of -1 to 1: down, right, angle, zoom.

        Differentiable in the picture.
        """
        (h, w), k = x.shape[-2:], picture.shape[-1]
        factor = 1 + self.zoom * where[:, 3]
        angle = where[:, 2] * math.radians(self.degrees)
        room = self.reach / (1 + self.zoom) * factor
        top, left = (h - k) // 2, (w - k) // 2
        off = ((h - k) / 2 - top, (w - k) / 2 - left)  # the middle of the picture is half a pixel off in odd cases
        down = where[:, 0] * (h - room).clamp(min=0) / 2 + off[0]
        right = where[:, 1] * (w - room).clamp(min=0) / 2 + off[1]
        line = torch.arange(k, dtype=x.dtype, device=x.device) - (k - 1) / 2
        round_off = line.square().view(-1, 1) + line.square() > (k / 2) ** 2
        shape = torch.ones(k, k, dtype=x.dtype, device=x.device).masked_fill(round_off & self.disc, 0.0)
        layers = torch.cat([picture * shape, shape[None]])
        canvas = torch.nn.functional.pad(layers, (left, w - k - left, top, h - k - top)).expand(len(x), -1, -1, -1)
        placed = warp(canvas, angle, factor, down, right)
        return x * (1 - placed[:, -1:]) + placed[:, :-1]

    def save(self, path: str | Path) -> None:
        """Write the picture to a .safetensors file, which `patch(path)` reads."""
        save_tensor(path, self.picture)


@recipe("Brown et al. 2017, arXiv 1712.09665", (), Access.LABEL)
def patch(what: str, looks: int = 1, degrees: float = 20.0, zoom: float = 0.1, *, disc: bool = True) -> Patch:
    """A patch that was learned before, at random places: by its hash, or from a .safetensors file."""
    sha = kept(load_tensor(what)) if what.endswith(".safetensors") else what
    if look_up(sha).dim() != 3 or look_up(sha).shape[1] != look_up(sha).shape[2]:
        raise InputError(f"A patch is a square picture [channels, side, side], not {tuple(look_up(sha).shape)}.")
    return Patch(sha=sha, looks=looks, degrees=degrees, zoom=zoom, disc=disc)


def learn_patch(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    side: int,
    to: int | None = None,
    steps: int = 200,
    batch_size: int = 32,
    rate: float = 0.1,
    degrees: float = 20.0,
    zoom: float = 0.1,
    disc: bool = True,
    loss: str = "ce",
    clip: float = 9.0,
    seed: int = 0,
) -> Patch:
    """Learn a patch by gradients over inputs, places, angles and sizes at once (Brown et al. 2017, arXiv 1712.09665).

    Args:
        target: white-box.
        x: images [n, c, h, w] to learn from, labels y int64 [n]; measure what was learned on others.
        side: of the patch in pixels.
        to: the class that everything becomes, else any wrong one; inputs of that class are left out.
        steps, batch_size: of Adam, whose `rate` falls from so many units of the box to 0 along a cosine.
        degrees, zoom, disc: see `Patch`.
        loss, clip: what is climbed; a row whose loss is beyond `clip` pulls no more.
        seed: of the first patch (uniform), the order and the places.

    Raises:
        InputError: inputs or settings do not fit.
    """
    target = as_target(target)
    lo, hi = target.bounds
    check_counts(side=side, steps=steps, batch_size=batch_size)
    check_loss(loss)
    check_size("rate", rate)
    check_size("clip", clip)
    check_inputs(x, y, l0(1).within(target.bounds), target)
    x, y = (x, y) if to is None else (x[y != to], y[y != to])
    luck = torch.Generator().manual_seed(seed)
    first = lo + (hi - lo) * torch.rand(x.shape[1] if x.dim() > 1 else 1, side, side, generator=luck)
    made = Patch(sha=kept(first), degrees=degrees, zoom=zoom, disc=disc)
    if reason := made.unfit(x, made.threat, 0):
        raise InputError(f"{reason[0].upper()}{reason[1:]}.")
    if not len(x):
        raise InputError("There is nothing to learn from: x holds no example of another class.")
    with torch.inference_mode(False), untouched(target), torch.enable_grad():
        door = Oracle(target, Access.GRADIENT)
        picture = first.to(target.device, target.work_dtype).requires_grad_(True)
        adam = torch.optim.Adam([picture], lr=rate * (hi - lo))
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (batch_size,), generator=luck)
            where = (torch.rand(batch_size, 4, generator=luck) * 2 - 1).to(picture)
            shown = made.paste(x[rows].to(picture), picture, where).clamp(lo, hi)
            label = y[rows].to(picture.device)
            wanted = None if to is None else torch.full_like(label, to)
            _, value, grad = door.gradient(shown.detach(), climb(loss, label, wanted, paired=False))
            pulls = (value < clip).to(grad.dtype).view(-1, 1, 1, 1)
            (pull,) = torch.autograd.grad(shown, picture, grad * pulls)
            picture.grad = -pull / batch_size
            adam.step()
            fall.step()
            with torch.no_grad():
                picture.clamp_(lo, hi)
    return patch(kept(picture), degrees=degrees, zoom=zoom, disc=disc)
