"""What an evaluation found: one row per example, and the numbers that follow from the rows.

The rows are the only source of truth. `n`, the accuracies, the interval, the bracket and the totals are properties
computed from the arrays, so that a page, a file and a test can never disagree about them.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

from unfooled.errors import InputError
from unfooled.stats import mean_interval, wilson


class Status(StrEnum):
    """What became of one example."""

    MISCLASSIFIED = "misclassified"  # wrong (or rejected) before any attack
    BROKEN = "broken"  # an attack found an input inside the threat that is classified wrong
    SURVIVED = "survived"  # every attack of the suite was tried, none succeeded
    SKIPPED = "skipped"  # no attack of the suite applies to it
    INVALID = "invalid"  # not a legal input (NaN, out of bounds); counted nowhere
    NOT_RUN = "not_run"  # classified right, but the budget ended before its attacks did
    FAILED = "failed"  # the target raised on it (or on what attacks made of it); neither broken nor robust


UNDECIDED = (Status.SKIPPED, Status.NOT_RUN, Status.FAILED)

Consequence = Literal["noted", "repaired", "escalated", "suspect", "withheld"]


@dataclass(frozen=True)
class Finding:
    """What the doctor or a control of the verdict found: an id of the catalogue, a measured figure, a sentence.

    `title` is what the verdict's line says in a few words. `consequence`: noted (said, nothing more), repaired (the
    number stands), escalated (other attacks were run because of it), suspect or withheld (so is the number).
    """

    id: str
    title: str
    sentence: str
    consequence: Consequence
    figure: float | None = None


@dataclass(frozen=True)
class AttackRow:
    """One line of the per-attack table.

    `attempted` examples were still unbroken when the attack began, `broken` of them fell to it, and
    `robust_accuracy_after` is the share of all counted examples that no attack so far has broken.
    `forward` and `backward` count single examples sent, not batches. `skipped` holds the reason, "" if it ran.
    """

    name: str
    paper: str = ""
    attempted: int = 0
    broken: int = 0
    robust_accuracy_after: float = math.nan
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    skipped: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is: examples done of those the attack was given, robust share so far, passes through the target."""

    done: int
    total: int
    attack: str
    robust: float | None
    forward: int
    backward: int
    seconds: float


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one eps: the share of `n` examples unbroken at it or below, with its 95% Wilson interval."""

    eps: float
    robust_accuracy: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, eps: float, robust: int, n: int) -> "CurvePoint":
        """Return the point for `robust` of `n` examples unbroken at `eps`."""
        low, high = wilson(robust, n)
        return cls(eps, robust / n, n, low, high)


@dataclass(frozen=True)
class Rejection:
    """Shares of the counted examples, before any attack (`clean_`) and at the worst input found.

    `right` is right and accepted throughout, `rejected` includes those that an attack made the target reject; what is
    left is wrong and accepted.
    """

    clean_right: float
    clean_rejected: float
    right: float
    rejected: float

    @property
    def wrong(self) -> dict[str, float]:
        """What is left: wrong and accepted, before and under attack."""
        left = {
            "clean_wrong_accepted": 1 - self.clean_right - self.clean_rejected,
            "wrong_accepted": 1 - self.right - self.rejected,
        }
        return {name: max(0.0, share) for name, share in left.items()}


@dataclass(kw_only=True, eq=False, repr=False)
class Evaluation:
    """The result of attacking `n` examples: arrays whose first axis is the example, and what was run.

    Only `x`, `y`, `x_adv`, `clean`, `robust` are needed; what is left out reads as unknown (label -1, NaN, 0 passes).
    Raises `InputError` when an array has another length or contradicts another one.
    """

    x: Tensor  # [n, ...] the originals, in the target's bounds
    y: Tensor  # int64 [n] true labels
    x_adv: Tensor  # [n, ...] what fooled the target; the original where nothing did
    clean: Tensor  # bool [n] right and accepted before any attack
    robust: Tensor  # bool [n] clean, and no attack has broken it
    outcome: list[Status] = field(default_factory=list)  # [n]
    broken_by: list[str] = field(default_factory=list)  # [n] name of the attack, "" if none
    ids: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n] stable ids of the examples
    distance: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] in the threat's norm; NaN if not broken
    label_clean: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n]; -1 unknown
    label_adv: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n]; -1 unknown
    confidence_clean: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] softmax of the winning class
    confidence_adv: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] softmax of the winning class
    margin: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] smallest margin found; < 0 is broken
    steps_to_break: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n]; -1 unknown
    forward: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n] forward passes spent on the example
    backward: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [n] backward passes spent on it

    threat: str = ""
    suite: str = ""
    seed: int = 0
    target: str = ""
    data: str = ""
    classes: list[str] | None = None
    survival: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] share of draws right at the worst point
    draws: int = 1  # draws behind `survival`; 1: the target is not random
    on_grid: Tensor = field(default_factory=lambda: torch.empty(0))  # bool [n] broken by an image of 8-bit values too
    rejected_clean: Tensor = field(default_factory=lambda: torch.empty(0))  # bool [n]; empty: the target never rejects
    rejected_adv: Tensor = field(default_factory=lambda: torch.empty(0))  # bool [n] an attack made it reject
    findings: list[Finding] = field(default_factory=list)
    status: str = "suspect"  # trusted, suspect or withheld
    reasons: list[str] = field(default_factory=lambda: ["not examined"])
    check_seconds: float = 0.0  # of `seconds`: the doctor and the controls of the verdict
    attacks: list[AttackRow] = field(default_factory=list)
    seconds: float = 0.0
    curve: list[CurvePoint] | None = None
    curve_suite: str = ""
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # all that is needed to run it again; goes to run.json
    command: str = ""

    def __post_init__(self) -> None:
        n = len(self.y)
        self.clean, self.robust = self.clean.bool(), self.robust.bool()
        whole, real = torch.int64, torch.float64
        unknown: dict[str, tuple[float, torch.dtype]] = {
            "ids": (-1, whole), "label_clean": (-1, whole), "label_adv": (-1, whole), "steps_to_break": (-1, whole),
            "forward": (0, whole), "backward": (0, whole), "distance": (math.nan, real), "margin": (math.nan, real),
            "confidence_clean": (math.nan, real), "confidence_adv": (math.nan, real),
        }  # fmt: skip
        for name, (value, dtype) in unknown.items():
            if getattr(self, name).numel() == 0:
                setattr(self, name, torch.full((n,), value, dtype=dtype))
        if len(self.ids) and bool((self.ids == -1).all()):
            self.ids = torch.arange(n)
        if not self.outcome:
            self.outcome = [
                Status.SURVIVED if r else Status.BROKEN if c else Status.MISCLASSIFIED
                for c, r in zip(self.clean.tolist(), self.robust.tolist(), strict=True)
            ]
        self.broken_by = self.broken_by or [""] * n
        self._check(n)

    def _check(self, n: int) -> None:
        rows = ("x", "x_adv", "clean", "robust", "outcome", "broken_by", "ids", "distance", "label_clean", "label_adv",
                "confidence_clean", "confidence_adv", "margin", "steps_to_break", "forward", "backward")  # fmt: skip
        for name in rows:
            if (length := len(getattr(self, name))) != n:
                raise InputError(f"{name} has {length} rows, but there are {n} labels; give one row per example.")
        for name in ("survival", "on_grid", "rejected_clean", "rejected_adv"):
            if (length := len(getattr(self, name))) not in (0, n):
                raise InputError(
                    f"{name} has {length} rows, but there are {n} labels; give one row per example, or none."
                )
        self.outcome = [Status(o) for o in self.outcome]
        for i, (o, c, r) in enumerate(zip(self.outcome, self.clean.tolist(), self.robust.tolist(), strict=True)):
            fits = {Status.MISCLASSIFIED: not c and not r, Status.BROKEN: c and not r, Status.SURVIVED: c and r,
                    Status.INVALID: not r}  # fmt: skip
            if not fits.get(o, c and r):
                raise InputError(f"Example {i} is {o.value}, but clean is {c} and robust is {r}; only one can be true.")

    def count(self, *which: Status) -> int:
        """Return the number of examples whose outcome is one of `which`."""
        return sum(o in which for o in self.outcome)

    @property
    def counted(self) -> Tensor:
        """Bool [n]: the examples that the numbers speak about (all but the invalid ones)."""
        return torch.tensor([o is not Status.INVALID for o in self.outcome], dtype=torch.bool)

    @property
    def n(self) -> int:
        """Number of examples that the accuracies speak about."""
        return len(self.outcome) - self.count(Status.INVALID)

    @property
    def done(self) -> int:
        """Number of examples whose outcome is final; smaller than `n` when a budget ended the run."""
        return self.n - self.count(*UNDECIDED)

    @property
    def clean_accuracy(self) -> float:
        """Share of the examples that are right before any attack."""
        return self._share(self.n - self.count(Status.MISCLASSIFIED))

    @property
    def clean_interval(self) -> tuple[float, float]:
        """95% Wilson interval of `clean_accuracy`."""
        return wilson(self.n - self.count(Status.MISCLASSIFIED), self.n)

    @property
    def robust_accuracy(self) -> float:
        """Share of the examples that no attack has broken: an upper bound, examples not finished counted as robust.

        For a random target (draws > 1) the mean of `survival`: the share right on a fresh draw at the worst point.
        """
        return _mean(self._shares())

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95% interval of `robust_accuracy`: it covers the choice of images, not attacks left untried.

        Wilson's for a target that answers alike each time; for a random one the mean's over the examples.
        """
        return self.interval(self._shares())

    @property
    def bracket(self) -> tuple[float, float] | None:
        """Robust accuracy with the unfinished examples counted as broken and as robust; None when all finished."""
        if self.done == self.n:
            return None
        return _mean(self._shares(undecided=0.0)), self.robust_accuracy

    @property
    def grid_accuracy(self) -> float | None:
        """Robust accuracy against files: an example is broken only where an image of 8-bit values breaks it too.

        None when nothing was rounded, and for a random target, where one draw of a rounded image says little.
        """
        return _mean(self._grid()) if len(self.on_grid) and self.draws == 1 else None

    @property
    def grid_interval(self) -> tuple[float, float] | None:
        """95% interval of `grid_accuracy`; None where that is."""
        return self.interval(self._grid()) if len(self.on_grid) and self.draws == 1 else None

    @property
    def success_rate(self) -> float:
        """Share of the examples right before any attack that were broken; NaN when none was right."""
        right = self.n - self.count(Status.MISCLASSIFIED)
        return self.count(Status.BROKEN) / right if right else math.nan

    @property
    def success_interval(self) -> tuple[float, float]:
        """95% Wilson interval of `success_rate`."""
        return wilson(self.count(Status.BROKEN), self.n - self.count(Status.MISCLASSIFIED))

    @property
    def rejection(self) -> "Rejection | None":
        """Accuracy and rejection together, before and under attack; None for a target that never rejects."""
        if not len(self.rejected_clean):
            return None
        counted = self.counted
        before = self.rejected_clean.bool() & counted
        after = self.rejected_adv.bool() if len(self.rejected_adv) else torch.zeros_like(before)
        after = (before & ~self.clean | self.robust & after) & counted
        return Rejection(
            clean_right=self._share(int((self.clean & ~before & counted).sum())),
            clean_rejected=self._share(int(before.sum())),
            right=self._share(int((self.robust & ~after & counted).sum())),
            rejected=self._share(int(after.sum())),
        )

    @property
    def withheld(self) -> bool:
        """Whether the number is not given as a result."""
        return self.status == "withheld"

    def exit_code(self, fail_under: float | None = None) -> int:
        """Return 0 trusted, 3 suspect, 4 withheld; 5 when `fail_under`, a share in [0, 1], is not met.

        It is met by a trusted number whose interval lies at or above it with unfinished examples counted as broken.
        """
        if fail_under is not None:
            if not 0 <= fail_under <= 1:
                raise InputError(f"fail_under is a share from 0 to 1, not {fail_under:g}; write 0.45 for 45%.")
            met = self.n > 0 and self.interval(self._shares(undecided=0.0))[0] >= fail_under
            if self.status != "trusted" or not met:
                return 5
        return {"trusted": 0, "withheld": 4}.get(self.status, 3)

    def standing(self, undecided: float = 1.0) -> Tensor:
        """Return float64 [n], how far each example stands: 1 robust, 0 not, its share of draws for a random target.

        `undecided` is given to those whose attacks did not end.
        """
        stands = {Status.SURVIVED: 1.0} | dict.fromkeys(UNDECIDED, undecided)
        shares = torch.tensor([stands.get(o, 0.0) for o in self.outcome], dtype=torch.float64)
        if self.draws > 1 and len(self.survival):
            open_ = torch.tensor([o in UNDECIDED for o in self.outcome], dtype=torch.bool)
            known = self.survival.isfinite() & ~open_
            shares = torch.where(known, self.survival.double().clamp(0, 1), shares)
        return shares

    def interval(self, shares: Tensor) -> tuple[float, float]:
        """Return the 95% interval of the mean of some examples' `standing`, float64 [k]."""
        if self.draws > 1 and len(self.survival):
            return mean_interval(shares.tolist())
        return wilson(int(shares.sum()), len(shares))

    def _shares(self, undecided: float = 1.0) -> Tensor:
        return self.standing(undecided)[self.counted]

    def _grid(self) -> Tensor:
        only_floats = torch.tensor([o is Status.BROKEN for o in self.outcome]) & ~self.on_grid.bool()
        return self._shares().masked_fill(only_floats[self.counted], 1.0)

    @property
    def forward_total(self) -> int:
        """Forward passes of all examples together."""
        return int(self.forward.sum())

    @property
    def backward_total(self) -> int:
        """Backward passes of all examples together."""
        return int(self.backward.sum())

    def _share(self, k: int) -> float:
        return k / self.n if self.n else math.nan

    @property
    def verdict(self) -> str:
        """The status with its reasons: "suspect: not examined"."""
        return f"{self.status}: {', '.join(self.reasons)}" if self.reasons else self.status

    @property
    def at_most(self) -> str:
        """The number as a sentence that says what it bounds and what its interval covers."""
        if self.withheld:
            return f"Withheld, no number is given: {'; '.join(self.reasons)}."
        low, high = self.robust_interval
        text = (
            f"At most {self.robust_accuracy:.1%} of {self.n} examples stay classified correctly within {self.threat}; "
            f"95% interval {low:.1%} to {high:.1%} over the choice of examples, stronger attacks can only lower it."
        )
        if self.bracket:
            text += f" {self.n - self.done} examples were not finished: between {self.bracket[0]:.1%} and "
            text += f"{self.bracket[1]:.1%} under this suite."
        return text

    def name(self, label: int) -> str:
        """Return the name of class `label`: its entry of `classes`, else the number, "?" for -1."""
        if label < 0:
            return "?"
        return str(self.classes[label]) if self.classes and label < len(self.classes) else str(label)

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` holds: plain numbers, strings, lists and dicts; unknown numbers are None."""
        held = self.withheld  # what was measured is then no result: it stands under its own name alone
        attacks = [{k: _plain(v) for k, v in vars(row).items()} for row in self.attacks]
        curve = None if self.curve is None else [{k: _plain(v) for k, v in vars(p).items()} for p in self.curve]
        if held:
            attacks = [row | {"robust_accuracy_after": None} for row in attacks]
        grid = self.grid_interval
        return {
            "n": self.n, "clean_accuracy": _plain(self.clean_accuracy),
            "robust_accuracy": None if held else _plain(self.robust_accuracy),
            "robust_interval": None if held else list(self.robust_interval),
            "withheld_value": _plain(self.robust_accuracy) if held else None, "at_most": self.at_most,
            "status": self.status, "reasons": list(self.reasons),
            "findings": [{k: _plain(v) for k, v in vars(f).items()} for f in self.findings],
            "grid_accuracy": None if held or self.grid_accuracy is None else _plain(self.grid_accuracy),
            "grid_interval": None if held or grid is None else list(grid),
            "draws": self.draws,
            "rejection": vars(self.rejection) | self.rejection.wrong if self.rejection else None,
            "threat": self.threat, "suite": self.suite, "seed": self.seed, "target": self.target, "data": self.data,
            "counts": {s.value: self.count(s) for s in Status}, "done": self.done,
            "success_rate": _plain(self.success_rate), "success_interval": list(self.success_interval),
            "bracket": list(self.bracket) if self.bracket and not held else None,
            "attacks": attacks, "forward_total": self.forward_total, "backward_total": self.backward_total,
            "seconds": self.seconds, "check_seconds": self.check_seconds,
            "curve": None if held else curve, "curve_suite": self.curve_suite,
            "notes": list(self.notes), "versions": dict(self.versions),
        }  # fmt: skip

    def __str__(self) -> str:
        if self.withheld:
            return f"robust accuracy {self.verdict}"
        low, high = self.robust_interval
        text = f"robust accuracy at most {self.robust_accuracy:.1%} (95% interval {100 * low:.1f}-{high:.1%} "
        text += f"over the choice of {self.n} images"
        text += f", mean over {self.draws} draws)" if self.draws > 1 else ")"
        if self.bracket:
            text += f" · {self.n - self.done} not finished: {100 * self.bracket[0]:.1f}-{self.bracket[1]:.1%}"
        return f"{text} · {self.verdict}"

    __repr__ = __str__


def _mean(shares: Tensor) -> float:
    return float(shares.mean()) if len(shares) else math.nan


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
