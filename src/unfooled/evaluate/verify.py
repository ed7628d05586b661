"""Verify: ask the target again for every stored adversarial example of a run, and compare."""

import copy
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.access import Access
from ..core.goal import advantage
from ..core.oracle import Oracle
from ..core.record import read_json
from ..core.target import Target, as_target, untouched
from ..core.threat import Ball
from ..errors import InputError
from ..norms import NORMS

READING = ("kind", "batch", "draws", "reject", "output")
"""What the doctor sets on its copy of a target and a later run must set too."""

OPTIONS = ("weights", "mean", "std", "classes", "reject")
"""Options of `unfooled evaluate` that say what the target is."""


@dataclass(frozen=True)
class Verified:
    """How many stored examples were asked about again, and which verdicts changed: the index and what is wrong."""

    total: int
    changed: dict[int, str] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every stored verdict stands."""
        return not self.changed

    def __str__(self) -> str:
        what = "example" if self.total == 1 else "examples"
        if self.same:
            return f"Re-scored {self.total} stored {what}: all verdicts stand."
        first = ", ".join(f"{i} ({why})" for i, why in list(self.changed.items())[:5])
        more = ", ..." if len(self.changed) > 5 else ""
        return (
            f"Re-scored {self.total} stored {what}: {self.total - len(self.changed)} verdicts stand, "
            f"{len(self.changed)} changed: {first}{more}."
        )


def verify(
    run_dir: Path | str,
    target: Target | nn.Module | Callable[..., Any] | str | None = None,
    *,
    device: str = "auto",
) -> Verified:
    """Re-score the adversarial examples stored in a run directory, and look whether they lie in ball and box.

    `target` is that of the run, by default what its run.json names. Raises InputError when the directory holds no such
    run, or when the target is another one (by its fingerprint).
    """
    folder = Path(run_dir)
    about = read_json(folder / "run.json")
    settings = about.get("settings")
    if not isinstance(settings, dict) or "target_fingerprint" not in settings:
        raise InputError(f"{folder / 'run.json'} is no record of a finished run: it has no target_fingerprint.")
    model = named(about, device) if target is None else _given(target, device)
    for name, value in (settings.get("reading") or {}).items():
        if name in READING:
            setattr(model, name, value)
    if model.fingerprint() != settings["target_fingerprint"]:
        raise InputError(
            f"The target {model.name!r} is not the one of this run: its fingerprint is {model.fingerprint()[:12]}, "
            f"run.json has {str(settings['target_fingerprint'])[:12]}; give the right one: unfooled verify DIR TARGET."
        )
    try:
        ball = Ball(NORMS[settings["norm"]], float(settings["eps"]), tuple(settings["bounds"]))
        granted = Access[str(settings.get("access", "gradient")).upper()]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / 'run.json'} names no threat that is known here.") from None
    stored = _examples(folder)
    aimed = str(settings.get("goal", "")).startswith("Targeted")
    width = settings.get("batch_size")
    return _rescore(
        model, ball, granted, stored, aimed=aimed, width=width if isinstance(width, int) and width > 0 else 64
    )


def _rescore(
    model: Target, ball: Ball, granted: Access, stored: dict[str, Tensor], *, aimed: bool, width: int
) -> Verified:
    changed: dict[int, str] = {}
    total = len(stored["index"])
    door = Oracle(model, granted)
    with torch.inference_mode(False), untouched(model):
        for at in range(0, total, width):
            part = {name: value[at : at + width] for name, value in stored.items()}
            x, x_adv = (part[name].to(model.device, model.work_dtype) for name in ("x", "x_adv"))
            torch.manual_seed(0)
            answer = door.look(x_adv)
            label, y = part["label_adv"].to(model.device), part["label"].to(model.device)
            won = (advantage(answer, y, label if aimed else None) > 0).cpu()
            legal = ball.contains(x_adv, x).cpu()
            for i, ok, inside, now in zip(part["index"].tolist(), won.tolist(), legal.tolist(),
                                          answer.label.tolist(), strict=True):  # fmt: skip
                if not inside:
                    changed[i] = "outside the ball or the box"
                elif not ok:
                    changed[i] = f"now class {now}, no success"
    return Verified(total, changed)


def named(about: dict[str, Any], device: str) -> Target:
    """Return the target that a run's record names; raises InputError when it was given as an object."""
    from ..harden import wear
    from ..targets import resolve

    name, options, worn = words(about)
    if name is None:
        raise InputError(
            f"The run's target {str(about.get('target'))!r} was given in Python; give it again: "
            "unfooled verify DIR TARGET, or verify(run_dir, target)."
        )
    mean, std = ([float(v) for v in options[k].split(",")] if k in options else None for k in ("mean", "std"))
    model = resolve(
        name, weights=options.get("weights"), mean=mean, std=std, classes=options.get("classes"), device=device
    )
    if (reject := options.get("reject")) is not None:
        model.reject = "last" if reject == "last" else float(reject)
    return wear(model, *worn)


def words(about: dict[str, Any]) -> tuple[str | None, dict[str, str], list[str]]:
    """Return the target's word in the command of a run's record (None: there is none), its options, what it wears."""
    try:
        given = shlex.split(str(about.get("command") or ""))
    except ValueError:
        given = []
    if given[:2] != ["unfooled", "evaluate"] or len(given) < 3:
        return None, {}, []
    options = [(k[2:], v) for k, v in pairwise(given) if k.startswith("--")]
    return given[2], {k: v for k, v in options if k in OPTIONS}, [v for k, v in options if k == "wear"]


def _given(target: Any, device: str) -> Target:
    if isinstance(target, str):
        from ..targets import resolve

        target = resolve(target, device=device)
    return copy.copy(as_target(target))


def _examples(folder: Path) -> dict[str, Tensor]:
    """Return the stored examples; raises InputError when the file is missing, damaged or does not fit the summary."""
    path = folder / "adversarials.npz"
    if not path.exists():
        raise InputError(f"{folder} holds no adversarials.npz: the run was written without images, or is not finished.")
    names = ("index", "label", "label_adv", "x", "x_adv")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            stored = {name: torch.from_numpy(file[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); it is damaged.") from None
    count = len(stored["index"])
    if any(len(value) != count for value in stored.values()) or stored["x"].shape != stored["x_adv"].shape:
        raise InputError(f"{path} is damaged: its arrays do not fit together.")
    told = (read_json(folder / "summary.json").get("counts") or {}).get("broken")
    if told != count:
        raise InputError(f"{path} holds {count} examples, but summary.json counts {told} broken ones.")
    return stored
