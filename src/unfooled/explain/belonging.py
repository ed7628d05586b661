"""A class and what belongs to it: for people and the target, for the target alone, for people alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unfooled.core.access import Access
from unfooled.core.ask import Asker
from unfooled.core.explanation import INK, SOFT, Explanation
from unfooled.core.target import Target, as_target
from unfooled.errors import InputError, nearest

from ._lines import check_rows, short
from .slices import Slice, slice_through

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Group:
    """Images [n, c, h, w] of one kind and what the target says of them.

    `people` says whether people call them the class; `label` int64 [n] is the target's answer, `sure` [n] its
    confidence in it, `confidence` [n] that in the class itself.
    """

    name: str
    people: bool
    images: Tensor
    label: Tensor
    sure: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Belonging(Explanation):
    """What a target takes for one class, beside what people do: groups of images and a plane through three of them.

    `label` is the class, `groups` what was given, the natural images first; `plane` the slice through a natural example
    and two that are in the class for the target alone (None where there are no two such). `most` images of a group are
    shown. `names` are those of all classes.
    """

    label: int
    groups: tuple[Group, ...]
    plane: Slice | None
    bounds: tuple[float, float]
    names: tuple[str, ...]
    most: int

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        high = 0.5 + 1.05 * len(self._shown()) + 0.3
        return 1.9 + 0.95 * self.most + (4.6 if self.plane else 0.0), max(high, 4.0)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a group: how many of its images the target calls the class, and how surely."""
        rows = []
        for group in self.groups:
            inside = group.label == self.label
            others = group.label[~inside]
            rows.append(
                {
                    "group": group.name,
                    "class_for_people": group.people,
                    "n": len(group.images),
                    "called": int(inside.sum()),
                    "share": float(inside.double().mean()),
                    "confidence_inside": float(group.sure[inside].median()) if bool(inside.any()) else None,
                    "confidence_outside": float(group.sure[~inside].median()) if len(others) else None,
                    "called_instead": self.names[int(others.mode().values)] if len(others) else None,
                }
            )
        return rows

    def sentence(self) -> str:
        """Return what share of each group the target calls the class; natural images of other classes are the base."""
        name, rows = self.names[self.label], self.rows()
        parts = [f"{row['share']:.1%} of {row['n']:,} {row['group']}" for row in rows]
        people = [part for part, row in zip(parts, rows, strict=True) if row["class_for_people"]]
        others = [part for part, row in zip(parts, rows, strict=True) if not row["class_for_people"]]
        said = f"Of what people call {name}, the target says so of {' and '.join(people)}"
        return said + (f"; of what people do not, of {', '.join(others)}." if others else ".")

    def draw(self, figure: "Figure") -> None:
        """Draw the surest images of every group with the target's answer below, and the plane at the right."""
        shown = self._shown()
        left: Any = figure
        if self.plane is not None:
            parts: Any = figure.subfigures(1, 2, width_ratios=[1.9 + 0.95 * self.most, 4.6])
            left, right = parts
            self.plane.paint(right.subplots(), {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2})
            right.axes[0].set_title("The plane through three of them")
        cells = left.subplots(len(shown), self.most + 1, width_ratios=[1.7] + [1] * self.most, squeeze=False)
        for line, (group, title, colour, rows) in zip(cells, shown, strict=True):
            for axes in line:
                axes.set_axis_off()
            count = int((group.label == self.label).sum())
            line[0].text(1, 0.62, group.name, ha="right", va="center", color=INK, fontsize=9, weight="bold")
            said = f"{title}\n{count if title != _ALONE else len(group.label) - count} of {len(group.label):,}"
            line[0].text(1, 0.5, said, ha="right", va="top", color=colour, fontsize=7.5, linespacing=1.35)
            for axes, i in zip(line[1:], rows.tolist(), strict=False):
                lo, hi = self.bounds
                pixels = ((group.images[i] - lo) / (hi - lo)).clamp(0, 1).permute(1, 2, 0).float().numpy()
                axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
                axes.set_title(
                    f"{short(self.names[int(group.label[i])], 11)} {_percent(float(group.sure[i]))}",
                    fontsize=7.5, loc="center", color=colour, pad=2, y=-0.2,
                )  # fmt: skip

    def _shown(self) -> list[tuple[Group, str, str, Tensor]]:
        """Return the rows of the figure: group, what it is, its colour, and its surest images."""
        out = []
        for title, colour, people, inside in (
            ("people and target say so", _BOTH, True, True),
            ("the target alone says so", _TARGET, False, True),
            (_ALONE, _PEOPLE, True, False),
        ):
            for group in self.groups:
                here = ((group.label == self.label) == inside).nonzero()[:, 0]
                if group.people == people and len(here):
                    best = group.sure[here].argsort(descending=True, stable=True)[: self.most]
                    out.append((group, title, colour, here[best]))
        return out


