"""The target: the model under test, its input bounds and normalisation, and the guard that leaves it as it was."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._rows import Batch
from ..errors import InputError, TargetError
from .access import Access


class Target:
    """A classifier under test.

    Args:
        module: a `torch.nn.Module` or any callable from a batch to scores [b, k] (logits for choice; k >= 2).
        bounds: lowest and highest value of an input; attacks stay inside.
        mean, std: per-channel normalisation applied before the module, for inputs [b, c, ...].
        name: how reports call it.
        classes: one name per class.
        access: what attackers may ask at most.

    Raises:
        InputError: bounds or normalisation make no sense.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        name: str = "",
        classes: Sequence[str] | None = None,
        access: Access = Access.GRADIENT,
    ) -> None:
        lo, hi = float(bounds[0]), float(bounds[1])
        if not lo < hi:
            raise InputError(f"bounds must be (low, high) with low < high, not {tuple(bounds)}.")
        if not callable(module):
            raise InputError(f"A target must be a torch module or a callable, not {type(module).__name__}.")
        self.module = module
        self.bounds = (lo, hi)
        self.name = name or (
            type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", "callable")
        )
        self.classes = list(classes) if classes is not None else None
        self.access = Access(access)
        tensors = [t for t in self._tensors() if t.is_floating_point()]
        self.dtype: torch.dtype = tensors[0].dtype if tensors else torch.float32
        self.device: torch.device = tensors[0].device if tensors else torch.device("cpu")
        self.mean, self.std = self._channels(mean, "mean"), self._channels(std, "std")
        if self.std is not None and not bool((self.std > 0).all()):
            raise InputError("std must be larger than 0 in every channel.")

    def _tensors(self) -> list[Tensor]:
        module = self.module
        return [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []

    def _channels(self, values: Sequence[float] | float | None, what: str) -> Tensor | None:
        if values is None:
            return None
        t = torch.as_tensor(values, dtype=self.work_dtype, device=self.device).reshape(-1)
        if not bool(t.isfinite().all()):
            raise InputError(f"{what} must be finite numbers, one per channel.")
        return t

    @property
    def work_dtype(self) -> torch.dtype:
        """The dtype that attacks compute in: float64 for float64 targets, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def fingerprint(self) -> str:
        """Return the SHA-256 of weights, buffers, bounds and normalisation, as hexadecimal text."""
        digest = hashlib.sha256(repr((self.bounds, self.mean, self.std)).encode())
        if isinstance(self.module, nn.Module):
            for key, tensor in self.module.state_dict().items():
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(self.name.encode())
        return digest.hexdigest()

    def scores(self, x: Batch) -> Tensor:
        """Return the scores [b, k] of a batch of inputs; raises TargetError when the output is no such thing."""
        if isinstance(x, Tensor):
            x = x.to(self.dtype, copy=True)  # modules may write into what they are given
            if self.mean is not None:
                x = x - self._shaped(self.mean, x)
            if self.std is not None:
                x = x / self._shaped(self.std, x)
        out = self.module(x)
        if not isinstance(out, Tensor):
            raise TargetError(
                f"The target returns a {type(out).__name__}, not a tensor of scores [n, classes]; "
                "wrap it to return the logits."
            )
        if out.dim() != 2 or len(out) != len(x) or out.shape[1] < 2 or not out.is_floating_point():
            raise TargetError(
                f"The target returns {out.dtype} of shape {tuple(out.shape)} for {len(x)} inputs; "
                f"expected floating-point scores of shape ({len(x)}, classes) with at least two classes."
            )
        return out

    def _shaped(self, values: Tensor, x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[1]):
            raise InputError(f"mean and std have {len(values)} values but the inputs {x.shape[1]} channels.")
        return values.to(x.dtype).view(-1, *([1] * (x.dim() - 2)))


def as_target(target: "Target | Callable[..., Any]", access: Access | None = None) -> Target:
    """Return `target` itself, or a module or callable as a Target with bounds (0, 1)."""
    return (
        target if isinstance(target, Target) else Target(target, access=Access.GRADIENT if access is None else access)
    )


@contextlib.contextmanager
def untouched(target: Target) -> Iterator[None]:
    """Evaluate in eval mode, and leave the caller's world as it was: on success, on exceptions and on Ctrl-C.

    Restored: the training flag of every submodule, requires_grad and .grad of parameters, buffers that changed,
    random states (torch on CPU and CUDA, numpy, random), grad mode and default dtype.
    """
    root = target.module if isinstance(target.module, nn.Module) else nn.Module()
    modules, parameters, buffers = list(root.modules()), list(root.parameters()), list(root.buffers())
    flags = [m.training for m in modules]
    grads = [(p.requires_grad, p.grad) for p in parameters]
    kept = [b.detach().clone() for b in buffers]
    cuda = target.device.type == "cuda"
    states = (
        torch.get_rng_state(),
        torch.cuda.get_rng_state(target.device) if cuda else None,
        np.random.get_state(),
        random.getstate(),
    )
    mode, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        root.eval()
        recurrent = cuda and any(
            isinstance(m, nn.RNNBase) for m in modules
        )  # cuDNN has no backward for these in eval mode
        with torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext():
            yield
    finally:
        for m, flag in zip(modules, flags, strict=True):
            m.training = flag
        for p, (wanted, grad) in zip(parameters, grads, strict=True):
            p.requires_grad_(wanted)
            p.grad = grad
        with torch.no_grad():
            for b, old in zip(buffers, kept, strict=True):
                if not torch.equal(b, old):
                    b.copy_(old)
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], target.device)
        np.random.set_state(states[2])
        random.setstate(states[3])
        torch.set_grad_enabled(mode)
        torch.set_default_dtype(dtype)
