"""`unfooled list`: what there is, each with its paper."""

import inspect
import sys
from typing import TYPE_CHECKING, Any, Literal

from unfooled.cli import _words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unfooled.core.attack import Attack, Recipe

What = Literal["attacks", "suites", "targets", "data", "defences", "recipes"]

GIVEN = "Along gradients, in a ball of a given eps"
SMALLEST = "Along gradients, to the smallest change"
LENT = "Along gradients, the target's own or those of surrogates"
SCORES = "By scores"
LABELS = "By labels alone"
OTHER = "For changes that no norm measures, and those learned beforehand"


def list_(what: What | None = None, /, *, json: _words.Flag = False) -> None:
    """Say which attacks, suites, targets, data sets, defences and hardening recipes there are, each with its paper.

    Parameters
    ----------
    what
        attacks, suites, targets, data, defences (for --wear) or recipes (of `harden`) [default: all six].
    json
        Print the rows as JSON.
    """
    _words.load_torch()
    readers = {
        "targets": _targets, "data": _data, "defences": _defences, "recipes": _ways, "suites": _suites,
        "attacks": _attacks,
    }  # fmt: skip
    found = {name: read() for name, read in readers.items() if what in (None, name)}
    if json:
        from unfooled.core.record import json_text

        sys.stdout.write(json_text(found if what is None else found[what]))
        return
    for name, rows in found.items():
        title = name if what is None else ""
        _words.console().print(_shelf(title) if name == "attacks" else _table(title, rows))


def _shelf(title: str) -> "RenderableType":
    """Return the attacks group by group, two lines or more each: what it does, then norms, eps and paper."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{title}\n", style="bold")] if title else []
    for what, recipes in shelf().items():
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, width=max(map(len, _recipes())))
        table.add_column(overflow="fold", ratio=1)
        for r in recipes:
            told = row(r)
            table.add_row(r.name, Text(r.doc))
            table.add_row("", Text(f"{told['norms']} · eps {told['eps']} · {r.paper}", style="dim"))
        parts += [Text(what, style="bold"), table, Text()]
    return Group(*parts)


def _table(title: str, rows: list[dict[str, str]]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{title}\n", style="bold") if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 1, 0),
    )
    for column in rows[0]:
        wide = column in ("what", "attacks")
        table.add_column(column, overflow="fold", no_wrap=column == "name", ratio=2 if wide else None)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table


def _recipes() -> "dict[str, Recipe]":
    from unfooled.attacks import RECIPES
    from unfooled.core.attack import SPECIAL

    return RECIPES | SPECIAL


def made(recipe: "Recipe") -> "Attack[Any] | None":
    """Return the attack with its default settings, None where the recipe must be told what to show."""
    told = inspect.signature(recipe.make).parameters.values()
    return None if any(p.default is p.empty for p in told) else recipe.make()


def smallest(recipe: "Recipe") -> bool:
    """Whether the recipe also works with no eps given, where it looks for the smallest change."""
    import torch

    from unfooled.core.threat import Ball
    from unfooled.norms import NORMS

    attack, balls = made(recipe), [Ball(NORMS[name]) for name in recipe.norms]
    return attack is not None and any(not attack.unfit(torch.rand(1, 3, 8, 8), ball, 10) for ball in balls)


def shelf() -> "dict[str, list[Recipe]]":
    """Return the recipes in groups, by what they ask the target for and by what they look for."""
    from unfooled.core.access import Access
    from unfooled.core.attack import Attack

    def group(recipe: "Recipe") -> str:
        attack = made(recipe)
        if attack is None or not recipe.norms:
            return OTHER
        if recipe.access < Access.GRADIENT:
            return SCORES if recipe.access is Access.SCORES else LABELS
        lent = type(attack).through is not Attack.through
        return LENT if lent else SMALLEST if smallest(recipe) else GIVEN

    groups: dict[str, list[Recipe]] = {title: [] for title in (GIVEN, SMALLEST, LENT, SCORES, LABELS, OTHER)}
    for recipe in _recipes().values():
        groups[group(recipe)].append(recipe)
    return {title: recipes for title, recipes in groups.items() if recipes}


def _attacks() -> list[dict[str, str]]:
    return [row(r) for r in _recipes().values()]


def row(r: "Recipe") -> dict[str, str]:
    """Return what the table says of a recipe."""
    return {
        "name": r.name,
        "what": r.doc,
        "norms": " ".join(r.norms) or "none of its own",
        "eps": "or none" if smallest(r) else "needed" if r.norms else "the threat's",
        "needs": r.access.name.lower(),
        "paper": r.paper,
    }


def _suites() -> list[dict[str, str]]:
    from unfooled.attacks import SUITES

    return [
        {"name": s.name, "what": s.doc, "attacks": ", ".join(map(repr, s.attacks)), "paper": s.paper}
        for s in SUITES.values()
    ]


def _defences() -> list[dict[str, str]]:
    from unfooled.harden.wear import DEFENCES, told

    return [
        {"name": d.name, "what": d.doc, "worn as": told(d, d.settings), "paper": d.paper} for d in DEFENCES.values()
    ]


def _ways() -> list[dict[str, str]]:
    from unfooled.harden import WAYS

    return [
        {"name": w.name, "what": w.doc, "passes per image": f"{w.passes} there and back", "paper": w.paper or "none"}
        for w in WAYS.values()
    ]


def _targets() -> list[dict[str, str]]:
    from unfooled.targets import ZOO

    def percent(share: float | None) -> str:
        return "not measured" if share is None else f"{share:.1%}"

    return [
        {
            "name": t.name,
            "what": t.what,
            "data": t.data,
            "clean": percent(t.clean),
            "robust, at most": f"{percent(t.robust)} at linf({t.eps:g})",
            "paper": t.paper,
        }
        for t in ZOO.values()
    ]


def _data() -> list[dict[str, str]]:
    from unfooled.core.data import DATASETS

    return [
        {
            "name": d.name,
            "what": d.doc,
            "images": f"{d.n['train']:,} to train on, {d.n['test']:,} to test on, {' x '.join(map(str, d.shape))}",
            "from": d.source,
            "paper": d.paper,
        }
        for d in DATASETS.values()
    ]
