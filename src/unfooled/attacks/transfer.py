"""Transfer: attacks that climb the gradients of surrogates, and what of it fools targets that nobody looked into.

With `surrogates=[...]` the target itself is only asked for its labels; without them the same recipes are white-box
attacks on the target. What the members see instead of x (other scales, other sizes and places, the point ahead, the
neighbours) makes their gradient one that other targets share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from .._noise import example_ids
from .._rows import Batch, column
from ..core.access import Access
from ..core.attack import Attack, Problem, Trial, as_attack, recipe
from ..core.engine import last_iterate
from ..core.ensemble import COMBINE, ensemble
from ..core.goal import Goal
from ..core.oracle import Answer, Oracle
from ..core.run import Run, auto_width, run
from ..core.target import Target, as_target, untouched
from ..core.threat import Ball, Threat
from ..errors import InputError, nearest
from ..stats import wilson
from .parts import Momentum, check_counts, check_loss, check_size, climb
from .parts import _unit as unit
from .spatial import warp

RULES = (*COMBINE[:2], "mean_gradients")


@dataclass
class Pull:
    """Gradients `grad` [b, ...] times exp(log) [b]: sums of which no part underflows where a softmax saturates."""

    grad: Tensor
    log: Tensor

    def plus(self, other: "Pull", share: float = 1.0) -> "Pull":
        """Return the sum with `share` of the other."""
        top = torch.maximum(self.log, other.log)
        mine, theirs = (column((p.log - top).exp(), p.grad) * p.grad for p in (self, other))
        return Pull(mine + share * theirs, top)


@dataclass
class TransferState:
    """The iterate x [b, ...], its step counter t [b], momentum [b, ...] and variance; `doors` lead to the gradients."""

    t: Tensor
    x: Tensor
    memory: Tensor
    variance: Pull | None
    doors: tuple[Oracle, ...]


@dataclass(frozen=True, repr=False)
class Transfer(Attack[TransferState]):
    """Iterative FGSM with momentum on a gradient made to transfer; on the target itself where no surrogates are given.

    `size` of a step in units of eps. `nesterov`: the gradient is taken where the momentum leads (NI). `scales`: the
    mean over x, x/2, x/4, ... (SI). `diversity`: the probability of a smaller copy at a random place (DI), shrunk to
    `shrink` of the side at most. `kernel` pixels of a Gaussian that smooths the gradient (TI), 1 for none.
    `neighbours`: how many points within `reach` times eps tell how the gradient varies (VMI). `combine`: several
    surrogates climb their mean logits, mean probabilities, or the mean of their own gradients, each of length 1.
    """

    length: int = 10
    size: float = 0.1
    loss: str = "ce"
    decay: float = 1.0
    nesterov: bool = False
    scales: int = 1
    diversity: float = 0.0
    shrink: float = 0.9
    kernel: int | None = 1
    neighbours: int = 0
    reach: float = 1.5
    combine: str = "mean_logits"
    inside = False  # what is shown for its gradient lies outside the ball

    def __post_init__(self) -> None:
        """Refuse settings that make no attack."""
        check_counts(steps=self.length, scales=self.scales, neighbours=self.neighbours + 1)
        check_loss(self.loss)
        check_size("step_size", self.size)
        check_size("reach", self.reach)
        check_size("decay", self.decay, least=-torch.inf)
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is a probability, 0 to 1, not {self.diversity!r}.")
        if not 0 < self.shrink <= 1:
            raise InputError(f"shrink is a share of the side, above 0 and 1 at most, not {self.shrink!r}.")
        if self.kernel is not None and not (isinstance(self.kernel, int) and self.kernel > 0 and self.kernel % 2):
            raise InputError(f"kernel must be an odd number of pixels, not {self.kernel!r}.")
        if self.combine not in RULES:
            raise InputError(f"Surrogates are not combined by {self.combine!r}; use one of {', '.join(RULES)}.")

    @property
    def steps(self) -> int:
        """Steps per row."""
        return self.length

    @property
    def queries_per_step(self) -> int:
        """Forward passes of the target per row and step."""
        return self.scales * (1 + self.neighbours) + (not self._plain)

    @property
    def _plain(self) -> bool:
        """Whether the first point whose gradient is asked for is the iterate itself."""
        return not self.nesterov and not self.diversity

    def through(self, surrogates: int) -> "Transfer":
        """Return the attack as it runs with surrogates: they lend the gradients, the target answers its labels."""
        return Remote(**{f.name: getattr(self, f.name) for f in fields(self)}) if surrogates else self

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Linf and L2 balls with a finite eps; sizes, places and blurs need images."""
        if not isinstance(threat, Ball) or not isinstance(x, Tensor):
            return "needs inputs that are tensors and a norm ball"
        if threat.norm.name not in ("linf", "l2"):
            return f"has no step for {threat.norm.symbol}; it takes linf, l2"
        if x.dim() < 3 and (self.diversity or self.kernel != 1):
            return "moves and blurs images; these inputs are vectors"
        return "" if threat.bounded else "needs a finite eps"

    def init(self, p: Problem) -> TransferState:
        """Start fresh rows at the clean input."""
        assert isinstance(p.x0, Tensor)
        zero = torch.zeros_like(p.x0)
        none = Pull(zero, torch.full_like(zero.flatten(1)[:, 0], -torch.inf)) if self.neighbours else None
        return TransferState(torch.zeros_like(p.y), p.x0, zero, none, self._doors(p))

    def _doors(self, p: Problem) -> tuple[Oracle, ...]:
        return (p.oracle,)

    def step(self, p: Problem, s: TransferState) -> tuple[TransferState, Trial]:
        """Look at x, take the gradient where the recipe wants it, then move."""
        assert isinstance(p.threat, Ball) and isinstance(p.x0, Tensor)
        move, length = Momentum(self.decay), torch.full_like(s.x.flatten(1)[:, 0], self.size * p.threat.eps)
        at = s.x
        if self.nesterov:
            at = self._shown(p, s.x + self.decay * self.size * p.threat.eps * s.memory)
        answer, pull = self._pull(p, s, at, 0)
        if not self._plain or s.doors[0] is not p.oracle:
            answer = p.oracle.look(s.x)
        tuned, variance = pull, None
        if s.variance is not None:
            tuned = pull.plus(s.variance)
            variance = Pull(-pull.grad, pull.log)
            for i in range(1, self.neighbours + 1):
                away = p.threat.norm.sample(p.noise, s.t * 1024 + i, at.shape[1:], self.reach * p.threat.eps, at.dtype)
                away = away if p.threat.mask is None else away * p.threat.mask.to(away)
                near = self._shown(p, s.x + away)  # of x, also where the gradient is taken ahead of it
                variance = variance.plus(self._pull(p, s, near, i)[1], 1 / self.neighbours)
        memory, x = move.go(p, s.memory, s.t, s.x, tuned.grad, length)
        return TransferState(s.t + 1, x, memory, variance, s.doors), Trial(s.x, answer)

    def _shown(self, p: Problem, x: Tensor) -> Tensor:
        """Return a point whose gradient is asked for, as the door may see it: the target itself only in the box."""
        assert isinstance(p.threat, Ball)
        return x.clamp(*p.threat.bounds)

    def last(self, p: Problem, s: TransferState) -> Tensor:
        """Return the iterate after the last step."""
        return s.x

    def _pull(self, p: Problem, s: TransferState, x: Tensor, point: int) -> tuple[Answer, Pull]:
        """Return the first door's answer to the first copy of x, and the mean gradient over copies and doors."""
        loss, pulls, first = climb(self.loss, p.y, p.to, paired=False), [], None
        for door in s.doors:
            total: Pull | None = None
            for copy in range(self.scales):
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_(True)
                    seen = self._copy(p, leaf, s.t, point * self.scales + copy)
                answer, value, grad = door.gradient(seen.detach(), loss)
                grad = grad if seen is leaf else torch.autograd.grad(seen, leaf, grad)[0]
                pull = Pull(grad / self.scales, self._weight(p, answer, value).to(x.dtype))
                total = pull if total is None else total.plus(pull)
                first = first or answer
            assert total is not None
            pulls.append(total)
        assert first is not None
        mean = pulls[0]
        if len(pulls) > 1:  # each of length 1, whatever its scale
            mean = Pull(torch.stack([unit(t.grad) for t in pulls]).mean(0), torch.zeros_like(mean.log))
        return first, Pull(self._blurred(mean.grad), mean.log)

    def _weight(self, p: Problem, answer: Answer, value: Tensor) -> Tensor:
        """Return the log [b] of what turns the gradient of the log-odds that are climbed into that of cross-entropy."""
        if self.loss != "ce" or answer.scores is None:
            return torch.zeros_like(value)
        odds = value if p.to is None else -value
        return torch.nn.functional.logsigmoid(odds + math.log(max(answer.scores.shape[1] - 1, 1)))

    def _copy(self, p: Problem, x: Tensor, t: Tensor, number: int) -> Tensor:
        """Return what the door is shown for x [b, ...], differentiable; x itself where nothing changes it."""
        assert isinstance(p.threat, Ball)
        lo = p.threat.bounds[0]
        if scale := number % self.scales:
            x = lo + (x - lo) * 0.5**scale
        if not self.diversity:
            return x
        image = x.reshape(len(x), -1, *x.shape[-2:])
        h, w = image.shape[-2:]
        u = p.noise.uniform(t * 65536 + number, (4,), salt=5, dtype=x.dtype)
        zoom = 1 - (1 - self.shrink) * u[:, 1]
        down, right = (u[:, 2] - 0.5) * (1 - zoom) * h, (u[:, 3] - 0.5) * (1 - zoom) * w
        small = self._shown(p, warp(image, torch.zeros_like(zoom), zoom, down, right, lo)).view_as(x)
        return torch.where((u[:, 0] < self.diversity).view(-1, *[1] * (x.dim() - 1)), small, x)

    def _blurred(self, grad: Tensor) -> Tensor:
        """Return the gradient under a Gaussian of three deviations to its edge (Dong et al. 2019, section 3.3)."""
        if self.kernel == 1:
            return grad
        size = self.kernel or max(5, min(grad.shape[-2:]) // 20 | 1)
        weights = torch.exp(-torch.linspace(-3, 3, size, dtype=grad.dtype, device=grad.device).square() / 2)
        weights = weights / weights.sum()
        out = grad.reshape(len(grad), -1, *grad.shape[-2:])
        for axis in (2, 3):  # sums of moved copies: a convolution's bits may depend on the batch
            r, n = size // 2, out.shape[axis]
            padded = torch.nn.functional.pad(out, (0, 0, r, r) if axis == 2 else (r, r))
            out = torch.zeros_like(out)
            for i in range(size):
                out += padded.narrow(axis, i, n) * weights[i]
        return out.view_as(grad)


@dataclass(frozen=True, repr=False)
class Remote(Transfer):
    """The attack through surrogates: the target is asked for one label per row and step."""

    access = Access.LABEL

    @property
    def queries_per_step(self) -> int:
        """Forward passes of the target per row and step."""
        return 1

    def _shown(self, p: Problem, x: Tensor) -> Tensor:
        """Return the point as it is: surrogates lend gradients outside the box too, as published."""
        return x

    def _doors(self, p: Problem) -> tuple[Oracle, ...]:
        assert isinstance(p.threat, Ball)
        if other := next((o.target for o in p.surrogates if o.target.bounds != p.threat.bounds), None):
            raise InputError(f"The surrogate {other.name} has bounds {other.bounds}, the target {p.threat.bounds}.")
        if len(p.surrogates) == 1 or self.combine == "mean_gradients":
            return p.surrogates
        return (Oracle(ensemble([o.target for o in p.surrogates], self.combine), Access.GRADIENT),)  # type: ignore[arg-type]


def _steps(steps: int, step_size: float | None) -> dict[str, Any]:
    """Return the settings of so many steps, which add up to eps by default."""
    check_counts(steps=steps)
    return {"length": steps, "size": 1 / steps if step_size is None else step_size}


_NORMS = ("linf", "l2")


@recipe("Dong et al. 2018, arXiv 1710.06081", _NORMS)
def mi_fgsm(
    steps: int = 10, step_size: float | None = None, decay: float = 1.0, loss: str = "ce", combine: str = RULES[0]
) -> Transfer:
    """MI-FGSM: iterative FGSM with momentum; step_size is 1 / steps by default."""
    return Transfer(**_steps(steps, step_size), decay=decay, loss=loss, combine=combine)


@recipe("Xie et al. 2019, arXiv 1803.06978", _NORMS)
def di_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    diversity: float = 0.5,
    shrink: float = 0.9,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """DI-FGSM: MI-FGSM whose gradient is, with probability `diversity`, that of a smaller copy at a random place."""
    return Transfer(
        **_steps(steps, step_size), decay=decay, diversity=diversity, shrink=shrink, loss=loss, combine=combine
    )


@recipe(
    "Dong et al. 2019, arXiv 1904.02884",
    _NORMS,
    factor=2.0,
    reason="it follows a blurred gradient, and the weights of the contract's linear targets are white noise",
)
def ti_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    kernel: int | None = None,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """TI-FGSM: MI-FGSM along the gradient under a Gaussian of `kernel` pixels (a twentieth of the side, at least 5)."""
    return Transfer(**_steps(steps, step_size), decay=decay, kernel=kernel, loss=loss, combine=combine)


@recipe("Lin et al. 2020, arXiv 1908.06281 (SIM)", _NORMS)
def si_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    scales: int = 5,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """SI-FGSM: MI-FGSM along the mean gradient of x, x/2, x/4, ..., `scales` of them."""
    return Transfer(**_steps(steps, step_size), decay=decay, scales=scales, loss=loss, combine=combine)


@recipe("Lin et al. 2020, arXiv 1908.06281", _NORMS)
def ni_fgsm(
    steps: int = 10, step_size: float | None = None, decay: float = 1.0, loss: str = "ce", combine: str = RULES[0]
) -> Transfer:
    """NI-FGSM: MI-FGSM whose gradient is taken where the momentum leads (Nesterov)."""
    return Transfer(**_steps(steps, step_size), decay=decay, nesterov=True, loss=loss, combine=combine)


@recipe("Wang, He 2021, arXiv 2103.15571", _NORMS)
def vmi_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    neighbours: int = 20,
    reach: float = 1.5,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """VMI-FGSM: MI-FGSM, each gradient tuned by how it varied among `neighbours` within `reach` eps a step before."""
    return Transfer(
        **_steps(steps, step_size), decay=decay, neighbours=neighbours, reach=reach, loss=loss, combine=combine
    )


@recipe("Wang, He 2021, arXiv 2103.15571", _NORMS)
def vni_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    neighbours: int = 20,
    reach: float = 1.5,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """VNI-FGSM: NI-FGSM, each gradient tuned by how it varied among `neighbours` within `reach` eps a step before."""
    return Transfer(
        **_steps(steps, step_size),
        decay=decay,
        nesterov=True,
        neighbours=neighbours,
        reach=reach,
        loss=loss,
        combine=combine,
    )


@recipe(
    "Lin et al. 2020, arXiv 1908.06281 (SI-NI-TI-DIM); Wang, He 2021, arXiv 2103.15571",
    _NORMS,
    factor=2.0,
    reason="it follows a blurred gradient, and the weights of the contract's linear targets are white noise",
)
def composite_fgsm(
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    *,
    nesterov: bool = True,
    diversity: float = 0.5,
    shrink: float = 0.9,
    scales: int = 5,
    kernel: int | None = None,
    neighbours: int = 0,
    reach: float = 1.5,
    loss: str = "ce",
    combine: str = RULES[0],
) -> Transfer:
    """SI-NI-TI-DI-FGSM: scales, Nesterov, a blurred gradient and diverse copies at once (and neighbours, if asked)."""
    return Transfer(
        **_steps(steps, step_size),
        decay=decay,
        nesterov=nesterov,
        diversity=diversity,
        shrink=shrink,
        scales=scales,
        kernel=kernel,
        neighbours=neighbours,
        reach=reach,
        loss=loss,
        combine=combine,
    )


# ---- what fools one target, shown to others


@dataclass(frozen=True)
class Cell:
    """Of `n` points made on one target, `fooled` fool another, `same` of them into the very class of the first."""

    n: int
    fooled: int
    same: int

    @property
    def rate(self) -> float:
        """The share of the points that fool, NaN for none."""
        return self.fooled / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of `rate`."""
        return wilson(self.fooled, self.n)

    @property
    def same_rate(self) -> float:
        """The share of the points that fool which lead to the same wrong class, NaN for none."""
        return self.same / self.fooled if self.fooled else float("nan")

    @property
    def same_interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of `same_rate`."""
        return wilson(self.same, self.fooled)


@dataclass(frozen=True)
class TransferMatrix:
    """What of an attack on each source fools each target; rows are sources.

    `asked`, `fooled` and `same` bool [sources, targets, n] tell for every example whether its point counts for the
    pair, fools the target, and leads it to the wrong class that it leads the source to. With `points` "success" a point
    counts where it fools its source; with "all" the best point of every example counts, whether it fools or not; with
    "last" all steps are made and the last iterate counts.
    Examples that either of the two gets wrong as they are never count.
    """

    attack: str
    threat: str
    points: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    asked: Tensor
    fooled: Tensor
    same: Tensor
    runs: tuple[Run, ...] = field(repr=False)

    def cell(self, source: str | Sequence[str], target: str) -> Cell:
        """Return the counts of a pair; of several sources the examples that any of them fools (one point from each)."""
        rows = [_place(name, self.sources) for name in ([source] if isinstance(source, str) else source)]
        column = _place(target, self.targets)
        asked, fooled, same = (part[rows, column].any(0) for part in (self.asked, self.fooled, self.same))
        return Cell(int(asked.sum()), int(fooled.sum()), int(same.sum()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers: one entry per pair with rates and their 95% intervals (None where nothing counts)."""
        cells = []
        for source in self.sources:
            for target in self.targets:
                c = self.cell(source, target)
                cells.append({"source": source, "target": target, "n": c.n, "fooled": c.fooled, "same": c.same}
                             | {"rate": c.rate if c.n else None, "interval": list(c.interval)}
                             | {"same_rate": c.same_rate if c.fooled else None,
                                "same_interval": list(c.same_interval)})  # fmt: skip
        return {"attack": self.attack, "threat": self.threat, "points": self.points, "cells": cells}

    def __str__(self) -> str:
        """Return a table: fooling rate (same wrong class) n for every source and target."""
        rows = [["from \\ to", *self.targets]]
        for source in self.sources:
            cells = (self.cell(source, target) for target in self.targets)
            texts = [f"{c.rate:.0%} ({c.same_rate:.0%}) {c.n}".replace("nan%", "-") for c in cells]
            rows.append([source, *texts])
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(t.ljust(w) for t, w in zip(row, wide, strict=True)).rstrip() for row in rows]
        what = {"success": "points that fool their source", "all": "best points", "last": "last iterates"}[self.points]
        return f"{self.attack} under {self.threat}: share of the {what} that fools (same wrong class) n\n" + "\n".join(
            lines
        )


Named = Mapping[str, Target | Callable[..., Any]] | Sequence[Target | Callable[..., Any]]


def transfer_matrix(
    targets: Named,
    attack: Attack[Any] | str | Callable[[Target], Attack[Any] | str],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    sources: Named | None = None,
    points: Literal["success", "all", "last"] = "success",
    goal: Goal | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> TransferMatrix:
    """Attack every source white-box and show what came out to every target (Szegedy 2013, Papernot 2016, 1605.07277).

    Args:
        targets: by name, or a list whose members' own names are used.
        attack: a recipe or its text; or what makes one for a source, such as a perturbation learned on it.
        x, y, threat, goal, seed, batch_size: as for `run`.
        sources: the same as `targets` by default.
        points: "success": what the attack ends with, which is its first success, where it fools the source; "all": that
            or the nearest miss of every example; "last": the end of all steps for every example, as papers on transfer
            count it.

    Add `ensemble(members)` to the targets to see it attacked jointly (its own row) and one member at a time (its
    column); `matrix.cell([a, b], "ensemble")` counts what any of the members' points fools.

    Raises:
        InputError: inputs, names or settings do not fit.
    """
    if points not in ("success", "all", "last"):
        raise InputError(f"points must be 'success', 'all' or 'last', not {points!r}.")
    columns, truth = named(targets), y.cpu()
    rows = columns if sources is None else named(sources)
    clean = {name: _labels(t, x) for name, t in (columns | rows).items()}
    runs, asked, fooled, same, told = [], [], [], [], ""
    for name, source in rows.items():
        made = attack if isinstance(attack, Attack | str) else attack(source)
        told = told or (repr(made) if isinstance(made, Attack) else made)
        out = run(
            made, source, x, y, threat, goal=goal, seed=seed, batch_size=batch_size, surrogates=[source]
        )  # its own surrogate: what is looked at for its gradient alone may lie outside the box
        assert isinstance(out.x_adv, Tensor) and isinstance(out.best, Tensor)
        shown = out.x_adv if points == "success" else out.best
        if points == "last":
            to = None if goal is None else goal.wanted(y, None)
            shown = _ends(as_attack(made), source, x, y, threat, to, seed)
        own, _ = _labels(source, shown)
        counts = out.success if points == "success" else torch.ones_like(out.success)
        for other, target in columns.items():
            label, accepted = _labels(target, shown)
            right = torch.stack([(clean[part][0] == truth) & clean[part][1] for part in (name, other)]).all(0)
            wrong = (label != truth) & accepted
            asked.append(counts & right)
            fooled.append(asked[-1] & wrong)
            same.append(fooled[-1] & (label == own))
        runs.append(out)
    shape = (len(rows), len(columns), len(y))
    whole = {k: torch.stack(v).view(shape) for k, v in (("asked", asked), ("fooled", fooled), ("same", same))}
    return TransferMatrix(told, repr(threat), points, tuple(rows), tuple(columns), **whole, runs=tuple(runs))


def named(targets: Named) -> dict[str, Target]:
    """Return targets by name; a list goes by its members' names, equal ones numbered."""
    if isinstance(targets, Mapping):
        out = {str(name): as_target(target) for name, target in targets.items()}
    else:
        out = {}
        for target in map(as_target, targets):
            equal = sum(name.partition(" #")[0] == target.name for name in out)
            out[target.name if not equal else f"{target.name} #{equal + 1}"] = target
    if not out:
        raise InputError("Transfer needs at least one target.")
    return out


def _ends(
    attack: Attack[Any], source: Target, x: Tensor, y: Tensor, threat: Threat, to: Tensor | None, seed: int
) -> Tensor:
    """Return the last iterates of an attack on its source, [n, ...] on the CPU."""
    ids, width, parts = example_ids(x), auto_width(x, source.device), []
    with torch.inference_mode(False), untouched(source):
        for at in range(0, len(x), width):
            rows = slice(at, at + width)
            here, label = x[rows].to(source.device, source.work_dtype), y[rows].to(source.device)
            wanted = None if to is None else to[rows].to(source.device)
            made = last_iterate(
                attack, source, here, label, threat, seed=seed, ids=ids[rows], to=wanted, surrogates=[source]
            )
            parts.append(made.cpu())
    return torch.cat(parts)


def _place(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise InputError(f"There is no target {name!r} in this matrix.{nearest(name, names)}")
    return list(names).index(name)


def _labels(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target's labels of x [n, ...], int64 [n], and whether it answers, bool [n]."""
    door, width = Oracle(target, Access.LABEL), auto_width(x, target.device)
    with torch.inference_mode(False), untouched(target):
        rows = (x[at : at + width] for at in range(0, len(x), width))
        parts = [door.label(part.to(target.device, target.work_dtype)) for part in rows]
    label = torch.cat([part.label.cpu() for part in parts])
    answers = [part.accepted.cpu() for part in parts if part.accepted is not None]
    return label, torch.cat(answers) if answers else torch.ones_like(label, dtype=torch.bool)
