"""The truth between two numbers: certified from below, attacked from above, example by example."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unfooled.certify.bounds import certified_radius
from unfooled.certify.smoothing import draws_for, largest_radius, predict, smoothed
from unfooled.core.attack import parse
from unfooled.core.data import Data
from unfooled.core.engine import last_iterate
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.network import NoBounds
from unfooled.core.result import Progress, Status
from unfooled.core.run import check_inputs, run
from unfooled.core.target import Target, untouched
from unfooled.core.threat import Ball, as_threat
from unfooled.errors import InputError
from unfooled.evaluate.measure import _data, _target, evaluate
from unfooled.evaluate.preflight import check_threat
from unfooled.harden import Noisy
from unfooled.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["auto", "crown", "ibp", "smoothing"]
METHODS = ("auto", "crown", "ibp", "smoothing")

SMALLEST = {"linf": "fmn(steps=50)", "l2": "ddn(steps=50)", "l1": "fmn(steps=50)"}
"""What looks for the smallest change beside the suite: its size must reach every certified radius."""

ON_NOISE = ("pgd(steps=20, schedule='cosine')", "pgd(steps=20, loss='margin', schedule='cosine')")
"""What attacks a smoothed classifier, along gradients that are averaged over draws of its noise."""

RADII = (0.5, 1.0, 1.5)  # of the threat's eps, at which a smoothed classifier is attacked
DRAWS = 16  # of the noise, behind every gradient
CHECKED = 1000  # draws that say what the smoothed classifier answers where an attack ended
FARTHEST = 2.0  # of the threat's eps, up to which radii are certified
HALVINGS = 5  # of that range; the first is the threat's eps itself
ROUNDING = 1e-6  # of distances measured in float32
NAMED = 5  # contradictions that a sentence names
MOST = 1_000_000  # draws that are worth proposing

ELSE = "Of any other classifier, smoothing certifies what it answers behind noise, in L2: --method smoothing."


@dataclass(frozen=True)
class Bracket(Explanation):
    """What is certified and what is broken, for each of n examples.

    `clean` bool [n] is right without any attack, `radius` float64 [n] up to where no input has another class (0 where
    nothing is certified), `reach` float64 [n] the size of the smallest change that an attack found (infinite: none, 0
    where neither clean nor unsure). `unsure` bool [n] are those that the smoothed classifier abstained on: neither
    clean nor broken until an attack shows another class. With a `sigma` all of it is about the target behind Gaussian
    noise of that deviation: each of its certificates is wrong with a probability of at most `alpha` over `draws` draws.
    `status` is the verdict of doctor and controls on the attacks. `unfinished` examples were not attacked to the end,
    where Ctrl-C `interrupted` the attacks.
    The radii are found to `eps` / 16 from below.
    """

    clean: Tensor
    unsure: Tensor
    radius: Tensor
    reach: Tensor
    labels: Tensor
    eps: float
    threat: str
    target: str
    data: str
    method: str
    attacks: str
    status: str
    unfinished: int = 0
    interrupted: bool = False
    sigma: float = 0.0
    alpha: float = 0.0
    draws: int = 0

    size: ClassVar[tuple[float, float]] = (7.0, 4.0)

    @property
    def certified(self) -> Tensor:
        """Bool [n]: no input within the threat is classified otherwise."""
        return self.clean & (self.radius >= self.eps)

    @property
    def attacked(self) -> Tensor:
        """Bool [n]: right or unsure, and no attack found an input within the threat that is wrong."""
        return (self.clean | self.unsure) & (self.reach > self.eps * (1 + ROUNDING))

    @property
    def exit_code(self) -> int:
        """Return 0, 3 where the numbers contradict each other or the attacks are suspect, 4 where they are withheld.

        130 where Ctrl-C stopped the attacks.
        """
        if self.interrupted:
            return 130
        if self.contradictions or self.status.startswith("suspect"):
            return 3
        return 4 if self.status.startswith("withheld") else 0

    @property
    def contradictions(self) -> tuple[int, ...]:
        """Examples that an attack changed within their certified radius: one of the two is wrong."""
        return tuple((self.clean & (self.radius > self.reach + ROUNDING)).nonzero()[:, 0].tolist())

    def interval(self, which: Literal["clean", "certified", "attacked"]) -> tuple[float, float]:
        """Return the 95% Wilson interval of a share, over the choice of examples."""
        return wilson(int(getattr(self, which).sum()), len(self.clean))

    def curve(self, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Return the certified and the attacked accuracy at each radius [m], float64 [m] both."""
        reached = radii.double().view(-1, 1)
        certified = (self.clean & (self.radius >= reached)).double().mean(1)
        standing = (self.clean | self.unsure) & (self.reach > reached * (1 + ROUNDING))
        attacked = standing.double().mean(1)
        return certified, attacked

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per example; a reach of None: no attack found anything."""
        reach = [None if r == float("inf") else r for r in self.reach.tolist()]
        return [
            {"example": i, "label": y, "clean": c, "certified": s, "radius": r, "broken": c and not a, "reach": d}
            for i, (y, c, s, r, a, d) in enumerate(
                zip(
                    self.labels.tolist(), self.clean.tolist(), self.certified.tolist(), self.radius.tolist(),
                    self.attacked.tolist(), reach, strict=True,
                )
            )
        ]  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return counts, shares and intervals as plain numbers, with what they are about."""
        counts = {name: int(getattr(self, name).sum()) for name in ("clean", "certified", "attacked")}
        return {
            "sentence": self.sentence(), "n": len(self.clean), **counts,
            "intervals": {name: list(self.interval(name)) for name in ("clean", "certified", "attacked")},
            "contradictions": list(self.contradictions), "unfinished": self.unfinished, "interrupted": self.interrupted,
            **{name: getattr(self, name) for name in
               ("threat", "eps", "target", "data", "method", "attacks", "status", "sigma", "alpha", "draws")},
        }  # fmt: skip

    def sentence(self) -> str:
        """Return the two numbers with their intervals; what contradicts itself comes first."""
        n = len(self.clean)

        def share(which: Literal["clean", "certified", "attacked"]) -> str:
            low, high = self.interval(which)
            return f"{int(getattr(self, which).sum()) / n:.1%} ({low:.1%} to {high:.1%})"

        told = (
            f"Robust accuracy within {self.threat} lies between {share('certified')}, certified by {self.method}, and "
            f"{share('attacked')}, left standing by {self.attacks}; clean accuracy {share('clean')} (n = {n}, 95% "
            f"intervals over the choice of examples). Verdict on the attacks: {self.status}."
        )
        if unsure := int(self.unsure.sum()):
            told += f" On {unsure} examples it abstained; they count as standing until an attack shows another class."
        if self.sigma:
            told = (
                f"This is about {self.target} smoothed by Gaussian noise of sigma = {self.sigma:g}, which answers the "
                f"class of most of its noisy copies, not about {self.target} itself. {told} A certificate of "
                f"{self.draws:,} draws is wrong with a probability of at most {self.alpha:g}."
            )
            told += self._too_few()
        if self.unfinished:
            told += f" {self.unfinished} examples were not attacked to the end and count as standing."
        if self.contradictions:
            first = ", ".join(map(str, self.contradictions[:NAMED]))
            told = (
                f"CONTRADICTION: {len(self.contradictions)} of {n} examples were changed by an attack within their "
                f"certified radius (first: {first}); certificate or attack is wrong, and neither number can be "
                f"trusted. {told}"
            )
        return told

    def _too_few(self) -> str:
        """Return what to do where so many draws of this noise cannot certify the eps at all; nothing where they can."""
        most = largest_radius(self.sigma, self.draws, self.alpha)
        if most >= self.eps:
            return ""
        more, unit = draws_for(self.eps, self.sigma, self.alpha), most / self.sigma
        ways = [f"{more:,} draws"] if more <= MOST else []
        ways += [f"a sigma of {1.01 * self.eps / unit:.3g}"] if unit else []
        return (
            f" {self.draws:,} draws certify no more than a radius of {most:.5g}, even where all agree: to certify "
            f"{self.eps:g}, take {' or '.join(ways) or 'more draws and a larger sigma'}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw certified accuracy against the radius, and what attacks leave above it."""
        axes = figure.subplots()
        radii = torch.linspace(0, FARTHEST * self.eps, 201, dtype=torch.float64)
        certified, attacked = (100 * v for v in self.curve(radii))
        at = radii.tolist()
        axes.plot(at, attacked.tolist(), color=COLOURS[1], label=f"attacked: {self.attacks}")
        axes.plot(at, certified.tolist(), color=COLOURS[0], label=f"certified: {self.method}")
        axes.fill_between(at, certified.tolist(), attacked.tolist(), color=COLOURS[9], alpha=0.25, linewidth=0)
        axes.axvline(self.eps, color=SOFT, linestyle=":", linewidth=1)
        axes.annotate(" eps", (self.eps, 0), color=SOFT, va="bottom")
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}.get(self.threat.partition("(")[0], "")
        axes.set(xlabel=f"radius, {name}", ylabel="accuracy, %", xlim=(0, FARTHEST * self.eps), ylim=(0, 102))
        of = f"{self.target} smoothed, sigma = {self.sigma:g}" if self.sigma else self.target
        axes.set_title(f"{of}, {self.data}: the truth lies between the lines (n = {len(self.clean)})")
        axes.legend(loc="lower left")


