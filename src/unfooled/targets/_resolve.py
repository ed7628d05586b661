"""From what users write to a `Target`; weight files are untrusted, Python code that the user names is trusted."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfooled.core.data import read_classes
from unfooled.core.target import Target
from unfooled.errors import InputError, MissingExtra, nearest
from unfooled.targets._http import http
from unfooled.targets._onnx import onnx
from unfooled.targets._sklearn import is_estimator, sklearn
from unfooled.targets._weights import SUFFIXES, fit_weights, load_weights
from unfooled.targets.zoo import ZOO

HTTP_KEY = "UNFOOLED_HTTP_KEY"
"""The environment variable that holds the key of an endpoint which is named by its address alone."""


class Resized(nn.Module):
    """A module that is shown its images at another size; the attack changes the images as they were loaded."""

    def __init__(self, module: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x: Tensor) -> Any:
        """Return the module's answer to x [b, c, h, w] resized (bilinear, antialiased)."""
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.module(x)


def resolve(
    spec: str | os.PathLike[str] | nn.Module | Target | Callable[..., Any],
    *,
    weights: str | os.PathLike[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    resize: int | tuple[int, int] | None = None,
    allow_hub: bool | None = None,
) -> Target:
    """Return the target that `spec` names, in eval mode.

    Args:
        spec: a name of the zoo; `path/to/file.py:name`, where `name` is a function that returns a module, a fitted
            scikit-learn classifier or a `Target`, or is one of these; an ONNX file; the address of an HTTP endpoint;
            a timm name, also written `timm:name`; a module, callable or classifier; or a `Target`, which passes through
            when nothing else is given.
        weights: a file of weights: .safetensors, or .pth, .pt, .th with tensors alone. Every key and shape must fit.
        mean, std: per-channel normalisation before the module, for inputs in [0, 1]; a timm name brings its own.
        classes: one name per class, or a file of them (one per line, or JSON).
        device: where to put it; "auto" is CUDA where there is one; None leaves it where it is.
        resize: show the module images of this size (an int: square); the attack still changes the images as given.
        allow_hub: let timm download pretrained weights; default the variable UNFOOLED_ALLOW_HUB (1 allows).

    Raises:
        InputError: nothing by that name, no such file or function, weights that do not fit or are not finite.
        MissingExtra: a timm name is given and timm is not installed.
    """
    names = read_classes(os.fspath(classes)) if isinstance(classes, (str, os.PathLike)) else classes
    known: dict[str, Any] = {}
    module: Any
    if isinstance(spec, (str, os.PathLike)):
        text = os.fspath(spec)
        spec, known = _by_string(text, own_weights=weights is not None, allow_hub=allow_hub)
    if is_estimator(spec):
        spec = sklearn(spec)
    if isinstance(spec, Target):
        if (weights, mean, std, names, resize) == (None,) * 5:
            return _moved(spec, device)
        module = spec.module
        mean, std = _numbers(spec.mean) if mean is None else mean, _numbers(spec.std) if std is None else std
        names, name, bounds = names if names is not None else spec.classes, spec.name, spec.bounds
    elif known:
        module, bounds = spec, (0.0, 1.0)
        mean = known.get("mean") if mean is None else mean
        std = known.get("std") if std is None else std
        names = known.get("classes") if names is None else names
        name = text if text in ZOO else known.get("name", text)
    else:
        module, name, bounds = spec, "", (0.0, 1.0)
    if weights is not None:
        if not isinstance(module, nn.Module):
            raise InputError(f"Weights need a torch module to go into, not a {type(module).__name__}.")
        fit_weights(module, load_weights(weights), Path(weights).name)
    if resize is not None:
        if not isinstance(module, nn.Module):
            raise InputError(f"resize needs a torch module, not a {type(module).__name__}.")
        name = name or type(module).__name__
        module = Resized(module, (resize, resize) if isinstance(resize, int) else resize)
    if isinstance(module, nn.Module):
        module.to(_device(device)).eval() if device is not None else module.eval()
    made = Target(module, bounds=bounds, mean=mean, std=std, name=name, classes=names)
    return _as(made, spec) if isinstance(spec, Target) else made


def _as(made: Target, given: Target) -> Target:
    """Return the target `made`, read and asked as `given` is."""
    for own in ("access", "reject", "output", "kind", "labels", "batch", "draws", "rounding", "note"):
        setattr(made, own, getattr(given, own))
    return made


def _numbers(values: Tensor | None) -> list[float] | None:
    return None if values is None else [float(v) for v in values]


def _moved(target: Target, device: torch.device | str | None) -> Target:
    if device is None or not isinstance(target.module, nn.Module) or _device(device) == target.device:
        return target
    moved = Target(
        target.module.to(_device(device)),
        bounds=target.bounds,
        mean=_numbers(target.mean),
        std=_numbers(target.std),
        name=target.name,
        classes=target.classes,
    )
    return _as(moved, target)


def _device(device: torch.device | str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"There is no device {str(device)!r} here: use auto, cpu or cuda.") from None
    return wanted


def _by_string(text: str, *, own_weights: bool, allow_hub: bool | None) -> tuple[Any, dict[str, Any]]:
    if text in ZOO:
        return ZOO[text].build(trained=not own_weights), {"classes": ZOO[text].classes}
    if text.startswith(("http://", "https://")):
        return http(text, key_env=HTTP_KEY if os.environ.get(HTTP_KEY) else None), {}
    if text.endswith(".onnx"):
        return onnx(text), {}
    if text.startswith("timm:"):
        return _from_timm(text.removeprefix("timm:"), own_weights=own_weights, allow_hub=allow_hub)
    path, colon, attribute = text.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path).expanduser(), attribute), {"name": attribute}
    if text.endswith(".py"):
        raise InputError(f"Name the function that returns the module after a colon: {text}:NAME.")
    if text.endswith(SUFFIXES):
        raise InputError(
            f"{text!r} holds weights, which need a module: give a target's name or FILE.py:NAME, and --weights {text}."
        )
    if importlib.util.find_spec("timm") is None:
        raise InputError(
            f"Unknown target {text!r}: use {', '.join(ZOO)}, FILE.py:NAME, "
            f"or a timm name after pip install 'unfooled[vision]'.{nearest(text, ZOO)}"
        )
    return _from_timm(text, own_weights=own_weights, allow_hub=allow_hub)


