"""Why one example fools a target: every measurement of this room on the same pair of inputs, joined."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unfooled.core.ask import Asker
from unfooled.core.explanation import Explanation
from unfooled.core.target import Target, as_target
from unfooled.errors import InputError, UnfooledError

from .attribution import change_attribution
from .frequency import spectrum
from .geometry import distances
from .linearity import logits_along
from .manifold import off_manifold, pca
from .neighbours import nearest_examples
from .slices import slice_through, slice_towards
from .transfer import transfer
from .visualise import visualise

SOME = 2000
"""Natural examples that the manifold is made of and the nearest one is looked for among."""

FULL = 1024
"""Values of an input up to which slices and lines are drawn in full detail; larger ones get fewer points."""

FEW = 256
"""Of them, those whose activations are set beside the images that were made."""


@dataclass(frozen=True)
class Part:
    """One question about the example and what was measured to answer it."""

    name: str
    question: str
    found: Explanation


@dataclass(frozen=True)
class Example:
    """One example explained: its parts in the order of a page, and what could not be measured, by name with the reason.

    `label` and `label_adv` are the target's answers to x and x_adv [...]; `confidence` and `confidence_adv` how sure it
    is of each; `forward` rows were sent through the target and `seconds` passed.
    """

    x: Tensor
    x_adv: Tensor
    label: int
    label_adv: int
    confidence: float
    confidence_adv: float
    parts: tuple[Part, ...]
    omitted: dict[str, str]
    forward: int
    seconds: float

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of every part, by its name."""
        return {part.name: part.found.rows() for part in self.parts}

    def sentences(self) -> dict[str, str]:
        """Return what every part found, by its name."""
        return {part.name: part.found.sentence() for part in self.parts}


def example(
    target: Target | Callable[..., Any],
    x: Tensor,
    x_adv: Tensor,
    *,
    relatives: Mapping[str, Target] | None = None,
    examples: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Example:
    """Return why x_adv fools the target where x does not, measured in every way that target and data allow.

    Args:
        target: a `Target`, module or callable.
        x, x_adv: one input each, [...], within the target's bounds; the target answers differently to them.
        relatives: other targets by name, for transfer; None leaves that part out.
        examples: natural inputs [n, ...] and their labels int64 [n], for manifold and nearest examples.
        seed: of every random control.

    What cannot be measured (no gradient, no module, no relatives) is left out, with the reason. Raises InputError when
    shapes differ or the target says the same of both.
    """
    model = as_target(target)
    if x.shape != x_adv.shape:
        raise InputError(f"x and x_adv must have one shape, not {tuple(x.shape)} and {tuple(x_adv.shape)}.")
    began, sent = time.monotonic(), model.sent[0]
    sure = Asker(model).confidences(torch.stack([x, x_adv]))
    label, label_adv = sure.argmax(1).tolist()
    if label == label_adv:
        raise InputError(f"The target says class {label} for both inputs: there is nothing to explain.")
    parts, omitted = [], {}
    for name, question, measure in _questions(model, x, x_adv, label, label_adv, relatives, examples, seed):
        try:
            parts.append(Part(name, question, measure()))
        except UnfooledError as reason:
            omitted[name] = str(reason)
    return Example(
        x, x_adv, label, label_adv, float(sure[0, label]), float(sure[1, label_adv]), tuple(parts), omitted,
        model.sent[0] - sent, time.monotonic() - began,
    )  # fmt: skip


def _questions(
    target: Target,
    x: Tensor,
    x_adv: Tensor,
    label: int,
    label_adv: int,
    relatives: Mapping[str, Target] | None,
    examples: tuple[Tensor, Tensor] | None,
    seed: int,
) -> list[tuple[str, str, Callable[[], Explanation]]]:
    """Return the parts of the page in their order: name, question, measurement."""
    one, two = x[None], x_adv[None]
    detail = min(1.0, (FULL / max(1, x.numel())) ** 0.5)
    points, lines = max(40, round(200 * detail)), max(5, round(20 * detail))
    own, new = torch.tensor([label]), torch.tensor([label_adv])

    def carried() -> Explanation:
        others = {target.name: target} | {
            f"{n} (2)" if n == target.name else n: t for n, t in (relatives or {}).items()
        }
        if len(others) < 2:
            raise InputError("There is no other target to show the change to.")
        return transfer(one, two, own, others, seed=seed)

    def natural() -> tuple[Tensor, Tensor]:
        if examples is None:
            raise InputError("There are no natural examples to compare with.")
        some = torch.randperm(len(examples[0]), generator=torch.Generator().manual_seed(seed))[:SOME]
        return examples[0][some].to(x), examples[1][some]

    def off() -> Explanation:
        images, labels = natural()
        return off_manifold(one, two, pca(images), natural=(images, labels), seed=seed)

    def towards() -> Explanation:
        images, labels = natural()
        there = images[labels == label_adv]
        if not len(there):
            raise InputError(f"The natural examples hold none of class {label_adv}.")
        nearest = there[(there - x).flatten(1).norm(dim=1).argmin()]
        return slice_through(target, {"original": one, "adversarial": two, "real": nearest[None]}, points=points)

    return [
        ("along", "What happens along the change, and along random ones?",
         lambda: logits_along(target, one, two - one, reach=2.0, control=lines, seed=seed)),
        ("region", "Which region of the input space is it in?",
         lambda: slice_towards(target, one, two, points=points, seed=seed)),
        ("between", "Where do real examples of that class lie?", towards),
        ("distance", "How far is the boundary along random directions?",
         lambda: distances(target, one, two, directions=5 * lines, seed=seed)),
        ("manifold", "Does the change move along the data, or off it?", off),
        ("frequency", "Is the change coarse or fine?", lambda: spectrum(one, two, seed=seed)),
        ("transfer", "Does it fool other models?", carried),
        ("values", "Which values of the change move the answer?",
         lambda: change_attribution(target, one, two, own, to=new, seed=seed)),
        ("neighbours", "Which natural examples does the target now take it for?",
         lambda: nearest_examples(target, torch.stack([x, x_adv]), *natural())),
        ("sought", "What does the target look for in both classes?",
         lambda: visualise(target, None, [label, label_adv], shape=tuple(x.shape), data=natural()[0][:FEW], seed=seed)),
    ]  # fmt: skip
