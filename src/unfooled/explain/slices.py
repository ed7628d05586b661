"""Slices: the target's answers on a plane through the input space, drawn as regions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unfooled.core.access import Access
from unfooled.core.ask import Asker
from unfooled.core.explanation import INK, Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError

from ._lines import (
    asked,
    check_like,
    check_rows,
    class_names,
    colours_of,
    excess,
    lengths,
    random_directions,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}

_SHAPES = ("o", "X", "s", "D", "^", "v", "P", "*")


@dataclass(frozen=True)
class Slice(Explanation):
    """What the target says on a plane through the input space: p x p points x + a u + b v, a and b in L2 units.

    `a` [p] and `b` [p] are the points of both axes; `labels` int64 [p, p] and `confidence` [p, p] (its share of the
    softmax) are indexed [b, a]; `outside` [p, p] is how far the farthest value of the point lies outside the box (0:
    inside; with `clamp` what was asked is the point cut to the box). `marks` name examples by their places (a, b) and
    their L2 distance from the plane; `label` is what the target says at the centre. `axes` name u and v.
    """

    a: Tensor
    b: Tensor
    labels: Tensor
    confidence: Tensor
    outside: Tensor
    marks: dict[str, tuple[float, float, float]]
    label: int
    clamp: bool
    axes: tuple[str, str]
    names: tuple[str, ...]

    size: ClassVar[tuple[float, float]] = (6.4, 5.0)

    def shares(self) -> dict[int, float]:
        """Return the share of the plane that each class holds, largest first."""
        held, count = self.labels.unique(return_counts=True)
        order = count.argsort(descending=True)
        return {int(held[i]): float(count[i]) / self.labels.numel() for i in order}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a class on the plane: its share, its mean confidence, and how near it comes to the centre."""
        size = torch.hypot(self.a[None, :], self.b[:, None])
        rows = []
        for label, share in self.shares().items():
            here = self.labels == label
            rows.append(
                {
                    "class": self.names[label],
                    "share": share,
                    "confidence": float(self.confidence[here].mean()),
                    "nearest_l2": float(size[here].min()),
                    "inside_box": float((self.outside[here] <= 0).double().mean()),
                }
            )
        return rows

    def sentence(self) -> str:
        """Return how much of the plane is not the centre's class, how near it comes, and how much lies in the box."""
        shares = self.shares()
        other = [row for row in self.rows() if row["class"] != self.names[self.label]]
        radius = float(self.a[-1])
        inside, step = float((self.outside <= 0).double().mean()), float(self.a[1] - self.a[0])
        middle = next((name for name, (a, b, _) in self.marks.items() if abs(a) + abs(b) < 1e-6 * radius), "the middle")
        said = f"Within {radius:.3g} (L2) of {middle}, which is called {self.names[self.label]}, "
        if other:
            near = min(other, key=lambda row: float(row["nearest_l2"]))
            said += (
                f"{1 - shares.get(self.label, 0.0):.0%} of the plane is called otherwise ({len(other)} "
                f"class{'' if len(other) == 1 else 'es'}), the nearest "
                f"({near['class']}) {max(near['nearest_l2'], step):.3g} away or less (the grid's step is {step:.2g})"
            )
        else:
            said += "no other class holds any of the plane"
        cut = (
            "points were cut to the box"
            if self.clamp
            else f"{inside:.0%} of the plane are possible inputs, the median point leaves the box by "
            f"{float(self.outside.median()):.2g}"
        )
        return f"{said}; {cut}."

    def draw(self, figure: "Figure") -> None:
        """Draw the regions, paler where the target is less sure, the marks, and where the box ends."""
        axes = figure.subplots()
        self.paint(axes)
        axes.set_title("Regions of the target's answers; paler is less sure")

    def paint(self, axes: "Axes", place: Mapping[str, Any] = _RIGHT) -> None:
        """Draw onto the given axes; `place` says where the legend goes."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        shares = self.shares()
        colours = colours_of(list(shares), len(self.names))
        a, b = self.a.tolist(), self.b.tolist()
        sure = 0.25 + 0.75 * self.confidence.clamp(0, 1).numpy()[..., None]
        table = np.zeros((max(shares) + 1, 3))
        table[list(colours)] = list(colours.values())
        picture = 1 - sure * (1 - table[self.labels.numpy()])
        half = (a[1] - a[0]) / 2
        axes.imshow(picture, origin="lower", extent=(a[0] - half, a[-1] + half, b[0] - half, b[-1] + half))
        edges = _edges(self.labels.numpy())
        axes.contour(a, b, edges, levels=[0.5], colors="white", linewidths=0.6)
        handles: list[Any] = [
            Patch(color=colours[j], label=f"{short(self.names[j])}, {f'{share:.0%}' if share >= 0.005 else '<1%'}")
            for j, share in list(shares.items())[:10]
        ]
        beyond = self.outside.numpy() > 0
        if beyond.any() and not beyond.all() and not self.clamp:
            axes.contour(a, b, beyond.astype(float), levels=[0.5], colors=INK, linewidths=0.9, linestyles="dashed")
            handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle="dashed", label="end of the box"))
        for shape, (name, (x, y, off)) in zip(_SHAPES * len(self.marks), self.marks.items(), strict=False):
            axes.plot(x, y, shape, color=INK, markeredgecolor="white", markersize=8, zorder=5, clip_on=False)
            away = f" ({off:.2g} off the plane)" if off > 1e-3 * max(1e-9, a[-1]) else ""
            handles.append(Line2D([], [], marker=shape, color="none", markerfacecolor=INK, markeredgecolor="white",
                                  markersize=8, label=f"{name}{away}"))  # fmt: skip
        axes.legend(handles=handles, handlelength=1.4, **place)
        axes.set_xlabel(f"{self.axes[0]} (L2)")
        axes.set_ylabel(f"{self.axes[1]} (L2)")
        axes.set_xlim(a[0] - half, a[-1] + half)
        axes.set_ylim(b[0] - half, b[-1] + half)


def decision_slice(
    target: Target | Callable[..., Any],
    x: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    radius: float | None = None,
    points: int = 200,
    marks: Mapping[str, Tensor] | None = None,
    axes: tuple[str, str] = ("first direction", "second direction"),
    clamp: bool = False,
    batch_size: int | str = "auto",
) -> Slice:
    """Return the target's labels and confidences on points x points of the plane x + a u + b v, |a|, |b| <= radius.

    u and v are made orthonormal (L2) first, u keeping its direction; see `slice_towards` and `slice_through` for the
    usual planes.

    Args:
        target: whom to ask; its scores are needed.
        x: one example in the middle, [1, ...].
        u, v: two directions that are not parallel, [1, ...].
        radius: half the side of the square, L2; by default one and a half times the length of u.
        points: points a side; 200 are 40,000 rows in full batches.
        marks: examples [1, ...] by name, shown at the nearest point of the plane; "the example" is x by default.
        axes: names of the two directions.
        clamp: ask about the points cut to the target's box; without it the slice is flat and may leave the box.
        batch_size: rows a call, or "auto".

    Raises:
        InputError: shapes do not fit, or u and v are zero or parallel.
    """
    x = check_rows(x)
    if len(x) != 1:
        raise InputError(f"A slice goes through one example [1, ...], not {len(x)}.")
    u, v = check_like(u, x, "u"), check_like(v, x, "v")
    frame = _orthonormal(u, v)  # [2, d]
    radius = 1.5 * float(lengths(u.flatten())) if radius is None else float(radius)
    if not radius > 0 or points < 2:
        raise InputError("radius must be above 0 and points at least 2.")
    asker = Asker(target, access=Access.SCORES, batch_size=batch_size)
    at = torch.linspace(-radius, radius, points, device=x.device, dtype=x.dtype)
    bounds = asker.target.bounds

    def make(rows: Tensor) -> Tensor:
        places = torch.stack([at[rows % points], at[rows // points]], 1)  # a, b
        return (x.flatten(1) + places @ frame).view(-1, *x.shape[1:])

    def answer(z: Tensor) -> Tensor:
        sure, label = asker.confidences(z.clamp(*bounds) if clamp else z).max(1)
        return torch.stack([label.to(z.dtype), sure.to(z.dtype), excess(z, bounds)], 1)

    label, sure, outside = asked(answer, points * points, make, x).view(points, points, 3).cpu().unbind(-1)
    centre = int(asker.labels(x)[0])
    shown = {"the example": x} if marks is None else marks
    return Slice(
        a=at.cpu(), b=at.cpu(), labels=label.long(), confidence=sure, outside=outside * (outside > 1e-6),
        marks={name: _place(check_like(z, x, name), x, frame) for name, z in shown.items()}, label=centre, clamp=clamp,
        axes=axes, names=class_names(asker.target, 1 + max(int(label.max()), centre)),
    )  # fmt: skip


def slice_towards(
    target: Target | Callable[..., Any],
    x: Tensor,
    x_adv: Tensor,
    *,
    radius: float | None = None,
    points: int = 200,
    clamp: bool = False,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> Slice:
    """Return the slice spanned by an adversarial direction (x_adv - x, across) and a random one (up), both [1, ...].

    The adversarial example lies on the axis across; a random direction of the same length is the control.
    Raises InputError when shapes do not fit or x_adv is x.
    """
    x = check_rows(x)
    u = check_like(x_adv, x, "x_adv") - x
    v = random_directions(x, 1, seed, "slice_towards")[:, 0]
    return decision_slice(
        target, x, u, v, radius=radius, points=points, clamp=clamp, batch_size=batch_size,
        marks={"the example": x, "adversarial": x_adv}, axes=("adversarial direction", "random direction"),
    )  # fmt: skip


def slice_through(
    target: Target | Callable[..., Any],
    examples: Mapping[str, Tensor],
    *,
    points: int = 200,
    clamp: bool = False,
    batch_size: int | str = "auto",
) -> Slice:
    """Return the slice through three examples [1, ...] by name: two adversarial ones and theirs, or any three.

    The square is centred on their mean and a third larger than they need. Raises InputError when there are not three
    or they lie on one line.
    """
    if len(examples) != 3:
        raise InputError(f"A plane goes through three examples, not {len(examples)}.")
    names = list(examples)
    first, second, third = (check_rows(examples[name], name) for name in names)
    u, v = check_like(second, first, names[1]) - first, check_like(third, first, names[2]) - first
    middle = first + (u + v) / 3
    away = torch.cat([z.to(first) - middle for z in (first, second, third)]).flatten(1)
    return decision_slice(
        target, middle, u, v, radius=4 / 3 * float(lengths(away).max()), points=points, clamp=clamp,
        batch_size=batch_size, marks=examples, axes=(f"{names[0]} to {names[1]}", f"towards {names[2]}"),
    )  # fmt: skip


def _orthonormal(u: Tensor, v: Tensor) -> Tensor:
    """Return [2, d]: u and what of v is across u, both of length 1; raises InputError when there is no plane."""
    dtype, u, v = u.dtype, u.flatten().double(), v.flatten().double()
    if not bool(u.any()) or not bool(v.any()):
        raise InputError("A direction of the slice is zero everywhere; give one that changes something.")
    first = u / u.norm()
    across = v / v.norm()
    across = across - (across @ first) * first
    if float(across.norm()) < 1e-6:
        raise InputError("The two directions of the slice are parallel; give two different ones.")
    second = across / across.norm()
    return torch.stack([first, second - (second @ first) * first]).to(dtype)


def _place(z: Tensor, x: Tensor, frame: Tensor) -> tuple[float, float, float]:
    d = (z - x).flatten().double()
    a, b = (frame.double() @ d).tolist()
    return a, b, float((d - frame.double().T @ d.new_tensor([a, b])).norm())


def _edges(labels: np.ndarray) -> np.ndarray:
    """Return 1 at points whose right or upper neighbour has another label, [p, p]."""
    out = np.zeros(labels.shape)
    out[:, :-1] += labels[:, 1:] != labels[:, :-1]
    out[:-1] += labels[1:] != labels[:-1]
    return out.clip(max=1)
