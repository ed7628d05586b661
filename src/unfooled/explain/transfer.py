"""What fools one target, shown to others: does it carry over, to the same wrong class, and more than noise does?

Szegedy et al. 2013, arXiv 1312.6199, section 4.2; Goodfellow et al. 2014, arXiv 1412.6572, section 8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._noise import Noise, example_ids, row_keys
from .._rows import column
from ..core.access import Access
from ..core.ask import Asker, confidences
from ..core.explanation import COLOURS, INK, SOFT, Explanation
from ..core.run import Run
from ..core.target import Target, as_target
from ..errors import InputError
from ..norms import L2, Bounds
from ..stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Named = Mapping[str, Target | Callable[..., Any]]

DRAWS = 8
"""Noises per example that a point is set against."""


@dataclass(frozen=True)
class Transferred(Explanation):
    """What n points made on `source`, one of `targets`, do to each of them.

    `truth` int64 [n] are the true labels and `wrong` int64 [n] what the source calls the points. Of every target and
    point: the label of the unchanged input `clean` int64 [targets, n], that of the point `label` and the confidence in
    it `confidence` (NaN where only labels can be had), and `noise` [targets, n], the share of random changes of the
    same L2 size that fool the target. `size_l2` [n] is that size. A point counts for a target where it fools its source
    and both are right about the unchanged input: `asked` bool [targets, n].
    """

    source: str
    targets: tuple[str, ...]
    truth: Tensor = field(repr=False)
    wrong: Tensor = field(repr=False)
    clean: Tensor = field(repr=False)
    label: Tensor = field(repr=False)
    confidence: Tensor = field(repr=False)
    noise: Tensor = field(repr=False)
    size_l2: Tensor = field(repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def asked(self) -> Tensor:
        """Which points count for which target, bool [targets, n]."""
        right = self.clean == self.truth
        return right & right[self.targets.index(self.source)] & (self.wrong != self.truth)

    @property
    def fooled(self) -> Tensor:
        """Which of them fool it, bool [targets, n]."""
        return self.asked & (self.label != self.truth)

    @property
    def same(self) -> Tensor:
        """Which of those lead it to the wrong class of the source, bool [targets, n]."""
        return self.fooled & (self.label == self.wrong)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a target: how many points count and fool, with 95% intervals, and what noise does.

        `label` is the commonest label of the points and `confidence` the mean confidence in their labels; shares of
        nothing are None.
        """
        out = []
        for i, name in enumerate(self.targets):
            n, fooled, same = (int(part[i].sum()) for part in (self.asked, self.fooled, self.same))
            (low, high), (same_low, same_high) = wilson(fooled, n), wilson(same, fooled)
            sure = float(self.confidence[i].double().mean())
            out.append({
                "source": self.source,
                "target": name,
                "n": n,
                "fooled": fooled / n if n else None,
                "fooled_low": low,
                "fooled_high": high,
                "same": same / fooled if fooled else None,
                "same_low": same_low,
                "same_high": same_high,
                "noise": float(self.noise[i][self.asked[i]].mean()) if n else None,
                "label": self.called(int(self.label[i].mode().values)),
                "confidence": None if sure != sure else sure,
            })  # fmt: skip
        return out

    def called(self, label: int) -> str:
        """Return the name of a class, its number where it has none."""
        return self.names[label] if self.names and label < len(self.names) else str(label)

    def sentence(self) -> str:
        """Return how many of the other targets, or what share of the points, are fooled, and what noise does."""
        others = [r for r in self.rows() if r["target"] != self.source]
        known = [r for r in others if r["n"]]
        if not known:
            why = "no other target is right to begin with" if bool(self.asked.any()) else "none of the points fools it"
            return f"Whether what fools {self.source} carries over is not known: {why}."
        noise = sum(r["noise"] for r in known) / len(known)
        control = f"random changes of the same size fool them in {noise:.1%} of draws."
        if len(self.truth) == 1:
            fooled = [r for r in known if r["fooled"]]
            same = sum(bool(r["same"]) for r in fooled)
            return f"It also fools {len(fooled)} of {len(known)} other targets, {same} into the same class; {control}"
        rates = ", ".join(f"{r['target']} {r['fooled']:.0%}" for r in known)
        return f"Of the points that fool {self.source}, these shares fool the others: {rates}; {control}"

    def draw(self, figure: "Figure") -> None:
        """Draw a bar a target: the confidence in the wrong label (one point), or the shares that fool (many)."""
        ax = figure.subplots()
        rows = self.rows()
        if len(self.truth) == 1:
            self._draw_one(ax)
        else:
            place = range(len(rows))
            rate = [100 * (r["fooled"] or 0) for r in rows]
            ends = [[max(0.0, v - 100 * r["fooled_low"]) for v, r in zip(rate, rows, strict=True)],
                    [max(0.0, 100 * r["fooled_high"] - v) for v, r in zip(rate, rows, strict=True)]]  # fmt: skip
            alike = [v * (r["same"] or 0) for v, r in zip(rate, rows, strict=True)]
            ax.barh(
                place,
                rate,
                0.6,
                xerr=ends,
                color=COLOURS[-1],
                ecolor=INK,
                error_kw={"lw": 1, "zorder": 3},
                label="fooled (95% interval)",
            )
            ax.barh(place, alike, 0.6, color=COLOURS[0], label="into the same wrong class")
            noise = [100 * (r["noise"] or 0) for r in rows]
            ax.plot(
                noise, place, "D", color=COLOURS[1], ms=5, ls="", label="random, same size", clip_on=False, zorder=4
            )
            ax.set_xlim(0, 100)
            ax.set_xlabel("share of the points that count, %")
        ax.set_yticks(range(len(rows)), [f"{r['target']} (source)" if r["target"] == self.source else r["target"]
                                         for r in rows])  # fmt: skip
        ax.invert_yaxis()
        ax.set_title(f"Made on {self.source}, shown to others")
        figure.legend(loc="outside lower center", ncols=3)

    def _draw_one(self, ax: Any) -> None:
        truth = int(self.truth[0])
        for i in range(len(self.targets)):
            label, sure = int(self.label[i, 0]), float(self.confidence[i, 0])
            known = sure == sure
            kind = "right" if label == truth else "fooled" if int(self.clean[i, 0]) == truth else "wrong before too"
            colour = {"right": COLOURS[0], "fooled": COLOURS[1], "wrong before too": SOFT}[kind]
            ax.barh(i, 100 * sure if known else 0, 0.6, color=colour)
            ax.text(102, i, f"{self.called(label)}, {kind}", va="center", color=INK, clip_on=False)
        ax.plot(
            100 * self.noise[:, 0].cpu(), range(len(self.targets)), "D", color=INK, mfc="white", ms=5, ls="",
            label="random changes of the same size that fool, %", clip_on=False,
        )  # fmt: skip
        ax.set_xlim(0, 100)
        ax.set_xlabel(f"confidence in its label of the changed input, % (true: {self.called(truth)})")


