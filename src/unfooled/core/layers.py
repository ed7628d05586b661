"""What happens inside a target: the activations of its named modules, and copies of it whose weights are shuffled."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from .ask import Asker
from .target import Target

Side = Literal["output", "input"]


def layer_names(target: Target) -> list[str]:
    """Return the names of the target's modules, outermost first; [] for a callable."""
    return [name for name, _ in target.module.named_modules() if name] if isinstance(target.module, nn.Module) else []


def layer_of(target: Target, name: str) -> nn.Module:
    """Return the module of this name; raises InputError and names the nearest ones where there is none."""
    known = layer_names(target)
    if name not in known:
        near = nearest(name, known) or (f" It has {', '.join(known[:12])}." if known else " It is no torch module.")
        raise InputError(f"The target has no layer {name!r}.{near}")
    assert isinstance(target.module, nn.Module)
    return target.module.get_submodule(name)


class Watch:
    """The activations of one module while the target is asked; `taken` hands over those of the latest call."""

    def __init__(self, target: Target, name: str) -> None:
        self.target, self.name = target, name
        self.seen: list[Tensor] = []

    def note(self, out: Any) -> None:
        """Keep what went through the module: a tensor, or the first tensor of several."""
        parts = out if isinstance(out, tuple | list) else [out]
        found = next((part for part in parts if isinstance(part, Tensor) and part.is_floating_point()), None)
        if found is None:
            raise InputError(f"The layer {self.name!r} gives no tensor of numbers; name another one.")
        self.seen.append(found.clone())  # a module behind it may write into the original

    def taken(self, rows: int) -> Tensor:
        """Return the activations [rows, ...] of the latest `rows` inputs, of a random target the mean of its draws.

        Raises:
            InputError: the layer ran not at all, or several times in one forward pass.
        """
        seen, self.seen = self.seen, []
        size = self.target.batch or rows
        sent = math.ceil(rows / size) * size * self.target.draws
        if sum(map(len, seen)) != sent:
            times = "not at all" if not seen else "several times"
            raise InputError(
                f"The layer {self.name!r} runs {times} in one forward pass; name one that runs once for every input."
            )
        got = torch.cat(seen)
        return got.view(self.target.draws, -1, *got.shape[1:]).mean(0)[:rows]


@contextmanager
def watched(target: Target, name: str, side: Side = "output") -> Iterator[Watch]:
    """Within the block, keep what the named module gives or is given; its hook is gone afterwards."""
    watch = Watch(target, name)
    module = layer_of(target, name)
    hook = (
        module.register_forward_hook(lambda _, args, out: watch.note(out))
        if side == "output"
        else module.register_forward_pre_hook(lambda _, args: watch.note(args))
    )
    try:
        yield watch
    finally:
        hook.remove()


def activations(asker: Asker, x: Tensor, name: str, side: Side = "output") -> Tensor:
    """Return what the named module gives, or is given, for the inputs x [n, ...]: [n, ...]."""
    with watched(asker.target, name, side) as watch:
        return torch.cat([_after(asker, watch, part) for part in asker.split(x)])


def _after(asker: Asker, watch: Watch, x: Tensor) -> Tensor:
    asker.scores(x)
    return watch.taken(len(x)).to(x.device)


def penultimate(asker: Asker, x: Tensor) -> str | None:
    """Return the last module whose output is the scores of x [n, ...] and whose input is not: the target's head.

    What the head is given are the features that it reads. None where no module's output is the scores, as in networks
    that are written as functions.
    """
    if not isinstance(asker.target.module, nn.Module):
        return None
    ran: list[tuple[str, Tensor]] = []
    leaves = [(n, m) for n, m in asker.target.module.named_modules() if n and _own(m)]
    hooks = [m.register_forward_hook(lambda _, args, out, name=n: ran.append((name, out))) for n, m in leaves]
    try:
        scores = asker.scores(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    for name, out in reversed(ran):
        if isinstance(out, Tensor) and out.numel() and out[:1].numel() == scores.shape[1]:
            return name
    return None


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a module without its children's: parameters of two axes or more, and buffers like them.

    Frozen networks keep their weights as buffers; a mean or deviation per channel is none, whatever its shape.
    """
    held: dict[str, Tensor] = {name: t for name, t in module.named_parameters(recurse=False) if t.dim() > 1}
    held |= {name: t for name, t in module.named_buffers(recurse=False) if sum(size > 1 for size in t.shape) > 1}
    return {name: t for name, t in held.items() if t.is_floating_point()}


def weighted(target: Target) -> list[str]:
    """Return the names of the modules that hold weights of their own, in the order in which they were registered."""
    module = target.module
    return [n for n, m in module.named_modules() if _own(m)] if isinstance(module, nn.Module) else []


def copied(target: Target) -> Target:
    """Return a target with a module of its own, the same weights and in eval mode."""
    twin = copy.copy(target)
    twin.module = copy.deepcopy(target.module)
    twin.sent = [0]
    if isinstance(twin.module, nn.Module):
        twin.module.eval()
    return twin


def shuffled(target: Target, names: Sequence[str], seed: int) -> Target:
    """Return a copy in which the weights of the named modules are shuffled within each tensor.

    An untrained network of the same shape, whose weights have the same sizes. A layer's shuffle depends on its name
    and the seed alone.
    """
    twin = copied(target)
    assert isinstance(twin.module, nn.Module)
    known = weighted(target)
    with torch.no_grad():
        for name in names:
            for part, t in _own(twin.module.get_submodule(name)).items():
                g = torch.Generator().manual_seed(seed * 100_003 + 97 * known.index(name) + len(part))
                order = torch.randperm(t.numel(), generator=g).to(t.device)
                t.copy_(t.reshape(-1)[order].view_as(t))
    return twin
