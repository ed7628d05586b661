"""Run attacks on examples: one attack, or a cascade in which each next attack gets the rows that are left."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._noise import example_ids
from .._rows import Batch
from ..errors import InputError, Unavailable
from .access import Access
from .attack import RECIPES, SPECIAL, Attack, as_attack
from .engine import Engine
from .goal import Goal, Untargeted
from .journal import Journal
from .oracle import Oracle
from .pool import Pool
from .result import AttackRow, Progress, Status
from .target import Target, as_target, untouched
from .threat import Threat


@dataclass
class Run:
    """What is known about n examples after one attack or a cascade, one row each.

    `status` says misclassified (wrong before any attack), broken, survived, skipped or not_run; `success` bool [n] is
    status == broken; `x_adv` [n, ...] holds the original where nothing was found, and
    `distance` [n] NaN; `best` [n, ...] is what came nearest;
    `forward` and `backward` int64 [n] count the rows sent through the target for that example, the first look and the
    re-check included. `padding` and `overrun` rows ([forward, backward]) belong to nobody;
    with them the counts equal what the target saw. `lent` rows went through surrogates. `vanished` counts successes
    that the re-check refused.
    """

    attacks: list[AttackRow]
    status: list[Status]
    success: Tensor
    x_adv: Batch
    best: Batch
    distance: Tensor
    margin: Tensor
    label: Tensor
    label_clean: Tensor
    confidence: Tensor
    confidence_clean: Tensor
    steps: np.ndarray
    broken_by: list[str]
    ids: np.ndarray
    y: Tensor
    forward: np.ndarray
    backward: np.ndarray
    padding: np.ndarray
    overrun: np.ndarray
    vanished: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    classes: int = 0
    lent: int = 0

    def curve(self, eps: Sequence[float] | Tensor) -> Tensor:
        """Return the accuracy that is left at each eps [m], float64 [m]: right, and no smaller change was found.

        One run without an eps gives the whole curve, in the norm of its threat; invalid rows are left out.
        """
        known = torch.tensor([s != Status.INVALID for s in self.status])
        size = torch.where(self.success, self.distance.double(), torch.inf)
        size[torch.tensor([s == Status.MISCLASSIFIED for s in self.status])] = -torch.inf
        radii = torch.as_tensor(eps, dtype=torch.float64).view(-1, 1)
        return (size[known] > radii).double().mean(1)


def auto_width(x: Batch, device: torch.device) -> int:
    """Return how many slots suit inputs of this size on this device."""
    numel = max(1, math.prod(x.shape[1:])) if isinstance(x, Tensor) else 1000
    room = 2**24 if device.type != "cpu" else 2**18
    power = math.floor(math.log2(room / numel))
    return 1 << max(3, min(power, 9 if device.type != "cpu" else 8))


def run(
    attacks: Attack[Any] | str | Sequence[Attack[Any] | str],
    target: Target | Callable[..., Any],
    x: Batch,
    y: Tensor,
    threat: Threat,
    *,
    goal: Goal | None = None,
    access: Access | None = None,
    queries: int | None = None,
    batch_size: int | str = "auto",
    seed: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
    surrogates: Sequence[Target | Callable[..., Any]] = (),
    more: Sequence[Attack[Any]] = (),
    deadline: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    salvage: bool = False,
    relabel: Callable[[Tensor, Tensor], Tensor] | None = None,
    journal: Journal | None = None,
    phase: str = "",
) -> Run:
    """Attack n examples and return one record per example.

    Args:
        attacks: a recipe, its text, or a list: each next attack gets the rows that are left and their best points
            (with no eps all rows, and the smallest change of any attack is kept).
        target: a Target, or a module that takes inputs in [0, 1].
        x: float [n, ...] within the target's bounds (or a list of n texts for a threat on texts).
        y: int64 [n], always the true labels.
        threat: what may be submitted instead of x; a finite eps asks for any success, none for the smallest change.
        goal: Untargeted() or Targeted(to=...).
        access, queries: what the attacker may ask, and how often per example (the first look and the re-check count).
        batch_size: slots, or "auto".
        seed: of all noise; draws belong to the example, not to the batch.
        ids: stable ids int64 [n]; by default the hash of each example's float32 bytes.
        surrogates: other targets whose gradients transfer attacks climb; the target itself then answers labels alone.
        more: attacks tried on the sixteenth of the survivors that came nearest to being broken, and on the others
            only where they break one of those.
        deadline: `time.monotonic()` after which no new row is started; such rows end as not_run.
        progress: called with a Progress about ten times a second.
        salvage: Ctrl-C returns what was found so far, `interrupted`, instead of raising; a target that answers no more
            (Unavailable: its budget is spent) always ends a run like that.
        relabel: called once with the clean scores [n, k] and y; returns the labels to go by, or raises.
        journal: where finished chunks are written, and read instead of computed when a run is resumed.
        phase: what this run is called there; runs of the same attacks that differ in their target need their own.

    Raises:
        InputError: inputs, labels or settings do not fit.
        AccessError: an attack needs more access than was granted (in a list: it is skipped with the reason).
    """
    begun = time.monotonic()
    target = as_target(target)
    recipes = [as_attack(a) for a in ([attacks] if isinstance(attacks, Attack | str) else attacks)]
    lenders = tuple(as_target(s) for s in surrogates)
    recipes, more = ([a.through(len(lenders)) for a in part] for part in (recipes, more))
    lent = sum(s.sent[0] for s in lenders)
    threat = threat.within(target.bounds)
    check_inputs(x, y, threat, target)
    oracle = Oracle(target, Access.GRADIENT if access is None else Access(access))
    if len(recipes) == 1:
        oracle.need(recipes[0].access, repr(recipes[0]))
    n = len(x)
    names = example_ids(x) if ids is None else np.asarray(ids, dtype=np.int64)
    if queries is not None and queries < 1:
        raise InputError(f"queries must be at least 1 (the first look at each example is one), not {queries}.")
    if names.shape != (n,):
        raise InputError(f"ids has shape {names.shape}; expected ({n},).")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be 'auto' or at least 1, not {batch_size!r}.")
    width = auto_width(x, target.device) if isinstance(batch_size, str) else int(batch_size)
    rows: list[AttackRow] = []
    interrupted = False
    goal = goal or Untargeted()
    asked = (goal, oracle.granted, queries, width, seed, names.tolist(), y.tolist())
    key = "" if journal is None else journal.phase(phase, threat, getattr(threat, "eps", None), *asked)
    with torch.inference_mode(False), ExitStack() as worlds:
        for each in (target, *lenders):
            worlds.enter_context(untouched(each))
        pool = Pool.of(x, y, names, target.work_dtype)
        engine = Engine(
            pool,
            oracle,
            threat,
            goal,
            width,
            seed,
            queries,
            deadline,
            progress,
            tuple(Oracle(s, Access.GRADIENT) for s in lenders),
            journal=journal,
            phase=phase,
            key=key,
        )
        try:
            engine.look(relabel)
            for attack in recipes:
                _attack(engine, attack, rows, alone=len(recipes) == 1)
            if more:
                _more(engine, more, rows)
        except (KeyboardInterrupt, Unavailable) as end:
            gone = isinstance(end, Unavailable)
            if not (salvage or gone) or bool((pool.label_clean < 0).all()):  # nothing is known yet
                raise
            interrupted = True
            pool.unrun[:] = True
            engine.notes += [str(end)] if gone else []
    left = pool.status == Status.SURVIVED
    pool.status[left & pool.unrun] = Status.NOT_RUN
    if recipes and rows and all(r.skipped for r in rows):
        pool.status[left] = Status.SKIPPED
    if lost := [str(why) for why in pool.why if why]:
        engine.notes.append(f"The target raised on {len(lost)} of {n} examples, first {lost[0]}; the others went on.")
    return Run(
        attacks=rows,
        status=[Status(s) for s in pool.status],
        success=torch.from_numpy(pool.status == Status.BROKEN),
        x_adv=pool.x_adv,
        best=pool.best,
        distance=pool.distance,
        margin=pool.margin,
        label=pool.label,
        label_clean=pool.label_clean,
        confidence=pool.confidence,
        confidence_clean=pool.confidence_clean,
        steps=pool.steps,
        broken_by=list(pool.broken_by),
        ids=names,
        y=pool.y,
        forward=pool.forward,
        backward=pool.backward,
        padding=engine.padding,
        overrun=engine.overrun,
        vanished=engine.vanished,
        seconds=time.monotonic() - begun + engine.saved,
        notes=engine.notes,
        interrupted=interrupted,
        classes=engine.classes,
        lent=sum(s.sent[0] for s in lenders) - lent,
    )


def _more(engine: Engine, attacks: Sequence[Attack[Any]], rows: list[AttackRow]) -> None:
    """Try attacks on the survivors of smallest margin, and on the others where they broke one of those.

    What other attacks break where gradient attacks came nearest is the sign of masked gradients (arXiv 1902.06705,
    section 4.5). Where no attack ran so far, all survivors are tried.
    """
    pool, first = engine.pool, len(rows)
    todo = np.flatnonzero(pool.status == Status.SURVIVED)
    todo = todo[np.argsort(pool.margin[todo].numpy(), kind="stable")]
    blind = all(row.skipped for row in rows)
    count = len(todo) if blind else min(len(todo), max(2, -(-len(todo) // 16)))
    for attack in attacks:
        _attack(engine, attack, rows, only=todo[:count])
    broken = [row.broken for row in rows[first:]]
    unseen = sum(b for b, attack in zip(broken, attacks, strict=True) if attack.access < Access.GRADIENT)
    if count == len(todo) or (not unseen and sum(broken) < 2):  # one more gradient attack may always find one more
        return
    for at, attack in enumerate(attacks, start=first):
        part: list[AttackRow] = []
        try:
            _attack(engine, attack, part, only=todo[count:])
        finally:
            rows[at] = _sum(rows[at], part[0])


def _sum(a: AttackRow, b: AttackRow) -> AttackRow:
    """Return one row for an attack that ran in two parts."""
    totals = {k: getattr(a, k) + getattr(b, k) for k in ("attempted", "broken", "forward", "backward", "seconds")}
    return replace(b, **totals)


def _attack(
    engine: Engine,
    attack: Attack[Any],
    rows: list[AttackRow],
    *,
    alone: bool = False,
    only: np.ndarray | None = None,
) -> None:
    """Run one attack of the cascade and add its line to the table, also when it is interrupted."""
    pool, spent = engine.pool, engine.seconds
    forward, backward = engine.oracle.forward, engine.oracle.backward
    left = pool.status == Status.SURVIVED  # where the smallest change is asked for, every attack may find a smaller one
    todo = np.flatnonzero(left if engine.threat.bounded else left | (pool.status == Status.BROKEN))
    before = int((pool.status == Status.BROKEN).sum())
    todo = todo if only is None else only[pool.status[only] == Status.SURVIVED]
    reason = (
        ""
        if attack.access <= engine.oracle.granted
        else (f"needs {attack.access.name.lower()} access, {engine.oracle.granted.name.lower()} was granted")
    )
    reason = reason or attack.unfit(pool.x, engine.threat, engine.classes)
    if reason and alone:
        raise InputError(f"{attack!r} does not apply: {reason}.")
    attempted = 0 if reason else len(todo)
    try:
        if not reason:
            attempted = engine.run(attack, todo)
    finally:
        standing = sum(s in (Status.SURVIVED, Status.SKIPPED, Status.FAILED) for s in pool.status)
        row = AttackRow(
            name=repr(attack),
            paper=_paper(attack),
            attempted=attempted,
            broken=int((pool.status == Status.BROKEN).sum()) - before,
            robust_accuracy_after=float(standing / max(1, (pool.status != Status.INVALID).sum())),
            forward=engine.oracle.forward - forward,
            backward=engine.oracle.backward - backward,
            seconds=engine.seconds - spent,
            skipped=reason,
        )
        rows.append(row)


def _paper(attack: Attack[Any]) -> str:
    found = (RECIPES | SPECIAL).get(repr(attack).partition("(")[0])
    return found.paper if found else ""


def check_inputs(x: Batch, y: Tensor, threat: Threat, target: Target) -> None:
    """Raise InputError when inputs x, labels y int64 [n], threat and the target's bounds do not fit together."""
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.is_floating_point():
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"y must be integer labels of shape ({len(x)},), not {shape}.")
    threat.check(x)
    if isinstance(x, Tensor) and len(x):
        if not x.is_floating_point():
            raise InputError(
                f"x must be floating-point inputs within {list(target.bounds)}, not {x.dtype}; "
                "divide 8-bit images by 255."
            )
        bad = (~x.reshape(len(x), -1).isfinite()).sum(1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise InputError(
                f"Sample {first} contains {int(bad[first])} values that are not finite; leave it out or mend it."
            )
        lo, hi = (float(v) for v in x.detach().aminmax())
        if lo < target.bounds[0] - 1e-6 or hi > target.bounds[1] + 1e-6:
            raise InputError(
                f"Inputs span [{lo:.4g}, {hi:.4g}] but the target's bounds are {list(target.bounds)}; "
                "put the normalisation inside the target (mean=, std=) or give its bounds. Nothing was attacked."
            )
