"""Suites: cascades of attacks in which each next one gets the rows that are left."""

from dataclasses import dataclass
from typing import Any

from ..core.attack import Attack
from ..errors import InputError, nearest
from .gradient import apgd, apgd_targeted, pgd, pgd_targeted
from .linear import fab_targeted
from .search import square


@dataclass(frozen=True)
class Suite:
    """A named cascade of attacks; those that do not apply to a threat are skipped and say so.

    `more` is tried on the sixteenth of the surviving images that came nearest to being broken, and on the others only
    where it breaks one of those: on a target whose gradients are honest it would break nothing, and it costs most.
    """

    name: str
    paper: str
    doc: str
    attacks: tuple[Attack[Any], ...]
    more: tuple[Attack[Any], ...] = ()


SUITES: dict[str, Suite] = {
    s.name: s
    for s in (
        Suite(
            "quick",
            "this project",
            "A first look: at most 60 gradients per surviving image.",
            (
                pgd(steps=20, schedule="cosine"),
                pgd_targeted(steps=10, targets=3, step_size=4.0, schedule="cosine"),
                apgd(steps=10, loss="margin", start="warm"),
            ),
        ),
        Suite(
            "standard",
            "this project",
            "The measure: within a point of AutoAttack's standard set where compared, with a tenth of its gradients.",
            (
                pgd(steps=25, schedule="cosine"),
                pgd_targeted(steps=7, targets=9, step_size=2.0, loss="margin", schedule="cosine"),
                apgd(steps=25, loss="margin", start="warm"),
                pgd_targeted(steps=7, targets=9, step_size=2.0, loss="dlr", schedule="cosine"),
                apgd(steps=20, loss="margin", start="warm"),
            ),
            (square(queries=2500), apgd(steps=20, start="warm")),
        ),
        Suite(
            "autoattack",
            "Croce, Hein 2020, arXiv 2003.01690",
            "The literature's standard set with its step counts: APGD-CE, APGD-T, FAB-T, Square.",
            (
                apgd(steps=100),
                apgd_targeted(steps=100, targets=9),
                fab_targeted(steps=100, targets=9),
                square(queries=5000),
            ),
        ),
    )
}


def suite(name: str) -> Suite:
    """Return the suite of that name; raises InputError with the nearest names."""
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}; there are {', '.join(SUITES)}.{nearest(name, SUITES)}")
    return SUITES[name]
