"""From a hardening to one page that people read: what was gained, how training went, what it cost."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfooled.core import record
from unfooled.core.result import Evaluation, Status
from unfooled.errors import MissingExtra
from unfooled.harden import WAYS
from unfooled.report import figures
from unfooled.report.page import confidence, embed, percent, span, template, threat_name

if TYPE_CHECKING:
    from unfooled.evaluate.hardened import Proof

STOOD, FELL = 4, 4  # examples shown of those that hardening saved, and of those that are broken after it too


def write(proof: "Proof", out: Path | str, *, command: str = "") -> Path:
    """Write `report.html`, and `training.png` where matplotlib is installed, into the folder `out`; return the page."""
    out = Path(out)
    try:
        curve = proof.training.image()
        record.write_bytes(out / "training.png", curve)
    except MissingExtra:
        curve = b""
    return record.write_text(out / "report.html", render(proof, curve, command=command))


def render(proof: "Proof", curve: bytes, *, command: str = "", written: str | None = None) -> str:
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
        "curve": figures.data_uri(curve) if curve else "",
        "epochs": [_epoch(row) for row in training.rows()],
        "cards": _cards(before, after),
        "cost": _cost(proof),
        "settings": _settings(training.settings),
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


def _epoch(row: dict[str, Any]) -> dict[str, Any]:
    speed = row["images"] / row["seconds"] if row["seconds"] else 0.0
    return row | {"speed": speed, "clean_error": 1 - row["clean"], "error": 1 - row["strong"]}


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


def _cost(proof: "Proof") -> list[tuple[str, str]]:
    cost = proof.training.cost()
    images = max(1, cost["images"])
    speed = cost["images"] / cost["seconds"] if cost["seconds"] else 0.0
    return [
        ("Training", f"{cost['seconds']:,.1f} s for {len(proof.training.lines)} epochs, {speed:,.0f} images a second"),
        ("Passes", f"{cost['forward']:,.0f} forward and {cost['backward']:,.0f} backward, "
         f"{cost['forward'] / images:.1f} and {cost['backward'] / images:.1f} an image"),
        ("Judging", f"{cost['judging']:,.1f} s: {proof.training.n} rows under two attacks, every epoch"),
        ("Proof", f"{proof.before.seconds:,.1f} s before and {proof.after.seconds:,.1f} s after, suite "
         f"{proof.after.suite}"),
    ]  # fmt: skip


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the recipe's settings and the training's, flat; hashes of weights and data are left to the files."""
    recipe = settings.get("recipe") or {}
    rest = {k: v for k, v in settings.items() if k not in ("recipe", "module", "data", "objective")}
    return [(name, str(value)) for name, value in {**recipe, **rest}.items() if value not in (None, "")]
