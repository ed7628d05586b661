"""Tables in Markdown from the committed results; README and pages of docs show them between markers.

python -m benchmarks.tables           rewrite the pages' tables
python -m benchmarks.tables --print   print them
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *(ROOT / "docs" / f"{page}.md" for page in ("shelf", "transfer", "explain", "fooling", "harden")))


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


OURS = "unfooled"


def shelf() -> str:
    """Every attack of the shelf against its public implementations: a summary, then each implementation."""
    entries = results.read("shelf")
    parts = []
    for case in dict.fromkeys(entry["case"] for entry in entries.values()):
        groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for entry in entries.values():
            if entry["case"] == case:
                groups.setdefault((entry["attack"], entry["norm"]), {})[entry["side"]] = entry
        ordered = {key: groups[key] for key in sorted(groups, key=_place)}
        compared = [_against(*key, sides) for key, sides in ordered.items() if OURS in sides]
        head = (
            "attack", "norm", "budget", "strongest public", "success", "median change", "image by image",
            "fastest public", "CPU seconds", "rejected points, public", "rejected points, ours",
        )  # fmt: skip
        parts += [f"### {case}: ours against the best public implementation", markdown(head, compared, left=4)]
        head = (
            "attack", "norm", "implementation", "success", "median change", "forward", "backward", "CPU seconds",
            "claimed", "rejected",
        )  # fmt: skip
        each = [_alone(side) for sides in ordered.values() for side in sorted(sides.values(), key=_first)]
        parts += [f"### {case}: every implementation", markdown(head, each, left=3)]
    return "\n\n".join([*parts, libraries(entries), origin(entries)])


def libraries(entries: dict[str, dict[str, Any]]) -> str:
    """Return one sentence: the public implementations and their versions."""
    found = {f"{entry['side']} {entry['version']}" for entry in entries.values() if entry["side"] != OURS}
    return f"Public implementations: {', '.join(sorted(found, key=str.lower))}."


def _place(key: tuple[str, str]) -> tuple[int, str]:
    from benchmarks.shelf import TASKS

    order = [task.attack for task in TASKS]
    return (order.index(key[0]) if key[0] in order else len(order), "linf l2 l1 l0".index(key[1]))  # type: ignore


def _first(entry: dict[str, Any]) -> tuple[bool, str]:
    return entry["side"] != OURS, entry["side"].lower()


def sizes(entry: dict[str, Any]) -> list[float]:
    """Return the size of the change per image, infinite where the implementation broke nothing."""
    return [math.inf if word == "-" else float(word) for word in entry["distances"].split()]


def strength(entry: dict[str, Any]) -> tuple[float, float]:
    """Return what makes an implementation strong, larger is stronger: success, and without eps the smaller median."""
    if entry["eps"] is not None:
        return entry["success"] / entry["n"], 0.0
    most = entry["median"] is not None and entry["norm"] != "l0"  # a median counts failures itself
    return 1.0 if most else entry["success"] / entry["n"], -change(entry)


def change(entry: dict[str, Any]) -> float:
    """Return the median change over all images, failures infinite; of L0, whose values are few, the successes' mean."""
    if entry["norm"] == "l0":
        found = [size for size in sizes(entry) if math.isfinite(size)]
        return sum(found) / len(found) if found else math.inf
    return math.inf if entry["median"] is None else entry["median"]


def _against(attack: str, norm: str, sides: dict[str, dict[str, Any]]) -> list[str]:
    """Return the summary's row: this package against the strongest and the fastest public implementation."""
    ours = sides[OURS]
    public = [side for name, side in sides.items() if name != OURS and "failed" not in side]
    row = [f"`{attack}`", {"linf": "Linf"}.get(norm, norm.upper()), ours["budget"]]
    if not public or "failed" in ours:
        return [*row, "none, or none that ends", share(ours), size(ours), "", "", seconds(ours), "", rejected(ours)]
    best = max(public, key=lambda side: (*strength(side), -side["cpu_seconds"]))
    near = [side for side in public if _near(side, best)]
    fast = min(near, key=lambda side: side["cpu_seconds"])
    claims, wrong = sum(side["claimed"] for side in public), sum(side["rejected"] for side in public)
    return [
        *row, best["side"], f"{share(best)} → {share(ours)}", f"{size(best)} → {size(ours)}", paired(best, ours),
        fast["side"], f"{seconds(fast)} → {seconds(ours)}",
        f"{wrong / claims:.1%}" if claims else "0%", rejected(ours),
    ]  # fmt: skip


