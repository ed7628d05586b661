"""How linear a target is: its logits along a line, growth with the dimension, and x against the parameters."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unfooled import losses
from unfooled._noise import text_key
from unfooled.core.access import Access
from unfooled.core.ask import Asker
from unfooled.core.attack import Attack, as_attack
from unfooled.core.engine import last_iterate
from unfooled.core.explanation import COLOURS, INK, SOFT, Explanation
from unfooled.core.target import Target, as_target, untouched
from unfooled.core.threat import linf
from unfooled.errors import InputError

from ._lines import asked, check_like, check_rows, colours_of, excess, random_directions, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAINT = "#c6ccd4"
"""Lines of controls, many at once."""


@dataclass(frozen=True)
class LogitsAlong(Explanation):
    """The logits of n examples along a perturbation and along c random directions of the same length.

    `t` [p] are the points of the line in multiples of the perturbation, from -reach to reach with 0 in the middle;
    `eps` [n] is the Linf size of the perturbation, so that t * eps is the signed eps of a point. `scores` [n, p, k] and
    `random_scores` [n, c, p, k] are what the target answered. `fit` [n, k, 3] is R² of the best continuous fit with 1,
    2 and 3 straight pieces, `residual` [n, k, 3] the root mean square of what they leave (in units of the logit),
    `knots` [n, k, 2] where the three pieces meet (multiples), `random_fit` [n, c, k, 3] R² of the control. `outside`
    [n, p] is how far the farthest value lies outside the box at each point; 0 everywhere where `clamp` cut it there.
    """

    t: Tensor
    eps: Tensor
    scores: Tensor
    random_scores: Tensor
    fit: Tensor
    residual: Tensor
    knots: Tensor
    random_fit: Tensor
    outside: Tensor
    clamp: bool
    names: tuple[str, ...]

    size: ClassVar[tuple[float, float]] = (7.6, 4.8)

    @property
    def labels(self) -> Tensor:
        """The class that wins at each point, int64 [n, p]."""
        return self.scores.argmax(-1)

    @property
    def wrong(self) -> Tensor:
        """The share of the line on which another class wins than at the example itself, [n]."""
        return _changed(self.scores)

    @property
    def random_wrong(self) -> Tensor:
        """The same share along the random directions, [n, c]."""
        return _changed(self.random_scores)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an example and logit: R² and residual of 1, 2 and 3 pieces, and the control's mean R²."""
        wins = torch.stack([(self.labels == j).double().mean(1) for j in range(len(self.names))], 1)
        control = self.random_fit.mean(1) if self.random_fit.shape[1] else torch.full_like(self.fit, torch.nan)
        return [
            {
                "example": i,
                "class": name,
                "r2_line": float(self.fit[i, j, 0]),
                "r2_two_pieces": float(self.fit[i, j, 1]),
                "r2_three_pieces": float(self.fit[i, j, 2]),
                "residual_line": float(self.residual[i, j, 0]),
                "residual_three_pieces": float(self.residual[i, j, 2]),
                "knots_eps": [float(v) for v in self.knots[i, j] * self.eps[i]],
                "r2_line_random": float(control[i, j, 0]),
                "r2_three_pieces_random": float(control[i, j, 2]),
                "wins_share": float(wins[i, j]),
            }
            for i in range(len(self.scores))
            for j, name in enumerate(self.names)
        ]

    def sentence(self) -> str:
        """Return how straight the logits are, where another class wins, and what random directions do."""
        one, three = (float(self.fit[..., i].median()) for i in (0, 2))
        lowest = float(self.fit[..., 2].min())
        eps = float(self.t[-1]) * float(self.eps.median())
        said = (
            f"Along the perturbation, from eps {-eps:.3g} to {eps:.3g}, one straight line explains R² {one:.3f} of a "
            f"logit (median) and three joined pieces {three:.4f} (lowest {lowest:.3f}); another class wins on "
            f"{float(self.wrong.mean()):.0%} of the line"
        )
        if not self.random_fit.shape[1]:
            return said + "."
        line = float(self.random_fit[..., 0].median())
        return (
            f"{said}. Along {self.random_fit.shape[1]} random directions of the same length one line explains "
            f"R² {line:.3f}, and another class wins on {float(self.random_wrong.mean()):.0%}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the first example's logits, the random directions in grey, and which class wins below."""
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[14, 1.6])
        at = (self.t * self.eps[0]).tolist()
        first, last = self.scores[0], self.labels[0]
        own = int(last[len(at) // 2])
        wins = [float((last == j).double().mean()) for j in range(len(self.names))]
        highest = first.amax(0).tolist()
        order = sorted(range(len(self.names)), key=lambda j: (j != own, -wins[j], -highest[j]))
        colours, shown = colours_of(order, len(self.names)), order[:10]
        for line in self.random_scores[0, :, :, own].tolist():
            axes.plot(at, line, color=FAINT, linewidth=0.8, zorder=1)
        axes.plot([], [], color=FAINT, linewidth=1.5, label=f"{short(self.names[own])}, random directions")
        for j in shown:
            wide = 2.4 if j == own else 1.3
            axes.plot(at, first[:, j].tolist(), color=colours[j], linewidth=wide, zorder=3 if j == own else 2,
                      label=f"{short(self.names[j])}{' (the example)' if j == own else ''}, R² {self.fit[0, j, 0]:.3f}"
                      f" → {self.fit[0, j, 2]:.3f}")  # fmt: skip
        axes.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        axes.grid(axis="y")
        axes.set_ylabel("logit (score of the class)")
        axes.set_title("Logits along the perturbation; R² of one line → three pieces")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.4)
        strip.imshow(np.stack([colours[j] for j in last.tolist()])[None], aspect="auto", extent=(at[0], at[-1], 0, 1))
        for begin, end, j in _stretches(last.tolist()):
            name = short(self.names[j])
            if (end - begin) / len(at) > 0.03 + 0.016 * len(name):  # there is room for it
                middle = (at[begin] + at[end - 1]) / 2
                strip.text(middle, 0.5, name, ha="center", va="center", color=INK, fontsize=8, clip_on=True)
        strip.set_yticks([])
        strip.set_ylabel("wins", rotation=0, ha="right", va="center")
        strip.spines[:].set_visible(False)
        cut = "; cut to the box" if self.clamp else ""
        strip.set_xlabel(f"eps: signed Linf size of the change{cut}")


def logits_along(
    target: Target | Callable[..., Any],
    x: Tensor,
    direction: Tensor,
    *,
    reach: float = 1.0,
    points: int = 101,
    control: int = 20,
    clamp: bool = False,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> LogitsAlong:
    """Return all logits along x + t * direction for t from -reach to reach, with the best piecewise linear fits.

    The graph of Goodfellow et al. 2014 (arXiv 1412.6572, Fig. 4): there the direction is sign of the gradient, reach
    10, and nothing is cut to the box. The fit is the best continuous one with 1, 2 and 3 pieces whose knots are points
    of the line, found by trying all of them.

    Args:
        target: whom to ask; its scores are needed.
        x: examples, float [n, ...].
        direction: the perturbation of each (such as x_adv - x), [n, ...].
        reach: how many times the perturbation the line goes to either side; direction.sign() and reach = eps give
            Goodfellow's axis.
        points: points of the line, made odd so that the example itself is one.
        control: random (normal) directions per example, of the same L2 length.
        clamp: cut the points to the target's box; without it they may leave it, as in the original graph.
        seed: of the random directions.
        batch_size: rows a call, or "auto".

    Raises:
        InputError: shapes do not fit, a direction is zero, or there are fewer than 9 points.
    """
    x = check_rows(x)
    direction = check_like(direction, x, "direction")
    size = direction.flatten(1).abs().amax(1)
    if not bool((size > 0).all()):
        raise InputError("A direction is zero everywhere; leave examples out that the attack did not change.")
    if not reach > 0 or points < 9 or control < 0:
        raise InputError("reach must be above 0, points at least 9 and control at least 0.")
    asker = Asker(target, access=Access.SCORES, batch_size=batch_size)
    half = points // 2
    t = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype) * (reach / half)
    long = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    drawn = random_directions(x, control, seed, "logits_along") * long.view(-1, *[1] * x.dim())
    lines = torch.cat([direction[:, None], drawn], 1)  # [n, 1 + c, ...]
    p, each = len(t), len(t) * (1 + control)

    def make(rows: Tensor) -> Tensor:
        i, j = rows // each, rows % each
        z = x[i] + t[j % p].view(-1, *[1] * (x.dim() - 1)) * lines[i, j // p]
        return z.clamp(*asker.target.bounds) if clamp else z

    answered = asked(asker.scores, len(x) * each, make, x).view(len(x), 1 + control, p, -1).cpu()
    fit, residual, knots = piecewise(t.cpu(), answered.transpose(2, 3))  # [n, 1 + c, k, ...]
    outside = torch.zeros(len(x), p)
    if not clamp:
        own = partial(excess, bounds=asker.target.bounds)
        outside = asked(own, len(x) * p, lambda rows: make(rows // p * each + rows % p), x).view(len(x), p).cpu()
    return LogitsAlong(
        t=t.cpu(), eps=size.cpu(), scores=answered[:, 0], random_scores=answered[:, 1:], fit=fit[:, 0],
        residual=residual[:, 0], knots=knots[:, 0], random_fit=fit[:, 1:], outside=outside, clamp=clamp,
        names=tuple(asker.target.class_name(j) for j in range(answered.shape[-1])),
    )  # fmt: skip


def piecewise(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return R² [..., 3], root mean square residual [..., 3] and knots [..., 2] of curves y [..., p] at t [p].

    The least-squares continuous fit of 1, 2 and 3 straight pieces, all knots at points of t tried: a hinge
    max(t - a, 0), less its own best line, is h_a; one hinge explains <h_a, y>² / <h_a, h_a> of what a line leaves, two
    explain the quadratic form of their 2 x 2 Gram matrix. The knots are those of three pieces. A constant curve is a
    line: its R² is 1.
    """
    t, curves = t.double(), y.double().reshape(-1, y.shape[-1])  # [p], [m, p]
    p = len(t)
    line = torch.linalg.qr(torch.stack([torch.ones_like(t), t], 1)).Q  # [p, 2]
    hinges = (t - t[1:-1, None]).clamp(min=0)  # [p - 2, p]
    hinges = hinges - hinges @ line @ line.T
    gram = hinges @ hinges.T
    i, j = torch.triu_indices(p - 2, p - 2, offset=2, device=t.device)  # a piece spans two steps at least
    ii, jj, ij = gram[i, i], gram[j, j], gram[i, j]
    parts = []
    for part in curves.split(max(1, 2**23 // len(i))):
        mean = part.mean(1, keepdim=True)
        rest = part - mean
        total = rest.square().sum(1)
        rest = rest - rest @ line @ line.T
        left = rest.square().sum(1)
        c = rest @ hinges.T  # [m, p - 2]
        one = (c.square() / gram.diagonal()).amax(1)
        two = (c[:, i].square() * jj - 2 * c[:, i] * c[:, j] * ij + c[:, j].square() * ii) / (ii * jj - ij.square())
        both, at = two.max(1)
        errors = torch.stack([left, left - one, left - both], 1).clamp(min=0)  # [m, 3]
        flat = total <= p * (1e-6 * part.abs().amax(1)).square()  # rounding of a constant
        r2 = torch.where(flat[:, None], 1.0, 1 - errors / total.clamp(min=torch.finfo(t.dtype).tiny)[:, None])
        parts.append((r2, (errors / p).sqrt(), torch.stack([t[i[at] + 1], t[j[at] + 1]], 1)))
    shape = y.shape[:-1]
    fit, residual, knots = (torch.cat(column).view(*shape, -1).to(y.dtype) for column in zip(*parts, strict=True))
    return fit, residual, knots


def _changed(scores: Tensor) -> Tensor:
    """Return the share of points on which another class wins than in the middle, [...] for scores [..., p, k]."""
    labels = scores.argmax(-1)
    return (labels != labels[..., labels.shape[-1] // 2, None]).double().mean(-1)


def _stretches(labels: list[int]) -> list[tuple[int, int, int]]:
    """Return (begin, end, label) of every run of equal labels."""
    ends = [i for i in range(1, len(labels) + 1) if i == len(labels) or labels[i] != labels[i - 1]]
    return [(begin, end, labels[begin]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class Growth(Explanation):
    """What a small change of every value does to a linear score in m dimensions, t targets each, all [m, t] float64.

    `closed` is the closed form eps * ||w||_1, `attacked` by how much the attack raised the wrong class over the right
    one (least over the examples), `random` the same of random signs times eps (root mean square), `expected` its
    closed form eps * ||w||_2. `dims` int64 [m].
    """

    dims: Tensor
    closed: Tensor
    attacked: Tensor
    random: Tensor
    expected: Tensor
    eps: float
    attack: str

    def slope(self, values: Tensor) -> float:
        """Return the exponent s of values ~ n^s, by least squares on the logarithms of the means."""
        n, v = self.dims.double().log(), values.mean(1).clamp(min=1e-300).log()
        n = n - n.mean()
        return float((n * v).sum() / (n * n).sum())

    @property
    def error(self) -> float:
        """The largest relative difference between the attack's effect and the closed form."""
        return float(((self.attacked - self.closed) / self.closed).abs().max())

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a dimension, means over its targets."""
        return [
            {
                "dimension": int(n),
                "closed_form": float(self.closed[i].mean()),
                "attack": float(self.attacked[i].mean()),
                "random": float(self.random[i].mean()),
                "random_closed_form": float(self.expected[i].mean()),
                "attack_over_random": float(self.attacked[i].mean() / self.random[i].mean()),
            }
            for i, n in enumerate(self.dims.tolist())
        ]

    def sentence(self) -> str:
        """Return both exponents, and how far the attack is from the closed form."""
        last = self.rows()[-1]
        return (
            f"With eps {self.eps:g}, {self.attack} moves a linear score by eps ||w||_1 (relative error at most "
            f"{self.error:.1g}), and that grows as n^{self.slope(self.attacked):.2f} with the dimension n; random "
            f"signs of the same size grow as n^{self.slope(self.random):.2f}, in {last['dimension']:,} dimensions "
            f"{last['attack_over_random']:.0f} times less."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw both effects over the dimension, closed forms as lines."""
        axes = figure.subplots()
        n = self.dims.tolist()
        for closed, measured, colour, name in (
            (self.closed, self.attacked, COLOURS[1], f"{self.attack}, n^{self.slope(self.attacked):.2f}"),
            (self.expected, self.random, SOFT, f"random signs, n^{self.slope(self.random):.2f}"),
        ):
            axes.plot(n, closed.mean(1).tolist(), color=colour, linewidth=1)
            axes.plot(n, measured.mean(1).tolist(), "o", color=colour, label=name)
            text = "eps ||w||$_1$" if closed is self.closed else "eps ||w||$_2$"
            axes.annotate(text, (n[-1], float(closed[-1].mean())), (-4, -22), textcoords="offset points",
                          color=colour, ha="right", va="top")  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("dimension n of the input")
        axes.set_ylabel("change of the linear score")
        axes.set_title(f"The same eps = {self.eps:g} on every value adds up; lines are closed forms")
        axes.grid()
        axes.legend(loc="upper left")


Family = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> w [n]: by how much one score's weights exceed the other's."""


def growth(
    attack: Attack[Any] | str,
    *,
    dims: Sequence[int] = (16, 64, 256, 1024, 4096, 16384),
    eps: float = 0.1,
    magnitude: float = 1.0,
    family: Family | None = None,
    targets: int = 8,
    examples: int = 32,
    seed: int = 0,
) -> Growth:
    """Return how the effect of an Linf attack on linear targets grows with the dimension.

    With w the difference of two classes' weights, eta = eps sign(w) moves the score by eps ||w||_1 = eps m n for n
    values of mean size m (Goodfellow et al. 2014, arXiv 1412.6572, section 3); random signs move it by eps ||w||_2.

    Args:
        attack: the attack that is measured, such as attacks.fgsm(), or its text once `unfooled.attacks` is loaded.
        dims: dimensions n.
        eps: Linf size, below half the box [0, 1], so that the box does not bind.
        magnitude: mean size of a weight.
        family: makes the weights of a target instead of normal ones of that mean size.
        targets: linear targets per dimension.
        examples: inputs per target, uniform in [eps, 1 - eps].
        seed: of weights and inputs.

    Raises:
        InputError: a dimension below 1, or eps not between 0 and 0.5.
    """
    if not dims or min(dims) < 1 or targets < 1 or examples < 1:
        raise InputError("dims, targets and examples must be at least 1.")
    if not 0 < eps < 0.5:
        raise InputError(f"eps must be above 0 and below 0.5, so that the box [0, 1] does not bind, not {eps}.")
    recipe = as_attack(attack)
    made = family or (lambda n, g: torch.randn(n, generator=g, dtype=torch.float64) * magnitude * (math.pi / 2) ** 0.5)
    cells = []
    for n in dims:
        for at in range(targets):
            g = torch.Generator().manual_seed(text_key(f"{seed}/growth/{n}/{at}") % 2**63)
            w = made(n, g).double()
            if w.shape != (n,):
                raise InputError(f"The family must give weights of shape ({n},), not {tuple(w.shape)}.")
            x = eps + (1 - 2 * eps) * torch.rand(examples, n, generator=g, dtype=torch.float64)
            signs = torch.randint(0, 2, x.shape, generator=g) * 2.0 - 1
            target = _half_space(w)
            y = Asker(target).labels(x)
            before = losses.margin(Asker(target).scores(x), y)
            shown = torch.cat([last_iterate(recipe, target, x, y, linf(eps), seed=seed), x + eps * signs])
            moved = losses.margin(Asker(target).scores(shown), y.repeat(2)) - before.repeat(2)
            attacked, random = moved.split(examples)
            cells.append([eps * w.abs().sum(), attacked.min(), random.square().mean().sqrt(), eps * w.norm()])
    table = torch.tensor(cells, dtype=torch.float64).view(len(dims), targets, 4)
    closed, hit, noise, expected = table.unbind(2)
    return Growth(torch.tensor(dims), closed, hit, noise, expected, eps, repr(recipe))


def _half_space(w: Tensor) -> Target:
    """Return the target whose scores are -<w, x - 1/2> / 2 and <w, x - 1/2> / 2."""
    layer = nn.Linear(len(w), 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-w, w]) / 2)
        layer.bias.copy_(torch.stack([w.sum(), -w.sum()]) / 4)
    return Target(layer, name="linear")


WAYS = ("input, gradient", "input, random", "parameters, gradient", "parameters, random")
"""What is moved, and in which direction, in the order of `LocalLinearity`."""


@dataclass(frozen=True)
class LocalLinearity(Explanation):
    """How far a target is from its own linear expansion, in its input and in its parameters.

    `eps` [m] are relative step sizes: the L2 length of the step over that of the input (of all parameters). `remainder`
    [4, m, n] is ||f(moved) - f - J d|| / ||J d|| of the logits of n examples for the four `WAYS`, 0 for what is linear;
    `predicted` [4, m, n] is ||J d|| over the spread of the logits, the size of the change that J foretells.
    """

    eps: Tensor
    remainder: Tensor
    predicted: Tensor

    size: ClassVar[tuple[float, float]] = (9.0, 3.9)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a way and step: medians over the examples, and quartiles of the remainder."""
        return [
            {
                "moved": way.split(", ")[0],
                "direction": way.split(", ")[1],
                "relative_step": float(step),
                "remainder": float(self.remainder[i, j].median()),
                "low": float(self.remainder[i, j].quantile(0.25)),
                "high": float(self.remainder[i, j].quantile(0.75)),
                "predicted": float(self.predicted[i, j].median()),
            }
            for i, way in enumerate(WAYS)
            for j, step in enumerate(self.eps.tolist())
        ]

    def sentence(self) -> str:
        """Return the remainders in x against in the parameters: at the same step, and at the same foretold effect."""
        at = len(self.eps) // 2
        a, b, c, d = (float(self.remainder[i, at].median()) for i in range(4))
        nearer = "input" if a < c else "parameters"
        said = (
            f"A step of {float(self.eps[at]):.3g} times the length of what is moved, along the gradient, leaves "
            f"{a:.2g} of the linear change unexplained in the input and {c:.2g} in the parameters (medians): "
            f"nearer to linear in the {nearer}; along random directions it is {b:.2g} and {d:.2g}."
        )
        e, f = self.at_effect(0), self.at_effect(2)
        return f"{said} Where the linear part foretells half the spread of the logits, it is {e:.2g} and {f:.2g}."

    def at_effect(self, way: int, effect: float = 0.5) -> float:
        """Return the median remainder of one of `WAYS` where ||J d|| is `effect` times the spread of the logits.

        Between steps on logarithms; NaN where no step foretells so little or so much.
        """
        foretold, missed = (t[way].median(1).values.double().clamp(min=1e-12) for t in (self.predicted, self.remainder))
        found = np.interp(math.log(effect), foretold.log(), missed.log(), left=math.nan, right=math.nan)
        return float(np.exp(found))

    def draw(self, figure: "Figure") -> None:
        """Draw the remainder over the relative step, and over the change that the linear expansion foretells."""
        left, right = figure.subplots(1, 2, sharey=True)
        for i, way in enumerate(WAYS):
            colour, dash = COLOURS[0] if i < 2 else COLOURS[1], "-" if i % 2 == 0 else (0, (4, 2))
            middle = self.remainder[i].median(1).values.clamp(min=1e-9)
            low, high = (self.remainder[i].quantile(q, 1).clamp(min=1e-9) for q in (0.25, 0.75))
            left.plot(self.eps.tolist(), middle.tolist(), color=colour, linestyle=dash, marker="o", markersize=3)
            if i % 2 == 0:
                left.fill_between(self.eps.tolist(), low.tolist(), high.tolist(), color=colour, alpha=0.15, linewidth=0)
            foretold = self.predicted[i].median(1).values.tolist()
            right.plot(foretold, middle.tolist(), color=colour, linestyle=dash, marker="o", markersize=3, label=way)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
            axes.grid()
        left.set_xlabel("step / length of what is moved (L2)")
        left.set_ylabel("remainder / linear part")
        left.set_title("What a linear expansion misses")
        right.set_xlabel("change foretold / spread of the logits")
        right.set_title("At the same foretold effect")
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def local_linearity(
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    seed: int = 0,
) -> LocalLinearity:
    """Return how linear the target's logits are in x for fixed parameters, and in the parameters for fixed x.

    The relative second-order remainder ||f(x + d) - f(x) - J d|| / ||J d|| with J d exact (automatic differentiation),
    at the same relative step ||d|| / ||x||, along the gradient of the loss and along a normal direction; the parameters
    are all moved together, along the gradient of the mean loss of the given examples. Goodfellow et al. 2014 (arXiv
    1412.6572, section 3) hold that networks are intentionally near-linear in x; a linear module leaves 0 in both.

    Args:
        target: a torch module, or a Target around one.
        x: examples, float [n, ...], not zero; they are all held at once.
        y: their labels, int64 [n].
        eps: relative step sizes, rising.
        seed: of the random directions.

    Raises:
        InputError: the target is no torch module with parameters, or the inputs do not fit.
    """
    target, x = as_target(target), check_rows(x)
    if not isinstance(target.module, nn.Module) or not list(target.module.parameters()):
        raise InputError("Linearity in the parameters needs a torch module that has some; give the module itself.")
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.is_floating_point():
        raise InputError(f"y must be integer labels of shape ({len(x)},).")
    if not eps or min(eps) <= 0:
        raise InputError("eps must be relative step sizes above 0.")
    module, device = target.module, target.device
    x, y = x.to(device, target.work_dtype), y.to(device)
    if not bool(x.flatten(1).any(1).all()):
        raise InputError("An example is zero everywhere, so that no step is relative to it; leave it out.")
    with torch.inference_mode(False), untouched(target):
        named = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
        theta = [p.detach().clone().requires_grad_(True) for p in named.values()]

        def of_theta(*values: Tensor) -> Tensor:
            moved = copy.copy(target)
            moved.module = lambda z: torch.func.functional_call(module, dict(zip(named, values, strict=True)), (z,))
            return moved.scores(x)

        with torch.enable_grad():
            leaf = x.clone().requires_grad_(True)
            loss = losses.cross_entropy(target.scores(leaf), y).sum()
            slope_x = torch.autograd.grad(loss, leaf)[0]
            slope = torch.autograd.grad(losses.cross_entropy(of_theta(*theta), y).mean(), theta, allow_unused=True)
        g = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(p.shape, generator=g).to(p) for p in theta]
        known = [torch.zeros_like(p) if t is None else t for p, t in zip(theta, slope, strict=True)]
        ways = [
            _remainders(target.scores, [x], [_scaled(d, x)], eps)
            for d in (slope_x, random_directions(x, 1, seed, "local_linearity")[:, 0])
        ] + [_remainders(of_theta, theta, _whole(d, theta), eps) for d in (known, drawn)]
    return LocalLinearity(torch.tensor(eps), *(torch.stack(column).cpu() for column in zip(*ways, strict=True)))


def _remainders(
    f: Callable[..., Tensor], at: Sequence[Tensor], d: Sequence[Tensor], eps: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the relative remainders and the relative linear changes of f along eps * d, both [m, n]."""
    value, slope = (t.detach().double() for t in torch.autograd.functional.jvp(f, tuple(at), tuple(d)))
    size = slope.norm(dim=1).clamp(min=1e-30)
    spread = (value - value.mean(1, keepdim=True)).norm(dim=1).clamp(min=1e-30)
    missed = []
    with torch.no_grad():
        for step in eps:
            moved = f(*(a + step * b for a, b in zip(at, d, strict=True))).double()
            missed.append((moved - value - step * slope).norm(dim=1) / (step * size))
    return torch.stack(missed).float(), torch.stack([step * size / spread for step in eps]).float()


def _scaled(d: Tensor, x: Tensor) -> Tensor:
    """Return each row of d [n, ...] at the L2 length of that row of x."""
    ratio = x.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1).clamp(min=1e-30)
    return d * ratio.view(-1, *[1] * (d.dim() - 1))


def _whole(d: Sequence[Tensor], theta: Sequence[Tensor]) -> list[Tensor]:
    """Return d with the L2 length of theta, over all tensors together."""
    length, goal = (math.sqrt(sum(float(t.detach().double().square().sum()) for t in part)) for part in (d, theta))
    return [t.detach() * (goal / max(length, 1e-30)) for t in d]
