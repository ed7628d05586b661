"""From a target to a harder one with the proof: trained within a budget, and measured before and after."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfooled import harden
from unfooled.attacks import SUITES, universal
from unfooled.core.augment import augment as read_augmentation
from unfooled.core.data import Data
from unfooled.core.fit import Augment, Objective, Recipe, Step, Training
from unfooled.core.result import Evaluation, Progress
from unfooled.core.target import Target
from unfooled.core.threat import Ball
from unfooled.errors import InputError, nearest
from unfooled.evaluate.measure import evaluate
from unfooled.stats import mean_interval

RAMP = 0.1
"""Share of all steps over which the radius grows."""

TRIAL = 3  # steps that are timed on a copy to see how many epochs a budget holds
MOST = 200  # epochs of a budgeted training at most
JUDGE_PASSES = 13  # that judging an epoch takes for a validation row: ten steps, one step, and looks at what they made


@dataclass(frozen=True)
class Proof:
    """A hardened target, how its training went, and the same evaluation of it before and after."""

    target: Target
    training: harden.Hardened
    before: Evaluation
    after: Evaluation

    def sentence(self) -> str:
        """Return what hardening gained and what it cost, with 95% intervals over the choice of examples."""
        b, a = self.before, self.after

        def share(value: float, interval: tuple[float, float]) -> str:
            return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"

        def robust(found: Evaluation) -> str:
            return found.verdict if found.withheld else f"at most {share(found.robust_accuracy, found.robust_interval)}"

        return (
            f"Robust accuracy under {a.threat} {robust(b)} before and {robust(a)} after ({a.status}); clean accuracy "
            f"{share(b.clean_accuracy, b.clean_interval)} before and {share(a.clean_accuracy, a.clean_interval)} after "
            f"(n = {a.n}, suite {a.suite})."
        )

    def gains(self) -> list[tuple[float, float, float]]:
        """Return how much robust and clean accuracy grew on the same examples: each with its 95% interval."""
        both = self.before.counted & self.after.counted
        changes = (
            self.after.standing() - self.before.standing(),
            self.after.clean.double() - self.before.clean.double(),
        )
        found = []
        for change in changes:
            low, high = mean_interval(((change[both] + 1) / 2).tolist())  # a share from 0 to 1 of the way from -1 to 1
            found.append((float(change[both].mean()), 2 * low - 1, 2 * high - 1))
        return found

    def weights(self) -> bytes:
        """Return the hardened module's weights as the bytes of a .safetensors file, under its own names.

        What the target wears (`harden.wear`) is not part of them.
        """
        from safetensors.torch import save

        assert isinstance(self.target.module, nn.Module)
        state = harden.bare(self.target.module).state_dict()
        return bytes(save({k: v.detach().cpu().contiguous() for k, v in state.items()}))


def halves(data: Data, seed: int = 0) -> tuple[Data, Data]:
    """Return four fifths of the data to train on and a fifth to measure on, drawn by the seed."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    cut = len(data) // 5
    if cut < 1:
        raise InputError(f"{len(data)} examples are too few to train on some and measure on others; give five or more.")
    parts = (order[cut:], order[:cut])
    train, test = (replace(data, x=data.x[rows], y=data.y[rows], files=None) for rows in parts)
    return train, test


class Worn(nn.Module):
    """A target's module behind the target's normalisation: takes inputs within the bounds, as attacks make them."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        if not isinstance(target.module, nn.Module):
            raise InputError(f"Only torch modules can be hardened; {target.name} is a {type(target.module).__name__}.")
        self.module = target.module
        self._target = [target]  # not a submodule

    def forward(self, x: Tensor) -> Any:
        """Return the module's scores of x."""
        return self.module(self._target[0].prepared(x))


