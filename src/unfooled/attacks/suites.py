"""Suites: cascades of attacks in which each next one gets the rows that are left."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.attack import Attack
from ..core.threat import Threat
from ..errors import InputError, nearest
from .gradient import apgd, apgd_targeted
from .search import square


@dataclass(frozen=True)
class Suite:
    """A named cascade; `attacks` makes it for a threat and a number of classes."""

    name: str
    paper: str
    doc: str
    attacks: Callable[[Threat, int], tuple[Attack[Any], ...]]


def _quick(threat: Threat, classes: int) -> tuple[Attack[Any], ...]:
    return (apgd(steps=20, start="warm"), apgd_targeted(steps=20, targets=min(2, classes - 1), start="warm"))


def _standard(threat: Threat, classes: int) -> tuple[Attack[Any], ...]:
    return (
        apgd(steps=25, start="warm"),
        apgd_targeted(steps=25, targets=min(4, classes - 1), loss="margin"),
        square(queries=500),
    )


def _autoattack(threat: Threat, classes: int) -> tuple[Attack[Any], ...]:
    return (apgd(steps=100), apgd_targeted(steps=100, targets=min(9, classes - 1)), square(queries=5000))


SUITES: dict[str, Suite] = {
    s.name: s
    for s in (
        Suite("quick", "this project", "A first look: 60 gradients per surviving image at most.", _quick),
        Suite("standard", "this project", "As strong as AutoAttack's standard set at a fraction of its passes.", _standard),
        Suite("autoattack", "Croce, Hein 2020, arXiv 2003.01690",
              "The literature's standard set: APGD-CE, APGD-T, Square, with its step counts (targeted FAB is not here yet).", _autoattack),
    )
}  # fmt: skip


def suite(name: str) -> Suite:
    """Return the suite of that name; raises InputError with the nearest names."""
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}; there are {', '.join(SUITES)}.{nearest(name, SUITES)}")
    return SUITES[name]
