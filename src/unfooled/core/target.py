"""The target: the model under test, its input bounds and normalisation, and the guard that leaves it as it was."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .._rows import Batch
from ..errors import InputError, TargetError
from .access import Access

if TYPE_CHECKING:
    from .straight import Straight


class Target:
    """A classifier under test.

    Args:
        module: a `torch.nn.Module` or any callable from a batch to scores [b, k] (logits for choice; k >= 2).
        bounds: lowest and highest value of an input; attacks stay inside.
        mean, std: per-channel normalisation applied before the module, for inputs [b, c, ...].
        name: how reports call it.
        classes: one name per class.
        access: what attackers may ask at most.
        reject: how it abstains: "last", its last score is that of no answer; or the least softmax confidence that it
            answers with; None, it always answers (the doctor finds an extra last class by itself).
        output: which part of a tuple, dict or object holds the scores; found by itself where there is only one.

    The doctor (evaluate/checkup.py) mends a copy of it: `kind` is what the module returns, `labels` the number of
    classes where it returns nothing but their numbers, `batch` the only batch size that it takes (1: its images must
    not see each other), `draws` the draws behind an answer of a random target, `rounding` the margin in
    units of the last place below which a success does not count, `reset` what undoes its memory before every call,
    `straight` where a hidden gradient can be had. `note` is a sentence for the reader of a report, or "".

    Raises:
        InputError: bounds or normalisation make no sense.
    """

    kind: Literal["scores", "probabilities", "sigmoids"] = "scores"
    labels: int = 0
    batch: int | None = None
    draws: int = 1
    rounding: float = 4.0
    reset: Callable[[], None] | None = None
    straight: "Straight | None" = None
    note: str = ""

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
        reject: float | Literal["last"] | None = None,
        output: str | int | None = None,
    ) -> None:
        if reject is not None and reject != "last" and not (isinstance(reject, float | int) and 0 < reject < 1):
            raise InputError(f"reject must be 'last' or a confidence between 0 and 1, not {reject!r}.")
        self.reject, self.output = reject, output
        lo, hi = float(bounds[0]), float(bounds[1])
        if not lo < hi:
            raise InputError(f"bounds must be (low, high) with low < high, not {tuple(bounds)}.")
        if not callable(module):
            mend = "; unfooled.targets.sklearn makes one of it" if hasattr(module, "predict") else ""
            raise InputError(f"A target must be a torch module or a callable, not {type(module).__name__}{mend}.")
        self.module = module
        self.sent = [0]  # rows that the module was given, by this target and all copies of it
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

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return str(self.classes[label]) if self.classes and label < len(self.classes) else str(label)

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
        x, rows = self.prepared(x), len(x)
        if self.batch is None or self.batch == rows:
            return self._read(self._call(x), rows)
        parts: list[Tensor] = []
        for at in range(0, rows, self.batch):
            part = x[at : at + self.batch]
            whole = filled(part, self.batch) if isinstance(part, Tensor) else part
            parts.append(self._read(self._call(whole), self.batch)[: len(part)])
        return torch.cat(parts)

    def prepared(self, x: Batch) -> Batch:
        """Return what the module is given for x: a copy of its own (it may write into it), in its dtype, normalised."""
        if isinstance(x, Tensor):
            x = x.to(self.dtype, copy=True)
            if self.mean is not None:
                x = x - self._shaped(self.mean, x)
            if self.std is not None:
                x = x / self._shaped(self.std, x)
        return x

    def _call(self, x: Batch) -> Any:
        if self.reset is not None:
            self.reset()
        self.sent[0] += len(x)
        grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        try:
            return self.module(x)
        finally:  # a forward may leave these as it likes them
            if torch.is_grad_enabled() != grad:
                torch.set_grad_enabled(grad)
            if torch.get_default_dtype() != dtype:
                torch.set_default_dtype(dtype)

    def _read(self, out: Any, rows: int) -> Tensor:
        """Return scores [rows, k]: one column becomes two, probabilities their logarithms; raises TargetError."""
        scores = pick(out, rows, self.output)
        if scores.is_inference():
            scores = scores.clone()
        if self.labels and scores.shape == (rows,) and not scores.is_floating_point():
            known = (scores >= 0) & (scores < self.labels)
            hot = torch.nn.functional.one_hot(torch.where(known, scores.long(), 0), self.labels)
            return torch.where(known.view(-1, 1), hot, 0).to(self.work_dtype)
        if (
            scores.dim() == 0
            or scores.shape[0] != rows
            or scores.dim() > 2
            or not scores.is_floating_point()
            or not scores.numel()
        ):
            raise TargetError(
                f"The target returns {scores.dtype} of shape {tuple(scores.shape)} for {rows} inputs; "
                f"expected floating-point scores of shape ({rows}, classes)."
            )
        if self.kind == "probabilities":
            scores = scores if scores.dtype == torch.float64 else scores.float()
            tiny = torch.finfo(scores.dtype).tiny
            if scores.dim() == 1 or scores.shape[1] == 1:
                scores = torch.stack([1 - scores.reshape(rows), scores.reshape(rows)], 1)
            return scores.clamp(min=tiny).log()
        if self.kind == "sigmoids":  # one probability per class: their log-odds
            p = (scores if scores.dtype == torch.float64 else scores.float()).clamp(min=1e-30)
            return p.log() - (1 - p).clamp(min=torch.finfo(p.dtype).eps / 4).log()
        if scores.dim() == 1 or scores.shape[1] == 1:  # the log-odds of class 1
            scores = scores.reshape(rows)
            return torch.stack([torch.zeros_like(scores), scores], 1)
        return scores

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the classes' scores [b, k] and whether the target answers at all, bool [b] (None: it always does)."""
        if self.reject is None:
            return scores, None
        if self.reject == "last":
            return scores[:, :-1], scores.argmax(1) != scores.shape[1] - 1
        return scores, scores.float().softmax(1).amax(1) >= float(self.reject)

    def _shaped(self, values: Tensor, x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[1]):
            raise InputError(f"mean and std have {len(values)} values but the inputs {x.shape[1]} channels.")
        return values.to(x.dtype).view(-1, *([1] * (x.dim() - 2)))


