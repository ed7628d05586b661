"""The attack picture: image + amplified change = another class, with random noise of the same size as a control."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unfooled.report import figures
from unfooled.report.page import confidence, safe_text

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from torch import Tensor

    from unfooled.evaluate.single import Single

TILE = 448  # a multiple of 8, 28, 32 and 224: their pixels are enlarged by whole numbers
GAP = 76  # between tiles, for the signs
MARGIN = 48
PAPER = (255, 255, 255)
INK = (29, 35, 43)
SOFT = (91, 102, 115)
LINE = (223, 227, 232)
COLOURS = ((43, 108, 176), (200, 87, 27), (90, 130, 60), (130, 90, 160))  # told apart in grey and by most eyes
TEXT, SMALL = 30, 24


@dataclass(frozen=True)
class Caption:
    """What the target says of an image: the class and its confidence in [0, 1]."""

    name: str
    confidence: float


def attack_panel(
    x: "Tensor",
    x_adv: "Tensor",
    noise: "Tensor",
    *,
    original: Caption,
    adversarial: Caption,
    control: Caption,
    change: str = "",
    trace: dict[str, Sequence[float]] | None = None,
    trace_title: str = "confidence at each forward pass of the attack; the last is the saved file",
    bounds: tuple[float, float] = (0.0, 1.0),
    note: str = "",
) -> "Image.Image":
    """Return the picture of one attack: original + amplified change = adversarial, and a random control beside it.

    `x`, `x_adv`, `noise` are [c, h, w] within `bounds`; `change` says its size ("Linf 2/255"); `trace` maps class names
    to confidences in [0, 1] along the attack (two points or more to be drawn); `note` is one line at the bottom.
    """
    from PIL import Image, ImageDraw

    shift, factor = figures.change(x, x_adv, bounds)
    images = [
        figures.picture(x, bounds),
        figures.picture(shift),
        figures.picture(x_adv, bounds),
        figures.picture(noise, bounds),
    ]
    tiles = [figures.enlarged(image, TILE) for image in images]
    tall = max(tile.height for tile in tiles)
    lines = {name: list(values) for name, values in (trace or {}).items() if len(values) > 1}
    chart = 340 if lines else 0
    foot = 52 if note else 0
    width = 2 * MARGIN + 4 * TILE + 3 * GAP
    head = 44
    captions = 128
    canvas = Image.new("RGB", (width, MARGIN + head + tall + captions + chart + foot + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    labels = [
        ("original", original.name, confidence(original.confidence)),
        ("change", change or "the change", f"drawn {factor:g} times as strong"),
        ("adversarial", adversarial.name, confidence(adversarial.confidence)),
        ("control: random noise", control.name, confidence(control.confidence)),
    ]
    top = MARGIN + head
    for i, (tile, (title, name, below)) in enumerate(zip(tiles, labels, strict=True)):
        left = MARGIN + i * (TILE + GAP)
        middle = left + TILE / 2
        _write(draw, middle, MARGIN + 8, title, SMALL, SOFT, TILE + GAP - 16)
        canvas.paste(tile, (left + (TILE - tile.width) // 2, top + (tall - tile.height) // 2))
        colour = {0: COLOURS[0], 2: COLOURS[1]}.get(i, INK)
        colour = COLOURS[1] if i == 3 and control.name != original.name else COLOURS[0] if i == 3 else colour
        _write(draw, middle, top + tall + 34, name, TEXT, colour, TILE + GAP - 16)
        _write(draw, middle, top + tall + 76, below, SMALL, SOFT, TILE + GAP - 16)
    for i, sign in enumerate("+="):
        _write(draw, MARGIN + (i + 1) * TILE + i * GAP + GAP / 2, top + tall / 2, sign, 58, INK, GAP)
    rule = MARGIN + 3 * TILE + 2 * GAP + GAP // 2
    draw.line([(rule, top), (rule, top + tall + 88)], fill=LINE, width=2)
    if lines:
        box = (MARGIN, top + tall + captions, width - MARGIN, top + tall + captions + chart)
        _lines(canvas, box, lines, trace_title, first=original.name, last=adversarial.name)
    if note:
        letters = figures.font(SMALL)
        text = figures.fit_text(draw, figures.drawable(safe_text(note)), SMALL, width - 2 * MARGIN)
        draw.text((MARGIN, canvas.height - MARGIN // 2 - foot / 2), text, font=letters, fill=SOFT, anchor="lm")
    return canvas


def single_panel(single: "Single") -> "Image.Image":
    """Return the picture of one attack from its record."""

    def caption(look: object) -> Caption:
        return Caption(str(look.name), float(look.confidence))  # type: ignore[attr-defined]

    return attack_panel(
        single.x,
        single.x_adv,
        single.noise,
        original=caption(single.original),
        adversarial=caption(single.adversarial),
        control=caption(single.control),
        change=single.size,
        trace={name: list(values) for name, values in single.trace.items()},
        bounds=single.bounds,
        note=str(single),
    )


def _write(
    draw: "ImageDraw.ImageDraw",
    middle: float,
    centre: float,
    text: str,
    size: float,
    colour: tuple[int, int, int],
    width: float,
) -> None:
    text = figures.fit_text(draw, figures.drawable(safe_text(text)), size, width)
    draw.text((middle, centre), text, font=figures.font(size), fill=colour, anchor="mm")


def _lines(
    canvas: "Image.Image",
    box: tuple[int, int, int, int],
    lines: dict[str, list[float]],
    title: str,
    *,
    first: str,
    last: str,
) -> None:
    """Draw confidences from left to right, each line named at its end."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box
    names = list(lines)
    others = [name for name in names if name not in (first, last)]
    colour = {first: COLOURS[0], last: COLOURS[1]} | dict(zip(others, COLOURS[2:] * len(others), strict=False))
    letters = figures.font(SMALL)
    draw.text((left, top + 12), title, font=letters, fill=SOFT, anchor="lm")
    room = 330
    x0, x1, y0, y1 = left + 84, right - room, top + 52, bottom - 56
    for share in (0.0, 0.5, 1.0):
        y = y1 - share * (y1 - y0)
        draw.line([(x0, y), (x1, y)], fill=LINE, width=2)
        draw.text((x0 - 14, y), f"{share:.0%}", font=letters, fill=SOFT, anchor="rm")
    steps = max(len(values) for values in lines.values())
    for k in sorted({0, (steps - 1) // 2, steps - 1}):
        x = x0 + (x1 - x0) * k / (steps - 1)
        draw.text((x, y1 + 26), str(k + 1), font=letters, fill=SOFT, anchor="mm")
    paths = [
        (
            colour[name],
            [
                (x0 + (x1 - x0) * k / (steps - 1), y1 - min(max(v, 0.0), 1.0) * (y1 - y0))
                for k, v in enumerate(lines[name])
            ],
        )
        for name in names[::-1]
    ]
    _smooth(canvas, (x0 - 8, y0 - 8, x1 + 8, y1 + 8), paths, dots=steps <= 40)
    ends = sorted(((lines[name][-1], name) for name in names), reverse=True)
    places = _apart([y1 - min(max(v, 0.0), 1.0) * (y1 - y0) for v, _ in ends], SMALL + 6, y0 - 6, y1 + 14)
    for (value, name), y in zip(ends, places, strict=True):
        text = figures.fit_text(draw, figures.drawable(safe_text(name)), SMALL, room - 130)
        draw.text((x1 + 22, y), f"{text} {confidence(value)}", font=letters, fill=colour[name], anchor="lm")


def _smooth(
    canvas: "Image.Image",
    box: tuple[int, int, int, int],
    paths: list[tuple[tuple[int, int, int], list[tuple[float, float]]]],
    *,
    dots: bool,
) -> None:
    """Draw lines without jagged edges: three times as large, then reduced."""
    from PIL import ImageDraw

    times = 3
    part = canvas.crop(box)
    large = part.resize((part.width * times, part.height * times))
    draw = ImageDraw.Draw(large)
    for colour, path in paths:
        points = [((x - box[0]) * times, (y - box[1]) * times) for x, y in path]
        draw.line(points, fill=colour, width=4 * times, joint="curve")
        for x, y in points if dots else points[-1:]:
            draw.circle((x, y), 6 * times, fill=colour)
    canvas.paste(large.reduce(times), box[:2])


def _apart(places: list[float], least: float, low: float, high: float) -> list[float]:
    """Return the places (ascending) moved so that neighbours are `least` apart, within low to high where that fits."""
    moved = list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + least)
    if moved and moved[-1] > high:
        moved[-1] = high
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - least)
    return [max(low, place) for place in moved]
