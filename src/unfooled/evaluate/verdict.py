"""The verdict: whether the number can be trusted, from what the doctor found and what the run itself shows."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks.gradient import apgd
from ..attacks.search import square
from ..core.access import Access
from ..core.attack import Attack
from ..core.goal import advantage
from ..core.oracle import Answer, Oracle
from ..core.result import AttackRow, Finding, Status
from ..core.run import Run, run
from ..core.target import Target, reseed, untouched
from ..core.threat import Ball
from .checkup import Checkup
from .escalate import SURE, family, with_sense

CONTROL = 16
"""Examples on which the attack is tried without a limit."""

PILOT = 32
"""Survivors of smallest margin on which more steps and other families are tried."""

DRAWS = 20
"""Fresh draws of a random target by which an example counts."""

LONGER = "Try more of these: add square(queries=20000) to the suite."
"""What a user can do where attacks without gradients do better."""

MISSING = ("D1", "D2")
"""Findings of gradients that are zero or not there, which a gradient straight through what hides them replaces."""

Again = Callable[[np.ndarray, Sequence[Attack[Any]], Ball, int], Run]
"""Attacks some of the examples once more: their places, the attacks, the threat, the slots."""


@dataclass
class Controls:
    """What was measured after the attacks: findings, and the columns that only a second look can fill."""

    findings: list[Finding] = field(default_factory=list)
    survival: Tensor = field(default_factory=lambda: torch.empty(0))
    on_grid: Tensor = field(default_factory=lambda: torch.empty(0))
    rejected_clean: Tensor = field(default_factory=lambda: torch.empty(0))
    rejected_adv: Tensor = field(default_factory=lambda: torch.empty(0))
    drifted: bool = False
    backward: int = 0


def control(
    up: Checkup,
    x: Tensor,
    whole: Run,
    ball: Ball,
    *,
    seed: int,
    width: int,
    gradient: bool,
    pilot: bool,
    deadline: float | None,
) -> Controls:
    """Look again: clean answers at the end, the 8-bit grid, fresh draws, and the attack without a limit.

    x [n, ...] are the originals of the run `whole`; `gradient` says whether attacks may use gradients,
    `pilot` whether more steps and other families are still to be tried on a few survivors, until
    `deadline` (`time.monotonic()`).
    """
    out, target = Controls(), up.target
    y, n = whole.y, len(whole.y)
    assert isinstance(whole.x_adv, Tensor) and isinstance(whole.best, Tensor)
    broken = torch.tensor([s is Status.BROKEN for s in whole.status])
    counted = torch.tensor([s not in (Status.INVALID, Status.FAILED) for s in whole.status])
    with torch.inference_mode(False), untouched(target):
        reseed(seed, target.device)  # the caller's states come back when this ends
        door = Oracle(target, Access.SCORES)
        at = torch.from_numpy(np.unique(np.linspace(0, n - 1, min(n, 512)).astype(np.int64)))
        at = at[counted[at]]
        if target.draws == 1 and len(at):
            label = _labels(door, x[at], width)
            start, end = (float((v == y[at]).float().mean()) for v in (whole.label_clean[at], label))
            moved = int((label != whole.label_clean[at]).sum())
            if moved > max(1, 0.005 * len(at)):
                out.drifted = True
                out.findings.append(Finding("B6", "the target changed during the run",
                    f"Clean accuracy was {start:.1%} at the start and {end:.1%} at the end ({moved} of {len(at)} "
                    "answers changed): the target changed during the run.",
                    "withheld", end - start))  # fmt: skip
            everything = torch.cat([whole.label_clean[counted], label])
            if not bool((everything != everything[0]).any()) and len(y) > 1:
                _constant(out, up, door, x, ball, int(everything[0]), width)
        worst = torch.where(broken.view(-1, *([1] * (x.dim() - 1))), whole.x_adv.cpu(), whole.best.cpu())
        rows = (broken & counted).nonzero()[:, 0]
        out.on_grid = torch.zeros(n, dtype=torch.bool)
        if len(rows):
            eight = replace(ball, levels=255)
            rounded = eight.project(whole.x_adv.cpu()[rows], x.cpu()[rows])
            inside = eight.contains(rounded, x.cpu()[rows])
            wrong = _wrong(door, rounded, y[rows], width) & inside
            out.on_grid[rows] = wrong
            lost = int((~wrong).sum())
            if lost > 0.05 * int(counted.sum()) and lost > 1 and target.draws == 1:
                share = (sum(s is Status.SURVIVED for s in whole.status) + lost) / max(1, int(counted.sum()))
                out.findings.append(Finding("A3", "between pixel values",
                    f"{lost} of {len(rows)} adversarial examples exist only between pixel values: after 8-bit "
                    f"rounding {share:.1%} stay right.",
                    "noted", share))  # fmt: skip
        if target.reject is not None:
            out.rejected_clean = ~_accepted(door, x, width)
            out.rejected_adv = ~_accepted(door, worst, width) & ~broken
        if target.draws > 1:
            out.survival = _survival(target, worst, y, width)

    def again(at: np.ndarray, attacks: Sequence[Attack[Any]], threat: Ball, width: int) -> Run:
        found = run(attacks, target, x[at], y[at], threat, seed=seed, batch_size=width, deadline=deadline)
        out.backward += int(found.backward.sum() + found.padding[1] + found.overrun[1])
        return found

    if gradient and not whole.interrupted:
        _unlimited(out, up, x, whole, ball, again)
        if pilot and not up.masked and not up.blind:
            _pilot(out, up, x, whole, ball, again)
    return out


def returns(up: Checkup, x: Tensor, whole: Run) -> bool:
    """Put the target back into its first state; whether its clean answers are again what they were."""
    assert up.memory is not None
    with torch.inference_mode(False), untouched(up.target):
        up.memory.restore()
        label = _labels(Oracle(up.target, Access.SCORES), x[:64], 64)
        up.memory.restore()
    return bool(torch.equal(label, whole.label_clean[:64]))


def _constant(out: Controls, up: Checkup, door: Oracle, x: Tensor, ball: Ball, label: int, width: int) -> None:
    """All answers are the same so far: are they so everywhere?"""
    lo, hi = ball.bounds
    noise = lo + (hi - lo) * torch.rand(min(64, max(len(x), 8)), *x.shape[1:], dtype=x.dtype)
    wild = torch.cat([noise, torch.full_like(noise[:1], lo), torch.full_like(noise[:1], hi), lo + hi - x[:16].cpu()])
    if bool((_labels(door, wild, width) == label).all()):
        out.findings.append(Finding("C9", "predictions never change",
            f"Neither images, noise nor inverted images get another answer than class {label}: the evaluation does "
            "not reach the target. No claim is made.",
            "withheld"))  # fmt: skip


def _unlimited(out: Controls, up: Checkup, x: Tensor, whole: Run, ball: Ball, again: Again) -> None:
    """With the whole range allowed, gradient attacks must break everything (arXiv 1902.06705, section 4.3)."""
    sense = "straight" if up.target.straight is not None else "exact"
    standing = _standing(whole)
    if not len(standing) or (up.masked and sense == "exact"):
        return
    at = standing[np.unique(np.linspace(0, len(standing) - 1, min(CONTROL, len(standing))).astype(np.int64))]
    attacks = [apgd(steps=25, loss="margin"), apgd(steps=25), apgd(steps=25, loss="margin", restarts=2)]
    chosen = attacks if sense == "exact" else [with_sense(a, sense) for a in attacks]
    lo, hi = ball.bounds
    values = max(1, x[0].numel())
    free = replace(ball, eps=(hi - lo) * {"linf": 1.0, "l2": values**0.5}.get(ball.norm.name, values))
    found = again(at, chosen, free, CONTROL)
    left = sum(s is Status.SURVIVED for s in found.status)
    if left > 0.1 * len(at):
        out.findings.append(Finding("C9", "unlimited attacks fail",
            f"With the whole input range allowed {left} of {len(at)} examples are still not broken by gradient "
            "attacks: they do not reach the target.",
            "suspect", left / len(at)))  # fmt: skip


def _pilot(out: Controls, up: Checkup, x: Tensor, whole: Run, ball: Ball, again: Again) -> None:
    """More steps and restarts, then attacks without gradients, on the survivors of smallest margin."""
    standing = _standing(whole)
    at = standing[np.argsort(whole.margin[standing].numpy(), kind="stable")[:PILOT]]
    more: list[Attack[Any]] = [apgd(steps=50, loss="margin", restarts=2), apgd(steps=50), square(queries=300)]
    more = [a for a in more if not a.unfit(x, ball, whole.classes)]
    if not len(at) or not more:
        return
    n = len(whole.status)
    chosen = more[:2] if up.target.draws > 1 else more
    found = again(at, chosen, ball, PILOT)
    gained = {f: sum(r.broken for r in found.attacks if family(r.name) == f) for f in ("gradient", "score")}
    if gained["score"] > max(1, 0.01 * n):
        out.findings.append(Finding("E7", "gradients are masked",
            f"Square broke {gained['score']} of {len(at)} pilot examples that gradients could not: gradients are "
            f"masked. {LONGER}",
            "suspect", gained["score"] / n))  # fmt: skip
    if gained["gradient"] > max(1, 0.01 * n):
        out.findings.append(Finding("E1", "not converged",
            f"More steps and restarts broke {gained['gradient']} of {len(at)} pilot examples that the suite could not.",
            "suspect", gained["gradient"] / n))  # fmt: skip


def _standing(whole: Run) -> np.ndarray:
    """The examples that survived, int64 [m]."""
    return np.flatnonzero([s is Status.SURVIVED for s in whole.status])


def grounds(up: Checkup, whole: Run, rows: list[AttackRow], first: int, n: int) -> list[Finding]:
    """Return what the attacks' own table says: families that alone broke much, and budgets that still gained.

    `first` is the number of rows of the suite proper; the rows after it were tried on a pilot.
    """
    out: list[Finding] = []
    ran = [r for r in rows if not r.skipped]
    if up.masked or up.blind:
        return out
    gradient = [r for r in ran if family(r.name) == "gradient"]
    if not gradient and any(r.skipped for r in rows):
        out.append(Finding("E5", "no gradient attack ran",
            "No gradient attack of the suite was allowed or applied: the number covers the others only.",
            "suspect"))  # fmt: skip
    before = next((i for i, r in enumerate(ran) if family(r.name) == "gradient"), len(ran))
    other = [r for r in ran[before:] if family(r.name) != "gradient"]  # on what gradients had left
    alone = sum(r.broken for r in other)
    if gradient and alone > max(1, 0.01 * n):
        names = ", ".join(dict.fromkeys(r.name.partition("(")[0] for r in other if r.broken))
        out.append(Finding("E7", "gradients are masked",
            f"{names} broke {alone} of {n} examples that gradients could not: gradients are masked. {LONGER}",
            "suspect", alone / n))  # fmt: skip
    gained = sum(r.broken for r in rows[first:] if not r.skipped and family(r.name) == "gradient")
    if gradient and not alone and gained > max(1, 0.01 * n):
        out.append(Finding("E1", "not converged",
            f"More steps and restarts broke {gained} of {n} examples that the suite could not.",
            "suspect", gained / n))  # fmt: skip
    if whole.vanished > max(2, 0.02 * n) and up.target.draws == 1:
        out.append(Finding("E4", "successes vanish",
            f"{whole.vanished} successes were gone when they were asked for again: they are not counted.",
            "suspect", whole.vanished / n))  # fmt: skip
    return out


def settled(up: Checkup, findings: list[Finding], rows: list[AttackRow], n: int) -> list[Finding]:
    """Return the findings, missing gradients called mended where the run shows that the number stands all the same.

    It does where a gradient straight through what hides them helped on the probes, the last attack along it gained
    nothing more, and attacks that need no gradient were tried on all that these had left and broke next to none.
    """
    if any(f.consequence == "escalated" and f.id not in MISSING for f in findings) or up.blind:
        return findings
    ran = [r for r in rows if not r.skipped]
    along = [r for r in ran if family(r.name) == "straight"]
    without = [r for r in ran if family(r.name) in ("score", "decision")]
    found, few = up.target.straight, max(1, 0.01 * n)
    if found is None or found.share < SURE or not along or not without:
        said, stands = "No gradient straight through it leads on: the number may be too high.", False
    elif up.target.draws > 1 or along[-1].broken > few:
        said, stands = "Attacks straight through it had not come to an end: the number may be too high.", False
    else:
        alone = sum(r.broken for r in without)
        said = (
            f"These broke {alone} of the {without[0].attempted} examples that gradients straight through it had left."
        )
        stands = alone <= few
    if not stands:
        said += " Evaluate it with a smooth stand-in for what hides its gradient, too, and take the lower number."
    return [
        replace(f, sentence=f"{f.sentence} {said}", consequence="repaired" if stands else f.consequence)
        if f.consequence == "escalated"
        else f
        for f in findings
    ]


def verdict(findings: list[Finding], reasons: list[str]) -> tuple[str, list[str]]:
    """Return status and reasons: withheld goes before suspect; trusted has no reasons."""
    withheld = [f.title for f in findings if f.consequence == "withheld"]
    if withheld:
        return "withheld", list(dict.fromkeys(withheld))
    suspect = [f"{f.title} ({f.id})" for f in findings if f.consequence in ("suspect", "escalated")] + reasons
    return ("suspect", list(dict.fromkeys(suspect))) if suspect else ("trusted", [])


def _each(door: Oracle, x: Tensor, width: int, read: Callable[[Answer, slice], Tensor]) -> Tensor:
    """Return what `read` takes from the answers at x [m, ...], rows at a time, [m]."""
    parts = [slice(at, at + width) for at in range(0, len(x), width)]
    asked = (x[part].to(door.target.device, door.target.work_dtype) for part in parts)
    return torch.cat([read(door.look(v), part).cpu() for v, part in zip(asked, parts, strict=True)])


def _labels(door: Oracle, x: Tensor, width: int) -> Tensor:
    """Return the classes that x [m, ...] get, int64 [m]."""
    return _each(door, x, width, lambda answer, _: answer.label)


def _wrong(door: Oracle, x: Tensor, y: Tensor, width: int) -> Tensor:
    """Which of x [m, ...] are misclassified, accepted and answered by numbers, bool [m]."""
    y = y.to(door.target.device)
    return _each(door, x, width, lambda answer, rows: advantage(answer, y[rows], None) > 0)


def _accepted(door: Oracle, x: Tensor, width: int) -> Tensor:
    """Which of x [m, ...] are answered at all, bool [m]."""

    def read(answer: Answer, _: slice) -> Tensor:
        return torch.ones_like(answer.label, dtype=torch.bool) if answer.accepted is None else answer.accepted

    return _each(door, x, width, read)


def _survival(target: Target, x: Tensor, y: Tensor, width: int) -> Tensor:
    """Return the share of fresh draws on which each example is not fooled, [n]."""
    single = copy.copy(target)
    single.draws = 1
    door = Oracle(single, Access.SCORES)
    fooled = torch.zeros(len(x))
    for _ in range(DRAWS):
        fooled += _wrong(door, x, y, width).float()
    return (1 - fooled / DRAWS).double()
