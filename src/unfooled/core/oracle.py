"""The oracle: the only door to a target. It counts every forward and backward row and refuses more than was granted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._rows import Batch
from ..errors import AccessError, TargetError
from .access import Access

if TYPE_CHECKING:
    from .target import Target


@dataclass(frozen=True)
class Answer:
    """What came back for [b] inputs: scores [b, k] where they may be seen, the label [b], and what a detector let pass.

    `accepted` bool [b] is None when nothing is ever rejected; `draws` is the number of draws behind a random answer.
    """

    scores: Tensor | None
    label: Tensor
    accepted: Tensor | None = None
    draws: int = 1


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
        return Answer(None, self._ask(x).label)

    def look(self, x: Batch) -> Answer:
        """Return as much as the granted access allows; one forward per row."""
        return self.scores(x) if self.granted >= Access.SCORES else self.label(x)

    def _ask(self, x: Batch) -> Answer:
        with torch.no_grad():
            scores = self.target.scores(x)
        self.forward += len(x)
        return Answer(scores, scores.argmax(1))

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Answer, Tensor, Tensor]:
        """Return the answer, the loss [b] and its gradient [b, ...] at x; one forward and one backward per row.

        `loss` maps scores [b, k] to [b]. Non-finite entries of the gradient are zero.
        """
        self.need(Access.GRADIENT)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            scores = self.target.scores(leaf)
            self.forward += len(x)
            value = loss(scores)
            grad = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
        if grad is None:
            raise TargetError(
                "The target's scores do not depend on the input through autograd (no_grad, detach or NumPy in "
                "forward?); attack it by its scores: access scores."
            )
        self.backward += len(x)
        scores = scores.detach()
        return Answer(scores, scores.argmax(1)), value.detach(), grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
