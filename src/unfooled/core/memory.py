"""What a target remembers: the Python state that its calls may change, taken once and put back before any call."""

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, float, bool, str, bytes, type(None), complex, tuple, frozenset)
_DEPTH = 6


class Snapshot:
    """The state reachable from a target: containers, attributes, closures, buffers and parameters as they are now.

    Random generators are left out: their state is luck, not memory. What lives in module globals, files or other
    processes cannot be seen from here.
    """

    def __init__(self, root: Callable[..., Any]) -> None:
        self._undo: list[Callable[[], None]] = []
        self._known: set[int] = set()
        self._keep: list[Any] = []  # ids stay unique while their objects live
        self._visit(root, 0)

    def restore(self) -> None:
        """Put everything back; tensors are written only where they changed."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _visit(self, thing: Any, depth: int) -> None:
        if depth > _DEPTH or id(thing) in self._known or isinstance(thing, type | types.ModuleType):
            return
        if isinstance(thing, _PLAIN) and not isinstance(thing, tuple):
            return
        if isinstance(thing, torch.Generator | np.random.Generator | np.random.RandomState):
            return
        self._known.add(id(thing))
        self._keep.append(thing)
        match thing:
            case Tensor():
                self._tensor(thing)
            case np.ndarray():
                old = thing.copy()
                self._undo.append(lambda: np.copyto(thing, old))
            case dict():
                self._dict(thing, depth)
            case list() | deque():
                items = list(thing)
                self._undo.append(lambda: self._refill(thing, items))
                self._all(items, depth)
            case set():
                held = set(thing)
                self._undo.append(lambda: self._again(thing, held))
            case tuple():
                self._all(thing, depth)
            case types.FunctionType():
                for cell in thing.__closure__ or ():
                    self._cell(cell, depth)
                self._all((thing.__defaults__ or ()), depth)
                self._dict(thing.__dict__, depth)
            case types.MethodType():
                self._visit(thing.__self__, depth)
            case _ if hasattr(thing, "__dict__"):
                for kind in type(thing).__mro__:  # methods of classes made within functions have closures too
                    if "<locals>" in kind.__qualname__:
                        self._all(vars(kind).values(), depth)
                self._dict(thing.__dict__, depth if isinstance(thing, nn.Module) else depth + 1)

    def _all(self, things: Any, depth: int) -> None:
        for thing in list(things)[:10000]:
            self._visit(thing, depth + 1)

    def _dict(self, thing: dict[Any, Any], depth: int) -> None:
        items = dict(thing)

        def undo() -> None:
            if thing.keys() != items.keys() or any(thing[k] is not v for k, v in items.items()):
                thing.clear()
                thing.update(items)

        self._undo.append(undo)
        for value in items.values():
            self._visit(value, depth + (0 if isinstance(value, nn.Module | dict) else 1))

    def _tensor(self, thing: Tensor) -> None:
        if isinstance(thing, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            return
        old, version = thing.detach().clone(), [thing._version]

        def undo() -> None:
            if thing._version != version[0]:
                thing.detach().copy_(old)
                version[0] = thing._version

        self._undo.append(undo)

    def _cell(self, cell: types.CellType, depth: int) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # an empty cell
            return

        def undo() -> None:
            if cell.cell_contents is not value:
                cell.cell_contents = value

        self._undo.append(undo)
        self._visit(value, depth + 1)

    @staticmethod
    def _again(thing: set[Any], held: set[Any]) -> None:
        thing.clear()
        thing.update(held)

    @staticmethod
    def _refill(thing: Any, items: list[Any]) -> None:
        if len(thing) != len(items) or any(a is not b for a, b in zip(thing, items, strict=True)):
            thing.clear()
            thing.extend(items)
