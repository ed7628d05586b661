"""Measure how easily a trained model is fooled, and show what fooled it.

The public names live here, flat. Importing this package loads the standard library only; the rest loads when a name is
first used. `unfooled.evaluate` is the function, although a room of the house has the same name: code inside the house
reaches the room with `from unfooled.evaluate import ...`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AccessError",
    "Ball",
    "Data",
    "Evaluation",
    "InputError",
    "MissingExtra",
    "Run",
    "Status",
    "Target",
    "Targeted",
    "UnfooledError",
    "Untargeted",
    "__version__",
    "attacks",
    "certify",
    "doctor",
    "ensemble",
    "evaluate",
    "explain",
    "fooling",
    "harden",
    "l0",
    "l1",
    "l2",
    "last_iterate",
    "linf",
    "load_data",
    "losses",
    "norms",
    "parse_threat",
    "report",
    "run",
    "stats",
    "targets",
    "transfer_matrix",
]

if TYPE_CHECKING:
    from unfooled import attacks, certify, explain, fooling, harden, losses, norms, report, stats, targets
    from unfooled.attacks.transfer import transfer_matrix
    from unfooled.core.access import Access
    from unfooled.core.data import Data, load_data
    from unfooled.core.engine import last_iterate
    from unfooled.core.ensemble import ensemble
    from unfooled.core.goal import Targeted, Untargeted
    from unfooled.core.result import Evaluation, Status
    from unfooled.core.run import Run, run
    from unfooled.core.target import Target
    from unfooled.core.threat import Ball, l0, l1, l2, linf, parse_threat
    from unfooled.errors import AccessError, InputError, MissingExtra, UnfooledError
    from unfooled.evaluate import doctor, evaluate

_HOME = {
    "errors": ["AccessError", "InputError", "MissingExtra", "UnfooledError"],
    "attacks.transfer": ["transfer_matrix"],
    "core.access": ["Access"],
    "core.data": ["Data", "load_data"],
    "core.engine": ["last_iterate"],
    "core.ensemble": ["ensemble"],
    "core.goal": ["Targeted", "Untargeted"],
    "core.result": ["Evaluation", "Status"],
    "core.run": ["Run", "run"],
    "core.target": ["Target"],
    "core.threat": ["Ball", "l0", "l1", "l2", "linf", "parse_threat"],
    "evaluate": ["doctor", "evaluate"],
}
_HOME_OF = {name: home for home, names in _HOME.items() for name in names}
_ROOMS = frozenset(
    {"attacks", "certify", "explain", "fooling", "harden", "losses", "norms", "report", "stats", "targets"}
)


class _House(ModuleType):
    """This package: names are found on first use, and a room never hides the function that shares its name."""

    def __getattr__(self, name: str) -> Any:
        if name in _ROOMS:
            if name in ("explain", "fooling", "harden"):
                importlib.import_module(f"{__name__}.attacks")  # they take attacks by their names
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        self.__dict__[name] = value
        if name == "run":
            importlib.import_module(f"{__name__}.attacks")  # run("pgd()") finds recipes by their names
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system sets a loaded submodule on its parent; for `evaluate` the function keeps the place
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(__all__)


sys.modules[__name__].__class__ = _House