@dataclass(frozen=True)
class Agreement(Explanation):
    """What points made on each source do to each target: one `Transferred` a source, all of the same targets."""

    sources: tuple[Transferred, ...]

    size: ClassVar[tuple[float, float]] = (7.6, 5.2)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for every source and target, as `Transferred.rows` does."""
        return [row for part in self.sources for row in part.rows()]

    def sentence(self) -> str:
        """Return the mean fooling rate and same-wrong-class rate between different targets, and that of noise."""
        known = [r for r in self.rows() if r["source"] != r["target"] and r["n"]]
        if not known:
            return "No points count for any pair of different targets."
        rate, noise = (sum(r[k] for r in known) / len(known) for k in ("fooled", "noise"))
        alike = [r["same"] for r in known if r["same"] is not None]
        same = f"{sum(alike) / len(alike):.0%} of them into the same wrong class" if alike else "none of them alike"
        return (
            f"Over {len(known)} pairs of different targets a mean of {rate:.0%} of the points that fool one fool the "
            f"other, {same} (means over pairs); random changes of the same size fool {noise:.1%}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the matrix, sources in rows: what fools (of this into the same class), and what random changes do."""
        ax = figure.subplots()
        targets = self.sources[0].targets
        table = [part.rows() for part in self.sources]
        shares = [[float("nan") if r["fooled"] is None else 100 * r["fooled"] for r in row] for row in table]
        shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for i, row in enumerate(table):
            for j, r in enumerate(row):
                if r["fooled"] is not None:
                    same = "" if r["same"] is None else f" ({100 * r['same']:.0f})"
                    text = f"{100 * r['fooled']:.0f}{same}\nrandom {100 * r['noise']:.0f}"
                    ax.text(
                        j, i, text, ha="center", va="center", color="white" if r["fooled"] > 0.55 else INK, fontsize=7
                    )
        ax.set_xticks(range(len(targets)), targets, rotation=30, ha="right")
        ax.set_yticks(range(len(table)), [part.source for part in self.sources])
        ax.set_xlabel("shown to")
        ax.set_ylabel("made on")
        ax.set_title("Fooled, % (of these alike, %), and by random changes")
        figure.colorbar(shown, ax=ax, label="fooled, %", shrink=0.8)


def transfer(
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    targets: Named,
    *,
    source: str = "",
    draws: int = DRAWS,
    seed: int = 0,
) -> Transferred:
    """Show what fools one target to the others, and to all of them random changes of the same size.

    Args:
        x, x_adv: inputs [n, ...] and what was made of them; n may be 1.
        y: their true labels, int64 [n].
        targets: by name, in the order in which they are shown; labels are enough of them.
        source: which one the points were made on; the first by default.
        draws, seed: random changes an example and target, of which each keeps the L2 size of the example's change as
            far as the box has room.

    Raises:
        InputError: shapes do not fit, or there is no such source.
    """
    known = _asked(x, y, targets)
    return _transferred(x, x_adv, y, known, source or next(iter(known)), _clean(x, known), draws, seed)


