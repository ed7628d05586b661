"""From a target to a harder one with the proof: trained within a budget, and measured before and after."""

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfooled import harden
from unfooled._numbers import counted
from unfooled.attacks import universal
from unfooled.core.augment import augment as read_augmentation
from unfooled.core.data import Data
from unfooled.core.fit import Augment, Objective, Recipe, Step, Training
from unfooled.core.record import JOURNAL
from unfooled.core.result import Evaluation, Progress
from unfooled.core.target import Preparation, Target
from unfooled.core.threat import Ball
from unfooled.errors import Diverged, InputError
from unfooled.evaluate.measure import _suite, evaluate, whole
from unfooled.harden.trainer import RAMP, apart, left_out, must_match, split, steps
from unfooled.stats import mean_interval

LEARNED = 2000  # rows that a universal perturbation is learned on
TRIAL = 3  # steps that are timed on a copy to see how many epochs a budget holds
MOST = 200  # epochs of a budgeted training at most
JUDGE_PASSES = 13  # that judging an epoch takes for a validation row: ten steps, one step, and looks at what they made


@dataclass(frozen=True)
class Proof:
    """A hardened target, how its training went, and the same evaluation of it before and after.

    `notes` are sentences about what was left out of training.
    """

    target: Target
    training: harden.Hardened
    before: Evaluation
    after: Evaluation
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return what hardening gained and cost, with 95% intervals over the choice of examples, and the verdicts."""
        b, a = self.before, self.after

        def share(value: float, interval: tuple[float, float]) -> str:
            return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"

        def robust(found: Evaluation) -> str:
            known = "" if found.withheld else f"at most {share(found.robust_accuracy, found.robust_interval)}, "
            return f"{known}{found.verdict}"

        told = (
            f"Robust accuracy under {a.threat} before: {robust(b)}; after: {robust(a)}; clean accuracy "
            f"{share(b.clean_accuracy, b.clean_interval)} before and {share(a.clean_accuracy, a.clean_interval)} after "
            f"(n = {a.n}, suite {a.suite})."
        )
        return f"{told} {self.doubt()}".rstrip()

    def doubt(self) -> str:
        """Return in a sentence that hardening gained no robust accuracy, or less than it cost; "" where it did more."""
        if self.before.withheld or self.after.withheld:
            return ""
        (robust, low, high), (clean, *_) = self.gains()
        change = (
            f"robust accuracy changed by {100 * robust:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f} at 95%), "
            f"clean accuracy by {100 * clean:+.1f}"
        )
        if high < 0:
            return f"Hardening did harm: {change}."
        if low <= 0:
            return f"Hardening did not help measurably: {change}."
        return f"It cost more clean accuracy than it gained: {change}." if -clean > robust else ""

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
        return bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}))


def halves(data: Data, seed: int = 0) -> tuple[Data, Data]:
    """Return four fifths of the data to train on and a fifth to measure on, drawn by the seed."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    cut = len(data) // 5
    if cut < 1:
        raise InputError(f"{counted(len(data), 'example')} cannot be trained on and measured on; give five or more.")
    return data.only(order[cut:]), data.only(order[:cut])


