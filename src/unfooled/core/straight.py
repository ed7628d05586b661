"""Straight-through gradients: what a target computes, with everything undone that keeps its gradient from the attacker.

Backward Pass Differentiable Approximation (Athalye, Carlini, Wagner 2018, arXiv 1802.00420, section 4.1), found by
hooks instead of by hand. While the target's own forward runs, every torch call passes `_Unmask`: rounding and casts
pass gradients on, `detach`, `no_grad`, hooks and custom backwards have no say, tensors that lost their history (NumPy,
integers) get it back from the last one that they copy. Values never change, so the answer is still the target's.
On the way each [b, k] tensor whose best class is the target's answer is kept: logits under a hard label, a softmax
that saturates or a plateau are climbed instead of what hides them.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .target import Target, filled


def _both(*names: str) -> frozenset[str]:
    """The functions of these names and their in-place versions."""
    return frozenset(name + end for name in names for end in ("", "_"))


_ROUNDING = _both("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "frac", "bucketize") | {
    "fake_quantize_per_tensor_affine", "quantize_per_tensor", "dequantize",
    "_make_subclass", "from_numpy", "tensor", "as_tensor", "asarray",
}  # fmt: skip
_LIMITS = _both("clamp", "clip", "clamp_min", "clamp_max", "hardtanh")
_CASTS = frozenset({"float", "to", "type", "half", "double", "bfloat16"})
_CUT = frozenset({"detach", "detach_", "stop_gradient"})
_ALIKE = 0.9  # correlation from which a tensor counts as a copy of another one


@dataclass(frozen=True)
class Variant:
    """What is undone: `cuts` (detach is the identity) and `near` (what is nearly x is taken for x)."""

    cuts: bool
    near: bool


VARIANTS = (Variant(cuts=True, near=False), Variant(cuts=False, near=True), Variant(cuts=True, near=True),
    Variant(cuts=False, near=False))  # fmt: skip


class _Through(torch.autograd.Function):
    """The value of one tensor, the gradient of another one times a slope."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, slope: float) -> Tensor:
        ctx.shape, ctx.slope, ctx.dtype = source.shape, slope, source.dtype
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad * ctx.slope).reshape(ctx.shape).to(ctx.dtype), None, None


def _through(source: Tensor, value: Tensor, slope: float) -> Tensor:
    out: Tensor = _Through.apply(source, value, slope)  # type: ignore[no-untyped-call]
    return out


class _Unmask(TorchFunctionMode):
    """Lets gradients through while a forward runs on `x` [b, ...], and keeps what may be logits."""

    def __init__(self, x: Tensor, variant: Variant) -> None:
        super().__init__()
        self.x, self.variant = x, variant
        self.rows, self.numel = len(x), x.numel()
        self.last: Tensor = x  # the latest connected tensor with as many values as x
        self.seen: list[Tensor] = []
        self.undone: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name == "_set_grad_enabled":
            return None
        if name == "register_hook":
            self.undone.add(name)
        if name in ("register_hook", "retain_grad", "requires_grad_") and args and isinstance(args[0], Tensor):
            if name == "requires_grad_" and not args[0].requires_grad:
                return func(*args, **kwargs)
            return args[0] if name == "requires_grad_" else None
        if name in ("numpy", "tolist", "__array__", "item") and args and args[0].requires_grad:
            return func(torch._C.TensorBase.detach(args[0]), *args[1:], **kwargs)  # these would refuse it as it is
        if self.variant.cuts:
            if name in _CUT and args[0].requires_grad:
                self.undone.add(name)
                return args[0]
            owner = getattr(func, "__self__", None)  # Tensor.data reads as a detached view
            if name == "__get__" and owner is Tensor.data and args[0].requires_grad:
                return args[0]
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if name != "__get__":
            args = [self._joined(a) for a in args]
        out = func(*args, **kwargs)
        if name in ("grad", "backward") or not isinstance(out, Tensor):
            return out
        if not out.is_floating_point():
            return out
        if source is not None and source.requires_grad and source.shape == out.shape:
            if name in _ROUNDING:
                self.undone.add(name)
            if name in _ROUNDING or name in _LIMITS or (name in _CASTS and not out.requires_grad):
                out = _through(source, out, 1.0)
        return self.note(self._joined(out, fresh=True))

    def note(self, out: Tensor) -> Tensor:
        """Keep what may be logits or a copy of x; return it, as x itself where it is nearly that."""
        if not out.requires_grad or out.dim() == 0 or not out.is_floating_point():
            return out
        if out.numel() == self.numel and out.shape == self.x.shape:
            if self.variant.near and out is not self.x and (slope := _slope(self.x, out)):
                out = _through(self.x, out, slope)
            self.last = out
        if out.dim() == 2 and len(out) == self.rows and 2 <= out.shape[1]:
            self.seen.append(out)
        return out

    def _joined(self, value: Any, *, fresh: bool = False) -> Any:
        """Give a tensor without history, a copy of the last connected one, that one's history back."""
        if (
            not isinstance(value, Tensor)
            or value.numel() != self.numel
            or value.requires_grad
            or not value.is_floating_point()
            or not len(value)
            or value is self.x
        ):
            return value
        if value.dim() == 0 or value.shape[0] != self.rows or (fresh and value.shape != self.x.shape):
            return value
        slope = _slope(self.last.reshape(-1), value.reshape(-1))
        if slope:
            self.undone.add("lost history")
        return _through(self.last.reshape(value.shape), value, slope) if slope else value


def _slope(a: Tensor, b: Tensor) -> float:
    """Return the slope of b on a where b is nearly a linear function of a, else 0."""
    a, b = a.detach().reshape(-1).double(), b.detach().reshape(-1).double()
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    if not spread or spread != spread:
        return 0.0
    together = float(a @ b)
    return together / float(a @ a) if together / spread > _ALIKE else 0.0


