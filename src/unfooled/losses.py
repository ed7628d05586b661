"""Losses (scores [b, k], reference [b]) -> [b], climbed by the attacker; float32 or wider whatever the target's dtype.

`reference` is the true label for the untargeted losses (climb: away from it) and the wanted class for the targeted
ones (climb: towards it). All survive tiny, huge and offset scores; DLR falls back below three classes (four for the
targeted form) to the plain difference of logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def _split(scores: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reference's score [b] and the others [b, k] with the reference set to -inf."""
    own = scores.gather(1, reference.view(-1, 1))
    others = scores.scatter(1, reference.view(-1, 1), -torch.inf)
    return own[:, 0], others


def margin(scores: Tensor, reference: Tensor) -> Tensor:
    """Largest other score minus the reference's, [b]; positive where the reference is not the answer."""
    own, others = _split(_precise(scores), reference)
    return others.amax(1) - own


def margin_targeted(scores: Tensor, reference: Tensor) -> Tensor:
    """The wanted class's score minus the largest other, [b]; positive where the wanted class is the answer."""
    return -margin(scores, reference)


def cross_entropy(scores: Tensor, reference: Tensor) -> Tensor:
    """Log of the mean odds of the other classes against the reference, [b].

    With m = log(mean_{j != y} exp z_j) - z_y, cross-entropy is softplus(m + log(k - 1)): a strictly growing function
    of m per row. Climbing m has the same direction and the same order as climbing cross-entropy (Goodfellow et al.
    2014, eq. of section 4) and keeps its gradient where float32 softmax saturates (logits 100 and more apart) or where
    tiny logits drown in log k.
    """
    own, others = _split(_precise(scores), reference)
    top = others.amax(1)
    shifted = torch.expm1(others - top.detach().view(-1, 1))  # the reference's -inf gives -1, its share of the mean
    total = (shifted.sum(1) + 1) / max(scores.shape[1] - 1, 1)
    return top.detach() + torch.log1p(total) - own


def cross_entropy_targeted(scores: Tensor, reference: Tensor) -> Tensor:
    """Minus `cross_entropy` of the wanted class, [b]: climbs its probability."""
    return -cross_entropy(scores, reference)


def dlr(scores: Tensor, reference: Tensor) -> Tensor:
    """Difference of logits ratio, [b] (Croce and Hein 2020, arXiv 2003.01690, eq. 6); two classes: the margin."""
    z = _precise(scores)
    if z.shape[1] < 3:
        return margin(z, reference)
    top = z.topk(3, dim=1).values
    return _over(margin(z, reference), top[:, 0] - top[:, 2])


def dlr_targeted(scores: Tensor, reference: Tensor, label: Tensor) -> Tensor:
    """Targeted difference of logits ratio, [b]: (z_t - z_y) / (z_1 - (z_3 + z_4) / 2) (arXiv 2003.01690, eq. 7).

    With fewer than four classes it is z_t - z_y: over z_1 - z_3 the loss towards the last of three would be constant.
    """
    z = _precise(scores)
    gain = (z.gather(1, reference.view(-1, 1)) - z.gather(1, label.view(-1, 1)))[:, 0]
    if z.shape[1] < 4:
        return gain
    top = z.topk(4, dim=1).values
    return _over(gain, top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def difference(scores: Tensor, reference: Tensor, label: Tensor) -> Tensor:
    """The wanted class's score minus the label's, [b]: the plain targeted margin of one pair of classes."""
    z = _precise(scores)
    return (z.gather(1, reference.view(-1, 1)) - z.gather(1, label.view(-1, 1)))[:, 0]


def kl(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(scores)), [b] (TRADES, arXiv 1901.08573, eq. 3)."""
    log_p = reference_scores.float().log_softmax(1)
    return (log_p.exp() * (log_p - _precise(scores).log_softmax(1))).sum(1)


def _precise(scores: Tensor) -> Tensor:
    """Scores in float32 or wider, without their common offset."""
    z = scores if scores.dtype == torch.float64 else scores.float()
    return z - z.detach().amax(1, keepdim=True)


def _over(value: Tensor, scale: Tensor) -> Tensor:
    """value / scale; where the scale is zero (all scores tie) or infinite (classes ruled out) the value itself."""
    return value / torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