_ALONE = "people alone say so"
_BOTH, _TARGET, _PEOPLE = SOFT, "#c8571b", "#2b6cb0"


def belonging(
    target: Target | Callable[..., Any],
    name: str | int,
    x: Tensor,
    y: Tensor,
    *,
    outsiders: Mapping[str, Tensor],
    insiders: Mapping[str, Tensor] | None = None,
    most: int = 6,
    points: int = 200,
    batch_size: int | str = "auto",
) -> Belonging:
    """Return what belongs to a class for the target but not for people, and the reverse.

    The question is Soares' "squiggly set of birds": a network's set of birds leaves out obvious birds and takes in
    obvious non-birds. What people say is what the caller says: natural labels, `outsiders` and `insiders`.

    Args:
        target: whom to ask; its scores are needed.
        name: the class, by name or number.
        x, y: natural images float [n, c, h, w] with one or three channels, and their true labels int64 [n].
        outsiders: images by name that people would not call so: fooling images, noise, adversarial others.
        insiders: images by name that people would: adversarial examples of the class.
        most: images shown a group.
        points: points a side of the plane through the surest natural example and the surest outsiders of the first two
            groups that the target calls so.
        batch_size: rows a call, or "auto".

    Raises:
        InputError: there is no such class, no natural image of it, or the images do not fit.
    """
    target, x = as_target(target), check_rows(x)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"x must be images [n, c, h, w] with one or three channels, not {tuple(x.shape)}.")
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.is_floating_point():
        raise InputError(f"y must be integer labels of shape ({len(x)},).")
    if most < 1:
        raise InputError("most must be at least 1.")
    asker = Asker(target, access=Access.SCORES, batch_size=batch_size)
    answers = asker.confidences(x)
    count = answers.shape[1]
    label = _class_number(target, name, count)
    called = target.class_name(label)
    own = y.to(x.device) == label
    if not bool(own.any()):
        raise InputError(f"x holds no natural image of {called}; give some with their labels.")
    told = [(f"natural {called}", True, x[own], answers[own])]
    if bool((~own).any()):
        told.append((f"natural, not {called}", False, x[~own], answers[~own]))
    for people, more in ((False, outsiders), (True, insiders or {})):
        for word, images in more.items():
            if not isinstance(images, Tensor) or images.shape[1:] != x.shape[1:] or not len(images):
                raise InputError(f"{word!r} must be images of the shape {tuple(x.shape[1:])} of x.")
            images = check_rows(images.to(x.device, x.dtype), repr(word))
            told.append((word, people, images, asker.confidences(images)))
    groups = tuple(Group(word, people, images.cpu(), *_answer(given, label)) for word, people, images, given in told)
    return Belonging(
        label=label, groups=groups, plane=_plane(target, groups, label, list(outsiders), points, batch_size),
        bounds=target.bounds, names=tuple(target.class_name(j) for j in range(count)), most=most,
    )  # fmt: skip


def _answer(confidence: Tensor, label: int) -> tuple[Tensor, Tensor, Tensor]:
    sure, said = confidence.cpu().max(1)
    return said, sure, confidence[:, label].cpu()


def _plane(
    target: Target, groups: tuple[Group, ...], label: int, outsiders: list[str], points: int, batch_size: int | str
) -> Slice | None:
    """Return the slice through the surest natural example and the surest of two groups of outsiders, or None."""
    corners: dict[str, Tensor] = {}
    for group in groups:
        wanted = (not corners and group.people) or group.name in outsiders
        inside = (group.label == label).nonzero()[:, 0]
        if wanted and len(inside) and len(corners) < 3:
            corners[group.name] = group.images[inside[group.sure[inside].argmax()]][None]
    if len(corners) < 3:
        return None
    return slice_through(target, corners, points=points, batch_size=batch_size)


def _class_number(target: Target, name: str | int, count: int) -> int:
    names = [target.class_name(j) for j in range(count)]
    if isinstance(name, int):
        if not 0 <= name < count:
            raise InputError(f"There is no class {name}; the target has {count}, numbered from 0.")
        return name
    if name not in names:
        raise InputError(f"The target has no class {name!r}.{nearest(name, names)}")
    return names.index(name)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share < 0.995 else f"{min(share, 0.9999):.2%}" if share < 0.9999 else ">99.99%"
