"""`unfooled train`: make a target of the zoo again, with the command that its model card names."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unfooled.cli import _words

if TYPE_CHECKING:
    from unfooled.core.data import Data
    from unfooled.core.fit import Epoch
    from unfooled.core.target import Target
    from unfooled.core.threat import Ball


def train(
    name: str,
    /,
    *,
    out: Path,
    data_dir: Path | None = None,
    seed: int = 0,
    threads: int = 1,
    suite: Literal["quick", "standard", "none"] = "standard",
) -> None:
    """Train a target of the zoo again, measure it, and write its weights and model card.

    Parameters
    ----------
    name
        A name from `unfooled list targets`.
    out
        Folder for NAME.safetensors, NAME.json and NAME.md; nothing in it is overwritten.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    seed
        Decides the initial weights, the order of the images and the attack's luck.
    threads
        How many threads torch uses; the bits of the weights depend on it.
    suite
        The attacks that measure robust accuracy for the card; none leaves it unmeasured.
    """
    _words.load_torch()
    from unfooled import targets
    from unfooled.cli._progress import Live
    from unfooled.targets.train import TRAINING

    epochs = TRAINING[name].epochs if name in TRAINING else 0
    with Live() as live:

        def tell(epoch: "Epoch") -> None:
            live.note(f"epoch {epoch.epoch} of {epochs}: loss {epoch.loss:.4f}")

        def measure(target: "Target", data: "Data", ball: "Ball") -> Mapping[str, Any]:
            from unfooled.evaluate.measure import evaluate, whole

            found = whole(evaluate(target, data, threat=ball, suite=suite, progress=live))
            return {
                "accuracy": found.robust_accuracy,
                "n": found.n,
                "interval": list(found.robust_interval),
                "threat": found.threat,
                "suite": found.suite,
                "seed": found.seed,
                "attacks": [row.name for row in found.attacks if not row.skipped],
            }

        live.say(f"training {name}")
        card = targets.train(
            name,
            out=out,
            data_dir=data_dir,
            seed=seed,
            threads=threads,
            measure=None if suite == "none" else measure,
            on_epoch=tell,
        )
    robust = card["robust"]
    said = (
        f"at most {robust['accuracy']:.1%} within {robust['threat']} (suite {robust['suite']})"
        if robust
        else "not measured"
    )
    sys.stdout.write(f"{name}: clean accuracy {card['clean']['accuracy']:.1%}, robust accuracy {said}\n")
    sys.stdout.write(f"weights and model card: {out / name}.safetensors, .json, .md\n")
