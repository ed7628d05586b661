"""`unfooled list`: what there is, each with its paper."""

import sys
from typing import Literal

from unfooled.cli import _words

What = Literal["attacks", "suites", "targets", "data"]


def list_(what: What, /, *, json: bool = False) -> None:
    """Say which attacks, suites, targets or data sets there are, each with its paper.

    Parameters
    ----------
    what
        attacks, suites, targets or data.
    json
        Print the rows as JSON.
    """
    rows = {"attacks": _attacks, "suites": _suites, "targets": _targets, "data": _data}[what]()
    if json:
        import json as json_

        sys.stdout.write(json_.dumps(rows, ensure_ascii=False, indent=2) + "\n")
        return

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for title in rows[0]:
        table.add_column(
            title, overflow="fold", no_wrap=title == "name", ratio=2 if title in ("what", "attacks") else None
        )
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    _words.console().print(table)


def _attacks() -> list[dict[str, str]]:
    from unfooled.attacks import RECIPES

    return [
        {"name": r.name, "what": r.doc, "norms": " ".join(r.norms), "needs": r.access.name.lower(), "paper": r.paper}
        for r in RECIPES.values()
    ]


def _suites() -> list[dict[str, str]]:
    from unfooled.attacks import SUITES

    return [
        {"name": s.name, "what": s.doc, "attacks": ", ".join(map(repr, s.attacks)), "paper": s.paper}
        for s in SUITES.values()
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
