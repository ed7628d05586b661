"""`unfooled harden`: from a classifier to a harder one, with the same evaluation before and after."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unfooled.cli import _words
from unfooled.errors import InputError, safe_text

if TYPE_CHECKING:
    from unfooled.harden import Line


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
    test: str | None = None,
    fresh: _words.Flag = False,
    suite: str = "standard",
    limit: int | None = None,
    choose: Literal["adversarial", "clean", "last"] = "adversarial",
    patience: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    device: str = "auto",
    seed: int = 0,
    weights: Path | None = None,
    resize: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    wear: list[str] | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
    resume: Path | None = None,
) -> int:
    """Harden a classifier within a budget and prove it: the same evaluation before and after, on held-out examples.

    Training is judged by an attack after every epoch, the best epoch is kept, and what goes wrong is said. Writes the
    weights, both reports, the curve of training, and a checkpoint an epoch: `--resume DIR` goes on after a kill.

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
        How: standard, noise, mixed, pgd, trades, mart, awp, fgsm-rs, n-fgsm, gradalign or free.
    budget
        Longest time of training, such as 90s, 5m or 1h30m; the evaluations come on top.
    epochs
        How many epochs instead, or at most [default: 10 without a budget].
    out
        New folder for weights, reports and checkpoints [default: runs/<time>-<hash>].
    test
        What both evaluations are of [default: the test images of a named data set; else a fifth of the data].
    fresh
        Begin with new weights instead of the trained ones (targets of the zoo).
    suite
        The attacks of the evaluations: quick or standard.
    limit
        Evaluate the first N held-out examples only.
    choose
        Keep the best epoch by adversarial or clean accuracy on examples that are not trained on, or the last.
    patience
        Epochs without a better one after which training ends.
    lr
        Highest learning rate.
    batch_size
        Examples a step.
    precision
        bf16 lets the network compute in bfloat16 while it trains.
    device
        cpu, cuda, cuda:1, mps, or auto.
    seed
        Seed of all random choices.
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    resize
        Resize images: the shorter side (224), or height by width (224x256).
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    wear
        A defence that the target wears while it is trained and measured, such as "median(3)"; several are put on in
        their order, the first sees the image first [default: none; `unfooled list defences` has them].
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    resume
        Go on with the hardening in this folder, which was killed or interrupted; give the same words again.
    """
    given = locals()
    most = _words.seconds(budget)
    for value, option in (
        (epochs, "--epochs"),
        (limit, "--limit"),
        (patience, "--patience"),
        (batch_size, "--batch-size"),
    ):
        _words.at_least_one(value, option)
    inputs = _words.Inputs.of(given | {"reject": None, "limit": None})

    _words.load_torch()
    from torch import nn

    from unfooled.core import record
    from unfooled.harden import bare, way

    way(recipe)
    folder = resume or (record.check_free(out) if out is not None else record.default_out(given))

    from unfooled import report
    from unfooled.cli._progress import Live
    from unfooled.core.data import DATASETS, load_data
    from unfooled.evaluate.hardened import halves, harden_target
    from unfooled.targets.zoo import ZOO, untrained

    with Live() as live:
        model, examples, ball, name = inputs.load()
        if fresh:
            if target not in ZOO:
                raise InputError(f"--fresh makes new weights for targets of the zoo; {target} brings its own.")
            assert isinstance(model.module, nn.Module)
            bare(model.module).load_state_dict(untrained(target, seed).state_dict())
        if name in DATASETS:
            train, held = load_data(name, split="train", data_dir=data_dir), examples
        else:
            train, held = halves(examples, seed)
        if test is not None:
            train, held = (examples if name not in DATASETS else train), load_data(test, data_dir=data_dir)
        if resume is None:
            record.new_run(folder)

        def tell(line: "Line") -> None:
            live.note(
                f"epoch {line.epoch}: loss {line.loss:.4f}, clean {line.clean:.1%}, adversarial {line.strong:.1%}"
                + (f", {line.alarm}" if line.alarm else "")
            )

        live.say(f"hardening {model.name}")
        wanted = {"lr": lr, "batch_size": batch_size, "precision": precision}
        try:
            proof = harden_target(
                model, train, held.take(limit), ball, recipe=recipe, budget=most, epochs=epochs, choose=choose,
                settings={k: v for k, v in wanted.items() if v is not None}, patience=patience, suite=suite, seed=seed,
                out=folder / "training", resume=(folder / "training" / "training.json").exists(), on_line=tell,
                progress=live,
            )  # fmt: skip
        except BaseException:
            if resume is None and not any(folder.iterdir()):  # refused before anything was made
                folder.rmdir()
            raise
        record.write_bytes(folder / "hardened.safetensors", proof.weights())
        record.write_json(folder / "harden.json", {
            "sentence": proof.sentence(), "training": proof.training.sentence(), "epochs": proof.training.rows(),
            "settings": proof.training.settings,
            "command": _words.command_line("harden", ("target", "data"), given, without=("out", "resume")),
        })  # fmt: skip
        for when, found in (("before", proof.before), ("after", proof.after)):
            if not (folder / when).exists():
                report.write(found, folder / when)
        drawn = _curve(proof.training)
        if drawn:
            record.write_bytes(folder / "training.png", drawn)
    lines = [proof.training.sentence(), proof.sentence(), f"weights: {folder / 'hardened.safetensors'}"]
    lines += [f"reports: {folder / when / 'report.html'}" for when in ("before", "after")]
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in lines))
    return 0


def _curve(training: object) -> bytes:
    """Return the picture of the training, nothing where matplotlib is not installed."""
    from unfooled.errors import MissingExtra

    try:
        return bytes(training.image())  # type: ignore[attr-defined]
    except MissingExtra:
        return b""
