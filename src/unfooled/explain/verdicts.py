"""What a hypothesis is: predictions with rules stated first, measured with intervals, and the verdict that follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.explanation import COLOURS, INK, SOFT, Explanation
from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Verdict = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What the literature says, and where."""

    claim: str
    source: str


LITERATURE: dict[str, Claim] = {
    "overfitting": Claim(
        "The first solution that training finds has quirks of its own; more data and less capacity would remove them.",
        "Szegedy et al. 2013, arXiv:1312.6199, section 4, tests it by other nets and disjoint halves",
    ),
    "linearity": Claim(
        "Networks are too linear: many small changes along the sign of the gradient add up.",
        "Goodfellow et al. 2014, arXiv:1412.6572, sections 3 to 5 and 8",
    ),
    "dimension": Claim(
        "In many dimensions every point lies close to any error, so that changes small for the data suffice.",
        "Gilmer et al. 2018, arXiv:1801.02774; Simon-Gabriel et al. 2018, arXiv:1802.01421",
    ),
    "features": Claim(
        "Networks use features that predict the class and that small changes can flip.",
        "Ilyas et al. 2019, arXiv:1905.02175, section 3.2",
    ),
    "patches": Claim(
        "Networks match patches from a dictionary and see no whole.",
        "Brendel and Bethge 2019, arXiv:1904.00760; Geirhos et al. 2018, arXiv:1811.12231",
    ),
    "dimpled manifold": Claim(
        "The boundary clings to the image manifold; small perpendicular dimples are crossed by leaving it.",
        "Shamir et al. 2021, arXiv:2106.10151",
    ),
}


"""The explanations that are tested here, by name. The spheres of Gilmer et al. are measured in `spheres`."""


@dataclass(frozen=True)
class Rule:
    """What must be seen: values from `supported` on support the hypothesis, those from `contradicted` on speak against.

    Where `supported` is the larger of the two, large values support it. Between them, and where an interval straddles
    one of them, nothing is decided. `reason` says why the thresholds are where they are.
    """

    what: str
    supported: float
    contradicted: float
    reason: str

    def __post_init__(self) -> None:
        """Refuse thresholds that say nothing."""
        if not (math.isfinite(self.supported) and self.supported - self.contradicted):
            raise InputError(f"supported={self.supported} and contradicted={self.contradicted} must be two numbers.")

    def judge(self, low: float, high: float) -> Verdict:
        """Return the verdict of an interval; `undecided` where an end is not known."""
        sign = 1 if self.supported > self.contradicted else -1
        worst, best = sorted((sign * low, sign * high)) if not math.isnan(low + high) else (-math.inf, math.inf)
        if worst >= sign * self.supported:
            return "supported"
        return "contradicted" if best <= sign * self.contradicted else "undecided"

    def __str__(self) -> str:
        """Return the rule in words."""
        words = ("at least", "at most") if self.supported > self.contradicted else ("at most", "at least")
        return f"{words[0]} {self.supported:g} supports, {words[1]} {self.contradicted:g} contradicts"


