"""Which attacks a target needs: where gradients mean nothing, those that go around them or need none."""

import inspect
from dataclasses import replace
from typing import Any

from ..attacks import RECIPES, Suite, parse
from ..attacks.decision import ray
from ..attacks.gradient import GradientAttack, apgd, apgd_targeted, pgd, pgd_targeted
from ..attacks.parts import Sense
from ..attacks.search import square
from ..core.access import Access
from ..core.attack import SPECIAL, Attack
from .checkup import Checkup

TRANSFER = (
    apgd(steps=40, sense="transfer"),
    apgd(steps=40, loss="margin", start="warm", sense="transfer"),
)
"""Attacks along the gradients of surrogates, which exist only where the evaluation distils one."""

SURE = 0.9
"""Share of the probes on which a step along a gradient taken straight through must help, for it to lead."""

PAST = pgd(steps=40, loss="margin", sense="orthogonal")
"""Where a refusal is faint beside the margin, the sum that other attacks climb does not see it (arXiv 2106.15023)."""


def plan(suite: Suite, up: Checkup) -> Suite:
    """Return the suite that suits the target: itself for an honest one that always answers."""
    if up.target.reject == "last" and suite.name in ("quick", "standard"):
        suite = replace(suite, attacks=(*suite.attacks, PAST))
    if up.target.draws > 1:
        longer = () if suite.name == "custom" else (pgd(steps=60), apgd(steps=60, loss="margin", start="warm"))
        suite = replace(suite, attacks=(*suite.attacks, *longer), more=tuple(_shorter(a) for a in suite.more))
    if not up.masked and not up.blind:
        return suite
    straight = up.target.straight is not None
    none = up.has("D2") or bool(up.target.labels)
    attacks: list[Attack[Any]] = []
    for attack in suite.attacks:
        if straight and isinstance(attack, GradientAttack):
            attacks.append(with_sense(attack, "straight"))
        elif not none or attack.access < Access.GRADIENT:
            attacks.append(attack)
    known = {a.key() for a in attacks}
    extra: list[Attack[Any]] = []
    if straight:
        extra += [
            pgd(steps=40, sense="straight"),
            pgd_targeted(steps=15, loss="margin", schedule="cosine", step_size=2.0, sense="straight"),
            apgd(steps=75, loss="margin", restarts=2, sense="straight"),
            apgd_targeted(steps=30, sense="straight"),
            apgd(steps=75, loss="dlr", start="warm", sense="straight"),
        ]
    if straight or not none:
        extra.append(pgd(steps=15, step_size=0.25, sense="smooth"))
        if up.has("D4", "D5", "D3") and not none:
            extra.append(apgd(steps=25, loss="margin"))
    sure = up.target.straight is not None and up.target.straight.share >= SURE
    queries = 400 if up.target.draws > 1 else 1000
    if not sure:
        extra += TRANSFER
    extra.append(ray(queries=1000 if up.blind and not straight else queries // 2))
    if not up.blind or up.has("C6"):
        extra.append(square(queries=queries))
    return replace(suite, attacks=(*attacks, *(a for a in extra if a.key() not in known)), more=())


def brief(quick: Suite, up: Checkup) -> tuple[Attack[Any], ...]:
    """Return the attacks of the accuracy-versus-eps curve: suite quick, by the gradient that the target has."""
    if up.target.straight is not None:
        return tuple(with_sense(a, "straight") for a in quick.attacks if isinstance(a, GradientAttack))
    if not up.has("D2") and not up.target.labels:
        return quick.attacks
    return (ray(queries=500),) if up.blind else (ray(queries=500), square(queries=500))


def with_sense(attack: GradientAttack, sense: str) -> Attack[Any]:
    """Return the recipe with another way to the gradient, printed as the call that makes it."""
    name, _, inner = attack.call[:-1].partition("(")
    if name not in RECIPES or "sense" not in inspect.signature(RECIPES[name].make).parameters:
        return replace(attack, sense=Sense(sense))
    return parse(f"{name}({inner}{', ' if inner else ''}sense={sense!r})")


def family(name: str) -> str:
    """Return the family of an attack by its printed name: gradient, straight, smooth, transfer, score or decision."""
    for sense in ("straight", "smooth", "transfer"):
        if f"sense={sense!r}" in name:
            return sense
    known = (RECIPES | SPECIAL).get(name.partition("(")[0])
    access = known.access if known else Access.GRADIENT
    return {Access.GRADIENT: "gradient", Access.SCORES: "score"}.get(access, "decision")


def _shorter(attack: Attack[Any]) -> Attack[Any]:
    """Return a query attack with a fifth of its queries: every one is several draws of a random target."""
    return square(queries=500) if attack.access is Access.SCORES else attack