class Preparation(nn.Module):
    """What a target does to x [b, c, ...] before its module, as a layer without weights, which can be traced as one."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = [target]  # not a submodule

    def forward(self, x: Tensor) -> Any:
        """Return what the target's module is given for x."""
        return self._target[0].prepared(x)

    def spread(self, r: Tensor) -> Tensor:
        """Return how far what the module is given may move where x moves by r [b, c, ...]."""
        target = self._target[0]
        return r if target.std is None else r / target._shaped(target.std, r)


def filled(x: Tensor, size: int) -> Tensor:
    """Return x [b, ...] as a batch of `size` rows: itself, cut, or its rows repeated in turn."""
    return x if len(x) == size else x[torch.arange(size, device=x.device) % len(x)]


def reseed(number: int, device: torch.device) -> None:
    """Set the global random states of torch (CPU and `device`), NumPy and Python to those that `number` names."""
    torch.default_generator.manual_seed(number % 2**63)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number % 2**63)
    np.random.seed(number % 2**32)
    random.seed(number)


def pick(out: Any, rows: int, output: str | int | None = None) -> Tensor:
    """Return the tensor of scores in what a module returned: itself, or a part of a tuple, dict, object or dataclass.

    NumPy arrays and lists of numbers are read too; no gradient comes back through them. Parts are looked for by name
    (logits, scores, ...), then as the only floating-point part with `rows` rows and one or two axes. Raises TargetError
    when none or several would do, and names `output`.
    """
    out = _tensor(out)
    if isinstance(out, Tensor):
        return out
    parts = {name: _tensor(part) for name, part in _parts(out).items()}
    if output is not None:
        found = parts.get(str(output))
        if isinstance(found, Tensor):
            return found
        raise TargetError(f"The target returns a {type(out).__name__} without the part {output!r}.")
    for name in ("logits", "scores", "output", "outputs", "out", "pred", "predictions", "probs", "probabilities"):
        named = parts.get(name)
        if isinstance(named, Tensor):
            return named
    fit = {
        k: v
        for k, v in parts.items()
        if isinstance(v, Tensor) and v.is_floating_point() and v.dim() in (1, 2) and len(v) == rows
    }
    wide = {k: v for k, v in fit.items() if v.dim() == 2 and v.shape[1] > 1} or fit
    if len(wide) == 1 or (wide and isinstance(out, tuple | list)):  # (logits, auxiliary, ...): the first one
        return next(iter(wide.values()))
    what = f"a {type(out).__name__}" + (f" with the parts {', '.join(parts)}" if parts else "")
    raise TargetError(f"The target returns {what}, not a tensor of scores [n, classes]; name its part with output=.")


def _tensor(out: Any) -> Any:
    """Return an array or a list of numbers (of one or two axes) as a tensor, anything else as it is."""
    if isinstance(out, list) and out and all(isinstance(v, list | tuple | int | float | np.number) for v in out):
        try:
            out = np.asarray(out)
        except ValueError:
            raise TargetError("The target returns a list whose rows have different lengths.") from None
    return torch.from_numpy(np.array(out)) if isinstance(out, np.ndarray) and out.dtype.kind in "fiub" else out


def _parts(out: Any) -> dict[str, Any]:
    if isinstance(out, Mapping):
        return {str(k): v for k, v in out.items()}
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return dict(zip(out._fields, out, strict=True))
    if isinstance(out, tuple | list):
        return {str(i): v for i, v in enumerate(out)}
    names = [*getattr(out, "__dict__", {}), *getattr(type(out), "__slots__", ())]
    return {str(n): getattr(out, n, None) for n in names}


def as_target(target: "Target | Callable[..., Any]", access: Access | None = None) -> Target:
    """Return `target` itself, or a module or callable as a Target with bounds (0, 1)."""
    return (
        target if isinstance(target, Target) else Target(target, access=Access.GRADIENT if access is None else access)
    )


@contextlib.contextmanager
def flags_kept(module: nn.Module) -> Iterator[None]:
    """Put the training flag of every submodule back as it was."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, was in flags:
            m.training = was


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
