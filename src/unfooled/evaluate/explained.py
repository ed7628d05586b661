"""Why one image fools a target: attacked (or given), then measured beside relatives and training examples."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfooled import targets
from unfooled.core.data import DATASETS, Data, load_data
from unfooled.core.target import Target, as_target
from unfooled.errors import InputError
from unfooled.evaluate.single import Single, attack_image, compare_images
from unfooled.explain.example import Example, example

FITTED = 2000  # examples that the simple relatives are fitted on: seconds, not minutes


def explain_image(
    image: int | str | Path | Tensor,
    target: Any,
    *,
    adversarial: str | Path | Tensor | None = None,
    data: Data | None = None,
    examples: Data | None = None,
    relatives: dict[str, Target] | None = None,
    seed: int = 0,
    **how: Any,
) -> tuple[Single, Example]:
    """Return the attack on one image and why it works.

    Args:
        image, target, data, seed: as for `attack_image`, which makes the adversarial image with the settings `how`.
        adversarial: the changed image instead: a picture file or a tensor [c, h, w].
        examples: natural images with labels, such as the training set: manifold, nearest examples and, where
            `relatives` are none, the simple classifiers that are fitted on them.
        relatives: other targets, by name, that the change is shown to.

    Raises:
        InputError: what `attack_image` or `compare_images` raise, or the attack found nothing to explain.
    """
    target = as_target(target)
    if adversarial is None:
        single = attack_image(image, target, data=data, seed=seed, **how)
    else:
        single = compare_images(image, adversarial, target, data=data, seed=seed, shape=how.get("shape"))
    if not single.success:
        raise InputError(f"There is nothing to explain: {str(single).rstrip('.')}.")
    found = example(
        target,
        single.x,
        single.x_adv,
        relatives=family(examples, seed) if relatives is None and examples is not None else relatives or {},
        examples=None if examples is None else (examples.x, examples.y),
        seed=seed,
    )
    return single, found


def siblings(target: Target) -> dict[str, Target]:
    """Return the zoo targets for the same kind of images as the zoo target given, {} for any other."""
    entry = targets.ZOO.get(target.name)
    if entry is None:
        return {}
    others = [e for e in targets.ZOO.values() if e.name != entry.name and e.data == entry.data]
    return {e.name: targets.resolve(e.name) for e in others}


def family(examples: Data, seed: int = 0) -> dict[str, Target]:
    """Return simple classifiers of other families, fitted on at most 2,000 of the examples [n, ...].

    A linear model, the nearest neighbour and a forest: a change that fools these as well is about the data, not about
    one network.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    some = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:FITTED]
    x, y = examples.x[some].flatten(1).double().numpy(), examples.y[some].numpy()
    if sorted(set(y.tolist())) != list(range(len(set(y.tolist())))) or len(set(y.tolist())) < 2:
        return {}  # they number their classes by what they saw
    kinds = {
        "linear": LogisticRegression(C=0.1, max_iter=200),
        "nearest neighbour": KNeighborsClassifier(1),
        "forest": RandomForestClassifier(100, random_state=seed % 2**32),
    }
    return {name: targets.sklearn(kind.fit(x, y), name=name) for name, kind in kinds.items()}


def training_examples(data: str | None, *, data_dir: str | Path | None = None, limit: int | None = None) -> Data | None:
    """Return the training images of a named data set, None where there is no such set at hand."""
    if data not in DATASETS:
        return None
    try:
        return load_data(data, split="train", data_dir=data_dir, limit=limit)
    except InputError:
        return None
