"""A surrogate distilled from the target's own answers: its gradients lead where the target gives none."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._noise import Noise, row_keys
from ..attacks.gradient import pgd
from ..core.access import Access
from ..core.engine import last_iterate
from ..core.fit import fit
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
    with torch.inference_mode(False), untouched(target):
        door = Oracle(target, Access.SCORES)
        clean = _answers(door, x)
        module = _network(x.shape[1:], clean.shape[1], lo, hi, seed)
        seen, answers = [x], [clean]
        for at in range(ROUNDS):
            for copy in range(each):
                keys = torch.from_numpy(row_keys(seed, np.arange(len(x)), "distil", at * each + copy))
                radius = ball.eps * (0.5, 1.0, 2.0)[copy % 3]
                noise = ball.norm.sample(Noise(keys), 0, x.shape[1:], radius, x.dtype)
                if at:  # where its own gradient leads, which is where it must be right
                    steps = pgd(steps=5 + 5 * (copy % 3), step_size=0.3)
                    own = Target(module, bounds=(lo, hi))
                    label = clean.argmax(1)
                    here = last_iterate(steps, own, x, label, Ball(ball.norm, radius, (lo, hi)), seed=seed, step=copy)
                else:
                    here = (x + noise).clamp(lo, hi)
                seen.append(here)
                answers.append(_answers(door, here))
            z = torch.cat(answers)
            label, soft = z.argmax(1), _soft(z)

            def objective(net: nn.Module, a: Tensor, y: Tensor, ids: Tensor, step: int, soft: Tensor = soft) -> Tensor:
                log_p = net(a).log_softmax(1)
                return F.nll_loss(log_p, y) - (soft[ids] * log_p).sum(1).mean()

            fit(module, torch.cat(seen), label, objective, epochs=6, batch_size=64, lr=3e-3, seed=seed + at)
    module.eval().to(target.device)
    return Target(module, bounds=target.bounds, name="distilled surrogate")


def _answers(door: Oracle, x: Tensor) -> Tensor:
    scores = []
    for part in x.split(256):
        answer = door.look(part.to(door.target.device, door.target.work_dtype))
        z = answer.scores
        if z is None:  # labels alone
            z = F.one_hot(answer.label, max(door.target.labels, len(door.target.classes or ())))
        scores.append(z.detach().cpu().float().nan_to_num(0.0, 1e4, -1e4))
    return torch.cat(scores)


def _soft(z: Tensor) -> Tensor:
    """Return scores [m, k] as probabilities whose typical gap is that of a confident network."""
    z = z - z.amax(1, keepdim=True)
    gap = z.topk(2, dim=1).values.diff(dim=1).abs().median().clamp(min=1e-12)
    return (z * (4.0 / gap)).softmax(1)


def _network(shape: torch.Size, classes: int, lo: float, hi: float, seed: int) -> nn.Module:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        layers: list[nn.Module] = [_Centre(lo, hi)]
        if len(shape) == 3 and min(shape[1:]) >= 6:
            stride = 2 if min(shape[1:]) >= 16 else 1
            layers += [nn.Conv2d(shape[0], 24, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1)]
            layers += [nn.ReLU(), nn.Flatten(), nn.LazyLinear(96), nn.ReLU(), nn.Linear(96, classes)]
        else:
            layers += [nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
            layers += [nn.Linear(128, classes)]
        net = nn.Sequential(*layers)
        net(torch.zeros(1, *shape))
    finally:
        torch.set_rng_state(state)
    return net


class _Centre(nn.Module):
    """Inputs between -1 and 1."""

    def __init__(self, lo: float, hi: float) -> None:
        super().__init__()
        self.lo, self.hi = lo, hi

    def forward(self, x: Tensor) -> Tensor:
        """Return x scaled from the bounds to [-1, 1]."""
        return (x - self.lo) / (self.hi - self.lo) * 2 - 1
