"""Regressors as targets: the goal is a prediction that is off by more than a tolerance.

A prediction f(x) with the reference r and the tolerance t is a classifier of three classes with the scores
0 (within), (f - r) / t - 1 (too high) and (r - f) / t - 1 (too low): its margin is positive exactly where |f - r| > t,
it is linear where f is, and targeted attacks look on both sides. Which reference belongs to an input says one value
more, its number, which the threat's mask freezes.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfooled.core.access import Access
from unfooled.core.target import Target, pick, untouched
from unfooled.core.threat import Ball
from unfooled.errors import InputError, TargetError
from unfooled.targets._sklearn import as_module, is_estimator, probes

CLASSES = ("within tolerance", "too high", "too low")


@dataclass(frozen=True, eq=False)
class Regression:
    """A regressor ready to be attacked: give `target`, `x`, `y` and `threat(ball)` to any attack or to evaluate.

    `x` [n, d + 1] holds the inputs, flattened, and the number of each; `y` int64 [n] are zeros (within tolerance);
    `reference` and `tolerance` float64 [n] say what counts as right.
    """

    target: Target
    x: Tensor
    y: Tensor
    reference: Tensor
    tolerance: Tensor
    shape: tuple[int, ...]

    def threat(self, ball: Ball) -> Ball:
        """Return the ball around the inputs, in which their numbers stay as they are."""
        mask = torch.ones(self.x.shape[1], dtype=torch.bool)
        mask[-1] = False
        if ball.mask is not None:
            mask[:-1] = ball.mask.reshape(-1)
        return replace(ball, mask=mask)

    def unwrap(self, x: Tensor) -> Tensor:
        """Return inputs [n, ...] in their own shape."""
        return x[:, :-1].reshape(len(x), *self.shape)

    def predict(self, x: Tensor) -> Tensor:
        """Return the predictions float64 [n] at wrapped inputs x [n, d + 1]."""
        target = self.target
        assert isinstance(target.module, Tolerance)
        with untouched(target), torch.no_grad():
            return target.module.predicted(x.to(target.device, target.dtype)).double().cpu()


def regressor(
    f: Any,
    x: Tensor,
    tolerance: float | Tensor,
    *,
    reference: Tensor | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    white_box: bool = True,
    name: str = "",
) -> Regression:
    """Return a regressor as a target whose goal is a prediction off by more than `tolerance`.

    Args:
        f: a torch module or callable from [n, ...] to [n] or [n, 1], or a fitted scikit-learn regressor. Linear ones,
            kernel machines (SVR, NuSVR) and MLPRegressor, also behind scalers and projections, become torch modules
            when these predict the same at random points; the others are asked, which needs attacks that ask for scores.
        x: inputs [n, ...] within the bounds.
        tolerance: larger than 0, one for all or one per example [n], in units of the prediction.
        reference: what the predictions should be, [n]; by default what f predicts at x.
        bounds: lowest and highest value of an input.
        white_box: False asks a scikit-learn regressor itself.
        name: how reports call it.

    Raises:
        InputError: x, tolerance or reference do not fit, or f is no regressor of one number.
    """
    n, lo, hi = len(x), *bounds
    if not isinstance(x, Tensor) or x.dim() < 2 or not n or not x.is_floating_point():
        raise InputError("x must be a batch [n, ...] of at least one input of floating-point numbers.")
    flat = x.detach().reshape(n, -1)
    call, gradient, title = _call(f, x, bounds, white_box=white_box)
    allowed = torch.as_tensor(tolerance, dtype=torch.float64).reshape(-1).expand(n) if _fits(tolerance, n) else None
    if allowed is None or not bool(((allowed > 0) & allowed.isfinite()).all()):
        raise InputError(f"tolerance must be larger than 0: one number, or one for each of the {n} examples.")
    given = None if isinstance(call, nn.Module) else x.dtype
    module = Tolerance(call, tuple(x.shape[1:]), allowed, bounds, given)
    if where := next((p.device for p in module.parameters()), None):
        module.to(where)  # beside the regressor's own weights
    target = Target(
        module,
        bounds=bounds,
        name=name or title,
        classes=CLASSES,
        access=Access.GRADIENT if gradient else Access.SCORES,
    )
    number = torch.arange(n, dtype=torch.float64) / max(1, n - 1) * (hi - lo) + lo
    wrapped = torch.cat([flat.to(target.work_dtype), number.to(target.work_dtype).to(flat.device)[:, None]], 1)
    if not torch.equal(module.number(wrapped.to(target.dtype).cpu()), torch.arange(n)):
        raise InputError(f"{n:,} examples cannot be told apart between {lo:g} and {hi:g}; take fewer at a time.")
    made = Regression(target, wrapped, torch.zeros(n, dtype=torch.int64), module.reference, allowed, tuple(x.shape[1:]))
    if reference is None:
        reference = torch.cat([made.predict(part) for part in wrapped.split(256)])
    if reference.shape != (n,) or not bool(reference.double().isfinite().all()):
        raise InputError(f"reference must be {n} finite numbers, one per example, not {tuple(reference.shape)}.")
    module.reference.copy_(reference.double().to(module.reference.device))
    return replace(made, reference=reference.detach().double().cpu(), tolerance=allowed.clone())


class Tolerance(nn.Module):
    """Scores [n, 3] of wrapped inputs [n, d + 1]: within tolerance of the reference, too high, too low."""

    reference: Tensor
    allowed: Tensor

    def __init__(  # `given`: the dtype that a plain callable is given
        self,
        call: Callable[[Tensor], Any],
        shape: tuple[int, ...],
        allowed: Tensor,
        bounds: tuple[float, float],
        given: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.call, self.shape, self.bounds, self.given = call, shape, bounds, given
        self.register_buffer("reference", torch.zeros(len(allowed), dtype=torch.float64))
        self.register_buffer("allowed", allowed.clone())

    def number(self, x: Tensor) -> Tensor:
        """Return the number int64 [n] of each input."""
        lo, hi = self.bounds
        last = len(self.reference) - 1
        return ((x[:, -1].detach().double() - lo) / (hi - lo) * last).nan_to_num(0.0).round().long().clamp(0, last)

    def predicted(self, x: Tensor) -> Tensor:
        """Return the predictions [n]; raises TargetError when they are not one number per input."""
        out = self.call(x[:, :-1].reshape(len(x), *self.shape).to(self.given or x.dtype))
        out = torch.from_numpy(np.asarray(out)) if isinstance(out, list | np.ndarray | np.generic) else out
        z = pick(out, len(x))
        if z.numel() != len(x) or not z.is_floating_point():
            raise TargetError(
                f"A regressor must return one number per input, not {z.dtype} of shape {tuple(z.shape)} for {len(x)}."
            )
        return z.reshape(len(x)).to(x.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 3]."""
        z, at = self.predicted(x), self.number(x)
        off = (z - self.reference[at].to(z.dtype)) / self.allowed[at].to(z.dtype)
        return torch.stack([torch.zeros_like(off), off - 1, -off - 1], 1)