def _from_file(path: Path, attribute: str) -> Any:
    """Run the user's own file and return the module that its `attribute` makes or is."""
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else [])
        raise InputError(f"There is no Python file at {str(path)!r}.{near}")
    spec = importlib.util.spec_from_file_location(f"unfooled_target_{path.stem}", path.resolve())
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[spec.name] = code  # dataclasses and pickling inside the file look it up
    sys.path.append(folder)  # last, so that the file's neighbours cannot take the place of a library
    try:
        spec.loader.exec_module(code)
        if not hasattr(code, attribute):
            known = [n for n, v in vars(code).items() if callable(v) and not n.startswith("_")]
            raise InputError(f"{path.name} has no {attribute!r}.{nearest(attribute, known)}")
        made = getattr(code, attribute)
        if not isinstance(made, (nn.Module, Target)):
            made = made() if callable(made) else made
    except InputError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path.name}:{attribute} raised {type(error).__name__}: {said.rstrip('.')}.") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(made, (nn.Module, Target)) and not is_estimator(made) and not callable(made):
        raise InputError(f"{path.name}:{attribute} gives a {type(made).__name__}, not a torch module.")
    return made


def _from_timm(name: str, *, own_weights: bool, allow_hub: bool | None) -> tuple[nn.Module, dict[str, Any]]:
    try:
        import timm
    except ImportError:
        raise MissingExtra(f"The target {name!r} needs timm: pip install 'unfooled[vision]'.") from None
    if not timm.is_model(name):
        known = [*ZOO, *timm.list_models()]
        raise InputError(f"Unknown target {name!r}: neither the zoo nor timm has it.{nearest(name, known)}")
    if allow_hub is None:
        allow_hub = os.environ.get("UNFOOLED_ALLOW_HUB", "").lower() in ("1", "true", "yes")
    if not own_weights and not allow_hub:
        raise InputError(
            f"{name} needs weights: give a file (--weights), or let timm download them (UNFOOLED_ALLOW_HUB=1)."
        )
    try:
        module = timm.create_model(name, pretrained=not own_weights)
    except Exception as error:  # offline, refused, no pretrained weights: timm and the hub raise many types
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"timm could not make {name}: {said.rstrip('. ')}.") from None
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    return module, {"mean": config.get("mean"), "std": config.get("std"), "name": name}
