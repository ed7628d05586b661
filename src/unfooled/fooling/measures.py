"""What fooling images are made of: do they fool other targets, survive a blur, and hang on one of their parts?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unfooled.core.ask import Asker
from unfooled.core.explanation import COLOURS, SOFT, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Asked = Target | Callable[..., object]


@dataclass(frozen=True, eq=False)
class CarriedOver(Explanation):
    """What other targets say of images that were made for one.

    `classes` int64 [m] are what the images were made to be; `called` int64 [t, m] is what each target says,
    `confidence` [t, m] how sure it is of the wanted class. The control, `shuffled` int64 [t, d, m], is what it says of
    the same pixels in d other orders.
    """

    names: tuple[str, ...]
    classes: Tensor
    called: Tensor
    confidence: Tensor
    shuffled: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a target: the share called the wanted class, the confidence in it, and the control."""
        return [
            {
                "target": name,
                "n": len(self.classes),
                "called the class": float((called == self.classes).double().mean()),
                "interval": list(wilson(int((called == self.classes).sum()), len(self.classes))),
                "median confidence": float(sure.double().median()),
                "mean confidence": float(sure.double().mean()),
                "pixels shuffled": float((mixed == self.classes).double().mean()),
            }
            for name, called, sure, mixed in zip(self.names, self.called, self.confidence, self.shuffled, strict=True)
        ]

    def sentence(self) -> str:
        """Return the share that each target calls the wanted class, and what is left with the pixels shuffled."""
        rows = self.rows()
        chance = max(row["pixels shuffled"] for row in rows)
        said = ", ".join(
            f"{row['target']} {row['called the class']:.0%} (confidence {row['mean confidence']:.0%})" for row in rows
        )
        n = len(self.classes)
        return f"The class of {n:,} images is seen by: {said}; with their pixels shuffled, {chance:.0%} at most."

    def draw(self, figure: "Figure") -> None:
        """Draw the share called the wanted class for each target, beside the same pixels shuffled."""
        axes, rows = figure.subplots(), self.rows()
        at = list(range(len(rows)))
        shares = [row["called the class"] for row in rows]
        reach = [[s - row["interval"][0] for s, row in zip(shares, rows, strict=True)]]
        reach.append([row["interval"][1] - s for s, row in zip(shares, rows, strict=True)])
        axes.bar(
            [i - 0.27 for i in at],
            shares,
            0.27,
            color=COLOURS[0],
            label="called the wanted class",
            yerr=reach,
            ecolor=SOFT,
        )
        axes.bar(at, [r["mean confidence"] for r in rows], 0.27, color=COLOURS[5], label="mean confidence in it")
        axes.bar(
            [i + 0.27 for i in at],
            [r["pixels shuffled"] for r in rows],
            0.27,
            color=COLOURS[1],
            label="its pixels shuffled, called it",
        )
        axes.set_xticks(at, self.names)
        axes.set_ylabel("share of images, confidence")
        axes.set_ylim(0, 1.19)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.legend(loc="upper right", ncols=3)


@dataclass(frozen=True, eq=False)
class Blurred(Explanation):
    """What a target says of images behind a Gaussian low-pass.

    `sigmas` in pixels; `called` int64 [s, m] and `confidence` [s, m] in the wanted class. Controls: `shuffled` int64
    [s, m], the answers to the blurred images whose pixels were put into another order first, and `natural` [s], the
    accuracy on blurred natural images (None without them).
    """

    sigmas: tuple[float, ...]
    classes: Tensor
    called: Tensor
    confidence: Tensor
    shuffled: Tensor
    natural: Tensor | None

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a sigma."""
        return [
            {
                "sigma": sigma,
                "n": len(self.classes),
                "called the class": float((called == self.classes).double().mean()),
                "median confidence": float(sure.double().median()),
                "mean confidence": float(sure.double().mean()),
                "pixels shuffled": float((self.shuffled[i] == self.classes).double().mean()),
                "natural images": None if self.natural is None else float(self.natural[i]),
            }
            for i, (sigma, called, sure) in enumerate(zip(self.sigmas, self.called, self.confidence, strict=True))
        ]

    def sentence(self) -> str:
        """Return what the strongest blur leaves, beside natural images and shuffled ones."""
        rows = self.rows()
        first, last = rows[0], rows[-1]
        natural = "" if self.natural is None else f", of natural images {last['natural images']:.0%} right"
        return (
            f"Called the wanted class: {first['called the class']:.0%} of {first['n']:,} images at sigma "
            f"{first['sigma']:g} (confidence {first['mean confidence']:.0%}), {last['called the class']:.0%} at sigma "
            f"{last['sigma']:g} pixels (confidence {last['mean confidence']:.0%}); there with shuffled "
            f"pixels {last['pixels shuffled']:.0%}{natural}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw shares and confidence against the width of the blur."""
        axes, rows = figure.subplots(), self.rows()
        columns = [
            ("called the class", "called the wanted class", "-"),
            ("mean confidence", "mean confidence in it", "--"),
        ]
        columns += [("pixels shuffled", "their pixels shuffled, called the same", "-")]
        columns += [] if self.natural is None else [("natural images", "natural images, called right", "-")]
        for (key, label, line), colour in zip(columns, (0, 0, 1, 2), strict=False):
            axes.plot(
                self.sigmas, [row[key] for row in rows], line, marker="o", ms=3, color=COLOURS[colour], label=label
            )
        axes.set_xlabel("standard deviation of the blur, pixels")
        axes.set_ylabel("share of images, confidence")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))


