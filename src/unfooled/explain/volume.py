"""How much of the input space is fooled: shares of volume by multilevel splitting, of directions and of subspaces."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from scipy.special import stdtrit
from torch import Tensor

from unfooled._noise import text_key
from unfooled.core.access import Access
from unfooled.core.ask import Asker, are_probabilities, as_logits
from unfooled.core.explanation import COLOURS, PALE, SOFT, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError, nearest
from unfooled.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Asked: TypeAlias = Target | Callable[..., object]
Over: TypeAlias = Literal["box", "ball", "sphere", "normal"]

_ANY = -1
_ALL = {"any": "some class", "total": "some class"}
_LN10 = math.log(10)
_BARS = 24  # most events of a figure
_BLOCK = 4096  # particles that move at once: bounds the memory of the proposals
_ACCEPT = 0.3  # acceptance that the pilot's step sizes aim at
_SPREAD = 1.5  # of the natural logarithm over replicates: beyond it ten of them say little about their mean


@dataclass(frozen=True)
class Space:
    """A probability measure on inputs, as the image of `latent` independent standard normal values.

    `point` takes normal values [n, latent] to inputs [n, ...]; `words` name the measure.
    """

    latent: int
    point: Callable[[Tensor], Tensor]
    words: str


@dataclass(frozen=True)
class Volume(Explanation):
    """Shares of an input space that a target calls something confidently, by multilevel splitting.

    `logs` [replicates, events, confidences], float64, are natural logarithms of estimates of the share. Given the
    levels, which a pilot run chose, exp(logs) is unbiased and the replicates are independent, however well the chains
    mix. -inf: a replicate whose particles died out; nan: a level that the pilot did not reach. `ideal` [events,
    confidences] is the standard deviation of `logs` that independent particles would have. `reached` [events] is the
    confidence at which the pilot ended, `below` [events] the natural logarithm of the share there. `hits` [events,
    confidences] of `drawn` plain random inputs were such inputs: the cross-check. `accepted` [events] is the smallest
    share of a chain's particles that moved in a step, `levels` [events] the number of levels.
    """

    target: str
    space: str
    events: tuple[str, ...]
    confidences: tuple[float, ...]
    logs: Tensor
    ideal: Tensor
    reached: Tensor
    below: Tensor
    hits: Tensor
    drawn: int
    accepted: Tensor
    levels: Tensor
    forward: int

    size = (7.0, 4.0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per event and confidence.

        `log10` is the estimate with its 95% interval `low`, `high`, all decimal logarithms of the share; `at_least`
        is a 95% lower bound that needs no mixing (Markov's inequality for the product of the replicates); `spread` is
        the standard deviation of the natural logarithms over replicates, `ideal` what independent particles would
        have. `warning` is "" where the chains give no reason to doubt the interval.
        """
        return [self._row(e, g) for e in range(len(self.events)) for g in range(len(self.confidences))]

    def _row(self, e: int, g: int) -> dict[str, Any]:
        logs = self.logs[:, e, g]
        hits = int(self.hits[e, g])
        estimate, low, high, at_least = (v / _LN10 for v in summary(logs))
        return {
            "event": self.events[e],
            "confidence": self.confidences[g],
            "log10": estimate,
            "low": low,
            "high": high,
            "at_least": at_least,
            "monte_carlo": hits / self.drawn if self.drawn else math.nan,
            "monte_carlo_interval": list(wilson(hits, self.drawn)),
            "levels": int(self.levels[e]),
            "acceptance": float(self.accepted[e]),
            "spread": float(logs.std()),
            "ideal": float(self.ideal[e, g]),
            "warning": self._warning(e, g),
        }

    def _warning(self, e: int, g: int) -> str:
        logs = self.logs[:, e, g]
        if bool(logs.isnan().any()):
            return (
                f"undecided: the levels end at confidence {float(self.reached[e]):.6g}, where the share is about "
                f"10^{float(self.below[e]) / _LN10:.1f}"
            )
        died = int((logs == -math.inf).sum())
        if died:
            return f"undecided: {died} of {len(logs)} replicates died out; take more particles"
        if float(logs.std()) > _SPREAD:
            return "undecided: the replicates differ too much for their interval; take more steps or particles"
        if float(self.accepted[e]) < 0.02:
            return "undecided: fewer than 2% of the moves were accepted at some level; take more steps"
        _, low, high, _ = summary(logs)
        least, most = wilson(int(self.hits[e, g]), self.drawn, 0.999)
        if math.exp(high) < least or math.exp(low) > most:
            return "undecided: plain Monte Carlo disagrees"
        return ""

    def sentence(self) -> str:
        """Say how large the shares are, and what the cross-check and the chains say."""
        rows = self.rows()
        firm = [row for row in rows if not row["warning"]]
        doubt = f" {len(rows) - len(firm)} of {len(rows)} rows are undecided." if len(firm) < len(rows) else ""
        if not firm:
            return f"No share of {self.space} could be measured for {self.target}.{doubt}"
        parts = [
            f"{_ALL.get(row['event'], row['event'])} above {row['confidence']:.6g}: 10^{row['log10']:.1f} "
            f"(95% interval 10^{row['low']:.1f} to 10^{row['high']:.1f})"
            for row in (_largest(firm) if len(firm) > 3 else firm)
        ]
        checked = [row for row in firm if row["monte_carlo"] > 1e-3]
        most = max(row["monte_carlo"] for row in firm)
        control = (
            f"plain Monte Carlo agrees on the {len(checked)} shares above 0.001"
            if checked
            else f"of {self.drawn:,} plain random inputs at most {most:.2%} are such, as it must be"
        )
        return f"Of {self.space}, {self.target} calls {'; '.join(parts)}; {control}.{doubt}"

    def draw(self, figure: "Figure") -> None:
        """Draw the decimal logarithm of the share per event, a bar a confidence, with its interval."""
        axes = figure.subplots()
        every = self.rows()
        events = self._shown(every)
        rows = [row for row in every if row["event"] in events]
        known = [row["low"] for row in rows if math.isfinite(row["low"])]
        bottom = 1.08 * min(known, default=-1.0) - 0.5
        width = 0.8 / len(self.confidences)
        for g, confidence in enumerate(self.confidences):
            mine = [row for row in rows if row["confidence"] == confidence]
            at = [i + (g - (len(self.confidences) - 1) / 2) * width for i in range(len(mine))]
            tops = [row["log10"] if math.isfinite(row["log10"]) else bottom for row in mine]
            label = f"confidence above {confidence:.6g}"
            heights = [top - bottom for top in tops]
            bars = axes.bar(at, heights, 0.92 * width, bottom=bottom, color=COLOURS[g % len(COLOURS)], label=label)
            for bar, place, row in zip(bars, at, mine, strict=True):
                if row["warning"]:
                    bar.set_alpha(0.4)
                if math.isfinite(row["low"]):
                    axes.plot([place, place], [row["low"], row["high"]], color="#1d232b", lw=1.4)
                else:
                    axes.text(place, bottom + 0.2, "?", ha="center", color=SOFT)
        axes.set_ylim(bottom, 0)
        crowded = sum(len(event) for event in events) > 60
        axes.set_xticks(range(len(events)), events, rotation=45 if crowded else 0, ha="right" if crowded else "center")
        axes.set_ylabel("log10 of the share of inputs")
        axes.yaxis.grid(visible=True, color=PALE)
        axes.set_axisbelow(True)
        pale = "; pale: undecided" if any(row["warning"] for row in rows) else ""
        axes.set_title(f"{self.target}: share of {self.space} by class{pale}", pad=24)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(self.confidences), borderaxespad=0.2)

    def _shown(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return the events in their order, of many those with the largest shares."""
        first = [row for row in rows if row["confidence"] == self.confidences[0]]
        largest = sorted(first, key=lambda row: row["log10"] if row["log10"] == row["log10"] else -math.inf)[-_BARS:]
        kept = {row["event"] for row in largest}
        return [event for event in self.events if event in kept]


def volume(
    target: Asked,
    shape: Sequence[int],
    *,
    of: str | int | Sequence[str | int] = "each",
    confidence: float | Sequence[float] = 0.99,
    over: Over = "box",
    x: Tensor | None = None,
    radius: float | None = None,
    norm: Literal["linf", "l2"] = "linf",
    particles: int = 200,
    steps: int = 10,
    keep: float = 0.25,
    replicates: int = 10,
    check: int = 10_000,
    most_levels: int = 200,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Volume:
    """Measure which share of an input space is called a class with a confidence above given ones.

    Multilevel splitting on the log-odds of the confidence (subset simulation, Au and Beck 2001; for networks Webb et
    al. 2019, arXiv 1811.07209): the share is a product of conditional shares of nested sets. Every measure is the
    image of normal values, so that preconditioned Crank-Nicolson steps u' = sqrt(1 - b^2) u + b xi keep it exactly
    (Cotter, Roberts, Stuart and White 2013). A pilot run chooses levels and step sizes; then they are fixed, which
    makes the estimate of every replicate unbiased however the chains mix (Del Moral 2004; adaptive levels are not).
    A region that no chain finds lowers all replicates alike: without mixing only `at_least` is sound.

    Args:
        target: asked for scores alone.
        shape: of one input, without the batch.
        of: "each" class, with their "total" where all confidences are at least 0.5; "any" class in one run; a class
            or several, by name or number.
        confidence: one or several bounds in (0, 1).
        over: "box": uniform in the target's bounds; "ball": uniform within `radius` of x, for Linf inside the bounds
            too, for L2 the whole ball; "sphere": uniform at L2 distance `radius` from x; "normal": x plus `radius`
            times standard normal values. The last two and the L2 ball do not look at the bounds.
        x: the middle [*shape], zeros where not given.
        radius: in input units; 1 where not given, and needed for "ball".
        norm: of the ball.
        particles, steps, keep, replicates: particles a level, moves a particle and level, the share of particles that
            a level of the pilot keeps, and independent runs.
        check: plain random inputs of the cross-check.
        most_levels: after so many levels the pilot gives up.
        seed: of all draws; the same seed gives the same bits on the CPU.
        batch_size: rows a call.

    Raises:
        InputError: settings that make no sense, an unknown class.
    """
    goals = _checked(confidence, particles, steps, keep, replicates)
    asker = Asker(target, access=Access.SCORES, batch_size=batch_size)
    space = _space(asker.target, tuple(shape), over, x, radius, norm)
    generator = _generator(seed, "volume", asker.target.device)
    run = _Splitting(asker, space, particles, steps, generator)
    blocks = [run.normal(r.stop - r.start, space.latent) for r in _blocks(max(check, 1))]
    plain = torch.cat([asker.scores(space.point(block)) for block in blocks])
    run.probabilities = are_probabilities(plain)
    classes = plain.shape[1]
    codes = _codes(of, asker.target, classes)
    event = torch.tensor(codes, device=generator.device)
    goal = torch.tensor([math.log(c) - math.log1p(-c) for c in goals], dtype=torch.float64, device=event.device)
    hits = torch.stack(
        [(log_odds(run.logits(plain), event[e]).view(-1, 1) >= goal).sum(0) for e in range(len(codes))]
    )  # [e, g]
    plan = _pilot(run, event, goal, keep, most_levels)
    totals, ideal, accepted = _replicate(run, plan, event, replicates)
    at = plan.goal_at.clamp(min=0)
    logs = torch.where(plan.goal_at < 0, math.nan, totals.gather(2, at.expand(replicates, -1, -1)))
    deviations = torch.where(plan.goal_at < 0, math.nan, ideal.gather(1, at).sqrt())
    last = totals.gather(2, (plan.ends - 1).clamp(min=0).view(1, -1, 1).expand(replicates, -1, 1))[..., 0]  # [r, e]
    reached = plan.levels.gather(1, (plan.ends - 1).clamp(min=0).view(-1, 1))[:, 0].sigmoid()
    events = [_name(code, asker.target) for code in codes]
    if of == "each" and min(goals) >= 0.5:  # above one half the classes' sets are disjoint
        events.append("total")
        logs = torch.cat([logs, logs.logsumexp(1, keepdim=True)], 1)
        deviations = torch.cat([deviations, torch.full_like(deviations[:1], math.nan)])
        hits = torch.cat([hits, hits.sum(0, keepdim=True)])
        reached, accepted = (torch.cat([t, t.min().view(1)]) for t in (reached, accepted))
        last = torch.cat([last, last.logsumexp(1, keepdim=True)], 1)
        ends = torch.cat([plan.ends, plan.ends.sum().view(1)])
    else:
        ends = plan.ends
    return Volume(
        target=asker.target.name,
        space=space.words,
        events=tuple(events),
        confidences=goals,
        logs=logs.cpu(),
        ideal=deviations.cpu(),
        reached=reached.cpu(),
        below=(last.logsumexp(0) - math.log(replicates)).cpu(),
        hits=hits.cpu(),
        drawn=max(check, 1),
        accepted=accepted.cpu(),
        levels=ends.cpu(),
        forward=asker.forward,
    )


def log_odds(scores: Tensor, event: Tensor) -> Tensor:
    """Return the log-odds [n], float64, of the confidence in class `event` ([n] or one for all; -1: the likeliest)."""
    scores = scores.double().nan_to_num(nan=-1e300, posinf=1e300, neginf=-1e300)
    own = torch.where(event < 0, scores.argmax(1), event).view(-1, 1)
    rest = scores.scatter(1, own, -math.inf).logsumexp(1)
    return scores.gather(1, own)[:, 0] - rest


def summary(logs: Tensor) -> tuple[float, float, float, float]:
    """Return estimate, low, high and lower bound (natural logarithms) from independent unbiased replicates [r].

    The estimate is the mean of exp(logs). The 95% interval is Cox's for the mean of log-normal values with Student's t
    (Zhou and Gao 1997); nan where a replicate is 0. The lower bound holds for any unbiased, independent, non-negative
    estimates: their product has the mean p^r, so by Markov's inequality p < bound has probability 0.05 at most.
    """
    r = len(logs)
    estimate = float(logs.logsumexp(0)) - math.log(r)
    mean, var = float(logs.mean()), float(logs.var())
    at_least = mean + math.log(0.05) / r
    if not (math.isfinite(mean) and math.isfinite(var)):
        return estimate, math.nan, math.nan, at_least
    reach = float(stdtrit(r - 1, 0.975)) * math.sqrt(var / r + var * var / (2 * (r - 1)))
    middle = mean + var / 2
    return estimate, middle - reach, min(middle + reach, 0.0), at_least


@dataclass
class _Splitting:
    """What the pilot and the replicates share: particles u [c, n, m] with log-odds s [c, n] of the events [c]."""

    asker: Asker
    space: Space
    particles: int
    steps: int
    generator: torch.Generator
    probabilities: bool = False

    def normal(self, *size: int) -> Tensor:
        dtype = self.asker.target.work_dtype
        return torch.randn(*size, generator=self.generator, device=self.generator.device, dtype=dtype)

    def logits(self, scores: Tensor) -> Tensor:
        return as_logits(scores, probabilities=self.probabilities)

    def odds(self, u: Tensor, event: Tensor) -> Tensor:
        return log_odds(self.logits(self.asker.scores(self.space.point(u))), event)

    def begin(self, event: Tensor) -> tuple[Tensor, Tensor]:
        u = self.normal(len(event), self.particles, self.space.latent)
        each = event.repeat_interleave(self.particles)
        parts = [self.odds(u.flatten(0, 1)[rows], each[rows]) for rows in _blocks(len(each))]
        return u, torch.cat(parts).view(len(event), -1)

    def split(self, u: Tensor, s: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Replace the particles below their level [c] by copies of those above; return the survivors [c] too.

        Systematic resampling: every survivor expects the same number of copies. A chain without survivors stays.
        """
        above = s >= level.view(-1, 1)
        alive = above.sum(1)
        order = above.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(self.particles, device=s.device).view(1, -1)
        start = torch.rand(len(s), 1, generator=self.generator, device=s.device, dtype=torch.float64)
        pick = ((places + start) * alive.view(-1, 1) / self.particles).long().clamp(max=self.particles - 1)
        source = order.gather(1, torch.minimum(pick, (alive - 1).clamp(min=0).view(-1, 1)))
        return u.gather(1, source[..., None].expand_as(u)), s.gather(1, source), alive

    def move(self, u: Tensor, s: Tensor, event: Tensor, level: Tensor, step: Tensor, gain: float) -> Iterator[Tensor]:
        """Move all particles in place `steps` times, each kept above its level; yield the acceptance [c] per move.

        `step` [c] in (0, 1] grows or shrinks in place by `gain` times what the acceptance lacks; 0 keeps it.
        """
        n = self.particles
        flat, score = u.view(-1, u.shape[2]), s.view(-1)
        each, floor = event.repeat_interleave(n), level.repeat_interleave(n)
        for _ in range(self.steps):
            accepted = torch.zeros(len(score), dtype=torch.float64, device=s.device)
            b = step.repeat_interleave(n).view(-1, 1).to(u.dtype)
            for rows in _blocks(len(score)):
                here = flat[rows]
                there = (1 - b[rows] ** 2).sqrt() * here + b[rows] * self.normal(*here.shape)
                found = self.odds(there, each[rows])
                good = found >= floor[rows]
                flat[rows] = torch.where(good.view(-1, 1), there, here)
                score[rows] = torch.where(good, found, score[rows])
                accepted[rows] = good.double()
            share = accepted.view(len(event), n).mean(1)
            step.mul_((gain * (share - _ACCEPT)).exp()).clamp_(1e-4, 1.0)
            yield share


@dataclass(frozen=True)
class _Plan:
    """Levels and step sizes [e, l] of every event, their number `ends` [e], and which of them is a goal [e, g] (-1)."""

    levels: Tensor
    sizes: Tensor
    ends: Tensor
    goal_at: Tensor


def _pilot(run: _Splitting, event: Tensor, goal: Tensor, keep: float, most: int) -> _Plan:
    """Choose the levels: each keeps about `keep` of the particles, and every goal is one of them."""
    count, device = len(event), event.device
    u, s = run.begin(event)
    levels: list[Tensor] = []
    sizes: list[Tensor] = []
    ends = torch.zeros(count, dtype=torch.long, device=device)
    goal_at = torch.full((count, len(goal)), -1, dtype=torch.long, device=device)
    size = torch.ones(count, dtype=torch.float64, device=device)
    level = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
    going = torch.arange(count, device=device)
    while len(going) and len(levels) < most:
        top = s[going].kthvalue(run.particles - math.ceil(keep * run.particles) + 1, dim=1).values
        met = (goal_at[going] >= 0).sum(1)  # goals rise, and are met in their order
        following = torch.minimum(top, goal[met])
        going, met, following = (t[following > level[going]] for t in (going, met, following))  # a plateau is an end
        if not len(going):
            break
        level[going] = following
        at_goal = following == goal[met]
        goal_at[going[at_goal], met[at_goal]] = len(levels)
        ends[going] = len(levels) + 1
        levels.append(torch.where(_member(going, count), level, math.inf))
        going = going[goal_at[going, -1] < 0]
        if len(going):
            ug, sg, _ = run.split(u[going], s[going], level[going])
            step = size[going]
            for _ in run.move(ug, sg, event[going], level[going], step, 1.0):
                pass
            u[going], s[going], size[going] = ug, sg, step
        sizes.append(size.clone())
    if not levels:  # flat scores: no level lies above the start
        levels, sizes = [torch.full_like(level, math.inf)], [size]
    return _Plan(torch.stack(levels, 1), torch.stack(sizes, 1), ends, goal_at)


def _replicate(run: _Splitting, plan: _Plan, event: Tensor, replicates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logs of the share at every level [r, e, l], the ideal variance there [e, l], least acceptances [e]."""
    count, n = len(event), run.particles
    chain = torch.arange(replicates * count, device=event.device)  # event = chain % count
    u, s = run.begin(event.repeat(replicates))
    totals = torch.full((len(chain), plan.levels.shape[1]), -math.inf, dtype=torch.float64, device=event.device)
    total = torch.zeros(len(chain), dtype=torch.float64, device=event.device)
    ideal = torch.zeros_like(plan.levels)
    least = torch.ones(count, dtype=torch.float64, device=event.device)
    for stage in range(plan.levels.shape[1]):
        chain = chain[(plan.ends[chain % count] > stage) & total[chain].isfinite()]
        if not len(chain):
            break
        e = chain % count
        level = plan.levels[e, stage]
        ug, sg, alive = run.split(u[chain], s[chain], level)
        total[chain] += (alive.double() / n).log()
        totals[chain, stage] = total[chain]
        mean = torch.zeros(count, dtype=torch.float64, device=e.device).index_add_(0, e, alive.double() / n)
        rate = (mean / torch.bincount(e, minlength=count).clamp(min=1)).clamp(min=1 / n)
        before = ideal[:, stage - 1] if stage else 0.0
        ideal[:, stage] = before + torch.where(_member(e, count), (1 - rate) / (n * rate), 0.0)
        more = (plan.ends[e] > stage + 1) & (alive > 0)
        chain, e = chain[more], e[more]
        if len(chain):
            ug, sg, step = ug[more], sg[more], plan.sizes[e, stage]
            for accepted in run.move(ug, sg, event[e], level[more], step, 0.0):
                least.scatter_reduce_(0, e, accepted, "amin")
            u[chain], s[chain] = ug, sg
    return totals.view(replicates, count, -1), ideal, least


def _generator(seed: int, what: str, device: torch.device) -> torch.Generator:
    """Return a generator of its own: the caller's weights or data may stem from the same seed."""
    return torch.Generator(device=device).manual_seed(text_key(f"{what} {seed}"))


def _member(index: Tensor, count: int) -> Tensor:
    """Return bool [count]: whether a place occurs in `index`."""
    return torch.zeros(count, dtype=torch.bool, device=index.device).index_fill_(0, index, value=True)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK, n)) for at in range(0, n, _BLOCK))


