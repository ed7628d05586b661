"""The report page: what a record says, in words, tables and pictures, as one static HTML file without any script.

Everything that comes from data, targets or settings is text to the page: the template escapes every value, control
characters and direction overrides are removed before, charts and pictures are `data:` images, and the page's own
policy forbids scripts and any request.
"""

import functools
import math
import re
from collections import Counter
from typing import Any

from unfooled.core.result import UNDECIDED, Evaluation, Status
from unfooled.errors import safe_text as safe_text
from unfooled.report import figures
from unfooled.stats import wilson

GALLERY = 12  # examples shown
WRONG = 6  # confidently wrong before any attack
CLASSES = 20  # rows of the per-class table
HEAT = 12  # classes of the heat table; with more, the most frequent pairs are listed
PAIRS = 15
NOTES = 40
SIDE = 224  # longer edge of an embedded picture


def short(text: object, length: int = 48) -> str:
    """Return `text` cleaned and cut to `length` characters."""
    clean = safe_text(str(text)).strip()
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"


def percent(value: float | None, digits: int = 1) -> str:
    """Return 0.4321 as "43.2%", an en dash for an unknown value."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}%"


def confidence(value: float | None) -> str:
    """Return a confidence as a percentage that is 0.0% or 100.0% only where it is exactly that."""
    if value is not None and 0.9995 <= value < 1:
        return ">99.9%"
    return "<0.1%" if value is not None and 0 < value < 0.0005 else percent(value)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with at most `digits` significant digits, an en dash for an unknown value."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def render(evaluation: Evaluation, *, images: bool = True, written: str = "") -> str:
    """Return the report page of `evaluation`; without `images` no example is shown."""
    return template("report.html.j2").render(_view(evaluation, images=images, written=written)) + "\n"


@functools.cache
def template(name: str) -> Any:
    """Return one of the page templates; what is text in their data is escaped and shown on one line."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unfooled.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: safe_text(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": percent, "confidence": confidence, "number": number, "short": short, "grouped": _grouped,
    }  # fmt: skip
    return environment.get_template(name)


def _view(e: Evaluation, *, images: bool, written: str) -> dict[str, Any]:
    broken = [i for i, o in enumerate(e.outcome) if o is Status.BROKEN]
    low, high = e.robust_interval
    noun = "images" if len(e.x) and figures.is_picture(e.x[0]) else "examples"
    return {
        "e": e,
        "low": low,
        "high": high,
        "noun": noun,
        "counts": _counts(e),
        "findings": _findings(e),
        "consequences": _consequences(e),
        "rejection": _rejection(e),
        "spans": span,
        "of_n": lambda share: wilson(round(share * e.n), e.n),
        "threat": explain_threat(e),
        "threat_name": threat_name(e.threat),
        "attacks": passes(e),
        "classes": _classes(e),
        "confidence": _confidence(e, broken, noun),
        "effort": _effort(e, broken, noun),
        "gallery": _gallery(e, broken) if images else [],
        "wrong": _wrong(e) if images else [],
        "images": images,
        "confusion": _confusion(e, broken),
        "curve": _curve(e),
        "notes": e.notes[:NOTES],
        "notes_left": max(0, len(e.notes) - NOTES),
        "versions": sorted(e.versions.items()),
        "command": e.command or _call(e),
        "written": written,
    }


CONSEQUENCES = {
    "noted": "said, and changes nothing",
    "repaired": "mended on a copy of the target, the number stands",
    "escalated": "attacks that can cope with it were run because of it",
    "suspect": "puts the number in doubt",
    "withheld": "no number is given",
}


def _findings(e: Evaluation) -> list[dict[str, Any]]:
    gravest = list(CONSEQUENCES)
    rows = [(f.consequence if f.consequence in CONSEQUENCES else "noted", f) for f in e.findings]
    rows.sort(key=lambda row: -gravest.index(row[0]))
    return [{"kind": kind, "of": f} for kind, f in rows]


