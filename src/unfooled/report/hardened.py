"""From a hardening to one page that people read: what was gained, how training went, what it cost."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfooled._numbers import counted
from unfooled.core import record
from unfooled.core.result import Evaluation, Status
from unfooled.errors import MissingExtra
from unfooled.harden import WAYS
from unfooled.report import figures
from unfooled.report.page import confidence, embed, percent, span, template, threat_name

if TYPE_CHECKING:
    from unfooled.evaluate.hardened import Proof

STOOD, FELL = 4, 4  # examples shown of those that hardening saved, and of those that are broken after it too


def write(proof: "Proof", out: Path | str, *, command: str = "", options: dict[str, Any] | None = None) -> Path:
    """Write `report.html`, and `training.png` where matplotlib is installed, into the folder `out`; return the page.

    `options` are the words that the command line was given.
    """
    out = Path(out)
    try:
        curve = proof.training.image()
        record.write_bytes(out / "training.png", curve)
    except MissingExtra:
        curve = b""
    return record.write_text(out / "report.html", render(proof, curve, command=command, options=options))


def render(
    proof: "Proof",
    curve: bytes,
    *,
    command: str = "",
    options: dict[str, Any] | None = None,
    written: str | None = None,
) -> str:
    """Return the page of a hardening; `curve` is its figure as PNG, empty for none."""
    before, after, training = proof.before, proof.after, proof.training
    way = WAYS.get(str(training.settings.get("objective")))
    view = {
        "b": before,
        "a": after,
        "t": training,
        "way": way,
        "recipe": training.settings.get("objective", ""),
        "threat": threat_name(after.threat),
        "rows": _compared(proof),
        "doubt": proof.doubt(),
        "reasons": _reasons(proof),
        "notes": (*proof.notes, *training.notes),
        "curve": figures.data_uri(curve) if curve else "",
        "epochs": [_epoch(row) for row in training.rows()],
        "cards": _cards(before, after),
        "cost": _cost(proof, way.uncounted if way else ""),
        "settings": _settings({**(options or {}), **_flat(training.settings)}),
        "spans": span,
        "command": command,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC" if written is None else written,
    }
    return str(template("hardened.html.j2").render(view)) + "\n"


def _compared(proof: "Proof") -> list[tuple[str, ...]]:
    """Return the rows of the table: a measure before and after with its interval, and the change on the same images."""
    before, after = proof.before, proof.after

    def of(share: float, interval: tuple[float, float]) -> str:
        return f"{percent(share)} ({span(interval)})"

    def robust(found: Evaluation) -> str:
        return "withheld" if found.withheld else of(found.robust_accuracy, found.robust_interval)

    gains = [f"{100 * g:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})" for g, low, high in proof.gains()]
    return [
        ("robust accuracy, at most", robust(before), robust(after),
         "" if before.withheld or after.withheld else gains[0]),
        ("clean accuracy", of(before.clean_accuracy, before.clean_interval),
         of(after.clean_accuracy, after.clean_interval), gains[1]),
        ("verdict on the robust number", before.verdict, after.verdict, ""),
    ]  # fmt: skip


def _reasons(proof: "Proof") -> list[tuple[str, str, str]]:
    """Return when, consequence and sentence of every finding for which a number is suspect or withheld."""
    return [
        (when, found.consequence, found.sentence)
        for when, of in (("before", proof.before), ("after", proof.after))
        for found in of.findings
        if found.consequence in ("suspect", "withheld")
    ]


def _epoch(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"speed": row["images"] / row["seconds"] if row["seconds"] else 0.0}


def _cards(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Return some images that were fooled before: the first that stand now, and the first that are fooled still."""
    if not len(before.x) or not figures.is_picture(before.x[0]):
        return []
    fooled = [i for i, o in enumerate(before.outcome) if o is Status.BROKEN]
    stood = [i for i in fooled if after.outcome[i] is Status.SURVIVED][:STOOD]
    fell = [i for i in fooled if after.outcome[i] is Status.BROKEN][:FELL]
    return [_card(before, after, i) for i in (*stood, *fell)]


def _card(before: Evaluation, after: Evaluation, i: int) -> dict[str, Any]:
    low, high = before.settings.get("bounds") or (0.0, 1.0)
    bounds = float(low), float(high)

    def shown(image: Any, name: str, said: str, sure: str) -> dict[str, str]:
        return {"source": embed(figures.picture(image, bounds)), "name": name, "said": said, "sure": sure}

    truth, stands = before.name(int(before.y[i])), after.outcome[i] is Status.SURVIVED
    pictures = [
        shown(before.x[i], "the image", truth, "the label"),
        shown(before.x_adv[i], "attacked before", before.name(int(before.label_adv[i])),
              confidence(float(before.confidence_adv[i]))),
    ]  # fmt: skip
    if not stands:
        sure = confidence(float(after.confidence_adv[i]))
        pictures.append(shown(after.x_adv[i], "attacked after", after.name(int(after.label_adv[i])), sure))
    return {"index": i, "truth": truth, "stands": stands, "pictures": pictures, "small": max(before.x.shape[-2:]) < 100}


def _cost(proof: "Proof", uncounted: str) -> list[tuple[str, str]]:
    cost = proof.training.cost()
    images, beside = max(1, cost["images"]), f", {uncounted} not counted" if uncounted else ""
    speed = cost["images"] / cost["seconds"] if cost["seconds"] else 0.0
    return [
        ("Training", f"{cost['seconds']:,.1f} s for {counted(len(proof.training.lines), 'epoch')}, "
         f"{speed:,.0f} images a second"),
        ("Passes", f"{cost['forward']:,.0f} forward and {cost['backward']:,.0f} backward, "
         f"{cost['forward'] / images:.1f} and {cost['backward'] / images:.1f} an image{beside}"),
        ("Judging", f"{cost['judging']:,.1f} s: {counted(proof.training.n, 'row')} under two attacks, every epoch"),
        ("Proof", f"{proof.before.seconds:,.1f} s before and {proof.after.seconds:,.1f} s after, suite "
         f"{proof.after.suite}"),
    ]  # fmt: skip


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the training's settings and the recipe's side by side, without the hashes of weights and data."""
    rest = {k: v for k, v in settings.items() if k not in ("recipe", "module", "data", "objective")}
    return {**(settings.get("recipe") or {}), **rest}


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that are set, as text."""
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in settings.items()
        if value is not None and value is not False and value != ""
    ]
