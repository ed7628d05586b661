"""The pool: everything that is known about each of n examples while attacks run over them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import _rows
from .._rows import Batch
from .result import Status


@dataclass
class Pool:
    """One row per example, on the CPU (inputs where the caller keeps them); the engine writes, nobody else does.

    `best` [n, ...] is the most advanced point that the last attack found, `lead` [n] its advantage (below 0: not
    fooled) and `scores` [n, k] the answer there; `clean` [n, k] is the answer at x; `margin` [n] is minus the largest
    advantage of all attacks; `x_adv` is what was re-checked and counts; `why` [n] what the target raised on it, or "".
    """

    x: Batch
    y: Tensor
    ids: np.ndarray
    best: Batch
    x_adv: Batch
    lead: Tensor
    scores: Tensor | None
    clean: Tensor | None
    to: Tensor | None
    status: np.ndarray
    unrun: np.ndarray
    distance: Tensor
    margin: Tensor
    label: Tensor
    label_clean: Tensor
    confidence: Tensor
    confidence_clean: Tensor
    steps: np.ndarray
    broken_by: np.ndarray
    why: np.ndarray
    forward: np.ndarray
    backward: np.ndarray

    @classmethod
    def of(cls, x: Batch, y: Tensor, ids: np.ndarray, dtype: torch.dtype) -> "Pool":
        """Return a pool of n examples about which nothing is known yet."""
        n = len(x)
        if isinstance(x, Tensor):
            x = x.detach().to(dtype)
        return cls(
            x=x,
            y=y.detach().cpu().long(),
            ids=ids,
            best=_copy(x),
            x_adv=_copy(x),
            lead=torch.full((n,), -torch.inf),
            scores=None,
            clean=None,
            to=None,
            status=np.full(n, Status.SURVIVED, dtype=object),
            unrun=np.zeros(n, dtype=bool),
            distance=torch.full((n,), torch.nan, dtype=torch.float64),
            margin=torch.full((n,), torch.nan),
            label=torch.full((n,), -1),
            label_clean=torch.full((n,), -1),
            confidence=torch.full((n,), torch.nan),
            confidence_clean=torch.full((n,), torch.nan),
            steps=np.full(n, -1, dtype=np.int64),
            broken_by=np.full(n, "", dtype=object),
            why=np.full(n, "", dtype=object),
            forward=np.zeros(n, dtype=np.int64),
            backward=np.zeros(n, dtype=np.int64),
        )

    def keep(self, index: np.ndarray, x: Batch, lead: Tensor, scores: Tensor | None) -> None:
        """Remember the points x [m, ...] for the examples `index` where their lead [m] beats the best so far."""
        lead = lead.cpu().float()
        self.margin[index] = torch.minimum(self.margin[index], -lead)
        better = (lead > self.lead[index]).numpy()
        if not better.any():
            return
        rows = np.flatnonzero(better)
        self.lead[index[rows]] = lead[rows]
        _rows.assign(self.best, index[rows], _rows.take(x, rows))
        if scores is not None and self.scores is not None:
            self.scores[index[rows]] = _rows.take(scores, rows).cpu().float()


def _copy(x: Batch) -> Batch:
    return x.clone() if isinstance(x, Tensor) else list(x)