def _consequences(e: Evaluation) -> list[tuple[str, str]]:
    return [(k, meaning) for k, meaning in CONSEQUENCES.items() if any(f.consequence == k for f in e.findings)]


def _rejection(e: Evaluation) -> list[tuple[str, float, float, float]]:
    """Return the rows of the table: when, right and accepted, rejected, wrong and accepted."""
    if (r := e.rejection) is None:
        return []
    return [
        ("before any attack", r.clean_right, r.clean_rejected, r.wrong["clean_wrong_accepted"]),
        ("under attack", r.right, r.rejected, r.wrong["wrong_accepted"]),
    ]


def span(interval: tuple[float, float] | None) -> str:
    """Return an interval as "38.9–47.6%", an en dash for none."""
    return "–" if interval is None else f"{100 * interval[0]:.1f}–{percent(interval[1])}"


def _counts(e: Evaluation) -> list[dict[str, Any]]:
    undecided, failed = e.count(*UNDECIDED) - e.count(Status.FAILED), e.count(Status.FAILED)
    right = e.n - e.count(Status.MISCLASSIFIED)
    rate = (
        f"; {percent(e.success_rate)} ({span(e.success_interval)}) of the {right:,} right at first"
        if right and not e.withheld
        else ""
    )
    parts = [
        ("wrong", "wrong before any attack", e.count(Status.MISCLASSIFIED), "misclassified as they are"),
        ("broken", "broken", e.count(Status.BROKEN), f"right at first, fooled inside the threat{rate}"),
        ("survived", "survived", e.count(Status.SURVIVED), "no attack tried here fooled it"),
    ]
    if undecided:
        parts.append(("open", "not finished", undecided, "right at first, attacks not all run"))
    if failed:
        parts.append(("open", "failed", failed, "the target raised on it; neither broken nor robust"))
    rows = [
        {
            "kind": kind,
            "label": label,
            "k": k,
            "share": k / e.n if e.n else 0.0,
            "span": span(wilson(k, e.n)),
            "meaning": meaning,
        }
        for kind, label, k, meaning in parts
    ]
    if invalid := e.count(Status.INVALID):
        meaning = "no number came out, or the input is none; left out of every share"
        rows.append({"kind": "invalid", "label": "not counted", "k": invalid, "share": None, "meaning": meaning})
    return rows


def threat_name(threat: str) -> str:
    """Return "linf(0.03137254901960784)" as "linf(8/255)"; what has a short decimal form stays."""
    parsed = re.fullmatch(r"(\w+)\(([0-9.e+-]+)\)", threat.strip())
    if not parsed or len(parsed[2]) <= 6:
        return threat
    try:
        eps = float(parsed[2])
    except ValueError:
        return threat
    levels = eps * 255
    exact = abs(levels - round(levels)) < 2e-5 * max(1.0, levels) and 1 <= levels
    return f"{parsed[1]}({round(levels)}/255)" if exact else f"{parsed[1]}({eps:.4g})"