def harden_target(
    target: Target,
    train: Data,
    test: Data,
    threat: Ball,
    *,
    recipe: str = "pgd",
    budget: float | None = None,
    epochs: int | None = None,
    settings: dict[str, Any] | None = None,
    choose: harden.Choose = "adversarial",
    patience: int | None = None,
    suite: str = "standard",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    augment: str | None = None,
    extra: Data | None = None,
    on_line: Callable[[harden.Line], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    train_by: Callable[..., harden.Hardened] = harden.fit,
) -> Proof:
    """Measure a target, harden it, measure it again on the same held-out examples; its module is trained in place.

    Args:
        target: a torch module with its normalisation.
        train, test: what it is trained on, and what both evaluations are of.
        threat: a ball with a finite eps.
        recipe: a name of `harden.WAYS`.
        budget: seconds of training; a few steps are timed and as many epochs are made as fit, the evaluations apart.
            What is resumed keeps the number of epochs that it was begun with.
        epochs: how many, instead of a budget; 10 by default.
        settings: other settings of `core.fit.Recipe`, such as lr and batch_size.
        choose, patience, out, resume, augment, extra, on_line, on_step: as for `harden.fit`.
        suite, seed, progress: as for `evaluate`.
        train_by: `harden.fit`, or what takes its arguments and trains elsewhere (`unfooled.scale.fit`).

    Raises:
        InputError: what `harden.fit` and `evaluate` raise, a target that is no torch module, a budget that holds no
            epoch.
    """
    way, module = harden.way(recipe), Worn(target)
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError(f"{target.name} has no parameter that training could change; give a torch module with some.")
    if suite not in SUITES and "(" not in suite:
        raise InputError(f"There is no suite {suite!r}: use {', '.join(SUITES)}.{nearest(suite, SUITES)}")
    if not threat.bounded or threat.norm.name == "l0":
        raise InputError(f"Hardening needs a threat in Linf, L2 or L1 with a finite eps, not {threat!r}.")
    plan = Recipe(**{"epochs": epochs or 10, "seed": seed, **_usual(train), **way.recipe, **(settings or {})})
    harden.check(module, train, test, *([] if extra is None else [extra]))
    changes = None if augment is None else read_augmentation(augment)
    kept = harden.held_back(len(train))
    before = evaluate(target, test, threat=threat, suite=suite, seed=seed, progress=progress)
    begun = harden.begun(out) if resume and out is not None else None
    if begun is not None and budget is not None:
        plan = Recipe(**{**vars(plan), "epochs": begun.epochs})
    elif budget is not None:
        rounds = fresh_universals(train.take(plan.batch_size * TRIAL), threat, steps=TRIAL, seed=seed)
        objective = way.objective(threat, seed=seed, rounds=rounds)
        more = None if extra is None else (extra.x, extra.y)
        per_epoch = _epoch_seconds(module, train, objective, plan, augment=changes, extra=more)
        fits = _affordable(budget, per_epoch * (1 + JUDGE_PASSES * kept / (way.passes * len(train))), len(train))
        plan = Recipe(**{**vars(plan), "epochs": fits if epochs is None else min(epochs, fits)})
    ball = threat.within(target.bounds)
    an_epoch = plan.replays * math.ceil((len(train) - kept) / (plan.batch_size if extra is None else plan.own))
    rounds = fresh_universals(train, ball, steps=an_epoch, seed=seed)
    done = train_by(
        module, train, way.objective(ball, seed=seed, ramp=round(RAMP * plan.epochs * an_epoch), rounds=rounds),
        threat=ball, recipe=plan, choose=choose, patience=patience, out=out, resume=resume,
        name=recipe, augment=augment, extra=extra, on_line=on_line, on_step=on_step, validation=kept,
    )  # fmt: skip
    after = evaluate(target, test, threat=threat, suite=suite, seed=seed, progress=progress)
    return Proof(target, done, before, after)


def fresh_universals(train: Data, threat: Ball, *, steps: int, seed: int = 0) -> harden.Rounds:
    """Return how a universal perturbation is learned anew after every `steps` steps, for a visit of `train`.

    It is learned on 2,000 rows at most, visited as often as that cost allows, for what the module itself answers there.
    """
    some = train.take(min(len(train), 2000))

    def learn(module: nn.Module, at: int) -> Tensor:
        visits, target = max(1, len(train) // len(some)), Target(module, bounds=threat.bounds)
        return universal(target, some.x, threat, epochs=visits, batch_size=100, seed=seed + at).delta

    return harden.Rounds(learn, steps)


def _usual(train: Data) -> dict[str, Any]:
    """Return the settings that suit data of this size: batches of 128 and an average over about an epoch."""
    batch = 128 if len(train) >= 5000 else 32
    return {"batch_size": batch, "lr": 2e-3, "ema": min(0.999, 1 - 2 / (2 + len(train) / batch))}


def _epoch_seconds(
    module: nn.Module,
    train: Data,
    objective: Objective,
    plan: Recipe,
    *,
    augment: Augment | None,
    extra: tuple[Tensor, Tensor] | None,
) -> float:
    """Return the seconds that an epoch takes, by timing a few steps on a copy of the module."""
    rows = plan.batch_size * TRIAL
    trial, some = Recipe(**{**vars(plan), "epochs": 2}), train.take(rows)
    timed = Training(copy.deepcopy(module), some.x, some.y, objective, trial, augment=augment, extra=extra)
    timed.run_epoch()  # the first is slower
    return timed.run_epoch().seconds * len(train) / len(some)


def _affordable(budget: float, epoch: float, rows: int) -> int:
    """Return how many epochs of `epoch` seconds fit into `budget` seconds, at most MOST."""
    fits = int(budget / epoch)
    if fits < 1:
        raise InputError(
            f"The budget of {budget:.0f} s holds no epoch of {rows:,} examples; give a longer one or fewer examples."
        )
    return min(fits, MOST)
