"""Rows: take and put over nested state whose first axis is the example; None and settings pass through untouched."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = Tensor | list[Any]
"""Inputs of `b` examples: a tensor [b, ...], or a list of `b` Python objects (text)."""


def take(state: Any, index: Sequence[int] | np.ndarray) -> Any:
    """Return the rows `index` [m] of `state`: tensors, arrays, lists, tuples, dicts and dataclasses of rows."""
    match state:
        case Tensor():
            return state[torch.as_tensor(index, device=state.device)]
        case np.ndarray():
            return state[np.asarray(index, dtype=np.int64)]
        case list():
            return [state[int(i)] for i in index]
        case tuple():
            return tuple(take(part, index) for part in state)
        case dict():
            return {key: take(part, index) for key, part in state.items()}
        case _ if dataclasses.is_dataclass(state) and not isinstance(state, type):
            parts = {f.name: take(getattr(state, f.name), index) for f in dataclasses.fields(state)}
            return dataclasses.replace(state, **parts)
    return state


def put(state: Any, index: Sequence[int] | np.ndarray, rows: Any) -> Any:
    """Return `state` with its rows `index` [m] replaced by `rows` (same nesting); nothing changes in place."""
    match state:
        case Tensor():
            return state.index_copy(0, torch.as_tensor(index, device=state.device), rows.to(state.dtype))
        case np.ndarray() | list():
            new = state.copy()
            assign(new, index, rows)
            return new
        case tuple():
            return tuple(put(part, index, new) for part, new in zip(state, rows, strict=True))
        case dict():
            return {key: put(part, index, rows[key]) for key, part in state.items()}
        case _ if dataclasses.is_dataclass(state) and not isinstance(state, type):
            parts = {
                f.name: put(getattr(state, f.name), index, getattr(rows, f.name)) for f in dataclasses.fields(state)
            }
            return dataclasses.replace(state, **parts)
    return state


def assign(rows: Any, index: Sequence[int] | np.ndarray, new: Any) -> None:
    """Write `new` into the rows `index` [m] of a tensor, array or list, in place."""
    match rows:
        case Tensor():
            rows[torch.as_tensor(index, device=rows.device)] = new.to(rows.device, rows.dtype)
        case np.ndarray():
            rows[np.asarray(index, dtype=np.int64)] = new
        case _:
            for i, row in zip(index, new, strict=True):
                rows[int(i)] = row


def where(mask: Tensor, new: Any, old: Any) -> Any:
    """Choose per row: `new` where `mask` [b] holds, else `old` (nested as in `take`)."""
    match new:
        case Tensor():
            return torch.where(column(mask, new), new, old)
        case list():
            return [a if m else b for m, a, b in zip(mask.tolist(), new, old, strict=True)]
        case tuple():
            return tuple(where(mask, a, b) for a, b in zip(new, old, strict=True))
        case dict():
            return {key: where(mask, part, old[key]) for key, part in new.items()}
        case np.ndarray():
            rows = mask.cpu().numpy().reshape(-1, *([1] * (new.ndim - 1)))
            return np.where(rows, new, old)
        case _ if dataclasses.is_dataclass(new) and not isinstance(new, type):
            parts = {f.name: where(mask, getattr(new, f.name), getattr(old, f.name)) for f in dataclasses.fields(new)}
            return dataclasses.replace(new, **parts)
    return new


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `values` [b] to [b, 1, ...] so that it broadcasts against `like` [b, ...]."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return x on a device; a CUDA device's work is not waited for, as a plain copy from the host would."""
    return x.to(device, non_blocking=device.type == "cuda" and x.device.type == "cpu")
