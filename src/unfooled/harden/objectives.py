"""Objectives: what one training step minimises. An attack is an argument here, never an import."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from unfooled.core import fit
from unfooled.core.attack import Attack
from unfooled.core.engine import last_iterate
from unfooled.core.threat import Ball
from unfooled.errors import InputError


def standard() -> fit.Objective:
    """Return the mean cross-entropy on the images as they are."""
    return fit.standard


def adversarial(attack: Attack[Any], threat: Ball, *, seed: int = 0, ramp: int = 0) -> fit.Objective:
    """Return the mean cross-entropy at the attack's last iterate (Madry et al. 2018, arXiv:1706.06083, eq. 2.1).

    The radius grows linearly from 0 to the threat's eps over the first `ramp` training steps, without which a large
    eps lets a small network collapse to a constant. The noise belongs to (seed, the row's place in the data, step).

    Raises:
        InputError: the threat has no finite eps.

    Nothing is promised about attacks that this one does not resemble, nor about a larger eps.
    """
    if not threat.bounded:
        raise InputError(f"Adversarial training needs a threat with a finite eps, not {threat!r}.")

    def perturb(module: nn.Module, x: Tensor, y: Tensor, ids: Tensor, step: int) -> Tensor:
        grown = replace(threat, eps=threat.eps * min(1.0, (step + 1) / max(1, ramp)))
        return last_iterate(attack, module, x, y, grown, seed=seed, ids=ids.numpy(), step=step)

    return fit.adversarial(perturb)
