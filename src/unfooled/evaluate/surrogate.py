"""A surrogate distilled from the target's own answers: its gradients lead where the target gives none."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .._noise import Noise, row_keys
from ..attacks.gradient import pgd
from ..attacks.learned import imitate
from ..core.access import Access
from ..core.engine import last_iterate
from ..core.oracle import Oracle
from ..core.target import Target, untouched
from ..core.threat import Ball

POINTS = 1500
"""Answers that are asked for, of inputs of 784 values or fewer; larger inputs get fewer."""

ROUNDS = 3


def distil(target: Target, x: Tensor, ball: Ball, *, seed: int = 0) -> Target:
    """Return a small network that answers like the target near the inputs x [n, ...].

    It learns from the target's scores (its classes, where scores say nothing else) at random points of balls up to
    twice as large, then, twice, at the points to which its own gradient leads (Papernot et al. 2017, arXiv 1602.02697:
    substitute training, with PGD for the Jacobian step). Deterministic in `seed`.
    """
    lo, hi = target.bounds
    x = x[: POINTS // 10].detach().to("cpu", torch.float32)
    values = x[0].numel()
    points = int(min(POINTS, max(400, POINTS * 784 / values)))
    each = max(1, points // (ROUNDS * len(x)))

    def propose(at: int, module: nn.Module, seen: Tensor, answers: Tensor) -> Iterator[Tensor]:
        label, own = answers[: len(x)].argmax(1), Target(module, bounds=(lo, hi))
        for copy in range(each):
            radius = ball.eps * (0.5, 1.0, 2.0)[copy % 3]
            if at:  # where its own gradient leads, which is where it must be right
                steps = pgd(steps=5 + 5 * (copy % 3), step_size=0.3)
                yield last_iterate(steps, own, x, label, Ball(ball.norm, radius, (lo, hi)), seed=seed, step=copy)
            else:
                keys = torch.from_numpy(row_keys(seed, np.arange(len(x)), "distil", copy))
                noise = ball.norm.sample(Noise(keys), 0, x.shape[1:], radius, x.dtype)
                yield (x + noise).clamp(lo, hi)

    with torch.inference_mode(False), untouched(target):
        known = max(target.labels, len(target.classes or ()))
        door = Oracle(target, Access.SCORES)
        module = imitate(door, None, x, propose, rounds=ROUNDS, classes=known, seed=seed)
    return Target(module.eval().to(target.device), bounds=target.bounds, name="distilled surrogate")
