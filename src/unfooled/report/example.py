"""From one explained example to files that people read: a page, the figures, and the rows behind them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfooled.core import record
from unfooled.errors import safe_text
from unfooled.report import figures
from unfooled.report.files import finite
from unfooled.report.page import confidence, template
from unfooled.report.panel import single_panel

if TYPE_CHECKING:
    from unfooled.evaluate.single import Single
    from unfooled.explain.example import Example

ROWS = 24  # of a part's rows that the page shows


def write(single: "Single", example: "Example", out: Path | str, *, command: str = "") -> Path:
    """Make the directory `out`: `explanation.html`, `picture.png`, a PNG a part, `explanation.json`; return `out`.

    Everything is drawn before the directory is made. Raises InputError when `out` exists.
    """
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    picture = figures.png(single_panel(single))
    drawn = {part.name: part.found.image() for part in example.parts}
    page = render(single, example, picture, drawn, command=command, written=written)
    numbers = {
        "attack": single.summary(),
        "sentences": example.sentences(),
        "rows": example.rows(),
        "omitted": example.omitted,
        "forward": example.forward,
        "seconds": example.seconds,
        "command": command,
    }
    out = record.new_run(Path(out))
    record.write_json(out / "explanation.json", finite(numbers))
    record.write_bytes(out / "picture.png", picture)
    for name, image in drawn.items():
        record.write_bytes(out / f"{name}.png", image)
    record.write_text(out / "explanation.html", page)
    return out


def render(
    single: "Single",
    example: "Example",
    picture: bytes,
    drawn: dict[str, bytes],
    *,
    command: str = "",
    written: str = "",
) -> str:
    """Return the page of one explained example; `drawn` are the figures of its parts as PNG, by name."""
    parts = [_part(part, drawn[part.name]) for part in example.parts]
    view = {
        "s": single,
        "e": example,
        "picture": figures.data_uri(picture),
        "parts": parts,
        "facts": _facts(single, example),
        "command": command,
        "written": written,
    }
    return str(template("example.html.j2").render(view)) + "\n"


def _facts(single: "Single", example: "Example") -> list[tuple[str, str]]:
    """Return what changed, how little, and how sure the target was of both classes before and after."""
    change = (example.x_adv - example.x).double()
    size, own = float(change.norm()), float(example.x.double().norm())
    width = single.bounds[1] - single.bounds[0]
    moved = change != 0
    before, after = single.original.confidences, single.adversarial.confidences
    first, second = single.original.label, single.adversarial.label
    levels = round(float(change.abs().max()) / width * 255)
    return [
        ("What changed", f"{int(moved.sum()):,} of {moved.numel():,} values, by at most {levels} of 255 grey levels"),
        ("How little", f"L2 {size:.3g}, {size / own:.1%} of the image's own length" if own else f"L2 {size:.3g}"),
        (f"Sure of {single.original.name}", f"{confidence(float(before[first]))} before, "
         f"{confidence(float(after[first]))} after"),
        (f"Sure of {single.adversarial.name}", f"{confidence(float(before[second]))} before, "
         f"{confidence(float(after[second]))} after"),
        ("Random noise", f"of the same size fools it in {single.noise_fooled} of {single.noise_draws} draws"),
    ]  # fmt: skip


def _part(part: Any, image: bytes) -> dict[str, Any]:
    rows = part.found.rows()
    head = list(rows[0]) if rows else []
    cells = [[_cell(row[name]) for name in head] for row in rows[:ROWS]]
    return {
        "name": part.name,
        "question": part.question,
        "sentence": safe_text(part.found.sentence()),
        "image": figures.data_uri(image),
        "head": head,
        "cells": cells,
        "left": max(0, len(rows) - ROWS),
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " – ".join(_cell(v) for v in value) if len(value) <= 4 else f"{len(value)} values"
    return str(value)