@dataclass(frozen=True)
class Prediction:
    """One prediction measured: `value` in [`low`, `high`] (95%), `control` the same of what `against` names."""

    rule: Rule
    value: float
    low: float
    high: float
    n: int
    control: float = math.nan
    against: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the rule says of the interval."""
        return self.rule.judge(self.low, self.high)

    def __str__(self) -> str:
        """Return the measurement in words."""
        beside = "" if math.isnan(self.control) else f", {self.against} {self.control:.3g}"
        return f"{self.rule.what} {self.value:.3g} ({self.low:.3g} to {self.high:.3g}{beside}): {self.verdict}"


def judge(predictions: Sequence[Prediction]) -> Verdict:
    """Return the verdict on a hypothesis as the main cause.

    One contradicted prediction contradicts it, since a main cause must show everywhere; it is supported where all are.
    """
    verdicts = {p.verdict for p in predictions}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "undecided"


@dataclass(frozen=True, eq=False)
class Hypothesis(Explanation):
    """One hypothesis on one target: its predictions as measured, and what `judge` makes of them.

    `series` holds what was swept on the way, by name: a list of plain rows each.
    """

    name: str
    target: str
    predictions: tuple[Prediction, ...]
    series: dict[str, list[dict[str, float]]]

    size = (7.0, 4.6)

    @property
    def claim(self) -> str:
        """What the literature says."""
        return LITERATURE[self.name].claim

    @property
    def source(self) -> str:
        """Where it says so."""
        return LITERATURE[self.name].source

    @property
    def prediction(self) -> str:
        """What must be seen if it is the main cause."""
        return "; ".join(f"{p.rule.what}: {p.rule}" for p in self.predictions)

    @property
    def measurement(self) -> str:
        """What was seen, in one line."""
        return "; ".join(map(str, self.predictions))

    @property
    def control(self) -> str:
        """What each number was set against."""
        known = [f"{p.rule.what}: {p.against} {p.control:.3g}" for p in self.predictions if p.against]
        return "; ".join(known)

    @property
    def verdict(self) -> Verdict:
        """`supported`, `contradicted` or `undecided`."""
        return judge(self.predictions)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a prediction."""
        return [
            {
                "hypothesis": self.name,
                "target": self.target,
                "prediction": p.rule.what,
                "rule": str(p.rule),
                "reason": p.rule.reason,
                "value": p.value,
                "low": p.low,
                "high": p.high,
                "control": p.control,
                "against": p.against,
                "n": p.n,
                "verdict": p.verdict,
            }
            for p in self.predictions
        ]

    def sentence(self) -> str:
        """Return the verdict with the numbers and controls behind it."""
        return f"As the main cause, {self.name} is {self.verdict} on {self.target}: {self.measurement}."

    def draw(self, figure: "Figure") -> None:
        """Draw each prediction: the interval between the region that supports it and the one that contradicts it."""
        axes = figure.subplots(len(self.predictions), 1, squeeze=False)[:, 0]
        for ax, p in zip(axes, self.predictions, strict=True):
            yes, no = p.rule.supported, p.rule.contradicted
            marks = [v for v in (p.low, p.value, p.high, p.control, yes, no) if math.isfinite(v)]
            room = 0.12 * (max(marks) - min(marks))
            lo, hi = min(marks) - room, max(marks) + room
            up = yes > no
            ax.axvspan(yes, hi if up else lo, color=COLOURS[2], alpha=0.16, lw=0)
            ax.axvspan(lo if up else hi, no, color=COLOURS[1], alpha=0.16, lw=0)
            for at, word, right in ((yes, "supports", up), (no, "contradicts", not up)):
                ax.annotate(word, (at, 0.03), (3 if right else -3, 0), textcoords="offset points", fontsize=7,
                            color=SOFT, ha="left" if right else "right")  # fmt: skip
            if p.against:
                ax.plot([p.control] * 2, [0.3, 0.7], color=COLOURS[9], lw=3, solid_capstyle="butt")
            ax.plot([p.low, p.high], [0.5, 0.5], color=INK, lw=1.5)
            ax.plot([p.value], [0.5], "o", color=COLOURS[0], ms=6)
            ax.set_xlim(lo, hi)
            ax.set_ylim(0, 1)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            grey = f"; grey: {p.against}" if p.against else ""
            ax.set_title(f"{p.rule.what}: {p.verdict}{grey}", fontsize=8.5)
        figure.suptitle(f"{self.name} on {self.target}: {self.verdict}", x=0.01, ha="left", fontsize=11)


@dataclass(frozen=True, eq=False)
class Verdicts(Explanation):
    """Hypotheses side by side, one or more targets each."""

    found: tuple[Hypothesis, ...]

    size = (7.6, 3.6)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a hypothesis and target."""
        return [
            {
                "hypothesis": h.name,
                "target": h.target,
                "claim": h.claim,
                "source": h.source,
                "prediction": h.prediction,
                "measurement": h.measurement,
                "control": h.control,
                "verdict": h.verdict,
            }
            for h in self.found
        ]

    def sentence(self) -> str:
        """Return which hypotheses stand and fall as the main cause."""
        parts = []
        for verdict in ("supported", "undecided", "contradicted"):
            names = [f"{h.name} ({h.target})" for h in self.found if h.verdict == verdict]
            parts += [f"{verdict}: {', '.join(names)}"] if names else []
        return f"As the main cause, {'; '.join(parts)}."

    def draw(self, figure: "Figure") -> None:
        """Draw a table of verdicts, predictions counted."""
        names, targets = (list(dict.fromkeys(values)) for values in
                          zip(*((h.name, h.target) for h in self.found), strict=True))  # fmt: skip
        colours = {"supported": COLOURS[2], "contradicted": COLOURS[1], "undecided": COLOURS[9]}
        ax = figure.subplots()
        for h in self.found:
            x, y = targets.index(h.target), names.index(h.name)
            ax.add_patch(_box(x, y, colours[h.verdict]))
            held = sum(p.verdict == "supported" for p in h.predictions)
            ax.text(x, y - 0.12, h.verdict, ha="center", va="center", fontsize=8, weight="bold")
            ax.text(
                x, y + 0.2, f"{held} of {len(h.predictions)} predictions hold", ha="center", va="center", fontsize=7
            )
        ax.set_xticks(range(len(targets)), targets)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(targets) - 0.5)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.xaxis.tick_top()


def _box(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.45), 0.96, 0.9, color=colour, alpha=0.3, lw=0)


def verdicts(found: Sequence[Hypothesis]) -> Verdicts:
    """Return measured hypotheses side by side; raises InputError for none."""
    if not found:
        raise InputError("Give at least one measured hypothesis, such as what explain.by_patches returns.")
    return Verdicts(tuple(found))
