"""Re-create a zoo target from nothing: `unfooled train NAME` trains it, measures it and writes weights and model card.

A recipe, a seed, the data and the number of threads decide every bit of the weights on one kind of CPU.
"""

import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from unfooled import __version__
from unfooled.attacks import parse
from unfooled.core.augment import augment
from unfooled.core.data import Data, load_data
from unfooled.core.fit import Epoch, Objective, Schedule, fit
from unfooled.core.target import Target
from unfooled.core.threat import Ball, linf
from unfooled.errors import InputError, nearest
from unfooled.harden import way
from unfooled.harden.objectives import adversarial, standard
from unfooled.stats import wilson
from unfooled.targets.zoo import ZOO, ZooEntry, digest, untrained

Measure: TypeAlias = Callable[[Target, Data, Ball], Mapping[str, Any]]
"""`(target, test data, threat) -> {"accuracy", "n", "interval", "threat", "suite", "seed"}`; a suite is no matter of
this room, so whoever calls `train` brings one."""


@dataclass(frozen=True)
class Training:
    """How a target is trained: settings of `core.fit.Recipe`, an objective and an augmentation.

    `way` is a name of `harden.WAYS` (`attack` is then not asked), `attack` a recipe whose last iterates are trained on;
    with neither it is trained plainly. `eps` is the Linf radius, which grows from 0 over the first `ramp` epochs.
    `augment` is text such as "flips+crops(2)". The first `limit` training images are trained on, by default all.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    weight_decay: float = 0.0
    schedule: Schedule = "onecycle"
    ema: float = 0.0
    attack: str = ""
    eps: float = 0.0
    ramp: float = 0.0
    way: str = ""
    augment: str = ""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    smoothing: float = 0.0
    limit: int | None = None

    def objective(self, n: int, seed: int) -> Objective:
        """Return the loss for `n` training images."""
        ramp = round(self.ramp * math.ceil(n / self.batch_size))
        if self.way:
            return way(self.way).objective(linf(self.eps), seed=seed, ramp=ramp)
        return adversarial(parse(self.attack), linf(self.eps), seed=seed, ramp=ramp) if self.attack else standard()

    def fit(
        self, module: nn.Module, data: Data, *, seed: int, on_epoch: Callable[[Epoch], None] | None = None
    ) -> list[Epoch]:
        """Train `module` in place; return the history."""
        return fit(
            module,
            data.x,
            data.y,
            self.objective(len(data), seed),
            augment=augment(self.augment) if self.augment else None,
            on_epoch=on_epoch,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=seed,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            ema=self.ema,
            optimizer=self.optimizer,
            precision=self.precision,
            channels_last=self.channels_last,
            smoothing=self.smoothing,
        )


_CIFAR = Training(
    epochs=24, lr=0.2, batch_size=250, weight_decay=5e-4, ema=0.998, augment="flips+crops(2)", optimizer="sgd",
    precision="bf16", channels_last=True, smoothing=0.1, limit=45_000,
)  # fmt: skip

TRAINING: dict[str, Training] = {
    "digits-cnn": Training(epochs=30, lr=5e-3, batch_size=64, ema=0.99),
    "digits-cnn-robust": Training(
        epochs=60, lr=5e-3, batch_size=64, ema=0.99, attack="pgd(steps=10, step_size=0.25)", eps=0.15, ramp=10
    ),
    "mnist-cnn": Training(epochs=8, lr=3e-3, ema=0.999),
    "mnist-cnn-robust": Training(
        epochs=48,
        lr=2e-3,
        ema=0.999,
        attack="pgd(steps=6, step_size=0.35)",
        eps=0.38,
        ramp=1.5,
        augment="shifts(1)",
        precision="bf16",
        channels_last=True,
    ),
    "cifar-cnn": _CIFAR,
    "cifar-cnn-robust": replace(_CIFAR, attack="pgd(steps=1, step_size=1.25)", eps=3 / 255),
}


def train(
    name: str,
    *,
    out: str | Path,
    data_dir: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    recipe: Training | None = None,
    measure: Measure | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> dict[str, Any]:
    """Train the zoo target `name` and write NAME.safetensors, NAME.json and NAME.md to the folder `out`.

    Args:
        name: a name of the zoo.
        out: the folder; made when absent. Nothing in it is overwritten.
        data_dir: where the data set lies, as for `load_data`.
        seed: decides initial weights, order, augmentation and the attack's luck.
        threads: how many threads torch uses; the bits of the result depend on it.
        recipe: another recipe than the shipped one (`TRAINING[name]`).
        measure: how to measure robust accuracy; without it the card says that it was not measured.
        on_epoch: called after every epoch.

    Returns:
        The model card.

    Raises:
        InputError: an unknown name, no data, or files of that name in `out`.
    """
    if name not in ZOO:
        raise InputError(f"There is no recipe for {name!r}: use {', '.join(ZOO)}.{nearest(name, ZOO)}")
    entry, folder, recipe = ZOO[name], Path(out), recipe or TRAINING[name]
    taken = [p.name for p in _files(folder, name) if p.exists()]
    if taken:
        raise InputError(f"{str(folder)!r} has {', '.join(taken)} already; give another folder.")
    data = load_data(entry.data, split="train", data_dir=data_dir, limit=recipe.limit)
    test = load_data(entry.data, split="test", data_dir=data_dir)
    with _threads(threads):
        module = untrained(name, seed)
        begun = time.process_time()
        history = recipe.fit(module, data, seed=seed, on_epoch=on_epoch)
        spent = time.process_time() - begun
        module.eval()
        folder.mkdir(parents=True, exist_ok=True)
        file = _files(folder, name)[0]
        _save(module, file)
        card = {
            "name": name,
            "what": entry.what,
            "command": _command(entry, seed, threads),
            "made": datetime.now(UTC).date().isoformat(),
            "architecture": re.sub(r"\s*\n\s*", " ", repr(module)),
            "parameters": sum(p.numel() for p in module.parameters()),
            "paper": entry.paper,
            "data": {
                "name": entry.data,
                "train": {"n": len(data), "sha256": data.fingerprint()},
                "test": {"n": len(test), "sha256": test.fingerprint()},
            },
            "training": {**asdict(recipe), "seed": seed, "threads": threads, "final_loss": history[-1].loss},
            "training_seconds": round(spent),
            "weights": {"file": file.name, "bytes": file.stat().st_size, "sha256": digest(file)},
            "clean": _clean(module, test),
            "robust": None,
            "versions": _versions(),
        }
        _write(folder, card)
        return card if measure is None else measured(name, folder, measure, data_dir=data_dir)


def measured(name: str, folder: str | Path, measure: Measure, *, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Measure the weights in `folder` on the test split, write what was found into their card and return it.

    Raises InputError when there is no card or the weights are not the card's.
    """
    from unfooled.targets._weights import fit_weights, load_weights

    weights, path, _ = _files(Path(folder), name)
    if not path.is_file():
        raise InputError(f"There is no model card at {str(path)!r}; make one with unfooled train {name}.")
    card = dict(json.loads(path.read_text(encoding="utf-8")))
    if digest(weights) != card["weights"]["sha256"]:
        raise InputError(f"{weights.name} is not the file that its card describes; train it again.")
    module = untrained(name, 0)
    fit_weights(module, load_weights(weights), weights.name)
    test = load_data(ZOO[name].data, split="test", data_dir=data_dir)
    target = Target(module.eval(), name=name, classes=test.classes)
    card["clean"] = _clean(module, test)
    card["robust"] = dict(measure(target, test, linf(ZOO[name].eps)))
    _write(Path(folder), card)
    return card


