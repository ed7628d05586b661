"""Tables in Markdown from the committed results; README shows them between markers.

python -m benchmarks.tables           rewrite README's tables
python -m benchmarks.tables --print   print them
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results

README = Path(__file__).parents[1] / "README.md"


def standard() -> str:
    """Suite `standard` against AutoAttack's standard set."""
    head = (
        "target", "data", "Linf", "n", "clean", "robust accuracy, at most", "broken by one side only",
        "backward passes", "forward passes", "CPU seconds",
    )  # fmt: skip
    rows = []
    entries = results.read("standard")
    for entry in entries.values():
        theirs, ours, n = entry["autoattack"], entry["unfooled"], entry["n"]
        row = [entry["title"], entry["data"], entry["threat"][5:-1], f"{n:,}", f"{entry['clean'] / n:.1%}"]
        row.append(f"{theirs['robust'] / n:.1%} → {ours['robust'] / n:.1%}")
        row.append(f"{len(entry['only_autoattack'])} → {len(entry['only_unfooled'])}")
        for kind in ("backward", "forward", "cpu_seconds"):
            row.append(f"{number(theirs[kind])} → {number(ours[kind])} ({theirs[kind] / ours[kind]:.1f} times fewer)")
        rows.append(row)
    return markdown(head, rows, left=2) + "\n\nAutoAttack → unfooled. " + origin(entries) + "\n\n" + one_sided(entries)


def one_sided(entries: dict[str, dict[str, Any]]) -> str:
    """Return the list of images that only one side breaks, by their index among the case's images."""
    lines = []
    for entry in entries.values():
        sides = [("AutoAttack", entry["only_autoattack"]), ("unfooled", entry["only_unfooled"])]
        found = [f"only {side} breaks {', '.join(map(str, rows))}" for side, rows in sides if rows]
        lines.append(f"{entry['title']} ({entry['data']}): {'; '.join(found)}" if found else "")
    named = [line for line in lines if line]
    if not named:
        return "No image is broken by one side only."
    return "Images that only one side breaks, by index. " + ". ".join(named) + "."


def cost() -> str:
    """What AutoAttack spends on one surviving image, measured and published."""
    entry = results.read("cost")["autoattack"]
    stages = ", ".join(f"{name} {f:.0f} / {b:.0f}" for name, (f, b) in entry["stages"].items())
    published = entry["published"]
    return (
        f"AutoAttack on {entry['n']} surviving images, per image: {number(entry['forward'])} forward and "
        f"{number(entry['backward'])} backward passes ({stages}); published: about {number(published['forward'])} and "
        f"{number(published['backward'])}."
    )


def engine() -> str:
    """Time of a PGD step through the engine against a bare loop."""
    head = ("network", "rows", "steps", "bare loop, CPU ms a step", "engine, CPU ms a step", "ratio", "aim")
    entries = results.read("engine")
    rows = [
        [
            entry["title"],
            str(entry["rows"]),
            str(entry["steps"]),
            f"{entry['cpu_milliseconds_per_step']['bare']:.2f}",
            f"{entry['cpu_milliseconds_per_step']['engine']:.2f}",
            f"{entry['cpu_ratio']:.3f}",
            f"at most {entry['aim']:.2f}",
        ]
        for entry in entries.values()
    ]
    return markdown(head, rows, left=1) + "\n\n" + origin(entries)


TABLES: dict[str, Callable[[], str]] = {"standard": standard, "cost": cost, "engine": engine}


def markdown(head: tuple[str, ...], rows: list[list[str]], *, left: int) -> str:
    """Return a table whose first `left` columns are words and whose others are numbers."""
    align = [":--" if i < left else "--:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(head), align, *rows))


def number(value: float) -> str:
    """Return a number as people read it: thousands apart, three digits of what is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def origin(entries: dict[str, dict[str, Any]]) -> str:
    """Return one sentence: when, on what and with which versions the entries were measured."""
    said = set()
    for entry in entries.values():
        where = entry["where"]
        versions = ", ".join(f"{name} {v}" for name, v in where["versions"].items() if v)
        threads = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
        said.add(f"{where['date']}, {where['cpu']}, {threads}, {versions}")
    return "Measured: " + "; ".join(sorted(said)) + "."


def filled(text: str) -> str:
    """Return the page with every marked table replaced by the one from the results."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if pattern.search(text):
            made = table()
            text = pattern.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


def main() -> None:
    """Rewrite README, or print the tables."""
    if "--print" in sys.argv[1:]:
        print("\n\n".join(table() for table in TABLES.values()))
        return
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
