"""Why classifiers are fooled: each explanation of the literature as predictions that measurements can contradict.

Every function states its rules before it measures (`rules`, with defaults and reasons), measures each prediction with
an interval and a control, and leaves the verdict to arithmetic: `judge`. A hypothesis is tested as the main cause: all
its predictions must hold, and one that fails contradicts it. The intervals cover the choice of the images; networks
that are trained here are few, and another seed would give somewhat other numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._rows import Batch
from ..core.ask import Asker
from ..core.attack import Attack
from ..core.fit import fit
from ..core.run import Run, run
from ..core.target import Target, as_target
from ..core.threat import Threat, l2
from ..errors import InputError
from ..norms import L2
from ._lines import random_directions
from .features import relabelled
from .linearity import local_linearity, logits_along
from .manifold import CONTROL, FREE, OFF, ON, RANDOM, Manifold, dimples, off_manifold
from .verdicts import Hypothesis, Prediction, Rule

if TYPE_CHECKING:
    pass

Make = Callable[[int], nn.Module]
"""A seed -> an untrained module."""
Recipe = Attack[Any] | str
Labelled = tuple[Tensor, Tensor]
"""Images [n, ...] and their labels int64 [n]."""
Model = Target | Callable[..., Any]


# ---- rules, predictions, verdicts


# ---- measuring


Statistic = Callable[..., Tensor]
"""Columns [r, n] -> [r]: one value for each of r draws of the rows."""


def _measured(
    rule: Rule, statistic: Statistic, *columns: Tensor, control: float = math.nan, against: str = "", seed: int = 0
) -> Prediction:
    """Return a prediction with the percentile interval of 1,000 draws of the rows of `columns` [n] with replacement."""
    n = len(columns[0])
    if n < 2:
        return Prediction(rule, math.nan, math.nan, math.nan, n, control, against)
    picks = torch.randint(n, (1000, n), generator=torch.Generator().manual_seed(seed))
    held = [column.detach().cpu().double() for column in columns]
    value = float(statistic(*(column[None] for column in held)))
    drawn = statistic(*(column[picks] for column in held)).sort().values
    drawn = drawn[~drawn.isnan()]
    if not len(drawn):
        return Prediction(rule, value, math.nan, math.nan, n, control, against)
    low, high = (float(drawn[round(q * (len(drawn) - 1))]) for q in (0.025, 0.975))
    return Prediction(rule, value, low, high, n, control, against)


def _mean(column: Tensor) -> Tensor:
    return column.mean(1)


def _median(column: Tensor) -> Tensor:
    return column.median(1).values


def _excess(hits: Tensor, others: Tensor) -> Tensor:
    return hits.mean(1) - others.mean(1)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return over.mean(1) / under.mean(1)


def _medians(over: Tensor, under: Tensor) -> Tensor:
    return over.median(1).values / under.median(1).values


def _trained(module: nn.Module, data: Labelled, training: Mapping[str, Any] | None, seed: int) -> Target:
    """Return the module trained on the data as a target, in eval mode."""
    fit(module, *data, seed=seed, **(training or {}))
    return Target(module.eval())


def _smallest(target: Model, data: Labelled, nearest: Recipe, seed: int) -> Tensor:
    """Return the L2 size of the smallest change found, float64 [n]: 0 where wrong already, inf where none was found."""
    found: Run = run(nearest, target, *data, l2(), seed=seed)
    size = torch.where(found.success, found.distance.double(), torch.inf)
    size[torch.tensor([s == "misclassified" for s in found.status])] = 0
    return size


def _tensor(batch: Batch) -> Tensor:
    assert isinstance(batch, Tensor)
    return batch


def _accuracy(target: Model, data: Labelled) -> float:
    return float((Asker(target).labels(data[0]) == data[1]).double().mean())


def _check(data: Labelled, what: str) -> None:
    x, y = data
    if len(x) != len(y) or len(x) < 8:
        raise InputError(f"{what} needs at least 8 images and as many labels, not {len(x)} and {len(y)}.")


# ---- overfitting

OVERFITTING: dict[str, Rule] = {
    "transfer": Rule(
        "transfer to a net of the other half beyond noise", 0.1, 0.3,
        "a quirk of one fit is met by a stranger no oftener than noise is; what a third of strangers share is no quirk",
    ),
    "same": Rule(
        "same wrong class beyond chance", 0.1, 0.3,
        "quirks that do meet would name independent classes",
    ),
    "data": Rule(
        "median distance, most data over least", 1.5, 1.1,
        "what too few data caused must lessen with more of them; 1.1 is less than between two seeds",
    ),
    "capacity": Rule(
        "median distance, largest net over smallest", 0.8, 1.0,
        "if spare capacity makes the quirks, the larger net has more of them",
    ),
}  # fmt: skip


def by_overfitting(
    make: Make,
    train: Labelled,
    test: Labelled,
    attack: Recipe,
    threat: Threat,
    *,
    nearest: Recipe,
    sizes: Sequence[int] = (),
    capacities: Sequence[Make] = (),
    training: Mapping[str, Any] | None = None,
    name: str = "",
    rules: Mapping[str, Rule] = OVERFITTING,
    seed: int = 0,
) -> Hypothesis:
    """Test whether the quirks of one fit are why it is fooled.

    Two nets of different seeds learn disjoint halves of `train`; what fools the first on `test` is shown to the second,
    with the same change under random signs as the control. Then nets learn from the first `sizes` rows of a shuffle,
    in as many steps each, and nets of growing `capacities` learn from all: their smallest changes (`nearest`, L2) are
    compared on the images that both ends get right; both predictions are left out where nothing is given.

    Raises InputError for too few images, or sizes beyond the data.
    """
    _check(train, "train")
    _check(test, "test")
    if any(not 1 <= n <= len(train[0]) for n in sizes) or list(sizes) != sorted(sizes):
        raise InputError(f"sizes must grow and lie in 1 to {len(train[0])}, not {tuple(sizes)}.")
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
    x, y = train[0][order], train[1][order]
    half = len(order) // 2
    first = _trained(make(seed), (x[:half], y[:half]), training, seed)
    second = _trained(make(seed + 1), (x[half:], y[half:]), training, seed + 1)
    predictions = _carried_over(first, second, test, attack, threat, rules, seed)
    series: dict[str, list[dict[str, float]]] = {}
    by_data = [(float(n), make(seed), (x[:n], y[:n])) for n in sizes]
    by_size = [(float(sum(p.numel() for p in net.parameters())), net, train) for net in (m(seed) for m in capacities)]
    for kind, settled in (("data", by_data), ("capacity", by_size)):
        if len(settled) < 2:
            continue
        ends = []
        for size, module, data in settled:
            net = _trained(module, data, _as_many_steps(training or {}, len(data[0]), len(settled[-1][2][0])), seed)
            ends.append(_smallest(net, test, nearest, seed))
            accuracy = {"size": size, "train": _accuracy(net, data), "test": _accuracy(net, test)}
            series.setdefault(kind, []).append(accuracy | {"distance": _middle(ends[-1])})
        both = (ends[0] > 0) & (ends[-1] > 0)
        predictions.append(_measured(rules[kind], _medians, ends[-1][both], ends[0][both], seed=seed))
    return Hypothesis("overfitting", name or type(first.module).__name__, tuple(predictions), series)


def _as_many_steps(training: Mapping[str, Any], n: int, most: int) -> dict[str, Any]:
    """Return settings with which n rows are learned in as many steps as `most` rows: less data, not less training."""
    batch = training.get("batch_size", 128)
    factor = math.ceil(most / batch) / math.ceil(n / batch)
    return {**training, "epochs": max(1, round(training.get("epochs", 10) * factor))}


def _carried_over(
    first: Target,
    second: Target,
    test: Labelled,
    attack: Recipe,
    threat: Threat,
    rules: Mapping[str, Rule],
    seed: int,
) -> list[Prediction]:
    """Return what `second` makes of the images that fool `first` and that it gets right itself when clean."""
    x, y = test
    found = run(attack, first, x, y, threat, seed=seed)
    asker = Asker(second)
    rows = found.success & (asker.labels(x) == y)
    clean, truth, change = x[rows], y[rows], _tensor(found.x_adv)[rows] - x[rows]
    if not len(clean):
        raise InputError("The attack fooled no image that both nets get right: give a larger radius or more images.")
    signs = torch.randint(0, 2, change.shape, generator=torch.Generator().manual_seed(seed)).to(change) * 2 - 1
    moved = asker.labels(clean + change)
    by_noise = (asker.labels((clean + signs * change).clamp(*second.bounds)) != truth).double()
    shared = moved != truth
    predictions = [
        _measured(rules["transfer"], _excess, shared, by_noise, seed=seed, control=float(by_noise.mean()),
                  against="same change, random signs")
    ]  # fmt: skip
    if int(shared.sum()) > 1:  # else there are no two answers to compare
        theirs, ours = found.label[rows][shared], moved[shared]
        same, chance = (theirs == ours).double(), _chance(theirs, ours)
        predictions.append(
            _measured(
                rules["same"], lambda hits: hits.mean(1) - chance, same, control=chance, against="chance", seed=seed
            )
        )
    return predictions


def _middle(distances: Tensor) -> float:
    """Return the median over the images that are right without a change, NaN for none."""
    right = distances[distances > 0]
    return float(right.median()) if len(right) else math.nan


def _chance(a: Tensor, b: Tensor) -> float:
    """Return how often a and b [n] would agree if they were independent."""
    if not len(a):
        return math.nan
    k = int(torch.cat([a, b]).max()) + 1
    return float((torch.bincount(a, minlength=k).double() * torch.bincount(b, minlength=k)).sum() / len(a) / len(b))


# ---- linearity

LINEARITY: dict[str, Rule] = {
    "line": Rule(
        "R² of one line per logit along the change", 0.9, 0.6,
        "a linear target has 1; at 0.6 bends make two fifths of what a logit does",
    ),
    "one step": Rule(
        "success of one gradient step over many", 0.8, 0.5,
        "on a linear target one step is as good as many",
    ),
    "distance": Rule(
        "agreement of the linear distance with the true one", 0.8, 0.5,
        "the tangent at x predicts the boundary of a linear target exactly; off by two it predicts little",
    ),
    "bend": Rule(
        "share of a step's linear effect that bends add, at a tenth of the image", 0.2, 0.5,
        "a linear target has 0; a half moves the boundary by about as much",
    ),
    "contrast": Rule(
        "median distance of a non-linear net over this one", 2.0, 1.0,
        "Goodfellow's claim is that non-linear families such as RBF resist",
    ),
}  # fmt: skip


def by_linearity(
    target: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    one: Recipe,
    many: Recipe,
    nearest: Recipe,
    contrast: Model | None = None,
    name: str = "",
    rules: Mapping[str, Rule] = LINEARITY,
    seed: int = 0,
) -> Hypothesis:
    """Test whether the target is fooled because it is linear along the way.

    `one` (FGSM) and `many` (PGD) attack within the threat, `nearest` looks for the smallest change (L2). The distance
    that the tangent at x predicts is min over classes of the gap over the length of its gradient (DeepFool's first
    step); agreement is the smaller over the larger of the two. Where the target is a module, the bends along the
    gradient (`local_linearity`, up to 64 images) are set against those in the parameters. `contrast` is a target of a
    non-linear family on the same data. Raises InputError for too few images, or where the target gets fewer than two
    right.
    """
    _check((x, y), "by_linearity")
    asker = Asker(target)
    right = asker.labels(x) == y
    if int(right.sum()) < 2:
        raise InputError("The target gets fewer than two of these images right: give images and labels of its classes.")
    x, y = x[right], y[right]
    once, often = (run(attack, target, x, y, threat, seed=seed) for attack in (one, many))
    changed = _tensor(once.best) - x
    moved = changed.flatten(1).abs().amax(1) > 0
    lines = logits_along(target, x[moved], changed[moved], control=8, seed=seed)
    line = lines.fit[..., 0].double().mean(1)
    known, flat = _smallest(target, (x, y), nearest, seed), _tangent_distance(asker, x, y)
    agreement = torch.minimum(known / flat, flat / known)
    fooled = (once.success.double(), often.success.double())
    predictions = [
        _measured(rules["line"], _mean, line, control=float(lines.random_fit[..., 0].mean()),
                  against="along random directions", seed=seed),
        _measured(rules["one step"], _ratio, *fooled, seed=seed),
        _measured(rules["distance"], _median, agreement, seed=seed),
    ]  # fmt: skip
    if isinstance(asker.target.module, nn.Module):
        some = slice(0, 64)
        bends = local_linearity(target, x[some], y[some], eps=(0.1,), seed=seed).remainder[:, 0]
        predictions.append(
            _measured(rules["bend"], _median, bends[0], control=float(bends[2].median()), seed=seed,
                      against="same step in the parameters")
        )  # fmt: skip
    if contrast is not None:
        other = _smallest(contrast, (x, y), nearest, seed)
        both = other > 0
        predictions.append(_measured(rules["contrast"], _medians, other[both], known[both], seed=seed))
    series = {"success": [{"one step": float(fooled[0].mean()), "many steps": float(fooled[1].mean())}]}
    return Hypothesis("linearity", name or as_target(target).name, tuple(predictions), series)


def _tangent_distance(asker: Asker, x: Tensor, y: Tensor) -> Tensor:
    """Return how far the linearisation at x [n, ...] puts the nearest other class, L2, float64 [n]."""
    classes = asker.scores(x[:1]).shape[1]
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for j in range(classes):

        def gap(scores: Tensor, rows: Tensor, j: int = j) -> Tensor:
            own = scores.gather(1, y.to(scores.device)[rows][:, None])[:, 0]
            return own - scores[:, j]

        _, value, grad = asker.gradient(x, gap)
        far = value.double() / L2.size(grad).double().clamp(min=1e-30)
        nearest = torch.where(y == j, nearest, torch.minimum(nearest, far))
    return nearest


# ---- high dimension

DIMENSION: dict[str, Rule] = {
    "relative": Rule(
        "exponent of d in smallest change / natural distance", -0.35, -0.15,
        "spheres and isotropic gradients predict -1/2, no effect of the dimension 0",
    ),
    "random": Rule(
        "exponent of d in random / adversarial distance", 0.35, 0.15,
        "a random direction meets a plane sqrt(d) times as far away as the nearest point",
    ),
}  # fmt: skip


def by_dimension(
    make: Callable[[int, tuple[int, ...]], nn.Module],
    train: Labelled,
    test: Labelled,
    *,
    nearest: Recipe,
    factors: Sequence[int] = (1, 2, 4),
    training: Mapping[str, Any] | None = None,
    name: str = "",
    rules: Mapping[str, Rule] = DIMENSION,
    seed: int = 0,
) -> Hypothesis:
    """Test whether the number of pixels is why the target is fooled.

    The same images [n, c, h, w] are average-pooled by each of `factors`; `make(seed, shape)` gives the net for that
    shape, which learns them. On the images that every net gets right: the smallest change (`nearest`, L2) over the
    distance to the nearest image of another class among up to 2,000 of `train`, and the distance along random
    lines over the smallest change; both as powers of the dimension d, fitted on medians. Raises InputError for
    images that cannot be pooled so, or fewer than two factors.
    """
    _check(train, "train")
    _check(test, "test")
    sides = tuple(test[0].shape[-2:]) if test[0].dim() == 4 else (0, 0)
    if len(set(factors)) < 2 or any(f < 1 or side % f or side < f for f in factors for side in sides):
        raise InputError(f"factors={tuple(factors)} must be two or more divisors of the images' sides {sides}.")
    sizes, relative, random = [], [], []
    series: dict[str, list[dict[str, float]]] = {"dimension": []}
    for factor in factors:
        learned, seen = ((F.avg_pool2d(data, factor), labels) for data, labels in (train, test))
        shape = tuple(seen[0].shape[1:])
        net = _trained(make(seed, shape), learned, training, seed)
        smallest = _smallest(net, seen, nearest, seed)
        natural = _to_another_class(seen, (learned[0][:2000], learned[1][:2000]))
        far = _random_distance(Asker(net), *seen, seed)
        sizes.append(math.prod(shape))
        relative.append(torch.where(smallest > 0, smallest / natural, torch.nan))
        random.append(torch.where(smallest > 0, far / smallest, torch.nan))
        right = smallest > 0
        series["dimension"].append({
            "d": float(sizes[-1]), "test": _accuracy(net, seen), "smallest": _middle(smallest),
            "natural": float(natural.median()), "random": float(far[right].median()),
        })  # fmt: skip
    kept = ~torch.stack([r.isnan() for r in relative + random]).any(0)  # a median bears a few infinite distances
    predictions = [
        _measured(rules[kind], lambda *c: _exponent(sizes, c), *(column[kept] for column in columns), seed=seed,
                  control=theory, against="theory")
        for kind, columns, theory in (("relative", relative, -0.5), ("random", random, 0.5))
    ]  # fmt: skip
    return Hypothesis("dimension", name or type(net.module).__name__, tuple(predictions), series)


def _exponent(sizes: Sequence[int], columns: Sequence[Tensor]) -> Tensor:
    """Return the least-squares slope of log median against log d: columns [r, n] of each size -> [r]."""
    at = torch.tensor(sizes, dtype=torch.float64).log()
    at = at - at.mean()
    return (torch.stack([_median(c).log() for c in columns], 1) * at).sum(1) / at.square().sum()


def _to_another_class(data: Labelled, others: Labelled) -> Tensor:
    """Return the L2 distance of each image [n, ...] to the nearest one of another class in `others`, float64 [n]."""
    far = torch.cdist(data[0].flatten(1).double(), others[0].flatten(1).double())
    return torch.where(data[1][:, None] == others[1][None], torch.inf, far).amin(1)


def _random_distance(asker: Asker, x: Tensor, y: Tensor, seed: int, directions: int = 4) -> Tensor:
    """Return the median L2 distance along random lines at which class y ends, float64 [n]; inf where it does not.

    Lines go both ways and the nearer end counts: one plane is met by every line. The box is not looked at. The distance
    doubles until another class answers (at most 16 times), then is bisected: an upper bound, for a region left and
    entered again between two doublings is missed.
    """
    ways = random_directions(x, directions, seed, "hypotheses").flatten(0, 1)
    start, labels = x.repeat_interleave(directions, 0), y.repeat_interleave(directions)
    low = torch.zeros(len(start), device=x.device)
    high = torch.full_like(low, 0.01 * float(x.flatten(1).norm(dim=1).median().clamp(min=1e-6)))

    def out(distance: Tensor) -> Tensor:
        steps = distance.view(-1, *[1] * (x.dim() - 1)) * ways
        return (asker.labels(start + steps) != labels) | (asker.labels(start - steps) != labels)

    for _ in range(16):
        beyond = out(high)
        low, high = torch.where(beyond, low, high), torch.where(beyond, high, high * 2)
    found = out(high)
    for _ in range(8):
        middle = (low + high) / 2
        beyond = out(middle)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(found, high, torch.inf).view(len(x), directions).double().median(1).values


# ---- non-robust features

FEATURES: dict[str, Rule] = {
    "shifted": Rule(
        "accuracy beyond chance, labels shifted", 0.3, 0.1,
        "the visible class speaks against every label: only features that the change flipped can teach the true one",
    ),
    "random": Rule(
        "accuracy beyond chance, random labels", 0.3, 0.1,
        "the visible class says nothing; robust features may leak (Goh 2019), so that this alone proves less",
    ),
}  # fmt: skip


def by_features(
    target: Model,
    make: Make,
    train: Labelled,
    test: Labelled,
    attack: Recipe,
    threat: Threat,
    *,
    training: Mapping[str, Any] | None = None,
    name: str = "",
    rules: Mapping[str, Rule] = FEATURES,
    seed: int = 0,
) -> Hypothesis:
    """Test whether small changes carry features that hold on natural images (Ilyas et al. 2019, section 3.2).

    `train` is changed within the threat by the targeted `attack` towards new labels and labelled so; nets of `make`
    learn it and are tested on natural images. The control learns the same labels on unchanged images. Values are
    (accuracy - chance) / (1 - chance). Raises InputError for too few images.
    """
    _check(train, "train")
    _check(test, "test")
    predictions = []
    classes = Asker(target).scores(test[0][:1]).shape[1]
    chance = 1 / classes
    for labels in ("shifted", "random"):
        made = relabelled(target, *train, attack, threat, labels=labels, seed=seed)
        learned = []
        for data in (made, made.unchanged()):
            net = _trained(make(seed), (data.x, data.y), training, seed)
            learned.append((Asker(net).labels(test[0]) == test[1]).double())
        predictions.append(
            _measured(rules[labels], lambda hits: (hits.mean(1) - chance) / (1 - chance), learned[0], seed=seed,
                      control=float((learned[1].mean() - chance) / (1 - chance)), against="unchanged images")
        )  # fmt: skip
    return Hypothesis("features", name or as_target(target).name, tuple(predictions), {})


# ---- patches without a whole

PATCHES: dict[str, Rule] = {
    "shuffled": Rule(
        "accuracy kept when {g} x {g} patches are shuffled", 0.7, 0.3,
        "a dictionary of patches does not know where they are and keeps all; a view of the whole keeps chance",
    ),
    "texture": Rule(
        "kept within {g} x {g} patches minus kept between them", 0.1, -0.1,
        "shuffling keeps what lies within patches, their means what lies between; patches alone need the former",
    ),
    "fooling": Rule(
        "confidence kept by shuffled fooling images", 0.5, 0.1,
        "what patches made must survive their shuffling",
    ),
}  # fmt: skip


def by_patches(
    target: Model,
    x: Tensor,
    y: Tensor,
    *,
    grids: Sequence[int] = (2, 4),
    bound: Model | None = None,
    fooling: Tensor | None = None,
    draws: int = 4,
    name: str = "",
    rules: Mapping[str, Rule] = PATCHES,
    seed: int = 0,
) -> Hypothesis:
    """Test whether patches decide, without a whole: images [n, c, h, w] whose grid of patches is shuffled.

    Kept is (accuracy - chance) / (clean accuracy - chance), over `draws` shuffles of each image. For the finest grid,
    texture is set against shape at the same scale: shuffled patches against an image of the patches' means. `bound` is
    a target that needs every pixel in its place (such as a linear one), the control. `fooling` [m, c, h, w] are fooling
    images: the confidence in their class after shuffling over that before. Raises InputError for sides that a grid does
    not divide, or a target no better than chance.
    """
    _check((x, y), "by_patches")
    if x.dim() != 4 or not grids or any(g < 2 or x.shape[-2] % g or x.shape[-1] % g for g in grids):
        raise InputError(
            f"grids={tuple(grids)} must be 2 or more and divide the sides of images, {tuple(x.shape[1:])}."
        )
    asker, other = Asker(target), None if bound is None else Asker(bound)
    chance = 1 / asker.scores(x[:1]).shape[1]
    clean = (asker.labels(x) == y).double()
    if float(clean.mean()) <= chance:
        raise InputError("The target is right no oftener than chance on these images: give images of its classes.")

    def kept(hits: Tensor, before: Tensor) -> Tensor:
        return (hits.mean(1) - chance) / (before.mean(1) - chance)

    def difference(within: Tensor, between: Tensor, before: Tensor) -> Tensor:
        return kept(within, before) - kept(between, before)

    predictions = []
    series: dict[str, list[dict[str, float]]] = {"shuffled": [{"grid": 1.0, "accuracy": float(clean.mean())}]}
    for g in grids:
        mixed = _shuffled(x, g, draws, seed)
        hits = _hits(asker, mixed, y)
        series["shuffled"].append({"grid": float(g), "accuracy": float(hits.mean())})
        control = math.nan
        if other is not None:
            control = float(kept(_hits(other, mixed, y)[None], (other.labels(x) == y).double()[None]))
        predictions.append(
            _measured(_with_grid(rules["shuffled"], g), kept, hits, clean, seed=seed, control=control,
                      against="" if other is None else "a target bound to places")
        )  # fmt: skip
    finest = max(grids)
    hits = _hits(asker, _shuffled(x, finest, draws, seed), y)
    between = _hits(asker, _patch_means(x, finest)[:, None], y)
    predictions.append(_measured(_with_grid(rules["texture"], finest), difference, hits, between, clean, seed=seed))
    if fooling is not None:
        sure, label = asker.confidences(fooling).max(1)
        mixed = _shuffled(fooling, finest, draws, seed)
        after = asker.confidences(mixed.flatten(0, 1)).view(len(fooling), draws, -1)
        left = after.gather(2, label.view(-1, 1, 1).expand(-1, draws, 1))[..., 0].mean(1)
        predictions.append(_measured(rules["fooling"], _ratio, left, sure, control=chance, against="chance", seed=seed))
    return Hypothesis("patches", name or asker.target.name, tuple(predictions), series)


def _with_grid(rule: Rule, grid: int) -> Rule:
    return replace(rule, what=rule.what.format(g=grid))


def _hits(asker: Asker, images: Tensor, y: Tensor) -> Tensor:
    """Return the share of the versions [n, r, ...] of each image that is still called y [n], float64 [n]."""
    labels = asker.labels(images.flatten(0, 1)).view(images.shape[:2])
    return (labels == y[:, None]).double().mean(1)


def _shuffled(x: Tensor, grid: int, draws: int, seed: int) -> Tensor:
    """Return each image [n, c, h, w] with its grid of patches in `draws` other orders, [n, draws, c, h, w]."""
    n, c, h, w = x.shape
    cells = grid * grid
    order = torch.rand(n, draws, cells, generator=torch.Generator().manual_seed(seed)).argsort(2)
    same = (order == torch.arange(cells)).all(2, keepdim=True)
    order = torch.where(same, order.flip(2), order).to(x.device)  # the order it has already is no shuffle
    split = (
        x.view(n, c, grid, h // grid, grid, w // grid).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    )  # [n, cells, c, ., .]
    rows = torch.arange(n, device=x.device)[:, None, None]
    mixed = split[rows, order].view(n, draws, grid, grid, c, h // grid, w // grid)
    return mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(n, draws, c, h, w)


def _patch_means(x: Tensor, grid: int) -> Tensor:
    """Return each image [n, c, h, w] as the means of its patches, drawn smoothly."""
    means = F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(means, size=x.shape[-2:], mode="bilinear", align_corners=False)


# ---- the dimpled manifold

DIMPLED: dict[str, Rule] = {
    "share": Rule(
        "share of the change along the manifold, in units of a random direction's", 1.0, 2.0,
        "a change that leaves the manifold has no more along it than chance; twice chance follows it",
    ),
    "along": Rule(
        "distance along the manifold over that in a random subspace", 1.0, 0.75,
        "if the boundary clings to the manifold it is far along it: no nearer than along as many random directions",
    ),
    "off": Rule(
        "distance off the manifold over the free one", 1.2, 1.5,
        "dimples are crossed by leaving the manifold, so that leaving it must suffice",
    ),
}  # fmt: skip


def by_dimples(
    target: Model,
    x: Tensor,
    y: Tensor,
    manifold: Manifold,
    *,
    nearest: Recipe,
    natural: Labelled | None = None,
    name: str = "",
    rules: Mapping[str, Rule] = DIMPLED,
    seed: int = 0,
) -> Hypothesis:
    """Test whether small changes leave the data manifold (Shamir et al. 2021, arXiv:2106.10151).

    `nearest` finds the smallest changes (L2) of x, whose share along the `manifold` is measured (`off_manifold`);
    distances along it, off it and in a random subspace are those of `dimples`. `natural` images add the shares of
    natural differences to the series. Raises InputError where nothing is fooled, or shapes do not fit.
    """
    _check((x, y), "by_dimples")
    found = run(nearest, target, x, y, l2(), seed=seed)
    if int(found.success.sum()) < 2:
        raise InputError(f"{nearest!r} fooled fewer than two images: give a stronger attack.")
    share = off_manifold(x[found.success], _tensor(found.x_adv)[found.success], manifold, natural=natural, seed=seed)
    ways = dimples(target, x, y, manifold, seed=seed)
    far = ways.distances
    both = far[FREE] > 0
    predictions = (
        _measured(rules["share"], lambda on: on.mean(1) / manifold.share, share.on, seed=seed,
                  control=float(share.controls[RANDOM].mean()) / manifold.share, against="random change"),
        _measured(rules["along"], _medians, far[ON][both], far[CONTROL][both], seed=seed),
        _measured(rules["off"], _medians, far[OFF][both], far[FREE][both], seed=seed,
                  control=ways.rows()[1]["linear_times_free"], against="a linear target of this gradient"),
    )  # fmt: skip
    series = {
        "shares": [{"on": row["on"], "expected": share.expected} for row in share.rows()],
        "distances": [{"median": float(d.median())} for d in far.values()],
    }
    return Hypothesis("dimpled manifold", name or as_target(target).name, predictions, series)
