"""`unfooled harden`: from a classifier to a harder one, with the same evaluation before and after."""

import contextlib
import functools
import inspect
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unfooled.cli import _words
from unfooled.errors import InputError, StorageError, UnfooledError, safe_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from unfooled.harden import Hardened, Line

_Training = Parameter(group="Training")
_Target = Parameter(group="Target and data")

_ASIDE = ("out", "resume", "device", "workers", "engine", "data_dir")  # what decides nothing of the proof


def harden(
    target: str = _words.TARGET,
    data: str | None = None,
    /,
    *,
    threat: str | None = None,
    recipe: str = "pgd",
    budget: str | None = None,
    epochs: int | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    suite: str = "standard",
    limit: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    seed: int = 0,
    fresh: Annotated[_words.Flag, _Training] = False,
    choose: Annotated[Literal["adversarial", "clean", "last"], _Training] = "adversarial",
    patience: Annotated[int | None, _Training] = None,
    lr: Annotated[float | None, _Training] = None,
    schedule: Annotated[Literal["onecycle", "cosine", "constant"], _Training] = "onecycle",
    batch_size: Annotated[int | None, _Training] = None,
    ema: Annotated[float | None, _Training] = None,
    smoothing: Annotated[float | None, _Training] = None,
    augment: Annotated[str | None, _Training] = None,
    extra: Annotated[str | None, _Training] = None,
    mix: Annotated[float | None, _Training] = None,
    precision: Annotated[Literal["float32", "bf16"], _Training] = "float32",
    compile: Annotated[_words.Flag, _Training] = False,
    test: Annotated[str | None, _Target] = None,
    weights: Annotated[Path | None, _Target] = None,
    wear: Annotated[list[str] | None, _Target] = None,
    resize: Annotated[str | None, _Target] = None,
    mean: Annotated[str | None, _Target] = None,
    std: Annotated[str | None, _Target] = None,
    classes: Annotated[Path | None, _Target] = None,
    data_dir: Annotated[Path | None, _Target] = None,
) -> int:
    """Harden a classifier within a budget and prove it: the same evaluation before and after, on held-out examples.

    Training is judged by an attack after every epoch, the best epoch is kept, and what goes wrong is said. The folder
    gets the weights, a report of the hardening, both evaluations, and the last checkpoint.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module, or a timm name.
    data
        What it is trained on: a name from `unfooled list data`, an .npz with `images` and `labels`, or a folder of
        class folders of images [default: the target's own data set].
    threat
        What it is to stand against: linf(8/255), l2(0.5) [default: linf at the eps of the target's model card].
    recipe
        How it is trained: pgd is thorough, n-fgsm four times faster; `unfooled list recipes` has them all.
    budget
        Time for training, such as 90s, 5m or 1h30m: as many epochs as fit, by a trial of a few steps; the evaluations
        come on top.
    epochs
        How many epochs instead, or at most [default: 10 without a budget].
    out
        New folder for weights, reports and checkpoints [default: runs/<time>-<hash>].
    resume
        Go on with the hardening in this folder, which was killed or interrupted; give the same words again.
    suite
        The attacks of the evaluations: quick or standard.
    limit
        Evaluate the first N held-out examples only.
    device
        cpu, cuda, cuda:1, mps, or auto.
    workers
        Train with so many processes, every one with its share of every batch.
    engine
        Whose processes: local ones of a CPU core each, or Ray's, here or on a cluster, with a GPU each if there are.
    seed
        Seed of all random choices, also of what the target's own code draws with torch when it is made.
    fresh
        Begin with new weights instead of the trained ones (targets of the zoo).
    choose
        Keep the best epoch by adversarial or clean accuracy on examples that are not trained on, or the last.
    patience
        Epochs without a better one after which training ends.
    lr
        Highest learning rate [default: 0.002].
    schedule
        How the learning rate rises and falls.
    batch_size
        Examples a step [default: 128, 32 for fewer than 5,000].
    ema
        Share of the averaged weights kept per step; 0 for no average [default: an average over about an epoch].
    smoothing
        Label smoothing: share of every label that is spread over all classes [default: 0].
    augment
        Random changes of the images, such as flips, flips+crops(4), shifts(2) or cutout(8) [default: none].
    extra
        More to train on, such as generated images with labels: named and labelled like data [default: none].
    mix
        Share of every batch that comes from --extra [default: 0.3].
    precision
        bf16 lets the network compute in bfloat16 while it trains.
    compile
        Train through torch.compile; on a CPU that took longer (docs/harden.md).
    test
        What both evaluations are of: named like data, and labelled like them [default: the test images of a named data
        set; else a fifth of the data].
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    wear
        A defence that the target wears while it is trained and measured, such as "median(3)"; several are put on in
        their order, the first sees the image first [default: none; `unfooled list defences` has them].
    resize
        Resize images: the shorter side (224), or height by width (224x256).
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    """
    given = locals()
    most = _words.seconds(budget)
    for value, option in (
        (epochs, "--epochs"),
        (limit, "--limit"),
        (patience, "--patience"),
        (batch_size, "--batch-size"),
        (workers, "--workers"),
    ):
        _words.at_least_one(value, option)
    for share, option in ((ema, "--ema"), (smoothing, "--smoothing")):
        if share is not None and not 0 <= share < 1:
            raise InputError(f"{option} is a share from 0 to below 1, not {share:g}.")
    if mix is not None and not 0 < mix < 1:
        raise InputError(f"--mix is a share above 0 and below 1, not {mix:g}.")
    if lr is not None and not lr > 0:
        raise InputError(f"--lr must be positive, not {lr:g}.")
    if mix is not None and extra is None:
        raise InputError("--mix is the share of every batch that comes from --extra; name those data too.")
    inputs = _words.Inputs.of(given | {"reject": None, "limit": None})

    _words.load_torch()
    import torch
    from torch import nn

    from unfooled.core import record
    from unfooled.core.augment import augment as read_augmentation
    from unfooled.harden import bare, way

    way(recipe)
    if augment is not None:
        read_augmentation(augment)
    told = _told(given)
    if resume is not None:
        _must_match(resume, told)
    folder = resume or (record.check_free(out) if out is not None else record.default_out(given))

    from unfooled import report
    from unfooled.cli._progress import Live
    from unfooled.core.data import DATASETS, load_alike, read_classes
    from unfooled.evaluate.hardened import halves, harden_target
    from unfooled.targets.zoo import ZOO, untrained

    with Live() as live:
        torch.manual_seed(seed)  # a factory that draws weights must draw the same ones when the run goes on
        model, examples, ball, name = inputs.load()
        alike = functools.partial(
            load_alike, like=examples, classes=None if classes is None else read_classes(classes),
            resize=_words.size(resize), bounds=model.bounds, data_dir=data_dir,
        )  # fmt: skip
        if fresh:
            if target not in ZOO:
                raise InputError(f"--fresh makes new weights for targets of the zoo; {target} brings its own.")
            assert isinstance(model.module, nn.Module)
            bare(model.module).load_state_dict(untrained(target, seed).state_dict())
        if name in DATASETS:
            train, held = alike(name, split="train"), examples
        else:
            train, held = halves(examples, seed)
        if test is not None:
            train, held = (examples if name not in DATASETS else train), alike(test)
        more = None if extra is None else alike(extra, split="train")
        unsaid = f"threat: {ball!r}, {'of the model card' if target in ZOO else 'the default'}"
        command = _words.command_line("harden", ("target", "data"), _chosen(given))
        if resume is None:
            record.write_json(record.new_run(folder) / "run.json", {"format": 1, "command": command, "words": told})

        def tell(line: "Line") -> None:
            live.note(
                f"epoch {line.epoch}: loss {line.loss:.4f}, accuracy {line.clean:.1%}, adversarial {line.strong:.1%}"
                + (f", {line.alarm}" if line.alarm else "")
            )

        live.say(f"hardening {model.name}")
        if threat is None:
            live.note(unsaid)
        wanted = {
            "lr": lr, "batch_size": batch_size, "precision": precision, "schedule": schedule, "ema": ema,
            "smoothing": smoothing, "mix": mix, "compiled": compile,
        }  # fmt: skip
        try:
            proof = harden_target(
                model, train, held, ball, recipe=recipe, budget=most, epochs=epochs, choose=choose,
                settings={k: v for k, v in wanted.items() if v is not None}, patience=patience, suite=suite,
                limit=limit, seed=seed, out=folder / "training",
                resume=(folder / "training").exists(), augment=augment,
                extra=more, on_line=tell, on_step=live.training, progress=live, records=folder,
                train_by=_trainer(workers, engine),
            )  # fmt: skip
        except BaseException as error:
            refused = isinstance(error, UnfooledError) and not isinstance(error, StorageError)  # it would come again
            if resume is None:
                _forget(folder, useless=refused)
            if not refused and folder.exists():
                _words.say_how_to_go_on(f"{command} --resume {shlex.quote(str(folder))}")
            raise
        record.write_bytes(folder / "hardened.safetensors", proof.weights())
        record.write_json(folder / "harden.json", {
            "sentence": proof.sentence(), "notes": proof.notes, "training": proof.training.sentence(),
            "epochs": proof.training.rows(), "settings": proof.training.settings,
            "cost": proof.training.cost(), "command": command,
            "gains": None if proof.before.withheld or proof.after.withheld else proof.gains(),
        })  # fmt: skip
        for when, found in (("before", proof.before), ("after", proof.after)):
            if not (folder / when / "report.html").exists():
                report.write(found, folder / when, begun=True)
        page = report.write_hardened(proof, folder, command=command, options=told)
    lines = [unsaid] if threat is None else []
    lines += [f"note: {note}" for note in proof.notes]
    lines += [proof.training.sentence(), proof.sentence(), f"weights: {folder / 'hardened.safetensors'}"]
    lines += [f"report: {page}"]
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in lines))
    return proof.after.exit_code()