def explain_threat(e: Evaluation) -> list[str]:
    """Return what the attacker may do, in sentences; just its name when it is no norm ball."""
    parsed = re.fullmatch(r"(linf|l2|l1|l0)\((.+)\)", e.threat.strip())
    low, high = _bounds(e)
    values = math.prod(e.x.shape[1:])
    if not parsed:
        return []
    try:
        norm, eps = parsed[1], float(parsed[2])
    except ValueError:
        return []
    if math.isinf(eps):
        return [f"The attacker looks for the smallest change, without a limit, measured in {norm}."]
    grey = eps / (high - low) * 255
    pictures = len(e.x) > 0 and figures.is_picture(e.x[0])
    scale = f"on the scale from {low:g} to {high:g}"
    if norm == "linf":
        text = [f"Each of the {values:,} input values may change by up to {eps:.6g} {scale}."]
        if pictures:
            text.append(f"In 8-bit units that is {grey:.4g} of 255 grey levels.")
            if grey < 0.5:
                text.append("That is below half a grey level: nothing of it survives in an 8-bit file.")
    elif norm == "l2":
        each = eps / math.sqrt(values)
        text = [f"The Euclidean length of the change of all {values:,} values together is at most {eps:.6g} {scale}."]
        text.append(f"Spread evenly, every value moves by {each:.4g}")
        text[-1] += f", {each / (high - low) * 255:.4g} of 255 grey levels." if pictures else "."
    elif norm == "l1":
        text = [f"The absolute changes of all {values:,} values add up to at most {eps:.6g} {scale}."]
        if pictures:
            text.append(f"In 8-bit units the sum is {grey:,.0f} grey levels: about {eps / (high - low):.3g} values")
            text[-1] += " from one end of the scale to the other."
    else:
        text = [f"At most {eps:g} of the {values:,} input values may change, each as far as the scale goes."]
    return [*text, f"Every changed input stays between {low:g} and {high:g}."]


def _norm(e: Evaluation) -> str:
    """Return the threat's norm where it is one; charts, whose titles vega compiles, get no word from outside."""
    norm = e.threat.partition("(")[0]
    return norm if norm in ("linf", "l2", "l1", "l0") else ""


def _bounds(e: Evaluation) -> tuple[float, float]:
    bounds = e.settings.get("bounds") or (0.0, 1.0)
    return float(bounds[0]), float(bounds[1])


def passes(e: Evaluation) -> dict[str, Any]:
    """Return the attacks' rows and the passes that stand in none of them, so that a table adds up to the totals.

    `other_` are those of the first look, `spare_` rows of batches that are charged to no example: rows + other - spare
    = total, forward and backward.
    """
    ran = [row for row in e.attacks if not row.skipped]
    forward, backward = sum(r.forward for r in ran), sum(r.backward for r in ran)
    nobody = [_pair(e.settings.get(name)) for name in ("padding", "overrun")]  # rows sent that belong to no example
    spare = nobody[0][0] + nobody[1][0], nobody[0][1] + nobody[1][1]
    return {
        "rows": e.attacks,
        "papers": any(row.paper for row in e.attacks),
        "other_forward": e.forward_total + spare[0] - forward,
        "other_backward": e.backward_total + spare[1] - backward,
        "spare_forward": spare[0],
        "spare_backward": spare[1],
    }


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else (0, 0)


def _classes(e: Evaluation) -> dict[str, Any]:
    labels, counted = e.y.tolist(), e.counted.tolist()
    total: Counter[int] = Counter(c for c, k in zip(labels, counted, strict=True) if k)
    wrong = (Status.MISCLASSIFIED, Status.INVALID)
    clean: Counter[int] = Counter(c for c, o in zip(labels, e.outcome, strict=True) if o not in wrong)
    stands = e.standing()
    rows: list[dict[str, Any]] = []
    for c, k in sorted(total.items()):
        shares = stands[(e.y == c) & e.counted]
        row = {"name": e.name(c), "n": k, "clean": clean[c] / k, "robust": float(shares.mean())}
        rows.append(row | {"spans": [span(wilson(clean[c], k)), span(e.interval(shares))]})
    many = len(rows) > CLASSES
    if many:
        rows.sort(key=lambda r: (r["robust"], r["clean"], -r["n"]))
    return {"rows": rows[:CLASSES], "left": max(0, len(rows) - CLASSES), "sorted": many}


def _confidence(e: Evaluation, broken: list[int], noun: str) -> dict[str, Any] | None:
    import statistics

    after = [c for i in broken if math.isfinite(c := float(e.confidence_adv[i]))]
    if not after:
        return None
    before = [c for i in broken if math.isfinite(c := float(e.confidence_clean[i]))]
    edges, counts = figures.counted(after, bins=10, extent=(0.0, 1.0))
    chart = None
    if len(after) >= 5:
        chart = _chart(
            lambda theme: figures.histogram(
                after, theme, title="confidence in the wrong class", unit=noun, percent=True, extent=(0.0, 1.0)
            )
        )
    return {
        "n": len(after),
        "median": statistics.median(after),
        "before": statistics.median(before) if before else None,
        "sure": sum(c >= 0.9 for c in after) / len(after),
        "chart": chart,
        "rows": [(a, b, k) for a, b, k in zip(edges, edges[1:], counts, strict=False)],
    }


