"""`unfooled attack`: one image, one adversarial image, one picture that shows both."""

import sys
from pathlib import Path

from unfooled.cli import _words
from unfooled.errors import safe_text

TARGET = "digits-cnn"


def attack(
    image: str,
    target: str = TARGET,
    /,
    *,
    to: str | None = None,
    threat: str | None = None,
    out: Path | None = None,
    data: str | None = None,
    steps: int = 100,
    seed: int = 0,
    shape: str | None = None,
    device: str = "auto",
    weights: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    wear: list[str] | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
) -> int:
    """Make one adversarial image and the picture that shows it: original, change, result, and random noise as control.

    The result is saved as a PNG, read again, and called a success only when the file still fools the target.
    Ends with exit code 1 when nothing was found.

    Parameters
    ----------
    image
        A picture file, or the number of an image of the data set.
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module or a scikit-learn
        classifier, an ONNX file (model.onnx), the address of an endpoint (https://...), or a timm name.
    to
        Class to turn it into, by name or number [default: any other class].
    threat
        What may be changed, such as linf(8/255) or l2(0.5) [default: 1, 2, 4 ... 64 grey levels until one suffices].
    out
        New folder for the images and the picture [default: runs/<time>-<hash>].
    data
        Data set that a number points into [default: the target's own data set].
    steps
        Steps of the attack.
    seed
        Seed of all random choices.
    shape
        Channels, height and width that the target takes, such as 3x224x224
        [default: those of the data set, else of the picture].
    device
        cpu, cuda, cuda:1, mps, or auto.
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    wear
        A defence that the target wears, such as "median(3)"; several are put on in their order, the first sees the
        image first [default: none; `unfooled list defences` has them].
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    """
    given = locals()
    _words.at_least_one(steps, "--steps")
    inputs = _words.shape(shape)
    mean_, std_ = _words.numbers(mean, "--mean"), _words.numbers(std, "--std")

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.core import record
    from unfooled.core.data import DATASETS, read_classes
    from unfooled.core.threat import parse_threat

    ball = None if threat is None else parse_threat(threat)
    folder = record.check_free(out) if out is not None else record.default_out(given)

    from unfooled import targets
    from unfooled.domains.image import read_image
    from unfooled.evaluate.preflight import check_threat
    from unfooled.evaluate.single import attack_image
    from unfooled.report import figures
    from unfooled.report.panel import single_panel

    names = read_classes(classes) if classes is not None else None
    with Live() as live:
        model = targets.resolve(target, weights=weights, mean=mean_, std=std_, classes=names, device=device)
        model = _words.worn(model, wear)
        own = targets.ZOO[target].data if target in targets.ZOO else None
        examples = _words.pointed_into(image, data or own, data_dir)
        if examples is None and inputs is None and own is not None:
            inputs = DATASETS[own].shape
        _words.must_take(model, examples.x if examples else read_image(image, inputs, bounds=model.bounds)[None])
        if ball is not None:
            check_threat(ball, model.bounds)
        live.say(f"attacking {model.name}")
        found = attack_image(
            image, model, data=examples, to=to, threat=ball, steps=steps, seed=seed, shape=inputs, out=folder
        )
        record.write_bytes(folder / "picture.png", figures.png(single_panel(found)))
    lines = [str(found), *(f"note: {note}" for note in found.notes), f"picture: {folder / 'picture.png'}"]
    if found.success:
        lines.append(f"adversarial image: {folder / 'adversarial.png'}")
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in lines))
    return 0 if found.success else 1