def _forget(folder: Path, *, useless: bool) -> None:
    """Remove what a stopped hardening made, unless an epoch was finished or a measurement is worth keeping."""
    from unfooled.core import record

    with contextlib.suppress(OSError):
        (folder / "training").rmdir()  # where no epoch was finished
    for part in (folder / "before", folder / "after"):
        if part.exists():
            record.forget(part, useless=useless and not (folder / "training").exists())
    record.forget(folder, useless=True)  # where nothing was made


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Return target, data and the options that are not at their defaults; not where the result goes."""
    usual = {name: each.default for name, each in inspect.signature(harden).parameters.items()}
    return {
        name: value
        for name, value in given.items()
        if name in ("target", "data") or (value != usual[name] and name not in ("out", "resume"))
    }


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the proof among the arguments, as JSON."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if k not in _ASIDE}


def _must_match(folder: Path, told: dict[str, Any]) -> None:
    """Raise InputError where the hardening in a folder was begun with other words."""
    from unfooled.core import record

    begun = record.read_json(folder / "run.json").get("words") if (folder / "run.json").is_file() else None
    if not isinstance(begun, dict):
        raise InputError(f"There is no hardening in {folder} to go on with; give the folder of one that was stopped.")
    for name, value in told.items():
        if value != begun.get(name):
            here, there = (
                _words.listed(each) if each is not None else "not given" for each in (value, begun.get(name))
            )
            option = name if name in ("target", "data") else f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {here} here and {there} in {folder}; give the words that it was begun with.")


def _trainer(workers: int | None, engine: str) -> "Callable[..., Hardened]":
    """Return what trains: this process, or so many others."""
    if workers is None:
        from unfooled.harden import fit

        return fit
    from unfooled import scale

    return functools.partial(scale.fit_on_ray if engine == "ray" else scale.fit, workers=workers)