def _checked(
    confidence: float | Sequence[float], particles: int, steps: int, keep: float, replicates: int
) -> tuple[float, ...]:
    goals = tuple(sorted({float(c) for c in ([confidence] if isinstance(confidence, int | float) else confidence)}))
    if not goals or not all(0 < c < 1 for c in goals):
        raise InputError(f"confidence must lie between 0 and 1, such as 0.99, not {confidence}.")
    if particles < 10 or steps < 1 or replicates < 2:
        raise InputError(
            f"Splitting needs 10 particles, 1 step and 2 replicates at least, not {particles}, {steps}, {replicates}."
        )
    if not 1 / particles <= keep < 1:
        raise InputError(f"keep={keep} must be a share below 1 of {particles} particles, such as 0.25.")
    return goals


def _codes(of: str | int | Sequence[str | int], target: Target, classes: int) -> list[int]:
    if of == "each":
        return list(range(classes))
    if of == "any":
        return [_ANY]
    wanted = [of] if isinstance(of, str | int) else list(of)
    names = target.classes or [str(k) for k in range(classes)]
    codes = []
    for one in wanted:
        if isinstance(one, str) and one not in names:
            raise InputError(f"The target has no class {one!r}.{nearest(one, names)}")
        code = names.index(one) if isinstance(one, str) else int(one)
        if not 0 <= code < classes:
            raise InputError(f"The target has classes 0 to {classes - 1}, but class {code} was asked for.")
        codes.append(code)
    if not codes:
        raise InputError("No class was asked for: name one, or say 'each' or 'any'.")
    return codes