class _Free:
    """A stand-in for the context of a custom autograd function, whose forward is then traced like any other code."""

    needs_input_grad = (True,) * 16

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a custom autograd function under autograd, instead of its own backward."""
    if cls is _Through:
        return _ORIGINAL(cls, *args, **kwargs)
    try:
        plain = cls.setup_context is not torch.autograd.function._SingleLevelFunction.setup_context
        return cls.forward(*args, **kwargs) if plain else cls.forward(_Free(), *args, **kwargs)
    except Exception:
        return _ORIGINAL(cls, *args, **kwargs)


_ORIGINAL: Any = torch.autograd.Function.__dict__["apply"].__func__


@contextlib.contextmanager
def _unhooked(module: Any) -> Iterator[None]:
    """Within the block inference mode does nothing, custom backwards and backward hooks are out of the way."""
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    names = ("_backward_hooks", "_backward_pre_hooks")
    kept = [(m, n, m.__dict__[n]) for m in modules for n in names if m.__dict__.get(n)]
    enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    no_enter, no_leave = torch.no_grad.__enter__, torch.no_grad.__exit__

    def nothing(*args: Any) -> None:
        return None

    try:
        for m, n, _ in kept:
            m.__dict__[n] = OrderedDict()
        torch.inference_mode.__enter__ = nothing  # type: ignore[method-assign]
        torch.inference_mode.__exit__ = nothing  # type: ignore[method-assign]
        torch.no_grad.__enter__ = nothing  # type: ignore[method-assign]
        torch.no_grad.__exit__ = nothing  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(_apply)  # type: ignore[assignment]
        yield
    finally:
        torch.autograd.Function.apply = classmethod(_ORIGINAL)  # type: ignore[assignment]
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
        torch.no_grad.__enter__, torch.no_grad.__exit__ = no_enter, no_leave  # type: ignore[method-assign]
        for m, n, hooks in kept:
            m.__dict__[n] = hooks


@dataclass
class Trace:
    """One unmasked forward: the target's scores [b, k] and every tensor on the way that may be its logits."""

    scores: Tensor
    seen: list[Tensor]
    undone: set[str]


def trace(target: Target, x: Tensor, variant: Variant) -> Trace:
    """Run the target on x [b, ...], which requires gradients, with everything undone that hides them."""
    mode = _Unmask(x, variant)

    def leaving(module: nn.Module, args: Any, out: Any) -> Any:
        return mode.note(out) if isinstance(out, Tensor) else None

    hook = torch.nn.modules.module.register_module_forward_hook(leaving)
    try:
        with torch.enable_grad(), _unhooked(target.module), mode:
            scores = target.scores(x)
    finally:
        hook.remove()
    return Trace(scores, mode.seen, mode.undone)


@dataclass(frozen=True)
class Straight:
    """Where to find the gradient of one target: the variant, and the place of its logits among the tensors seen.

    `place` None: the scores themselves. `share` is the part of the probes on which a step along it helped.
    """

    variant: Variant
    place: int | None
    share: float

    def logits(self, target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target's scores [b, k] and what to climb [b, k'] at x [b, ...], which requires gradients."""
        size = target.batch or len(x)
        parts = [self._piece(target, x[at : at + size], size) for at in range(0, len(x), size)]
        return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])

    def _piece(self, target: Target, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        t = trace(target, filled(x, size), self.variant)
        climbed = t.scores if self.place is None or self.place >= len(t.seen) else t.seen[self.place]
        return t.scores[: len(x)], climbed[: len(x)]


def find(
    target: Target,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    margin: Callable[[Tensor, Tensor], Tensor],
) -> Straight | None:
    """Return where a gradient of the target can be had by which steps get nearer to another class, or None.

    x [b, ...] clean inputs with the target's answers y [b], `points` [b, ...] near them; `step(points, grad)` moves
    along a gradient, `margin(scores, y)` [b] is positive where fooled. Every tensor whose best class is the target's
    answer on most inputs is tried; a step must raise its margin and be no noise.
    """
    best: Straight | None = None
    for variant in VARIANTS:
        with contextlib.suppress(RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            for found in _candidates(target, x, y, points, step, margin, variant):
                if best is None or found.share > best.share + 0.05:
                    best = found
        if best is not None and best.share > 0.95:
            break
    return best if best is not None and best.share >= 0.5 else None


def _candidates(
    target: Target,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    margin: Callable[[Tensor, Tensor], Tensor],
    variant: Variant,
) -> Iterator[Straight]:
    leaf = torch.cat([x, points]).detach().requires_grad_(True)
    t = trace(target, leaf, variant)
    labels = target.split(t.scores.detach())[0].argmax(1)
    for place, z in [*enumerate(t.seen), (None, t.scores)]:
        if z.shape[1] < 2 or z.shape[1] <= int(labels.max()) or not z.requires_grad:
            continue
        flat = z.detach()
        if not flat.isfinite().all() or bool((flat.amax(1) == flat.amin(1)).any()):
            continue
        if float((flat.argmax(1) == labels).float().mean()) < 0.9:
            continue
        value = margin(z[len(x) :], y)
        grad = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)[0]
        if grad is None:
            continue
        grad = grad[len(x) :].nan_to_num(0.0, 0.0, 0.0)
        moved = step(points, grad).detach()
        after = Straight(variant, place, 0.0).logits(target, torch.cat([x, moved]).requires_grad_(True))[1]
        gain = margin(after[len(x) :].detach(), y) - value.detach()
        share = float((gain > 1e-6 * value.detach().abs().clamp(min=1e-30)).float().mean())
        yield Straight(variant, place, share)
