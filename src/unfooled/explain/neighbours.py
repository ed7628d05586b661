"""Which training examples lie nearest to an input, as the target sees them and as pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unfooled.core.ask import Asker
from unfooled.core.explanation import Explanation
from unfooled.core.layers import activations, penultimate
from unfooled.core.pictures import show
from unfooled.core.target import Target
from unfooled.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 4


@dataclass(frozen=True)
class Neighbours(Explanation):
    """The k nearest of the data to x [n, ...]: places `near` int64 [n, k], `distances` [n, k], `labels` int64 [n, k].

    Distances are L2 in the features that `layer` names. The control is the same in pixels: `near_pixels`,
    `distances_pixels`, `labels_pixels`. `answers` int64 [n] is what the target says; `images` [n, k, ...] and
    `images_pixels` are the neighbours.
    """

    x: Tensor = field(repr=False)
    layer: str
    answers: Tensor
    near: Tensor = field(repr=False)
    distances: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    images: Tensor = field(repr=False)
    near_pixels: Tensor = field(repr=False)
    distances_pixels: Tensor = field(repr=False)
    labels_pixels: Tensor = field(repr=False)
    images_pixels: Tensor = field(repr=False)
    names: Sequence[str] | None
    bounds: tuple[float, float]

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        """Width and height of the figure in inches."""
        return 7.0, 0.3 + 1.15 * 2 * min(len(self.x), _SHOWN)

    def name(self, label: int) -> str:
        """Return the name of a class."""
        return self.names[label] if self.names else str(label)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an input: the target's answer, and the labels and distances of its neighbours."""
        return [
            {
                "answer": self.name(int(self.answers[i])),
                "in features": [self.name(c) for c in self.labels[i].tolist()],
                "in pixels": [self.name(c) for c in self.labels_pixels[i].tolist()],
                "distances in features": self.distances[i].tolist(),
                "distances in pixels": self.distances_pixels[i].tolist(),
            }
            for i in range(len(self.x))
        ]

    @property
    def agreeing(self) -> tuple[float, float]:
        """The share of neighbours whose label is the target's answer, in features and in pixels."""
        answers = self.answers.view(-1, 1)
        return float((self.labels == answers).float().mean()), float((self.labels_pixels == answers).float().mean())

    def sentence(self) -> str:
        """Return how often neighbours have the label that the target answers."""
        features, pixels = self.agreeing
        k, n = self.labels.shape[1], len(self.x)
        if n <= _SHOWN:
            own = self.answers.view(-1, 1)
            pairs = zip(*((labels == own).sum(1).tolist() for labels in (self.labels, self.labels_pixels)), strict=True)
            each = [
                f"{self.name(int(answer))}: {near} of {k} in {self.layer}, {beside} of {k} in pixels"
                for answer, (near, beside) in zip(self.answers, pairs, strict=True)
            ]
            return f"Nearest examples that have the label which the target answers; {'; '.join(each)}."
        return (
            f"Of the {k} nearest examples in {self.layer}, {features:.0%} have the label that the target answers "
            f"({n} inputs); in pixels {pixels:.0%}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw each input with its neighbours in features and, in the line below, in pixels."""
        shown, k = min(len(self.x), _SHOWN), min(self.labels.shape[1], 7)
        places = figure.subplots(2 * shown, k + 1, squeeze=False)
        for i in range(shown):
            show(places[2 * i, 0], self.x[i], f"answer: {self.name(int(self.answers[i]))}", bounds=self.bounds)
            places[2 * i + 1, 0].set_axis_off()
            kinds = (("features", self.images, self.labels), ("pixels", self.images_pixels, self.labels_pixels))
            for line, (space, images, labels) in enumerate(kinds):
                for j in range(k):
                    title = f"{f'in {space}: ' if j == 0 else ''}{self.name(int(labels[i, j]))}"
                    show(places[2 * i + line, j + 1], images[i, j], title, bounds=self.bounds)


def nearest_examples(
    target: Target | Callable[..., object],
    x: Tensor,
    data_x: Tensor,
    data_y: Tensor,
    *,
    layer: str | None = None,
    side: Literal["output", "input"] = "output",
    k: int = 5,
    batch_size: int | str = "auto",
) -> Neighbours:
    """Return the k examples of data_x [m, ...], with labels data_y int64 [m], that lie nearest to each x [n, ...].

    Nearest in L2 between what the module `layer` gives (or is given, by `side`), flattened. None: what the target's
    head is given, the last features before the scores; where no module is the head, as in networks that are written as
    functions, the scores themselves.

    Raises:
        InputError: an unknown layer, more neighbours than data, or inputs, data and labels that do not fit together.
    """
    asker = Asker(target, batch_size=batch_size)
    if x.shape[1:] != data_x.shape[1:] or data_y.shape != (len(data_x),) or not len(x):
        raise InputError(
            f"Inputs {tuple(x.shape)}, data {tuple(data_x.shape)} and labels {tuple(data_y.shape)} do not fit together."
        )
    if not 1 <= k <= len(data_x):
        raise InputError(f"There are {len(data_x)} examples: ask for 1 to {len(data_x)} neighbours, not {k}.")
    x = x.detach().to(asker.target.device, asker.target.work_dtype)
    data_x = data_x.detach().to(x)
    data_y = data_y.to(x.device)
    head = penultimate(asker, x) if layer is None else None

    def features(rows: Tensor) -> Tensor:
        if layer is not None:
            return activations(asker, rows, layer, side)
        return asker.scores(rows) if head is None else activations(asker, rows, head, "input")

    where = f"layer {layer}" if layer else f"the features that layer {head} reads" if head else "the scores"
    found, pixels = _nearest(features(x), features(data_x), k), _nearest(x, data_x, k)
    return Neighbours(
        x=x, layer=where, answers=asker.labels(x), names=asker.target.classes, bounds=asker.target.bounds,
        near=found[1], distances=found[0], labels=data_y[found[1]], images=data_x[found[1]],
        near_pixels=pixels[1], distances_pixels=pixels[0], labels_pixels=data_y[pixels[1]],
        images_pixels=data_x[pixels[1]],
    )  # fmt: skip


def _nearest(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the distances [n, k] from a [n, ...] to its k nearest rows of b [m, ...], and their places."""
    a, b = a.flatten(1), b.flatten(1)
    room = max(1, 2**24 // len(b))
    found = [
        torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
        for part in a.split(room)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
