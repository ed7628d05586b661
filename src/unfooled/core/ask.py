"""Asking a target about any number of rows: in batches, through the counting oracle, the caller's world untouched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError, UnfooledError
from .access import Access
from .oracle import Oracle
from .run import auto_width
from .target import Target, as_target, untouched

PerRow = Callable[[Tensor, Tensor], Tensor]
"""`(scores [b, k], rows int64 [b]) -> [b]`: what is differentiated; `rows` are the places of the batch in x."""


class Asker:
    """A target that is asked about x [n, ...] of any length at once.

    x may lie on any device; answers come back there. `forward` and `backward` count rows, as the oracle does.

    Args:
        target: a `Target`, module or callable.
        access: the most that may be asked.
        batch_size: rows a call, or "auto".
    """

    def __init__(
        self,
        target: Target | Callable[..., object],
        *,
        access: Access = Access.GRADIENT,
        batch_size: int | str = "auto",
    ) -> None:
        self.target = as_target(target)
        self.oracle = Oracle(self.target, access)
        self.batch_size = batch_size
        self._fits: set[torch.Size] = set()  # shapes of an input that the target has answered to

    @property
    def forward(self) -> int:
        """Rows sent forward so far."""
        return self.oracle.forward

    @property
    def backward(self) -> int:
        """Rows sent backward so far."""
        return self.oracle.backward

    def scores(self, x: Tensor) -> Tensor:
        """Return the scores [n, k] of x, float32 or wider."""
        return self.value(x, lambda scores, rows: scores)

    def confidences(self, x: Tensor) -> Tensor:
        """Return the confidence in each class, [n, k]: the softmax of the scores unless they are probabilities."""
        return confidences(self.scores(x))

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted classes, int64 [n]; label access is enough."""
        with self._asking(x):
            return torch.cat([self.oracle.label(self._sent(x[rows])).label.to(x.device) for rows in self._batches(x)])

    def value(self, x: Tensor, loss: PerRow) -> Tensor:
        """Return the values [n, ...] of `loss` at x: forward passes alone."""
        parts: list[Tensor] = []
        with self._asking(x):
            for rows in self._batches(x):
                got = self.oracle.scores(self._sent(x[rows])).scores
                assert got is not None
                parts.append(loss(_wide(got), rows.to(self.target.device)).detach().to(x.device))
        return torch.cat(parts)

    def gradient(self, x: Tensor, loss: PerRow) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores [n, k], the values [n] of `loss` and their gradients [n, ...] at x."""
        parts = []
        with self._asking(x):
            for rows in self._batches(x):
                value_of = partial(_of_rows, loss, rows.to(self.target.device))
                answer, value, grad = self.oracle.gradient(self._sent(x[rows]), value_of)
                assert answer.scores is not None
                parts.append([t.to(x.device) for t in (_wide(answer.scores), value, grad)])
        scores, values, grads = (torch.cat(column) for column in zip(*parts, strict=True))
        return scores, values, grads

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return x [n, ...] in the batches that it is asked in."""
        return tuple(x[rows] for rows in self._batches(x))

    def _batches(self, x: Tensor) -> tuple[Tensor, ...]:
        width = auto_width(x, self.target.device) if isinstance(self.batch_size, str) else self.batch_size
        return torch.split(torch.arange(len(x), device=x.device), width)

    def _sent(self, x: Tensor) -> Tensor:
        return x.detach().to(self.target.device, self.target.work_dtype)

    @contextmanager
    def _asking(self, x: Tensor) -> Iterator[None]:
        """Within, the target is asked about x [n, ...]; what its own code raises on it becomes one sentence."""
        if not isinstance(x, Tensor) or x.dim() < 1 or not len(x):
            raise InputError("A target is asked about a tensor of inputs [n, ...], n at least 1; one input is x[None].")
        try:
            with torch.inference_mode(False), untouched(self.target):
                yield
            self._fits.add(x.shape[1:])
        except (UnfooledError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # whatever a module raises on a wrong shape
            if x.shape[1:] in self._fits:
                raise
            said = (str(error).splitlines() or [""])[0].rstrip(".")
            shape = " x ".join(map(str, x.shape[1:]))
            raise InputError(
                f"{self.target.name} fails on inputs of shape {shape or '(none)'} ({type(error).__name__}: {said}); "
                "give inputs [n, ...] of the size it was made for."
            ) from error


def confidences(scores: Tensor) -> Tensor:
    """Return the confidences [b, k] of scores: themselves where they are probabilities already, else their softmax."""
    return scores if are_probabilities(scores) else scores.softmax(1)


def are_probabilities(scores: Tensor) -> bool:
    """Return whether the scores [b, k] are shares that add up to one in every row, as none but probabilities are.

    A batch of near copies may look so by chance: whoever asks many times decides once, on inputs that differ.
    """
    return bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all())


def as_logits(scores: Tensor, *, probabilities: bool | None = None) -> Tensor:
    """Return what a softmax makes confidences of: the scores [b, k], or logarithms where they are `probabilities`.

    None: where these look like it.
    """
    if not (are_probabilities(scores) if probabilities is None else probabilities):
        return scores
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def _of_rows(loss: PerRow, rows: Tensor, scores: Tensor) -> Tensor:
    return loss(scores, rows)


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