def _effort(e: Evaluation, broken: list[int], noun: str) -> list[dict[str, Any]]:
    charts = []
    steps = [float(s) for i in broken if (s := int(e.steps_to_break[i])) >= 0]
    if len(steps) >= 5 and len(set(steps)) >= 3:
        charts.append(("steps", "Steps until an example broke", "steps until broken", steps))
    norm = _norm(e)
    distances = [d for i in broken if math.isfinite(d := float(e.distance[i]))]
    if len(distances) >= 5 and max(distances) - min(distances) > 0.05 * max(distances):
        charts.append(
            (
                "distance",
                "Size of the change that broke it",
                f"size of the change{norm and f' ({norm})'}",
                distances,
            )
        )
    result = []
    for kind, heading, title, values in charts:
        edges, counts = figures.counted(values, bins=20)
        result.append(
            {
                "kind": kind,
                "heading": heading,
                "chart": _chart(lambda t, v=values, n=title: figures.histogram(v, t, title=n, unit=noun)),
                "rows": [(a, b, k) for a, b, k in zip(edges, edges[1:], counts, strict=False) if k],
                "median": sorted(values)[len(values) // 2],
                "n": len(values),
            }
        )
    return result


def worst(e: Evaluation, count: int = GALLERY) -> list[int]:
    """Return the indices of the most confidently fooled examples, at most two of a class while others are left."""
    fooled = [i for i, o in enumerate(e.outcome) if o is Status.BROKEN]

    def wrongness(i: int) -> tuple[float, float, int]:
        confidence, margin = float(e.confidence_adv[i]), float(e.margin[i])
        return (-confidence if math.isfinite(confidence) else 0.0, margin if math.isfinite(margin) else 0.0, i)

    ranked = sorted(fooled, key=wrongness)
    seen: Counter[int] = Counter()
    first: list[int] = []
    later: list[int] = []
    for i in ranked:
        seen[int(e.y[i])] += 1
        (first if seen[int(e.y[i])] <= 2 else later).append(i)
    return sorted((first + later)[:count], key=wrongness)


def _gallery(e: Evaluation, broken: list[int]) -> list[dict[str, Any]]:
    return [_card(e, i) for i in worst(e)]


def _card(e: Evaluation, i: int) -> dict[str, Any]:
    x, x_adv, bounds = e.x[i], e.x_adv[i], _bounds(e)
    card: dict[str, Any] = {
        "index": i,
        "truth": e.name(int(e.y[i])),
        "before": e.name(int(e.label_clean[i]) if int(e.label_clean[i]) >= 0 else int(e.y[i])),
        "after": e.name(int(e.label_adv[i])),
        "sure_before": float(e.confidence_clean[i]),
        "sure_after": float(e.confidence_adv[i]),
        "distance": float(e.distance[i]),
        "steps": int(e.steps_to_break[i]),
        "by": e.broken_by[i],
        "pictures": [],
        "values": [],
    }
    if figures.is_picture(x) or figures.is_strip(x):
        draw = figures.picture if figures.is_picture(x) else figures.strip
        shift, card["factor"] = figures.change(x, x_adv, bounds)
        card["wide"] = not figures.is_picture(x)
        shown = [("original", draw(x, bounds)), ("change", draw(shift)), ("adversarial", draw(x_adv, bounds))]
        card["pictures"] = [(name, embed(image)) for name, image in shown]
        card["small"] = max(shown[0][1].size) < 100
    else:
        card["values"] = _changed_values(x, x_adv)
        card["values_left"] = max(0, int((x != x_adv).sum()) - len(card["values"]))
    return card


def embed(image: Any) -> str:
    """Return a picture as a data: address, its longer edge `SIDE` pixels at most."""
    return figures.data_uri(figures.png(figures.reduced(image, SIDE)))


def _changed_values(x: Any, x_adv: Any, count: int = 6) -> list[tuple[int, float, float]]:
    flat, flat_adv = x.flatten().double(), x_adv.flatten().double()
    order = (flat_adv - flat).abs().argsort(descending=True, stable=True)[:count].tolist()
    return [(j, float(flat[j]), float(flat_adv[j])) for j in order if flat[j] != flat_adv[j]]


def _wrong(e: Evaluation) -> list[dict[str, Any]]:
    sure = [
        (float(e.confidence_clean[i]), i)
        for i, o in enumerate(e.outcome)
        if o is Status.MISCLASSIFIED and math.isfinite(float(e.confidence_clean[i])) and int(e.label_clean[i]) >= 0
    ]
    cards = []
    for confidence, i in sorted(sure, reverse=True)[:WRONG]:
        x, bounds = e.x[i], _bounds(e)
        image = ""
        if figures.is_picture(x) or figures.is_strip(x):
            draw = figures.picture if figures.is_picture(x) else figures.strip
            image = embed(draw(x, bounds))
        card = {"index": i, "truth": e.name(int(e.y[i])), "said": e.name(int(e.label_clean[i])), "sure": confidence}
        cards.append(card | {"image": image, "small": max(x.shape[-2:], default=0) < 100})
    return cards


def _confusion(e: Evaluation, broken: list[int]) -> dict[str, Any] | None:
    pairs = Counter((int(e.y[i]), int(e.label_adv[i])) for i in broken if int(e.label_adv[i]) >= 0)
    if not pairs:
        return None
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    involved = sorted({c for pair in pairs for c in pair})
    most = ranked[0][1]
    heat = None
    if len(involved) <= HEAT:
        heat = {
            "names": [e.name(c) for c in involved],
            "rows": [
                (e.name(a), [(pairs[a, b], pairs[a, b] / most, a == b) for b in involved])
                for a in involved
                if any(pairs[a, b] for b in involved)
            ],
        }
    return {
        "heat": heat,
        "pairs": [(e.name(a), e.name(b), k, k / most) for (a, b), k in ranked[:PAIRS]],
        "left": max(0, len(ranked) - PAIRS),
        "n": sum(pairs.values()),
    }


def _curve(e: Evaluation) -> dict[str, Any] | None:
    if not e.curve:
        return None
    points = sorted(e.curve, key=lambda p: p.eps)
    norm = _norm(e)
    low, high = _bounds(e)
    in_levels = norm == "linf" and len(e.x) > 0 and figures.is_picture(e.x[0])
    chart = _chart(
        lambda theme: (
            figures.curve_chart(points, theme, clean=e.clean_accuracy, eps_title=f"eps{norm and f' ({norm})'}")
            if len(points) > 1
            else None
        )
    )
    return {
        "points": points,
        "chart": chart,
        "n": max(p.n for p in points),
        "levels": 255 / (high - low) if in_levels else None,
    }


def _chart(build: Any) -> dict[str, str] | None:
    light, dark = build("light"), build("dark")
    if light is None:
        return None
    return {
        name: figures.data_uri(figures.svg(chart), "image/svg+xml")
        for name, chart in (("light", light), ("dark", dark))
    }


def _call(e: Evaluation) -> str:
    threat = f", uf.{e.threat}" if re.fullmatch(r"(linf|l2|l1|l0)\([0-9.e+-]+\)", e.threat) else ""
    return f"uf.evaluate(target, x, y{threat}, suite={e.suite!r}, seed={e.seed})"


def _grouped(value: int) -> str:
    return f"{value:,}"
