"""Ways to harden, by name: an objective for a threat, and the settings of training that go with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unfooled.core.attack import parse
from unfooled.core.fit import Objective
from unfooled.core.network import IntervalBound
from unfooled.core.threat import Ball
from unfooled.errors import InputError, nearest

from . import certified, objectives


@dataclass(frozen=True)
class Rounds:
    """How universal perturbations are made fresh: what learns one, and the steps of training on each."""

    learn: objectives.Learn
    steps: int


Make = Callable[[Ball, int, int], Objective]
"""`(threat, seed, steps over which the radius grows) -> objective`."""


@dataclass(frozen=True)
class Way:
    """One way to harden: `passes` are the forward-backward pairs that a training image costs an epoch.

    `make` is None for the way that learns universal perturbations: what learns them comes from outside (`Rounds`).
    `uncounted` names what its passes hold besides calls of the module, which are all that training counts.
    """

    name: str
    paper: str
    doc: str
    make: Make | None
    passes: int
    recipe: dict[str, Any] = field(default_factory=dict)
    uncounted: str = ""

    def objective(self, threat: Ball, *, seed: int = 0, ramp: int = 0, rounds: Rounds | None = None) -> Objective:
        """Return the objective for a threat; the radius grows from 0 over the first `ramp` steps.

        Raises InputError when the way needs `rounds` and there are none, and as the objectives.
        """
        if self.make:
            return self.make(threat, seed, ramp)
        if rounds is None:
            raise InputError(
                f"The recipe {self.name!r} must be told how changes are learned: give the objective "
                f"harden.way({self.name!r}).objective(threat, rounds=Rounds(...))."
            )
        return objectives.universal(rounds.learn, threat, steps=rounds.steps, seed=seed)


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
        Way("dropout", "Srivastava et al. 2014, JMLR 15", "Dropout of input and hidden units: the third control.",
            lambda t, s, r: objectives.dropped(), 1),
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
                objectives.adversarial(parse(_MANY), t, seed=s, ramp=r), gamma=0.01, after=r), 9),
        Way("fgsm-rs", "Wong et al. 2020, arXiv:2001.03994", "One long step from a random start; may collapse.",
            lambda t, s, r: objectives.adversarial(parse(_ONE), t, seed=s, ramp=r), 2),
        Way("n-fgsm", "de Jorge et al. 2022, arXiv:2202.01181", "One step from wide noise, not projected.",
            lambda t, s, r: objectives.noisy_step(t, seed=s, ramp=r), 2),
        Way("nuat", "Sriramanan et al. 2021, NeurIPS 34", "One step, and logits that change in few directions.",
            lambda t, s, r: objectives.nuclear(t, seed=s, ramp=10 * r), 3),  # grows as long as its authors', not `r`
        Way("gradalign", "Andriushchenko and Flammarion 2020, arXiv:2007.02617",
            "One step, and gradients that agree across the ball.",
            lambda t, s, r: objectives.aligned(
                objectives.adversarial(parse(_CLEAN), t, seed=s, ramp=r), t, seed=s), 6),
        Way("free", "Shafahi et al. 2019, arXiv:1904.12843", "Four visits a batch, one backward pass for both.",
            lambda t, s, r: objectives.Free(t), 4, {"replays": 4}),
        Way("universal", "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401",
            "Half of the images with one perturbation for all, learned anew every epoch.", None, 2),
        Way("ibp", "Gowal et al. 2018, arXiv:1810.12715",
            "Bounds on what any input of the ball could score, for small ReLU networks: robust, and certified as such.",
            lambda t, s, r: certified.certified(IntervalBound(), t, warm=r, ramp=5 * r), 3,
            uncounted="interval bounds"),
        Way("gaussian", "Cohen et al. 2019, arXiv:1902.02918",
            "Gaussian noise of half the eps of an L2 threat: the base of randomised smoothing.",
            lambda t, s, r: certified.gaussian(certified.sigma_for(t), seed=s), 1),
    ]  # fmt: skip


WAYS: dict[str, Way] = {each.name: each for each in _ways()}