def _name(code: int, target: Target) -> str:
    if code == _ANY:
        return "any"
    return target.class_name(code)


def _space(
    target: Target, shape: tuple[int, ...], over: str, x: Tensor | None, radius: float | None, norm: str
) -> Space:
    if not shape or min(shape) < 1:
        raise InputError(f"shape must be that of one input, such as (1, 28, 28), not {shape}.")
    if radius is None and over == "ball":
        raise InputError("A ball needs its radius: give radius=, in input units.")
    if over not in ("box", "ball", "sphere", "normal") or norm not in ("linf", "l2"):
        raise InputError(f"over must be box, ball, sphere or normal, and norm linf or l2, not {over!r} and {norm!r}.")
    size = 1.0 if radius is None else float(radius)
    if not size > 0:
        raise InputError(f"radius must be positive, not {radius}.")
    if x is not None and tuple(x.shape) != shape:
        raise InputError(f"x must be one input of shape {shape}, not {tuple(x.shape)}.")
    m = math.prod(shape)
    kind: dict[str, Any] = {"dtype": target.work_dtype, "device": target.device}
    middle = torch.zeros(m, **kind) if x is None else x.detach().to(**kind).reshape(-1)
    lo, hi = (torch.full((m,), bound, **kind) for bound in target.bounds)

    def cube(low: Tensor, high: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: (low + (high - low) * torch.special.ndtr(u)).view(-1, *shape)

    def gaussian(u: Tensor) -> Tensor:
        return (middle + size * u).view(-1, *shape)

    def on_sphere(u: Tensor) -> Tensor:
        return (middle + size * u / u.norm(dim=1, keepdim=True)).view(-1, *shape)

    def in_ball(u: Tensor) -> Tensor:  # m values of a uniform point of the sphere in m + 2 dimensions fill the ball
        return (middle + size * (u / u.norm(dim=1, keepdim=True))[:, :m]).view(-1, *shape)

    match over, norm:
        case "box", _:
            return Space(m, cube(lo, hi), "the input box")
        case "ball", "linf":
            low, high = (middle - size).clamp(min=lo), (middle + size).clamp(max=hi)
            if not bool((low < high).all()):
                raise InputError("The ball lies outside the target's bounds: give an x inside them.")
            return Space(m, cube(low, high), f"the Linf ball of radius {size:g}")
        case "ball", _:
            return Space(m + 2, in_ball, f"the L2 ball of radius {size:g}")
        case "sphere", _:
            return Space(m, on_sphere, f"the sphere of radius {size:g}")
    return Space(m, gaussian, f"normal inputs of deviation {size:g}")


def _largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the total per confidence where there is one, else the three largest shares."""
    totals = [row for row in rows if row["event"] == "total"]
    return totals or sorted(rows, key=lambda row: -row["log10"])[:3]