def markdown(card: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    clean, robust, data, training = card["clean"], card["robust"], card["data"], card["training"]
    weights = card["weights"]
    lines = [
        f"# {card['name']}",
        "",
        f"{card['what'][0].upper()}{card['what'][1:]}, for `{data['name']}`; {card['parameters']:,} parameters.",
        "",
        "| measured on the test split | value | 95% interval | n | how |",
        "|---|---|---|---|---|",
        f"| clean accuracy | {clean['accuracy']:.2%} | {_range(clean)} | {clean['n']:,} | |",
    ]
    if robust:
        how = f"`{robust['threat']}`, suite `{robust['suite']}`, seed {robust['seed']}"
        lines.append(
            f"| robust accuracy, at most | {robust['accuracy']:.2%} | {_range(robust)} | {robust['n']:,} | {how} |"
        )
    else:
        lines.append("| robust accuracy | not measured | | | |")
    settings = ", ".join(f"{k}={v}" for k, v in training.items() if k != "final_loss")
    lines += [
        "",
        "The intervals cover the choice of images; an attack gives an upper bound.",
        "",
        f"- Made by `{card['command']}` on {card['made']} in {card['training_seconds']:,} CPU seconds",
        f"- Training: {settings}",
        f"- Data: {data['train']['n']:,} training images, SHA-256 of pixels and labels `{data['train']['sha256']}`",
        f"- Weights: `{weights['file']}`, {weights['bytes']:,} bytes, SHA-256 `{weights['sha256']}`",
        f"- Architecture: `{card['architecture']}`",
        f"- After: {card['paper']}",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in card['versions'].items())}",
        "",
        "Made to be attacked in tests, examples and benchmarks; not for use in earnest.",
    ]
    return "\n".join(lines) + "\n"


def _range(part: Mapping[str, Any]) -> str:
    low, high = part["interval"]
    return f"{low:.2%} to {high:.2%}"


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.json", folder / f"{name}.md"


def _command(entry: ZooEntry, seed: int, threads: int) -> str:
    where = "" if entry.data == "digits" else " --data-dir DIR"
    return f"unfooled train {entry.name}{where} --out DIR --seed {seed} --threads {threads}"


def _save(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))


def _write(folder: Path, card: Mapping[str, Any]) -> None:
    _, as_json, as_text = _files(folder, card["name"])
    as_json.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    as_text.write_text(markdown(card), encoding="utf-8")


@torch.no_grad()
def _clean(module: nn.Module, test: Data) -> dict[str, Any]:
    right = sum(
        int((module(x).argmax(1) == y).sum()) for x, y in zip(test.x.split(500), test.y.split(500), strict=True)
    )
    return {"accuracy": right / len(test), "n": len(test), "interval": list(wilson(right, len(test)))}


def _versions() -> dict[str, str]:
    return {
        "unfooled": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    if threads < 1:
        raise InputError(f"threads must be 1 or more, not {threads}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
