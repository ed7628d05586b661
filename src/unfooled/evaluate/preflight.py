"""Looks before anything is attacked: the size of eps, and whether labels and outputs speak of the same classes."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core.threat import Ball
from ..errors import InputError
from ..stats import wilson


def check_threat(threat: Ball, bounds: tuple[float, float]) -> list[str]:
    """Return notes about eps; raises InputError for none, and for a Linf eps above half the range."""
    lo, hi = bounds
    if not threat.bounded:
        raise InputError(f"{threat!r} has no eps; evaluate needs one, for example {threat.norm}(8/255).")
    if threat.norm.name != "linf":
        return []
    share = threat.eps / (hi - lo)
    if share > 0.5:
        meant = (
            f" Did you mean {threat.eps:g}/255?"
            if threat.eps == int(threat.eps) and threat.eps <= 127 and hi - lo <= 2
            else ""
        )
        raise InputError(
            f"eps={threat.eps:g} is more than half the input range [{lo:g}, {hi:g}]: "
            f"a plain grey image would be allowed.{meant}"
        )
    if 0 < share < 1 / 512:
        return [f"eps={threat.eps:g} is below half a grey level: no such change survives in an 8-bit image."]
    return []


class Order:
    """Checks the clean answers against the labels; clean accuracy near chance is never attacked in silence.

    Call it with scores [n, k] and labels y [n]; it returns the labels to go by. A constant offset (1,001 outputs for
    labels 0 to 999) is repaired and said in `notes`; another order of the classes raises InputError; unexplained
    chance accuracy goes to `reasons`.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.reasons: list[str] = []
        self._offset: int | None = None

    @property
    def offset(self) -> int:
        """What was added to every label."""
        return self._offset or 0

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the labels to go by, int64 [n]."""
        if self._offset is None:
            self._offset = self._find(scores, y)
        return y + self._offset

    def _find(self, scores: Tensor, y: Tensor) -> int:
        n, k = scores.shape
        label = scores.argmax(1)
        right = int((label == y).sum())
        if right / n > (0.65 if k == 2 else 0.5) or wilson(right, n)[0] > min(1.5 / k, 0.55) or int(y.min()) < 0:
            return 0
        chance = f"clean accuracy {right / n:.1%} on {n} examples is at chance level for {k} classes"
        if n < 8 or len(y.unique()) < 2:
            self.reasons.append(f"{chance}: too few examples or classes to say why")
            return 0
        for offset in (1, -1):
            shifted = int((label == y + offset).sum())
            if 0 <= int(y.min()) + offset and int(y.max()) + offset < k and _far_better(shifted, right, n, k):
                self.notes.append(
                    f"Clean accuracy is {right / n:.1%} as labelled and {shifted / n:.1%} with {offset:+d} added to "
                    f"every label: the target's {k} outputs are "
                    f"shifted against the data's labels {int(y.min())} to {int(y.max())}; "
                    "evaluated with the shift."
                )
                return offset
        if int(y.max()) < k:
            if n < 4 * len(y.unique()):
                self.reasons.append(f"{chance}: too few examples to tell whether the classes are in another order")
                return 0
            self._order(label, y, k, right)
        self.reasons.append(f"{chance}: no shift or order of the classes explains it")
        return 0

    def _order(self, label: Tensor, y: Tensor, k: int, right: int) -> None:
        """Find the best one-to-one order on one half of the examples, judge it on the other."""
        half = torch.arange(len(y)) % 2 == 0
        counts = torch.bincount(y[half] * k + label[half], minlength=k * k).view(k, k).numpy()
        rows, columns = linear_sum_assignment(counts, maximize=True)
        order = torch.zeros(k, dtype=torch.int64)
        order[torch.as_tensor(rows)] = torch.as_tensor(columns)
        found, n = int((label == order[y])[~half].sum()), int((~half).sum())
        if _far_better(found, round(right * n / len(y)), n, k):
            moved = [f"label {i} is output {int(order[i])}" for i in y.unique().tolist() if int(order[i]) != i][:4]
            raise InputError(
                f"Clean accuracy is {right / len(y):.1%} as labelled and {found / n:.1%} with the classes in "
                f"another order ({', '.join(moved)}, ...): "
                "bring the data's labels into the target's order. Nothing was attacked."
            )


def _far_better(found: int, right: int, n: int, k: int) -> bool:
    return found > right and wilson(found, n)[0] > max(3 * right / n, 3 / k if k > 3 else 0.6)