def agreement(
    targets: Named,
    points: Mapping[str, Tensor | Run],
    x: Tensor,
    y: Tensor,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """Return what points made on each source do to each target, with random changes of the same size as the control.

    `targets` may differ in anything: architecture, seed, half of the training data, or model family.

    Args:
        targets: by name; labels are enough of them.
        points: by the name of the source, one of the targets: the points [n, ...], or the `Run` that made them, such as
            those of a `TransferMatrix`: `dict(zip(matrix.sources, matrix.runs))`.
        x, y: the unchanged inputs [n, ...] and their true labels, int64 [n].
        draws, seed: as for `transfer`.

    Raises:
        InputError: shapes do not fit, or a source is none of the targets.
    """
    if not points:
        raise InputError("Agreement needs the points of at least one source.")
    known = _asked(x, y, targets)
    clean = _clean(x, known)
    parts = []
    for source, made in points.items():
        x_adv = made.x_adv if isinstance(made, Run) else made
        if not isinstance(x_adv, Tensor):
            raise InputError(f"The points of {source!r} are no tensor; agreement compares tensors.")
        parts.append(_transferred(x, x_adv, y, known, source, clean, draws, seed))
    return Agreement(tuple(parts))


def _asked(x: Tensor, y: Tensor, targets: Named) -> dict[str, Asker]:
    if not targets:
        raise InputError("Transfer needs at least one target.")
    if not len(x) or y.shape != (len(x),):
        raise InputError(f"Transfer needs one label for each of at least one input, not {len(y)} for {len(x)}.")
    made = {name: as_target(target) for name, target in targets.items()}
    return {name: Asker(target, access=target.access) for name, target in made.items()}


def _clean(x: Tensor, askers: Mapping[str, Asker]) -> Tensor:
    """Return the labels of the unchanged inputs, int64 [targets, n]."""
    return torch.stack([asker.labels(x) for asker in askers.values()])


def _transferred(
    x: Tensor, x_adv: Tensor, y: Tensor, askers: Mapping[str, Asker], source: str, clean: Tensor, draws: int, seed: int
) -> Transferred:
    if x_adv.shape != x.shape:
        raise InputError(f"The points have shape {tuple(x_adv.shape)} but the inputs {tuple(x.shape)}.")
    if source not in askers:
        raise InputError(f"The source {source!r} is none of the targets: {', '.join(askers)}.")
    if draws < 1:
        raise InputError(f"draws must be at least 1, not {draws}.")
    labels, sure, noisy = [], [], []
    shaken = alike(x, x_adv, draws, askers[source].target.bounds, seed).flatten(0, 1)
    for asker in askers.values():
        label, confidence = _answers(asker, x_adv)
        labels.append(label)
        sure.append(confidence)
        wrong = asker.labels(shaken).view(draws, -1) != y
        noisy.append(wrong.double().mean(0))
    at = list(askers).index(source)
    names = next((tuple(a.target.classes) for a in askers.values() if a.target.classes), None)
    return Transferred(
        source=source,
        targets=tuple(askers),
        truth=y,
        wrong=labels[at],
        clean=clean,
        label=torch.stack(labels),
        confidence=torch.stack(sure),
        noise=torch.stack(noisy),
        size_l2=L2.size(x_adv.double() - x.double()),
        names=names,
    )


def _answers(asker: Asker, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels int64 [n] and the confidence in them [n], NaN where only labels can be had."""
    if asker.target.access < Access.SCORES:
        labels = asker.labels(x)
        return labels, torch.full((len(x),), torch.nan, device=x.device)
    scores = asker.scores(x)
    return scores.argmax(1), confidences(scores).amax(1)  # two confidences may round to the same, their scores not


def alike(x: Tensor, x_adv: Tensor, draws: int, bounds: Bounds, seed: int = 0) -> Tensor:
    """Return x [n, ...] with random changes of the L2 sizes of x_adv - x, [draws, n, ...].

    Normal noise, scaled; where a value would leave the box its change points the other way, and only what then still
    leaves it is cut off, so that the size is kept wherever there is room.
    """
    lo, hi = bounds
    noise = Noise(torch.from_numpy(row_keys(seed, example_ids(x), "transfer")).to(x.device))
    size, out = L2.size(x_adv - x), []
    for step in range(draws):
        change = noise.normal(step, x.shape[1:], dtype=x.dtype)
        change = change * column(size / L2.size(change), x)
        outside = (x + change < lo) | (x + change > hi)
        out.append((x + torch.where(outside, -change, change)).clamp(lo, hi))
    return torch.stack(out)
