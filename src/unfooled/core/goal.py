"""Goals: what counts as a success."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import margin, margin_targeted
from .oracle import Answer


@dataclass(frozen=True)
class Untargeted:
    """Any class but the true one."""

    def wanted(self, y: Tensor, scores: Tensor | None) -> Tensor | None:
        """Return the wanted class per example, or None: there is none."""
        return None


@dataclass(frozen=True, eq=False)
class Targeted:
    """One class: an int, one per example (int64 [n]), or 'least_likely' on the clean input."""

    to: int | Tensor | Literal["least_likely"]

    def __repr__(self) -> str:
        """Return the call that makes the goal."""
        return f"Targeted(to={self.to.tolist() if isinstance(self.to, Tensor) else self.to!r})"

    def wanted(self, y: Tensor, scores: Tensor | None) -> Tensor:
        """Return the wanted class per example, int64 [n]; raises InputError when it does not fit."""
        if isinstance(self.to, str):
            if self.to != "least_likely":
                raise InputError(f"Targeted(to={self.to!r}): give a class number, one per example, or 'least_likely'.")
            if scores is None:
                raise InputError("Targeted(to='least_likely') needs access to scores; name the wanted class instead.")
            return scores.argmin(1)
        to = torch.as_tensor(self.to, dtype=torch.int64, device=y.device)
        if to.dim() and to.shape != y.shape:
            raise InputError(
                f"Targeted(to=...) has shape {tuple(to.shape)}; expected one class per example: ({len(y)},)."
            )
        if scores is not None and len(to.view(-1)) and not bool(((to >= 0) & (to < scores.shape[1])).all()):
            raise InputError(f"Targeted(to=...) names a class outside 0..{scores.shape[1] - 1}.")
        return to.expand_as(y).clone()


Goal = Untargeted | Targeted

SURE = 0.9
"""The share of draws of a random target that must be wrong (and accepted) for a success."""


def valid(scores: Tensor) -> Tensor:
    """Whether scores [b, k] name an answer, bool [b]: no NaN, a finite best; -inf marks classes that are ruled out."""
    return scores.amax(1).isfinite()  # the largest of a row with a NaN is NaN


def advantage(answer: Answer, y: Tensor, to: Tensor | None) -> Tensor:
    """By how much the goal is reached, [b]: the margin of the scores, or +-1 where only labels are known.

    Positive is a success, strictly: a tie is none. Of a random target it is the share of its draws that reach the goal
    minus `SURE`. A rejected answer or one that is none is never a success.
    """
    if answer.votes is not None:  # a random target is fooled when it is so in nearly all draws
        own = answer.votes.gather(1, (y if to is None else to).view(-1, 1))[:, 0]
        lead = (answer.votes.sum(1) - own if to is None else own) - SURE
        if answer.scores is not None:  # among equal shares the larger margin
            more = margin(answer.scores, y) if to is None else margin_targeted(answer.scores, to)
            lead = lead + 1e-3 * more.nan_to_num(0.0).tanh()
        return lead
    if answer.scores is None:
        won = answer.label != y if to is None else answer.label == to
        lead = won.to(torch.float32) * 2 - 1
    else:
        lead = margin(answer.scores, y) if to is None else margin_targeted(answer.scores, to)
        lead = torch.where(valid(answer.scores), lead, -torch.inf)
    if answer.guide is not None:
        hint = margin(answer.guide, y) if to is None else margin_targeted(answer.guide, to)
        lead = torch.where(lead > 0, lead, hint.nan_to_num(-1e30, 0.0, -1e30).clamp(max=-1e-12).to(lead.dtype))
    if answer.accepted is None:
        return lead
    refused = -1 / (1 + lead.clamp(min=0)) - (-lead).clamp(min=0)  # never a success, the larger the lead the nearer
    return torch.where(answer.accepted, lead, refused)
