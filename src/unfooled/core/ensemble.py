"""Several targets as one: an ordinary target whose scores are the members' mean logits, mean probabilities or votes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, TargetError
from .target import Target, as_target

Combine = Literal["mean_logits", "mean_probabilities", "vote"]
COMBINE = ("mean_logits", "mean_probabilities", "vote")


class _Members(nn.Module):
    """The members' scores as one; their weights are its weights, so that they are guarded and hashed with it."""

    def __init__(self, members: Sequence[Target], combine: str) -> None:
        super().__init__()
        self.members, self.combine = list(members), combine
        self.modules_of = nn.ModuleList(m.module for m in members if isinstance(m.module, nn.Module))
        self.register_buffer("rule", torch.tensor(COMBINE.index(combine)))
        for i, m in enumerate(members):  # what else an answer depends on
            self.register_buffer(f"mean{i}", m.mean)
            self.register_buffer(f"std{i}", m.std)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [b, k] of x [b, ...]."""
        scores = [m.split(m.scores(x))[0] for m in self.members]
        if len({s.shape[1] for s in scores}) > 1:
            told = ", ".join(f"{m.name} {s.shape[1]}" for m, s in zip(self.members, scores, strict=True))
            raise TargetError(f"The members of an ensemble must know the same classes, not {told}.")
        z = torch.stack([s.to(scores[0].dtype) for s in scores])  # [members, b, k]
        if self.combine == "mean_logits":
            return z.mean(0)
        p = z.softmax(2).mean(0)
        if self.combine == "mean_probabilities":
            return p.clamp(min=torch.finfo(p.dtype).tiny).log()
        return nn.functional.one_hot(z.argmax(2), z.shape[2]).sum(0) + p / 2  # ties go by the probabilities


def ensemble(
    targets: Sequence[Target | Callable[..., Any]] | Mapping[str, Target | Callable[..., Any]],
    combine: Combine = "mean_logits",
    *,
    name: str = "",
) -> Target:
    """Return one target that answers for several: an input counts as fooling it when the combined answer is wrong.

    Args:
        targets: the members, with the same bounds and classes; each keeps its own normalisation.
        combine: "mean_logits", "mean_probabilities" (scores are their logarithms), or "vote": the class that most
            members answer, ties going by the mean probability, which is also all that its gradient knows of.
        name: how reports call it.

    Raises:
        InputError: no members, members with other bounds, or no such way to combine them.
    """
    members = [as_target(t) for t in (targets.values() if isinstance(targets, Mapping) else targets)]
    if combine not in COMBINE:
        raise InputError(f"An ensemble has no rule {combine!r}; use one of {', '.join(COMBINE)}.")
    if not members:
        raise InputError("An ensemble needs at least one member.")
    bounds = members[0].bounds
    if other := next((m for m in members if m.bounds != bounds), None):
        raise InputError(f"The members of an ensemble must have the same bounds, not {bounds} and {other.bounds}.")
    access = min(m.access for m in members)
    called = name or f"{combine.replace('_', ' ')} of {', '.join(m.name for m in members)}"
    return Target(_Members(members, combine), bounds=bounds, name=called, access=access, classes=members[0].classes)
