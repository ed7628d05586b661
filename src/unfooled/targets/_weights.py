"""Weight files are untrusted: only tensors are read from them, every key and shape must fit, every value be finite."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfooled.errors import InputError, nearest

SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, on the CPU; nothing in the file is run.

    Takes .safetensors, and .pth, .pt, .th that hold a dict of tensors, bare or under 'state_dict'; a prefix `module.`
    that all names share is dropped. Raises InputError when there is no such file, it is damaged, holds anything but
    tensors, or a value is NaN or infinite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise InputError(f"There is no weight file at {str(path)!r}.{near}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path.name} has none of the endings {', '.join(SUFFIXES)}; save the weights as .safetensors."
        )
    state: Any
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the loaders raise a dozen types
        kind = type(error).__name__
        raise InputError(
            f"{path.name} is damaged or holds more than tensors ({kind}), and nothing in it was run: "
            "save model.state_dict() with safetensors.torch.save_file."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path.name} holds no dict of tensors by name; save model.state_dict().")
    for prefix in _PREFIXES:
        if all(str(k).startswith(prefix) for k in state):
            state = {str(k).removeprefix(prefix): v for k, v in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(f"{path.name}: {key!r} holds {bad} values that are NaN or infinite; the file is damaged.")
    return {str(k): v for k, v in state.items()}


def fit_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load every tensor of `state` into the module; raises InputError that lists what does not fit, loading nothing."""
    own = module.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)} there and {tuple(own[k].shape)} here"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for keys, what in ((missing, "missing"), (extra, "unknown to the module"), (shapes, "of another shape"))
        if keys
    ]
    if faults:
        raise InputError(f"{where} does not fit the module: {'; '.join(faults)}.")
    module.load_state_dict(state, strict=True)