@dataclass(frozen=True, eq=False)
class Ablated(Explanation):
    """The confidence in the wanted class when parts of an image are taken away.

    For the images and, as control, natural ones ("fooling", "natural"): `before` [m]; `greyed` and `shuffled`
    [m, g, g] with one patch of a g x g grid set to the middle of the bounds or its pixels put into another order;
    `centre` [m] with the middle patches greyed, `edge` [m] with as many others, the mean over draws.
    """

    before: dict[str, Tensor]
    greyed: dict[str, Tensor]
    shuffled: dict[str, Tensor]
    centre: dict[str, Tensor]
    edge: dict[str, Tensor]

    size: ClassVar[tuple[float, float]] = (8.6, 3.8)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a kind of image and removal: confidence before and after, the share that falls below 0.5."""
        found = []
        for kind, before in self.before.items():
            patches, mixed = self.greyed[kind].flatten(1), self.shuffled[kind].flatten(1)
            left = {
                "one patch greyed, mean": patches.mean(1),
                "one patch greyed, worst": patches.amin(1),
                "one patch shuffled, mean": mixed.mean(1),
                "one patch shuffled, worst": mixed.amin(1),
                "centre greyed": self.centre[kind],
                "as many others greyed": self.edge[kind],
            }
            for removal, after in left.items():
                found.append(
                    {
                        "images": kind,
                        "removed": removal,
                        "n": len(before),
                        "before": float(before.double().mean()),
                        "after": float(after.double().mean()),
                        "below 0.5": float((after < 0.5).double().mean()),
                    }
                )
        return found

    def sentence(self) -> str:
        """Return what one patch, the centre and the rest are worth, beside natural images."""
        said = []
        for kind in self.before:
            rows = {row["removed"]: row for row in self.rows() if row["images"] == kind}
            one, centre, edge = (rows[k] for k in ("one patch greyed, mean", "centre greyed", "as many others greyed"))
            said.append(
                f"{kind} images: mean confidence {one['before']:.0%}, {one['after']:.0%} without one patch, "
                f"{centre['after']:.0%} without the centre, {edge['after']:.0%} without as many other patches"
            )
        return "; ".join(said).capitalize() + "."

    def draw(self, figure: "Figure") -> None:
        """Draw where one patch costs most confidence, and what each removal leaves."""
        kinds = list(self.before)
        *maps, bars = figure.subplots(1, len(kinds) + 1, width_ratios=[*([1] * len(kinds)), 1.7])
        lost = [(self.before[k][:, None, None] - self.greyed[k]).mean(0) for k in kinds]
        top = max(1e-9, *(float(values.max()) for values in lost))
        for axes, kind, cost in zip(maps, kinds, lost, strict=True):
            picture = axes.imshow(cost.cpu().numpy(), cmap="Blues", vmin=0, vmax=top)
            axes.set_title(kind)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        figure.colorbar(picture, ax=maps, shrink=0.7, location="bottom", label="mean confidence lost without the patch")
        rows, step = self.rows(), 0.8 / len(kinds)
        names = list(dict.fromkeys(row["removed"] for row in rows))
        for place, kind in enumerate(kinds):
            values = [row["after"] for row in rows if row["images"] == kind]
            bars.barh([i + place * step for i in range(len(names))], values, step, color=COLOURS[place], label=kind)
        bars.set_yticks([i + 0.4 - step / 2 for i in range(len(names))], names)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.02)
        bars.set_xlabel("mean confidence left")
        bars.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.14))


def carried_over(
    images: Tensor, classes: Tensor, targets: Mapping[str, Asked], *, draws: int = 8, seed: int = 0
) -> CarriedOver:
    """Return what each target says of fooling images that were made for another one, or for itself.

    Args:
        images: [m, ...] within every target's bounds.
        classes: int64 [m], what they were made to be.
        targets: by name; all must know those classes.
        draws: other orders of every image's pixels, for the control.
        seed: of those orders.

    Raises:
        InputError: no targets, images and classes that do not fit.
    """
    if not targets:
        raise InputError("targets is empty: give at least one target by its name.")
    if draws < 1:
        raise InputError(f"draws must be at least 1, not {draws}.")
    wanted = _wanted(images, classes)
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.cat([_reordered(images, generator) for _ in range(draws)])
    called, sure, control = [], [], []
    for target in targets.values():
        asker = Asker(target)
        got = _known(asker.confidences(images), wanted)
        called.append(got.argmax(1))
        sure.append(got.gather(1, wanted[:, None])[:, 0])
        control.append(asker.labels(mixed).unflatten(0, (draws, -1)))
    return CarriedOver(tuple(targets), wanted, torch.stack(called), torch.stack(sure), torch.stack(control))


def blurred(
    target: Asked,
    images: Tensor,
    classes: Tensor,
    sigmas: Sequence[float] = (0, 0.5, 1, 1.5, 2, 3),
    *,
    natural: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Blurred:
    """Return what a target says of fooling images behind a Gaussian low-pass, as eyes half shut would see them.

    What a network calls the class after the blur need not look like it to people: a hardened target is the nearer
    judge of what is seen. Natural images say how much blur it takes, shuffled ones what the grey values alone do.

    Args:
        target: who judges; not necessarily the target that the images were made for.
        images: [m, c, h, w].
        classes: int64 [m], what they were made to be.
        sigmas: standard deviations of the blur in pixels; 0 is the image itself.
        natural: images [j, c, h, w] and labels int64 [j] for the control.
        seed: of the order of shuffled pixels.

    Raises:
        InputError: images that are none, a negative sigma, classes that do not fit.
    """
    wanted = _wanted(images, classes)
    if not sigmas or min(sigmas) < 0 or not all(map(math.isfinite, sigmas)):
        raise InputError(f"sigmas must be numbers of pixels, 0 or more, not {tuple(sigmas)}.")
    asker = Asker(target)
    mixed = _reordered(images, torch.Generator().manual_seed(seed))
    called, sure, control, right = [], [], [], []
    for sigma in sigmas:
        got = _known(asker.confidences(low_pass(_image(images), sigma)), wanted)
        called.append(got.argmax(1))
        sure.append(got.gather(1, wanted[:, None])[:, 0])
        control.append(asker.labels(low_pass(mixed, sigma)))
        if natural is not None:
            x, y = natural
            right.append((asker.labels(low_pass(x, sigma)) == _wanted(x, y)).double().mean())
    return Blurred(
        tuple(float(s) for s in sigmas),
        wanted,
        torch.stack(called),
        torch.stack(sure),
        torch.stack(control),
        torch.stack(right) if right else None,
    )


def ablated(
    target: Asked,
    images: Tensor,
    classes: Tensor,
    *,
    grid: int = 4,
    natural: tuple[Tensor, Tensor] | None = None,
    draws: int = 8,
    seed: int = 0,
) -> Ablated:
    """Return how much confidence in the wanted class is left when parts of the images are taken away.

    Nguyen et al. 2014 (arXiv:1412.1897) remove elements that an evolved image repeats. Here the parts are the patches
    of a grid, one at a time, and the middle ones together against as many drawn from the others, which asks whether
    recognition hangs on a blob near the centre.

    Args:
        target: who judges.
        images: [m, c, h, w].
        classes: int64 [m], what they were made to be.
        grid: patches a side, 3 or more; the centre is what `grid // 3` rows and columns around it leave.
        natural: images [j, c, h, w] and labels int64 [j] for the control.
        draws: of the patches that are removed instead of the centre.
        seed: of those draws and of the order of pixels.

    Raises:
        InputError: images that are none or smaller than the grid, classes that do not fit.
    """
    height, width = _image(images).shape[2:]
    if not 3 <= grid <= min(height, width):
        raise InputError(f"grid must lie between 3 and the images' {min(height, width)} pixels a side, not {grid}.")
    if draws < 1:
        raise InputError(f"draws must be at least 1, not {draws}.")
    asker = Asker(target)
    kinds = {"fooling": (images, _wanted(images, classes))}
    if natural is not None:
        kinds["natural"] = (natural[0], _wanted(*natural))
    found: dict[str, dict[str, Tensor]] = {key: {} for key in ("before", "greyed", "shuffled", "centre", "edge")}
    grey = sum(asker.target.bounds) / 2
    for kind, (x, y) in kinds.items():
        generator = torch.Generator().manual_seed(seed)
        patch = _patches(_image(x), grid)  # [h, w]
        inner = torch.arange(grid // 3, grid - grid // 3)
        middle = (inner[:, None] * grid + inner).flatten()
        others = torch.tensor(sorted(set(range(grid * grid)) - set(middle.tolist())))

        def left(changed: Tensor, y: Tensor = y) -> Tensor:
            return _known(asker.confidences(changed), y).gather(1, y[:, None])[:, 0]

        def without(gone: Tensor, x: Tensor = x, patch: Tensor = patch) -> Tensor:
            return x.masked_fill(torch.isin(patch, gone.to(patch.device)), grey)

        found["before"][kind] = left(x)
        alone = [left(without(torch.tensor([p]))) for p in range(grid * grid)]
        mixed = [left(_mixed(x, patch == p, generator)) for p in range(grid * grid)]
        found["greyed"][kind] = torch.stack(alone, 1).unflatten(1, (grid, grid))
        found["shuffled"][kind] = torch.stack(mixed, 1).unflatten(1, (grid, grid))
        found["centre"][kind] = left(without(middle))
        elsewhere = [others[torch.randperm(len(others), generator=generator)[: len(middle)]] for _ in range(draws)]
        found["edge"][kind] = torch.stack([left(without(gone)) for gone in elsewhere]).mean(0)
    return Ablated(**found)


def low_pass(x: Tensor, sigma: float) -> Tensor:
    """Return images [n, c, h, w] blurred by a Gaussian of `sigma` pixels; its weights sum to 1 at the edges too."""
    if sigma == 0:
        return x
    for axis in (-2, -1):
        place = torch.arange(x.shape[axis], dtype=x.dtype, device=x.device)
        weight = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
        weight = weight / weight.sum(1, keepdim=True)
        x = weight @ x if axis == -2 else x @ weight.T
    return x


def _patches(x: Tensor, grid: int) -> Tensor:
    """Return the number of the patch that each pixel belongs to, int64 [h, w], row by row."""
    rows, columns = (torch.arange(size, device=x.device) * grid // size for size in x.shape[2:])
    return rows[:, None] * grid + columns


def _reordered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return x [n, ...] with the values of every row in another order."""
    order = torch.rand(len(x), x[0].numel(), generator=generator).argsort(1).to(x.device)
    return x.flatten(1).gather(1, order).view_as(x)


