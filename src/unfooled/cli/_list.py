"""`unfooled list`: what there is, each with its paper."""

import sys
from typing import TYPE_CHECKING, Literal

from unfooled.cli import _words

if TYPE_CHECKING:
    from rich.table import Table

What = Literal["attacks", "suites", "targets", "data"]


def list_(what: What | None = None, /, *, json: _words.Flag = False) -> None:
    """Say which attacks, suites, targets and data sets there are, each with its paper.

    Parameters
    ----------
    what
        attacks, suites, targets or data [default: all four].
    json
        Print the rows as JSON.
    """
    _words.load_torch()
    readers = {"targets": _targets, "data": _data, "suites": _suites, "attacks": _attacks}
    found = {name: read() for name, read in readers.items() if what in (None, name)}
    if json:
        from unfooled.core.record import json_text

        sys.stdout.write(json_text(found if what is None else found[what]))
        return
    for name, rows in found.items():
        _words.console().print(_table(name if what is None else "", rows))


def _table(title: str, rows: list[dict[str, str]]) -> "Table":
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