def _fits(tolerance: Any, n: int) -> bool:
    try:
        return torch.as_tensor(tolerance, dtype=torch.float64).numel() in (1, n)
    except (TypeError, ValueError, RuntimeError):
        return False


def _call(
    f: Any, x: Tensor, bounds: tuple[float, float], *, white_box: bool
) -> tuple[Callable[[Tensor], Any], bool, str]:
    """Return what predicts, whether gradients come back through it, and its name."""
    title = type(f).__name__ if not callable(f) or isinstance(f, nn.Module) else getattr(f, "__name__", "regressor")
    if isinstance(f, Target):
        raise InputError("regressor takes the module or the estimator itself, not a Target.")
    if is_estimator(f):
        if hasattr(f, "classes_"):
            raise InputError(f"{title} is a classifier: targets.sklearn takes it.")
        features = x[0].numel()
        known = getattr(f, "n_features_in_", features)
        if known != features:
            raise InputError(f"{title} takes {known} values per example; these have {features}.")
        module = as_module(f, None, probes(features, bounds)) if white_box else None
        return (module, True, title) if module is not None else (Asked(f), False, title)
    if not callable(f):
        raise InputError(f"A {title} is no regressor: give a module, a callable, or a fitted estimator.")
    if isinstance(f, nn.Module):
        return f, True, title
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of a tensor that requires gradients
        leaf = x[:1].detach().clone().requires_grad_(True)
        try:
            out = f(leaf)
        except RuntimeError:  # "call numpy() on a tensor that requires grad"
            out = None
    return f, isinstance(out, Tensor) and out.requires_grad, title


class Asked(nn.Module):
    """A fitted regressor asked through predict()."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions float64 [n]."""
        given = x.detach().cpu().double().reshape(len(x), -1).numpy()
        return torch.from_numpy(np.asarray(self.estimator.predict(given), dtype=np.float64))