class Worn(nn.Module):
    """A target's module behind the target's normalisation: takes inputs within the bounds, as attacks make them."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        if not isinstance(target.module, nn.Module):
            raise InputError(f"Only torch modules can be hardened; {target.name} is a {type(target.module).__name__}.")
        self.prepare, self.module = Preparation(target), target.module

    def forward(self, x: Tensor) -> Any:
        """Return the module's scores of x."""
        return self.module(self.prepare(x))


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
    limit: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    augment: str | None = None,
    extra: Data | None = None,
    on_line: Callable[[harden.Line], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    records: Path | str | None = None,
    train_by: Callable[..., harden.Hardened] = harden.fit,
) -> Proof:
    """Measure a target, harden it, measure it again on the same held-out examples; its module is trained in place.

    Args:
        target: a torch module with its normalisation.
        train, test: what it is trained on, and what both evaluations are of. What both hold is not trained on.
        threat: a ball with a finite eps.
        recipe: a name of `harden.WAYS`.
        budget: seconds of training; a few steps are timed and as many epochs are made as fit, the evaluations apart.
        epochs: how many, instead of a budget; 10 by default. What is resumed without them keeps those that it was
            begun with.
        settings: other settings of `core.fit.Recipe`, such as lr and batch_size.
        choose, patience, out, resume, augment, extra, on_line, on_step: as for `harden.fit`.
        suite, limit, seed, progress: as for `evaluate`.
        records: folder in which `before/` and `after/` keep what the evaluations finished, and where they are begun
            again go on from.
        train_by: `harden.fit`, or what takes its arguments and trains elsewhere (`unfooled.scale.fit`).

    Raises:
        InputError: what `harden.fit` and `evaluate` raise, a target that is no torch module, a budget that holds no
            epoch.
        KeyboardInterrupt: an evaluation was interrupted; half of one proves nothing.
    """
    way, module = harden.way(recipe), Worn(target)
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError(f"{target.name} has no parameter that training could change; give a torch module with some.")
    _suite(suite)
    if not threat.bounded or threat.norm.name == "l0":
        raise InputError(f"Hardening needs a threat in Linf, L2 or L1 with a finite eps, not {threat!r}.")
    plan = Recipe(**{"epochs": epochs or 10, "seed": seed, **_usual(train), **way.recipe, **(settings or {})})
    changes, ball = None if augment is None else read_augmentation(augment), threat.within(target.bounds)
    begun = harden.begun(out) if resume and out is not None else None
    if begun is not None and out is not None:
        plan = Recipe(**{**vars(plan), "epochs": begun.epochs if epochs is None or budget is not None else epochs})
        must_match(out, {"objective": recipe, "threat": repr(ball), "recipe": vars(plan)})
    others = [] if extra is None else [extra]
    harden.check(module, train, test, *others)
    (own,) = apart([train], [test])
    own, kept = split(own, None, plan.seed)
    own, *others = apart([own, *others], [kept, test])
    missing = len(train) - len(own) - len(kept), len(extra or ()) - sum(map(len, others))
    an_epoch = steps(plan, len(own), extra=bool(others))
    rounds = fresh_universals(own, ball, steps=an_epoch, seed=seed)
    if begun is None:  # what cannot be trained is refused before anything is measured
        few = fresh_universals(own.take(plan.batch_size * TRIAL), ball, steps=TRIAL, seed=seed)
        trial, more = way.objective(ball, seed=seed, rounds=few), (others[0].x, others[0].y) if others else None
        per_epoch = _epoch_seconds(module, own, trial, plan, augment=changes, extra=more)
        if budget is not None:
            fits = _affordable(budget, per_epoch * (1 + JUDGE_PASSES * len(kept) / (way.passes * len(own))), len(own))
            plan = Recipe(**{**vars(plan), "epochs": fits if epochs is None else min(epochs, fits)})

    def measured(when: str) -> Evaluation:
        journal = None if records is None else Path(records) / when / JOURNAL
        if journal is not None:
            journal.parent.mkdir(parents=True, exist_ok=True)
        asked: dict[str, Any] = {"suite": suite, "limit": limit, "seed": seed, "progress": progress}
        return whole(evaluate(target, test, threat=threat, journal=journal, **asked))

    before = measured("before")
    done = train_by(
        module, own, way.objective(ball, seed=seed, ramp=round(RAMP * plan.epochs * an_epoch), rounds=rounds),
        threat=ball, recipe=plan, choose=choose, patience=patience, out=out, resume=resume, name=recipe,
        augment=augment, extra=others[0] if others else None, on_line=on_line, on_step=on_step, validation=kept,
        reject=target.reject,
    )  # fmt: skip
    return Proof(target, done, before, measured("after"), left_out(*missing))


def fresh_universals(train: Data, threat: Ball, *, steps: int, seed: int = 0) -> harden.Rounds:
    """Return how a universal perturbation is learned anew after every `steps` steps, for a visit of `train`.

    It is learned on 2,000 rows at most, drawn by the seed and visited as often as that cost allows, for what the module
    itself answers there.
    """
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:LEARNED]
    some = train.only(drawn.sort().values)

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
    seconds = 0.0
    for _ in range(2):  # the first is slower
        began = time.perf_counter()
        with contextlib.suppress(Diverged):  # training itself then goes on with a lower rate
            timed.run_epoch()
        seconds = time.perf_counter() - began
    return seconds * len(train) / len(some)


def _affordable(budget: float, epoch: float, rows: int) -> int:
    """Return how many epochs of `epoch` seconds fit into `budget` seconds, at most MOST."""
    fits = int(budget / epoch)
    if fits < 1:
        raise InputError(
            f"The budget of {budget:.0f} s holds no epoch of {rows:,} examples; give a longer one or fewer examples."
        )
    return min(fits, MOST)