def _near(entry: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an implementation is within 1% of the strongest one: only such a one is called fast."""
    if entry["eps"] is not None:
        return strength(entry)[0] >= strength(best)[0] - 0.01
    return change(entry) <= 1.01 * change(best) if math.isfinite(change(best)) else strength(entry) >= strength(best)


def paired(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return who does better on how many images: broken by one side only, or changed by 1% less."""
    if ours["n"] != theirs["n"]:
        return ""
    pairs = list(zip(sizes(theirs), sizes(ours), strict=True))
    if ours["eps"] is not None:
        worse, better = (sum(math.isfinite(p[i]) > math.isfinite(p[1 - i]) for p in pairs) for i in (0, 1))
    else:
        worse, better = (sum(p[i] < p[1 - i] * 0.99 for p in pairs) for i in (0, 1))
    return f"{worse} theirs, {better} ours"


def share(entry: dict[str, Any]) -> str:
    """Return the success of an implementation."""
    return "failed" if "failed" in entry else f"{entry['success'] / entry['n']:.1%}"


def size(entry: dict[str, Any]) -> str:
    """Return the change that an implementation needs, where the smallest is asked for."""
    if "failed" in entry or entry["eps"] is not None:
        return ""
    found = change(entry)
    return "none" if math.isinf(found) else f"{found:.4g}"


def seconds(entry: dict[str, Any]) -> str:
    """Return the CPU seconds of a run."""
    return "" if "failed" in entry else f"{entry['cpu_seconds']:.3g}"


def rejected(entry: dict[str, Any]) -> str:
    """Return the share of claimed points that the independent check rejects."""
    return "" if "failed" in entry or not entry["claimed"] else f"{entry['rejected'] / entry['claimed']:.1%}"


def _alone(entry: dict[str, Any]) -> list[str]:
    name = entry["side"] + (f" ({entry['note']})" if entry["note"] and entry["side"] != OURS else "")
    row = [f"`{entry['attack']}`", {"linf": "Linf"}.get(entry["norm"], entry["norm"].upper())]
    if "failed" in entry:
        return [*row, f"{name}: {plain(entry['failed'])}", "failed", "", "", "", "", "", ""]
    return [
        *row, name, share(entry), size(entry), number(entry["forward"]), number(entry["backward"]), seconds(entry),
        str(entry["claimed"]), str(entry["rejected"]),
    ]  # fmt: skip


def plain(sentence: str) -> str:
    """Return what a library raised as text that does not break a table."""
    return sentence.replace("|", "/").replace("`", "'").replace("\n", " ")


def queries() -> str:
    """Success and median change of black-box attacks after so many questions per image."""
    entries = results.read("queries")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in entries.values():
        groups.setdefault((entry["case"], entry["access"], entry["norm"]), []).append(entry)
    parts = []
    for (case, access, norm), found in groups.items():
        found.sort(key=lambda entry: (entry["attack"], *_first(entry)))
        first = found[0]
        named = {"linf": "Linf"}.get(norm, norm.upper())
        grid = [f"{k:,}" for k in first["grid"]]
        parts.append(f"### {case}, {access} alone, {named}: broken within {first['eps']:g} after so many queries")
        lines = [[*_who(e), *(f"{s / e['n']:.0%}" for s in e["success"])] for e in found]
        parts.append(markdown(("attack", "implementation", *grid), lines, left=2))
        smallest = [entry for entry in found if entry["smallest"]]
        if smallest:
            parts.append(f"### {case}, {access} alone, {named}: median change after so many queries")
            lines = [[*_who(e), *("none" if m is None else f"{m:.3g}" for m in e["median"])] for e in smallest]
            parts.append(markdown(("attack", "implementation", *grid), lines, left=2))
    return "\n\n".join([*parts, libraries(entries), origin(entries)])


def _who(entry: dict[str, Any]) -> tuple[str, str]:
    raised = f"; raised on {entry['raised']} of {entry['n']}: {plain(entry['raised_first'])}" if entry["raised"] else ""
    note = f" ({entry['note']})" if entry["note"] and entry["side"] != OURS else ""
    return f"`{entry['attack']}`", entry["side"] + note + raised


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


def transfer() -> str:
    """Everything of the transfer benchmark, under headings."""
    from benchmarks import transfer

    return transfer.table()


def beside(name: str) -> str:
    """Published and measured values side by side, a case a row; shares are written in percent."""
    entries = results.read(name)
    head = ("what", "published", "measured", "n", "note")
    align = "| :-- | --: | --: | --: | :-- |"
    rows = [
        (e["what"], valued(e, "published"), valued(e, "ours"), f"{e['n']:,}" if e.get("n") else "", e.get("note") or "")
        for e in entries.values()
    ]
    top, *lines = ("| " + " | ".join(row) + " |" for row in (head, *rows))
    return "\n".join([top, align, *lines]) + "\n\n" + origin(entries)


def valued(entry: dict[str, Any], kind: str) -> str:
    """Return one value of a case as a table shows it: a share in percent with its interval, a number, or words."""
    value = entry.get(kind)
    if value is None or isinstance(value, str):
        return value or "–"
    share = entry.get("unit") == "%"
    text = f"{100 * value:.4g}%" if share else f"{number(value)}{' ' + entry['unit'] if entry.get('unit') else ''}"
    if kind == "ours" and entry.get("interval"):
        low, high = entry["interval"]
        text += f" ({100 * low:.1f}–{100 * high:.1f}%)" if share else f" ({number(low)}–{number(high)})"
    return text


TABLES: dict[str, Callable[[], str]] = {
    "standard": standard,
    "cost": cost,
    "engine": engine,
    "shelf": shelf,
    "queries": queries,
    "transfer": transfer,
}
BESIDE = (
    "fooling", "rubbish", "rounds", "volume",
    "linearity", "geometry", "agreement", "halves", "manifold", "features", "visual", "spheres", "hypotheses",
    "classic", "madry", "speedrun", "pair", "recipes", "collapse", "capacity", "finetuning",
    "detectors", "ensembles", "smoothing", "abstention", "certified",
)  # fmt: skip
TABLES |= {name: partial(beside, name) for name in BESIDE if results.read(name)}


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
    """Rewrite the pages, or print the tables."""
    if "--print" in sys.argv[1:]:
        print("\n\n".join(table() for table in TABLES.values()))
        return
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
