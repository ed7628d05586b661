"""How linear a target is: its logits along a line, growth with the dimension, and x against the parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unfooled.core.access import Access
from unfooled.core.ask import Asker
from unfooled.core.explanation import INK, SOFT, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError

from ._lines import asked, check_like, check_rows, class_colours, class_name, excess, random_directions

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
        at, colours = (self.t * self.eps[0]).tolist(), class_colours(len(self.names))
        first, last = self.scores[0], self.labels[0]
        won = sorted(set(last.tolist()), key=lambda j: -int((last == j).sum()))
        own = int(last[len(at) // 2])
        shown = [own, *(j for j in won if j != own)]
        if len(self.names) <= 10:
            shown += [j for j in range(len(self.names)) if j not in shown]
        for line in self.random_scores[0, :, :, own].tolist():
            axes.plot(at, line, color=FAINT, linewidth=0.8, zorder=1)
        axes.plot([], [], color=FAINT, linewidth=1.5, label=f"{self.names[own]}, random directions")
        for j in shown:
            wide = 2.4 if j == own else 1.3
            axes.plot(at, first[:, j].tolist(), color=colours[j], linewidth=wide, zorder=3 if j == own else 2,
                      label=f"{self.names[j]}{' (the example)' if j == own else ''}, R² {self.fit[0, j, 0]:.3f}"
                      f" → {self.fit[0, j, 2]:.3f}")  # fmt: skip
        axes.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        axes.grid(axis="y")
        axes.set_ylabel("logit (score of the class)")
        axes.set_title("Logits along the perturbation; R² of one line → three pieces")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.4)
        strip.imshow(colours[last.numpy()][None], aspect="auto", extent=(at[0], at[-1], 0, 1))
        for begin, end, j in _stretches(last.tolist()):
            if (end - begin) / len(at) > 0.05:
                middle = (at[begin] + at[end - 1]) / 2
                strip.text(middle, 0.5, self.names[j], ha="center", va="center", color=INK, fontsize=8, clip_on=True)
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
        names=tuple(class_name(asker.target, j) for j in range(answered.shape[-1])),
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
