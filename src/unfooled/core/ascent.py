"""Gradient ascent on what inputs are made of: one loop for fooling images, pictures of units and classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .._noise import Noise
from .._rows import column, where
from ..errors import InputError
from ..parametrise.fourier import blur as blurred
from .ask import Asker, PerRow

Transform = Callable[[Tensor, Noise, int], Tensor]
"""`(x [n, ...], noise, step) -> x`, differentiable, another draw every step."""


@dataclass(frozen=True)
class Regulariser:
    """What is done to the parameters after every `every`-th step: theta <- act(theta) (Yosinski et al. 2015, eq. 2)."""

    act: Callable[[Tensor], Tensor]
    every: int = 1


def decay(share: float, towards: float = 0.0) -> Regulariser:
    """Return L2 decay: after every step, the distance to `towards` shrinks by this share."""
    return Regulariser(lambda theta: towards + (1 - share) * (theta - towards))


def blur(sigma: float, every: int = 4) -> Regulariser:
    """Return a Gaussian blur of images [n, c, h, w] with `sigma` pixels after every `every`-th step."""
    return Regulariser(lambda theta: blurred(theta, sigma), every)


def total_variation(weight: float, smooth: float = 0.05) -> Regulariser:
    """Return a step of `weight` down the total variation of images [n, c, h, w] (Mahendran and Vedaldi 2015).

    Total variation: the sum over pixels of sqrt(dx² + dy² + smooth²), a difference being 0 across the border. Steps are
    stable for weights up to smooth / 4.
    """

    def act(theta: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            down, right = F.pad(leaf.diff(dim=2), (0, 0, 0, 1)), F.pad(leaf.diff(dim=3), (0, 1))
            total = (down**2 + right**2 + smooth**2).sqrt().sum()
            return theta - weight * torch.autograd.grad(total, leaf)[0]

    return Regulariser(act)


def wobble(*, jitter: float = 0.0, rotate: float = 0.0, scale: float = 1.0) -> Transform:
    """Return a random rotation, scaling and shift of images [n, c, h, w], each image its own, by bilinear sampling.

    Uniform draws: shifts of at most `jitter` pixels along both axes, rotations of at most `rotate` degrees, factors
    between 1 / scale and scale. Beyond the border the image is mirrored.
    """

    def transform(x: Tensor, noise: Noise, step: int) -> Tensor:
        u = noise.uniform(step, (4,), salt=1, dtype=x.dtype) * 2 - 1  # [n, 4] in [-1, 1)
        height, width = x.shape[-2:]
        angle, factor = u[:, 0] * math.radians(rotate), torch.exp(u[:, 1] * math.log(scale))
        cos, sin, across = angle.cos() / factor, angle.sin() / factor, width / height
        shift = u[:, 2:] * 2 * jitter / torch.tensor([width, height], dtype=x.dtype, device=x.device)
        rows = [torch.stack([cos, -sin / across, shift[:, 0]], 1), torch.stack([sin * across, cos, shift[:, 1]], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    return transform


@dataclass
class _Adam:
    """Adam (Kingma and Ba 2015, algorithm 1); every value by itself, so rows do not see each other."""

    lr: float
    count: int = 0
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def __call__(self, grad: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * grad
        self.square = 0.999 * self.square + 0.001 * grad**2
        root = (torch.as_tensor(self.square) / (1 - 0.999**self.count)).sqrt()
        return self.lr * self.mean / (1 - 0.9**self.count) / root.clamp(min=torch.finfo(grad.dtype).tiny ** 0.5)


@dataclass
class _Normalised:
    """Steps along the gradient whose root mean square over a row is lr."""

    lr: float

    def __call__(self, grad: Tensor) -> Tensor:
        size = grad.flatten(1).square().mean(1).sqrt()
        return self.lr * grad / column(size.clamp(min=torch.finfo(grad.dtype).tiny), grad)


OPTIMISERS: dict[str, Callable[[float], Callable[[Tensor], Tensor]]] = {"adam": _Adam, "normalised": _Normalised}


@dataclass(frozen=True)
class Ascent:
    """The end of a climb: the best parameters `theta` [n, ...], their inputs `x` [n, ...] and objectives `value` [n].

    `history` [steps + 1, n] is the objective at the untransformed inputs, before every step and after the last;
    `forward` and `backward` count the rows that the target was asked for.
    """

    theta: Tensor = field(repr=False)
    x: Tensor = field(repr=False)
    value: Tensor
    history: Tensor = field(repr=False)
    forward: int = 0
    backward: int = 0


def ascend(
    asker: Asker,
    objective: PerRow,
    theta: Tensor,
    decode: Callable[[Tensor], Tensor],
    *,
    steps: int,
    noise: Noise,
    settle: Callable[[Tensor], Tensor] = lambda theta: theta,
    lr: float = 0.05,
    optimiser: Literal["adam", "normalised"] = "adam",
    regularisers: Sequence[Regulariser] = (),
    transforms: Sequence[Transform] = (),
) -> Ascent:
    """Climb `objective` at the inputs decode(theta) for `steps` steps from `theta` [n, ...]; all rows go together.

    `settle` puts parameters back where `decode` takes them. The target sees inputs after all `transforms`, with one
    draw a step from each row's own noise; then each step costs one forward more, for the objective of the input itself.
    The best of all inputs that every regulariser has just acted on is kept, the start among them. A row climbs the same
    whatever other rows there are, as far as the target's own arithmetic does not differ with the batch.

    Raises:
        InputError: fewer than one step, an lr that is not positive, or an unknown optimiser.
    """
    if steps < 1 or not lr > 0 or optimiser not in OPTIMISERS:
        raise InputError(
            f"An ascent needs at least one step, a positive lr and one of the optimisers {', '.join(OPTIMISERS)}, "
            f"not steps={steps}, lr={lr}, optimiser={optimiser!r}."
        )
    move, period = OPTIMISERS[optimiser](lr), math.lcm(*(r.every for r in regularisers))
    forward, backward = asker.forward, asker.backward
    history = []
    with torch.inference_mode(False):
        theta = theta.detach().clone()
        for step in range(steps + 1):
            with torch.enable_grad():
                leaf = theta.requires_grad_(True)
                x = seen = decode(leaf)
                for transform in transforms:
                    seen = transform(seen, noise, step)
            if step < steps:
                _, value, grad = asker.gradient(seen, objective)
            if transforms or step == steps:
                value = asker.value(x, objective)
            history.append(value)
            theta = theta.detach()
            if step == 0:
                best, kept = theta, value
            elif step % period == 0:
                better = value > kept
                best, kept = where(better, theta, best), torch.where(better, value, kept)
            if step == steps:
                break
            theta = settle(theta + move(torch.autograd.grad(seen, leaf, grad.to(seen.dtype))[0]))
            for regulariser in regularisers:
                if (step + 1) % regulariser.every == 0:
                    theta = settle(regulariser.act(theta))
        with torch.no_grad():
            x = decode(best)
    return Ascent(best, x, kept, torch.stack(history), asker.forward - forward, asker.backward - backward)