def _mixed(x: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """Return x with the pixels where `inside` bool [h, w] in another order, one order for each image."""
    place = inside.flatten().nonzero()[:, 0]
    order = torch.rand(len(x), len(place), generator=generator).argsort(1).to(x.device)
    flat = x.flatten(2).clone()
    picked = flat[:, :, place]
    flat[:, :, place] = picked.gather(2, order[:, None].expand_as(picked))
    return flat.view_as(x)


def _image(x: Tensor) -> Tensor:
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"Images must be floats [n, c, h, w], not {x.dtype} of shape {tuple(x.shape)}.")
    return x


def _wanted(images: Tensor, classes: Tensor) -> Tensor:
    if not len(images):
        raise InputError("There are no images: give at least one.")
    if not isinstance(classes, Tensor) or classes.shape != (len(images),) or classes.is_floating_point():
        shape = tuple(classes.shape) if isinstance(classes, Tensor) else type(classes).__name__
        raise InputError(f"classes must be integers of shape ({len(images)},), one for each image, not {shape}.")
    if int(classes.min()) < 0:
        raise InputError("classes must be 0 or more.")
    return classes.long().to(images.device)


def _known(sure: Tensor, wanted: Tensor) -> Tensor:
    if int(wanted.max()) >= sure.shape[1]:
        raise InputError(f"Class {int(wanted.max())} was asked for, but the target knows {sure.shape[1]} classes.")
    return sure