def bracket(
    target: Target | nn.Module | Callable[..., Any] | str,
    data: Data | Tensor | Iterable[Any] | str,
    y: Tensor | None = None,
    threat: Ball | str | None = None,
    *,
    method: Method = "auto",
    suite: str = "standard",
    sigma: float | None = None,
    draws: int = 10_000,
    alpha: float = 0.001,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data_dir: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Bracket:
    """Certify and attack the same examples, so that robust accuracy lies between the two.

    Args:
        target, data, y, threat, limit, seed, device, data_dir, progress: as for `evaluate`; a ball with a finite eps.
        method: "ibp" and "crown" are bounds on small ReLU networks (`certify.margins`), "auto" tries the first and, on
            what it leaves open, the second. "smoothing" certifies another classifier, in L2: the target's most frequent
            answer under Gaussian noise (`certify.smoothed`), which is then attacked in the target's place.
        suite: what attacks, beside a search for the smallest change; a smoothed classifier is attacked along gradients
            averaged over its noise, whatever the suite.
        sigma, draws, alpha: of smoothing; sigma is eps / 2 where none is given.

    Raises:
        InputError: bad input of any kind, in one sentence; a network, threat or setting that has no certificate.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}: use {', '.join(METHODS)}.")
    model = _target(target, device)
    examples = _data(data, y, limit, data_dir, model)
    if threat is None:
        raise InputError("bracket needs a threat, for example uf.linf(0.1).")
    ball = as_threat(threat).within(model.bounds)
    check_threat(ball, model.bounds)
    check_inputs(examples.x, examples.y, ball, model)
    if not ball.bounded or not ball.eps > 0:
        raise InputError(f"A certificate needs a threat with a finite eps above 0, not {ball!r}.")
    if method == "smoothing":
        return _of_smoothed(model, examples, ball, ball.eps / 2 if sigma is None else sigma, draws, alpha, seed)
    if sigma is not None:
        raise InputError(f"sigma belongs to method='smoothing'; leave it out, or do not ask for {method!r}.")
    try:
        radius, told = _by_bounds(model, examples, ball, method)
    except NoBounds as error:
        raise NoBounds(f"{error} {ELSE}") from error
    found = evaluate(model, examples, threat=ball, suite=suite, seed=seed, progress=progress)
    open_ = torch.full((len(examples),), torch.inf, dtype=torch.float64)
    reach = torch.where(torch.tensor([o is Status.BROKEN for o in found.outcome]), found.distance.double(), open_)
    by, stopped = f"suite {found.suite}", bool(found.settings["interrupted"])
    if not stopped:
        search, free = SMALLEST[ball.norm.name], replace(ball, eps=float("inf"))
        near = run(search, model, examples.x, examples.y, free, seed=seed, progress=progress, salvage=True)
        reach = torch.minimum(reach, torch.where(near.success, near.distance.double(), open_))
        by, stopped = f"{by} and {search}{' until it was interrupted' * near.interrupted}", near.interrupted
    clean = found.clean
    return Bracket(
        clean, torch.zeros_like(clean), radius, reach.masked_fill(~clean, 0.0), examples.y, ball.eps, repr(ball),
        model.name, examples.name, told, by, found.verdict, unfinished=found.n - found.done, interrupted=stopped,
    )  # fmt: skip


def _by_bounds(model: Target, examples: Data, ball: Ball, method: str) -> tuple[Tensor, str]:
    """Return the certified radii [n] up to twice the eps, and by what."""
    upper = FARTHEST * ball.eps

    def radii(rows: Tensor, by: Literal["ibp", "crown"]) -> Tensor:
        x, y = examples.x[rows], examples.y[rows]
        return certified_radius(model, x, y, ball, upper=upper, steps=HALVINGS, method=by)

    everything = torch.arange(len(examples))
    if method == "ibp" or method == "crown":
        return radii(everything, method), method  # type: ignore[arg-type]
    found = radii(everything, "ibp")
    rest = (found < ball.eps).nonzero()[:, 0]
    if len(rest):
        found[rest] = torch.maximum(found[rest], radii(rest, "crown"))
    return found, "ibp, then crown" if len(rest) else "ibp"


# ---- the smoothed classifier


class _Asked(nn.Module):
    """A target as a module that takes inputs within its bounds and returns scores."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        if isinstance(target.module, nn.Module):
            self.module = target.module  # its parameters say where the target computes
        self._target = [target]

    def forward(self, x: Tensor) -> Tensor:
        return self._target[0].scores(x)


def _of_smoothed(
    model: Target, examples: Data, ball: Ball, sigma: float, draws: int, alpha: float, seed: int
) -> Bracket:
    if ball.norm.name != "l2" or ball.mask is not None or ball.levels is not None:
        raise InputError(f"Smoothing by Gaussian noise certifies plain balls in L2, such as l2(0.5), not {ball!r}.")
    x, y = examples.x, examples.y
    found = smoothed(model, x, sigma=sigma, n=draws, alpha=alpha, seed=seed)
    clean = found.label == y
    unsure = found.label < 0
    reach = torch.full((len(x),), torch.inf, dtype=torch.float64).masked_fill(~(clean | unsure), 0.0)
    for share in RADII:
        within = replace(ball, eps=share * ball.eps)
        for text in ON_NOISE:
            left = (reach == torch.inf).nonzero()[:, 0]  # what broke nearer is broken farther off
            if len(left):
                x_adv = _attacked_on_noise(model, x[left], y[left], left, within, text, sigma, seed)
                said = predict(model, x_adv, sigma=sigma, n=CHECKED, alpha=alpha, seed=seed)
                broken = (said != y[left]) & (said >= 0)  # where it abstains nothing is shown
                reach[left[broken]] = within.distance(x_adv, x[left]).double()[broken]
    return Bracket(
        clean, unsure, found.radius.masked_fill(~clean, 0.0), reach, y, ball.eps, repr(ball), model.name, examples.name,
        f"smoothing, sigma {sigma:g}", f"{len(ON_NOISE)} attacks on the smoothed classifier ({DRAWS} draws a gradient)",
        "not judged", sigma=sigma, alpha=alpha, draws=draws,
    )  # fmt: skip


def _attacked_on_noise(
    model: Target, x: Tensor, y: Tensor, ids: Tensor, ball: Ball, attack: str, sigma: float, seed: int
) -> Tensor:
    """Return where an attack on the smoothed classifier ended, [n, ...] on the device of x; luck belongs to the ids."""
    door = Target(Noisy(_Asked(model), sigma, DRAWS), bounds=model.bounds)
    recipe, parts = parse(attack), []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), untouched(model):
        torch.manual_seed(seed)  # of the noise
        for rows in torch.arange(len(x)).split(64):
            sent = x[rows].to(model.device, model.work_dtype)
            end = last_iterate(recipe, door, sent, y[rows].to(model.device), ball, seed=seed, ids=ids[rows].numpy())
            parts.append(end.to(x))
    return torch.cat(parts)
