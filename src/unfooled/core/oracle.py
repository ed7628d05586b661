"""The oracle: the only door to a target. It counts every forward and backward row and refuses more than was granted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .._rows import Batch
from ..errors import AccessError, TargetError
from .access import Access

if TYPE_CHECKING:
    from .target import Target


Past = Literal["added", "selective", "orthogonal"]
"""How an attack leaves behind what refuses to answer."""

Chosen = Tensor | Callable[[Tensor], Tensor]
"""Classes, or what picks them from the scores [b, k]."""


@dataclass(frozen=True)
class Answer:
    """What came back for [b] inputs: scores [b, k] where they may be seen, the label [b], and what a detector let pass.

    `accepted` bool [b] is None when nothing is ever rejected. A random target is asked `draws` times: scores are the
    mean, and `votes` [b, k] the share of draws that answered (and accepted) each class, else None. `guide` [b, k] are
    the logits that a straight-through gradient climbed: they tell which of two failures came nearer.
    """

    scores: Tensor | None
    label: Tensor
    accepted: Tensor | None = None
    draws: int = 1
    votes: Tensor | None = None
    guide: Tensor | None = None


class Oracle:
    """The door to one target with the granted access; `forward` and `backward` count the rows that went through."""

    def __init__(self, target: "Target", granted: Access) -> None:
        self.target, self.granted = target, min(granted, target.access)
        self.forward = 0
        self.backward = 0

    def need(self, level: Access, who: str = "This attack") -> None:
        """Raise AccessError when `level` is more than was granted."""
        if level > self.granted:
            raise AccessError(
                f"{who} needs {level.name.lower()} access to the target, but only "
                f"{self.granted.name.lower()} was granted."
            )

    def scores(self, x: Batch) -> Answer:
        """Return scores and labels of x [b, ...]; one forward per row."""
        self.need(Access.SCORES)
        return self._ask(x)

    def label(self, x: Batch) -> Answer:
        """Return only the labels of x [b, ...]; one forward per row."""
        self.need(Access.LABEL)
        answer = self._ask(x)
        return replace(answer, scores=None)

    def look(self, x: Batch) -> Answer:
        """Return as much as the granted access allows; one forward per row."""
        return self.scores(x) if self.granted >= Access.SCORES else self.label(x)

    def _ask(self, x: Batch) -> Answer:
        with torch.no_grad():
            scores = self._drawn(lambda: self.target.scores(x))
        self.forward += len(x) * self.target.draws
        return self._answer(scores, len(x))

    def _drawn(self, ask: Callable[[], Tensor]) -> Tensor:
        """Return the scores of all draws, [b * draws, k]: a call each, for luck may be shared within a call."""
        draws = self.target.draws
        return ask() if draws == 1 else torch.stack([ask() for _ in range(draws)], 1).flatten(0, 1)

    def _answer(self, scores: Tensor, rows: int) -> Answer:
        """Read scores [rows * draws, k] as one answer per row."""
        classes, accepted = self.target.split(scores)
        draws = self.target.draws
        if draws == 1:
            return Answer(classes, classes.argmax(1), accepted)
        k = classes.shape[1]
        counted = torch.nn.functional.one_hot(classes.argmax(1), k).float()
        if accepted is not None:
            counted = counted * accepted.view(-1, 1)
        votes = counted.view(rows, draws, k).mean(1)
        mean = classes.view(rows, draws, k).mean(1)
        return Answer(mean, votes.argmax(1), None if accepted is None else votes.sum(1) > 0.5, draws, votes)

    def gradient(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], *, straight: bool = False, past: Past = "added"
    ) -> tuple[Answer, Tensor, Tensor]:
        """Return the answer, the loss [b] and its gradient [b, ...] at x; one forward and one backward per row.

        `loss` maps scores [b, k] to [b]; of a random target it gets the mean scores of its draws. Non-finite entries of
        the gradient are zero. `straight`: the gradient of what the target computes under everything that hides it.
        `past` is how what refuses by its last score is climbed out of: where the loss is positive (the answer is wrong)
        the lead of the refusal is taken off the loss ("added"), or is all that counts ("selective"), or the gradient
        of either is freed of what lies along the other's ("orthogonal": two backward passes).
        """
        self.need(Access.GRADIENT)
        rows, draws = len(x), self.target.draws
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            if straight and self.target.straight is not None:
                way, pairs = self.target.straight, []

                def both() -> Tensor:
                    pairs.append(way.logits(self.target, leaf))
                    return pairs[-1][0]

                scores = self._drawn(both)
                climbed = pairs[0][1] if draws == 1 else torch.stack([z for _, z in pairs], 1).flatten(0, 1)
                if self.target.reject == "last":
                    climbed = climbed[:, : self.target.split(scores)[0].shape[1]]
            else:
                scores = self._drawn(lambda: self.target.scores(leaf))
                climbed = self.target.split(scores)[0]
            self.forward += rows * draws
            if draws > 1:
                climbed = climbed.view(rows, draws, -1).mean(1)
            value = loss(climbed)
            small = value.dtype != torch.float64 and scores.dtype in (torch.float16, torch.bfloat16)
            size = 1024.0 if small else 1.0  # gradients of half precision underflow
            grad, passes = None, 1
            if self.target.reject == "last" and scores.requires_grad:
                free = (scores[:, :-1].amax(1) - scores[:, -1]).view(rows, draws).mean(1)
                wrong, held = value.detach() > 0, free.clamp(max=0)  # wrong already, and not yet accepted
                if past == "orthogonal":
                    grads = [_pulled(part.sum() * size, leaf, keep=True) for part in (value, free)]
                    grad, passes = _freed(grads[0], grads[1], wrong), 2
                keep = value if past == "added" else torch.where(wrong, 0.0, value)
                value = keep + torch.where(wrong, held, 0.0)
            if grad is None:
                grad = _pulled(value.sum() * size, leaf, may_end=straight and self.target.straight is not None)
        self.backward += rows * draws * passes
        answer = self._answer(scores.detach(), rows)
        if straight and self.target.straight is not None and draws == 1:
            answer = replace(answer, guide=climbed.detach())
        return answer, value.detach(), grad

    def jacobian(self, x: Tensor, classes: Chosen, less: Chosen | None = None) -> tuple[Answer, Tensor, Tensor]:
        """Return the answer at x, the scores [b, c] of the classes and their gradients [b, c, ...].

        `classes` int64 [b, c], or what picks them from the scores [b, k]; the score of the class `less` int64 [b] is
        taken off first. One forward and c backward per row. Scores are float32 or wider, of a random target the mean of
        its draws; non-finite entries of the gradients are zero.
        """
        self.need(Access.GRADIENT)
        rows, draws = len(x), self.target.draws
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            scores = self._drawn(lambda: self.target.scores(leaf))
            self.forward += rows * draws
            mean = self.target.split(scores)[0].view(rows, draws, -1).mean(1)
            mean = mean if mean.dtype == torch.float64 else mean.float()
            index = classes(mean.detach()) if callable(classes) else classes
            z = mean.gather(1, index)
            if less is not None:
                z = z - mean.gather(1, (less(mean.detach()) if callable(less) else less).view(-1, 1))
            last = index.shape[1] - 1
            size = 1024.0 if scores.dtype in (torch.float16, torch.bfloat16) else 1.0  # gradients of these underflow
            grads = [_pulled(z[:, i].sum() * size, leaf, keep=i < last) / size for i in range(last + 1)]
            self.backward += rows * draws * len(grads)
        return self._answer(scores.detach(), rows), z.detach(), torch.stack(grads, 1)


_PARALLEL = 1e-3  # share of a gradient below which what is left of it is rounding


def _freed(gain: Tensor, free: Tensor, wrong: Tensor) -> Tensor:
    """Return `free` [b, ...] without what lies along `gain` where `wrong` [b], else `gain` without that along `free`.

    Orthogonal projected gradient descent (Bryniarski et al. 2021, arXiv:2106.15023, section 4.2). Where both lie along
    one line nothing would be left to climb, and the gradient stays whole.
    """
    a, b = gain.flatten(1), free.flatten(1)
    one, other = torch.where(wrong.view(-1, 1), b, a), torch.where(wrong.view(-1, 1), a, b)
    other = other / other.norm(dim=1, keepdim=True).clamp(min=torch.finfo(other.dtype).tiny)
    rest = one - (one * other).sum(1, keepdim=True) * other
    parallel = rest.norm(dim=1, keepdim=True) <= _PARALLEL * one.norm(dim=1, keepdim=True)
    return torch.where(parallel, one, rest).view_as(gain)


def _pulled(total: Tensor, leaf: Tensor, *, keep: bool = False, may_end: bool = False) -> Tensor:
    """Return the gradient of `total` at the leaf, non-finite entries zero; raises TargetError when there is none.

    Zero instead where a way straight through what hides it `may_end`: it was found near other inputs.
    """
    grad = None
    if total.requires_grad:
        grad = torch.autograd.grad(total, leaf, allow_unused=True, retain_graph=keep)[0]
    if grad is None and may_end:
        return torch.zeros_like(leaf)
    if grad is None:
        raise TargetError(
            "The target's scores do not depend on the input through autograd (no_grad, detach or NumPy in "
            "forward?); attack it by its scores: access scores."
        )
    return grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
