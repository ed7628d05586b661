"""Ways to harden, by name: an objective for a threat, and the settings of training that go with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unfooled.core.attack import parse
from unfooled.core.fit import Objective
from unfooled.core.threat import Ball
from unfooled.errors import InputError, nearest

from . import objectives

Make = Callable[[Ball, int, int], Objective]
"""`(threat, seed, steps over which the radius grows) -> objective`."""


@dataclass(frozen=True)
class Way:
    """One way to harden: `passes` are the forward-backward pairs that a training image costs an epoch."""

    name: str
    paper: str
    doc: str
    make: Make
    passes: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def objective(self, threat: Ball, *, seed: int = 0, ramp: int = 0) -> Objective:
        """Return the objective for a threat; the radius grows from 0 over the first `ramp` steps."""
        return self.make(threat, seed, ramp)


def way(name: str) -> Way:
    """Return the way of this name; raises InputError with the nearest names."""
    if name not in WAYS:
        raise InputError(f"There is no recipe {name!r}: use {', '.join(WAYS)}.{nearest(name, WAYS)}")
    return WAYS[name]


_MANY, _ONE, _CLEAN = "pgd(steps=7, step_size=0.3)", "pgd(steps=1, step_size=1.25)", "fgsm()"


def _ways() -> list[Way]:
    return [
        Way("standard", "", "No attack at all: the control.", lambda t, s, r: objectives.standard(), 1),
        Way("noise", "Goodfellow et al. 2014, arXiv:1412.6572", "Random changes in the ball: the other control.",
            lambda t, s, r: objectives.noised(t, seed=s), 1),
        Way("mixed", "Goodfellow et al. 2014, arXiv:1412.6572", "Half the loss at x, half after one signed step.",
            lambda t, s, r: objectives.mixed(parse(_CLEAN), t, seed=s, ramp=r), 3),
        Way("pgd", "Madry et al. 2018, arXiv:1706.06083", "The loss at the end of seven steps.",
            lambda t, s, r: objectives.adversarial(parse(_MANY), t, seed=s, ramp=r), 8),
        Way("trades", "Zhang et al. 2019, arXiv:1901.08573", "The clean loss and the divergence that an attack makes.",
            lambda t, s, r: objectives.trades(parse(_MANY), t, seed=s, ramp=r), 9),
        Way("mart", "Wang et al. 2020, ICLR", "Like TRADES, heavier where the answer is wrong.",
            lambda t, s, r: objectives.mart(parse(_MANY), t, seed=s, ramp=r), 9),
        Way("awp", "Wu et al. 2020, arXiv:2004.05884", "PGD training at weights moved against it.",
            lambda t, s, r: objectives.weight_perturbed(
                objectives.adversarial(parse(_MANY), t, seed=s, ramp=r), after=r), 9),
        Way("fgsm-rs", "Wong et al. 2020, arXiv:2001.03994", "One long step from a random start; may collapse.",
            lambda t, s, r: objectives.adversarial(parse(_ONE), t, seed=s, ramp=r), 2),
        Way("n-fgsm", "de Jorge et al. 2022, arXiv:2202.01181", "One step from wide noise, not projected.",
            lambda t, s, r: objectives.noisy_step(t, seed=s, ramp=r), 2),
        Way("gradalign", "Andriushchenko and Flammarion 2020, arXiv:2007.02617",
            "One step, and gradients that agree across the ball.",
            lambda t, s, r: objectives.aligned(
                objectives.adversarial(parse(_ONE), t, seed=s, ramp=r), t, seed=s), 6),
        Way("free", "Shafahi et al. 2019, arXiv:1904.12843", "Four visits a batch, one backward pass for both.",
            lambda t, s, r: objectives.Free(t), 4, {"replays": 4}),
    ]  # fmt: skip


WAYS: dict[str, Way] = {each.name: each for each in _ways()}
