"""Defences by name: what a target may wear before it looks, written as attacks are written, such as "median(3)"."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unfooled.core.attack import read_call
from unfooled.core.target import Target, as_target, pick
from unfooled.errors import InputError, nearest

from . import wrappers


@dataclass(frozen=True)
class Defence:
    """A row of the table of defences: how it is made around a module, where it is from, and whether it may refuse.

    One that `reads` takes the module's answer up; the others pass it on as it is.
    """

    name: str
    make: Callable[..., nn.Module]
    paper: str
    doc: str
    refuses: bool = False
    reads: bool = False

    @property
    def settings(self) -> dict[str, float]:
        """The settings by name, with their defaults."""
        known = list(inspect.signature(self.make).parameters.values())[1:]
        return {p.name: p.default for p in known}

    def around(self, module: Any, given: dict[str, float]) -> nn.Module:
        """Return the module behind this defence; raises InputError for settings that make no sense."""
        return self.make(module, **given)


DEFENCES: dict[str, Defence] = {
    each.name: each
    for each in (
        Defence("blur", wrappers.Blurred, "Li and Li 2017, arXiv:1612.07767 (a mean filter)",
            "A Gaussian blur of so many pixels."),
        Defence("median", wrappers.Median, "Xu, Evans, Qi 2018, Feature squeezing, arXiv:1704.01155",
            "The median of each pixel's square of this side."),
        Defence("bits", wrappers.Quantised, "Xu, Evans, Qi 2018, Feature squeezing, arXiv:1704.01155",
            "Pixels rounded to so many bits."),
        Defence("jpeg", wrappers.Jpeg, "Guo, Rana, Cisse, van der Maaten 2018, arXiv:1711.00117",
            "Images written as JPEG of this quality, and read again."),
        Defence("resize", wrappers.RandomResized, "Xie et al. 2018, arXiv:1711.01991",
            "A random smaller size at a random place, drawn anew for every batch."),
        Defence("smooth", wrappers.Noisy, "Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918",
            "The mean answer to so many copies with Gaussian noise; its certificate is `uf.certify.smoothed`.",
            reads=True),
        Defence("sigmoids", wrappers.Sigmoids, "Goodfellow, Shlens, Szegedy 2014, arXiv:1412.6572",
            "Every score stands for its own class alone; where none passes the threshold it refuses.", refuses=True,
            reads=True),
    )
}  # fmt: skip


class _Prepared(nn.Module):
    """A module that takes images in [0, 1]: they are brought to its target's bounds and normalised as it wants."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.module: Any = target.module
        self.bounds = target.bounds
        self.register_buffer("mean", target.mean)
        self.register_buffer("std", target.std)

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x [b, ...]."""
        lo, hi = self.bounds
        x = x if self.bounds == (0.0, 1.0) else lo + (hi - lo) * x
        x = x if self.mean is None else x - _shaped(self.mean, x)
        return self.module(x if self.std is None else x / _shaped(self.std, x))


class _Read(_Prepared):
    """The same, answering with scores however its target keeps them; a single score stays one."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._target = [target]  # not a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of x [b, ...]."""
        target, out = self._target[0], super().forward(x)
        if target.kind == "scores" and not target.labels:
            return pick(out, len(x), target.output)
        return target._read(out, len(x))


class _Scaled(nn.Module):
    """A module of images in [0, 1] that is shown images within other bounds."""

    def __init__(self, module: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.module, self.bounds = module, bounds

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x [b, ...]."""
        lo, hi = self.bounds
        return self.module((x - lo) / (hi - lo))


def wear(target: Target | Callable[..., Any], *defences: str) -> Target:
    """Return the target behind defences, the first of which sees the image first.

    A defence sees images in [0, 1], as they were loaded; what the target does with them (its bounds, its normalisation)
    comes after all of them. Bounds, classes and what else is known of the target stay. The weights are shared.

    Args:
        target: a `Target`, module or callable; it is left as it is.
        defences: calls such as "median(3)", "blur(sigma=0.5)", "bits(4)"; `DEFENCES` has all of them.

    Raises:
        InputError: no such defence, settings that make no sense, a second one that may refuse, heads of independent
            classes on probabilities.
    """
    target = as_target(target)
    if not defences:
        return target
    if not all(isinstance(text, str) for text in defences):
        raise InputError('Defences are texts, one an argument: wear(target, "blur(1)", "bits(4)").')
    calls = [read(text) for text in defences]
    refusing = [defence.name for defence, _ in calls if defence.refuses]
    if refusing and (target.reject is not None or len(refusing) > 1):
        raise InputError(f"{target.name} may abstain already; leave out {refusing[-1]} or --reject.")
    names, reads = [defence.name for defence, _ in calls], any(defence.reads for defence, _ in calls)
    averaged = "sigmoids" in names and "smooth" in names[names.index("sigmoids") :]
    if "sigmoids" in names and (averaged or target.kind == "probabilities"):
        whose = "smooth(...) after it" if averaged else target.name
        raise InputError(
            f"sigmoids takes each class's own log-odds, which are not in the probabilities that {whose} returns; "
            f"{'write smooth before sigmoids' if averaged else 'give the target without its softmax'}."
        )
    module: nn.Module = _Read(target) if reads else _Prepared(target)
    for defence, given in reversed(calls):
        module = defence.around(module, given)
    worn = copy.copy(target)
    if target.bounds != (0.0, 1.0):
        module = _Scaled(module, target.bounds)
    worn.module = module
    worn.mean = worn.std = None
    if reads:
        worn.kind, worn.labels, worn.output = "scores", 0, None
    worn.name = f"{target.name} behind {', '.join(told(*call) for call in calls)}"
    if refusing:
        worn.reject = "last"
    return worn


def read(text: str) -> tuple[Defence, dict[str, float]]:
    """Return the defence that a call such as "median(3)" names and all its settings; raises InputError."""
    name, args, kwargs = read_call(text, "defence", "median(3)")
    if name not in DEFENCES:
        raise InputError(f"There is no defence {name!r}: use {', '.join(DEFENCES)}.{nearest(name, DEFENCES)}")
    defence = DEFENCES[name]
    usual = defence.settings
    try:
        given = inspect.Signature(
            [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=v) for n, v in usual.items()]
        ).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{text!r}: {error}; {name} takes {', '.join(usual)}.") from None
    for setting, value in given.arguments.items():
        whole = isinstance(usual[setting], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InputError(f"{text!r}: {setting} is a {'whole ' if whole else ''}number, not {value!r}.")
    settings = usual | given.arguments
    defence.around(nn.Identity(), settings)  # refuses what makes no sense
    return defence, settings


def told(defence: Defence, given: dict[str, float]) -> str:
    """Return the call that names the defence and all its settings: "median(3)"."""
    return f"{defence.name}({', '.join(f'{value:g}' for value in given.values())})"


def bare(module: nn.Module) -> nn.Module:
    """Return the module that is left when all that `wear` put around it is taken off."""
    worn = (each.module for each in module.modules() if isinstance(each, _Prepared))
    inner = next(worn, module)
    return bare(inner) if inner is not module else module


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *([1] * (x.dim() - 2)))
